"""Reading the objects that netavark and Podman send: a wrong field is told by its name."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from runtimes.local import LocalError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def text(given: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A text that is not empty, unless there is a default.

    Raises:
        LocalError: invalid.
    """
    value = given.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or (not value and default is None):
        raise wrong(name, "is not a text", value)
    return value


def number(given: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A number of a port, or of ports.

    Raises:
        LocalError: invalid.
    """
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise wrong(name, "is not a number of 0 to 65535", value)
    return value


def part(given: Mapping[str, Any], name: str, needed: bool = True) -> dict[str, Any]:
    """An object; without `needed` null is an empty one.

    Raises:
        LocalError: invalid.
    """
    value = given.get(name)
    if value is None and not needed:
        return {}
    if not isinstance(value, dict):
        raise wrong(name, "is not an object", value)
    return value


def parts(given: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects; null is an empty one.

    Raises:
        LocalError: invalid.
    """
    value = given.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise wrong(name, "is not a list of objects", value)
    return value


def texts(given: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts; null is an empty one.

    Raises:
        LocalError: invalid.
    """
    value = given.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise wrong(name, "is not a list of texts", value)
    return value


def prefix(value: str, name: str) -> Network:
    """A prefix; bits of a host are passed over, as Podman does.

    Raises:
        LocalError: invalid.
    """
    try:
        return ip_network(value, strict=False)
    except ValueError:
        raise wrong(name, "is not a prefix", value) from None


def address(value: str, name: str) -> Address:
    """An address.

    Raises:
        LocalError: invalid.
    """
    try:
        return ip_address(value)
    except ValueError:
        raise wrong(name, "is not an address", value) from None


def wrong(name: str, message: str, value: object) -> LocalError:
    """Of a field that does not keep to the protocol."""
    shown = "nothing" if value is None else repr(value)
    return LocalError("invalid", message, name, shown if len(shown) <= 80 else f"{shown[:77]}...",
                      "Podman sends it; see its version and docs/runtimes.md")


__all__ = ["Address", "Network", "address", "number", "part", "parts", "prefix", "text", "texts", "wrong"]
