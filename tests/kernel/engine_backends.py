"""The two engines behind one face, so that a test can hold one against the other."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol
from unittest.mock import patch

import numpy as np
from engine_states import DYNAMIC_SET
from engine_steps import RELEASED, Join, Leave, change_set

import vfp.datapath.groups
from vfp.classifier import rule_cookie
from vfp.datapath.engine import Datapath, Limits
from vfp.datapath.records import LogEvent, MeterCount
from vfp.layout import BUDGETS, SWEEP, VTEP_NOBODY, PlaceKind, pack, pack_address
from vfp.model import Address, EngineState, Remote
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict
from vfp.reference.bindings import Block, Told
from vfp.reference.index import Index
from vfp.reference.layers import RuleRef
from vfp.reference.transposition import Exit, ToPort, ToStack, ToUplink, ToVtep, ToWire
from vfp.reference.vlans import untagged
from vfp.reference.zones import zone_of
from vfp.switching import flooded_vteps
from vfp.vteps import vtep_id


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one frame. `target` is a port id, uplink id or VNI; 0 for the rest. A dropped frame is empty.

    `told`: where the answer to a rejected frame goes; `frame` and `target` are the answer's then.
    """

    verdict: str
    reason: DropReason
    target: int
    frame: bytes
    mirror: int = 0                         # port that has a copy
    told: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """One entry of the flow table, without time. `place` says where it leaves: kind and number."""

    zone: int
    protocol: int
    src: str
    dst: str
    src_port: int
    dst_port: int
    reply: bool
    state: str
    packets: int
    bytes: int
    place: tuple[str, int, str]             # kind; interface or VNI; VTEP


@dataclass(frozen=True, slots=True, order=True)
class Bound:
    """One source translation, without time."""

    port: int
    pool: int
    protocol: int
    source: str
    source_port: int
    external: str
    external_port: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """That a source translation or a block of ports began or ended, without time."""

    kind: str
    port: int
    pool: int
    protocol: int
    internal: str
    internal_port: int
    external: str
    external_port: int
    size: int


def _recorded(told: Told) -> Recorded:
    if isinstance(told.what, Block):
        block = told.what
        return Recorded(told.kind, told.port, told.pool, 0, "", 0, str(block.address), block.first, block.size)
    assert told.inside is not None
    return Recorded(told.kind, told.port, told.pool, told.what.protocol, str(told.inside.source),
                    told.inside.source_port, str(told.what.address), told.what.port, 0)


@dataclass(frozen=True, slots=True)
class Logged:
    """A packet that a rule of `port` wanted told."""

    port: int
    cookie: int
    zone: int
    src: str
    dst: str
    src_port: int
    dst_port: int
    length: int


def outcome_of(result: Result) -> Outcome:
    """What the reference did, as both engines tell it."""
    target = {
        Verdict.REDIRECT_PORT: result.port, Verdict.REDIRECT_UPLINK: result.uplink, Verdict.TUNNEL: result.vni,
        Verdict.REDIRECT_WIRE: result.uplink, Verdict.FLOOD: result.uplink,
    }.get(result.verdict, 0)
    if result.answer is not None:
        told, target = _told(result.answer.exit)
        return Outcome(result.verdict.value, result.reason, target, result.answer.frame, told=told)
    target = result.queue if result.verdict is Verdict.INSPECT else target
    dropped = result.verdict is Verdict.DROP
    # The kernel has a tag beside the frame's bytes, once it was looked at.
    return Outcome(result.verdict.value, result.reason, target, b"" if dropped else untagged(result.frame)[0],
                   result.mirror)


def _told(exit: Exit) -> tuple[str, int]:
    match exit:
        case ToPort(port):
            return "port", port
        case ToUplink(uplink):
            return "uplink", uplink
        case ToWire(uplink):
            return "wire", uplink
        case ToVtep(_, vni):
            return "tunnel", vni
        case _:
            return "stack", 0


