"""Frames made by hand, fast and as wrong as wanted, for generated tests of the engine."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

ICMP, TCP, UDP, GRE, SCTP = 1, 6, 17, 47, 132
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


@dataclass(frozen=True, slots=True)
class Ipv4Frame:
    """An IPv4 packet in Ethernet. ICMP uses `src_port` as identifier."""

    src_mac: bytes
    dst_mac: bytes
    src: IPv4Address
    dst: IPv4Address
    protocol: int
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

    def answer(self, tcp_flags: int) -> Ipv4Frame:
        """What the receiver of this packet would send back."""
        return replace(
            self, src_mac=self.dst_mac, dst_mac=self.src_mac, src=self.dst, dst=self.src,
            src_port=self.src_port if self.protocol == ICMP else self.dst_port,
            dst_port=self.dst_port if self.protocol == ICMP else self.src_port,
            tcp_flags=tcp_flags, icmp_type={8: 0, 0: 8}.get(self.icmp_type, self.icmp_type), ttl=64,
        )

    def build(self) -> bytes:
        """The bytes, with right checksums."""
        body = self.payload if self.fragment_offset else self._transport()
        options = b"\x01" * (4 * self.options_words)
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45 + self.options_words, self.dscp << 2, 20 + len(options) + len(body),
            self.identification, self.more_fragments << 13 | self.fragment_offset, self.ttl, self.protocol, 0,
            self.src.packed, self.dst.packed) + options
        header = header[:10] + checksum(header) + header[12:]
        return self.dst_mac + self.src_mac + b"\x08\x00" + header + body + self.padding

    def _transport(self) -> bytes:
        ports = struct.pack("!HH", self.src_port, self.dst_port)
        if self.protocol == TCP:
            return self._summed(ports + struct.pack("!IIBBHHH", 1, 2, 0x50, self.tcp_flags, 8192, 0, 0), 16)
        if self.protocol == UDP:
            length = 8 + len(self.payload)
            header = ports + struct.pack("!HH", length, 0)
            return self._summed(header, 6) if self.udp_checksum else header + self.payload
        if self.protocol == ICMP:
            rest = struct.pack("!BBHHH", self.icmp_type, self.icmp_code, 0, self.src_port, 1) + self.payload
            return rest[:2] + checksum(rest) + rest[4:]
        if self.protocol == SCTP:
            return ports + bytes(8) + self.payload
        return self.payload

    def _summed(self, header: bytes, at: int) -> bytes:
        data = header + self.payload
        pseudo = self.src.packed + self.dst.packed + struct.pack("!BBH", 0, self.protocol, len(data))
        return data[:at] + checksum(pseudo + data) + data[at + 2:]


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


def icmp_error(quoted: bytes, src: IPv4Address, kind: int, code: int, quoted_bytes: int, dst: IPv4Address) -> bytes:
    """An error, from `src` to `dst`, about an IPv4 frame; it goes back the way that one came. Checksums are right."""
    total = int.from_bytes(quoted[16:18], "big")
    head = quoted[14:14 + total][:quoted_bytes]
    body = struct.pack("!BBHHH", kind, code, 0, 0, 1400 if (kind, code) == (3, 4) else 0) + head
    error = Ipv4Frame(src_mac=quoted[0:6], dst_mac=quoted[6:12], src=src, dst=dst, protocol=ICMP, fragment_offset=1,
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


def read_first(frame: bytes) -> Ipv4Frame | None:
    """What the fragments of one datagram share, from its first one; None for anything else."""
    if len(frame) < 34 or frame[12:15] != b"\x08\x00\x45" or int.from_bytes(frame[20:22], "big") & 0x3FFF == 0:
        return None
    return Ipv4Frame(
        src_mac=frame[6:12], dst_mac=frame[0:6], src=IPv4Address(frame[26:30]), dst=IPv4Address(frame[30:34]),
        protocol=frame[23], identification=int.from_bytes(frame[18:20], "big"))


def read_ipv4(frame: bytes) -> Ipv4Frame | None:
    """The fields of a whole, well-formed IPv4 packet, to answer it; None for anything else."""
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
    return Ipv4Frame(
        src_mac=frame[6:12], dst_mac=frame[0:6], src=IPv4Address(frame[26:30]), dst=IPv4Address(frame[30:34]),
        protocol=protocol, src_port=ports[0], dst_port=ports[1],
        icmp_type=frame[start] if protocol == ICMP else 8,
    )
