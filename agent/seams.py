"""What the agent needs of the kernel's two rooms; `vswitch.Switch` and the engine's `Datapath` are these.

Tests put small fakes behind these seams.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from vfp.datapath.binding_log import BindingEvent
from vfp.datapath.bindings import BindingRecord
from vfp.datapath.capture import Captured
from vfp.datapath.engine import Hook
from vfp.datapath.records import DropEvent, FlowRecord, InspectCounts, LogEvent, MeterCount, RuleHits
from vfp.datapath.select import FlowFilter, FlowPage
from vfp.datapath.trace import Traced
from vfp.layout import Ring
from vfp.model import Address, EngineState, Prefix
from vfp.reasons import DropReason
from vfp.reference.bindings import BindingKey, Block, External
from vfp.reference.packet import FlowTuple
from vswitch.links import (
    BridgeLink,
    Detour,
    HookedProgram,
    InspectPrograms,
    Limit,
    OwnedLink,
    PathState,
    PortLink,
    ShaperLink,
    Surroundings,
    TunnelLink,
    UnderlayState,
    UplinkState,
    Where,
)

__all__ = ["DatapathSeam", "SwitchSeam"]


class SwitchSeam(Protocol):
    """Links; see `vswitch.switch.Switch`."""

    def ensure_port(self, link: PortLink, hooked: Sequence[HookedProgram] = ()) -> int: ...  # noqa: D102
    def identify(self, netns: str) -> str: ...  # noqa: D102
    def ensure_bridge(self, link: BridgeLink) -> int: ...  # noqa: D102
    def ensure_tunnel(self, link: TunnelLink) -> int: ...  # noqa: D102
    def ensure_inspection(self, programs: InspectPrograms, queues: Sequence[int]) -> Detour: ...  # noqa: D102
    def remove_inspection(self) -> bool: ...  # noqa: D102
    def remove(self, name: str) -> None: ...  # noqa: D102
    def owned(self) -> dict[str, OwnedLink]: ...  # noqa: D102
    def set_neighbours(self, bridge: str, entries: Mapping[str, str]) -> None: ...  # noqa: D102
    def attach(self, ifindex: int, where: Where, program_fd: int, name: str) -> None: ...  # noqa: D102
    def detach(self, ifindex: int, where: Where) -> None: ...  # noqa: D102
    def open_loopback(self, program_fd: int, name: str) -> int: ...  # noqa: D102
    def close_loopback(self) -> bool: ...  # noqa: D102
    def uplink(self, name: str = "") -> UplinkState: ...  # noqa: D102
    def underlays(self, addresses: Sequence[str]) -> dict[str, UnderlayState]: ...  # noqa: D102
    def paths(self, addresses: Iterable[str]) -> dict[str, PathState]: ...  # noqa: D102
    def hooked(self) -> dict[str, int]: ...  # noqa: D102
    def set_listening(self, everything: Collection[str], groups: Collection[str] = ()) -> None: ...  # noqa: D102
    def ensure_shaper(self, link: ShaperLink, hooked: Sequence[HookedProgram] = ()) -> int: ...  # noqa: D102
    def ensure_classes(  # noqa: D102
        self, ifindex: int, limits: Mapping[int, Limit], total_bps: int = 0
    ) -> None: ...
    def prune_classes(self, ifindex: int, keep: Collection[int]) -> None: ...  # noqa: D102
    def ensure_queue(self, ifindex: int, limit: Limit) -> None: ...  # noqa: D102
    def remove_queue(self, ifindex: int) -> None: ...  # noqa: D102
    def facts(self) -> Surroundings: ...  # noqa: D102
    def addresses(self) -> tuple[tuple[str, str], ...]: ...  # noqa: D102
    def listeners(self) -> tuple[tuple[str, str, int], ...]: ...  # noqa: D102
    def send(self, ifindex: int, frames: Iterable[bytes]) -> None: ...  # noqa: D102
    def reserve_ports(self, ranges: Iterable[tuple[int, int]]) -> None: ...  # noqa: D102
    def release_ports(self) -> None: ...  # noqa: D102
    def open_too_big(self, udp_port: int, version: int) -> socket.socket: ...  # noqa: D102
    def open_dhcp(self, ifindex: int, *, answers: bool) -> socket.socket: ...  # noqa: D102
    def open_solicitations(self, ifindex: int) -> socket.socket: ...  # noqa: D102
    def open_sender(self, mark: int = 0) -> socket.socket: ...  # noqa: D102
    def watch(self) -> AsyncGenerator[None]: ...  # noqa: D102


class DatapathSeam(Protocol):
    """The engine in the kernel; see `vfp.datapath.engine.Datapath`."""

    def apply(self, state: EngineState) -> None: ...  # noqa: D102
    def program_fd(self, hook: Hook) -> int: ...  # noqa: D102
    def mark(self) -> int: ...  # noqa: D102
    def meters(self) -> Mapping[int, MeterCount]: ...  # noqa: D102
    def members(self, set_id: int) -> Mapping[Prefix, float | None]: ...  # noqa: D102
    def flows(self) -> list[FlowRecord]: ...  # noqa: D102
    def inspect_counts(self) -> InspectCounts: ...  # noqa: D102
    def select_flows(self, wanted: FlowFilter) -> FlowPage: ...  # noqa: D102
    def flow_at(self, hook: Hook, number: int, what: FlowTuple) -> FlowRecord | None: ...  # noqa: D102
    def trace(  # noqa: D102
        self, hook: Hook, number: int, frame: bytes, vtep: Address | None = None
    ) -> Traced: ...
    def binding(self, key: BindingKey) -> External | None: ...  # noqa: D102
    def select_bindings(  # noqa: D102
        self, pools: Collection[int] | None, limit: int
    ) -> tuple[list[BindingRecord], int]: ...
    def pool_use(self) -> Mapping[int, Sequence[tuple[Address, int, int]]]: ...  # noqa: D102
    def block_use(self) -> Mapping[int, Sequence[tuple[Address, int]]]: ...  # noqa: D102
    def mapping_hits(self) -> Mapping[str, int]: ...  # noqa: D102
    def bindings_fd(self) -> int: ...  # noqa: D102
    def read_binding_events(self) -> Sequence[BindingEvent]: ...  # noqa: D102
    def binding_at(self, external: External) -> BindingKey | None: ...  # noqa: D102
    def block_holder(self, block: Block) -> tuple[int, int] | None: ...  # noqa: D102
    def binding_count(self, port: int, pool: int) -> int: ...  # noqa: D102
    def has_contact(self, key: BindingKey, remote: Address) -> bool: ...  # noqa: D102
    def capture(self, ports: Collection[int], packet_bytes: int) -> None: ...  # noqa: D102
    def captures_fd(self) -> int: ...  # noqa: D102
    def read_captures(self) -> list[Captured]: ...  # noqa: D102
    def lost(self, ring: Ring) -> int: ...  # noqa: D102
    def drop_counts(self) -> dict[DropReason, int]: ...  # noqa: D102
    def rule_hits(self) -> dict[tuple[int, int], RuleHits]: ...  # noqa: D102
    def events_fd(self) -> int: ...  # noqa: D102
    def read_events(self) -> list[DropEvent | LogEvent]: ...  # noqa: D102
    def sweep(self) -> int: ...  # noqa: D102
