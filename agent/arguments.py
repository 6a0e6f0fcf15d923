"""Arguments of the controller's questions. They come from outside: numbers may be text, and anything may be wrong."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from agent.build import Built
from agent.errors import BadQuery
from vfp.model import Port
from vfp.reference.zones import Hook

Args = Mapping[str, Any]


def asked_port(built: Built, args: Args, required: bool = False) -> Port | None:
    """The port that argument `port`, an endpoint's uid, means: its own, or that of whom it is behind."""
    uid = args.get("port")
    if uid is None:
        if required:
            raise BadQuery("argument port is missing: give the endpoint's uid")
        return None
    number = built.port_ids.get(built.nested.get(uid, uid))
    for port in built.engine.ports:
        if port.id == number:
            return port
    raise BadQuery(f"endpoint {uid} is not programmed on this host; see its status")


def entrance(port: Port | None, args: Args) -> tuple[Hook, int]:
    """Where the imagined packet enters: from the endpoint, from the overlay, or from the host's stack."""
    direction = args.get("direction", "out")
    if direction == "in" and args.get("vni") is not None:
        return Hook.OVERLAY_IN, number(args, "vni")
    if direction not in ("in", "out") or port is None:
        raise BadQuery(f"direction {direction!r}: use out with a port, or in with a port or a vni")
    return (Hook.PORT_OUT if direction == "out" else Hook.PORT_IN), port.id


def number(args: Args, name: str, most: int = (1 << 24) - 1) -> int:
    """A number from 0; 0 if it is not given."""
    value = args.get(name) or 0
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or not 0 <= value <= most:
        raise BadQuery(f"argument {name}: {value!r} is not a number from 0 to {most}")
    return value


def optional(args: Args, name: str, most: int) -> int | None:
    """A number, or None if it is not given."""
    return None if args.get(name) in (None, "") else number(args, name, most)


def address(args: Args, name: str) -> IPv4Address | IPv6Address:
    """An address."""
    try:
        return ip_address(args.get(name, ""))
    except ValueError:
        raise BadQuery(f"argument {name}: {args.get(name)!r} is no address") from None


def prefix(args: Args, name: str) -> IPv4Network | IPv6Network | None:
    """An address or prefix, host bits or not."""
    if not args.get(name):
        return None
    try:
        return ip_network(args[name], strict=False)
    except (ValueError, TypeError):
        raise BadQuery(f"argument {name}: {args[name]!r} is no address or prefix") from None


def word(args: Args, name: str, known: Collection[str] = ()) -> str:
    """Text; empty if it is not given. `known`: what it may be."""
    value = args.get(name) or ""
    if not isinstance(value, str) or (value and known and value not in known):
        raise BadQuery(f"argument {name}: {value!r} is unknown; use {', '.join(known) or 'text'}")
    return value


def flag(args: Args, name: str) -> bool:
    """Yes or no."""
    return args.get(name) in (True, "true", "1")


def mac(args: Args, name: str) -> bytes | None:
    """Six bytes, or None if it is not given."""
    text = word(args, name)
    if not text:
        return None
    try:
        value = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        value = b""
    if len(value) != 6:
        raise BadQuery(f"argument {name}: {text!r} is no MAC address")
    return value


def data(args: Args, name: str) -> bytes | None:
    """Bytes in base64, or None if they are not given."""
    if not args.get(name):
        return None
    try:
        return base64.b64decode(args[name], validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise BadQuery(f"argument {name}: is not base64") from None
