"""Header transposition: what the layers together do to a packet, as one value that composes and inverts.

A transposition says which tuple fields change (from what, to what), which MACs are set, whether the packet is
routed (TTL), and how it leaves. Applying it updates checksums incrementally (RFC 1624, equation 3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from vfp.model import Address
from vfp.reasons import DropReason
from vfp.reference.packet import ETHERNET_BYTES, ICMPV6, TCP, UDP, UDPLITE, FlowTuple, Packet, Part, is_icmp

T = TypeVar("T", Address, int)


class Incomposable(Exception):
    """Two transpositions that cannot follow each other."""


class Undeliverable(Exception):
    """The transposition cannot be applied to this packet; `reason` is what to count."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ToPort:
    """Leaves to the endpoint of a local port."""

    port: int


@dataclass(frozen=True, slots=True)
class ToVtep:
    """Leaves encapsulated in VXLAN (RFC 7348)."""

    vtep: Address
    vni: int
    source: Address | None = None           # outer; None: the host's


@dataclass(frozen=True, slots=True)
class ToUplink:
    """Leaves by an uplink; the host's routing table and neighbours give the next hop, or `via` is it."""

    uplink: int
    via: Address | None = None


@dataclass(frozen=True, slots=True)
class ToWire:
    """Leaves by an uplink with the MACs that it has."""

    uplink: int


@dataclass(frozen=True, slots=True)
class Flood:
    """Copies leave to many: of a space's segment, or of an uplink's wire (`by_wire`)."""

    number: int
    by_wire: bool = False


@dataclass(frozen=True, slots=True)
class ToStack:
    """Goes on in the host's own stack."""


@dataclass(frozen=True, slots=True)
class ToSender:
    """An answer on the spot, back to where the question came from; `mac` gives it."""

    to: ToPort | ToWire | ToVtep
    mac: bytes


Exit = ToPort | ToVtep | ToUplink | ToWire | Flood | ToStack | ToSender


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One tuple field: what it was and what it becomes."""

    was: T
    becomes: T

    def back(self) -> Change[T]:
        """The change that undoes this one."""
        return Change(self.becomes, self.was)


@dataclass(frozen=True, slots=True)
class Transposition:
    """Everything that happens to a packet's headers. `Transposition()` is the identity."""

    src: Change[Address] | None = None
    dst: Change[Address] | None = None
    src_port: Change[int] | None = None     # ICMP echo: the identifier is one of the two
    dst_port: Change[int] | None = None
    src_mac: bytes | None = None
    dst_mac: bytes | None = None
    routed: bool = False                    # decrement TTL
    dscp: int | None = None                 # ECN stays
    exit: Exit | None = None

    @property
    def rewrites(self) -> bool:
        """Whether any field of the tuple changes."""
        return any(c is not None for c in (self.src, self.dst, self.src_port, self.dst_port))


def between(before: FlowTuple, after: FlowTuple) -> Transposition:
    """The rewrites that turn one tuple into another of the same protocol."""
    return Transposition(
        src=_change(before.src, after.src),
        dst=_change(before.dst, after.dst),
        src_port=_change(before.src_port, after.src_port),
        dst_port=_change(before.dst_port, after.dst_port),
    )


def compose(first: Transposition, second: Transposition) -> Transposition:
    """One transposition that does `first`, then `second`. Associative; the identity is `Transposition()`.

    Raises:
        Incomposable: `second` rewrites a header that `first` has encapsulated, or starts from a value that
            `first` does not leave.
    """
    touches = second.rewrites or second.src_mac or second.dst_mac or second.routed or second.dscp is not None
    if isinstance(first.exit, ToVtep) and touches:
        raise Incomposable("the headers are inside a tunnel and can no longer be rewritten")
    return Transposition(
        src=_chain(first.src, second.src),
        dst=_chain(first.dst, second.dst),
        src_port=_chain(first.src_port, second.src_port),
        dst_port=_chain(first.dst_port, second.dst_port),
        src_mac=second.src_mac or first.src_mac,
        dst_mac=second.dst_mac or first.dst_mac,
        routed=first.routed or second.routed,
        dscp=first.dscp if second.dscp is None else second.dscp,
        exit=second.exit or first.exit,
    )


def inverse(forward: Transposition) -> Transposition:
    """The rewrites that an answer needs so that its receiver sees the answer to what it sent.

    MACs, TTL and exit belong to a direction and are not inverted. A DSCP marks both directions alike.
    """
    return Transposition(
        src=forward.dst.back() if forward.dst else None,
        dst=forward.src.back() if forward.src else None,
        src_port=forward.dst_port.back() if forward.dst_port else None,
        dst_port=forward.src_port.back() if forward.src_port else None,
        dscp=forward.dscp,
    )


def rewrite_tuple(what: FlowTuple, by: Transposition) -> FlowTuple:
    """The tuple after the rewrites of `by`."""
    return replace(
        what,
        src=by.src.becomes if by.src else what.src,
        dst=by.dst.becomes if by.dst else what.dst,
        src_port=by.src_port.becomes if by.src_port else what.src_port,
        dst_port=by.dst_port.becomes if by.dst_port else what.dst_port,
    )