class Backend(Protocol):
    """An engine under test."""

    def load(self, state: EngineState) -> None:
        """Make `state` the policy in force."""

    def process(self, hook: Hook, number: int, frame: bytes, vtep: Address | None, now_s: float,
                inspected: int = 0) -> Outcome:
        """Take one frame through. `now_s` is on the monotonic clock, and ignored by an engine with its own.
        `inspected`: the frame comes back from user space.
        """

    def change_set(self, step: Join | Leave, now_s: float) -> None:
        """Members come into the dynamic set, or leave it."""

    def flows(self) -> list[Flow]:
        """All entries, sorted."""

    def bindings(self) -> list[Bound]:
        """All bindings, sorted."""

    def binding_log(self) -> Counter[Recorded]:
        """Records of bindings since the last `reset`."""

    def drop_counts(self) -> Counter[DropReason]:
        """Drops since the last `reset`."""

    def rule_hits(self) -> Counter[tuple[int, int, str]]:
        """(port, cookie, "hits" or "drops") to a count since the last `reset`."""

    def mapping_hits(self) -> Counter[str]:
        """Decisions by name of a mapping of the policy in force, since it first was in it."""

    def meters(self) -> dict[int, MeterCount]:
        """What each meter has counted, if anything."""

    def logs(self) -> list[Logged]:
        """Records since the last `reset` that rules wanted."""

    def sweep(self, now_s: float) -> None:
        """Age flows and bindings as of `now_s`."""

    def reset(self) -> None:
        """Forget policy, flows, bindings and fragments."""


# Budgets that histories of a few connections meet; the table itself has room.
LIMITS = Limits(flows=4096, rules=4096, bindings=1024, ports=64, space_entries=1024, mappings=256, half_open=2, udp=2)


class ReferenceBackend:
    """`vfp.reference`."""

    limits = LIMITS

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        limits = self.limits
        self.engine = Engine(EngineState(), flow_entries=limits.flows, half_open=limits.half_open, udp=limits.udp)

    def load(self, state: EngineState) -> None:
        self.engine.update(state)

    def process(self, hook: Hook, number: int, frame: bytes, vtep: Address | None, now_s: float,
                inspected: int = 0) -> Outcome:
        if inspected:
            zone = zone_of(hook, number)
            return outcome_of(self.engine.inspected(zone, frame, release=inspected == RELEASED, now_s=now_s))
        return outcome_of(self.engine.process(hook, number, frame, vtep=vtep, now_s=now_s))

    def change_set(self, step: Join | Leave, now_s: float) -> None:
        change_set(self.engine, step, now_s)

    def flows(self) -> list[Flow]:
        return sorted(
            Flow(int(view.key.zone), view.key.tuple.protocol, str(view.key.tuple.src), str(view.key.tuple.dst),
                 view.key.tuple.src_port, view.key.tuple.dst_port, view.reply, view.state.value, view.packets,
                 view.bytes, self._place(view.transposition.exit))
            for view in self.engine.flows(0.0))

    def bindings(self) -> list[Bound]:
        return sorted(
            Bound(each.key.port, each.key.pool, each.key.protocol, str(each.key.source), each.key.source_port,
                  str(each.external.address), each.external.port)
            for each in self.engine.bindings.live())

    def binding_log(self) -> Counter[Recorded]:
        return Counter(_recorded(told) for told in self.engine.bindings.log)

    def _named(self) -> set[Address]:
        """VTEPs of the policy in force: of others the kernel knows a number only, if they are IPv6."""
        state, places = self.engine.state, Index(self.engine.state).places()
        named: set[Address] = {place.vtep for place in places.values() if isinstance(place, Remote)}
        return named | flooded_vteps(state)

    def _place(self, exit: Exit | None) -> tuple[str, int, str]:
        match exit:
            case ToPort(id):
                return "port", PORT_IFINDEX + id, ""
            case ToUplink(id):
                return "uplink", UPLINK_IFINDEX + id, ""
            case ToWire(id):
                return "wire", UPLINK_IFINDEX + id, ""
            case ToVtep(vtep, vni):
                return "tunnel", vni, str(vtep) if vtep.version == 4 or vtep in self._named() else ""
            case ToStack():
                return "stack", 0, ""
        raise AssertionError(exit)

    def drop_counts(self) -> Counter[DropReason]:
        return +self.engine.drop_counts

    def rule_hits(self) -> Counter[tuple[int, int, str]]:
        counts: Counter[tuple[int, int, str]] = Counter()
        for what, refs in (("hits", self.engine.rule_hits), ("drops", self.engine.rule_drops)):
            for ref, count in refs.items():
                counts[ref.port, _cookie(ref), what] += count
        return +counts

    def mapping_hits(self) -> Counter[str]:
        named = {mapping.name for mapping in self.engine.state.mappings}
        return Counter({name: count for name, count in self.engine.mapping_hits.items() if name in named})

    def meters(self) -> dict[int, MeterCount]:
        packets, octets = self.engine.journal.packets, self.engine.journal.bytes
        return {meter: MeterCount(packets[meter, False], octets[meter, False], packets[meter, True],
                                  octets[meter, True]) for meter, _ in packets}

    def logs(self) -> list[Logged]:
        return [
            Logged(record.rule.port, _cookie(record.rule), int(record.zone), str(record.tuple.src),
                   str(record.tuple.dst), record.tuple.src_port, record.tuple.dst_port, record.length)
            for record in self.engine.journal.records]

    def sweep(self, now_s: float) -> None:
        self.engine.sweep(now_s)


