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
from ipaddress import IPv4Address, IPv6Address

from vfp.model import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Address
from vfp.reasons import DropReason
from vfp.reference.extensions import Chain, Malformed, walk_extensions

ETHERNET_BYTES = 14
ARP_BYTES = 28
IPV4_MIN_BYTES = 20
IPV6_BYTES = 40
IP_BYTES_MAX = 65535
ND_BYTES = 24
ND_OPTIONS_MAX = 8
ND_SOLICITED = 0x40
SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")
ETH_P_8021Q = 0x8100
ETH_P_8021AD = 0x88A8

ICMP = 1
TCP = 6
UDP = 17
SCTP = 132
UDPLITE = 136
ICMPV6 = 58
PROTOCOLS_WITH_PORTS = (TCP, UDP, SCTP)

ICMP_ECHO_REPLY = 0
ICMP_ECHO_REQUEST = 8
ICMPV6_ECHO_REQUEST = 128
ICMPV6_ECHO_REPLY = 129
ICMPV6_ERRORS = (1, 2, 3, 4)                # unreachable, too big, time exceeded, parameter problem
ECHO_TTL = 64                               # of echo replies that the engine gives
ND_SOLICITATION = 135
ND_ADVERTISEMENT = 136
ICMP_ERRORS = (3, 11, 12)                   # unreachable, time exceeded, parameter problem

TCP_FIN = 0x01
TCP_SYN = 0x02
TCP_RST = 0x04
TCP_ACK = 0x10

ARP_REQUEST = 1
ARP_REPLY = 2

NOWHERE = IPv4Address(0)


@dataclass(frozen=True, slots=True)
class FlowTuple:
    """What layers match and rewrite; with a zone, the identity of a flow. `family` is 4, 6, or 0 when not IP."""

    family: int
    protocol: int                           # IP protocol; ARP: low byte of the opcode
    src: Address
    dst: Address
    src_port: int = 0                       # ICMP echo request: the identifier
    dst_port: int = 0                       # ICMP echo reply: the identifier
    vlan: int = 0                           # 802.1Q tag; 0: none

    def reversed(self) -> FlowTuple:
        """The tuple of an answer to this one."""
        return FlowTuple(self.family, self.protocol, self.dst, self.src, self.dst_port, self.src_port, self.vlan)

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
    nd: bool = False                        # neighbour solicitation or advertisement
    nd_sender_is_source: bool = False
    fragment: bool = False                  # of a datagram, whichever part


def is_icmp(what: FlowTuple) -> bool:
    """Whether it is ICMP over IPv4 or ICMPv6 over IPv6."""
    return (what.family, what.protocol) in ((4, ICMP), (6, ICMPV6))


def is_echo_request(what: FlowTuple, headers: Headers) -> bool:
    """Whether it asks for an echo."""
    return is_icmp(what) and headers.icmp_type == (ICMPV6_ECHO_REQUEST if what.family == 6 else ICMP_ECHO_REQUEST)


def is_echo_reply(what: FlowTuple, headers: Headers) -> bool:
    """Whether it is an echo."""
    return is_icmp(what) and headers.icmp_type == (ICMPV6_ECHO_REPLY if what.family == 6 else ICMP_ECHO_REPLY)


def is_tracked(what: FlowTuple, headers: Headers) -> bool:
    """Whether such a packet may belong to a flow: IP, and not ICMP other than echo."""
    if is_icmp(what):
        return is_echo_request(what, headers) or is_echo_reply(what, headers)
    return what.family != 0


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
    def is_ip(self) -> bool:
        """Whether there is an IPv4 or IPv6 header."""
        return self.tuple.family != 0

    @property
    def is_flow(self) -> bool:
        """Whether the packet belongs to a flow: IP, and not ICMP other than echo."""
        return is_tracked(self.tuple, self.headers)

    @property
    def is_plain(self) -> bool:
        """Whether the IP header has no options or extensions."""
        return self.transport == ETHERNET_BYTES + (40 if self.tuple.family == 6 else 20)

    @property
    def is_error(self) -> bool:
        """Whether it is an ICMP error, which quotes the packet that it is about."""
        errors = ICMPV6_ERRORS if self.tuple.family == 6 else ICMP_ERRORS
        return is_icmp(self.tuple) and self.headers.icmp_type in errors

    @property
    def makes_flow(self) -> bool:
        """Whether a first packet like this one may open the way for others.

        A connection that ends, or an answer to what was not asked, is no reason to let the other side in.
        """
        if is_icmp(self.tuple):
            return is_echo_request(self.tuple, self.headers)
        return self.is_flow and not (self.is_tcp and self.headers.tcp_flags & TCP_RST)

    @property
    def is_tcp(self) -> bool:
        """Whether the packet is TCP over IP (an ARP opcode of 6 is not)."""
        return self.is_ip and self.tuple.protocol == TCP


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
    if ethertype == ETH_P_IPV6:
        return _parse_ipv6(frame, src_mac, dst_mac)
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
    headers = Headers(ETH_P_IP, src_mac, dst_mac, dscp=body[1] >> 2, fragment=part is not None)
    ports = (0, 0)
    if not offset:
        headers, ports = _parse_transport(4, protocol, payload, part is not None, headers)
    return Packet(
        headers=headers,
        tuple=FlowTuple(4, protocol, IPv4Address(body[12:16]), IPv4Address(body[16:20]), *ports),
        transport=ETHERNET_BYTES + header_len,
        length=len(payload),
        ttl=body[8],
        fragment=part,
    )


