"""Addresses, prefixes, MACs, VNIs, space ids and external ports: pure functions over what is taken.

Every allocator is a ring with a cursor, the value given last: it goes on behind it and comes back to a value only
after the whole range. So the same requests give the same answers, and a value just freed is not given again at
once (`cursor_past` moves a cursor off a freed value that would be next). The cursors are stored with the objects.
A ring is a sequence of ranges (first, last), apart from each other, in the order in which they are given out.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

MIN_AUTO_VNI = 4096                         # below are numbers that people choose by hand
MAX_VNI = 2**24 - 1
FIRST_SPACE = 2**24                     # spaces of networks that are no overlays
MAX_SPACE = 2**25 - 1

Prefix = IPv4Network | IPv6Network
Range = tuple[int, int]


class Exhausted(Exception):
    """Nothing is free; the text says of what. `field`, `found` and `todo` say who asked for it, as in a `Problem`."""

    def __init__(self, text: str, field: str = "spec", found: str = "",
                 todo: str = "free some, or choose by hand") -> None:
        super().__init__(text)
        self.field, self.found, self.todo = field, found, todo


def next_free(ring: Sequence[Range], after: int, taken: Callable[[int], bool]) -> int | None:
    """The first value behind `after` in the ring that is not taken; None: all are.

    If `after` is in none of the ranges, it goes on in the one that follows it in the same run of rising ranges (those
    of a subnet may have changed), else at the beginning.
    """
    start, first = _position(ring, after)
    for turn in range(len(ring) + 1):
        low, high = ring[(start + turn) % len(ring)] if ring else (0, -1)
        begin, end = (first, high) if turn == 0 else (low, first - 1) if turn == len(ring) else (low, high)
        value = next((value for value in range(begin, end + 1) if not taken(value)), None)
        if value is not None:
            return value
    return None


def _position(ring: Sequence[Range], after: int) -> tuple[int, int]:
    """Range and value in it from where to go on."""
    for index, (low, high) in enumerate(ring):
        if low <= after < high:
            return index, after + 1
        if after == high:
            following = (index + 1) % len(ring)
            return following, ring[following][0]
    above = [(low, index) for index, (low, _) in enumerate(ring) if low > after > 0 and index
             and ring[index - 1][1] < after]
    low, index = min(above, default=(ring[0][0] if ring else 0, 0))
    return index, low


def cursor_past(ring: Sequence[Range], cursor: int, freed: int, taken: Callable[[int], bool]) -> int:
    """The cursor after `freed` became free (`taken` says so already): moved onto it if it would be given next."""
    return freed if next_free(ring, cursor, taken) == freed else cursor


def without(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """The ranges, in their order, less the holes."""
    left = list(ranges)
    for first, last in holes:
        left = [part for low, high in left
                for part in ((low, min(high, first - 1)), (max(low, last + 1), high)) if part[0] <= part[1]]
    return left


def within(ranges: Iterable[Range], bounds: Range) -> list[Range]:
    """The parts of the ranges that are in the bounds, ascending and joined where they meet."""
    joined: list[Range] = []
    for low, high in sorted((max(low, bounds[0]), min(high, bounds[1])) for low, high in ranges):
        if low > high:
            continue
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    return joined


def usable(prefix: Prefix) -> Range:
    """First and last address that an interface can have, as integers.

    IPv4: without network and broadcast address; IPv6: without the subnet-router anycast address (RFC 4291 2.6.1).
    """
    low, high = int(prefix.network_address), int(prefix.broadcast_address)
    if prefix.version == 6:
        return (low + 1, high) if prefix.prefixlen <= 126 else (low, high)
    return (low + 1, high - 1) if prefix.prefixlen <= 30 else (low, high)


def default_gateway(prefix: Prefix) -> str:
    """The first usable address."""
    return text_of(usable(prefix)[0], prefix.version)


def text_of(number: int, version: int) -> str:
    """An address as text; small numbers are IPv6 as well."""
    return str(ip_address(number.to_bytes(4 if version == 4 else 16, "big")))


def free_prefix(sources: Iterable[Prefix], length: int, obstacles: Iterable[Prefix]) -> Prefix:
    """The first prefix of a length in the sources, in their order, that overlaps no obstacle.

    Raises:
        Exhausted: there is none.
    """
    sources = [source for source in sources if source.prefixlen <= length]
    held = [range_of(each) for each in obstacles if sources and each.version == sources[0].version]
    for source in sources:
        low, high = range_of(source)
        size = 1 << (source.max_prefixlen - length)
        blocked = within(held, (low, high))
        starts = [first for first, _ in blocked]
        candidate = low
        while candidate + size - 1 <= high:
            index = bisect_right(starts, candidate + size - 1) - 1
            if index < 0 or blocked[index][1] < candidate:
                return ip_network((candidate.to_bytes(source.max_prefixlen // 8, "big"), length))
            candidate = (blocked[index][1] // size + 1) * size
    raise Exhausted(f"no /{length} is free in {', '.join(map(str, sources)) or 'a prefix long enough'}")


def range_of(prefix: Prefix) -> Range:
    """First and last address as integers."""
    return int(prefix.network_address), int(prefix.broadcast_address)


def local_prefix(identity: str) -> IPv6Network:
    """A /48 of unique local addresses, fd and 40 bits of SHA-256 over the identity (RFC 4193 section 3.2)."""
    return IPv6Network((b"\xfd" + hashlib.sha256(identity.encode()).digest()[:5] + bytes(10), 48))


def next_vni(after: int, taken: Container[int]) -> int:
    """A free VNI. Raises `Exhausted`."""
    value = next_free([(MIN_AUTO_VNI, MAX_VNI)], after, taken.__contains__)
    if value is None:
        raise Exhausted("all VNIs are in use")
    return value


def next_space(after: int, taken: Container[int]) -> int:
    """A free space id for a network that is no overlay. Raises `Exhausted`."""
    value = next_free([(FIRST_SPACE, MAX_SPACE)], after, taken.__contains__)
    if value is None:
        raise Exhausted("all space ids are in use")
    return value


def next_ports(ports: Range, size: int, after: int, taken: Callable[[int], bool]) -> int:
    """The first of `size` free external ports in a row; `after`: the last one that was given.

    Raises:
        Exhausted: there are none.
    """
    low, high = ports
    known: dict[int, bool] = {}

    def held(port: int) -> bool:
        if port not in known:
            known[port] = taken(port)
        return known[port]

    value = next_free([(low, high - size + 1)], after if low <= after <= high - size + 1 else 0,
                      lambda first: any(held(port) for port in reversed(range(first, first + size))))
    if value is None:
        many = f"no {size} external ports in a row are free" if size > 1 else "all external ports are in use"
        raise Exhausted(f"{many} from {low} to {high}")
    return value


def hashed_mac(identity: str, taken: Callable[[str], bool]) -> str:
    """A locally administered MAC, 02: and 40 bits of SHA-256 over the identity; rehashed while it is taken."""
    for attempt in range(1000):
        digest = hashlib.sha256(f"{identity}#{attempt}".encode()).digest()
        mac = ":".join(f"{octet:02x}" for octet in b"\x02" + digest[:5])
        if not taken(mac):
            return mac
    raise Exhausted(f"no free MAC address for {identity}")


__all__ = [
    "Exhausted",
    "Prefix",
    "Range",
    "cursor_past",
    "default_gateway",
    "free_prefix",
    "hashed_mac",
    "local_prefix",
    "next_free",
    "next_ports",
    "next_space",
    "next_vni",
    "range_of",
    "text_of",
    "usable",
    "within",
    "without",
]
