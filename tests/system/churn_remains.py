"""What a host holds, read from its kernel, beside what is declared: mappings in the engine's maps, and links."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import numpy as np
from churn_stage import host_netns, run
from churn_world import FAMILIES, Network, World, link_local, underlays

from southbound.vteps import choose_vtep, common_family
from vfp.datapath.map import BpfMap
from vfp.layout import LOCATION, SPACE_KEY, LocationKind
from vfp.vteps import vtep_of

Place = tuple[int, str]                     # VNI, address
Fields = tuple[str, str, str]               # sort, VTEP or "", MAC
TUNNEL = "slvx0"
STAGE_LINKS = {"lo", "under0", "mgmt0"}


def differences(world: World, host: int, pins: Path, gateways: Mapping[Network, str]) -> list[str]:
    """What a host has too much, too little or wrong, a line each."""
    wanted = wanted_mappings(world, host, gateways)
    held = held_mappings(pins) if wanted or pins.exists() else {}
    more, less = sorted(held.keys() - wanted.keys()), sorted(wanted.keys() - held.keys())
    found = [f"h{host}: mapping {place} -> {held[place]} is not declared" for place in more]
    found += [f"h{host}: mapping {place} -> {wanted[place]} is missing" for place in less]
    found += [f"h{host}: mapping {place} is {held[place]}, declared {wanted[place]}"
              for place in sorted(held.keys() & wanted.keys()) if held[place] != wanted[place]]
    return found + _links(world, host)


def wanted_mappings(world: World, host: int, gateways: Mapping[Network, str]) -> dict[Place, Fields]:
    """As declared."""
    found: dict[Place, Fields] = {}
    known = world.known(host)
    for network in known:
        gateway = "gateway", "", gateways[network]
        found[network.vni, link_local(gateways[network])] = gateway
        for other in known & world.joined(network):
            found.update(((network.vni, other.address(version, 1)), gateway) for version in FAMILIES)
    own = underlays(host, world.version)
    for vni, address, there, mac in world.mappings(host):
        found[vni, address] = ("here", "", mac) if there is None else ("there", _vtep(own, there, mac, world), mac)
    return found


def _vtep(own: tuple[str, ...], there: int, mac: str, world: World) -> str:
    home = underlays(there, world.version)
    return choose_vtep(home, common_family(own, home), bytes.fromhex(mac.replace(":", "")))


def held_mappings(pins: Path) -> dict[Place, Fields]:
    """As in the engine's maps."""
    with BpfMap.open_pin(pins / "maps" / "spaces") as table:
        items = dict(table.items())
    with BpfMap.open_pin(pins / "maps" / "vtep_addresses") as table:
        vteps = {int.from_bytes(key, "little"): IPv6Address(value) for key, value in table.items()}
    found: dict[Place, Fields] = {}
    if not items:
        return found
    keys = np.frombuffer(b"".join(items), SPACE_KEY)
    values = np.frombuffer(b"".join(items.values()), LOCATION)
    for key, value in zip(keys, values, strict=True):
        raw = key["address"].tobytes()
        address = str(IPv4Address(_four(raw)) if key["family"] == 4 else IPv6Address(raw))
        mac = value["mac"].tobytes().hex(":")
        match int(value["kind"]):
            case LocationKind.PORT:
                fields: Fields = "here", "", mac
            case LocationKind.REMOTE:
                fields = "there", str(vtep_of(int(value["vtep"]), vteps)), mac
            case LocationKind.VIRTUAL:
                fields = "gateway", "", mac
            case kind:
                fields = str(kind), "", mac
        found[int(key["space"]), address] = fields
    return found


def _four(raw: bytes) -> bytes:
    """An IPv4 address out of 16 bytes, wherever in them it is."""
    return raw[:4] if any(raw[:4]) else raw[12:]


def _links(world: World, host: int) -> list[str]:
    ports = sum(endpoint.slot.host == host for endpoint in world.endpoints.values())
    names = {link["ifname"] for link in json.loads(run("ip", "-n", host_netns(host), "-j", "link", "show"))}
    here = {name for name in names if name.startswith("slp")}
    others = names - here - STAGE_LINKS
    out = []
    if len(here) != ports:
        out.append(f"h{host}: {len(here)} port links for {ports} endpoints")
    if others != ({TUNNEL} if ports else set()):
        out.append(f"h{host}: links {sorted(others)} with {ports} endpoints")
    return out