def apply(frame: bytes, packet: Packet, by: Transposition) -> bytes:
    """The frame as it leaves.

    Raises:
        Undeliverable: `TTL_EXCEEDED`, the packet would have to be routed with a TTL of 0 or 1; `NO_ROUTE`, it
            would leave by an uplink's neighbours and was sent to everyone on its link.
    """
    out = bytearray(frame)
    if by.src_mac is not None:
        out[6:12] = by.src_mac
    if by.dst_mac is not None:
        out[0:6] = by.dst_mac
    if packet.is_ip:
        if by.routed and packet.ttl <= 1:
            raise Undeliverable(DropReason.TTL_EXCEEDED)
        if isinstance(by.exit, ToUplink) and frame[0] & 1:
            raise Undeliverable(DropReason.NO_ROUTE)
        if by.routed:
            _decrement_ttl(out, packet)
        if by.dscp is not None:
            _mark(out, packet, by.dscp)
        _rewrite_addresses(out, packet, by)
        if packet.part is not Part.LATER:
            _rewrite_ports(out, packet, by)
    return bytes(out)


def _decrement_ttl(out: bytearray, packet: Packet) -> None:
    if packet.tuple.family == 6:
        out[ETHERNET_BYTES + 7] -= 1        # hop limit, in no checksum
        return
    ttl_and_protocol = bytes([packet.ttl - 1, packet.tuple.protocol])
    _put(out, ETHERNET_BYTES + 8, ttl_and_protocol, [ETHERNET_BYTES + 10])


def _mark(out: bytearray, packet: Packet, dscp: int) -> None:
    """The upper six bits of type of service or traffic class (RFC 2474); the lower two are ECN's (RFC 3168)."""
    at = ETHERNET_BYTES
    if packet.tuple.family == 6:
        start = int.from_bytes(out[at:at + 2], "big") & 0xF03F | dscp << 6
        out[at:at + 2] = start.to_bytes(2, "big")
        return
    _put(out, at, bytes([out[at], out[at + 1] & 3 | dscp << 2]), [at + 10])


def _rewrite_addresses(out: bytearray, packet: Packet, by: Transposition) -> None:
    """IPv4's header checksum covers addresses; so do TCP's, UDP's and ICMPv6's, through the pseudo header."""
    six = packet.tuple.family == 6
    for offset, change in ((8 if six else 12, by.src), (24 if six else 16, by.dst)):
        if change is None:
            continue
        sums = [] if six else [ETHERNET_BYTES + 10]
        covering = (TCP, UDP, UDPLITE, ICMPV6) if six else (TCP, UDP, UDPLITE)
        if packet.part is not Part.LATER and packet.tuple.protocol in covering:
            sums += _transport_checksum(out, packet)
        _put(out, ETHERNET_BYTES + offset, change.becomes.packed, sums, udp=packet.tuple.protocol in (UDP, UDPLITE))


def _rewrite_ports(out: bytearray, packet: Packet, by: Transposition) -> None:
    start, sums = packet.transport, _transport_checksum(out, packet)
    if is_icmp(packet.tuple):
        identifier = by.src_port or by.dst_port
        if identifier is not None:
            _put(out, start + 4, identifier.becomes.to_bytes(2, "big"), sums)
        return
    for offset, change in ((0, by.src_port), (2, by.dst_port)):
        if change is not None:
            new = change.becomes.to_bytes(2, "big")
            _put(out, start + offset, new, sums, udp=packet.tuple.protocol == UDP)


def _transport_checksum(out: bytearray, packet: Packet) -> list[int]:
    """Where the transport checksum is; nowhere when UDP has none (RFC 768: zero means not computed).

    UDP-Lite must have one (RFC 3828 3.1), so a zero is no sender's, and stays.
    """
    start = packet.transport
    if is_icmp(packet.tuple):
        return [start + 2]
    match packet.tuple.protocol:
        case 6:
            return [start + 16]
        case 17 | 136:
            return [start + 6] if out[start + 6:start + 8] != b"\0\0" else []
        case _:
            return []


def _put(out: bytearray, at: int, new: bytes, checksums: list[int], *, udp: bool = False) -> None:
    """Write 16-bit aligned bytes and update the checksums that cover them."""
    old = bytes(out[at:at + len(new)])
    out[at:at + len(new)] = new
    for where in checksums:
        value = update_checksum(int.from_bytes(out[where:where + 2], "big"), old, new)
        if udp and value == 0 and where != ETHERNET_BYTES + 10:
            value = 0xFFFF                  # RFC 768: a computed zero is sent as all ones
        out[where:where + 2] = value.to_bytes(2, "big")


def update_checksum(checksum: int, old: bytes, new: bytes) -> int:
    """RFC 1624, equation 3: HC' = ~(~HC + ~m + m'), over 16-bit words of equally long `old` and `new`."""
    total = ~checksum & 0xFFFF
    for i in range(0, len(old), 2):
        total += ~int.from_bytes(old[i:i + 2], "big") & 0xFFFF
        total += int.from_bytes(new[i:i + 2], "big")
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _change(was: T, becomes: T) -> Change[T] | None:
    return None if was == becomes else Change(was, becomes)


def _chain(first: Change[T] | None, second: Change[T] | None) -> Change[T] | None:
    if first is None or second is None:
        return second or first
    if first.becomes != second.was:
        raise Incomposable(f"the first leaves {first.becomes}, the second starts from {second.was}")
    return _change(first.was, second.becomes)
