"""Goal states that an earlier version of this software has left on a host's disk.

What a host was told last stays in force over an upgrade, also while the controller is away. Messages on the wire are
never of another version; the two sides say so to each other and part.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields, is_dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import msgpack

from southbound.codec import decode
from southbound.errors import ProtocolError
from southbound.messages import REMOTES_BLOCK, HostGoal, Message, NatGoal, NetworkGoal, PortGoal

__all__ = ["decode_kept"]


def decode_kept(payload: bytes) -> Message:
    """The message in a file, of this version or an earlier one.

    Raises:
        ProtocolError: it is of neither.
    """
    try:
        return decode(payload)
    except ProtocolError as error:
        try:
            raw = msgpack.unpackb(payload)
            for goal in raw["goals"]:
                _from_version_1(goal)
            raw["goals"] = _from_version_2(raw["goals"])
            return decode(msgpack.packb(raw))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, msgpack.UnpackException,
                ProtocolError):
            raise error from None


def _from_version_1(goal: dict[str, Any]) -> None:
    """One IPv4 subnet a network, nothing said of its translation, and one port a mapping."""
    match goal["kind"]:
        case "network":
            goal.setdefault("nat", asdict(NatGoal()))
        case "port" | "remote":
            goal.setdefault("address6", "")
            for tier in goal.get("tiers", ()):
                for rule in tier["rules"]:
                    rule.setdefault("mapped", False)
        case "mapping" if "external_port" in goal:
            port = goal.pop("external_port")
            goal["external_ports"] = [port, port]


def _from_version_2(goals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One underlay address a host, remote endpoints one by one, and nothing said of what came with other modes."""
    found = []
    remotes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for goal in goals:
        if goal["kind"] == "remote":
            remotes.setdefault((goal["network"], goal["vtep"]), []).append(goal)
            continue
        if goal["kind"] == "host" and "underlays" not in goal:
            goal["underlays"] = [goal["underlay"]] if goal["underlay"] else []
        for name, value in _LATER.get(goal["kind"], {}).items():
            goal.setdefault(name, value)
        found.append(goal)
    for (network, vtep), its in remotes.items():
        found += [_block(network, vtep, place, its[place:place + REMOTES_BLOCK])
                  for place in range(0, len(its), REMOTES_BLOCK)]
    return found


def _block(network: str, vtep: str, place: int, remotes: list[dict[str, Any]]) -> dict[str, Any]:
    """Some remote endpoints behind one VTEP as one object. Their host was not named: its address stands for it."""
    return {
        "kind": "remotes", "id": f"{network}/{vtep}/{place}", "network": network, "host": vtep, "vteps": [vtep],
        "names": [remote["name"] for remote in remotes],
        "macs": bytes.fromhex("".join(remote["mac"].replace(":", "") for remote in remotes)),
        "addresses": b"".join(IPv4Address(remote["address"] or "0.0.0.0").packed for remote in remotes),
        "addresses6": b"".join(IPv6Address(remote["address6"] or "::").packed for remote in remotes)}


def _defaults(kind: type[Any]) -> dict[str, Any]:
    """What msgpack has for the fields of a goal that have defaults."""
    found = {each.name: each.default for each in fields(kind) if each.default is not MISSING}
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in found.items()}


_LATER = {kind.kind: _defaults(kind) for kind in (NetworkGoal, PortGoal, HostGoal)}
"""By kind, the fields that version 3 added; and those with defaults that were there before."""
