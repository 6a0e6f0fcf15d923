"""What the pinned maps hold beside what the goal state on disk wants: nothing, once changes have settled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent.build import Observed, build
from agent.paths import underlays_of
from agent.reconcile import host_addresses
from agent.state import Disk
from vfp.compile import Compiler, Tables
from vfp.datapath.map import BpfMap
from vfp.layout import BUCKET, GROUP, PORT, PROGRAM, SETTINGS
from vswitch.switch import Switch


def remains(pin_dir: Path, state_dir: Path, scratch: Path, max_ports: int) -> list[str]:
    """What differs, a line each. The calling thread is in the host's namespace."""
    held = {name: _items(pin_dir, name) for name in (
        "config", "groups", "buckets", "programs", "ports", "links", "pools", "mappings", "spaces", "rewrites",
        "uplinks",
    )}
    settings = np.frombuffer(held["config"][bytes(4)], SETTINGS)[0]
    stored = Disk(state_dir).load()
    with Switch(scratch) as switch:
        observed = Observed(
            uplink=switch.uplink("lan0"), underlays=underlays_of(switch, stored.goals)[0],
            addresses=host_addresses(switch.addresses()), owned=switch.owned(),
        )
    state = build(stored.goals, observed, stored.ids).engine
    tables = Compiler(settings["secret"].tobytes()).compile(state, max_ports)
    return [line for line in _differences(held, tables, int(settings["turn"])) if line] + (
        ["settings: a change is marked as begun"] if settings["dirty"] else []
    )


def _items(pin_dir: Path, name: str) -> dict[bytes, bytes]:
    with BpfMap.open_pin(pin_dir / "maps" / name) as table:
        return dict(table.items())


def _differences(held: dict[str, dict[bytes, bytes]], tables: Tables, turn: int) -> Iterator[str]:
    for name in ("links", "pools", "mappings", "rewrites"):
        yield _compared(name, held[name], tables.maps[name])
    chunks = (chunk for space in tables.spaces.values() for chunk in space.chunks)
    yield _compared("spaces", held["spaces"], {
        bytes(key): bytes(value) for chunk in chunks for key, value in zip(chunk.keys, chunk.values, strict=True)})
    used = {key: value for key, value in held["uplinks"].items() if any(value)}
    yield _compared("uplinks", used, tables.maps["uplinks"])
    at = turn * PROGRAM.itemsize
    programs = {key: value[at + 4 : at + PROGRAM.itemsize] for key, value in held["programs"].items()}
    yield _compared("programs", programs, {_u32(port.id): port.program[4:] for port in tables.ports.values()})
    there = {key: value for key, value in held["ports"].items() if np.frombuffer(value, PORT)[0]["ifindex"]}
    records = {key: _of_policy(value) for key, value in there.items()}
    yield _compared("ports", records, {_u32(port.id): _of_policy(port.record) for port in tables.ports.values()})
    groups = {key: np.frombuffer(value, GROUP)[0] for key, value in held["groups"].items()}
    yield _compared(
        "groups", {int.from_bytes(key, "little"): int(group["rules"]) for key, group in groups.items()},
        {group.id: len(group.group.rules) for group in tables.groups.values()},
    )
    buckets = np.frombuffer(b"".join(held["buckets"].values()), BUCKET)
    yield _compared("instances of buckets", {int(number): 1 for number in np.unique(buckets["instance"])},
                    {int(group["instance"]): 1 for group in groups.values() if group["rules"]})
    yield _compared("rules in use", {"all": int(buckets["count"].sum())},
                    {"all": sum(len(group.group.rules) for group in tables.groups.values())})


def _of_policy(record: bytes) -> bytes:
    """A struct port without its history."""
    fields = np.frombuffer(record, PORT).copy()
    for name in ("generation", "born"):
        fields[name] = 0
    return fields.tobytes()


def _compared(what: str, held: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> str:
    if held == wanted:
        return ""
    more, less = held.keys() - wanted.keys(), wanted.keys() - held.keys()
    other = [key for key in held.keys() & wanted.keys() if held[key] != wanted[key]]
    return f"{what}: {len(more)} too many, {len(less)} missing, {len(other)} differ of {len(wanted)}; e.g. {other[:2]}"


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")