def _parse_ipv6(frame: bytes, src_mac: bytes, dst_mac: bytes) -> Packet:
    body = frame[ETHERNET_BYTES:]
    if len(body) < IPV6_BYTES or body[0] >> 4 != 6:
        raise Malformed(DropReason.MALFORMED_IPV6)
    payload_len = int.from_bytes(body[4:6], "big")
    if payload_len > len(body) - IPV6_BYTES:
        raise Malformed(DropReason.MALFORMED_IPV6)
    source, destination = IPv6Address(body[8:24]), IPv6Address(body[24:40])
    packet = body[:IPV6_BYTES + payload_len]
    chain = walk_extensions(packet, IPV6_BYTES, body[6])
    part = _ipv6_fragment(chain, len(packet))
    headers = Headers(ETH_P_IPV6, src_mac, dst_mac, dscp=(body[0] << 8 | body[1]) >> 6 & 0x3F,
                      fragment=part is not None)
    payload = packet[chain.at:]
    what = FlowTuple(6, chain.next, source, destination)
    if part is None or not part.begin:
        headers, ports = _parse_transport(6, chain.next, payload, part is not None, headers)
        what = what.with_ports(*ports)
    if is_icmp(what) and headers.icmp_type in (ND_SOLICITATION, ND_ADVERTISEMENT):
        headers, what = parse_nd(payload, what, headers, hop_limit=body[7], fragmented=chain.fragmented)
    return Packet(headers, what, transport=ETHERNET_BYTES + chain.at, length=len(payload), ttl=body[7], fragment=part)


