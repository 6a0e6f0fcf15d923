"""Goal states that an earlier version of this software has left on a host's disk.

What a host was told last stays in force over an upgrade, also while the controller is away. Messages on the wire are
never of another version; the two sides say so to each other and part.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgpack

from southbound.codec import decode
from southbound.errors import ProtocolError
from southbound.messages import Message, NatGoal

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
            return decode(msgpack.packb(raw))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, msgpack.UnpackException,
                ProtocolError):
            raise error from None


def _from_version_1(goal: dict[str, Any]) -> None:
    """One IPv4 subnet a network, nothing said of its translation, and one port a mapping."""
    match goal["kind"]:
        case "network":
            goal.setdefault("nat", asdict(NatGoal()))
        case "port":
            goal.setdefault("address6", "")
            for tier in goal["tiers"]:
                for rule in tier["rules"]:
                    rule.setdefault("mapped", False)
        case "remote":
            goal.setdefault("address6", "")
        case "mapping" if "external_port" in goal:
            port = goal.pop("external_port")
            goal["external_ports"] = [port, port]
