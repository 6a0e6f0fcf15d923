"""Checks of a declared resource against everything stored and against what hosts reported. Pure.

`check` and `check_removal` return every problem found, with field, what was found and what to do. A document that
equals what is stored is not checked again: what was once accepted stays acceptable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address
from typing import Any

from controller.documents import Declared
from controller.errors import Problem, suggestion
from controller.ipam import default_gateway, usable
from controller.resources import (
    DEFAULT_TENANT,
    EndpointSpec,
    HostSpec,
    NetworkSpec,
    PolicySpec,
    Selector,
    StaticMappingSpec,
)
from controller.state import AnyStored, Ref, State, Stored
from southbound.messages import HostFacts

ANY_ADDRESS = "0.0.0.0"
WIDEST_ROUTE = 1                            # prefix length: 0.0.0.0/0, and the halves that VPNs use instead
PREFIX_LENGTHS = (8, 30)                    # of a network's subnet


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a check may look at besides the document."""

    state: State
    facts: Mapping[str, HostFacts] = field(default_factory=dict)     # by host name
    refused: AbstractSet[Ref] = frozenset()   # of the same request: a reference to one is not reported again


def check(declared: Declared, around: Surroundings) -> list[Problem]:
    """What is wrong with storing this document; empty: nothing."""
    old = around.state.get(declared.ref)
    problems = list(_tenant_exists(declared.ref, around))
    return problems or list(_CHECKS[declared.ref.kind](declared, old, around))


def check_removal(stored: AnyStored, state: State) -> list[Problem]:
    """What keeps this object from being removed; empty: nothing."""
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
            users = state.in_network.get(ref, ())
        case "Endpoint":
            users = state.mapped.get(ref, ())
    users = sorted(users)
    if not users:
        return []
    return [Problem("in_use", f"{ref} is in use by {_listing(users)}", "metadata.name", ref.name,
                    f"delete {'it' if len(users) == 1 else 'them'} first, or in the same request")]


def claims_port(mapping: Stored[StaticMappingSpec], protocol: str, address: str, port: int) -> bool:
    """Whether a mapping holds an external port, or one that overlaps it by the any-address."""
    return (mapping.spec.protocol == protocol and mapping.assigned.external_port == port
            and _same_listener(mapping.spec.external_address, address))


def listener_on(facts: HostFacts | None, protocol: str, address: str, port: int) -> str:
    """A socket of the host that holds a port, as address:port; empty: none."""
    for its_protocol, its_address, its_port in facts.listeners if facts else ():
        if (its_protocol, its_port) != (protocol, port):
            continue
        listening = ip_address(its_address)
        if listening.is_loopback:
            continue                        # not reachable from outside, so not in the way
        if listening.is_unspecified or _same_listener(its_address, address):
            return f"[{its_address}]:{port}" if listening.version == 6 else f"{its_address}:{port}"
    return ""


def _same_listener(one: str, other: str) -> bool:
    return one == other or ANY_ADDRESS in (one, other)


def _tenant_exists(ref: Ref, around: Surroundings) -> Iterator[Problem]:
    if ref.tenant:
        yield from _exists(Ref("Tenant", "", ref.tenant), "metadata.tenant", around)


def _exists(ref: Ref, where: str, around: Surroundings) -> Iterator[Problem]:
    """A problem unless the reference leads somewhere (or to a document that is refused itself)."""
    if ref in around.state.objects or ref in around.refused:
        return
    known = [r.name for r in around.state.by_kind.get(ref.kind, ()) if r.tenant == ref.tenant]
    place = f" in tenant {ref.tenant}" if ref.tenant else ""
    hint = suggestion(ref.name, known)
    todo = f"{hint.rstrip('?')}? else apply it first" if hint.startswith("did") else \
        f"apply it first, or {hint}" if hint and len(known) <= 10 else "apply it first, or with this one"
    yield Problem(f"unknown_{ref.kind.lower()}", f"there is no {ref.kind} {ref.name!r}{place}", where, ref.name, todo)


def _listing(refs: list[Ref]) -> str:
    shown = ", ".join(map(str, refs[:3]))
    return f"{shown} and {len(refs) - 3} more" if len(refs) > 3 else shown


