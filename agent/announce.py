"""Tell a segment whose an address is now: endpoints come and move, and neighbours and switches remember.

An address of an l2bridge or l2tunnel endpoint is announced with the uplink's MAC, one of a transparent endpoint with
its own: by an ARP announcement (RFC 5227 2.3), or an unsolicited neighbour advertisement (RFC 4861 7.2.6).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from policy.addresses import ETHERTYPES, ICMPV6, behind_port
from policy.contribution import HostView, mac_bytes
from vfp.model import ETH_P_ARP, Address

__all__ = ["Announcement", "announcements", "frame"]

_BROADCAST, _ALL_NODES_MAC = b"\xff" * 6, bytes.fromhex("333300000001")
_ALL_NODES = IPv6Address("ff02::1")
_ADVERTISEMENT, _OVERRIDE, _TARGET_LINK_LAYER = 136, 1 << 29, 2
_NO_MAC = bytes(6)


@dataclass(frozen=True, slots=True)
class Announcement:
    """An address is behind a MAC, on the segment of a link."""

    ifindex: int
    mac: bytes
    address: Address


def announcements(view: HostView) -> Iterator[Announcement]:
    """All that hold on this host."""
    for uid, uplink in view.segments.items():
        network = view.networks[uid]
        for port in view.ports_of(network):
            mac = mac_bytes(port.mac) if network.mode == "transparent" or not uplink.mac else mac_bytes(uplink.mac)
            yield from (Announcement(uplink.ifindex, mac, address) for address in behind_port(port, view))


def frame(what: Announcement) -> bytes:
    """The frame that says so to everybody."""
    if isinstance(what.address, IPv4Address):
        own = what.address.packed
        return (_BROADCAST + what.mac + struct.pack("!HHHBBH", ETH_P_ARP, 1, ETHERTYPES[4], 6, 4, 1)
                + what.mac + own + _NO_MAC + own)
    own = what.address.packed
    body = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + own + bytes((_TARGET_LINK_LAYER, 1)) + what.mac
    pseudo = own + _ALL_NODES.packed + struct.pack("!II", len(body), ICMPV6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, 255) + own + _ALL_NODES.packed
    return _ALL_NODES_MAC + what.mac + struct.pack("!H", ETHERTYPES[6]) + header + body


def _checksum(data: bytes) -> int:
    """RFC 1071; `data` is of even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
