"""What fits where a packet leaves: its MTU, whether a packet is larger, and the segments that a SYN asks for."""

from __future__ import annotations

from vfp.model import Address, EngineState, Underlay
from vfp.reference import transposition as header
from vfp.reference.index import Index
from vfp.reference.packet import ETHERNET_BYTES, TCP_SYN, Packet, Part
from vfp.reference.transposition import update_checksum

EVERY_LINK = ETHERNET_BYTES + 576           # bytes of a frame that are never too big (RFC 791)
OVERHEAD = {4: 20 + 8 + 8 + 14, 6: 40 + 8 + 8 + 14}         # outer IP, UDP, VXLAN, inner Ethernet
MSS_OVERHEAD = {4: 40, 6: 60}               # headers without options (RFC 6691)

_END, _NOP, _MSS, _MSS_BYTES = 0, 1, 2, 4


def underlay_of(state: EngineState, exit: header.ToVtep) -> Underlay | None:
    """The outer source of what goes into a tunnel; None: by route."""
    theirs = [each for each in state.underlays if each.address.version == exit.vtep.version]
    if exit.source is not None:
        return next((each for each in theirs if each.address == exit.source), None)
    return theirs[0] if len(theirs) == 1 else None


def mtu_of(index: Index, exit: header.Exit | None) -> int:
    """Bytes of the largest IP packet that may leave so; 0: not known."""
    match exit:
        case header.ToPort(port):
            return index.ports[port].mtu
        case header.ToUplink(uplink) | header.ToWire(uplink):
            link = index.uplinks[uplink]
            return 0 if link.loopback else link.mtu
        case header.ToVtep(vtep) as tunnel:
            underlay = underlay_of(index.state, tunnel)
            if underlay is None or not underlay.mtu:
                return 0
            return min(underlay.mtu, _path(index.state, vtep) or underlay.mtu) - OVERHEAD[vtep.version]
        case _:
            return 0


def _path(state: EngineState, vtep: Address) -> int:
    return next((mtu for address, mtu in state.paths if address == vtep), 0)


def is_too_big(index: Index, exit: header.Exit | None, frame: bytes, packet: Packet) -> bool:
    """Whether a frame must not leave so. An IPv4 packet that may be fragmented is so in a tunnel over IPv4, outside."""
    mtu = mtu_of(index, exit)
    if len(frame) <= EVERY_LINK or not 0 < mtu < len(frame) - ETHERNET_BYTES:
        return False
    may_fragment = packet.tuple.family == 4 and not frame[ETHERNET_BYTES + 6] & 0x40
    return not (isinstance(exit, header.ToVtep) and exit.vtep.version == 4 and may_fragment)


def clamp_mss(frame: bytes, packet: Packet, mtu: int) -> bytes:
    """A SYN whose maximum segment size (RFC 9293 3.7.1) is at most what fits."""
    most = mtu - MSS_OVERHEAD.get(packet.tuple.family, 0)
    if not packet.is_tcp or not packet.headers.tcp_flags & TCP_SYN or packet.part is Part.LATER or most <= 0:
        return frame
    start = packet.transport
    options = start + 20
    at = _find_mss(frame[options:start + (frame[start + 12] >> 4) * 4])
    if at is None or int.from_bytes(frame[options + at + 2:options + at + 4], "big") <= most:
        return frame
    out = bytearray(frame)
    out[options + at + 2:options + at + 4] = most.to_bytes(2, "big")
    first = options + at + 2 - (at & 1)     # whole words of the sum
    last = first + (4 if at & 1 else 2)
    checksum = int.from_bytes(frame[start + 16:start + 18], "big")
    out[start + 16:start + 18] = update_checksum(checksum, frame[first:last], bytes(out[first:last])).to_bytes(2, "big")
    return bytes(out)


def _find_mss(options: bytes) -> int | None:
    at = 0
    while at + _MSS_BYTES <= len(options) and options[at] != _END:
        if options[at] == _NOP:
            at += 1
            continue
        if options[at] == _MSS:
            return at if options[at + 1] == _MSS_BYTES else None
        if options[at + 1] < 2:
            return None
        at += options[at + 1]
    return None
