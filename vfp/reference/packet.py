"""Bytes of a frame to headers, or the reason why not; and the ARP answer, the one frame the engine makes.

Decided here, where `docs/engine.md` is open:

- A frame that is neither IPv4 nor ARP has address 0.0.0.0, protocol 0 and ports 0 in its tuple.
- TCP flags are the 8 bits of byte 13 (CWR..FIN); the AE bit of byte 12 is not among them.
- Every first fragment is entered in the fragment table when it is parsed, allowed or not.
- Of a first fragment, a TCP data offset below 5 is `MALFORMED_TRANSPORT`; any header that is not all there is
  `FRAGMENT_TINY`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address

from vfp.model import ETH_P_ARP, ETH_P_IP, Address
from vfp.reasons import DropReason

ETHERNET_BYTES = 14
ARP_BYTES = 28
IPV4_MIN_BYTES = 20
IP_BYTES_MAX = 65535
ETH_P_8021Q = 0x8100
ETH_P_8021AD = 0x88A8

ICMP = 1
TCP = 6
UDP = 17
SCTP = 132
PROTOCOLS_WITH_PORTS = (TCP, UDP, SCTP)

ICMP_ECHO_REPLY = 0
ICMP_ECHO_REQUEST = 8
ICMP_ERRORS = (3, 11, 12)                   # unreachable, time exceeded, parameter problem

TCP_FIN = 0x01
TCP_SYN = 0x02
TCP_RST = 0x04
TCP_ACK = 0x10

ARP_REQUEST = 1
ARP_REPLY = 2

NOWHERE = IPv4Address(0)


class Malformed(Exception):
    """The frame cannot be a packet of ours; `reason` is what to count."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class FlowTuple:
    """What layers match and rewrite; with a zone, the identity of a flow. `family` is 4, or 0 when not IP."""

    family: int
    protocol: int                           # IP protocol; ARP: low byte of the opcode
    src: Address
    dst: Address
    src_port: int = 0                       # ICMP echo request: the identifier
    dst_port: int = 0                       # ICMP echo reply: the identifier

    def reversed(self) -> FlowTuple:
        """The tuple of an answer to this one."""
        return FlowTuple(self.family, self.protocol, self.dst, self.src, self.dst_port, self.src_port)

    def with_ports(self, src_port: int, dst_port: int) -> FlowTuple:
        """The tuple with other ports."""
        return replace(self, src_port=src_port, dst_port=dst_port)


@dataclass(frozen=True, slots=True)
class Headers:
    """What conditions test and no layer rewrites. A flow keeps those of the packet that made it."""

    ethertype: int
    src_mac: bytes
    dst_mac: bytes
    dscp: int = 0
    tcp_flags: int = 0
    icmp_type: int = 0
    icmp_code: int = 0
    arp_sender_mac: bytes = b""             # ARP only


class Part(Enum):
    """Which part of an IP packet the frame carries."""

    WHOLE = "whole"
    FIRST = "first fragment"
    LATER = "later fragment"


@dataclass(frozen=True, slots=True)
class Fragment:
    """Where a fragment is in its datagram's payload: [begin, end) in units of 8 bytes, the last one rounded up."""

    identification: int
    begin: int
    end: int
    last: bool


@dataclass(frozen=True, slots=True)
class Packet:
    """A parsed frame. `transport` is the offset of the transport header from the start of the frame."""

    headers: Headers
    tuple: FlowTuple
    transport: int = 0
    length: int = 0                         # bytes from there to the end of the IP packet
    ttl: int = 0
    fragment: Fragment | None = None

    @property
    def part(self) -> Part:
        """Which part of an IP packet it is."""
        if self.fragment is None:
            return Part.WHOLE
        return Part.LATER if self.fragment.begin else Part.FIRST

    @property
    def is_ipv4(self) -> bool:
        """Whether there is an IPv4 header."""
        return self.tuple.family == 4

    @property
    def is_flow(self) -> bool:
        """Whether the packet belongs to a flow: IP, and not ICMP other than echo."""
        if not self.is_ipv4:
            return False
        return self.tuple.protocol != ICMP or self.headers.icmp_type in (ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST)

    @property
    def is_error(self) -> bool:
        """Whether it is an ICMP error, which quotes the packet that it is about."""
        return self.is_ipv4 and self.tuple.protocol == ICMP and self.headers.icmp_type in ICMP_ERRORS

    @property
    def makes_flow(self) -> bool:
        """Whether a first packet like this one may open the way for others.

        A connection that ends, or an answer to what was not asked, is no reason to let the other side in.
        """
        if self.tuple.protocol == ICMP:
            return self.is_flow and self.headers.icmp_type == ICMP_ECHO_REQUEST
        return self.is_flow and not (self.is_tcp and self.headers.tcp_flags & TCP_RST)

    @property
    def is_tcp(self) -> bool:
        """Whether the packet is TCP over IP (an ARP opcode of 6 is not)."""
        return self.is_ipv4 and self.tuple.protocol == TCP


