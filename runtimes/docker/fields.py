"""Fields of Docker's requests, checked: what is not as libnetwork sends it is told by its name."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface, ip_network
from typing import Any

from runtimes.local import LocalError

_ASK = "Docker sends it; what is between?"


def text(request: Mapping[str, Any], field: str) -> str:
    """A text that must be there.

    Raises:
        LocalError: invalid.
    """
    value = request.get(field)
    if not isinstance(value, str) or not value:
        raise LocalError("invalid", "a text is needed", field, "nothing" if value is None else str(value), _ASK)
    return value


def mapping(request: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """An object; empty if it is not there.

    Raises:
        LocalError: invalid.
    """
    value = request.get(field) or {}
    if not isinstance(value, dict):
        raise LocalError("invalid", "an object is needed", field, str(value), _ASK)
    return value


def rows(request: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    """A list of objects; empty if it is not there.

    Raises:
        LocalError: invalid.
    """
    value = request.get(field) or []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise LocalError("invalid", "a list of objects is needed", field, str(value), _ASK)
    return value


def interface(value: Any, field: str) -> IPv4Interface | IPv6Interface:
    """An address with the length of its prefix.

    Raises:
        LocalError: invalid.
    """
    try:
        return ip_interface(str(value))
    except ValueError:
        raise LocalError("invalid", "not an address", field, str(value), "write it like 10.1.0.5/24") from None


def prefix(value: Any, field: str) -> IPv4Network | IPv6Network:
    """A prefix.

    Raises:
        LocalError: invalid.
    """
    try:
        return ip_network(str(value), strict=False)
    except ValueError:
        raise LocalError("invalid", "not a prefix", field, str(value), "write it like 10.1.0.0/24") from None
