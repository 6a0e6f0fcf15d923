"""Switched spaces as table contents: segments, the stations on them, whom frames to groups go to, proxied addresses.

A segment is where stations see each other: a space by itself, or, where spaces have a wire, all spaces of that wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from vfp.errors import CompileError
from vfp.layout import (
    FLOODED_KEY,
    HOP,
    SEGMENT,
    SEGMENT_KEY,
    STATION_KEY,
    VLAN_BITS,
    WIRE_SPACE,
    SegmentKind,
    UplinkFlag,
    pack,
    pack_address,
)
from vfp.model import Address, EngineState, Flooding, LocalPort, Location, Port, Rate, Space, ToUplink, Wire
from vfp.vteps import check_vtep, vtep_id

__all__ = [
    "Segment", "at_the_wire", "bucket_ns", "changed_segments", "check_rate", "check_switching", "flooded_vteps",
    "hop_key", "hop_rows", "members", "ports_of_vlans", "segment_of", "stations_of", "switch_rows", "switched_spaces",
    "uplink_flags", "vlan_rows", "wire_of", "wire_spaces",
]

MAX_STATIONS = 1024                         # of a space
MAX_FLOODED = 1024                          # ports of a segment that get frames to groups
MAX_VTEPS = 128                             # of a space's flooding
MAX_VLANS = 8                               # of a port
_LAST_VLAN = 4094
_MAX_PER_SECOND, _MAX_BURST = 1 << 31, 1 << 20
_SECOND_NS = 1_000_000_000

Segment = tuple[int, SegmentKind]           # number of a space or uplink


def wire_of(space: Space) -> int | None:
    """The uplink whose segment the space's stations are on; None: they are by themselves."""
    return space.wire.uplink if space.wire and not space.wire.proxy else None


def segment_of(space: Space) -> Segment:
    """Where the stations of a space are."""
    wire = wire_of(space)
    return (space.id, SegmentKind.SPACE) if wire is None else (wire, SegmentKind.WIRE)


def switched_spaces(state: EngineState) -> list[Space]:
    """Those in which frames have somewhere to go by their MACs."""
    return [space for space in state.spaces if space.stations or space.flooding or wire_of(space) is not None]


def stations_of(state: EngineState) -> dict[tuple[Segment, bytes], int]:
    """Who has which MAC on which segment."""
    return {(segment_of(space), mac): port for space in state.spaces for mac, port in space.stations}


def members(state: EngineState, segment: Segment) -> list[int]:
    """The ports of a segment that get frames to groups, each once."""
    return list(dict.fromkeys(port for space in state.spaces if space.flooding and segment_of(space) == segment
                              for _, port in space.stations))


def wire_spaces(state: EngineState) -> list[Space]:
    """For each uplink, our addresses that are on its wire with its MAC, as a space of the wire's neighbours."""
    found: dict[int, list[tuple[Address, Location]]] = {}
    for space in state.spaces:
        if space.wire and space.wire.proxy:
            found.setdefault(space.wire.uplink, []).extend(
                entry for entry in space.entries if isinstance(entry[1], LocalPort))
    return [Space(WIRE_SPACE | uplink, tuple(entries)) for uplink, entries in found.items()]


def flooded_vteps(state: EngineState) -> set[Address]:
    """VTEPs that frames to groups go to."""
    return {vtep for space in state.spaces if space.flooding for vtep in space.flooding.vteps}


def uplink_flags(state: EngineState) -> dict[int, UplinkFlag]:
    """What each uplink's wire has of ours."""
    flags: dict[int, UplinkFlag] = {}
    for space in state.spaces:
        if space.wire:
            flag = UplinkFlag.PROXY if space.wire.proxy else UplinkFlag.STATIONS
            flags[space.wire.uplink] = flags.get(space.wire.uplink, UplinkFlag(0)) | flag
    return flags


def at_the_wire(state: EngineState, uplink: int) -> Rate | None:
    """How many frames to groups that come by a wire are spread: the largest rate of its spaces."""
    rates = [space.flooding.rate for space in state.spaces if space.flooding and wire_of(space) == uplink]
    return max(rates, key=lambda rate: (rate.per_second, rate.burst), default=None)


# Checks.


