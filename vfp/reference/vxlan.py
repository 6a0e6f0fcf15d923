"""Outer headers (RFC 7348) as the engine makes and takes them off: DSCP and ECN by RFC 6040 in normal mode.

The source port is a hash of the packet that only the kernel knows; here it is given.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vfp.model import Address
from vfp.reasons import DropReason
from vfp.reference.packet import ETHERNET_BYTES, internet_checksum
from vfp.reference.transposition import update_checksum

SOURCE_PORTS = range(49152, 65535)
TTL = 64
NOT_ECT, ECT_1, ECT_0, CE = range(4)

_UDP, _VNI_VALID, _DONT_FRAGMENT = 17, 0x08000000, 0x4000


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Where a packet goes. `whole`: its outer packet must not be fragmented (IPv4)."""

    source: Address
    vtep: Address
    vni: int
    port: int = 4789
    whole: bool = True


def encapsulate(frame: bytes, tunnel: Tunnel, source_port: int) -> bytes:
    """From the outer IP header on; what is no IP has class 0."""
    inner = struct.pack("!II", _VNI_VALID, tunnel.vni << 8) + frame
    body = struct.pack("!HHHH", source_port, tunnel.port, 8 + len(inner), 0) + inner
    what = traffic_class(frame)
    addresses = tunnel.source.packed + tunnel.vtep.packed
    if tunnel.vtep.version == 6:
        return struct.pack("!IHBB", 6 << 28 | what << 20, len(body), _UDP, TTL) + addresses + body
    header = struct.pack("!BBHHHBBH", 0x45, what, 20 + len(body), 0, _DONT_FRAGMENT * tunnel.whole, TTL, _UDP, 0)
    header += addresses
    return header[:10] + internet_checksum(header).to_bytes(2, "big") + header[12:] + body


def arrived(frame: bytes, outer_class: int) -> bytes | DropReason:
    """A frame that came out of a tunnel, with the ECN that it has from there (RFC 6040 4.2)."""
    inner = traffic_class(frame)
    became = ecn(outer_class & 3, inner & 3)
    if became is None:
        return DropReason.ECN_INVALID
    return _with_class(frame, inner & ~3 | became) if became != inner & 3 else frame


def ecn(outer: int, inner: int) -> int | None:
    """What the inner field becomes; None: the packet is dropped. RFC 6040 figure 4."""
    if outer == CE:
        return CE if inner else None
    return ECT_1 if (outer, inner) == (ECT_1, ECT_0) else inner


def traffic_class(frame: bytes) -> int:
    """The byte of DSCP and ECN."""
    match frame[12:14]:
        case b"\x08\x00":
            return frame[ETHERNET_BYTES + 1]
        case b"\x86\xdd":
            return int.from_bytes(frame[ETHERNET_BYTES:ETHERNET_BYTES + 2], "big") >> 4 & 0xFF
        case _:
            return 0


def _with_class(frame: bytes, what: int) -> bytes:
    at = ETHERNET_BYTES
    if frame[12:14] == b"\x86\xdd":
        start = int.from_bytes(frame[at:at + 2], "big") & 0xF00F | what << 4
        return frame[:at] + start.to_bytes(2, "big") + frame[at + 2:]
    new = bytes([frame[at], what])
    checksum = update_checksum(int.from_bytes(frame[at + 10:at + 12], "big"), frame[at:at + 2], new)
    return frame[:at] + new + frame[at + 2:at + 10] + checksum.to_bytes(2, "big") + frame[at + 12:]
