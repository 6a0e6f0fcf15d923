"""The small numbers that this host gives to things: engine ports, bridges, uplinks, pools.

Flows and bindings in the kernel are keyed by them, so they must outlive the agent: they are on disk, and
those of ports and bridges are also in the aliases of their links (`sluice:port:<uid>:<id>`,
`sluice:bridge:<uid>` on `slb<n>`), from where they are recovered when the disk was lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from vswitch.links import OWNER_ALIAS, OwnedLink

__all__ = [
    "MAX_POOLS", "MAX_UPLINKS", "Ids", "Wanted", "allocate", "bridge_alias", "bridge_name", "port_alias", "recover",
]

MAX_UPLINKS = 255               # model.Uplink.id
_MAX_BRIDGES = 1 << 24          # the name slb<n> stays within 15 characters
MAX_POOLS = 16384               # what the engine holds by default (vfp.datapath.limits)


@dataclass(frozen=True, slots=True)
class Ids:
    """Identities by what they name. `last_port`: the port id given last."""

    ports: Mapping[str, int] = field(default_factory=dict)      # PortGoal.id
    bridges: Mapping[str, int] = field(default_factory=dict)    # NetworkGoal.id of nat networks
    uplinks: Mapping[str, int] = field(default_factory=dict)    # interface name
    pools: Mapping[str, int] = field(default_factory=dict)      # of `nat.pools.pool_names`
    last_port: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must have an identity now."""

    ports: Collection[str] = ()
    bridges: Collection[str] = ()
    uplinks: Collection[str] = ()
    pools: Collection[str] = ()


def port_alias(uid: str, port_id: int) -> str:
    """Alias of a port's host-side link."""
    return f"{OWNER_ALIAS}port:{uid}:{port_id}"


def bridge_alias(uid: str) -> str:
    """Alias of a network's bridge."""
    return f"{OWNER_ALIAS}bridge:{uid}"


def bridge_name(number: int) -> str:
    """Name of bridge number `number`."""
    return f"slb{number}"


def recover(ids: Ids, owned: Iterable[OwnedLink]) -> Ids:
    """Take over the identities that links carry; where they contradict the disk, the kernel is right."""
    ports: dict[str, int] = {}
    bridges: dict[str, int] = {}
    for link in owned:
        match link.alias.removeprefix(OWNER_ALIAS).split(":"):
            case ["port", uid, number] if number.isdecimal() and int(number) > 0:
                ports[uid] = int(number)
            case ["bridge", uid] if link.name.removeprefix("slb").isdecimal():
                bridges[uid] = int(link.name.removeprefix("slb"))
    return replace(ids, ports=_overlay(ids.ports, ports), bridges=_overlay(ids.bridges, bridges))


def _overlay(known: Mapping[str, int], found: Mapping[str, int]) -> dict[str, int]:
    taken = set(found.values())
    kept = {name: number for name, number in known.items() if number not in taken and name not in found}
    return {**kept, **found}


def allocate(ids: Ids, wanted: Wanted, max_ports: int, max_pools: int = MAX_POOLS) -> Ids:
    """Give an identity to all that is wanted, and forget ports and bridges that are not.

    What has an identity keeps it. Port ids go round the whole range before one is given again, so that
    nothing the kernel still holds of a port that is gone is taken for a new one's. Uplinks, and a network's
    pools of whatever address the host had once, keep theirs. When a range is exhausted, the rest stays without
    identity.

    `max_ports`: port ids are 1..max_ports-1. `max_pools`: as many pools as the engine holds.
    """
    ports = {uid: number for uid, number in ids.ports.items() if uid in set(wanted.ports)}
    last = ids.last_port
    taken = set(ports.values())
    for uid in sorted(set(wanted.ports) - set(ports)):
        number = _next(last, taken, max_ports)
        if number == 0:
            break
        ports[uid] = last = number
        taken.add(number)
    bridges = {uid: number for uid, number in ids.bridges.items() if uid in set(wanted.bridges)}
    return Ids(
        ports=ports,
        bridges=_lowest(bridges, wanted.bridges, _MAX_BRIDGES),
        uplinks=_lowest(ids.uplinks, wanted.uplinks, MAX_UPLINKS),
        pools=_lowest(_living(ids.pools, wanted), wanted.pools, min(max_pools, MAX_POOLS)),
        last_port=last,
    )


def _living(pools: Mapping[str, int], wanted: Wanted) -> dict[str, int]:
    """Without those of networks that are gone, and of gateways that are none any more."""
    asked = set(wanted.pools)
    networks = {name.partition("/")[0] for name in asked if not name.startswith("lo/")} | set(wanted.bridges)
    return {name: number for name, number in pools.items() if name in asked or name.partition("/")[0] in networks}


def _next(last: int, taken: set[int], limit: int) -> int:
    for step in range(limit - 1):
        number = (last + step) % (limit - 1) + 1
        if number not in taken:
            return number
    return 0


def _lowest(known: Mapping[str, int], wanted: Collection[str], top: int) -> dict[str, int]:
    given = dict(known)
    if len(given) + len(set(wanted) - set(given)) > top:    # a long life of roaming: make room
        given = {name: number for name, number in given.items() if name in set(wanted)}
    taken = set(given.values())
    number = 1
    for name in dict.fromkeys(wanted):
        if name in given:
            continue
        while number in taken:
            number += 1
        if number > top:
            break
        given[name] = number
        taken.add(number)
    return given
