"""From what is declared to the goal state of each host: pure functions over a `State`.

A plan is made of one part per network, and one goal per host that has a port. `replan` makes anew only the parts
that changes touch, takes over every goal object that stayed the same, and says what each host must be told. A host
learns of a network only when it has a port in it, and of remote endpoints only in such networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from controller.resources import (
    PROTOCOL_NUMBERS,
    EndpointSpec,
    NetworkSpec,
    PolicyRule,
    PolicySpec,
    Selector,
    StaticMappingSpec,
)
from controller.state import Change, Ref, State, Stored
from controller.validate import gateway_of
from southbound.messages import (
    AclRule,
    AclTier,
    Goal,
    HostGoal,
    Key,
    MappingGoal,
    NetworkGoal,
    PortGoal,
    RemoteGoal,
    Subnet,
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
    sources: Mapping[Key, object] = field(default_factory=dict)   # stored endpoint of each port goal

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
    acl = _Acl(policies, _Members(endpoints), old)
    length = IPv4Network(network.spec.subnets[0].prefix).prefixlen
    local: dict[str, dict[Key, Goal]] = {}
    remotes: dict[Key, tuple[str, RemoteGoal]] = {}
    sources: dict[Key, object] = {}
    kept = old if old is not None and old.goal == goal else None
    vteps = {host: _vtep(state, host) for host in {e.spec.host for e in endpoints}}
    for endpoint in endpoints:
        host, key = endpoint.spec.host, ("port", endpoint.uid)
        verdict = acl.of(endpoint)
        same = kept is not None and kept.sources.get(key) is endpoint
        port = kept.local[host][key] if kept is not None and same else None
        if not isinstance(port, PortGoal) or not verdict.shows(port):
            port = _port_goal(endpoint, goal.id, length, verdict)
        local.setdefault(host, {})[key] = port
        sources[key] = endpoint
        if goal.mode == "overlay":
            key = ("remote", endpoint.uid)
            remote = kept.remotes[key][1] if kept is not None and same else None
            if remote is None or remote.vtep != vteps[host]:
                remote = _remote_goal(endpoint, goal.id, vteps[host])
            remotes[key] = (host, remote)
    for mapping in state.mappings_of(network.ref):
        target = state.endpoint(Ref("Endpoint", mapping.ref.tenant, mapping.spec.endpoint))
        if target is not None:
            local[target.spec.host]["mapping", mapping.uid] = _mapping_goal(mapping, target)
    return NetworkPlan(goal, local, remotes, acl.tiers, sources)


def _network_goal(network: Stored[NetworkSpec]) -> NetworkGoal:
    spec = network.spec
    return NetworkGoal(
        id=network.uid, name=network.ref.name, tenant=network.ref.tenant,
        mode="nat" if spec.mode == "nat" else "overlay", space=network.assigned.space,
        subnets=(Subnet(spec.subnets[0].prefix, gateway_of(spec)),), gateway_mac=network.assigned.gateway_mac,
        mtu_bytes=spec.mtu if isinstance(spec.mtu, int) else 0)


def _port_goal(endpoint: Stored[EndpointSpec], network_id: str, prefix_length: int,
               verdict: _Verdict) -> PortGoal:
    return PortGoal(
        id=endpoint.uid, name=endpoint.ref.name, tenant=endpoint.ref.tenant, network=network_id,
        address=f"{endpoint.assigned.address}/{prefix_length}", mac=endpoint.assigned.mac,
        netns=endpoint.spec.netns, interface=endpoint.spec.interface, tiers=verdict.tiers,
        default_in=verdict.default_in, default_out=verdict.default_out, strict_tcp=verdict.strict_tcp)


def _vtep(state: State, host: str) -> str:
    stored = state.host(host)
    return (stored.spec.underlay if stored else None) or ""


def _remote_goal(endpoint: Stored[EndpointSpec], network_id: str, vtep: str) -> RemoteGoal:
    return RemoteGoal(endpoint.uid, endpoint.ref.name, network_id, endpoint.assigned.address,
                      endpoint.assigned.mac, vtep)


def _mapping_goal(mapping: Stored[StaticMappingSpec], target: Stored[EndpointSpec]) -> MappingGoal:
    spec = mapping.spec
    return MappingGoal(
        id=mapping.uid, name=mapping.ref.name, tenant=mapping.ref.tenant, protocol=spec.protocol,
        external_address=spec.external_address, external_ports=(mapping.assigned.external_port,) * 2, port=target.uid,
        internal_address=target.assigned.address, internal_port=spec.internal_port)


class _Members:
    """Finds endpoints of a network by selector."""

    def __init__(self, endpoints: Sequence[Stored[EndpointSpec]]) -> None:
        self._by_name = {e.ref.name: e for e in endpoints}
        self._by_label: dict[tuple[str, str], set[str]] | None = None
        self._prefixes: dict[object, tuple[str, ...]] = {}

    def select(self, selector: Selector) -> set[str]:
        """Names of the endpoints that are named or that carry all labels; nobody for an empty selector."""
        chosen = {name for name in selector.endpoints if name in self._by_name}
        if selector.labels:
            index = self._labels()
            chosen |= set.intersection(*(index.get(pair, set()) for pair in selector.labels.items()))
        return chosen

    def prefixes(self, selector: Selector) -> tuple[str, ...]:
        """The addresses of the selected endpoints, joined to prefixes. Found once for equal selectors."""
        identity = (selector.endpoints, tuple(sorted(selector.labels.items())))
        found = self._prefixes.get(identity)
        if found is None:
            addresses = (self._by_name[name].assigned.address for name in self.select(selector))
            found = self._prefixes[identity] = tuple(joined(sorted(int(IPv4Address(a)) for a in addresses)))
        return found

    def _labels(self) -> dict[tuple[str, str], set[str]]:
        if self._by_label is None:
            self._by_label = {}
            for name, endpoint in self._by_name.items():
                for pair in endpoint.labels.items():
                    self._by_label.setdefault(pair, set()).add(name)
        return self._by_label


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What the policies of an endpoint come to."""

    tiers: tuple[AclTier, ...]
    default_in: Literal["allow", "deny"]
    default_out: Literal["allow", "deny"]
    strict_tcp: bool

    def shows(self, port: PortGoal) -> bool:
        """Whether a goal has this already."""
        return ((port.tiers, port.default_in, port.default_out, port.strict_tcp)
                == (self.tiers, self.default_in, self.default_out, self.strict_tcp))


