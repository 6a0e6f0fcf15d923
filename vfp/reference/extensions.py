"""IPv6 extension headers (RFC 8200 4): the way from the fixed header to what a packet carries."""

from __future__ import annotations

from dataclasses import dataclass

from vfp.reasons import DropReason

HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION)
MAX_EXTENSIONS = 8


class Malformed(Exception):
    """The frame cannot be a packet of ours; `reason` is what to count."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Chain:
    """Where a way ends. Offsets are from the start of the IPv6 header."""

    at: int                                 # what follows the last extension header
    next: int                               # its protocol; of a later fragment, what its fragment header says
    fragmented: bool = False                # there was a fragment header, with:
    offset: int = 0                         # in units of 8 bytes
    more: bool = False
    identification: int = 0
    body: int = 0                           # where what is fragmented begins


def walk_extensions(packet: bytes, at: int, next: int) -> Chain:
    """Follow the headers of an IPv6 packet from `at`, where one of protocol `next` begins.

    Raises:
        Malformed: `MALFORMED_IPV6`, or `FRAGMENT_TINY` when a fragment ends within them (RFC 7112).
    """
    bad = Malformed(DropReason.MALFORMED_IPV6)
    chain = Chain(at, next)
    for count in range(MAX_EXTENSIONS):
        kind = chain.next
        if kind not in EXTENSIONS:
            return chain
        if (kind == HOP_BY_HOP and count) or (kind == FRAGMENT and chain.fragmented):
            raise bad
        cut = Malformed(DropReason.FRAGMENT_TINY) if chain.more else bad
        head = packet[chain.at:chain.at + 8]
        if len(head) < 8:
            raise cut
        length = (head[1] + 1) * 8
        if kind == AUTHENTICATION:
            length = (head[1] + 2) * 4
        elif kind == FRAGMENT:
            field = int.from_bytes(head[2:4], "big")
            chain = Chain(chain.at + 8, head[0], True, field >> 3, bool(field & 1), int.from_bytes(head[4:8], "big"),
                          chain.at + 8)
            if chain.offset:
                return chain
            continue
        elif kind == ROUTING and head[2] == 0 and head[3]:
            raise bad                       # RFC 5095: type 0 goes nowhere
        if chain.at + length > len(packet):
            raise cut
        chain = Chain(chain.at + length, head[0], chain.fragmented, chain.offset, chain.more, chain.identification,
                      chain.body)
    if chain.next in EXTENSIONS:
        raise bad
    return chain