def _check_tenant(declared: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    return iter(())


def _check_host(declared: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    spec, name, state = declared.spec, declared.ref.name, around.state
    assert isinstance(spec, HostSpec)
    if spec.underlay:
        holder = state.underlays.get(spec.underlay)
        if holder not in (None, declared.ref):
            yield Problem("in_use", f"{spec.underlay} is the underlay address of {holder}", "spec.underlay",
                          spec.underlay, "give each host its own")
    else:
        overlay = [e.ref for e in state.endpoints_on(name) if _mode(state, e) == "overlay"]
        if overlay:
            yield Problem("in_use", f"{declared.ref} has overlay endpoints ({_listing(sorted(overlay))}) and needs "
                          "its underlay address", "spec.underlay", "nothing", "delete them first, or keep it")
    low, high = spec.nat_ports
    for mapping in state.mappings_on(name):
        port = mapping.assigned.external_port
        if low <= port <= high:
            yield Problem("in_use", f"natPorts would take port {port} from {mapping.ref}", "spec.natPorts",
                          f"[{low}, {high}]", "choose another range, or move the mapping")


def _mode(state: State, endpoint: Stored[EndpointSpec]) -> str:
    network = state.network(State.network_ref(endpoint))
    return network.spec.mode if network else ""


def _check_network(declared: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    spec = declared.spec
    assert isinstance(spec, NetworkSpec)
    if len(spec.subnets) != 1:
        yield Problem("invalid", "a network has exactly one subnet in this version", "spec.subnets",
                      f"{len(spec.subnets)} subnets", "give one prefix; make another network for another one")
        return
    yield from _check_subnet(spec)
    if old is not None:
        yield from _immutable(spec, old)
        return
    if spec.mode == "overlay":
        yield from _check_overlay(declared.ref, spec, around)
    else:
        yield from _check_nat(declared.ref, spec, around)


def _check_subnet(spec: NetworkSpec) -> Iterator[Problem]:
    subnet = spec.subnets[0]
    prefix = IPv4Network(subnet.prefix)
    shortest, longest = PREFIX_LENGTHS
    where = "spec.subnets[0].prefix"
    if not shortest <= prefix.prefixlen <= longest:
        yield Problem("out_of_range", f"a subnet's prefix length is {shortest} to {longest}", where, subnet.prefix,
                      "use for example a /24")
    elif prefix.is_loopback or prefix.is_multicast or prefix.is_reserved or prefix.is_link_local \
            or prefix.network_address in IPv4Network("0.0.0.0/8"):
        yield Problem("invalid", f"{prefix} is not for endpoints (loopback, link-local, multicast or reserved)",
                      where, subnet.prefix, "use a private prefix such as 10.1.0.0/24")
    elif subnet.gateway:
        yield from _inside(subnet.gateway, prefix, "spec.subnets[0].gateway", "gateway")


def _inside(address: str, prefix: IPv4Network, where: str, what: str) -> Iterator[Problem]:
    """Problems unless the address is one that an interface of the subnet can have."""
    low, high = (str(IPv4Address(n)) for n in usable(prefix))
    todo = f"use one from {low} to {high}"
    if IPv4Address(address) not in prefix:
        yield Problem("outside", f"{what} is outside of its subnet {prefix}", where, address, todo)
    elif address == str(prefix.network_address):
        yield Problem("invalid", f"{what} is the network address of {prefix}", where, address, todo)
    elif address == str(prefix.broadcast_address):
        yield Problem("invalid", f"{what} is the broadcast address of {prefix}", where, address, todo)


def gateway_of(spec: NetworkSpec) -> str:
    """The gateway that holds: the declared one or the first address."""
    subnet = spec.subnets[0]
    return subnet.gateway or default_gateway(IPv4Network(subnet.prefix))


def _immutable(spec: NetworkSpec, old: AnyStored) -> Iterator[Problem]:
    was = old.spec
    assert isinstance(was, NetworkSpec)
    vni = old.assigned.space if was.mode == "overlay" and spec.vni != "auto" else spec.vni
    changes: list[tuple[str, Any, Any]] = [
        ("spec.mode", was.mode, spec.mode),
        ("spec.subnets[0].prefix", was.subnets[0].prefix, spec.subnets[0].prefix),
        ("spec.subnets[0].gateway", gateway_of(was), gateway_of(spec)),
        ("spec.host", was.host, spec.host),
        ("spec.vni", vni, spec.vni),
    ]
    for where, before, now in changes:
        if before != now:
            shown = "nothing" if now is None else str(now)
            yield Problem("immutable", f"cannot be changed (it is {before or 'not set'})", where, shown,
                          "keep it, or make another network and move the endpoints")


def _check_overlay(ref: Ref, spec: NetworkSpec, around: Surroundings) -> Iterator[Problem]:
    if spec.host is not None:
        yield Problem("invalid", "an overlay network spans hosts and has none of its own", "spec.host", spec.host,
                      "leave it out, or use mode nat")
    if isinstance(spec.vni, int) and spec.vni in around.state.spaces:
        yield Problem("in_use", f"VNI {spec.vni} is taken by {around.state.spaces[spec.vni]}", "spec.vni",
                      str(spec.vni), "choose another, or auto")


def _check_nat(ref: Ref, spec: NetworkSpec, around: Surroundings) -> Iterator[Problem]:
    if spec.vni != "auto":
        yield Problem("invalid", "a nat network has no VNI", "spec.vni", str(spec.vni), "leave it out")
    if spec.host is None:
        yield Problem("missing", "a nat network lives on one host", "spec.host", "nothing", "add the name of a host")
        return
    yield from _exists(Ref("Host", "", spec.host), "spec.host", around)
    prefix, where = IPv4Network(spec.subnets[0].prefix), "spec.subnets[0].prefix"
    for other in around.state.nat_networks_on(spec.host):
        its_prefix = IPv4Network(other.spec.subnets[0].prefix)
        if other.ref != ref and its_prefix.overlaps(prefix):
            yield Problem("overlap", f"overlaps {its_prefix} of {other.ref} on the same host {spec.host}", where,
                          str(prefix), "choose a prefix that overlaps none of the host's nat networks")
    yield from overlaps_host(prefix, where, spec.host, around.facts.get(spec.host))


def overlaps_host(prefix: IPv4Network, where: str, host: str, facts: HostFacts | None) -> Iterator[Problem]:
    """One problem a host interface whose addresses or routes overlap the prefix."""
    if facts is None:
        return
    todo = f"choose a prefix that is free on {host}"
    seen: set[str] = set()
    for interface, address in facts.addresses:
        if ":" not in address and interface not in seen and IPv4Interface(address).network.overlaps(prefix):
            seen.add(interface)
            yield Problem("overlap", f"overlaps address {address} of interface {interface} of host {host}", where,
                          str(prefix), todo)
    for interface, text in facts.routes:
        if ":" in text or interface in seen:
            continue
        route = IPv4Network(text, strict=False)
        if route.prefixlen > WIDEST_ROUTE and route.overlaps(prefix):
            seen.add(interface)
            yield Problem("overlap", f"overlaps route {text} over interface {interface} of host {host}", where,
                          str(prefix), todo)


def _check_endpoint(declared: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    spec, ref, state = declared.spec, declared.ref, around.state
    assert isinstance(spec, EndpointSpec)
    network_ref = Ref("Network", ref.tenant, spec.network)
    yield from _exists(network_ref, "spec.network", around)
    yield from _exists(Ref("Host", "", spec.host), "spec.host", around)
    if old is not None and isinstance(old.spec, EndpointSpec) and old.spec.network != spec.network:
        yield Problem("immutable", f"cannot be changed (it is {old.spec.network})", "spec.network", spec.network,
                      "delete the endpoint and make it anew")
        return
    holder = state.interfaces.get((spec.host, spec.netns, spec.interface))
    if holder not in (None, ref):
        yield Problem("in_use", f"interface {spec.interface} in {spec.netns} on {spec.host} is that of {holder}",
                      "spec.interface", spec.interface, "choose another interface name or namespace")
    network, host = state.network(network_ref), state.host(spec.host)
    if network is None:
        return
    if network.spec.mode == "nat" and network.spec.host != spec.host:
        yield Problem("invalid", f"{network_ref} is a nat network of host {network.spec.host}", "spec.host",
                      spec.host, f"use host {network.spec.host}, or a network of {spec.host}")
    if network.spec.mode == "overlay" and host is not None and not host.spec.underlay:
        yield Problem("invalid", f"host {spec.host} has no underlay address, which an overlay endpoint needs",
                      "spec.host", spec.host, f"set spec.underlay of Host {spec.host}")
    yield from _check_addresses(ref, spec, network, state)


def _check_addresses(ref: Ref, spec: EndpointSpec, network: Stored[NetworkSpec], state: State) -> Iterator[Problem]:
    if spec.address:
        outside = list(_inside(spec.address, IPv4Network(network.spec.subnets[0].prefix), "spec.address", "address"))
        yield from outside
        holder = state.addresses.get((network.ref, spec.address))
        if not outside and spec.address == gateway_of(network.spec):
            yield Problem("in_use", f"{spec.address} is the gateway of {network.ref}", "spec.address", spec.address,
                          "choose another, or leave it out")
        elif holder not in (None, ref):
            yield Problem("in_use", f"{spec.address} is the address of {holder}", "spec.address", spec.address,
                          "choose another, or leave it out")
    if spec.mac:
        holder = state.macs.get((network.ref, spec.mac))
        if spec.mac == network.assigned.gateway_mac:
            yield Problem("in_use", f"{spec.mac} is the gateway's MAC in {network.ref}", "spec.mac", spec.mac,
                          "choose another, or leave it out")
        elif holder not in (None, ref):
            yield Problem("in_use", f"{spec.mac} is the MAC of {holder}", "spec.mac", spec.mac,
                          "choose another, or leave it out")


def _check_policy(declared: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    spec, ref = declared.spec, declared.ref
    assert isinstance(spec, PolicySpec)
    network = Ref("Network", ref.tenant, spec.network)
    yield from _exists(network, "spec.network", around)
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
        yield from _endpoint_of(name, f"{where}.endpoints[{i}]", network, around)


def _endpoint_of(name: str, where: str, network: Ref, around: Surroundings) -> Iterator[Problem]:
    ref = Ref("Endpoint", network.tenant, name)
    missing = list(_exists(ref, where, around))
    yield from missing
    endpoint = around.state.endpoint(ref)
    if endpoint is not None and endpoint.spec.network != network.name:
        yield Problem("invalid", f"{ref} is in network {endpoint.spec.network}, not in {network.name}", where, name,
                      f"name an endpoint of {network.name}")


def _check_mapping(declared: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    spec, ref, state = declared.spec, declared.ref, around.state
    assert isinstance(spec, StaticMappingSpec)
    network_ref = Ref("Network", ref.tenant, spec.network)
    yield from _exists(network_ref, "spec.network", around)
    yield from _endpoint_of(spec.endpoint, "spec.endpoint", network_ref, around)
    network = state.network(network_ref)
    if network is None:
        return
    if network.spec.mode != "nat" or network.spec.host is None:
        yield Problem("wrong_mode", f"{network_ref} is an {network.spec.mode} network; mappings are for nat networks",
                      "spec.network", spec.network, "name a network of mode nat")
        return
    host, facts = network.spec.host, around.facts.get(network.spec.host)
    if spec.external_address != ANY_ADDRESS and facts is not None:
        own = [a.partition("/")[0] for _, a in facts.addresses]
        if spec.external_address not in own:
            yield Problem("outside", f"is not an address of host {host}", "spec.externalAddress",
                          spec.external_address, f"use one of {', '.join(own[:6])}, or {ANY_ADDRESS}")
    if isinstance(spec.external_port, int):
        yield from _check_port(ref, spec, spec.external_port, host, around)


def _check_port(ref: Ref, spec: StaticMappingSpec, port: int, host: str, around: Surroundings) -> Iterator[Problem]:
    where, todo = "spec.externalPort", "choose another, or auto"
    for mapping in around.state.mappings_on(host):
        if mapping.ref != ref and claims_port(mapping, spec.protocol, spec.external_address, port):
            yield Problem("in_use", f"{spec.protocol} port {port} of host {host} is taken by {mapping.ref}", where,
                          str(port), todo)
    listener = listener_on(around.facts.get(host), spec.protocol, spec.external_address, port)
    if listener:
        yield Problem("in_use", f"{spec.protocol} port {port} of host {host} is taken by a program of the host that "
                      f"listens on {listener}", where, str(port), todo + ", or stop that program")
    stored = around.state.host(host)
    if stored is not None and stored.spec.nat_ports[0] <= port <= stored.spec.nat_ports[1]:
        low, high = stored.spec.nat_ports
        yield Problem("in_use", f"port {port} is in the range {low}-{high} that NAT uses on host {host}", where,
                      str(port), f"{todo}, or change spec.natPorts of Host {host}")


_CHECKS: dict[str, Callable[[Declared, AnyStored | None, Surroundings], Iterator[Problem]]] = {
    "Tenant": _check_tenant,
    "Host": _check_host,
    "Network": _check_network,
    "Endpoint": _check_endpoint,
    "Policy": _check_policy,
    "StaticMapping": _check_mapping,
}

__all__ = ["Surroundings", "check", "check_removal", "claims_port", "gateway_of", "listener_on",
           "overlaps_host"]
