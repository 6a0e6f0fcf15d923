"""From what is declared to the goal state of each host: pure functions over a `State`.

A plan is made of one part per network, and one goal per host that has something to do. `replan` makes anew only what
changes touch, takes over every goal object that stayed the same, and says what each host must be told. A host learns
of a network only when it has a port or a lease in it or in a network that is peered with it, or is its exit; and of
remote endpoints only in such networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from controller.endpoint_specs import EndpointSpec
from controller.host_specs import HostSpec
from controller.mapping_specs import StaticMappingSpec
from controller.network_specs import NetworkSpec
from controller.plan_goals import HOST_GOAL_ID, host_goal
from controller.plan_network import NetworkPlan, network_plan
from controller.policy_specs import PolicySpec
from controller.state import Change, Ref, State
from southbound.messages import Goal, HostGoal, Key, key_of

Goals = dict[Key, Goal]
Patch = dict[Key, Goal | None]
"""What to tell a host: goals to put, and None for keys to remove."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Goal states of all hosts, in shared parts."""

    networks: Mapping[Ref, NetworkPlan] = field(default_factory=dict)
    hosts: Mapping[str, HostGoal] = field(default_factory=dict)     # those that have something to do

    def goals(self, host: str) -> Goals:
        """The whole goal state of one host; empty: it has nothing to do."""
        goals: Goals = {}
        if host in self.hosts:
            goals[key_of(self.hosts[host])] = self.hosts[host]
        for part in self.networks.values():
            if host in part.goals:
                goals.update(part.for_host(host))
        return goals

    def hosts_of(self, network: Ref) -> tuple[str, ...]:
        """The hosts that have a port in a network or are its exits."""
        part = self.networks.get(network)
        if part is None:
            return ()
        return tuple(sorted(host for host in part.goals if host in part.ports or host in part.network.spec.exits))


@dataclass(slots=True)
class _Touched:
    """What changes may concern, in a fixed order."""

    networks: dict[Ref, set[str]] = field(default_factory=dict)     # with the endpoints concerned, by uid
    verdicts: set[Ref] = field(default_factory=set)                 # networks whose policies or mappings changed
    hosts: dict[str, None] = field(default_factory=dict)

    def endpoint(self, network: Ref, uid: str) -> None:
        """An endpoint of a network."""
        self.networks.setdefault(network, set()).add(uid)


def plan(state: State) -> Plan:
    """The plan of a state, from scratch."""
    parts = {n.ref: network_plan(state, n, None) for n in state.networks()}
    told = {ref: part.told_to(_audience(state, parts, ref), state, None) for ref, part in parts.items()}
    port = state.vxlan_port()
    hosts = {h.ref.name: goal for h in state.hosts() if (goal := host_goal(state, h.ref.name, port)) is not None}
    return Plan({ref: part for ref, part in told.items() if part.goals or part.placed}, hosts)


def replan(old: Plan, state: State, changes: Iterable[Change]) -> tuple[Plan, dict[str, Patch]]:
    """The plan after changes, and what each host must be told of it. Equal to `plan(state)` and the difference."""
    touched = _touched(state, changes)
    networks, hosts = dict(old.networks), dict(old.hosts)
    patches: dict[str, Patch] = {}
    refs = _with_peers(old, state, touched.networks)
    made = {ref: network_plan(state, network, old.networks.get(ref), touched.networks.get(ref, ()),
                              ref in touched.verdicts)
            for ref in refs if (network := state.network(ref)) is not None}
    networks.update(made)
    for ref in refs:
        before, part = old.networks.get(ref), made.get(ref)
        if part is not None:
            part = part.told_to(_audience(state, networks, ref), state, before)
        if part is not None and (part.goals or part.placed):
            networks[ref] = part
        else:
            networks.pop(ref, None)
            part = None
        _difference(before, part, patches)
    port = state.vxlan_port()
    for name in touched.hosts:
        goal = host_goal(state, name, port)
        if goal == hosts.get(name):
            continue
        patches.setdefault(name, {})["host", HOST_GOAL_ID] = goal
        if goal is None:
            del hosts[name]
        else:
            hosts[name] = goal
    return Plan(networks, hosts), patches


def _audience(state: State, parts: Mapping[Ref, NetworkPlan], ref: Ref) -> set[str]:
    """The hosts that must know a network."""
    part = parts[ref]
    hosts = {*part.ports, *part.leases}
    for peer in state.peers_of(ref):
        if peer.ref in parts:
            hosts.update(parts[peer.ref].ports, parts[peer.ref].leases)
    if part.placed:
        hosts.update(part.network.spec.exits)
    return hosts


