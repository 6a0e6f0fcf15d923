"""Bytes of an imagined packet: what an honest sender would put on the wire, with right checksums and no payload."""

from __future__ import annotations

import struct

from vfp.model import ETH_P_IP
from vfp.reference.packet import PROTOCOLS_WITH_PORTS, SCTP, TCP, UDP, FlowTuple, Headers, is_icmp

TTL = 64
_DONT_FRAGMENT = 0x4000
_SEQUENCE = 1


def frame_of(what: FlowTuple, headers: Headers) -> bytes:
    """An Ethernet frame with an IPv4 or IPv6 packet of this tuple, `headers` filled in."""
    ethernet = headers.dst_mac + headers.src_mac + struct.pack("!H", headers.ethertype)
    transport = _transport(what, headers)
    if headers.ethertype == ETH_P_IP:
        head = struct.pack("!BBHHHBBH", 0x45, headers.dscp << 2, 20 + len(transport), 0, _DONT_FRAGMENT, TTL,
                           what.protocol, 0) + what.src.packed + what.dst.packed
        head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
    else:
        head = struct.pack("!IHBB", 6 << 28 | headers.dscp << 22, len(transport), what.protocol, TTL)
        head += what.src.packed + what.dst.packed
    return ethernet + head + transport


def _transport(what: FlowTuple, headers: Headers) -> bytes:
    if what.protocol == TCP:
        segment = struct.pack("!HHIIBBHHH", what.src_port, what.dst_port, _SEQUENCE, 0, 5 << 4, headers.tcp_flags,
                              65535, 0, 0)
        return _with_checksum(segment, 16, _pseudo(what, len(segment)))
    if what.protocol == UDP:
        return _with_checksum(struct.pack("!HHHH", what.src_port, what.dst_port, 8, 0), 6, _pseudo(what, 8))
    if what.protocol == SCTP:
        return struct.pack("!HHII", what.src_port, what.dst_port, 0, 0)
    if is_icmp(what):
        identifier = what.src_port or what.dst_port
        message = struct.pack("!BBHHH", headers.icmp_type, headers.icmp_code, 0, identifier, _SEQUENCE)
        return _with_checksum(message, 2, _pseudo(what, len(message)) if what.family == 6 else b"")
    assert what.protocol not in PROTOCOLS_WITH_PORTS
    return b""


def _pseudo(what: FlowTuple, length: int) -> bytes:
    if what.family == 6:
        return what.src.packed + what.dst.packed + struct.pack("!II", length, what.protocol)
    return what.src.packed + what.dst.packed + struct.pack("!HH", what.protocol, length)


def _with_checksum(data: bytes, at: int, pseudo: bytes) -> bytes:
    value = _checksum(pseudo + data) or 0xFFFF
    return data[:at] + struct.pack("!H", value) + data[at + 2:]


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
