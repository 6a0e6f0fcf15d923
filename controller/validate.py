"""Checks of a declared resource against everything stored and against what hosts reported. Pure.

`check` and `check_removal` return every problem found, with field, what was found and what to do. A document that
equals what is stored is not checked again: what was once accepted stays acceptable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet

from controller.check_endpoints import check_endpoint
from controller.check_mappings import check_mapping
from controller.check_modes import known_link
from controller.check_networks import check_network
from controller.checks import Surroundings, endpoint_of, exists, listing
from controller.documents import Declared
from controller.endpoint_specs import EndpointSpec
from controller.errors import Problem
from controller.host_specs import HostSpec
from controller.policy_specs import PolicySpec, Selector
from controller.resources import DEFAULT_TENANT
from controller.state import AnyStored, Ref, State, Stored


def check(declared: Declared, around: Surroundings) -> list[Problem]:
    """What is wrong with storing this document; empty: nothing."""
    old = around.state.get(declared.ref)
    problems = list(_tenant_exists(declared.ref, around))
    return problems or list(_CHECKS[declared.ref.kind](declared, old, around))


def check_removal(stored: AnyStored, state: State, going: AbstractSet[Ref] = frozenset()) -> list[Problem]:
    """What keeps this object from being removed, beside what is `going` with it; empty: nothing."""
    ref = stored.ref
    if ref == Ref("Tenant", "", DEFAULT_TENANT):
        return [Problem("in_use", "the default tenant cannot be deleted", "metadata.name", ref.name,
                        "delete what is in it instead")]
    users: Iterable[Ref] = ()
    match ref.kind:
        case "Tenant":
            users = state.in_tenant.get(ref.name, ())
        case "Host":
            users = state.on_host.get(ref.name, ())
        case "Network":
            users = state.in_it(ref)
        case "Endpoint":
            users = state.mapped.get(ref, ())
    users = sorted({*users, *state.users.get(ref, ())} - going)
    if not users:
        return []
    return [Problem("in_use", f"{ref} is in use by {listing(users)}", "metadata.name", ref.name,
                    f"delete {'it' if len(users) == 1 else 'them'} first, or in the same request")]


def _tenant_exists(ref: Ref, around: Surroundings) -> Iterator[Problem]:
    if ref.tenant:
        yield from exists(Ref("Tenant", "", ref.tenant), "metadata.tenant", around)


def _check_tenant(declared: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    return iter(())


def _check_host(declared: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    spec, name, state = declared.spec, declared.ref.name, around.state
    assert isinstance(spec, HostSpec)
    for address in spec.underlays:
        holder = state.underlays.get(address)
        if holder not in (None, declared.ref):
            yield Problem("in_use", f"{address} is the underlay address of {holder}", "spec.underlay", address,
                          "give each host its own")
    if not spec.underlays:
        overlay = [e.ref for e in state.endpoints_on(name) if _mode(state, e) == "overlay"]
        if overlay:
            yield Problem("in_use", f"{declared.ref} has overlay endpoints ({listing(sorted(overlay))}) and needs "
                          "its underlay address", "spec.underlay", "nothing", "delete them first, or keep it")
    if spec.uplink is not None and not spec.external:
        yield from known_link(spec.uplink, "spec.uplink", name, around)
    for i, tenant in enumerate(spec.runtimes.tenants):
        yield from exists(Ref("Tenant", "", tenant), f"spec.runtimes.tenants[{i}]", around)
    low, high = spec.nat_ports
    for mapping in state.mappings_on(name):
        first, last = mapping.spec.externals(mapping.assigned.external_port)
        if first <= high and low <= last and mapping.spec.protocol != "any":
            yield Problem("in_use", f"natPorts would take port {max(first, low)} from {mapping.ref}", "spec.natPorts",
                          f"[{low}, {high}]", "choose another range, or move the mapping")
    for network in state.nat_networks_on(name):
        if network.spec.nat is not None and network.spec.nat.port_block > high - low + 1:
            yield Problem("in_use", f"{network.ref} gives out blocks of {network.spec.nat.port_block} ports",
                          "spec.natPorts", f"[{low}, {high}]", "choose a larger range, or smaller blocks there")


def _mode(state: State, endpoint: Stored[EndpointSpec]) -> str:
    network = state.network(State.network_ref(endpoint))
    return network.spec.mode if network else ""


def _check_policy(declared: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    spec, ref = declared.spec, declared.ref
    assert isinstance(spec, PolicySpec)
    network = Ref("Network", ref.tenant, spec.network)
    yield from exists(network, "spec.network", around)
    if old is not None and isinstance(old.spec, PolicySpec) and old.spec.network != spec.network:
        yield Problem("immutable", f"cannot be changed (it is {old.spec.network})", "spec.network", spec.network,
                      "delete the policy and make it anew")
    yield from _selected(spec.applies_to, "spec.appliesTo", network, around)
    for i, rule in enumerate(spec.rules):
        if rule.peer is not None:
            side = "from" if rule.direction == "in" else "to"
            yield from _selected(rule.peer, f"spec.rules[{i}].{side}", network, around)


def _selected(selector: Selector, where: str, network: Ref, around: Surroundings) -> Iterator[Problem]:
    """The endpoints that a selector names must exist in the policy's network."""
    for i, name in enumerate(selector.endpoints):
        yield from endpoint_of(name, f"{where}.endpoints[{i}]", network, around)


_CHECKS: dict[str, Callable[[Declared, AnyStored | None, Surroundings], Iterator[Problem]]] = {
    "Tenant": _check_tenant,
    "Host": _check_host,
    "Network": check_network,
    "Endpoint": check_endpoint,
    "Policy": _check_policy,
    "StaticMapping": check_mapping,
}

__all__ = ["check", "check_removal"]
