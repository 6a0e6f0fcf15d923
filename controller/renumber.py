"""A network that its host has come to overlap moves to a free prefix: which one, and what moves with it. Pure.

Endpoints and leases keep their offset in the prefix, mappings lead to their endpoints as before, policies that name
endpoints follow. A network that has moved stays where it is: what drove it away is remembered with it, and no prefix
that overlaps that is chosen again, so that a host that goes to and fro between two LANs moves it twice at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

from controller import ipam
from controller.assign import address_key
from controller.endpoint_specs import EndpointSpec
from controller.ipam import Prefix
from controller.network_specs import NetworkSpec
from controller.overlaps import Overlap, chosen, collisions
from controller.state import AnyStored, Change, State, Stored
from controller.subnets import InUse, subnets_of, users
from southbound.messages import HostFacts, Subnet

REMEMBERED = 16                             # prefixes that have driven a network away


@dataclass(slots=True)
class _Journey:
    """Where a network goes: its subnets as they will be, and those that find no place."""

    subnets: list[InUse]
    shunned: list[str]
    moves: dict[Prefix, Prefix] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    homeless: list[Prefix] = field(default_factory=list)


def due(state: State, host: str, facts: HostFacts | None) -> list[Stored[NetworkSpec]]:
    """The networks of a host that must move, by name."""
    return sorted((network for network in state.nat_networks_on(host) if _leaving(state, network, facts)),
                  key=lambda network: network.ref)


def renumber(state: State, host: str, facts: HostFacts | None) -> list[Change]:
    """Move what must move; changes `state`, which is a fork at the new revision. Empty: nothing can be done."""
    changes: list[Change] = []
    for network in due(state, host, facts):
        journey = _journey(state, host, network, facts)
        if journey.moves:                   # else it stays degraded; the next change of its host or there tries again
            used = tuple(Subnet(str(each.prefix), each.gateway) for each in journey.subnets)
            leases = {host: tuple(_moved(each, journey.moves) for each in its)
                      for host, its in network.assigned.leases.items()}
            assigned = replace(network.assigned, subnets=used, moved="; ".join(journey.reasons), leases=leases,
                               shunned=tuple(journey.shunned[-REMEMBERED:]))
            changes.append(_put(state, network, replace(network, assigned=assigned, revision=state.revision)))
            changes += _endpoints(state, network, journey.moves)
    return changes


def stuck(state: State, network: Stored[NetworkSpec], facts: HostFacts | None) -> bool:
    """Whether a subnet of a nat network must move and no prefix is free for it."""
    host = network.spec.host
    return host is not None and bool(_journey(state, host, network, facts).homeless)


def _journey(state: State, host: str, network: Stored[NetworkSpec], facts: HostFacts | None) -> _Journey:
    found = _Journey(list(subnets_of(network)), list(network.assigned.shunned))
    for place, hits in _leaving(state, network, facts).items():
        found.shunned = list(dict.fromkeys((*found.shunned, *(str(each.prefix) for each in hits))))
        old = found.subnets[place]
        try:
            new = _target(state, host, network, old, found.subnets, found.shunned, facts)
        except ipam.Exhausted:
            found.homeless.append(old.prefix)
            continue
        found.moves[old.prefix], found.subnets[place] = new, old.moved(new)
        found.reasons.append(f"renumbered from {old.prefix} because of {hits[0]}")
    return found


def _leaving(state: State, network: Stored[NetworkSpec], facts: HostFacts | None) -> dict[int, list[Overlap]]:
    """The subnets that must move, by place, and why: the network says so, or an automatic one that nobody is in."""
    found = {}
    for place, subnet in enumerate(subnets_of(network)):
        hits = collisions(subnet.prefix, facts)
        in_use = bool(network.assigned.leases) or bool(users(subnet, network.ref, state)) if hits else True
        unused = subnet.spec.prefix == "auto" and not in_use
        if hits and (unused or network.spec.on_overlap == "renumber"):
            found[place] = hits
    return found


def _target(state: State, host: str, network: Stored[NetworkSpec], old: InUse, subnets: list[InUse],
            shunned: list[str], facts: HostFacts | None) -> Prefix:
    besides = [each.prefix for each in subnets] + [ip_network(text) for text in shunned]
    return chosen(state, host, network.ref, facts, old.prefix.prefixlen, besides,
                  network.uid if old.version == 6 else "")


def _endpoints(state: State, network: Stored[NetworkSpec], moves: Mapping[Prefix, Prefix]) -> list[Change]:
    changes = []
    for endpoint in sorted(state.endpoints_of(network.ref), key=lambda e: e.ref):
        assigned = replace(endpoint.assigned, address=_moved(endpoint.assigned.address, moves),
                           address6=_moved(endpoint.assigned.address6, moves))
        if assigned != endpoint.assigned:
            changes.append(_put(state, endpoint, replace(endpoint, assigned=assigned, revision=state.revision)))
    for version in (4, 6):
        key = address_key(network.uid, version)
        if key in state.cursors:
            state.cursors[key] = _shifted(state.cursors[key], version, moves)
    return changes


def _moved(address: str, moves: Mapping[Prefix, Prefix]) -> str:
    if not address:
        return address
    version = ip_address(address).version
    return ipam.text_of(_shifted(int(ip_address(address)), version, moves), version)


def _shifted(number: int, version: int, moves: Mapping[Prefix, Prefix]) -> int:
    for old, new in moves.items():
        low, high = ipam.range_of(old)
        if old.version == version and low <= number <= high:
            return number - low + int(new.network_address)
    return number


def _put(state: State, old: Stored[NetworkSpec] | Stored[EndpointSpec], new: AnyStored) -> Change:
    state.put(new)
    return Change(old, new)


__all__ = ["due", "renumber", "stuck"]