def _cookie(ref: RuleRef) -> int:
    return rule_cookie(ref.layer, ref.group, ref.rule)


PORT_IFINDEX, UPLINK_IFINDEX = 10, 50    # as `engine_states` gives them
_MARK_INSPECTED = 0x51CE1A57                # of what enters the stack again (transpose.h)
_MARK_OFFSET = 8                            # of mark in struct __sk_buff
_CB_OFFSET = 48                             # of cb[0] in struct __sk_buff
_SK_BUFF_BYTES = 192
_VERDICTS = {
    PlaceKind.NONE: Verdict.DROP, PlaceKind.STACK: Verdict.STACK, PlaceKind.PORT: Verdict.REDIRECT_PORT,
    PlaceKind.UPLINK: Verdict.REDIRECT_UPLINK, PlaceKind.TUNNEL: Verdict.TUNNEL, PlaceKind.REPLY: Verdict.REPLY,
    PlaceKind.INSPECT: Verdict.INSPECT, PlaceKind.WIRE: Verdict.REDIRECT_WIRE, PlaceKind.FLOOD: Verdict.FLOOD,
}
_FORGOTTEN = (
    "flows", "bindings", "externals", "uses", "shares", "blocks", "contacts", "fragments", "rule_hits")


class BpfBackend:
    """The kernel's engine, by BPF_PROG_TEST_RUN of `vfp_probe`. One load serves many tests: `reset` in between."""

    limits = LIMITS

    def __init__(self, limits: Limits | None = None) -> None:
        self._datapath = Datapath.open(None, limits or self.limits)
        # Replaced groups are kept for a grace in which packets may still be in them. Here no packet is.
        self._no_grace = patch.object(vfp.datapath.groups, "GRACE_S", 0.0)
        self._no_grace.start()
        self._probe = self._datapath.program("vfp_probe")
        self._drops: Counter[DropReason] = Counter()
        self._hits: Counter[tuple[int, int, str]] = Counter()

    def close(self) -> None:
        """Let the kernel free it all."""
        self._no_grace.stop()
        self._datapath.close()

    def reset(self) -> None:
        self._datapath.apply(EngineState())
        self._datapath._groups.collect()
        for name in _FORGOTTEN:
            table = self._datapath._object.map(name)
            for key in [key for key, _ in table.items()]:
                table.delete(key)
        self._datapath.read_events()
        self._datapath.read_binding_events()
        self._log: Counter[Recorded] = Counter()
        self._datapath._object.map("budgets").update(bytes(4), pack(BUDGETS))
        self._drops, self._hits = self._all_drops(), self._all_hits()

    def load(self, state: EngineState) -> None:
        self._datapath.apply(state)

    def process(self, hook: Hook, number: int, frame: bytes, vtep: Address | None, now_s: float,
                inspected: int = 0) -> Outcome:
        context = bytearray(_SK_BUFF_BYTES)
        struct.pack_into("=II", context, _CB_OFFSET, int(zone_of(hook, number)) | inspected << 30,
                         self._vtep(vtep) if vtep else 0)
        run = self._probe.test_run(frame, ctx=bytes(context))
        place, reason, target = struct.unpack_from("=III", run.ctx, _CB_OFFSET + 8)
        mark, = struct.unpack_from("=I", run.ctx, _MARK_OFFSET)
        mirror = mark - PORT_IFINDEX if mark and mark != _MARK_INSPECTED else 0
        if place != PlaceKind.NONE and reason:
            base = {PlaceKind.PORT: PORT_IFINDEX, PlaceKind.UPLINK: UPLINK_IFINDEX, PlaceKind.WIRE: UPLINK_IFINDEX}.get(
                PlaceKind(place), 0)
            return Outcome(Verdict.DROP.value, DropReason(reason), target - base, run.data,
                           told=PlaceKind(place).name.lower())
        verdict = _VERDICTS[PlaceKind(place).of_model]
        if verdict is Verdict.REDIRECT_PORT:
            target -= PORT_IFINDEX
        elif verdict in (Verdict.REDIRECT_UPLINK, Verdict.REDIRECT_WIRE):
            target -= UPLINK_IFINDEX
        elif verdict not in (Verdict.TUNNEL, Verdict.INSPECT, Verdict.FLOOD):
            target = 0
        return Outcome(verdict.value, DropReason(reason), target,
                       b"" if verdict is Verdict.DROP else untagged(run.data)[0], mirror)

    def _vtep(self, vtep: Address) -> int:
        """As the hook at the VXLAN device makes it of an outer source."""
        if isinstance(vtep, IPv4Address):
            return vtep_id(vtep)
        found = self._datapath._object.map("vtep_ids").lookup(pack_address(vtep))
        return VTEP_NOBODY if found is None else int.from_bytes(found, "little")

    def change_set(self, step: Join | Leave, now_s: float) -> None:
        if isinstance(step, Join):
            self._datapath.add_members(DYNAMIC_SET, step.members, step.ttl_s, step.redecide)
        else:
            self._datapath.remove_members(DYNAMIC_SET, step.members, step.redecide)

    def flows(self) -> list[Flow]:
        flows = []
        for record in self._datapath.flows():
            by_link = record.place in ("port", "uplink", "wire")
            where = (record.place, record.ifindex if by_link else record.vni, str(record.vtep or ""))
            flows.append(Flow(
                int(record.zone_kind) << 24 | record.zone, record.protocol, str(record.src), str(record.dst),
                record.src_port, record.dst_port, record.reply, record.state, record.packets, record.bytes, where))
        return sorted(flows)

    def bindings(self) -> list[Bound]:
        return sorted(
            Bound(each.port, each.pool, each.protocol, str(each.source), each.source_port, str(each.external),
                  each.external_port)
            for each in self._datapath.bindings())

    def binding_log(self) -> Counter[Recorded]:
        for each in self._datapath.read_binding_events():
            inside = "" if each.size else str(each.internal)
            self._log[Recorded(each.kind, each.port, each.pool, each.protocol, inside, each.internal_port,
                               str(each.external), each.external_port, each.size)] += 1
        return self._log

    def drop_counts(self) -> Counter[DropReason]:
        return self._all_drops() - self._drops

    def rule_hits(self) -> Counter[tuple[int, int, str]]:
        return self._all_hits() - self._hits

    def mapping_hits(self) -> Counter[str]:
        return +Counter(self._datapath.mapping_hits())

    def meters(self) -> dict[int, MeterCount]:
        return {meter: count for meter, count in self._datapath.meters().items()
                if count.packets or count.reply_packets}

    def logs(self) -> list[Logged]:
        return [
            Logged(event.port, event.cookie, int(event.zone_kind) << 24 | event.zone, str(event.src), str(event.dst),
                   event.src_port, event.dst_port, event.length)
            for event in self._datapath.read_events() if isinstance(event, LogEvent)]

    def sweep(self, now_s: float) -> None:
        argument = pack(SWEEP, now_ns=int(now_s * 1e9))
        assert np.frombuffer(self._datapath.program("vfp_sweep").test_run(ctx=argument).ctx, SWEEP).size == 1

    def _all_drops(self) -> Counter[DropReason]:
        return Counter(self._datapath.drop_counts())

    def _all_hits(self) -> Counter[tuple[int, int, str]]:
        counts: Counter[tuple[int, int, str]] = Counter()
        for (port, cookie), hits in self._datapath.rule_hits().items():
            counts[port, cookie, "hits"] = hits.hits
            counts[port, cookie, "drops"] = hits.drops
        return counts