def check_switching(state: EngineState) -> None:
    """Refuse stations, wires and flooding that contradict themselves, each other or a bound.

    Raises:
        CompileError: says which and what to do.
    """
    for port in state.ports:
        _check_vlans(port)
    held: dict[tuple[Segment, bytes], Space] = {}
    told: dict[tuple[int, Address], Space] = {}
    for space in state.spaces:
        own: set[bytes] = set()
        if space.id >= WIRE_SPACE:
            raise CompileError(f"space {space.id}: ids from {WIRE_SPACE} on are the engine's own; use a lower one")
        if len(space.stations) > MAX_STATIONS:
            raise CompileError(f"space {space.id}: {len(space.stations)} stations, at most {MAX_STATIONS} are possible")
        for mac, _ in space.stations:
            if len(mac) != 6 or mac[0] & 1 or not any(mac):
                raise CompileError(f"space {space.id}: station {mac.hex(':')} is no MAC of one station; a MAC has 6 "
                                   f"bytes, is not all zeros, and is not a group's (lowest bit of the first byte)")
            other = held.setdefault((segment_of(space), mac), space)
            if other is not space or mac in own:
                raise CompileError(f"space {space.id}: station {mac.hex(':')} is given twice, also in space "
                                   f"{other.id}; a MAC is at one port of a segment")
            own.add(mac)
        if space.wire:
            _check_wire(state, space, space.wire)
        if space.flooding:
            _check_flooding(space.id, space.flooding)
        if space.wire and space.wire.proxy:
            for address, place in space.entries:
                if isinstance(place, LocalPort) and told.setdefault((space.wire.uplink, address), space) is not space:
                    raise CompileError(f"space {space.id}: address {address} is on the wire of uplink "
                                       f"{space.wire.uplink} by space {told[space.wire.uplink, address].id}, too; "
                                       f"an address is once on a segment")
    for segment in {segment_of(space) for space in state.spaces if space.flooding}:
        if (count := len(members(state, segment))) > MAX_FLOODED:
            raise CompileError(f"{segment[1].name.lower()} {segment[0]}: frames to groups would go to {count} ports, "
                               f"at most {MAX_FLOODED} are possible; switch off the flooding of a space")


def _check_wire(state: EngineState, space: Space, wire: Wire) -> None:
    uplink = next((uplink for uplink in state.uplinks if uplink.id == wire.uplink), None)
    if uplink is None:
        return                              # it may come and go, as links do
    if uplink.loopback:
        raise CompileError(f"space {space.id}: wire: uplink {uplink.name} leads to the host's own sockets; use one "
                           f"that leads to a segment")
    if wire.proxy and not any(uplink.mac):
        raise CompileError(f"space {space.id}: wire: uplink {uplink.name} has no MAC to answer with; give Uplink.mac")


def _check_flooding(space: int, flooding: Flooding) -> None:
    check_rate(f"space {space}: flooding", flooding.rate)
    for vtep in flooding.vteps:
        check_vtep(f"space {space}: flooding", vtep)
    if len(flooding.vteps) > MAX_VTEPS:
        raise CompileError(f"space {space}: flooding: {len(flooding.vteps)} VTEPs, at most {MAX_VTEPS} are possible")


def check_rate(where: str, rate: Rate) -> None:
    """Refuse a token bucket without bounds.

    Raises:
        CompileError: says which value.
    """
    if not 0 < rate.per_second <= _MAX_PER_SECOND:
        raise CompileError(f"{where}: rate {rate.per_second} is out of range; use 1..{_MAX_PER_SECOND} a second")
    if not 0 < rate.burst <= _MAX_BURST:
        raise CompileError(f"{where}: burst {rate.burst} is out of range; use 1..{_MAX_BURST}")


def _check_vlans(port: Port) -> None:
    for vlan in port.vlans:
        if not 0 < vlan <= _LAST_VLAN:
            raise CompileError(f"port {port.name}: VLAN {vlan} is out of range; use 1..{_LAST_VLAN}")
    if len(set(port.vlans)) != len(port.vlans) or len(port.vlans) > MAX_VLANS:
        raise CompileError(f"port {port.name}: {len(port.vlans)} VLANs, some perhaps twice; at most {MAX_VLANS} "
                           f"different ones are possible")


# Rows.


def vlan_rows(state: EngineState) -> dict[bytes, bytes]:
    """Contents of `vlans`."""
    return {(port.id << VLAN_BITS | vlan).to_bytes(4, "little"): b"\1" for port in state.ports for vlan in port.vlans}


def ports_of_vlans(keys: Iterable[bytes]) -> set[int]:
    """The ports that keys of `vlans` are of."""
    return {int.from_bytes(key, "little") >> VLAN_BITS for key in keys}


