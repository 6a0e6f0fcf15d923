"""From what is declared to the goal state of each host: pure functions over a `State`.

A plan is made of one part per network, and one goal per host that has a port. `replan` makes anew only the parts
that changes touch, takes over every goal object that stayed the same, and says what each host must be told. A host
learns of a network only when it has a port in it, and of remote endpoints only in such networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from controller.ipam import Prefix
from controller.network_specs import EndpointSpec, NatSpec, NetworkSpec
from controller.plan_acl import Acl, Members, Verdict
from controller.resources import PolicySpec, StaticMappingSpec
from controller.state import Change, Ref, State, Stored
from southbound.messages import (
    AclTier,
    Goal,
    HostGoal,
    Key,
    MappingGoal,
    NatGoal,
    NetworkGoal,
    PortGoal,
    RemoteGoal,
    key_of,
)

HOST_GOAL_ID = "self"

Goals = dict[Key, Goal]
Patch = dict[Key, Goal | None]
"""What to tell a host: goals to put, and None for keys to remove."""


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """The part of one network. `local` holds, for each host with a port, its ports and mappings."""

    goal: NetworkGoal
    local: Mapping[str, Mapping[Key, Goal]]
    remotes: Mapping[Key, tuple[str, RemoteGoal]]         # host where it lives, goal for the others
    tiers: Mapping[Ref, AclTier] = field(default_factory=dict)
    sources: Mapping[Key, object] = field(default_factory=dict)   # stored object of each port and mapping goal

    def for_host(self, host: str) -> Iterator[tuple[Key, Goal]]:
        """Everything that a host with a port here must know of the network."""
        yield key_of(self.goal), self.goal
        yield from self.local[host].items()
        yield from ((key, goal) for key, (home, goal) in self.remotes.items() if home != host)


@dataclass(frozen=True, slots=True)
class Plan:
    """Goal states of all hosts, in shared parts."""

    networks: Mapping[Ref, NetworkPlan] = field(default_factory=dict)
    hosts: Mapping[str, HostGoal] = field(default_factory=dict)     # those that have a port

    def goals(self, host: str) -> Goals:
        """The whole goal state of one host; empty: it has nothing to do."""
        goals: Goals = {}
        if host in self.hosts:
            goals[key_of(self.hosts[host])] = self.hosts[host]
        for part in self.networks.values():
            if host in part.local:
                goals.update(part.for_host(host))
        return goals

    def hosts_of(self, network: Ref) -> tuple[str, ...]:
        """The hosts that have a port in a network."""
        part = self.networks.get(network)
        return tuple(sorted(part.local)) if part else ()


def plan(state: State) -> Plan:
    """The plan of a state, from scratch."""
    parts = {n.ref: part for n in state.networks() if (part := _network_plan(state, n, None)) is not None}
    hosts = {h.ref.name: goal for h in state.hosts() if (goal := _host_goal(state, h.ref.name)) is not None}
    return Plan(parts, hosts)


def replan(old: Plan, state: State, changes: Iterable[Change]) -> tuple[Plan, dict[str, Patch]]:
    """The plan after changes, and what each host must be told of it. Equal to `plan(state)` and the difference."""
    touched_networks, touched_hosts = _touched(state, changes)
    networks, hosts = dict(old.networks), dict(old.hosts)
    patches: dict[str, Patch] = {}
    for ref in touched_networks:
        before, network = old.networks.get(ref), state.network(ref)
        after = _network_plan(state, network, before) if network is not None else None
        if after is None:
            networks.pop(ref, None)
        else:
            networks[ref] = after
        _difference(before, after, patches)
    for name in touched_hosts:
        goal = _host_goal(state, name)
        if goal == hosts.get(name):
            continue
        patches.setdefault(name, {})["host", HOST_GOAL_ID] = goal
        if goal is None:
            del hosts[name]
        else:
            hosts[name] = goal
    return Plan(networks, hosts), patches


def _touched(state: State, changes: Iterable[Change]) -> tuple[list[Ref], list[str]]:
    """Networks and hosts that changes may concern, in a fixed order."""
    networks: dict[Ref, None] = {}
    hosts: dict[str, None] = {}
    for change in changes:
        for stored in (change.before, change.after):
            if stored is None:
                continue
            spec = stored.spec
            if isinstance(spec, NetworkSpec):
                networks[stored.ref] = None
            elif isinstance(spec, (EndpointSpec, PolicySpec, StaticMappingSpec)):
                networks[State.network_ref(stored)] = None
            if isinstance(spec, EndpointSpec):
                hosts[spec.host] = None
            elif stored.ref.kind == "Host":
                hosts[stored.ref.name] = None
                networks.update(dict.fromkeys(State.network_ref(e) for e in state.endpoints_on(stored.ref.name)))
    return list(networks), list(hosts)


def _difference(before: NetworkPlan | None, after: NetworkPlan | None, patches: dict[str, Patch]) -> None:
    """Add what the hosts of a network must be told of its change."""
    old_hosts = before.local if before else {}
    new_hosts = after.local if after else {}
    if before:
        for host in old_hosts.keys() - new_hosts.keys():
            patches.setdefault(host, {}).update((key, None) for key, _ in before.for_host(host))
    if not after:
        return
    for host in new_hosts.keys() - old_hosts.keys():
        patches.setdefault(host, {}).update(after.for_host(host))
    if not before:
        return
    moved = [(key, before.remotes.get(key), after.remotes.get(key))
             for key in after.remotes.keys() | before.remotes.keys()]
    moved = [(key, was, now) for key, was, now in moved if was is not now and was != now]
    for host in new_hosts.keys() & old_hosts.keys():
        patch: Patch = {}
        if before.goal != after.goal:
            patch[key_of(after.goal)] = after.goal
        was_local, now_local = old_hosts[host], new_hosts[host]
        patch.update((key, None) for key in was_local.keys() - now_local.keys())
        patch.update((key, goal) for key, goal in now_local.items()
                     if (was_goal := was_local.get(key)) is not goal and was_goal != goal)
        for key, was, now in moved:
            if now is not None and now[0] != host:
                patch[key] = now[1]
            elif was is not None and was[0] != host:
                patch[key] = None
        if patch:
            patches.setdefault(host, {}).update(patch)


def _host_goal(state: State, name: str) -> HostGoal | None:
    host = state.host(name)
    if host is None or not state.endpoints_on(name):
        return None
    return HostGoal(HOST_GOAL_ID, host.spec.underlay or "", host.spec.uplink or "", host.spec.nat_ports)


def _network_plan(state: State, network: Stored[NetworkSpec], old: NetworkPlan | None) -> NetworkPlan | None:
    """The part of one network; None when nobody is in it. Goals that are as in `old` are taken from there."""
    endpoints = state.endpoints_of(network.ref)
    if not endpoints:
        return None
    goal = _network_goal(network)
    policies = sorted(state.policies_of(network.ref), key=lambda p: (p.spec.priority, p.ref.name))
    acl = Acl(policies, Members(endpoints), old.tiers if old else {})
    prefixes = [ip_network(subnet.prefix) for subnet in network.assigned.subnets]
    mappings = sorted(state.mappings_of(network.ref), key=lambda m: m.ref)
    mapped: dict[str, list[Stored[StaticMappingSpec]]] = {}
    for mapping in mappings:
        mapped.setdefault(mapping.spec.endpoint, []).append(mapping)
    local: dict[str, dict[Key, Goal]] = {}
    remotes: dict[Key, tuple[str, RemoteGoal]] = {}
    sources: dict[Key, object] = {}
    kept = old if old is not None and old.goal == goal else None
    vteps = {host: _vtep(state, host) for host in {e.spec.host for e in endpoints}}
    for endpoint in endpoints:
        host, key = endpoint.spec.host, ("port", endpoint.uid)
        verdict = acl.of(endpoint, mapped.get(endpoint.ref.name, ()))
        same = kept is not None and kept.sources.get(key) is endpoint
        port = kept.local[host][key] if kept is not None and same else None
        if not isinstance(port, PortGoal) or not verdict.shows(port):
            port = _port_goal(endpoint, goal.id, prefixes, verdict)
        local.setdefault(host, {})[key] = port
        sources[key] = endpoint
        if goal.mode == "overlay":
            key = ("remote", endpoint.uid)
            remote = kept.remotes[key][1] if kept is not None and same else None
            if remote is None or remote.vtep != vteps[host]:
                remote = _remote_goal(endpoint, goal.id, vteps[host])
            remotes[key] = (host, remote)
    for mapping in mappings:
        target = state.endpoint(Ref("Endpoint", mapping.ref.tenant, mapping.spec.endpoint))
        if target is not None:
            host, key = target.spec.host, ("mapping", mapping.uid)
            same = (kept is not None and kept.sources.get(key) is mapping
                    and kept.sources.get(("port", target.uid)) is target)
            local[host][key] = kept.local[host][key] if kept is not None and same else _mapping_goal(mapping, target)
            sources[key] = mapping
    return NetworkPlan(goal, local, remotes, acl.tiers, sources)


def _network_goal(network: Stored[NetworkSpec]) -> NetworkGoal:
    spec = network.spec
    return NetworkGoal(
        id=network.uid, name=network.ref.name, tenant=network.ref.tenant,
        mode="nat" if spec.mode == "nat" else "overlay", space=network.assigned.space,
        subnets=network.assigned.subnets, gateway_mac=network.assigned.gateway_mac,
        mtu_bytes=spec.mtu if isinstance(spec.mtu, int) else 0, nat=_nat_goal(spec.nat) if spec.nat else NatGoal())


def _nat_goal(spec: NatSpec) -> NatGoal:
    return NatGoal(
        addresses=spec.external_addresses, exceptions=spec.exceptions, destinations=spec.destinations,
        filtering=spec.filtering, block=spec.port_block, quota=spec.ports_per_endpoint, log=spec.log, ipv6=spec.ipv6,
        external_prefix=spec.external_prefix or "", timeouts=spec.timeouts.given())


def _port_goal(endpoint: Stored[EndpointSpec], network_id: str, prefixes: Sequence[Prefix],
               verdict: Verdict) -> PortGoal:
    spec, assigned = endpoint.spec, endpoint.assigned
    return PortGoal(
        id=endpoint.uid, name=endpoint.ref.name, tenant=endpoint.ref.tenant, network=network_id,
        address=_with_length(assigned.address, prefixes), mac=assigned.mac, netns=spec.netns or "",
        interface=spec.tap or spec.interface, tiers=verdict.tiers, default_in=verdict.default_in,
        default_out=verdict.default_out, strict_tcp=verdict.strict_tcp,
        address6=_with_length(assigned.address6, prefixes))


def _with_length(address: str, prefixes: Sequence[Prefix]) -> str:
    """The address with the length of its subnet's prefix."""
    if not address:
        return ""
    number = ip_address(address)
    return f"{address}/{next(prefix.prefixlen for prefix in prefixes if number in prefix)}"


def _vtep(state: State, host: str) -> str:
    stored = state.host(host)
    return (stored.spec.underlay if stored else None) or ""


def _remote_goal(endpoint: Stored[EndpointSpec], network_id: str, vtep: str) -> RemoteGoal:
    return RemoteGoal(endpoint.uid, endpoint.ref.name, network_id, endpoint.assigned.address,
                      endpoint.assigned.mac, vtep, endpoint.assigned.address6)


def _mapping_goal(mapping: Stored[StaticMappingSpec], target: Stored[EndpointSpec]) -> MappingGoal:
    spec, first = mapping.spec, mapping.assigned.external_port
    return MappingGoal(
        id=mapping.uid, name=mapping.ref.name, tenant=mapping.ref.tenant, protocol=spec.protocol,
        external_address=spec.external_address, external_ports=spec.externals(first), port=target.uid,
        internal_address=target.assigned.address6 if spec.version == 6 else target.assigned.address,
        internal_port=spec.internal(first))


__all__ = ["HOST_GOAL_ID", "Goals", "NetworkPlan", "Patch", "Plan", "plan", "replan"]
