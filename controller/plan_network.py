"""The part of a plan that one network makes: its ports by host, its endpoints as others see them. Pure.

A part is made from the one before it; of endpoints only what may have changed is made anew, and what is equal to what
was there is that very object.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import TypeVar

from controller.endpoint_specs import EndpointSpec
from controller.mapping_specs import StaticMappingSpec
from controller.network_specs import NetworkSpec
from controller.plan_acl import Acl, Members
from controller.plan_goals import lease_goals, mapping_goal, network_goal, on_host, port_goal, vteps_of
from controller.plan_remotes import Entry, Home, entry_of
from controller.qos_specs import qos_of
from controller.state import Ref, State, Stored
from southbound.messages import AclTier, Goal, Key, LeaseGoal, MappingGoal, NetworkGoal, PortGoal, QosGoal, key_of

NO_QOS = QosGoal()
Table = Mapping[Key, PortGoal]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """The part of one network."""

    network: Stored[NetworkSpec]
    goal: NetworkGoal                       # without what differs from host to host
    ports: Mapping[str, Table]                          # by host
    mappings: Mapping[str, Mapping[Key, MappingGoal]]   # by host
    homes: Mapping[str, Home]                           # of overlay: the endpoints by host, for all other hosts
    leases: Mapping[str, LeaseGoal] = field(default_factory=dict)       # by host
    goals: Mapping[str, NetworkGoal] = field(default_factory=dict)      # by host that must know the network
    tiers: Mapping[Ref, AclTier] = field(default_factory=dict)
    placed: Mapping[str, str] = field(default_factory=dict)             # uid of each endpoint -> its host

    def for_host(self, host: str) -> Iterator[tuple[Key, Goal]]:
        """Everything that a host must know of the network."""
        yield key_of(self.goals[host]), self.goals[host]
        yield from self.ports.get(host, {}).items()
        yield from self.mappings.get(host, {}).items()
        if host in self.leases:
            yield key_of(self.leases[host]), self.leases[host]
        for name, home in self.homes.items():
            if name != host:
                yield from home.goals.items()

    def told_to(self, hosts: Iterable[str], state: State, before: NetworkPlan | None) -> NetworkPlan:
        """The same for these hosts: those that have a port or a lease in it or in a peer, and its exits."""
        if self.goal.flood is None and not any(route.vteps for route in self.goal.routes):
            return replace(self, goals=dict.fromkeys(hosts, self.goal))
        was = before.goals if before is not None else {}
        goals = {host: on_host(self.goal, state, host, self.homes) for host in hosts}
        return replace(self, goals={host: _kept(was.get(host), goal) for host, goal in goals.items()})


def network_plan(state: State, network: Stored[NetworkSpec], old: NetworkPlan | None, touched: Collection[str] = (),
                 verdicts: bool = False) -> NetworkPlan:
    """The part of a network; `told_to` completes it.

    Args:
        old: the part before; None: all of it is made anew.
        touched: uids of endpoints that have changed, gone or come, or of which what they are behind has.
        verdicts: policies or mappings have changed.
    """
    anew = old is None or not _same(old.network, network)
    policies = sorted(state.policies_of(network.ref), key=lambda p: (p.spec.priority, p.ref.name))
    everyone = anew or verdicts or bool(policies)       # a policy may speak of any endpoint
    endpoints = state.endpoints_of(network.ref) if everyone else _those(state, network.ref, touched)
    mapped: dict[str, list[Stored[StaticMappingSpec]]] = {}
    for mapping in sorted(state.mappings_of(network.ref), key=lambda m: m.ref):
        mapped.setdefault(mapping.spec.endpoint, []).append(mapping)
    acl = Acl(policies, Members(endpoints if policies else ()), old.tiers if old is not None else {})
    changed = {e.uid for e in endpoints} if anew else set(touched)
    ports = _ports(state, network, old, endpoints, changed, acl, mapped, anew)
    homes = _homes(state, network, old, [e for e in endpoints if e.uid in changed], changed, anew)
    placed = dict(old.placed) if old is not None and not anew else {}
    for uid in changed:
        placed.pop(uid, None)
    placed.update((e.uid, e.spec.host) for e in endpoints if e.uid in changed)
    goal = _kept(old.goal if old is not None else None, network_goal(state, network))
    was = old.leases if old is not None else {}
    leases = {host: _kept(was.get(host), lease) for host, lease in lease_goals(
        state, network, acl.of_nobody(), acl.named(), qos_of(None, network.spec.qos)).items()}
    return NetworkPlan(network, goal, ports, _mappings(state, mapped, old), homes, leases, {}, acl.tiers, placed)


def _same(was: Stored[NetworkSpec], now: Stored[NetworkSpec]) -> bool:
    """Whether nothing but leases changed: then no port does."""
    if was is now:
        return True
    return (was.uid, was.spec) == (now.uid, now.spec) and replace(was.assigned, leases={}) == replace(
        now.assigned, leases={})


def _those(state: State, network: Ref, uids: Iterable[str]) -> list[Stored[EndpointSpec]]:
    found = (state.endpoint(ref) for uid in uids if (ref := state.uids.get(uid)) is not None)
    return [e for e in found if e is not None and State.network_ref(e) == network]


def _ports(state: State, network: Stored[NetworkSpec], old: NetworkPlan | None,
           endpoints: Iterable[Stored[EndpointSpec]], changed: Collection[str], acl: Acl,
           mapped: Mapping[str, list[Stored[StaticMappingSpec]]], anew: bool) -> dict[str, Table]:
    """By host; tables in which nothing changed are those of before."""
    before: Mapping[str, Table] = old.ports if old is not None else {}
    placed = old.placed if old is not None else {}
    prefixes = [ip_network(subnet.prefix) for subnet in network.assigned.subnets]
    default = qos_of(None, network.spec.qos)
    patches: dict[str, dict[Key, PortGoal | None]] = {}
    for uid in (placed if anew else changed):
        if uid in placed:
            patches.setdefault(placed[uid], {})["port", uid] = None
    for endpoint in endpoints:
        host, key = endpoint.spec.host, ("port", endpoint.uid)
        if state.is_external(host):
            continue
        verdict = acl.of(endpoint, mapped.get(endpoint.ref.name, ()))
        was = before[host].get(key) if host in before else None
        if endpoint.uid not in changed and was is not None and verdict.shows(was):
            continue
        link = state.link_of(endpoint)
        behind = link if link is not endpoint else None
        qos = NO_QOS if behind is not None else default if endpoint.spec.qos is None else \
            qos_of(endpoint.spec.qos, network.spec.qos)
        made = port_goal(endpoint, network.uid, prefixes, verdict, qos, behind)
        patches.setdefault(host, {})[key] = _kept(was, made)
    tables = dict(before)
    for host, patch in patches.items():
        table = dict(before.get(host, {}))
        for key, goal in patch.items():
            if goal is None:
                table.pop(key, None)
            else:
                table[key] = goal
        if table:
            tables[host] = table
        else:
            tables.pop(host, None)
    return tables


def _homes(state: State, network: Stored[NetworkSpec], old: NetworkPlan | None,
           endpoints: Iterable[Stored[EndpointSpec]], changed: Collection[str], anew: bool) -> dict[str, Home]:
    """The changed endpoints (those that are there) put into the blocks of their hosts."""
    if network.spec.mode != "overlay":
        return {}
    before: Mapping[str, Home] = old.homes if old is not None else {}
    placed = old.placed if old is not None else {}
    come: dict[str, list[Entry]] = {}
    for endpoint in endpoints:
        mac = state.link_of(endpoint).assigned.mac
        come.setdefault(endpoint.spec.host, []).append(
            entry_of(endpoint.uid, endpoint.ref.name, mac, endpoint.assigned.address, endpoint.assigned.address6))
    gone: dict[str, list[str]] = {}
    for uid in () if anew else changed:
        if uid in placed:
            gone.setdefault(placed[uid], []).append(uid)
    homes = {}
    for host in come.keys() | (set() if anew else before.keys()):
        home = before.get(host) or Home(network.uid, host, ())
        home = home.at(vteps_of(state, host))
        if anew:
            home = home.with_all(come[host])
        elif host in come or host in gone:
            home = home.with_changes(gone.get(host, ()), come.get(host, ()))
        if home.leaves:
            homes[host] = home
    return homes


def _mappings(state: State, mapped: Mapping[str, list[Stored[StaticMappingSpec]]],
              old: NetworkPlan | None) -> dict[str, Mapping[Key, MappingGoal]]:
    found: dict[str, dict[Key, MappingGoal]] = {}
    for mapping in (each for its in mapped.values() for each in its):
        target = state.endpoint(Ref("Endpoint", mapping.ref.tenant, mapping.spec.endpoint))
        if target is not None:
            goal = mapping_goal(mapping, target, state.link_of(target))
            was = old.mappings.get(target.spec.host, {}) if old is not None else {}
            found.setdefault(target.spec.host, {})[key_of(goal)] = _kept(was.get(key_of(goal)), goal)
    return dict(found)


def _kept(was: T | None, now: T) -> T:
    return was if was is not None and was == now else now


__all__ = ["NetworkPlan", "network_plan"]
