"""The engine: frames in, verdicts and frames out; flows, bindings, fragments and counters in between.

Decided here, where `docs/engine.md` is open:

- A SYN that finds its flow closed is a miss even if the entry is stale. If the new decision denies it, the
  closed pair stays until it is aged.
- A stale entry is decided again before its VTEP is compared, with the entry as written anew.
- TTL and the uplink's MTU are checked when the packet leaves: a packet that dies of them has made or used its flow.
- Only packets that got as far as their transposition are counted on an entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address

from vfp.model import Address, EngineState, Port, Prefix
from vfp.reasons import DropReason
from vfp.reference import transposition as header
from vfp.reference.bindings import Bindings
from vfp.reference.bucket import Bucket
from vfp.reference.decide import Decision, Subject, decide
from vfp.reference.extensions import Malformed
from vfp.reference.extras import Extras, Journal
from vfp.reference.flows import Entry, FlowKey, FlowTable, Pair, Refused, pair_of
from vfp.reference.fragments import FragmentTable
from vfp.reference.index import Index, changed_ports
from vfp.reference.layers import RuleRef
from vfp.reference.limits import Buckets
from vfp.reference.packet import (
    TCP_ACK,
    TCP_SYN,
    FlowTuple,
    Headers,
    Packet,
    Part,
    arp_answer,
    echo_answer,
    nd_answer,
)
from vfp.reference.reject import Answer, AnswerLimit, answer_to
from vfp.reference.related import is_plausible, quotation_of, translate_quotation
from vfp.reference.sets import Members, Sets
from vfp.reference.sizes import clamp_mss, is_too_big, mtu_of
from vfp.reference.tcp import Fit, FlowState, is_opening
from vfp.reference.transposition import Exit, Transposition, Undeliverable
from vfp.reference.vlans import parse_tagged
from vfp.reference.zones import Hook, Zone, ZoneKind, zone_of
from vfp.timeouts import Timeouts

FLOW_ENTRIES = 262144
REDECIDE_PER_S = 200_000
REDECIDE_BURST_S = 0.1


class Verdict(StrEnum):
    """What becomes of a frame."""

    DROP = "drop"
    REDIRECT_PORT = "redirect_port"
    REDIRECT_UPLINK = "redirect_uplink"
    REDIRECT_WIRE = "redirect_wire"         # out of an uplink with the MACs that it has
    FLOOD = "flood"                         # copies to `flooded`
    TUNNEL = "tunnel"
    STACK = "stack"
    REPLY = "reply"                         # an ARP answer goes back out of the port
    INSPECT = "inspect"                     # user space sees the frame, as it came, and may give it to `inspected`


@dataclass(frozen=True, slots=True)
class Result:
    """What the engine did with one frame.

    `frame` is what leaves, or what came if it was dropped. `port` is where it leaves to (redirect_port,
    reply), `uplink` likewise, or the number of the space or uplink that is flooded. `layer` is set when a rule (then
    `denied_by` too) or a layer's default dropped it, `drop_port` when a port's hook or layers did.
    """

    verdict: Verdict
    frame: bytes
    reason: DropReason = DropReason.NONE
    port: int = 0
    uplink: int = 0
    vni: int = 0
    queue: int = 0
    vtep: Address | None = None
    drop_port: int = 0
    layer: str = ""
    denied_by: RuleRef | None = None
    flows: tuple[FlowKey, ...] = ()         # entries that the frame made or used
    mirror: int = 0                         # port that has a copy of the frame as it came; 0: none
    answer: Answer | None = None            # of a frame that was rejected
    flooded: tuple[Exit, ...] = ()          # where copies go; those to ports enter at `port_in`, and are judged there


@dataclass(frozen=True, slots=True)
class FlowView:
    """One entry of the flow table, as listings show it."""

    key: FlowKey
    reply: bool
    state: FlowState
    packets: int
    bytes: int
    idle_s: float
    age_s: float
    transposition: Transposition


class Engine:
    """One host's engine. Time is given with each call, in seconds, and must not go back."""

    def __init__(self, state: EngineState, *, flow_entries: int = FLOW_ENTRIES, half_open: int = 0, udp: int = 0,
                 redecide_per_s: int = REDECIDE_PER_S, timeouts: Timeouts | None = None) -> None:
        """`half_open` and `udp` 0: a quarter and half of as many pairs as there is room for."""
        self._index = Index(state)
        self._sets = Sets(state)
        self._generations: Counter[int] = Counter()
        self._born: dict[int, int] = {}         # generation at which an id became the port's that has it
        budgets = {
            DropReason.HALF_OPEN_FULL: half_open or max(flow_entries // 8, 1),
            DropReason.UDP_FULL: udp or max(flow_entries // 4, 1),
        }
        self._timeouts = timeouts or Timeouts()
        self._flows = FlowTable(flow_entries, budgets, self._timeouts)
        self._flows.take_ports(self._index.ports)
        self._redecide_cost_s = 1 / redecide_per_s
        self._redecide_s = float("-inf")    # until when the time for re-decisions is spent
        self._fragments = FragmentTable()
        self.bindings = Bindings()
        self.drop_counts: Counter[DropReason] = Counter()
        self.rule_hits: Counter[RuleRef] = Counter()
        self.rule_drops: Counter[RuleRef] = Counter()
        self.mapping_hits: Counter[str] = Counter()         # by `Mapping.name`
        self.journal = Journal()
        self._answers = AnswerLimit()
        self._buckets = Buckets()
        self._floods: dict[header.Flood, Bucket] = {}

    @property
    def state(self) -> EngineState:
        """The policy in force."""
        return self._index.state

    def generation(self, port: int) -> int:
        """How often the policy that concerns `port` has changed."""
        return self._generations[port]

    def flows(self, now_s: float) -> list[FlowView]:
        """All entries of the flow table."""
        return [
            FlowView(entry.key, entry.reply, pair.state, entry.packets, entry.bytes, now_s - entry.used_s,
                     now_s - pair.created_s, entry.transposition)
            for pair in self._flows.pairs() for entry in pair.entries
        ]

    def update(self, new_state: EngineState) -> set[int]:
        """Take a new policy; returns the ports whose flows will be decided again."""
        new = Index(new_state)
        old, self._index = self._index, new
        changed = changed_ports(old, new)
        self._flows.take_ports(new.ports)
        self._sets.update(new_state)
        self._generations.update(changed)
        gone = {id for id in old.ports if not _is_same(old.ports[id], new.ports.get(id))}
        self.bindings.purge(gone, old.pools.keys() - new.pools.keys())
        for id in gone:
            self._buckets.forget(id)
        self._born |= {id: self._generations[id] for id in new.ports if id in gone or id not in old.ports}
        self.journal.forget_meters_but(new.meters())
        return changed

    def is_former(self, pair: Pair) -> bool:
        """Whether a pair is of a port whose id another one has now."""
        return any(then < self._born.get(port, 0) for port, then in pair.generations.items())

    def add_members(self, set_id: int, members: Iterable[Prefix], now_s: float, ttl_s: float | None = None,
                    redecide: bool = True) -> None:
        """Put members into a dynamic set, for a while or for ever."""
        self._sets.add(set_id, members, now_s, ttl_s, redecide=redecide)

    def remove_members(self, set_id: int, members: Iterable[Prefix], redecide: bool = True) -> None:
        """Take members out of a dynamic set."""
        self._sets.remove(set_id, members, redecide=redecide)

    def members(self, set_id: int) -> Members:
        """The members of a set and when each ends."""
        return dict(self._sets.members(set_id))

    def sweep(self, now_s: float) -> int:
        """Age flows and bindings; returns how many flow entries and bindings went."""
        for pair in self._flows.pairs():
            if self.is_former(pair):
                self._flows.remove(pair)
        removed = self._flows.sweep(now_s)
        bindings = {key for pair in self._flows.pairs() for key in pair.bindings}
        contacts = {contact for pair in self._flows.pairs() for contact in pair.contacts}
        return removed + self.bindings.sweep(bindings, contacts, now_s, self._binding_idle_s)

    def _binding_idle_s(self, port: int) -> float:
        """How long a binding of a port stays without flows."""
        holder = self._index.ports.get(port)
        return ((holder and holder.timeouts) or self._timeouts).binding_s

    def process(self, hook: Hook, number: int, frame: bytes, *, vtep: Address | None = None,
                now_s: float, flooded: bool = False) -> Result:
        """Take one frame through the engine. `vtep` is the outer source at `overlay_in`. `flooded`: it is a copy of
        a frame to a group.
        """
        return self._take(_Passage(self, zone_of(hook, number), frame, vtep, now_s, flooded=flooded))

    def may_flood(self, exit: header.Flood, now_s: float) -> bool:
        """Whether the rate of a segment lets one more frame to a group be spread; if so, it counts."""
        rate = self._index.flood_rate(exit)
        return rate is not None and self._floods.setdefault(exit, Bucket()).take(rate, now_s)

    def inspected(self, zone: Zone, frame: bytes, *, release: bool = False, now_s: float) -> Result:
        """Go on with a frame that user space has seen, perhaps with another payload; its MACs do not matter.

        `release`: user space need not see more of its flow.
        """
        return self._take(_Passage(self, zone, frame, None, now_s, inspected=True, release=release))

    def _take(self, passage: _Passage) -> Result:
        try:
            result = passage.run()
        except _Drop as drop:
            result = self._dropped(passage, drop)
        return replace(result, mirror=passage.mirror)

    def may_decide_again(self, now_s: float) -> bool:
        """Whether there is time for a stale flow; if so, spend it."""
        if self._redecide_s > now_s + REDECIDE_BURST_S:
            return False
        self._redecide_s = max(self._redecide_s, now_s) + self._redecide_cost_s
        return True

    def _dropped(self, passage: _Passage, drop: _Drop) -> Result:
        self.drop_counts[drop.reason] += 1
        decision = drop.decision
        step = decision.denied_by if decision else None
        denied_by = step.ref if step else None
        if denied_by is not None:
            self.rule_drops[denied_by] += 1
        at_port = passage.zone.kind in (ZoneKind.PORT, ZoneKind.HOST)
        drop_port = decision.drop_port if decision else drop.port or (passage.zone.number if at_port else 0)
        return Result(Verdict.DROP, passage.frame, drop.reason, drop_port=drop_port,
                      layer=step.layer if step else "", denied_by=denied_by,
                      answer=self._answer(passage, drop.mtu) if drop.is_told else None)

    def _answer(self, passage: _Passage, mtu: int) -> Answer | None:
        """What tells the sender of a rejected frame, or of one that is too big, to where it came from."""
        exit, packet = passage.back(), passage.packet
        if packet is None:
            return None
        gateway = self._gateway(passage.zone, packet)
        frame = answer_to(passage.frame, packet, self._answers, passage.now_s, mtu, gateway)
        return Answer(frame, exit) if frame and exit else None


    def _gateway(self, zone: Zone, packet: Packet) -> Address | None:
        """From whom a port gets ICMP errors; None: from whom its packet was meant for."""
        port = self._index.ports.get(zone.number) if zone.kind is ZoneKind.PORT else None
        return next((gateway for gateway in port.gateways if gateway.version == packet.tuple.family), None) \
            if port else None


class _Former(Exception):
    """The flow was of a port whose id another one has now: there is none."""


class _Drop(Exception):
    """The frame ends here."""

    def __init__(self, reason: DropReason, decision: Decision | None = None, mtu: int = 0, port: int = 0) -> None:
        super().__init__(reason.name)
        self.reason = reason
        self.decision = decision
        self.mtu = mtu                      # of TOO_BIG
        self.port = port                    # whose doing it is, if no layer's and not of who sent it

    @property
    def is_told(self) -> bool:
        return self.reason in (DropReason.REJECTED, DropReason.TOO_BIG)


@dataclass(slots=True)
class _Passage:
    """One frame on its way through an engine."""

    engine: Engine
    zone: Zone
    frame: bytes
    vtep: Address | None
    now_s: float
    inspected: bool = False
    release: bool = False
    flooded: bool = False                   # a copy of a frame to a group
    packet: Packet | None = None            # once it is parsed
    mirror: int = 0

    def back(self) -> Exit | None:
        """To where the frame came from."""
        index, number = self.engine._index, self.zone.number
        match self.zone.kind:
            case ZoneKind.PORT:
                return header.ToPort(number) if number in index.ports else None
            case ZoneKind.OVERLAY:
                return header.ToVtep(self.vtep, number) if self.vtep and index.has_tunnel else None
            case ZoneKind.UPLINK:
                if number not in index.uplinks:
                    return None
                station = index.station_on_wire(number, self.frame[:6])
                return header.ToUplink(number) if station is None else header.ToWire(number)
            case ZoneKind.HOST:
                return header.ToStack()

    def run(self) -> Result:
        if self.zone.kind is ZoneKind.PORT and not self.inspected:
            port = self.engine._index.ports.get(self.zone.number)
            if port and not self.engine._buckets.take(port.id, "out", port.rate_out, self.now_s):
                raise _Drop(DropReason.RATE_LIMITED)
        try:
            self.frame, packet = parse_tagged(self.engine._index, self.zone, self.frame)
            packet = self.engine._fragments.resolve(self.zone, packet, self.now_s)
        except Malformed as malformed:
            if self.zone.kind is ZoneKind.UPLINK and not self.inspected:
                return self._to_stack()
            raise _Drop(malformed.reason) from None
        if self.inspected:
            packet = self._restored(packet)
        self.packet = packet
        if (related := self._pass_error(packet)) is not None:
            return related
        found = self._find(packet, packet.tuple) if packet.is_flow else None
        if found is None or (found[0].state.is_closed and _opens(packet)):
            return self._miss(packet)
        try:
            return self._hit(packet, *found)
        except _Former:
            if self.inspected:
                raise _Drop(DropReason.INSPECT_REFUSED) from None
            return self._miss(packet)

    def _restored(self, packet: Packet) -> Packet:
        """A packet back from user space as it was on its link."""
        found = self.engine._flows.find(FlowKey(self.zone, packet.tuple)) if packet.is_flow else None
        if found is None:
            raise _Drop(DropReason.INSPECT_REFUSED)
        pair, entry = found
        pair.released |= self.release and pair.inspect is not None
        dst_mac, src_mac = entry.half.dst_mac, entry.half.src_mac
        self.frame = dst_mac + src_mac + self.frame[12:]
        self.vtep = entry.vtep
        return replace(packet, headers=replace(packet.headers, src_mac=src_mac, dst_mac=dst_mac))

    def _find(self, packet: Packet, what: FlowTuple) -> tuple[Pair, Entry] | None:
        """A tuple's pair and entry; layers match MACs and keys do not, so another sender's MAC is a miss."""
        found = self.engine._flows.find(FlowKey(self.zone, what))
        if found and self.zone.kind is ZoneKind.PORT and found[1].half.mac != packet.headers.src_mac:
            return None
        if found and not found[1].half.is_meant(packet.headers.dst_mac):
            return None
        return found

    def _pass_error(self, packet: Packet) -> Result | None:
        """What becomes of an ICMP error about a flow: it goes where the packets go that come from its side.

        It neither counts nor keeps the flow alive. None: the packet is no such error.
        """
        quoted = quotation_of(self.frame, packet)
        if quoted is None or not is_plausible(self.zone, packet, quoted):
            return None
        theirs = replace(quoted.sent, vlan=packet.tuple.vlan).reversed()
        found = self._find(packet, theirs)
        if found is None:
            return None
        try:
            how = self._current(*found)[1].transposition
        except _Former:
            return None
        src = how.src if packet.tuple.src == theirs.src else None
        outer = replace(how, src=src, src_port=None, dst_port=None)
        return self._leave(packet, outer, (), translate_quotation(self.frame, packet, quoted, how))

    def _hit(self, packet: Packet, pair: Pair, entry: Entry) -> Result:
        return self._use(packet, *self._current(pair, entry))

    def _current(self, pair: Pair, entry: Entry) -> tuple[Pair, Entry]:
        """The pair and entry as the policy of now has them, and fit for who sent the packet."""
        generations = self.engine._generations
        sets_changed = pair.sets_generation not in (None, self.engine._sets.generation)
        if sets_changed or any(generations[port] != then for port, then in pair.generations.items()):
            if self.engine.is_former(pair):
                self.engine._flows.remove(pair)
                raise _Former
            pair, entry = self._decide_again(pair, entry)
        if self.zone.kind is ZoneKind.OVERLAY and entry.vtep != self.vtep:
            raise _Drop(DropReason.WRONG_VTEP)
        return pair, entry

    def _decide_again(self, old: Pair, entry: Entry) -> tuple[Pair, Entry]:
        """The pair under the policy of now. Always the forward tuple, whichever side the packet is from.

        A pair that is denied stays, stale: without it, the next packet of the other side would look new.
        """
        flows = self.engine._flows
        first = old.forward
        if not self.engine.may_decide_again(self.now_s):
            raise _Drop(DropReason.REDECIDE_LATER)
        decision = self._decide(Subject(first.half.zone, first.half.tuple, old.headers, self.vtep,
                                        any_vtep=entry.reply, again=True))
        if decision.not_ours:
            raise _Drop(DropReason.NO_MAPPING)
        if entry.reply and self._has_left(first.half.zone, decision.reason):
            flows.remove(old)
            raise _Former
        if decision.reason:
            raise _Drop(decision.reason, decision)
        flows.remove(old)
        new = self._store(decision, old.headers, old)
        if not entry.reply:
            return new, new.forward
        if new.reply is None or new.reply.key != entry.key:
            raise _Drop(DropReason.FLOW_CHANGED)
        return new, new.reply

    def _has_left(self, zone: Zone, reason: DropReason) -> bool:
        """Whether who began a flow is no longer where it was: not behind the overlay, or its port is gone."""
        if reason is DropReason.UNKNOWN_PORT and zone.kind is ZoneKind.PORT:
            return zone.number not in self.engine._index.ports
        return reason is DropReason.UNKNOWN_SOURCE

    def _miss(self, packet: Packet) -> Result:
        decision = self._decide(Subject(self.zone, packet.tuple, packet.headers, self.vtep, plain=packet.is_plain))
        if decision.not_ours:
            return self._to_stack()
        if decision.reason:
            raise _Drop(decision.reason, decision)
        assert decision.forward is not None
        exit = decision.forward.transposition.exit
        begins = packet.makes_flow and not self.flooded and not isinstance(exit, header.Flood | header.ToSender)
        if decision.inspect and not (begins and is_inspectable(packet)):
            raise _Drop(DropReason.INSPECT_REFUSED)
        if not begins:
            self._arrive(exit)
            self._do_extras(packet, decision.extras, alone=True)
            return self._leave(packet, decision.forward.transposition, ())
        if decision.strict and decision.stateful and packet.is_tcp and not is_opening(packet.headers.tcp_flags):
            raise _Drop(DropReason.OUT_OF_STATE)
        pair = self._store(decision, packet.headers)
        return self._use(packet, pair, pair.forward, first=True)

    def _decide(self, subject: Subject) -> Decision:
        decision = decide(self.engine._index, self.engine.bindings, self.engine._sets, subject, self.now_s)
        self.engine.rule_hits.update(decision.hits)
        if decision.mapping is not None and decision.mapping.name:
            self.engine.mapping_hits[decision.mapping.name] += 1
        return decision

    def _store(self, decision: Decision, headers: Headers, old: Pair | None = None) -> Pair:
        generations = {port: self.engine._generations[port] for port in decision.ports}
        pair = pair_of(decision, headers, generations, self.now_s, old)
        pair.sets_generation = self.engine._sets.generation if decision.by_set else None
        try:
            self.engine._flows.put(pair, self.now_s, new=old is None, is_former=self.engine.is_former)
        except Refused as refused:
            raise _Drop(refused.reason) from None
        return pair

    def _use(self, packet: Packet, pair: Pair, entry: Entry, *, first: bool = False) -> Result:
        flows = tuple(e.key for e in pair.entries)
        if pair.inspect and not pair.released:
            if not self.inspected:
                if not is_inspectable(packet):
                    raise _Drop(DropReason.INSPECT_REFUSED)
                if self.engine.state.inspect_ifindex:
                    return Result(Verdict.INSPECT, self.frame, queue=pair.inspect.queue, flows=flows)
                if not pair.inspect.fail_open:
                    raise _Drop(DropReason.INSPECT_UNAVAILABLE)
            first = not entry.reply and not entry.packets
        flags = packet.headers.tcp_flags
        fit = pair.fits(entry, flags)
        if fit is Fit.NO:
            raise _Drop(DropReason.OUT_OF_STATE)
        pair.count(entry, flags if fit is Fit.YES else 0, len(self.frame), self.now_s)
        self._arrive(entry.transposition.exit)
        self._do_extras(packet, pair.extras, entry, first=first)
        return self._leave(packet, entry.transposition, flows)

    def _arrive(self, exit: Exit | None) -> None:
        """A packet for a port uses up what that may get."""
        match exit:
            case header.ToPort(id):
                port = self.engine._index.ports.get(id)
            case header.ToStack() if self.zone.kind is ZoneKind.HOST:
                port = self.engine._index.ports.get(self.zone.number)
            case _:
                return
        if port and not self.engine._buckets.take(port.id, "in", port.rate_in, self.now_s):
            raise _Drop(DropReason.RATE_LIMITED, port=port.id)

    def _do_extras(self, packet: Packet, extras: Extras, entry: Entry | None = None, *, first: bool = False,
                   alone: bool = False) -> None:
        """Count, tell and copy, for a packet of `entry` or (`alone`) of no flow."""
        journal = self.engine.journal
        journal.count(extras, len(self.frame), reply=entry is not None and entry.reply)
        every = extras.log_every
        due = alone or (first if not every or entry is None else entry.packets % every == 0)
        if extras.log is not None and due:
            journal.tell(extras.log, self.zone, packet.tuple, len(self.frame))
        index = self.engine._index
        if extras.mirror in index.ports and index.exit(extras.mirror) is None:
            self.mirror = extras.mirror

    def _leave(self, packet: Packet, how: Transposition, flows: tuple[FlowKey, ...],
               frame: bytes | None = None) -> Result:
        try:
            frame = header.apply(frame or self.frame, packet, how)
        except Undeliverable as undeliverable:
            raise _Drop(undeliverable.reason) from None
        mtu = mtu_of(self.engine._index, how.exit)
        if is_too_big(self.engine._index, how.exit, frame, packet):
            raise _Drop(DropReason.TOO_BIG, mtu=mtu)
        frame = clamp_mss(frame, packet, mtu)
        if isinstance(how.exit, header.ToSender):
            answer = answer_on_the_spot(self.frame, packet, how.exit.mac)
            return replace(_leaving(how.exit.to, answer, ()), verdict=Verdict.REPLY)
        if isinstance(how.exit, header.Flood):
            return self._spread(how.exit, frame, packet.tuple.vlan)
        return _leaving(how.exit, frame, flows)

    def _spread(self, exit: header.Flood, frame: bytes, vlan: int) -> Result:
        """Copies to all who may want a frame to a group. What came by an uplink is the host's stack's as well."""
        if not self.engine.may_flood(exit, self.now_s):
            if self.zone.kind is not ZoneKind.UPLINK:
                raise _Drop(DropReason.NOT_FLOODED)
            self.engine.drop_counts[DropReason.NOT_FLOODED] += 1
            return self._to_stack()
        targets = self.engine._index.flooded(exit, self.zone, vlan)
        return Result(Verdict.FLOOD, frame, uplink=exit.number, flooded=targets)

    def _to_stack(self) -> Result:
        return Result(Verdict.STACK, self.frame)


def _leaving(exit: Exit | None, frame: bytes, flows: tuple[FlowKey, ...]) -> Result:
    match exit:
        case header.ToPort(port):
            return Result(Verdict.REDIRECT_PORT, frame, port=port, flows=flows)
        case header.ToVtep(vtep, vni):
            return Result(Verdict.TUNNEL, frame, vni=vni, vtep=vtep, flows=flows)
        case header.ToUplink(uplink):
            return Result(Verdict.REDIRECT_UPLINK, frame, uplink=uplink, flows=flows)
        case header.ToWire(uplink):
            return Result(Verdict.REDIRECT_WIRE, frame, uplink=uplink, flows=flows)
        case _:
            return Result(Verdict.STACK, frame, flows=flows)


def answer_on_the_spot(frame: bytes, packet: Packet, mac: bytes) -> bytes:
    """To an ARP request, a neighbour solicitation, or an echo request to a gateway."""
    if packet.headers.nd:
        return nd_answer(frame, packet.tuple.dst, mac)
    return echo_answer(frame, packet, mac) if packet.is_ip else arp_answer(frame, mac)


def is_inspectable(packet: Packet) -> bool:
    """A whole packet, which a router would forward: the way through user space is a namespace that routes."""
    routable = not any(_is_unroutable(a) for a in (packet.tuple.src, packet.tuple.dst))
    return packet.part is Part.WHOLE and not packet.tuple.vlan and routable


def _is_unroutable(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.packed[0] in (0, 127) or address.packed[0] >= 224
    return address.is_multicast or address.is_link_local or int(address) < 1 << 32


def _is_same(old: Port, new: Port | None) -> bool:
    return new is not None and (old.ifindex, old.mac) == (new.ifindex, new.mac)


def _opens(packet: Packet) -> bool:
    return packet.is_tcp and packet.headers.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
