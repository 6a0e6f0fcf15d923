"""The unified flow table: pairs of a forward and a reply entry, their TCP state, and ageing.

    new ──reply──▶ established ──FIN──▶ closing ──FIN of the other side──▶ closed
     └──────────────────────RST from either side, in any state──────────────▲

Decided here, where `docs/engine.md` is open:

- There are no half pairs: when a pair takes a key that another pair has, both entries of that other pair go.
- A packet whose reply key would be its own key (to itself, with equal ports) has a forward entry only.
- State `new` is one FIN away from `closing` too: FINs are looked at before the reply.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address

from vfp.model import Inspect
from vfp.reference.bindings import BindingKey
from vfp.reference.decide import Decision, Half
from vfp.reference.packet import TCP, TCP_FIN, TCP_RST, UDP, FlowTuple, Headers, is_icmp
from vfp.reference.transposition import Transposition
from vfp.reference.zones import Zone


class FlowState(StrEnum):
    """What is known of a conversation; other protocols than TCP are only ever new or established."""

    NEW = "new"
    ESTABLISHED = "established"
    CLOSING = "closing"
    CLOSED = "closed"


# RFC 5382 REQ-5 (TCP), RFC 4787 REQ-5 (UDP), RFC 5508 REQ-2 (ICMP).
TCP_IDLE_S = {
    FlowState.NEW: 30.0,
    FlowState.ESTABLISHED: 7440.0,
    FlowState.CLOSING: 240.0,
    FlowState.CLOSED: 2.0,
}
UDP_NEW_IDLE_S = 30.0
UDP_IDLE_S = 300.0
ICMP_IDLE_S = 60.0
OTHER_IDLE_S = 300.0


@dataclass(frozen=True, slots=True)
class FlowKey:
    """Identity of one entry."""

    zone: Zone
    tuple: FlowTuple


@dataclass(slots=True)
class Entry:
    """One half of a pair as the table holds it."""

    half: Half
    reply: bool
    used_s: float
    packets: int = 0
    bytes: int = 0

    @property
    def key(self) -> FlowKey:
        """Where the entry is in the table."""
        return FlowKey(self.half.zone, self.half.tuple)

    @property
    def transposition(self) -> Transposition:
        """What happens to the packets of this half."""
        return self.half.transposition

    @property
    def vtep(self) -> IPv4Address | None:
        """Overlay: the only outer source that may use this half."""
        return self.half.vtep


@dataclass(slots=True)
class Pair:
    """A conversation. `headers` are those of the packet that made it, for re-decision."""

    headers: Headers
    forward: Entry
    reply: Entry | None
    created_s: float
    generations: dict[int, int]             # of the ports that were asked, when they were
    bindings: tuple[BindingKey, ...] = ()
    reply_seen: bool = False
    fin_sides: frozenset[str] = frozenset()  # which of "forward" and "reply" have sent a FIN
    rst: bool = False
    inspect: Inspect | None = None          # user space sees its packets first ...
    released: bool = False                  # ... until it has seen enough
    sets_generation: int | None = None      # of the sets, when they were asked; None: they were not

    @property
    def entries(self) -> list[Entry]:
        """The forward entry and the reply, if there is one."""
        return [self.forward] if self.reply is None else [self.forward, self.reply]

    @property
    def protocol(self) -> int:
        """IP protocol, of both halves."""
        return self.forward.half.tuple.protocol

    @property
    def state(self) -> FlowState:
        """See the drawing at the top of this module."""
        if self.rst or len(self.fin_sides) == 2:
            return FlowState.CLOSED
        if self.fin_sides:
            return FlowState.CLOSING
        return FlowState.ESTABLISHED if self.reply_seen else FlowState.NEW

    @property
    def used_s(self) -> float:
        """When the younger half last saw a packet."""
        return max(entry.used_s for entry in self.entries)

    def idle_limit_s(self) -> float:
        """After how long without packets the pair is removed."""
        if self.protocol == TCP:
            return TCP_IDLE_S[self.state]
        if self.protocol == UDP:
            return UDP_IDLE_S if self.reply_seen else UDP_NEW_IDLE_S
        return ICMP_IDLE_S if is_icmp(self.forward.half.tuple) else OTHER_IDLE_S

    def count(self, entry: Entry, tcp_flags: int, length: int, now_s: float) -> None:
        """A packet of `length` bytes used `entry`. `tcp_flags` are 0 for what is not TCP."""
        entry.packets += 1
        entry.bytes += length
        entry.used_s = now_s
        self.reply_seen |= entry.reply
        if tcp_flags & TCP_FIN:
            self.fin_sides |= {"reply" if entry.reply else "forward"}
        self.rst |= bool(tcp_flags & TCP_RST)


class TableFull(Exception):
    """There is no room for the entries of a pair."""


class FlowTable:
    """All entries by key. `capacity` counts entries, two for a stateful pair."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[FlowKey, tuple[Pair, Entry]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: FlowKey) -> tuple[Pair, Entry] | None:
        """The entry under `key` and its pair."""
        return self._entries.get(key)

    def pairs(self) -> list[Pair]:
        """All pairs, in the order in which they were made."""
        return list({id(pair): pair for pair, _ in self._entries.values()}.values())

    def put(self, pair: Pair) -> None:
        """Store a new pair; others that hold one of its keys are removed.

        Raises:
            TableFull: nothing was changed.
        """
        keys = {entry.key for entry in pair.entries}
        displaced = {id(held[0]): held[0] for key in keys if (held := self._entries.get(key))}
        freed = sum(len(other.entries) for other in displaced.values())
        if len(self._entries) - freed + len(keys) > self._capacity:
            raise TableFull
        for other in displaced.values():
            self.remove(other)
        for entry in pair.entries:
            self._entries[entry.key] = (pair, entry)

    def remove(self, pair: Pair) -> None:
        """Take both entries out."""
        for entry in pair.entries:
            held = self._entries.get(entry.key)
            if held is not None and held[0] is pair:
                del self._entries[entry.key]

    def sweep(self, ports: Container[int], now_s: float) -> int:
        """Remove pairs that were idle for too long, or of ports not in `ports`; returns how many entries went."""
        before = len(self._entries)
        for pair in self.pairs():
            orphan = any(port not in ports for port in pair.generations)
            if orphan or now_s - pair.used_s > pair.idle_limit_s():
                self.remove(pair)
        return before - len(self._entries)


def pair_of(decision: Decision, headers: Headers, generations: dict[int, int], now_s: float,
            old: Pair | None = None) -> Pair:
    """The pair of an allowing decision, with counters and TCP state of `old` if it is decided again."""
    assert decision.forward is not None
    reply_half = decision.reply if decision.stateful else None
    if reply_half and (reply_half.zone, reply_half.tuple) == (decision.forward.zone, decision.forward.tuple):
        reply_half = None
    forward = Entry(decision.forward, reply=False, used_s=now_s)
    reply = Entry(reply_half, reply=True, used_s=now_s) if reply_half else None
    pair = Pair(headers, forward, reply, now_s, generations, decision.bindings, inspect=decision.inspect)
    if old is not None:
        pair.created_s, pair.reply_seen = old.created_s, old.reply_seen
        pair.fin_sides, pair.rst = old.fin_sides, old.rst
        if old.inspect and pair.inspect and old.inspect.queue == pair.inspect.queue:
            pair.released = old.released
        _inherit(forward, old.forward)
        if reply is not None and old.reply is not None:
            _inherit(reply, old.reply)
    return pair


def _inherit(new: Entry, old: Entry) -> None:
    new.used_s, new.packets, new.bytes = old.used_s, old.packets, old.bytes