def parse(frame: bytes) -> Packet:
    """Headers of a frame. A later fragment has ports 0 until `FragmentTable.resolve` gives it its own.

    Raises:
        Malformed: with the first reason that `docs/engine.md` ("Parse") names.
    """
    if len(frame) < ETHERNET_BYTES:
        raise Malformed(DropReason.MALFORMED_ETHERNET)
    dst_mac, src_mac = frame[0:6], frame[6:12]
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype in (ETH_P_8021Q, ETH_P_8021AD):
        raise Malformed(DropReason.VLAN_TAGGED)
    if ethertype == ETH_P_ARP:
        return _parse_arp(frame, src_mac, dst_mac)
    if ethertype == ETH_P_IP:
        return _parse_ipv4(frame, src_mac, dst_mac)
    return Packet(Headers(ethertype, src_mac, dst_mac), FlowTuple(0, 0, NOWHERE, NOWHERE))


def _parse_arp(frame: bytes, src_mac: bytes, dst_mac: bytes) -> Packet:
    body = frame[ETHERNET_BYTES:]
    if len(body) < ARP_BYTES:
        raise Malformed(DropReason.MALFORMED_ARP)
    hardware, protocol, hardware_len, protocol_len, opcode = struct.unpack_from("!HHBBH", body)
    if (hardware, protocol, hardware_len, protocol_len) != (1, ETH_P_IP, 6, 4):
        raise Malformed(DropReason.MALFORMED_ARP)
    headers = Headers(ETH_P_ARP, src_mac, dst_mac, arp_sender_mac=body[8:14])
    return Packet(headers, FlowTuple(0, opcode & 0xFF, IPv4Address(body[14:18]), IPv4Address(body[24:28])))


def _parse_ipv4(frame: bytes, src_mac: bytes, dst_mac: bytes) -> Packet:
    body = frame[ETHERNET_BYTES:]
    if len(body) < IPV4_MIN_BYTES or body[0] >> 4 != 4:
        raise Malformed(DropReason.MALFORMED_IPV4)
    header_len = (body[0] & 0x0F) * 4
    total_len, identification, fragment = struct.unpack_from("!HHH", body, 2)
    if header_len < IPV4_MIN_BYTES or not header_len <= total_len <= len(body):
        raise Malformed(DropReason.MALFORMED_IPV4)
    protocol = body[9]
    more, offset = bool(fragment & 0x2000), fragment & 0x1FFF
    payload = body[header_len:total_len]
    part = None
    if more or offset:
        if not payload or (more and len(payload) % 8) or header_len + offset * 8 + len(payload) > IP_BYTES_MAX:
            raise Malformed(DropReason.MALFORMED_IPV4)
        part = Fragment(identification, offset, offset + (len(payload) + 7) // 8, not more)
    headers = Headers(ETH_P_IP, src_mac, dst_mac, dscp=body[1] >> 2)
    ports = (0, 0)
    if not offset:
        headers, ports = _parse_transport(protocol, payload, part is not None, headers)
    return Packet(
        headers=headers,
        tuple=FlowTuple(4, protocol, IPv4Address(body[12:16]), IPv4Address(body[16:20]), *ports),
        transport=ETHERNET_BYTES + header_len,
        length=len(payload),
        ttl=body[8],
        fragment=part,
    )


def _parse_transport(protocol: int, payload: bytes, first: bool,
                     headers: Headers) -> tuple[Headers, tuple[int, int]]:
    """Ports of a transport header, and `headers` completed by what conditions may test in it."""
    bad = Malformed(DropReason.MALFORMED_TRANSPORT)
    truncated = Malformed(DropReason.FRAGMENT_TINY) if first else bad
    ports = (int.from_bytes(payload[0:2], "big"), int.from_bytes(payload[2:4], "big"))
    if protocol == TCP:
        if len(payload) < 20:
            raise truncated
        data_offset = (payload[12] >> 4) * 4
        if data_offset < 20:
            raise bad
        if data_offset > len(payload):
            raise truncated
        return replace(headers, tcp_flags=payload[13]), ports
    if protocol == UDP:
        if len(payload) < 8:
            raise truncated
        length = int.from_bytes(payload[4:6], "big")
        if length < 8 or (not first and length > len(payload)):
            raise bad
        return headers, ports
    if protocol == SCTP:
        if len(payload) < 12:
            raise truncated
        return headers, ports
    if protocol == ICMP:
        if len(payload) < 8:
            raise truncated
        headers = replace(headers, icmp_type=payload[0], icmp_code=payload[1])
        identifier = int.from_bytes(payload[4:6], "big")
        if headers.icmp_type == ICMP_ECHO_REQUEST:
            return headers, (identifier, 0)
        return headers, (0, identifier if headers.icmp_type == ICMP_ECHO_REPLY else 0)
    return headers, (0, 0)


def arp_answer(request: bytes, mac: bytes) -> bytes:
    """The reply (RFC 826) to an ARP request frame: the target is at `mac`. Bytes after the ARP body are kept.

    It goes to the Ethernet source of the request, which is also its target hardware address: that is who asked,
    whatever the request claims.
    """
    asker, sender, target = request[6:12], request[28:32], request[38:42]
    return (asker + mac + request[12:20] + ARP_REPLY.to_bytes(2, "big")
            + mac + target + asker + sender + request[42:])