def _with_peers(old: Plan, state: State, networks: Iterable[Ref]) -> list[Ref]:
    """These networks, and those that are or were peered with one of them."""
    found: dict[Ref, None] = dict.fromkeys(networks)
    for ref in list(found):
        found.update(dict.fromkeys(peer.ref for peer in state.peers_of(ref)))
        before = old.networks.get(ref)
        for uid in before.goal.peers if before is not None else ():
            if uid in state.uids:
                found[state.uids[uid]] = None
    return list(found)


def _touched(state: State, changes: Iterable[Change]) -> _Touched:
    touched = _Touched()
    for change in changes:
        for stored in (change.before, change.after):
            if stored is None:
                continue
            spec, ref = stored.spec, stored.ref
            if isinstance(spec, NetworkSpec):
                touched.networks.setdefault(ref, set())
                touched.hosts.update(dict.fromkeys((*spec.exits, *stored.assigned.leases)))
            elif isinstance(spec, (PolicySpec, StaticMappingSpec)):
                touched.networks.setdefault(State.network_ref(stored), set())
                touched.verdicts.add(State.network_ref(stored))
            elif isinstance(spec, EndpointSpec):
                _touch_endpoint(touched, state, State.network_ref(stored), ref, stored.uid, spec.host)
            elif isinstance(spec, HostSpec):
                _touch_host(touched, state, ref.name)
        if change.ref.kind == "Host" and _vxlan_port(change.before) != _vxlan_port(change.after):
            touched.hosts.update(dict.fromkeys(host.ref.name for host in state.hosts()))
    return touched


def _vxlan_port(stored: object) -> int | None:
    spec = getattr(stored, "spec", None)
    return spec.vxlan_port if isinstance(spec, HostSpec) else None


def _touch_endpoint(touched: _Touched, state: State, network: Ref, ref: Ref, uid: str, host: str) -> None:
    touched.endpoint(network, uid)
    touched.hosts[host] = None
    if network in state.objects:            # its first endpoint, or its last, calls its exits or lets them go
        part = state.network(network)
        touched.hosts.update(dict.fromkeys(part.spec.exits if part is not None else ()))
    for user in state.users.get(ref, ()):
        if user.kind == "Network":          # a next hop
            touched.networks.setdefault(user, set())
        else:                               # behind it
            touched.endpoint(network, state.objects[user].uid)


def _touch_host(touched: _Touched, state: State, name: str) -> None:
    touched.hosts[name] = None
    for endpoint in state.endpoints_on(name):
        touched.endpoint(State.network_ref(endpoint), endpoint.uid)
    for network in (*state.named_by(Ref("Host", "", name), "Network"), *state.leasing.get(name, ())):
        touched.networks.setdefault(network, set())


def _difference(before: NetworkPlan | None, after: NetworkPlan | None, patches: dict[str, Patch]) -> None:
    """Add what the hosts of a network must be told of its change."""
    old_hosts = before.goals.keys() if before else set()
    new_hosts = after.goals.keys() if after else set()
    if before:
        for host in old_hosts - new_hosts:
            patches.setdefault(host, {}).update((key, None) for key, _ in before.for_host(host))
    if not after:
        return
    for host in new_hosts - old_hosts:
        patches.setdefault(host, {}).update(after.for_host(host))
    if not before:
        return
    moved = _moved(before, after)
    for host in new_hosts & old_hosts:
        patch: Patch = {}
        if before.goals[host] != after.goals[host]:
            patch[key_of(after.goals[host])] = after.goals[host]
        patch.update(_changes(before.ports.get(host, {}), after.ports.get(host, {})))
        patch.update(_changes(before.mappings.get(host, {}), after.mappings.get(host, {})))
        patch.update(_changes(_lease(before, host), _lease(after, host)))
        for home, changes in moved.items():
            if home != host:
                patch.update(changes)
        if patch:
            patches.setdefault(host, {}).update(patch)


def _lease(part: NetworkPlan, host: str) -> Mapping[Key, Goal]:
    return {key_of(goal): goal} if (goal := part.leases.get(host)) is not None else {}


def _moved(before: NetworkPlan, after: NetworkPlan) -> dict[str, Patch]:
    """What others must be told of the endpoints of each host."""
    found = {}
    for host in before.homes.keys() | after.homes.keys():
        was, now = before.homes.get(host), after.homes.get(host)
        if was is not now:
            changes = _changes(was.goals if was else {}, now.goals if now else {})
            if changes:
                found[host] = changes
    return found


def _changes(was: Mapping[Key, Goal], now: Mapping[Key, Goal]) -> Patch:
    if was is now:
        return {}
    patch: Patch = dict.fromkeys(was.keys() - now.keys())
    patch.update((key, goal) for key, goal in now.items() if (old := was.get(key)) is not goal and old != goal)
    return patch


__all__ = ["HOST_GOAL_ID", "Goals", "NetworkPlan", "Patch", "Plan", "plan", "replan"]
