"""Addresses, MACs, VNIs, space ids and external ports: pure functions over what is taken.

Every allocator is a ring with a cursor, the value given last: it goes on behind it and comes back to a value only
after the whole range. So the same requests give the same answers, and a value just freed is not given again at
once (`cursor_past` moves a cursor off a freed value that would be next). The cursors are stored with the objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container
from ipaddress import IPv4Address, IPv4Network

MIN_AUTO_VNI = 4096                         # below are numbers that people choose by hand
MAX_VNI = 2**24 - 1
FIRST_NAT_SPACE = 2**24                     # spaces of nat networks: 2**24 + n
MAX_NAT_SPACE = 2**25 - 1
AUTO_PORTS = (10000, 19999)                 # external ports of static mappings that ask for `auto`


class Exhausted(Exception):
    """Nothing is free; the text says of what."""


def next_free(low: int, high: int, after: int, taken: Callable[[int], bool]) -> int | None:
    """The first value behind `after` in the ring low..high that is not taken; None: all are."""
    size = high - low + 1
    start = (after + 1 - low) % size if low <= after <= high else 0
    return next((value for value in (low + (start + i) % size for i in range(size)) if not taken(value)), None)


def cursor_past(low: int, high: int, cursor: int, freed: int, taken: Callable[[int], bool]) -> int:
    """The cursor after `freed` became free (`taken` says so already): moved onto it if it would be given next."""
    return freed if next_free(low, high, cursor, taken) == freed else cursor


def usable(prefix: IPv4Network) -> tuple[int, int]:
    """First and last address that an interface can have, as integers: without network and broadcast address."""
    low, high = int(prefix.network_address), int(prefix.broadcast_address)
    return (low + 1, high - 1) if prefix.prefixlen <= 30 else (low, high)


def default_gateway(prefix: IPv4Network) -> str:
    """The first usable address."""
    return str(IPv4Address(usable(prefix)[0]))


def next_address(prefix: IPv4Network, gateway: str, after: int, taken: Callable[[str], bool]) -> int:
    """A free address of the prefix, as an integer.

    Raises:
        Exhausted: all are in use.
    """
    gateway_number = int(IPv4Address(gateway))
    low, high = usable(prefix)
    value = next_free(low, high, after, lambda n: n == gateway_number or taken(str(IPv4Address(n))))
    if value is None:
        raise Exhausted(f"all {high - low} addresses of {prefix} are in use")
    return value


def next_vni(after: int, taken: Container[int]) -> int:
    """A free VNI. Raises `Exhausted`."""
    value = next_free(MIN_AUTO_VNI, MAX_VNI, after, taken.__contains__)
    if value is None:
        raise Exhausted("all VNIs are in use")
    return value


def next_nat_space(after: int, taken: Container[int]) -> int:
    """A free space id for a nat network. Raises `Exhausted`."""
    value = next_free(FIRST_NAT_SPACE, MAX_NAT_SPACE, after, taken.__contains__)
    if value is None:
        raise Exhausted("all space ids are in use")
    return value


def next_port(after: int, taken: Callable[[int], bool]) -> int:
    """A free external port of the automatic range. Raises `Exhausted`."""
    value = next_free(*AUTO_PORTS, after, taken)
    if value is None:
        raise Exhausted(f"all external ports from {AUTO_PORTS[0]} to {AUTO_PORTS[1]} are in use")
    return value


def hashed_mac(identity: str, taken: Callable[[str], bool]) -> str:
    """A locally administered MAC, 02: and 40 bits of SHA-256 over the identity; rehashed while it is taken."""
    for attempt in range(1000):
        digest = hashlib.sha256(f"{identity}#{attempt}".encode()).digest()
        mac = ":".join(f"{octet:02x}" for octet in b"\x02" + digest[:5])
        if not taken(mac):
            return mac
    raise Exhausted(f"no free MAC address for {identity}")


__all__ = ["AUTO_PORTS", "Exhausted", "cursor_past", "default_gateway", "hashed_mac", "next_address", "next_free",
           "next_nat_space", "next_port", "next_vni", "usable"]
