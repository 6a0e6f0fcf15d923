"""Table contents as people and the agent read them: flows, drops, hits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vfp.layout import (
    EVENT,
    FLOW,
    FLOW_KEY,
    METER,
    ZONE_SHIFT,
    EventKind,
    FlowFlag,
    PlaceKind,
    State,
    ZoneKind,
    unpack_address,
)
from vfp.model import Address
from vfp.reasons import DropReason
from vfp.vteps import vtep_of

_TCP = 6


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """One half of a pair. `packets` and `bytes` count this half; `place` says where its packets leave."""

    zone_kind: ZoneKind
    zone: int                               # port id, VNI or uplink id
    protocol: int
    src: Address
    dst: Address
    src_port: int
    dst_port: int
    reply: bool
    state: str                              # see `flow_state`
    packets: int
    bytes: int
    idle_s: float
    age_s: float
    place: str                              # stack, port, uplink, wire, tunnel
    ports: tuple[int, int]                  # sender, receiver; 0: none
    ifindex: int                            # of the port or uplink it leaves by
    vtep: Address | None                    # of a tunnel; None: no tunnel, or a VTEP that is no longer known
    vni: int
    vlan: int = 0                           # 802.1Q tag of its frames; 0: none
    current: bool = True                    # False: the policy has changed; its next packet is decided again


@dataclass(frozen=True, slots=True)
class Generations:
    """What a flow was decided by is in force as long as these are what they were: of ports by id, and of sets."""

    ports: npt.NDArray[np.uint32]
    sets: int


@dataclass(frozen=True, slots=True)
class RuleHits:
    """Decisions in which a rule matched, and packets it dropped."""

    hits: int
    drops: int


@dataclass(frozen=True, slots=True)
class MeterCount:
    """What was counted on a meter: the way flows were begun, and their replies. Bytes are those of frames."""

    packets: int
    bytes: int
    reply_packets: int
    reply_bytes: int


@dataclass(frozen=True, slots=True)
class FlowOrigin:
    """The pair that a packet belongs to."""

    key: bytes                              # of its forward half: its identity while it lasts
    reply: bool                             # the packet goes the other way
    port: int                               # who began it; 0: no port of ours


@dataclass(frozen=True, slots=True)
class InspectCounts:
    """Packets that went to user space, and that came back; what did not was dropped on the way, or is there."""

    sent: int
    returned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketEvent:
    """One packet as it came. `port` and `cookie` say whose rule wants it told; 0: none."""

    time_s: float                           # monotonic clock
    zone_kind: ZoneKind
    zone: int
    port: int
    cookie: int
    ethertype: int
    protocol: int
    src: Address
    dst: Address
    src_port: int
    dst_port: int
    src_mac: bytes
    dst_mac: bytes
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropEvent(PacketEvent):
    """One dropped packet. `layer` is an index in the port's OUT order, or None."""

    reason: DropReason
    layer: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent(PacketEvent):
    """One packet that a rule wants told."""


def flow_state(state: int, protocol: int) -> str:
    """Name of a flow's state (docs/engine.md, TCP state)."""
    if protocol != _TCP:
        return "established" if state & State.ASSURED else "new"
    if state & (State.RST | State.PEER_RST):
        return "reset"
    if state & State.FIN and state & State.PEER_FIN:
        return "time-wait"
    if state & (State.FIN | State.PEER_FIN):
        return "fin-wait"
    if state & State.ACK and state & State.PEER_ACK:
        return "established"
    return "syn-received" if state & State.ASSURED else "opening"


def read_flows(keys: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8], now_ns: int,
               policy: Generations | None = None, vteps: Mapping[int, Address] | None = None) -> Iterator[FlowRecord]:
    """Decode rows of the flow table.

    `policy`: what is in force; None: every flow counts as current. `vteps`: IPv6 ones by id.
    """
    key_rows = np.ascontiguousarray(keys).reshape(-1).view(FLOW_KEY)
    flow_rows = np.ascontiguousarray(values).reshape(-1).view(FLOW)
    for key, flow in zip(key_rows, flow_rows, strict=True):
        family = int(key["family"])
        protocol = int(key["protocol"])
        in_tunnel = flow["out"]["place"] == PlaceKind.TUNNEL
        yield FlowRecord(
            zone_kind=ZoneKind(int(key["zone"]) >> ZONE_SHIFT), zone=int(key["zone"]) & ((1 << ZONE_SHIFT) - 1),
            protocol=protocol, src=unpack_address(key["src"].tobytes(), family),
            dst=unpack_address(key["dst"].tobytes(), family), src_port=int(key["sport"]), dst_port=int(key["dport"]),
            reply=bool(flow["flags"] & FlowFlag.REPLY), state=flow_state(int(flow["state"]), protocol),
            packets=int(flow["packets"]), bytes=int(flow["bytes"]),
            idle_s=max(0, now_ns - int(flow["seen_ns"])) / 1e9, age_s=max(0, now_ns - int(flow["created_ns"])) / 1e9,
            place=PlaceKind(int(flow["out"]["place"])).of_model.name.lower(),
            ports=(int(flow["ports"][0]), int(flow["ports"][1])), ifindex=int(flow["out"]["ifindex"]),
            vtep=vtep_of(int(flow["out"]["vtep"]), vteps or {}) if in_tunnel else None,
            vni=int(flow["out"]["vni"]) if in_tunnel else 0,
            vlan=int(key["vlan"]), current=policy is None or _is_current(flow, policy),
        )


def _is_current(flow: Any, policy: Generations) -> bool:
    if flow["flags"] & FlowFlag.BY_SET and flow["sets_generation"] != policy.sets:
        return False
    asked = flow["ports"] != 0
    return bool((policy.ports[flow["ports"][asked]] == flow["generations"][asked]).all())


def read_meters(keys: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8]) -> dict[int, MeterCount]:
    """Decode the table of meters, [n, cpus, size], by id."""
    rows = np.ascontiguousarray(values).view(METER).reshape(values.shape[:2])
    packets, octets = rows["packets"].sum(axis=1), rows["bytes"].sum(axis=1)
    return {
        int(meter): MeterCount(int(count[0]), int(size[0]), int(count[1]), int(size[1]))
        for meter, count, size in zip(
            np.ascontiguousarray(keys).reshape(-1).view(np.uint32), packets, octets, strict=True)
    }


def read_event(raw: bytes) -> DropEvent | LogEvent:
    """Decode one record of the events ring."""
    event: Any = np.frombuffer(raw, EVENT, 1)[0]
    family = int(event["family"]) or 4
    layer = int(event["layer"])
    packet: dict[str, Any] = {
        "time_s": int(event["time_ns"]) / 1e9, "zone_kind": ZoneKind(int(event["zone"]) >> ZONE_SHIFT),
        "zone": int(event["zone"]) & ((1 << ZONE_SHIFT) - 1), "port": int(event["port"]),
        "cookie": int(event["cookie"]), "ethertype": int(event["ethertype"]), "protocol": int(event["protocol"]),
        "src": unpack_address(event["src"].tobytes(), family), "dst": unpack_address(event["dst"].tobytes(), family),
        "src_port": int(event["sport"]), "dst_port": int(event["dport"]), "src_mac": event["smac"].tobytes(),
        "dst_mac": event["dmac"].tobytes(), "length": int(event["length"]),
    }
    if event["kind"] == EventKind.LOG:
        return LogEvent(**packet)
    return DropEvent(**packet, reason=DropReason(int(event["reason"])), layer=None if layer == 0xFF else layer)