class _Acl:
    """The policies of a network, resolved once and handed to the endpoints that they apply to."""

    def __init__(self, policies: Sequence[Stored[PolicySpec]], members: _Members, old: NetworkPlan | None) -> None:
        self._policies = policies
        self._applies = [members.select(p.spec.applies_to) if _selective(p.spec.applies_to) else None
                         for p in policies]
        self._verdicts: dict[tuple[int, ...], _Verdict] = {}
        self.tiers: dict[Ref, AclTier] = {}
        for policy in policies:
            tier = _tier(policy, members)
            was = old.tiers.get(policy.ref) if old else None
            self.tiers[policy.ref] = was if was is not None and was == tier else tier

    def of(self, endpoint: Stored[EndpointSpec]) -> _Verdict:
        """Tiers in order and defaults for one endpoint; deny wins among defaults."""
        name = endpoint.ref.name
        chosen = tuple(i for i, names in enumerate(self._applies) if names is None or name in names)
        verdict = self._verdicts.get(chosen)
        if verdict is None:
            policies = [self._policies[i] for i in chosen]
            verdict = self._verdicts[chosen] = _Verdict(
                tuple(self.tiers[p.ref] for p in policies),
                "deny" if any(p.spec.default_in == "deny" for p in policies) else "allow",
                "deny" if any(p.spec.default_out == "deny" for p in policies) else "allow",
                any(p.spec.tcp == "strict" for p in policies))
        return verdict


def _selective(selector: Selector) -> bool:
    return bool(selector.endpoints or selector.labels)


def _tier(policy: Stored[PolicySpec], members: _Members) -> AclTier:
    rules = []
    for position, (priority, rule) in enumerate(policy.spec.numbered()):
        peers: tuple[str, ...] = ()
        if rule.peer is not None:
            peers = _peers(rule, members)
            if not peers:
                continue                    # it speaks of nobody; without peers it would speak of everybody
        rules.append(AclRule(
            priority=priority, direction=rule.direction, action=rule.action, peers=peers,
            protocol=PROTOCOL_NUMBERS.get(rule.protocol) if isinstance(rule.protocol, str) else rule.protocol,
            ports=tuple(map(_port_range, rule.ports)), name=rule.name or f"{policy.ref.path}[{position}]",
            dscp=rule.dscp, log=rule.log, domains=rule.domains))
    return AclTier(policy.ref.path, policy.spec.priority, tuple(rules))


def _peers(rule: PolicyRule, members: _Members) -> tuple[str, ...]:
    """The other side as prefixes: addresses of the selected endpoints, joined, and the given prefixes."""
    peer = rule.peer
    assert peer is not None
    return tuple(dict.fromkeys((*members.prefixes(peer), *peer.cidrs)))


def joined(addresses: Sequence[int]) -> list[str]:
    """The fewest prefixes that hold exactly these addresses (ascending, no duplicates).

    The engine has one member of a set a prefix, and neighbours are the rule where addresses are given out in order.
    """
    prefixes = []
    i = 0
    while i < len(addresses):
        start, run = addresses[i], 1
        while i + run < len(addresses) and addresses[i + run] == start + run:
            run += 1
        end = start + run
        while start < end:
            size = min(start & -start if start else 1 << 32, 1 << ((end - start).bit_length() - 1))
            prefixes.append(f"{IPv4Address(start)}/{33 - size.bit_length()}")
            start += size
        i += run
    return prefixes


def _port_range(ports: int | str) -> tuple[int, int]:
    if isinstance(ports, int):
        return ports, ports
    low, _, high = ports.partition("-")
    return int(low), int(high)


__all__ = ["HOST_GOAL_ID", "Goals", "NetworkPlan", "Patch", "Plan", "joined", "plan", "replan"]
