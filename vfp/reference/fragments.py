"""Fragments: what the first one says of a datagram holds for the rest, and no part of it comes twice.

Sources: RFC 791, RFC 1858 (tiny and overlapping fragments), RFC 3128, RFC 5722, RFC 8200 4.5.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace

from vfp.model import Address
from vfp.reasons import DropReason
from vfp.reference.extensions import Malformed
from vfp.reference.packet import TCP, Fragment, Packet, Part
from vfp.reference.zones import Zone

ENTRIES = 16384
KEEP_S = 30.0                               # from the first fragment; what Linux gives a reassembly, too
MAX_RANGES = 4                              # parts of a datagram with holes between them


@dataclass(frozen=True, slots=True)
class _Key:
    zone: Zone
    src: Address
    dst: Address
    protocol: int                           # IPv6: 0, which RFC 8200 does not count in
    identification: int
    vlan: int


@dataclass(slots=True)
class _Datagram:
    """What the first fragment said, and which parts were seen: [from, to) in units of 8 bytes, apart by holes."""

    first: Packet
    first_s: float
    seen: list[tuple[int, int]] = field(default_factory=list)
    length: int = 0                         # in units; 0: the last fragment was not seen

    def take(self, part: Fragment) -> bool:
        """Whether `part` is new, fits, and was noted."""
        if any(part.begin < high and low < part.end for low, high in self.seen):
            return False
        if part.last and (self.length or any(high > part.end for _, high in self.seen)):
            return False
        if self.length and part.end > self.length:
            return False
        low, high = part.begin, part.end
        kept = []
        for other in self.seen:
            if other[1] == part.begin:
                low = other[0]
            elif other[0] == part.end:
                high = other[1]
            else:
                kept.append(other)
        if len(kept) == MAX_RANGES:
            return False
        self.seen = [*kept, (low, high)]
        if part.last:
            self.length = part.end
        return True

    @property
    def whole(self) -> bool:
        """Whether all of it was seen."""
        return self.length > 0 and self.seen == [(0, self.length)]


class FragmentTable:
    """Datagrams that come in fragments, of all zones; LRU."""

    def __init__(self, entries: int = ENTRIES) -> None:
        self._entries = entries
        self._known: OrderedDict[_Key, _Datagram] = OrderedDict()

    def resolve(self, zone: Zone, packet: Packet, now_s: float) -> Packet:
        """The packet with what its first fragment said, which this call remembers when it is that one.

        Raises:
            Malformed: `FRAGMENT_UNKNOWN`, `FRAGMENT_TINY` or `FRAGMENT_OVERLAP`.
        """
        part = packet.fragment
        if part is None:
            return packet
        what = packet.tuple
        key = _Key(zone, what.src, what.dst, what.protocol if what.family == 4 else 0, part.identification, what.vlan)
        known = self._known.get(key)
        if known is not None and now_s >= known.first_s + KEEP_S:
            del self._known[key]
            known = None
        if packet.part is Part.FIRST:
            if known is not None:
                raise Malformed(DropReason.FRAGMENT_OVERLAP)
            self._known[key] = _Datagram(packet, now_s, [(0, part.end)])
            if len(self._known) > self._entries:
                self._known.popitem(last=False)
            return packet
        if known is None:
            raise Malformed(DropReason.FRAGMENT_UNKNOWN)
        self._known.move_to_end(key)
        first = known.first
        if first.tuple.protocol == TCP and part.begin == 1:
            raise Malformed(DropReason.FRAGMENT_TINY)
        if not known.take(part):
            raise Malformed(DropReason.FRAGMENT_OVERLAP)
        if known.whole:
            del self._known[key]
        told = first.headers
        return replace(
            packet,
            tuple=replace(what, protocol=first.tuple.protocol, src_port=first.tuple.src_port,
                          dst_port=first.tuple.dst_port),
            headers=replace(packet.headers, tcp_flags=told.tcp_flags, icmp_type=told.icmp_type,
                            icmp_code=told.icmp_code),
        )
