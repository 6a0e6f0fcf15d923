"""Ports to publish, as Docker writes them: `[ip:]external[-external]:internal[-internal][/protocol]`."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any

from cli.problems import USAGE, Problem, problem

_PORTS = r"\d{1,5}(?:-\d{1,5})?"
_FORM = re.compile(
    rf"(?:(?:(?P<address>\[[^\]]*\]|[^:\[\]]*):)?(?P<outer>{_PORTS})?:)?(?P<inner>{_PORTS})(?:/(?P<protocol>[a-z]+))?",
    re.ASCII)
_PROTOCOLS = ("tcp", "udp", "sctp")
MOST = 65535


def mapping(text: str) -> dict[str, Any]:
    """One mapping of an attachment.

    Raises:
        Problem: it is not written so, or a number is none of a port.
    """
    match = _FORM.fullmatch(text.strip().lower())
    if match is None:
        raise _wrong(text, "is not written as ports are",
                     "write it like 8080:80, 127.0.0.1:53:53/udp or 8000-8010:80-90")
    inner = _range(match["inner"], text)
    outer = _range(match["outer"], text) if match["outer"] else None
    protocol = match["protocol"] or "tcp"
    if protocol not in _PROTOCOLS:
        raise _wrong(text, f"has protocol {protocol}", f"use {', '.join(_PROTOCOLS)}")
    if outer is not None and outer[1] - outer[0] != inner[1] - inner[0]:
        raise _wrong(text, f"has {outer[1] - outer[0] + 1} outer ports and {inner[1] - inner[0] + 1} inner ones",
                     "give as many of each; without an outer one a free one is taken")
    found: dict[str, Any] = {
        "protocol": protocol, "externalPort": _written(outer) if outer is not None else "auto",
        "internalPort": _written(inner)}
    if match["address"]:
        found["externalAddress"] = _address(match["address"].strip("[]"), text)
    return found


def _range(ports: str, text: str) -> tuple[int, int]:
    first, _, last = ports.partition("-")
    low, high = int(first), int(last or first)
    if not 0 < low <= high <= MOST:
        raise _wrong(text, f"has ports {ports}", f"give 1 to {MOST}, the lower one first")
    return low, high


def _written(ports: tuple[int, int]) -> int | str:
    return ports[0] if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"


def _address(address: str, text: str) -> str:
    try:
        return str(ip_address(address))
    except ValueError:
        raise _wrong(text, f"has {address!r}, which is no address",
                     "write it like 127.0.0.1:8080:80 or [::1]:8080:80") from None


def _wrong(text: str, message: str, todo: str) -> Problem:
    return problem("-p", f"{text!r} {message}", text, todo, USAGE)


__all__ = ["mapping"]
