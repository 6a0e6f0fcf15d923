"""The unified flow table: pairs of a forward and a reply entry, their TCP state, budgets and ageing.

Decided here, where `docs/engine.md` is open:

- There are no half pairs: when a pair takes a key that another pair has, both entries of that other pair go.
- A packet whose reply key would be its own key (to itself, with equal ports) has a forward entry only.
- A budget is asked before the table, and does not count what the new pair would replace as gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vfp.model import Address, Inspect, Port
from vfp.reasons import DropReason
from vfp.reference.bindings import BindingKey
from vfp.reference.decide import Decision, Half
from vfp.reference.extras import NO_EXTRAS, Extras
from vfp.reference.packet import TCP, UDP, FlowTuple, Headers, is_icmp
from vfp.reference.tcp import Fit, FlowState, fits, sent, state_of
from vfp.reference.transposition import Transposition
from vfp.reference.zones import Zone
from vfp.timeouts import Timeouts

RECLAIMED = 16


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
    def vtep(self) -> Address | None:
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
    contacts: tuple[tuple[BindingKey, Address], ...] = ()
    extras: Extras = NO_EXTRAS
    strict: bool = False                    # TCP segments must fit the connection
    reply_seen: bool = False
    sent: tuple[int, int] = (0, 0)          # by the forward side and the reply side: TCP flags, see `tcp.sent`
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
        """See the drawing at the top of `tcp`; other protocols are new until a reply is seen."""
        if self.protocol == TCP:
            return state_of(*self.sent, reply_seen=self.reply_seen)
        return FlowState.ESTABLISHED if self.reply_seen else FlowState.NEW

    @property
    def budget(self) -> DropReason | None:
        """The reason to refuse one more of its kind, if there are bounds for that kind."""
        if self.protocol != TCP:
            return DropReason.UDP_FULL
        return None if self.reply_seen else DropReason.HALF_OPEN_FULL

    @property
    def used_s(self) -> float:
        """When the younger half last saw a packet."""
        return max(entry.used_s for entry in self.entries)

    def idle_limit_s(self, timeouts: Timeouts) -> float:
        """After how long without packets the pair is removed."""
        if self.protocol == TCP:
            return {
                FlowState.OPENING: timeouts.tcp_opening_s, FlowState.SYN_RECEIVED: timeouts.tcp_syn_received_s,
                FlowState.ESTABLISHED: timeouts.tcp_established_s, FlowState.FIN_WAIT: timeouts.tcp_fin_wait_s,
                FlowState.TIME_WAIT: timeouts.tcp_time_wait_s, FlowState.RESET: timeouts.tcp_reset_s,
            }[self.state]
        if self.protocol == UDP:
            return timeouts.udp_s if self.reply_seen else timeouts.udp_new_s
        return timeouts.icmp_s if is_icmp(self.forward.half.tuple) else timeouts.other_s

    def fits(self, entry: Entry, tcp_flags: int) -> Fit:
        """Whether a segment may use `entry`. Only a strict pair minds."""
        if not self.strict:
            return Fit.YES
        return fits(self.sent[entry.reply], self.sent[not entry.reply], tcp_flags)

    def count(self, entry: Entry, tcp_flags: int, length: int, now_s: float) -> None:
        """A packet of `length` bytes used `entry`. `tcp_flags` are 0 for what is not TCP."""
        entry.packets += 1
        entry.bytes += length
        entry.used_s = now_s
        forward, reply = self.sent
        news = sent(tcp_flags)
        self.sent = (forward, reply | news) if entry.reply else (forward | news, reply)
        self.reply_seen |= entry.reply


class Refused(Exception):
    """The pair cannot be stored; `reason` says what is full."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class FlowTable:
    """All entries by key. `capacity` counts entries, two for a stateful pair; `budgets` pairs, by reason to refuse."""

    def __init__(self, capacity: int, budgets: Mapping[DropReason, int], timeouts: Timeouts) -> None:
        self._capacity = capacity
        self._budgets = budgets
        self._timeouts = timeouts
        self._ports: Mapping[int, Port] = {}
        self._entries: dict[FlowKey, tuple[Pair, Entry]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: FlowKey) -> tuple[Pair, Entry] | None:
        """The entry under `key` and its pair."""
        return self._entries.get(key)

    def pairs(self) -> list[Pair]:
        """All pairs, in the order in which they were made."""
        return list({id(pair): pair for pair, _ in self._entries.values()}.values())

    def take_ports(self, ports: Mapping[int, Port]) -> None:
        """The ports of a new policy: flows of others are orphans, and those that there are have times of theirs."""
        self._ports = ports

    def put(self, pair: Pair, now_s: float, *, new: bool = True,
            is_former: Callable[[Pair], bool] = lambda _: False) -> None:
        """Store a pair; others that hold one of its keys are removed. One that is not `new` has its place already.

        Closed pairs whose time is over go first if there is no room for a new one. `is_former`: whether a pair is of a
        port whose id another one has now, and counts for nobody.

        Raises:
            Refused: nothing was changed.
        """
        if new and any(self._is_at_its_limit(port, is_former) for port in pair.generations):
            raise Refused(DropReason.CONNECTION_LIMIT)
        if new and (kind := pair.budget) is not None:
            taken = sum(other.budget is kind for other in self.pairs())
            if taken >= self._budgets[kind]:
                raise Refused(kind)
        keys = {entry.key for entry in pair.entries}
        displaced = {id(held[0]): held[0] for key in keys if (held := self._entries.get(key))}
        freed = sum(len(other.entries) for other in displaced.values())
        if new and len(self._entries) - freed + len(keys) > self._capacity:
            self._reclaim(now_s)
        if len(self._entries) - freed + len(keys) > self._capacity:
            raise Refused(DropReason.FLOW_TABLE_FULL)
        for other in displaced.values():
            self.remove(other)
        for entry in pair.entries:
            self._entries[entry.key] = (pair, entry)

    def _is_at_its_limit(self, port: int, is_former: Callable[[Pair], bool]) -> bool:
        limit = self._ports[port].connections if port in self._ports else 0
        return 0 < limit <= sum(port in pair.generations and not is_former(pair) for pair in self.pairs())

    def remove(self, pair: Pair) -> None:
        """Take both entries out."""
        for entry in pair.entries:
            held = self._entries.get(entry.key)
            if held is not None and held[0] is pair:
                del self._entries[entry.key]

    def _reclaim(self, now_s: float) -> None:
        """Remove a few pairs that have closed and whose time is over."""
        over = [pair for pair in self.pairs() if pair.state.is_closed and self._is_idle(pair, now_s)]
        for pair in over[:RECLAIMED]:
            self.remove(pair)

    def _is_idle(self, pair: Pair, now_s: float) -> bool:
        return now_s - pair.used_s > pair.idle_limit_s(self._timeouts_of(pair))

    def _timeouts_of(self, pair: Pair) -> Timeouts:
        """Those of the sender, or else of the receiver, or else the engine's."""
        ports = (self._ports[port] for port in pair.generations if port in self._ports)
        return next((port.timeouts for port in ports if port.timeouts is not None), self._timeouts)

    def sweep(self, now_s: float) -> int:
        """Remove pairs that were idle for too long, or of ports that are gone; returns how many entries went."""
        before = len(self._entries)
        for pair in self.pairs():
            orphan = any(port not in self._ports for port in pair.generations)
            if orphan or self._is_idle(pair, now_s):
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
    strict = decision.strict and decision.stateful and forward.half.tuple.protocol == TCP
    pair = Pair(headers, forward, reply, now_s, generations, decision.bindings, decision.contacts,
                decision.extras, strict,
                inspect=decision.inspect)
    if old is not None:
        pair.created_s, pair.reply_seen, pair.sent = old.created_s, old.reply_seen, old.sent
        if old.inspect and pair.inspect and old.inspect.queue == pair.inspect.queue:
            pair.released = old.released
        _inherit(forward, old.forward)
        if reply is not None and old.reply is not None:
            _inherit(reply, old.reply)
    return pair


def _inherit(new: Entry, old: Entry) -> None:
    new.used_s, new.packets, new.bytes = old.used_s, old.packets, old.bytes