def _ipv6_fragment(chain: Chain, end: int) -> Fragment | None:
    """None for a packet without fragment header, or an atomic fragment (RFC 6946)."""
    if not chain.offset and not chain.more:
        return None
    length = end - chain.body
    if not length or (chain.more and length % 8) or chain.offset * 8 + length > IP_BYTES_MAX:
        raise Malformed(DropReason.MALFORMED_IPV6)
    return Fragment(chain.identification, chain.offset, chain.offset + (length + 7) // 8, not chain.more)


def parse_nd(body: bytes, what: FlowTuple, headers: Headers, *, hop_limit: int,
             fragmented: bool) -> tuple[Headers, FlowTuple]:
    """Neighbour discovery as layers see it: who speaks, for or about whom (`docs/engine.md`, "Parse").

    Raises:
        Malformed: `MALFORMED_ND`, what RFC 4861 7.1 and RFC 6980 tell to discard.
    """
    bad = Malformed(DropReason.MALFORMED_ND)
    solicits = headers.icmp_type == ND_SOLICITATION
    unspecified = int(what.src) == 0
    if fragmented or len(body) < ND_BYTES or hop_limit != 255 or headers.icmp_code:
        raise bad
    target = IPv6Address(body[8:24])
    if target.is_multicast:
        raise bad
    if solicits and unspecified and what.dst.packed[:13] != SOLICITED_NODE:
        raise bad
    if not solicits and what.dst.is_multicast and body[4] & ND_SOLICITED:
        raise bad
    own = True
    wanted = 1 if solicits else 2           # source, target link-layer address
    options, count = body[ND_BYTES:], 0
    while options:
        if count == ND_OPTIONS_MAX or len(options) < 8 or not options[1] or options[1] * 8 > len(options):
            raise bad
        if solicits and unspecified and options[0] == 1:
            raise bad
        if options[0] == wanted and (options[1] != 1 or options[2:8] != headers.src_mac):
            own = False
        options, count = options[options[1] * 8:], count + 1
    headers = replace(headers, nd=True, nd_sender_is_source=own and (solicits or what.src == target))
    return headers, replace(what, dst=target) if solicits else replace(what, src=target)


def _parse_transport(family: int, protocol: int, payload: bytes, first: bool,
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
    if protocol == UDPLITE and len(payload) < 8:
        raise truncated
    if (family, protocol) in ((4, ICMP), (6, ICMPV6)):
        if len(payload) < 8:
            raise truncated
        headers = replace(headers, icmp_type=payload[0], icmp_code=payload[1])
        identifier = int.from_bytes(payload[4:6], "big")
        if headers.icmp_type == (ICMPV6_ECHO_REQUEST if family == 6 else ICMP_ECHO_REQUEST):
            return headers, (identifier, 0)
        is_reply = headers.icmp_type == (ICMPV6_ECHO_REPLY if family == 6 else ICMP_ECHO_REPLY)
        return headers, (0, identifier if is_reply else 0)
    return headers, (0, 0)


ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
ALL_NODES_MAC = bytes.fromhex("333300000001")


def arp_answer(request: bytes, mac: bytes) -> bytes:
    """The reply (RFC 826) to an ARP request frame: the target is at `mac`. Bytes after the ARP body are kept.

    It goes to the Ethernet source of the request, which is also its target hardware address: that is who asked,
    whatever the request claims.
    """
    asker, sender, target = request[6:12], request[28:32], request[38:42]
    return (asker + mac + request[12:20] + ARP_REPLY.to_bytes(2, "big")
            + mac + target + asker + sender + request[42:])


def echo_answer(frame: bytes, packet: Packet, mac: bytes) -> bytes:
    """The reply to a plain echo request (RFC 792, RFC 4443 4.2), from `mac`: TTL 64, all else as it came."""
    out = bytearray(frame[6:12] + mac + frame[12:])
    at = packet.transport
    if packet.tuple.family == 6:
        out[ETHERNET_BYTES + 7] = ECHO_TTL
        out[ETHERNET_BYTES + 8 : ETHERNET_BYTES + 40] = packet.tuple.dst.packed + packet.tuple.src.packed
        kind = ICMPV6_ECHO_REPLY
    else:
        out[ETHERNET_BYTES + 8] = ECHO_TTL
        out[ETHERNET_BYTES + 12 : ETHERNET_BYTES + 20] = packet.tuple.dst.packed + packet.tuple.src.packed
        check = int.from_bytes(frame[ETHERNET_BYTES + 10 : ETHERNET_BYTES + 12])
        check = _told(check, packet.ttl << 8, ECHO_TTL << 8)
        out[ETHERNET_BYTES + 10 : ETHERNET_BYTES + 12] = check.to_bytes(2)
        kind = ICMP_ECHO_REPLY
    check = _told(int.from_bytes(frame[at + 2 : at + 4]), frame[at] << 8, kind << 8)
    out[at], out[at + 2 : at + 4] = kind, check.to_bytes(2)
    return bytes(out)


def _told(checksum: int, was: int, becomes: int) -> int:
    """A checksum after one word has changed (RFC 1624 equation 3)."""
    total = (~checksum & 0xFFFF) + (~was & 0xFFFF) + becomes
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def internet_checksum(data: bytes) -> int:
    """RFC 1071, of data whose checksum field is zero; odd data is padded."""
    data += len(data) % 2 * b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def nd_answer(frame: bytes, target: Address, mac: bytes) -> bytes:
    """The advertisement (RFC 4861 4.4) that answers a solicitation frame: `target` is at `mac`.

    A probe from an address that is not yet its sender's (RFC 4862) is answered to all nodes.
    """
    source = frame[22:38]
    probe = source == bytes(16)
    to, asker = (ALL_NODES, ALL_NODES_MAC) if probe else (source, frame[6:12])
    body = struct.pack("!BBHB3x", ND_ADVERTISEMENT, 0, 0, 0x20 if probe else 0x60) + target.packed + b"\x02\x01" + mac
    pseudo = target.packed + to + struct.pack("!II", len(body), ICMPV6)
    body = body[:2] + internet_checksum(pseudo + body).to_bytes(2, "big") + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, 255) + target.packed + to
    return asker + mac + ETH_P_IPV6.to_bytes(2, "big") + header + body