def switch_rows(state: EngineState) -> dict[str, dict[bytes, bytes]]:
    """Contents of `segments`, `stations` and `flooded`."""
    flooded: dict[bytes, bytes] = {}
    counts: dict[Segment, int] = {}
    for segment in {segment_of(space) for space in state.spaces if space.flooding}:
        counts[segment] = _put_list(flooded, segment, members(state, segment))
    segments: dict[bytes, bytes] = {}
    for space in switched_spaces(state):
        flooding = space.flooding
        vteps = flooding.vteps if flooding else ()
        _put_list(flooded, (space.id, SegmentKind.VTEPS), [vtep_id(vtep) for vtep in vteps])
        of = segment_of(space)
        segments[_key((space.id, SegmentKind.SPACE))] = _segment(
            of, flooding.rate if flooding else None, counts.get(of, 0), wire=wire_of(space) or 0,
            vni=flooding.vni if flooding else 0, vteps=len(vteps))
    for uplink in {wire for space in state.spaces if (wire := wire_of(space)) is not None}:
        of = (uplink, SegmentKind.WIRE)
        segments[_key(of)] = _segment(of, at_the_wire(state, uplink), counts.get(of, 0))
    stations = {
        pack(STATION_KEY, number=number, kind=kind, mac=mac): port.to_bytes(4, "little")
        for ((number, kind), mac), port in stations_of(state).items()
    }
    return {"segments": segments, "stations": stations, "flooded": flooded}


def _segment(of: Segment, rate: Rate | None, ports: int, **fields: int) -> bytes:
    value = np.zeros((), SEGMENT)
    value["of"]["number"], value["of"]["kind"] = of
    if rate:
        value["flood_ns"], value["flood_burst_ns"] = bucket_ns(rate)
    value["floods"], value["ports"] = rate is not None, ports
    for name, given in fields.items():
        value[name] = given
    return value.tobytes()


def bucket_ns(rate: Rate) -> tuple[int, int]:
    """What one costs, and how far a bucket may be ahead of its time."""
    cost = _SECOND_NS // rate.per_second
    return cost, cost * (rate.burst - 1)


def _put_list(flooded: dict[bytes, bytes], of: Segment, targets: Iterable[int]) -> int:
    count = 0
    for index, target in enumerate(targets):
        flooded[pack(FLOODED_KEY, number=of[0], kind=of[1], index=index)] = target.to_bytes(4, "little")
        count += 1
    return count


def _key(segment: Segment) -> bytes:
    return pack(SEGMENT_KEY, number=segment[0], kind=segment[1])


@dataclass(frozen=True, slots=True)
class ChangedSegments:
    """What a change of stations and wires concerns: rules that name the spaces, and the ports."""

    spaces: set[int]
    ports: set[int]


def changed_segments(before: Mapping[str, Mapping[bytes, bytes]], after: Mapping[str, Mapping[bytes, bytes]]
                     ) -> ChangedSegments:
    """What decisions by `before` may be outdated: of spaces on a segment where a station came, went or moved, or that
    are on another segment or wire now; and of ports that a station left. A station that came counts, too: its frames
    went to the wire. How frames to groups spread concerns no flow.
    """
    old, new = before["stations"], after["stations"]
    keys = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    numbers = {(int(row["number"]), int(row["kind"])) for row in (np.frombuffer(key, STATION_KEY)[0] for key in keys)}
    was, is_ = _whereabouts(before["segments"]), _whereabouts(after["segments"])
    spaces = {space for space in was.keys() | is_.keys()
              if was.get(space) != is_.get(space) or any(where[0] in numbers for where in (was.get(space),) if where)}
    return ChangedSegments(spaces, {int.from_bytes(old[key], "little") for key in keys if key in old})


def _whereabouts(segments: Mapping[bytes, bytes]) -> dict[int, tuple[tuple[int, int], int]]:
    """By space, its segment and its wire."""
    found = {}
    for key, value in segments.items():
        of, row = np.frombuffer(key, SEGMENT_KEY)[0], np.frombuffer(value, SEGMENT)[0]
        if of["kind"] == SegmentKind.SPACE:
            found[int(of["number"])] = ((int(row["of"]["number"]), int(row["of"]["kind"])), int(row["wire"]))
    return found


def hop_key(via: Address) -> int:
    """Key of a router that a rule names: 32 bits of its address, never 0."""
    return int.from_bytes(blake2b(via.packed, digest_size=4).digest(), "little") or 1


def hop_rows(actions: Iterable[Any]) -> dict[bytes, bytes]:
    """Contents of `hops`: every router that an action names.

    Raises:
        CompileError: two routers have one key.
    """
    keys: dict[int, Address] = {}
    for action in actions:
        if not isinstance(action, ToUplink) or action.via is None:
            continue
        other = keys.setdefault(hop_key(action.via), action.via)
        if other != action.via:
            raise CompileError(f"routers {other} and {action.via} have one key in the table of hops; use another "
                               f"address for one of them")
    return {key.to_bytes(4, "little"): pack(HOP, address=pack_address(via), family=via.version)
            for key, via in keys.items()}
