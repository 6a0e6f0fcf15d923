"""The BPF engine of one host: makes the kernel's tables equal a wanted state, by difference, and reads them.

What the kernel holds is the only memory: a new process adopts the pinned maps, and the next `apply` writes just
what differs. The order of writes makes each port switch from its old policy to the new one in one step:

1. mark dirty; new groups beside the old ones; changed spaces, pools, mappings, uplinks;
2. each changed port: its program in one map write, then its generation, which makes its flows decide again;
3. what is no longer wanted; groups that nobody uses leave a second later, when no packet can still be in them.

If the process dies on the way, the mark makes the next one raise every generation, so no flow keeps a decision that a
half-made change has overtaken.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from secrets import token_bytes
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vfp.classifier import CompiledGroup
from vfp.compile import CompiledPort, Compiler, Tables
from vfp.datapath.capture import Captured, Capturing
from vfp.datapath.filter import filter_words
from vfp.datapath.groups import GroupTable
from vfp.datapath.object import BpfMap, BpfObject, Program
from vfp.datapath.records import DropEvent, FlowRecord, RuleHits, read_event, read_flows
from vfp.datapath.ring import RingBuffer
from vfp.datapath.select import FlowFilter, FlowPage, select
from vfp.datapath.trace import Traced, dry_run, find_binding, flow_key, is_held
from vfp.errors import TableFull
from vfp.layout import (
    HIT_KEY,
    HITS,
    LOCATION,
    MAPPING,
    PORT,
    PROGRAM,
    SETTINGS,
    SPACE_KEY,
    SWEEP,
    LocationKind,
    Ring,
    ZoneKind,
    pack,
)
from vfp.model import EngineState
from vfp.reasons import DropReason
from vfp.reference.bindings import BindingKey, External
from vfp.reference.packet import FlowTuple

OBJECT = Path(__file__).with_name("vfp.bpf.o")

_ZERO = bytes(4)
_KEYED = ("links", "pools", "mappings", "spaces", "rewrites")


class Hook(StrEnum):
    """Where a packet enters; each has a program (docs/engine.md)."""

    PORT_OUT = "port_out"
    PORT_IN = "port_in"
    OVERLAY_IN = "overlay_in"
    UPLINK_IN = "uplink_in"


_ZONES = {Hook.PORT_OUT: ZoneKind.PORT, Hook.PORT_IN: ZoneKind.HOST, Hook.OVERLAY_IN: ZoneKind.OVERLAY,
          Hook.UPLINK_IN: ZoneKind.UPLINK}


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of the tables, in entries. A full table refuses; it never evicts."""

    flows: int = 262144                     # halves: a connection has two
    rules: int = 262144                     # a change of a whole group needs room for old and new side by side
    bindings: int = 65536
    ports: int = 4096
    space_entries: int = 131072
    mappings: int = 65536

    def by_map(self) -> dict[str, int]:
        """Entries of each map."""
        return {
            "flows": self.flows, "rules": self.rules, "buckets": self.rules, "filter": filter_words(self.rules),
            "bindings": self.bindings,
            "externals": self.bindings, "ports": self.ports, "programs": self.ports, "links": self.ports + 256,
            "spaces": self.space_entries, "mappings": self.mappings, "rule_hits": self.rules,
        }


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a pair may be idle, seconds (RFC 5382, RFC 4787 REQ-5, RFC 5508)."""

    tcp_new_s: float = 30
    tcp_established_s: float = 7440
    tcp_closing_s: float = 240
    tcp_closed_s: float = 2
    udp_new_s: float = 30
    udp_s: float = 300
    icmp_s: float = 60
    other_s: float = 300
    binding_s: float = 2

    def settings(self) -> dict[str, int]:
        """The fields of struct settings, in nanoseconds."""
        return {f"{name[:-2]}_ns": int(getattr(self, name) * 1e9) for name in self.__slots__}


class Datapath(AbstractContextManager["Datapath"]):
    """The engine's maps and programs; closing leaves pins and attached programs as they are."""

    def __init__(self, loaded: BpfObject, limits: Limits, timeouts: Timeouts) -> None:
        """Use `open`."""
        self._object = loaded
        self._limits = limits
        self._ring: RingBuffer | None = None
        self._shadow = {name: dict(loaded.map(name).items()) for name in _KEYED}
        self._programs = {int.from_bytes(key, "little"): value for key, value in loaded.map("programs").items()}
        self._groups = GroupTable(
            loaded.map("groups"), loaded.map("buckets"), loaded.map("filter"), loaded.map("rules")
        )
        self._groups.retire_unused(_groups_of(self._programs.values()))
        settings = np.frombuffer(self._map("config").lookup(_ZERO) or bytes(SETTINGS.itemsize), SETTINGS)[0]
        secret = settings["secret"].tobytes() if settings["secret"].any() else token_bytes(16)
        self._compiler = Compiler(secret)
        self._settings: dict[str, Any] = {
            **timeouts.settings(), "secret": np.frombuffer(secret, np.uint64),
            "tunnel_ifindex": int(settings["tunnel_ifindex"]),
        }
        self._interrupted = bool(settings["dirty"])
        self._write_settings(dirty=self._interrupted)
        self._capturing = Capturing(loaded)

    @classmethod
    def open(cls, pin_dir: Path | None, limits: Limits | None = None, timeouts: Timeouts | None = None) -> Self:
        """Load the engine, adopting the maps that are pinned in `pin_dir`. None: nothing is pinned (tests).

        Raises:
            DatapathError: the kernel refused; IncompatiblePin: pinned maps have other sizes.
        """
        limits = limits or Limits()
        with ExitStack() as undo:
            loaded = undo.enter_context(BpfObject.load(OBJECT, max_entries=limits.by_map(), pin_dir=pin_dir))
            for index, program in enumerate(("vfp_slow", "vfp_odd", "vfp_related", "vfp_captured")):    # enum jump
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
        self._check_room(tables)
        stale = self._ports_to_bump(tables)
        if not self._differs(tables, stale):
            return
        self._write_settings(dirty=True)
        self._groups.add(tables.groups.values())
        self._put("rewrites", tables)
        for name in ("pools", "spaces", "mappings"):
            self._put(name, tables)
            self._remove(name, tables)
        self._write_uplinks(tables.maps["uplinks"])
        self._settings["tunnel_ifindex"] = tables.tunnel_ifindex
        self._write_settings(dirty=True)
        for port in tables.ports.values():
            if port.id in stale:
                self._switch(port)
        self._put("links", tables)
        self._remove("links", tables)
        for port_id in self._programs.keys() - tables.ports.keys():
            self._drop_port(port_id)
        self._remove("rewrites", tables)
        self._groups.retire_unused(_groups_of(self._programs.values()))
        self._write_settings(dirty=False)
        self._interrupted = False

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
        return list(read_flows(keys, values, time.monotonic_ns(), generations))

    def trace(self, hook: Hook, number: int, frame: bytes, vtep: IPv4Address | None = None) -> Traced:
        """What the programs would do with a frame: a dry run on the tables as they are, which changes none.

        Raises:
            KernelRefused: EINVAL when the frame is too long for a test run (about 3,500 bytes).
        """
        return dry_run(self._object, _ZONES[hook], number, frame, vtep)

    def binding(self, key: BindingKey) -> External | None:
        """The external side that a source translation has now."""
        return find_binding(self._map("bindings"), key)

    def is_external_held(self, external: External) -> bool:
        """Whether a source translation holds an external address and port."""
        return is_held(self._map("externals"), external)

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

    def drop_counts(self) -> dict[DropReason, int]:
        """Packets dropped since the maps were made, by reason."""
        _, values = self._map("drops").lookup_all()
        totals = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint64).sum(axis=1)
        return {reason: int(totals[reason]) for reason in DropReason}

    def rule_hits(self) -> dict[tuple[int, int], RuleHits]:
        """(port id, rule cookie) to decisions and drops."""
        keys, values = self._map("rule_hits").lookup_all()
        key_rows = np.ascontiguousarray(keys).reshape(-1).view(HIT_KEY)
        hit_rows = np.ascontiguousarray(values).reshape(-1).view(HITS)
        return {
            (int(key["port"]), int(key["cookie"])): RuleHits(int(hit["hits"]), int(hit["drops"]))
            for key, hit in zip(key_rows, hit_rows, strict=True)
        }

    def events_fd(self) -> int:
        """Readable when `read_events` has something."""
        return self._events().fd

    def read_events(self) -> list[DropEvent]:
        """Drop records since the last call; does not wait."""
        return [read_event(raw) for raw in self._events().consume()]

    def sweep(self) -> int:
        """Age flows and bindings, and free retired groups; returns how many flows and bindings left."""
        run = self._object.program("vfp_sweep").test_run(ctx=bytes(SWEEP.itemsize))
        result = np.frombuffer(run.ctx, SWEEP)[0]
        self._groups.collect()
        return int(result["flows_removed"]) + int(result["bindings_removed"])

    # Private: one step each

    def _map(self, name: str) -> BpfMap:
        return self._object.map(name)

    def _events(self) -> RingBuffer:
        if self._ring is None:
            self._ring = RingBuffer(self._map("events").fd)
        return self._ring

    def _write_settings(self, dirty: bool) -> None:
        self._map("config").update(_ZERO, pack(SETTINGS, **self._settings, dirty=int(dirty)))

    def _check_room(self, tables: Tables) -> None:
        limits = self._limits
        for name, limit, option in (
            ("spaces", limits.space_entries, "space_entries"), ("mappings", limits.mappings, "mappings"),
            ("links", limits.ports + 256, "ports"),
        ):
            if (wanted := len(tables.maps[name])) > limit:
                raise TableFull(f"table {name}: {wanted} entries wanted, {limit} fit; raise Limits.{option}")
        self._groups.check_room(tables.groups.values())

    def _changed(self, name: str, tables: Tables) -> set[bytes]:
        """Keys whose old value goes: changed or removed, not added."""
        wanted = tables.maps[name]
        return {key for key, value in self._shadow[name].items() if wanted.get(key) != value}

    def _ports_to_bump(self, tables: Tables) -> set[int]:
        """Ports whose decisions may be outdated: program, record, or something a rule of theirs refers to."""
        if self._interrupted or tables.tunnel_ifindex != self._settings["tunnel_ifindex"]:
            return set(tables.ports)
        spaces = {int(np.frombuffer(key, SPACE_KEY)[0]["space"]) for key in self._changed("spaces", tables)}
        pools = {int.from_bytes(key, "little") for key in self._changed("pools", tables)}
        mapped = {
            int(np.frombuffer(self._shadow["mappings"][key], MAPPING)[0]["port"])
            for key in self._changed("mappings", tables)
        }
        inhabitants = self._ports_in(spaces)
        uplinks_changed = self._uplinks_changed(tables.maps["uplinks"])
        return {
            port.id
            for port in tables.ports.values()
            if uplinks_changed or port.id in mapped or port.id in inhabitants or port.spaces & spaces
            or port.pools & pools or not self._is_programmed(port)
        }

    def _ports_in(self, spaces: set[int]) -> set[int]:
        """Ports that are a place in one of `spaces`: what comes to them over an overlay was decided by it."""
        if not spaces:
            return set()
        keys = np.frombuffer(b"".join(self._shadow["spaces"].keys()), SPACE_KEY)
        places = np.frombuffer(b"".join(self._shadow["spaces"].values()), LOCATION)
        theirs = np.isin(keys["space"], list(spaces)) & (places["kind"] == LocationKind.PORT)
        return {int(port) for port in places["port"][theirs]}

    def _is_programmed(self, port: CompiledPort) -> bool:
        program = self._programs.get(port.id)
        if program is None or program[4:] != port.program[4:]:
            return False
        record = self._map("ports").lookup(port.id.to_bytes(4, "little")) or b""
        return self._capturing.without(record)[4:] == port.record[4:]

    def _differs(self, tables: Tables, stale: set[int]) -> bool:
        return bool(
            stale or self._interrupted or self._programs.keys() != tables.ports.keys()
            or any(self._shadow[name] != tables.maps[name] for name in _KEYED)
            or self._uplinks_changed(tables.maps["uplinks"])
            or tables.tunnel_ifindex != self._settings["tunnel_ifindex"]
        )

    def _put(self, name: str, tables: Tables) -> None:
        shadow = self._shadow[name]
        changed = {key: value for key, value in tables.maps[name].items() if shadow.get(key) != value}
        if changed:
            self._map(name).update_batch(b"".join(changed), b"".join(changed.values()), len(changed))
            shadow.update(changed)

    def _remove(self, name: str, tables: Tables) -> None:
        shadow = self._shadow[name]
        gone = [key for key in shadow if key not in tables.maps[name]]
        if gone:
            self._map(name).delete_batch(b"".join(gone), len(gone))
            for key in gone:
                del shadow[key]

    def _uplinks(self) -> dict[bytes, bytes]:
        return {key: value for key, value in self._map("uplinks").items() if value != _ZERO}

    def _uplinks_changed(self, wanted: dict[bytes, bytes]) -> bool:
        return self._uplinks() != wanted

    def _write_uplinks(self, wanted: dict[bytes, bytes]) -> None:
        uplinks = self._map("uplinks")
        for key in self._uplinks().keys() - wanted.keys():
            uplinks.update(key, _ZERO)
        for key, value in wanted.items():
            uplinks.update(key, value)

    def _next_generation(self, port_id: int) -> int:
        record = self._map("ports").lookup(port_id.to_bytes(4, "little"))
        generation = int(np.frombuffer(record, PORT)[0]["generation"]) if record else 0
        return generation % 0xFFFFFFFF + 1      # 0 is never used

    def _switch(self, port: CompiledPort) -> None:
        """Give a port its new program, then its generation: flows decided before must decide again."""
        generation = self._next_generation(port.id).to_bytes(4, "little")
        key = port.id.to_bytes(4, "little")
        program = generation + port.program[4:]
        record = self._capturing.marked(port.id, generation + port.record[4:])
        if port.id not in self._programs:       # a flow may not go to a port without a record
            self._map("ports").update(key, record)
        self._map("programs").update(key, program)
        self._map("ports").update(key, record)
        self._programs[port.id] = program

    def _drop_port(self, port_id: int) -> None:
        key = port_id.to_bytes(4, "little")
        self._map("programs").delete(key)
        self._map("ports").update(key, pack(PORT, generation=self._next_generation(port_id)))
        del self._programs[port_id]


def _groups_of(programs: Iterable[bytes]) -> set[int]:
    """Ids of all groups that programs refer to."""
    used: set[int] = set()
    for raw in programs:
        program = np.frombuffer(raw, PROGRAM)[0]
        used.update(int(group) for group in program["out"]["group"][: int(program["out_count"])])
        used.update(int(group) for group in program["in"]["group"][: int(program["in_count"])])
    return used - {0}


__all__ = ["CompiledGroup", "Datapath", "Hook", "Limits", "Timeouts"]
