"""The BPF engine of one host: makes the kernel's tables equal a wanted state, by difference, and reads them.

What the kernel holds is the only memory: a new process adopts the pinned maps, and the next `apply` writes just
what differs. The order of writes makes all ports switch from the old policy to the new one in one step:

1. mark dirty; new groups beside the old ones; changed spaces, pools, mappings, uplinks;
2. each changed port: its new program, for the turn that is not in force; members of static sets likewise, if more
   changes than one member;
3. the turn, in one write for the whole host: a packet reads it once, so it meets the old policy or the new one at every
   port that it concerns;
4. each changed port: its generation, which makes its flows decide again;
5. what is no longer wanted; groups that nobody uses and members of the old turn leave a second later, when no packet
   can still be in them.

A change of a set that rules name raises one generation for all sets, after it was written; flows whose decision a set
could have turned decide again.

If the process dies on the way, the mark makes the next one raise every generation, so no flow keeps a decision that a
half-made change has overtaken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from secrets import token_bytes
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from vfp.classifier import CompiledGroup
from vfp.compile import Compiler, Tables
from vfp.datapath.binding_log import BindingEvent, BindingLog
from vfp.datapath.bindings import BindingRecord, BindingTables
from vfp.datapath.capture import Captured, Capturing
from vfp.datapath.groups import GroupTable
from vfp.datapath.limits import Limits
from vfp.datapath.object import BpfMap, BpfObject, Program
from vfp.datapath.profiles import TimeoutProfiles
from vfp.datapath.records import (
    DropEvent,
    FlowOrigin,
    FlowRecord,
    Generations,
    InspectCounts,
    LogEvent,
    MeterCount,
    RuleHits,
    read_event,
    read_flows,
    read_meters,
)
from vfp.datapath.ring import RingBuffer
from vfp.datapath.select import FlowFilter, FlowPage, select
from vfp.datapath.sets import SetTable
from vfp.datapath.spaces import SpaceChange, SpaceTable, families_of
from vfp.datapath.switch import PortPrograms
from vfp.datapath.trace import Traced, dry_run, flow_key
from vfp.errors import TableFull
from vfp.layout import (
    FLOW,
    FLOW_KEY,
    HIT_KEY,
    HITS,
    MAPPING,
    METER,
    PORT,
    PREFIX,
    ROUTE,
    ROUTE_KEY,
    SETTINGS,
    SWEEP,
    UPLINK,
    FlowFlag,
    LocationKind,
    Ring,
    ZoneKind,
    pack,
    pack_address,
    unpack_address,
)
from vfp.model import Address, EngineState, Prefix
from vfp.reasons import DropReason
from vfp.reference.bindings import BindingKey, Block, External
from vfp.reference.packet import FlowTuple
from vfp.switching import changed_segments, ports_of_vlans
from vfp.timeouts import Timeouts
from vfp.underlays import Tunnelling

OBJECT = Path(__file__).with_name("vfp.bpf.o")

_ZERO = bytes(4)
_KEYED = (
    "links", "pools", "held", "mappings", "prefixes", "rewrites", "routes", "translations", "vtep_addresses",
    "vtep_ids", "hops", "segments", "stations", "flooded", "vlans", "underlay_numbers", "paths", "gateways",
)
_JUMPS = (                                  # enum jump
    "vfp_slow", "vfp_odd", "vfp_related", "vfp_leave", "vfp_reject", "vfp_full", "vfp_stale", "vfp_decided",
    "vfp_inspect", "vfp_come_back", "vfp_flood", None, "vfp_encapsulate", "vfp_decapsulate", "vfp_particular",
)

ANSWERS_PER_S = 1000
"""ICMP answers to rejected packets, of one CPU (as Linux has it in icmp_msgs_per_sec)."""
ANSWERS_BURST = 100


class Hook(StrEnum):
    """Where a packet enters; each has a program (docs/engine.md)."""

    PORT_OUT = "port_out"
    PORT_IN = "port_in"
    OVERLAY_IN = "overlay_in"
    UPLINK_IN = "uplink_in"
    UNDERLAY_IN = "underlay_in"             # ingress of an underlay's link that is no uplink
    SHAPED_IN = "shaped_in"                 # ingress of where the shaper's queues lead to
    INSPECT_IN = "inspect_in"               # these three: of the detour by user space, and not in the host's own links
    INSPECT_OUT = "inspect_out"
    INSPECTED = "inspected"


_ZONES = {Hook.PORT_OUT: ZoneKind.PORT, Hook.PORT_IN: ZoneKind.HOST, Hook.OVERLAY_IN: ZoneKind.OVERLAY,
          Hook.UPLINK_IN: ZoneKind.UPLINK}


class Swept(NamedTuple):
    """Flows and bindings that a sweep looked at, and how many of them left."""

    seen: int
    removed: int


class Datapath(AbstractContextManager["Datapath"]):
    """The engine's maps and programs; closing leaves pins and attached programs as they are."""

    def __init__(self, loaded: BpfObject, limits: Limits, timeouts: Timeouts) -> None:
        """Use `open`."""
        self._object = loaded
        self._limits = limits
        self._ring: RingBuffer | None = None
        self._shadow = {name: dict(loaded.map(name).items()) for name in _KEYED}
        self._uplinks = {key: value for key, value in loaded.map("uplinks").items() if any(value)}
        self._meters = {int.from_bytes(key, "little") for key, _ in loaded.map("meters").items()}
        self._groups = GroupTable(
            loaded.map("groups"), loaded.map("buckets"), loaded.map("filter"), loaded.map("rules")
        )
        self._bindings = BindingTables(loaded)
        self._spaces = SpaceTable(loaded.map("spaces"), limits.space_entries)
        self._named: frozenset[int] | None = None       # sets that rules name; None: not known
        self._one_at_a_time = threading.RLock()         # members of sets come from another thread than states
        settings = np.frombuffer(self._map("config").lookup(_ZERO) or bytes(SETTINGS.itemsize), SETTINGS)[0]
        secret = settings["secret"].tobytes() if settings["secret"].any() else token_bytes(16)
        self._compiler = Compiler(secret)
        self._profiles = TimeoutProfiles(loaded.map("timeouts"), loaded.map("ports"), timeouts)
        self._settings: dict[str, Any] = {
            **self._profiles.shortest(), **limits.settings(), "secret": np.frombuffer(secret, np.uint64),
            "tunnel_ifindex": int(settings["tunnel_ifindex"]), "inspect_ifindex": int(settings["inspect_ifindex"]),
            "turn": int(settings["turn"]), "shaper_ifindex": int(settings["shaper_ifindex"]),
            "tunnel_port": int(settings["tunnel_port"]),
            "underlays": tuple(map(int, settings["underlays"])),
            "answer_ns": int(1e9 / ANSWERS_PER_S), "answer_burst_ns": int(1e9 * (ANSWERS_BURST - 1) / ANSWERS_PER_S),
            "sets_generation": int(settings["sets_generation"]),
        }
        self._capturing = Capturing(loaded)
        self._binding_log = BindingLog(loaded)
        self._ports = PortPrograms(loaded, self._capturing, self._settings["turn"])
        self._sets = SetTable(loaded.map("sets"), loaded.map("set_lengths"), self._settings["turn"])
        self._groups.retire_unused(self._ports.groups_used())
        self._interrupted = bool(settings["dirty"])
        self._former_vteps: dict[bytes, bytes] = {}
        self._hits_of_others = True             # perhaps: of ports or mappings that are gone
        self._mapping_names: dict[int, str] | None = None       # by cookie; None: not known yet
        self._write_settings(dirty=self._interrupted)

    @classmethod
    def open(cls, pin_dir: Path | None, limits: Limits | None = None, timeouts: Timeouts | None = None) -> Self:
        """Load the engine, adopting the maps that are pinned in `pin_dir`. None: nothing is pinned (tests).

        Raises:
            DatapathError: the kernel refused; IncompatiblePin: pinned maps have other sizes.
        """
        limits = limits or Limits()
        with ExitStack() as undo:
            loaded = undo.enter_context(BpfObject.load(OBJECT, max_entries=limits.by_map(), pin_dir=pin_dir))
            for index, program in enumerate(_JUMPS):
                if program is not None:
                    loaded.map("jumps").set_fd(index, loaded.program(program).fd)
            datapath = cls(loaded, limits, timeouts or Timeouts())
            undo.pop_all()
            return datapath

    @staticmethod
    def unpin(pin_dir: Path) -> None:
        """Remove every pin; maps and programs go with their last user."""
        BpfObject.unpin(pin_dir)

    def close(self) -> None:
        """Close all descriptors. Idempotent."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        self._capturing.close()
        self._binding_log.close()
        self._object.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Programming

    def apply(self, state: EngineState) -> None:
        """Make the tables equal `state`.

        Raises:
            PolicyError: the state is wrong or too large for a table; nothing was written.
            DatapathError: the kernel refused a write; the next `apply` mends.
        """
        tables = self._compiler.compile(state, self._limits.ports)
        with self._one_at_a_time:
            another = {port.id for port in tables.ports.values() if self._ports.is_another(port)}
            if another:                         # what the ones before had goes with them, and is not inherited
                self._apply(replace(tables, ports={
                    id: port for id, port in tables.ports.items() if id not in another}))
            self._apply(tables)

    def _apply(self, tables: Tables) -> None:
        self._check_room(tables)
        spaces = self._spaces.change(tables.spaces)
        timeouts = self._profiles.plan(tables.ports)
        tables.ports = timeouts.ports
        self._hits_of_others |= self._mapping_names is None or bool(self._mapping_names.keys() - tables.mapping_names)
        self._mapping_names = tables.mapping_names
        stale = self._ports_to_bump(tables, self._spaces_to_bump(tables, spaces))
        named = frozenset(number for port in tables.ports.values() for number in port.sets)
        self._sets.expect(tables.sets)
        if not spaces.writes and not self._differs(tables, stale):
            self._spaces.put(spaces)            # the same rows, in other chunks: after a restart
            self._spaces.remove(spaces)
            self._named = named
            return
        self._profiles.write(timeouts)
        self._settings |= self._profiles.shortest()
        self._write_settings(dirty=True)
        purge = self._interrupted or bool(
            self._ports.ids - tables.ports.keys() or self._shadow["pools"].keys() - tables.maps["pools"].keys())
        self._interrupted = True            # until it has come to its end
        self._sets.settle()
        self._groups.add(tables.groups.values())
        self._put("rewrites", tables)
        self._put("translations", tables)
        self._put("hops", tables)
        self._add_meters(tables.meters)
        left = self._left_behind(tables)
        for name in ("vtep_addresses", "vtep_ids", "held", "pools"):
            self._put(name, tables)
        for name in ("held", "pools"):
            self._remove(name, tables, keep=left)
        self._change_spaces(tables, spaces)
        for name in (
            "mappings", "prefixes", "flooded", "stations", "segments", "vlans", "underlay_numbers", "paths", "gateways",
        ):
            self._put(name, tables)
            self._remove(name, tables)
        self._write_underlays(tables.tunnelling)
        self._write_uplinks(tables.maps["uplinks"])
        changed = self._sets.changed(tables.sets)
        before = self._named if self._named is not None else changed if self._ports.ids else frozenset()
        if changed & named & before:
            self._raise_sets_generation()
        turning = (
            bool(stale) or self._ports.ids != tables.ports.keys() or not self._sets.is_one_step(tables.sets, before)
        )
        self._sets.put(tables.sets, before if turning else ())
        self._named = None                      # until all ports have the rules that name them
        self._settings["tunnel_ifindex"] = tables.tunnel_ifindex
        self._settings["inspect_ifindex"] = tables.inspect_ifindex
        self._settings["shaper_ifindex"] = tables.shaper
        if turning:
            capped = self._ports.are_newly_capped(tables)
            self._ports.prepare(tables, stale)
            self._turn_over()
            self._ports.raise_generations(tables, stale)
            if capped:
                self._run_sweep("vfp_tally")
        self._put("links", tables)
        self._remove("links", tables)
        for port_id in self._ports.ids - tables.ports.keys():
            self._ports.drop(port_id)
            self._hits_of_others = True
        self._spaces.remove(spaces)
        vteps = self._shadow["vtep_addresses"]
        self._former_vteps |= {key: vteps[key] for key in vteps.keys() - tables.maps["vtep_addresses"].keys()}
        for name in ("pools", "rewrites", "routes", "translations", "vtep_addresses", "vtep_ids", "hops"):
            self._remove(name, tables)
        if purge:
            self._run_sweep("vfp_purge")
        self._remove_meters(tables.meters)
        self._groups.retire_unused(self._ports.groups_used())
        self._named = named
        self._profiles.settle(timeouts)
        self._settings |= self._profiles.shortest()
        self._write_settings(dirty=False)
        self._interrupted = False

    def add_members(
        self, set_id: int, members: Iterable[Prefix], ttl_s: float | None = None, redecide: bool = True
    ) -> None:
        """Put members into a dynamic set, or give those that are there another end; a few map writes each.

        `ttl_s`: after it, members match no new flow; those that exist stay until the member is removed. None: no end.
        `redecide` False: flows that exist are not decided again, which is enough where sets only ever open.

        Raises:
            PolicyError: the set is not one of the state's dynamic ones, or full; nothing was written.
            DatapathError: the kernel refused a write; the next `apply` mends.
        """
        with self._one_at_a_time:
            rows, matters = self._sets.to_add(set_id, members, ttl_s)
            with self._changing_set(set_id, matters and redecide):
                self._sets.add(rows)

    def remove_members(self, set_id: int, members: Iterable[Prefix], redecide: bool = True) -> None:
        """Take members out of a dynamic set; those that are not in it are passed over. As `add_members`."""
        with self._one_at_a_time:
            keys = self._sets.to_remove(set_id, members)
            with self._changing_set(set_id, bool(keys) and redecide):
                self._sets.remove(set_id, keys)

    def members(self, set_id: int) -> dict[Prefix, float | None]:
        """The members of a set and when each ends, s on the monotonic clock; None: never. Ended ones are among them."""
        with self._one_at_a_time:
            return self._sets.members(set_id)

    def program_fd(self, hook: Hook) -> int:
        """Descriptor to attach at TC; stays this object's."""
        return self._object.program(f"vfp_{hook}").fd

    def program(self, hook: Hook | str) -> Program:
        """The program of a hook, or one by name (`vfp_probe` for test runs)."""
        return self._object.program(f"vfp_{hook}" if isinstance(hook, Hook) else hook)

    # Looking inside

    def flows(self) -> list[FlowRecord]:
        """Every half of every pair."""
        return self.select_flows(FlowFilter()).flows

    def select_flows(self, wanted: FlowFilter) -> FlowPage:
        """The halves that are asked for."""
        keys, values = self._map("flows").lookup_all()
        found = select(keys, values, wanted)
        return FlowPage(self._read_flows(found.keys, found.values), found.total)

    def flow_at(self, hook: Hook, number: int, what: FlowTuple) -> FlowRecord | None:
        """The entry that a packet of `what` hits at a hook, whatever its MAC and VTEP."""
        key = flow_key(_ZONES[hook], number, what)
        value = self._map("flows").lookup(key)
        if value is None:
            return None
        return self._read_flows(np.frombuffer(key, np.uint8)[None], np.frombuffer(value, np.uint8)[None])[0]

    def _read_flows(self, keys: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8]) -> list[FlowRecord]:
        _, records = self._map("ports").lookup_all()
        generations = np.ascontiguousarray(records).reshape(-1).view(PORT)["generation"]
        policy = Generations(generations, self._settings["sets_generation"])
        return list(read_flows(keys, values, time.monotonic_ns(), policy, self._vteps()))

    def _vteps(self) -> dict[int, Address]:
        """IPv6 VTEPs by id; also those that are no longer named: there may be flows to them."""
        rows = {**self._former_vteps, **self._shadow["vtep_addresses"]}
        return {int.from_bytes(key, "little"): unpack_address(value, 6) for key, value in rows.items()}

    def trace(self, hook: Hook, number: int, frame: bytes, vtep: Address | None = None) -> Traced:
        """What the programs would do with a frame: a dry run on the tables as they are, which changes none.

        Raises:
            KernelRefused: EINVAL when the frame is too long for a test run (about 3,500 bytes).
        """
        return dry_run(self._object, _ZONES[hook], number, frame, vtep, self._vteps())

    def bindings(self) -> list[BindingRecord]:
        """Every source translation there is."""
        return self._bindings.records(time.monotonic_ns())[0]

    def select_bindings(self, pools: Collection[int] | None, limit: int) -> tuple[list[BindingRecord], int]:
        """At most `limit` source translations of these pools (None: all), and how many there are."""
        return self._bindings.records(time.monotonic_ns(), pools, limit)

    def pool_use(self) -> dict[int, list[tuple[Address, int, int]]]:
        """By pool that has bindings, (external address, protocol, bindings)."""
        return self._bindings.use()

    def block_use(self) -> dict[int, list[tuple[Address, int]]]:
        """By pool that has given blocks of ports, (external address, blocks)."""
        return self._bindings.block_use()

    def binding(self, key: BindingKey) -> External | None:
        """The external side that a source translation has now."""
        return self._bindings.find(key)

    def binding_at(self, external: External) -> BindingKey | None:
        """Who is behind the external side of a source translation."""
        return self._bindings.at(external)

    def block_holder(self, block: Block) -> tuple[int, int] | None:
        """The (port, pool) that has a block of external ports."""
        return self._bindings.block_holder(block)

    def binding_count(self, port: int, pool: int) -> int:
        """Bindings that a port has in a pool."""
        return self._bindings.count(port, pool)

    def has_contact(self, key: BindingKey, remote: Address) -> bool:
        """Whether the internal side of a binding with address-dependent filtering has sent to an address of late."""
        return self._bindings.has_contact(key, remote)

    def capture(self, ports: Collection[int], packet_bytes: int) -> None:
        """Copy the packets of these ports, up to `packet_bytes` of each, until told otherwise; no port: none."""
        self._capturing.set(ports, packet_bytes)

    def captures_fd(self) -> int:
        """Readable when `read_captures` has something."""
        return self._capturing.ring().fd

    def read_captures(self) -> list[Captured]:
        """Copies since the last call, at most some hundred; does not wait."""
        return self._capturing.read()

    def lost(self, ring: Ring) -> int:
        """Records that found no room in a ring since the maps were made."""
        counts = self._map("lost").lookup_cpus(int(ring).to_bytes(4, "little"))
        return 0 if counts is None else int(np.ascontiguousarray(counts).view(np.uint64).sum())

    def flow_origin(
        self, zone: int, protocol: int, src: Address, dst: Address, src_port: int, dst_port: int
    ) -> FlowOrigin | None:
        """The pair of a packet as it came, before any translation; None: there is none."""
        key = pack(FLOW_KEY, zone=zone, family=src.version, protocol=protocol, sport=src_port, dport=dst_port,
                   src=pack_address(src), dst=pack_address(dst))
        found = self._map("flows").lookup(key)
        if found is None:
            return None
        flow = np.frombuffer(found, FLOW)[0]
        reply = bool(flow["flags"] & FlowFlag.REPLY)
        return FlowOrigin(flow["pair"].tobytes() if reply else key, reply, int(flow["ports"][0]))

    def destinations(self, ports: Iterable[int]) -> set[tuple[int, Address]]:
        """(port, address) of whom these ports have a flow to, that they began."""
        keys, values = self._map("flows").lookup_all()
        key_rows = np.ascontiguousarray(keys).reshape(-1).view(FLOW_KEY)
        flow_rows = np.ascontiguousarray(values).reshape(-1).view(FLOW)
        theirs = np.isin(flow_rows["ports"][:, 0], list(ports)) & ((flow_rows["flags"] & FlowFlag.REPLY) == 0)
        return {
            (int(flow["ports"][0]), unpack_address(key["dst"].tobytes(), int(key["family"])))
            for key, flow in zip(key_rows[theirs], flow_rows[theirs], strict=True)
        }

    def drop_counts(self) -> dict[DropReason, int]:
        """Packets dropped since the maps were made, by reason."""
        _, values = self._map("drops").lookup_all()
        totals = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint64).sum(axis=1)
        return {reason: int(totals[reason]) for reason in DropReason}

    def inspect_counts(self) -> InspectCounts:
        """Packets to user space and back since the maps were made."""
        _, values = self._map("inspections").lookup_all()
        totals = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint64).sum(axis=1)
        return InspectCounts(*(int(total) for total in totals))

    def rule_hits(self) -> dict[tuple[int, int], RuleHits]:
        """(port id, rule cookie) to decisions and drops."""
        return {key: hits for key, hits in self._hits() if key[0]}

    def mapping_hits(self) -> dict[str, int]:
        """Decisions by each mapping, by `Mapping.name`; those of one name count together, without one not at all."""
        counted = {cookie: hits.hits for (port, cookie), hits in self._hits() if not port}
        return {name: counted.get(cookie, 0) for cookie, name in (self._mapping_names or {}).items()}

    def _hits(self) -> Iterator[tuple[tuple[int, int], RuleHits]]:
        keys, values = self._map("rule_hits").lookup_all()
        key_rows = np.ascontiguousarray(keys).reshape(-1).view(HIT_KEY)
        hit_rows = np.ascontiguousarray(values).reshape(-1).view(HITS)
        for key, hit in zip(key_rows, hit_rows, strict=True):
            yield (int(key["port"]), int(key["cookie"])), RuleHits(int(hit["hits"]), int(hit["drops"]))

    def mark(self) -> int:
        """Mark of a packet that the hook at a port's egress lets pass: who sends for the engine gives it (SO_MARK)."""
        return int(self._settings["secret"][0]) & 0xFFFFFFFF | 1

    def meters(self) -> dict[int, MeterCount]:
        """What each meter that a rule names has counted."""
        return read_meters(*self._map("meters").lookup_all())

    def events_fd(self) -> int:
        """Readable when `read_events` has something."""
        return self._events().fd

    def read_events(self) -> list[DropEvent | LogEvent]:
        """Records of packets since the last call; does not wait."""
        return [read_event(raw) for raw in self._events().consume()]

    def bindings_fd(self) -> int:
        """Readable when `read_binding_events` has something."""
        return self._binding_log.ring().fd

    def read_binding_events(self) -> list[BindingEvent]:
        """Records of bindings of pools with `log` since the last call; does not wait."""
        return self._binding_log.read()

    def sweep(self) -> int:
        """`age` and `tidy`; returns how many flows and bindings left."""
        removed = self.age().removed
        self.tidy()
        return removed

    def age(self) -> Swept:
        """Look at every flow and binding; those whose time is over leave. Any thread may call it."""
        return self._run_sweep("vfp_sweep")

    def reap(self) -> Swept:
        """Remove pairs that closed and whose time is over; costs what there is to remove. Any thread may call it."""
        return self._run_sweep("vfp_reap")

    def tidy(self) -> None:
        """Free groups that were retired, and counters of ports that are gone; once a second."""
        self._groups.collect()
        if self._one_at_a_time.acquire(blocking=False):     # else a change of sets does it
            try:
                self._sets.collect()
            finally:
                self._one_at_a_time.release()
        if self._hits_of_others:
            self._forget_hits()

    # Private: one step each

    def _run_sweep(self, program: str) -> Swept:
        run = self._object.program(program).test_run(ctx=bytes(SWEEP.itemsize))
        result = np.frombuffer(run.ctx, SWEEP)[0]
        return Swept(int(result["flows_seen"]) + int(result["bindings_seen"]),
                     int(result["flows_removed"]) + int(result["bindings_removed"]))

    def _forget_hits(self) -> None:
        """Take out the counters of ports and mappings that are gone: their ids and names will be given again."""
        hits = self._map("rule_hits")
        keys, _ = hits.lookup_all()
        rows = np.ascontiguousarray(keys).reshape(-1).view(HIT_KEY)
        mapped = rows["port"] == 0
        if self._mapping_names is not None:
            mapped &= np.isin(rows["cookie"], np.array(list(self._mapping_names), np.uint64))
        gone = keys[~(mapped | np.isin(rows["port"], list(self._ports.ids)))]
        if len(gone):
            hits.delete_batch(np.ascontiguousarray(gone), len(gone))
        self._hits_of_others = False

    def _map(self, name: str) -> BpfMap:
        return self._object.map(name)

    def _events(self) -> RingBuffer:
        if self._ring is None:
            self._ring = RingBuffer(self._map("events").fd)
        return self._ring

    def _write_settings(self, dirty: bool) -> None:
        self._map("config").update(_ZERO, pack(SETTINGS, **self._settings, dirty=int(dirty)))

    def _raise_sets_generation(self) -> None:
        self._settings["sets_generation"] = self._settings["sets_generation"] % 0xFFFFFFFF + 1

    @contextmanager
    def _changing_set(self, set_id: int, matters: bool) -> Iterator[None]:
        """Around a change of members: if it matters to flows that exist, they decide again, now or after a crash."""
        if self._named is not None and set_id not in self._named:
            matters = False
        if not matters:
            yield
            return
        self._write_settings(dirty=True)
        interrupted, self._interrupted = self._interrupted, True
        yield
        self._raise_sets_generation()
        self._write_settings(dirty=interrupted)
        self._interrupted = interrupted

    def _check_room(self, tables: Tables) -> None:
        limits = self._limits
        for name, limit, option in (
            ("mappings", limits.mappings, "mappings"), ("vtep_ids", limits.vteps, "vteps"),
            ("paths", limits.vteps, "vteps"),
            ("routes", limits.routes, "routes"),
            ("links", limits.ports + 256, "ports"), ("meters", limits.meters, "meters"),
            ("pools", limits.pools, "pools"), ("stations", limits.stations, "stations"),
            ("segments", limits.segments, "segments"), ("flooded", limits.flooded, "flooded"),
            ("hops", limits.hops, "hops"), ("vlans", limits.vlans, "vlans"),
        ):
            if (wanted := len(tables.meters if name == "meters" else tables.maps[name])) > limit:
                raise TableFull(f"table {name}: {wanted} entries wanted, {limit} fit; raise Limits.{option}")
        self._sets.check_room(tables.sets)
        self._groups.check_room(tables.groups.values())

    def _changed(self, name: str, tables: Tables) -> set[bytes]:
        """Keys whose old value goes: changed or removed, not added."""
        wanted = tables.maps[name]
        return {key for key, value in self._shadow[name].items() if wanted.get(key) != value}

    def _spaces_to_bump(self, tables: Tables, change: SpaceChange) -> frozenset[int]:
        """Spaces whose flows may go elsewhere now. What is only added concerns no flow, unless routes led there."""
        before, after = self._shadow["routes"], tables.maps["routes"]
        if not before or (before == after and not change.grown):
            return change.spaces
        routed = families_of(before)
        grown = change.grown | families_of(after.keys() - before.keys())
        return change.spaces.union((space for space, _ in (*(routed & grown), *families_of(
            self._changed("routes", tables)))))

    def _ports_to_bump(self, tables: Tables, spaces: frozenset[int]) -> set[int]:
        """Ports whose decisions may be outdated: program, record, or something a rule of theirs refers to.

        `spaces`: those that change.
        """
        if (self._interrupted or tables.tunnel_ifindex != self._settings["tunnel_ifindex"]
                or self._tunnelling_changed(tables.tunnelling)):
            return set(tables.ports)
        pools = {int.from_bytes(key, "little") for key in self._changed("pools", tables)}
        mapped = {
            int(np.frombuffer(self._shadow["mappings"][key], MAPPING)[0]["port"])
            for key in self._changed("mappings", tables)
        }
        behind_prefixes = {
            int(np.frombuffer(self._shadow["prefixes"][key], PREFIX)[0]["space"])
            for key in self._changed("prefixes", tables)
        }
        inhabitants = self._spaces.ports_in(spaces | behind_prefixes) | self._exits_of(spaces)
        switched = changed_segments(self._shadow, tables.maps)
        spaces |= switched.spaces
        inhabitants |= switched.ports | ports_of_vlans(self._shadow["vlans"].keys() ^ tables.maps["vlans"].keys())
        uplinks_changed = self._uplinks_changed(tables.maps["uplinks"])
        return {
            port.id
            for port in tables.ports.values()
            if uplinks_changed or port.id in mapped or port.id in inhabitants or port.spaces & spaces
            or port.pools & pools or not self._ports.has(port)
        }

    def _exits_of(self, spaces: frozenset[int]) -> set[int]:
        """Ports to which a route of these spaces leads."""
        routes = self._shadow["routes"]
        if not spaces or not routes:
            return set()
        to = np.frombuffer(b"".join(routes.values()), ROUTE)["to"]
        theirs = np.isin(np.frombuffer(b"".join(routes), ROUTE_KEY)["space"], list(spaces))
        return set(to["port"][theirs & (to["kind"] == LocationKind.PORT)].tolist())

    def _differs(self, tables: Tables, stale: set[int]) -> bool:
        return bool(
            stale or self._interrupted or self._meters != tables.meters or self._ports.ids != tables.ports.keys()
            or any(self._shadow[name] != tables.maps[name] for name in _KEYED) or self._sets.changed(tables.sets)
            or self._uplinks_changed(tables.maps["uplinks"])
            or tables.tunnel_ifindex != self._settings["tunnel_ifindex"]
            or tables.inspect_ifindex != self._settings["inspect_ifindex"]
            or tables.shaper != self._settings["shaper_ifindex"] or self._tunnelling_changed(tables.tunnelling)
        )

    def _put(self, name: str, tables: Tables) -> None:
        shadow = self._shadow[name]
        changed = {key: value for key, value in tables.maps[name].items() if shadow.get(key) != value}
        if changed:
            self._map(name).update_batch(b"".join(changed), b"".join(changed.values()), len(changed))
            shadow.update(changed)

    def _remove(self, name: str, tables: Tables, keep: frozenset[bytes] = frozenset()) -> None:
        shadow = self._shadow[name]
        gone = [key for key in shadow if key not in tables.maps[name] and key not in keep]
        if gone:
            self._map(name).delete_batch(b"".join(gone), len(gone))
            for key in gone:
                del shadow[key]

    def _add_meters(self, wanted: frozenset[int]) -> None:
        """Before rules name them: the engine counts only on meters that are there."""
        new = sorted(wanted - self._meters)
        if new:
            keys = b"".join(meter.to_bytes(4, "little") for meter in new)
            self._map("meters").update_batch(keys, bytes(METER.itemsize * len(new)), len(new))
            self._meters |= set(new)

    def _remove_meters(self, wanted: frozenset[int]) -> None:
        """No rule names them any more."""
        gone = sorted(self._meters - wanted)
        if gone:
            self._map("meters").delete_batch(b"".join(meter.to_bytes(4, "little") for meter in gone), len(gone))
            self._meters &= wanted

    def _tunnelling_changed(self, wanted: Tunnelling) -> bool:
        rows = tuple(value for _, value in sorted(self._map("underlays").items()))
        return rows != wanted.rows or any(self._settings[name] != value for name, value in wanted.settings.items())

    def _write_underlays(self, wanted: Tunnelling) -> None:
        for number, row in enumerate(wanted.rows):
            self._map("underlays").update(number.to_bytes(4, "little"), row)
        self._settings |= wanted.settings

    def _uplinks_changed(self, wanted: dict[bytes, bytes]) -> bool:
        return self._uplinks != wanted

    def _write_uplinks(self, wanted: dict[bytes, bytes]) -> None:
        uplinks = self._map("uplinks")
        for key in self._uplinks.keys() - wanted.keys():
            uplinks.update(key, bytes(UPLINK.itemsize))
        for key, value in wanted.items():
            uplinks.update(key, value)
        self._uplinks = dict(wanted)

    def _left_behind(self, tables: Tables) -> frozenset[bytes]:
        """Keys of pools that the old policy alone refers to: they go when it is no longer in force."""
        pools = set().union(*(port.pools for port in tables.ports.values()))
        return frozenset(key for key in self._shadow["pools"] if int.from_bytes(key, "little") not in pools)

    def _change_spaces(self, tables: Tables, change: SpaceChange) -> None:
        """An entry that leaves a space which stays goes now: no new policy may meet it. Whole spaces go after."""
        stay = frozenset(tables.spaces).union(*(port.spaces for port in tables.ports.values()))
        self._spaces.put(change)
        self._put("routes", tables)
        self._spaces.remove(change, stay)
        self._remove("routes", tables, keep=frozenset(
            key for key in self._shadow["routes"] if int(np.frombuffer(key, ROUTE_KEY)[0]["space"]) not in stay))

    def _turn_over(self) -> None:
        turned = {**self._settings, "turn": self._settings["turn"] ^ 1}
        self._map("config").update(_ZERO, pack(SETTINGS, **turned, dirty=1))
        self._settings = turned
        self._ports.turn = turned["turn"]
        self._sets.turned(turned["turn"])


__all__ = ["CompiledGroup", "Datapath", "Hook", "Limits", "Timeouts"]
