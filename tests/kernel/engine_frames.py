"""Frames made by hand, fast and as wrong as wanted, for generated tests of the engine."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from vfp.model import Address

ICMP, TCP, UDP, GRE, ICMPV6, SCTP, UDPLITE = 1, 6, 17, 47, 58, 132, 136
_OF_ICMPV6 = {8: 128, 0: 129, 3: 1, 11: 3, 12: 4, 5: 2}      # the type that means the same, or nearly
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


@dataclass(frozen=True, slots=True)
class IpFrame:
    """An IPv4 or IPv6 packet in Ethernet. ICMP uses `src_port` as identifier; its types are those of IPv4."""

    src_mac: bytes
    dst_mac: bytes
    src: Address
    dst: Address
    protocol: int                           # ICMP for ICMPv6, too
    src_port: int = 0
    dst_port: int = 0
    tcp_flags: int = SYN
    icmp_type: int = 8
    icmp_code: int = 0
    dscp: int = 0
    ttl: int = 64
    identification: int = 0
    fragment_offset: int = 0                # in units of 8 bytes
    more_fragments: bool = False
    options_words: int = 0
    payload: bytes = b"payload"
    padding: bytes = b""
    udp_checksum: bool = True
    extensions: tuple[tuple[int, bytes], ...] = ()      # IPv6: (protocol, header without its first byte)
    fragment_header: bool = False           # IPv6: even if it is no fragment

    def answer(self, tcp_flags: int) -> IpFrame:
        """What the receiver of this packet would send back."""
        return replace(
            self, src_mac=self.dst_mac, dst_mac=self.src_mac, src=self.dst, dst=self.src,
            src_port=self.src_port if self.protocol == ICMP else self.dst_port,
            dst_port=self.dst_port if self.protocol == ICMP else self.src_port,
            tcp_flags=tcp_flags, icmp_type={8: 0, 0: 8}.get(self.icmp_type, self.icmp_type), ttl=64,
        )

    def build(self) -> bytes:
        """The bytes, with right checksums."""
        if self.src.version == 6:
            return self._ipv6()
        body = self.payload if self.fragment_offset else self._transport()
        options = b"\x01" * (4 * self.options_words)
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45 + self.options_words, self.dscp << 2, 20 + len(options) + len(body),
            self.identification, self.more_fragments << 13 | self.fragment_offset, self.ttl, self.protocol, 0,
            self.src.packed, self.dst.packed) + options
        header = header[:10] + checksum(header) + header[12:]
        return self.dst_mac + self.src_mac + b"\x08\x00" + header + body + self.padding

    def _ipv6(self) -> bytes:
        body = self.payload if self.fragment_offset else self._transport()
        next = ICMPV6 if self.protocol == ICMP else self.protocol
        fragment = self.fragment_header or self.fragment_offset or self.more_fragments
        chain = [*self.extensions]
        if fragment:
            where = self.fragment_offset << 3 | self.more_fragments
            chain.append((44, struct.pack("!BHI", 0, where, self.identification)))
        for number, rest in reversed(chain):
            body = bytes([next]) + rest + body
            next = number
        header = struct.pack("!IHBB", 6 << 28 | self.dscp << 22, len(body), next, self.ttl)
        return (self.dst_mac + self.src_mac + b"\x86\xdd" + header + self.src.packed + self.dst.packed + body
                + self.padding)

    def _transport(self) -> bytes:
        ports = struct.pack("!HH", self.src_port, self.dst_port)
        if self.protocol == TCP:
            return self._summed(ports + struct.pack("!IIBBHHH", 1, 2, 0x50, self.tcp_flags, 8192, 0, 0), 16)
        if self.protocol == UDP:
            length = 8 + len(self.payload)
            header = ports + struct.pack("!HH", length, 0)
            return self._summed(header, 6) if self.udp_checksum else header + self.payload
        if self.protocol == ICMP:
            six = self.src.version == 6
            kind = _OF_ICMPV6.get(self.icmp_type, self.icmp_type) if six else self.icmp_type
            rest = struct.pack("!BBHHH", kind, self.icmp_code, 0, self.src_port, 1) + self.payload
            return rest[:2] + checksum(self._pseudo(len(rest)) * six + rest) + rest[4:]
        if self.protocol == SCTP:
            return ports + bytes(8) + self.payload
        if self.protocol == UDPLITE:        # coverage 0: all of it (RFC 3828)
            return self._summed(ports + bytes(4), 6)
        return self.payload

    def _summed(self, header: bytes, at: int) -> bytes:
        data = header + self.payload
        return data[:at] + checksum(self._pseudo(len(data)) + data) + data[at + 2:]

    def _pseudo(self, length: int) -> bytes:
        protocol = ICMPV6 if self.protocol == ICMP else self.protocol
        return self.src.packed + self.dst.packed + struct.pack("!BBH", 0, protocol, length)


@dataclass(frozen=True, slots=True)
class ArpFrame:
    """An ARP packet in Ethernet."""

    src_mac: bytes
    dst_mac: bytes
    opcode: int
    sender_mac: bytes
    sender: IPv4Address
    target: IPv4Address
    padding: bytes = b""

    def build(self) -> bytes:
        """The bytes."""
        return (self.dst_mac + self.src_mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, self.opcode)
                + self.sender_mac + self.sender.packed + bytes(6) + self.target.packed + self.padding)


def nd_frame(src_mac: bytes, dst_mac: bytes, src: IPv6Address, dst: IPv6Address, *, kind: int, flags: int,
             target: IPv6Address, options: bytes, hops: int = 255) -> bytes:
    """A neighbour solicitation or advertisement."""
    body = struct.pack("!BBHB3x", kind, 0, 0, flags) + target.packed + options
    pseudo = src.packed + dst.packed + struct.pack("!II", len(body), ICMPV6)
    body = body[:2] + checksum(pseudo + body) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, hops)
    return dst_mac + src_mac + b"\x86\xdd" + header + src.packed + dst.packed + body


def icmp_error(quoted: bytes, src: Address, kind: int, code: int, quoted_bytes: int, dst: Address) -> bytes:
    """An error, from `src` to `dst`, about an IP frame; it goes back the way that one came. Checksums are right."""
    if src.version == 6:
        head = quoted[14:14 + 40 + int.from_bytes(quoted[18:20], "big")][:quoted_bytes + 20]
        return IpFrame(src_mac=quoted[0:6], dst_mac=quoted[6:12], src=src, dst=dst, protocol=ICMP, icmp_type=kind,
                       icmp_code=code, payload=head).build()
    total = int.from_bytes(quoted[16:18], "big")
    head = quoted[14:14 + total][:quoted_bytes]
    body = struct.pack("!BBHHH", kind, code, 0, 0, 1400 if (kind, code) == (3, 4) else 0) + head
    error = IpFrame(src_mac=quoted[0:6], dst_mac=quoted[6:12], src=src, dst=dst, protocol=ICMP, fragment_offset=1,
                      payload=body[:2] + checksum(body) + body[4:])
    # Built as a fragment, which has its payload as it is given; then as the whole that it is.
    frame = bytearray(error.build())
    frame[20:22] = b"\0\0"
    frame[24:26] = b"\0\0"
    frame[24:26] = checksum(bytes(frame[14:34]))
    return bytes(frame)


def checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071) of data whose checksum field is zero."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def read_first(frame: bytes) -> IpFrame | None:
    """What the fragments of one datagram share, from its first one; None for anything else."""
    if len(frame) >= 62 and frame[12:14] == b"\x86\xdd" and frame[20] == 44 and frame[57] & 1 and not frame[56]:
        return IpFrame(
            src_mac=frame[6:12], dst_mac=frame[0:6], src=IPv6Address(frame[22:38]), dst=IPv6Address(frame[38:54]),
            protocol=ICMP if frame[54] == ICMPV6 else frame[54], identification=int.from_bytes(frame[58:62], "big"))
    if len(frame) < 34 or frame[12:15] != b"\x08\x00\x45" or int.from_bytes(frame[20:22], "big") & 0x3FFF == 0:
        return None
    return IpFrame(
        src_mac=frame[6:12], dst_mac=frame[0:6], src=IPv4Address(frame[26:30]), dst=IPv4Address(frame[30:34]),
        protocol=frame[23], identification=int.from_bytes(frame[18:20], "big"))


def read_ip(frame: bytes) -> IpFrame | None:
    """The fields of a whole, well-formed IP packet, without IPv6 extensions, to answer it; None for anything else."""
    if frame[12:14] == b"\x86\xdd":
        return _read_ipv6(frame)
    if len(frame) < 34 or frame[12:14] != b"\x08\x00" or frame[14] >> 4 != 4:
        return None
    start = 14 + (frame[14] & 0x0F) * 4
    total = int.from_bytes(frame[16:18], "big")
    if int.from_bytes(frame[20:22], "big") & 0x3FFF or len(frame) < start + 8 or total > len(frame) - 14:
        return None
    protocol = frame[23]
    ports = struct.unpack_from("!HH", frame, start) if protocol in (TCP, UDP, SCTP) else (0, 0)
    if protocol == ICMP:
        ports = struct.unpack_from("!H", frame, start + 4) * 2
    return IpFrame(
        src_mac=frame[6:12], dst_mac=frame[0:6], src=IPv4Address(frame[26:30]), dst=IPv4Address(frame[30:34]),
        protocol=protocol, src_port=ports[0], dst_port=ports[1],
        icmp_type=frame[start] if protocol == ICMP else 8,
    )


def _read_ipv6(frame: bytes) -> IpFrame | None:
    if len(frame) < 62 or frame[14] >> 4 != 6 or frame[20] not in (TCP, UDP, SCTP, ICMPV6, GRE, UDPLITE):
        return None
    protocol, kind = frame[20], frame[54]
    ports = struct.unpack_from("!HH", frame, 54) if protocol in (TCP, UDP, SCTP) else (0, 0)
    if protocol == ICMPV6:
        ports = struct.unpack_from("!H", frame, 58) * 2
    names = {six: four for four, six in _OF_ICMPV6.items()}
    return IpFrame(
        src_mac=frame[6:12], dst_mac=frame[0:6], src=IPv6Address(frame[22:38]), dst=IPv6Address(frame[38:54]),
        protocol=ICMP if protocol == ICMPV6 else protocol, src_port=ports[0], dst_port=ports[1],
        icmp_type=names.get(kind, kind) if protocol == ICMPV6 else 8,
    )
