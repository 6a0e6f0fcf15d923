"""Which underlay addresses two hosts use for an endpoint when they have several: both come to the same choice."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

__all__ = ["choose_vtep", "common_family"]


def common_family(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """4 if both have an IPv4 address, else 6 if both have an IPv6 one, else 0: they cannot reach each other."""
    for family, mark in ((4, "."), (6, ":")):
        if any(mark in address for address in ours) and any(mark in address for address in theirs):
            return family
    return 0


def choose_vtep(home: Sequence[str], family: int, mac: bytes) -> str:
    """The address of `home`, the host that has the endpoint with this MAC, for what it sends and what it gets.

    Args:
        home: its addresses in the order declared; at least one is of `family` (4 or 6).
    """
    mark = "." if family == 4 else ":"
    candidates = [address for address in home if mark in address]
    return candidates[crc32(mac) % len(candidates)] if len(candidates) > 1 else candidates[0]
