"""What the sender of a rejected packet is told: a TCP reset, or an ICMP error "administratively prohibited"; and
that of a packet which is too big: the MTU.

Sources: RFC 9293 3.5.2 and 3.10.7.1 (resets), RFC 1812 4.3.2 and RFC 4443 2.4 (to whom no error may go), RFC 1191 4 and
RFC 4443 3.2 (too big).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vfp.model import Address
from vfp.reference.packet import (
    ETHERNET_BYTES,
    ICMP,
    ICMP_ERRORS,
    ICMPV6,
    ICMPV6_ECHO_REQUEST,
    TCP,
    TCP_ACK,
    TCP_FIN,
    TCP_RST,
    TCP_SYN,
    Packet,
    Part,
    internet_checksum,
    is_icmp,
)
from vfp.reference.transposition import Exit

TTL = 64
ERROR_BYTES_MAX = 576                       # of an ICMP error's IP packet (RFC 1812 4.3.2.3)
ERROR_BYTES_MAX_6 = 1280                    # RFC 4443 2.4 (c)
INTERNETWORK_CONTROL = 0xC0                 # type of service of an ICMP error (RFC 1812 4.3.2.5)
TRANSPORT_AT_MAX = 4095 - 20                # further back than that the kernel cannot put an answer in a packet's place
ANSWERS_PER_S = 1000
ANSWERS_BURST = 100

_SOURCE_QUENCH, _REDIRECT, _LAST_ICMP = 4, 5, 18
_ROUTER_SOLICITATION, _REDIRECT_6 = 133, 137


@dataclass(frozen=True, slots=True)
class Answer:
    """A frame of the engine's own, and how it leaves."""

    frame: bytes
    exit: Exit


class AnswerLimit:
    """At most `ANSWERS_PER_S` a second, `ANSWERS_BURST` of them at once: a token bucket, kept as a time."""

    def __init__(self) -> None:
        self._spent_until_ns = 0

    def take(self, now_s: float) -> bool:
        """Whether one more may go."""
        now_ns, each_ns = int(now_s * 1e9), 10**9 // ANSWERS_PER_S
        until_ns = max(self._spent_until_ns, now_ns)
        if until_ns - now_ns > (ANSWERS_BURST - 1) * each_ns:
            return False
        self._spent_until_ns = until_ns + each_ns
        return True


def answer_to(frame: bytes, packet: Packet, limit: AnswerLimit, now_s: float, mtu: int = 0,
              gateway: Address | None = None) -> bytes | None:
    """The frame that tells its sender; None when nobody may or can be told. `mtu`: that it is larger than this.

    `gateway`: source of an ICMP error; None: the packet's destination.
    """
    if not _may_answer(frame, packet):
        return None
    if packet.is_tcp and not mtu:
        answer = _reset(frame, packet)
    elif limit.take(now_s):
        answer = _error(frame, packet, mtu, gateway or packet.tuple.dst)
    else:
        return None
    return answer if packet.transport <= TRANSPORT_AT_MAX else None


def _may_answer(frame: bytes, packet: Packet) -> bool:
    if not packet.is_ip or packet.part is Part.LATER or (frame[0] | frame[6]) & 1:
        return False
    if not (_is_somebody(packet.tuple.src) and _is_somebody(packet.tuple.dst)):
        return False
    if packet.is_tcp:
        return not packet.headers.tcp_flags & TCP_RST
    kind = packet.headers.icmp_type
    if not is_icmp(packet.tuple):
        return True
    if packet.tuple.family == 6:
        return kind >= ICMPV6_ECHO_REQUEST and not _ROUTER_SOLICITATION <= kind <= _REDIRECT_6
    return kind not in (*ICMP_ERRORS, _SOURCE_QUENCH, _REDIRECT) and kind <= _LAST_ICMP


def _is_somebody(address: Address) -> bool:
    """An address of one host, not of a link or a group, and not of everybody."""
    if address.version == 6:
        return not address.is_multicast and int(address) > 1
    first = address.packed[0]
    return 0 < first < 224 and first != 127


def _reset(frame: bytes, packet: Packet) -> bytes:
    flags = packet.headers.tcp_flags
    start = packet.transport
    sequence, acknowledged = struct.unpack_from("!II", frame, start + 4)
    length = packet.length - (frame[start + 12] >> 4) * 4 + bool(flags & TCP_SYN) + bool(flags & TCP_FIN)
    ports = struct.pack("!HH", packet.tuple.dst_port, packet.tuple.src_port)
    if flags & TCP_ACK:
        numbers = struct.pack("!IIBB", acknowledged, 0, 0x50, TCP_RST)
    else:
        numbers = struct.pack("!IIBB", 0, (sequence + length) % 2**32, 0x50, TCP_RST | TCP_ACK)
    body = ports + numbers + bytes(6)
    source = packet.tuple.dst
    return _in_ip(frame, packet, TCP, _summed(_pseudo(packet, source, TCP, len(body)), body, 16), source)


def _error(frame: bytes, packet: Packet, mtu: int, source: Address) -> bytes:
    six = packet.tuple.family == 6
    came = frame[ETHERNET_BYTES:packet.transport + packet.length]
    if six:
        body = struct.pack("!BBHI", *((2, 0, 0, mtu) if mtu else (1, 1, 0, 0))) + came[:ERROR_BYTES_MAX_6 - 40 - 8]
        return _in_ip(frame, packet, ICMPV6, _summed(_pseudo(packet, source, ICMPV6, len(body)), body, 2), source)
    body = struct.pack("!BBHI", 3, 4 if mtu else 13, 0, mtu) + came[:ERROR_BYTES_MAX - 20 - 8]
    return _in_ip(frame, packet, ICMP, _summed(b"", body, 2), source, INTERNETWORK_CONTROL)


def _pseudo(packet: Packet, source: Address, protocol: int, length: int) -> bytes:
    return source.packed + packet.tuple.src.packed + struct.pack("!II", length, protocol)


def _summed(pseudo: bytes, body: bytes, at: int) -> bytes:
    return body[:at] + internet_checksum(pseudo + body).to_bytes(2, "big") + body[at + 2:]


def _in_ip(frame: bytes, packet: Packet, protocol: int, body: bytes, source: Address, tos: int = 0) -> bytes:
    """From who was meant, or `source`, to who sent."""
    addresses = source.packed + packet.tuple.src.packed
    ethernet = frame[6:12] + frame[0:6] + frame[12:14]
    if packet.tuple.family == 6:
        return ethernet + struct.pack("!IHBB", 6 << 28, len(body), protocol, TTL) + addresses + body
    header = struct.pack("!BBHHHBBH", 0x45, tos, 20 + len(body), 0, 0x4000, TTL, protocol, 0) + addresses
    return ethernet + _summed(b"", header, 10) + body
