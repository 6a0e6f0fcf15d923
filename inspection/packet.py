"""An IP packet as an inspector sees it: who it is from and to, its payload, and the packet with another payload."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from vfp.layout import ZONE_SHIFT, ZoneKind
from vfp.model import Address

__all__ = ["TCP", "UDP", "Packet", "Unparsable", "parse"]

TCP, UDP = 6, 17
_EXTENSIONS = (0, 43, 60)                   # IPv6: hop-by-hop, routing, destination options
_MAX_BYTES = 65535


class Unparsable(Exception):
    """The bytes are no packet that can be inspected: the engine would not have sent them."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet on its way, as it came to the engine: before any translation."""

    zone_kind: ZoneKind
    zone: int                               # port id, VNI or uplink id: where it came from
    data: bytes                             # the IP packet
    protocol: int
    src: Address
    dst: Address
    src_port: int
    dst_port: int
    transport: int                          # offset of the transport header
    start: int                              # offset of the payload behind it
    tcp_flags: int = 0
    sequence: int = 0                       # TCP: of the first byte of the payload (of a SYN: one before)

    @property
    def payload(self) -> bytes:
        """What is behind the transport header; padding behind the IP packet was cut off."""
        return self.data[self.start:]

    def with_payload(self, payload: bytes) -> bytes:
        """The IP packet with another payload, and right lengths and checksums.

        Raises:
            ValueError: the protocol has no payload of its own, the packet becomes too large, or the payload of TCP,
                whose bytes are numbered, another length.
        """
        if self.protocol not in (TCP, UDP):
            raise ValueError(f"protocol {self.protocol}: only the payload of TCP and UDP can be rewritten")
        if self.protocol == TCP and len(payload) != len(self.payload):
            raise ValueError(f"TCP payload of {len(self.payload)} bytes became {len(payload)}; keep the length")
        data = bytearray(self.data[:self.start] + payload)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"packet of {len(data)} bytes; at most {_MAX_BYTES}")
        six = self.src.version == 6
        if six:
            struct.pack_into("!H", data, 4, len(data) - 40)
        else:
            struct.pack_into("!H", data, 2, len(data))
            data[10:12] = b"\0\0"
            data[10:12] = _checksum(bytes(data[:(data[0] & 15) * 4]))
        length = len(data) - self.transport
        at = self.transport + 16
        if self.protocol == UDP:
            struct.pack_into("!H", data, self.transport + 4, length)
            at = self.transport + 6
        data[at:at + 2] = b"\0\0"
        pseudo = self.src.packed + self.dst.packed + struct.pack("!II", length, self.protocol)
        total = _checksum(pseudo + bytes(data[self.transport:]))
        data[at:at + 2] = total if self.protocol == TCP or total != b"\0\0" else b"\xff\xff"   # RFC 768
        return bytes(data)


def parse(mark: int, data: bytes) -> Packet:
    """Read what came from a queue; `mark` says where it entered the engine.

    Raises:
        Unparsable: it is cut short, or contradicts itself.
    """
    zone = mark & ((1 << 26) - 1)
    kind, number = ZoneKind(zone >> ZONE_SHIFT), zone & ((1 << ZONE_SHIFT) - 1)
    try:
        src: Address
        dst: Address
        if data[0] >> 4 == 4:
            protocol, at, end = data[9], (data[0] & 15) * 4, int.from_bytes(data[2:4], "big")
            src, dst = IPv4Address(data[12:16]), IPv4Address(data[16:20])
        else:
            protocol, at, end = data[6], 40, 40 + int.from_bytes(data[4:6], "big")
            src, dst = IPv6Address(data[8:24]), IPv6Address(data[24:40])
            while protocol in _EXTENSIONS:
                protocol, at = data[at], at + 8 * (data[at + 1] + 1)
        if end > len(data) or at > end:
            raise Unparsable(f"{len(data)} bytes of a packet of {end}")
        data = data[:end]
        if protocol == UDP:
            sport, dport = struct.unpack_from("!HH", data, at)
            if at + 8 > end:
                raise Unparsable("UDP header cut short")
            return Packet(kind, number, data, protocol, src, dst, sport, dport, at, at + 8)
        if protocol == TCP:
            sport, dport = struct.unpack_from("!HH", data, at)
            (sequence,) = struct.unpack_from("!I", data, at + 4)
            start = at + (data[at + 12] >> 4) * 4
            if start < at + 20 or start > end:
                raise Unparsable("TCP header cut short")
            return Packet(kind, number, data, protocol, src, dst, sport, dport, at, start, data[at + 13], sequence)
        return Packet(kind, number, data, protocol, src, dst, 0, 0, at, at)
    except (IndexError, struct.error, ValueError) as error:
        raise Unparsable(f"{len(data)} bytes: {error}") from None


def _checksum(data: bytes) -> bytes:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")
