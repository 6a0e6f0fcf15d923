"""ICMP errors about a flow (RFC 792, RFC 4443, RFC 5508 REQ-3..5): what they quote, and how it is translated back."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from vfp.reference.extensions import Malformed, walk_extensions
from vfp.reference.packet import (
    ICMP_ECHO_REPLY,
    ICMP_ECHO_REQUEST,
    ICMPV6_ECHO_REPLY,
    ICMPV6_ECHO_REQUEST,
    PROTOCOLS_WITH_PORTS,
    TCP,
    UDP,
    UDPLITE,
    FlowTuple,
    Packet,
    Part,
    is_icmp,
)
from vfp.reference.transposition import Transposition, update_checksum
from vfp.reference.zones import Zone, ZoneKind

QUOTED_TRANSPORT_BYTES = 8                  # that every error quotes (RFC 792)


@dataclass(frozen=True, slots=True)
class Quotation:
    """The head of a packet that an error is about. Offsets are from the start of the frame; None: not there."""

    sent: FlowTuple                         # as it was
    ip: int
    sport: int | None                       # of the source port; of ICMP, the identifier of a request
    dport: int | None                       # of the destination port; of ICMP, the identifier of a reply
    check: int | None = None                # of the transport checksum
    pseudo: bool = False                    # which covers the addresses, too


def quotation_of(frame: bytes, packet: Packet) -> Quotation | None:
    """What an ICMP error quotes; None if `packet` is no whole error, or quotes nothing that could be of a flow."""
    if not packet.is_error or packet.part is not Part.WHOLE:
        return None
    end = packet.transport + packet.length
    at = packet.transport + 8
    return _quoted_ipv6(frame[:end], at) if packet.tuple.family == 6 else _quoted_ipv4(frame[:end], at)


def _quoted_ipv6(frame: bytes, at: int) -> Quotation | None:
    header = frame[at:at + 40]
    if len(header) < 40 or header[0] >> 4 != 6:
        return None
    try:
        chain = walk_extensions(frame, at + 40, header[6])
    except Malformed:
        return None
    if chain.offset:
        return None
    what = FlowTuple(6, chain.next, IPv6Address(header[8:24]), IPv6Address(header[24:40]))
    return _quoted_transport(frame, at, chain.at, what)


def _quoted_ipv4(frame: bytes, at: int) -> Quotation | None:
    header = frame[at:at + 20]
    if len(header) < 20 or header[0] >> 4 != 4:
        return None
    length = (header[0] & 0x0F) * 4
    total, fragment = int.from_bytes(header[2:4], "big"), int.from_bytes(header[6:8], "big")
    if length < 20 or total < length or at + length > len(frame) or fragment & 0x1FFF:
        return None
    what = FlowTuple(4, header[9], IPv4Address(header[12:16]), IPv4Address(header[16:20]))
    return _quoted_transport(frame, at, at + length, what)


def _quoted_transport(frame: bytes, ip: int, at: int, what: FlowTuple) -> Quotation | None:
    protocol = what.protocol
    if protocol not in (*PROTOCOLS_WITH_PORTS, UDPLITE) and not is_icmp(what):
        return Quotation(what, ip, None, None)
    head = frame[at:at + QUOTED_TRANSPORT_BYTES]
    if len(head) < QUOTED_TRANSPORT_BYTES:
        return None
    if is_icmp(what):
        identifier, six = int.from_bytes(head[4:6], "big"), what.family == 6
        if head[0] == (ICMPV6_ECHO_REQUEST if six else ICMP_ECHO_REQUEST):
            return Quotation(what.with_ports(identifier, 0), ip, at + 4, None, at + 2, pseudo=six)
        if head[0] == (ICMPV6_ECHO_REPLY if six else ICMP_ECHO_REPLY):
            return Quotation(what.with_ports(0, identifier), ip, None, at + 4, at + 2, pseudo=six)
        return None
    if protocol == UDPLITE:
        return Quotation(what, ip, None, None, at + 6, pseudo=True)
    check = {UDP: at + 6, TCP: at + 16 if at + 18 <= len(frame) else None}.get(protocol)
    what = what.with_ports(int.from_bytes(head[0:2], "big"), int.from_bytes(head[2:4], "big"))
    return Quotation(what, ip, at, at + 2, check, pseudo=True)


def is_plausible(zone: Zone, packet: Packet, quoted: Quotation) -> bool:
    """An error comes to who sent what it quotes; from an endpoint, only about what was sent to itself."""
    if packet.tuple.dst != quoted.sent.src:
        return False
    return zone.kind in (ZoneKind.UPLINK, ZoneKind.HOST) or packet.tuple.src == quoted.sent.dst


def translate_quotation(frame: bytes, packet: Packet, quoted: Quotation, by: Transposition) -> bytes:
    """The frame with its quotation as its receiver sent it. `by` is for packets that go the error's way."""
    out = bytearray(frame)
    body = slice(packet.transport, packet.transport + packet.length)
    six = packet.tuple.family == 6
    for offset, change in ((8 if six else 12, by.dst), (24 if six else 16, by.src)):
        if change is None:
            continue
        covering = [] if six else [quoted.ip + 10]
        if quoted.check is not None and quoted.pseudo:
            covering.append(quoted.check)
        _put(out, quoted.ip + offset, change.becomes.packed, covering, quoted)
    for where, port in ((quoted.sport, by.dst_port), (quoted.dport, by.src_port)):
        if port is not None and where is not None:
            covering = [quoted.check] if quoted.check is not None else []
            _put(out, where, port.becomes.to_bytes(2, "big"), covering, quoted)
    if out != frame:
        # All of the message is in the checksum of the error itself, what sums what changed, too.
        even = packet.length % 2 * b"\0"
        check = packet.transport + 2
        value = update_checksum(int.from_bytes(frame[check:check + 2], "big"), frame[body] + even,
                                bytes(out[body]) + even)
        out[check:check + 2] = value.to_bytes(2, "big")
    return bytes(out)


def _put(out: bytearray, at: int, new: bytes, checksums: list[int], quoted: Quotation) -> None:
    old = bytes(out[at:at + len(new)])
    out[at:at + len(new)] = new
    for where in checksums:
        value = int.from_bytes(out[where:where + 2], "big")
        udp = quoted.sent.protocol in (UDP, UDPLITE) and where == quoted.check
        if udp and value == 0:
            continue                        # RFC 768: not computed
        value = update_checksum(value, old, new)
        out[where:where + 2] = (value or 0xFFFF if udp else value).to_bytes(2, "big")
