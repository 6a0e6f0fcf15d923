"""Checks of a StaticMapping: who it leads to, and whether its external side is free."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from controller.check_networks import whole_address_mappings
from controller.checks import Surroundings, endpoint_of, exists, own_addresses
from controller.documents import Declared
from controller.errors import Problem
from controller.host_specs import HostSpec
from controller.ipam import Range
from controller.mapping_specs import ANY_ADDRESSES, StaticMappingSpec
from controller.network_specs import NatSpec, NetworkSpec
from controller.state import AnyStored, Ref, State, Stored
from controller.subnets import meant, subnets_of
from controller.texts import port_range
from southbound.messages import HostFacts


def check_mapping(document: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    """Problems of a StaticMapping."""
    spec, ref, state = document.spec, document.ref, around.state
    assert isinstance(spec, StaticMappingSpec)
    network_ref = Ref("Network", ref.tenant, spec.network)
    yield from exists(network_ref, "spec.network", around)
    yield from endpoint_of(spec.endpoint, "spec.endpoint", network_ref, around)
    network = state.network(network_ref)
    if network is None:
        return
    if network.spec.mode != "nat" or network.spec.host is None:
        yield Problem("wrong_mode", f"{network_ref} is an {network.spec.mode} network; mappings are for nat networks",
                      "spec.network", spec.network, "name a network of mode nat")
        return
    host = network.spec.host
    yield from _internal(ref, spec, network, state)
    yield from _external_address(spec, host, around)
    stored = state.host(host)
    if spec.protocol == "any":
        yield from _whole(ref, spec, host, around)
    elif spec.external_port == "auto":
        low, high = stored.spec.mapping_ports if stored else (1, 65535)
        if spec.size > high - low + 1:
            yield Problem("out_of_range", f"{spec.size} ports do not fit into mappingPorts {low}-{high} of Host {host}",
                          "spec.internalPort", str(spec.internal_port), "use a smaller range, or more mappingPorts")
    elif spec.external_port is not None:
        yield from _ports(ref, spec, port_range(spec.external_port), host, around, _same_outside(old, spec))


def _same_outside(old: AnyStored | None, spec: StaticMappingSpec) -> bool:
    """Whether the mapping is there and has this external side: a program that listens there now came too late."""
    was = old.spec if old is not None else None
    return isinstance(was, StaticMappingSpec) and \
        (was.protocol, was.external_port, was.external_address) == \
        (spec.protocol, spec.external_port, spec.external_address)


def _internal(ref: Ref, spec: StaticMappingSpec, network: Stored[NetworkSpec], state: State) -> Iterator[Problem]:
    endpoint = state.endpoint(Ref("Endpoint", ref.tenant, spec.endpoint))
    if endpoint is None or endpoint.spec.network != spec.network:
        return
    own = endpoint.assigned.address6 if spec.version == 6 else endpoint.assigned.address
    if not own:
        other = "0.0.0.0" if spec.version == 6 else "::"
        yield Problem("family", f"{endpoint.ref} has no IPv{spec.version} address", "spec.externalAddress",
                      spec.external_address, f"use {other} or an IPv{10 - spec.version} address of the host")
    elif spec.internal_address:
        subnets = subnets_of(network)
        found = meant(subnets, spec.internal_address)
        if found is None:
            yield Problem("outside", f"is outside of {network.ref} ({', '.join(str(s.prefix) for s in subnets)})",
                          "spec.internalAddress", spec.internal_address, f"use {own}, or leave it out")
        elif found[1] != own:
            yield Problem("invalid", f"is not the address of {endpoint.ref}", "spec.internalAddress",
                          spec.internal_address, f"use {own}, or leave it out")


def _external_address(spec: StaticMappingSpec, host: str, around: Surroundings) -> Iterator[Problem]:
    facts, address = around.facts.get(host), spec.external_address
    if address in ANY_ADDRESSES or facts is None:
        return
    if address not in own_addresses(facts):
        own = [a for a in own_addresses(facts)
               if ip_address(a).version == spec.version and not ip_address(a).is_loopback]
        yield Problem("outside", f"is not an address of host {host}", "spec.externalAddress", address,
                      f"use one of {', '.join(own[:6])}, or {'::' if spec.version == 6 else '0.0.0.0'}")


def _whole(ref: Ref, spec: StaticMappingSpec, host: str, around: Surroundings) -> Iterator[Problem]:
    """A mapping of protocol any takes all of an address: nobody else may want anything of it."""
    where, address, state = "spec.externalAddress", spec.external_address, around.state
    todo = "name an address of the host that nothing else uses"
    facts, stored = around.facts.get(host), state.host(host)
    if facts is not None and address in primary_addresses(facts):
        yield Problem("in_use", f"{address} is the host's own primary address, which would no longer reach host {host}",
                      where, address, "add a second address to the interface, and name that")
    if stored is not None and address in stored.spec.underlays:
        yield Problem("in_use", f"{address} is the underlay address of Host {host}", where, address, todo)
    for network in state.nat_networks_on(host):
        if address in (network.spec.nat or NatSpec()).external_addresses:
            yield Problem("in_use", f"{address} is an external address of {network.ref}", where, address, todo)
        named = {other for held in state.externals.get(network.ref, {}).values() for other, its in held
                 if its == address and other != ref}
        for other in sorted(named)[:3]:
            yield Problem("in_use", f"{address} is used by {other}", where, address, todo)


def primary_addresses(facts: HostFacts) -> set[str]:
    """The first IPv4 address of each interface, and the only IPv6 one; the kernel does not order those."""
    held: dict[tuple[str, int], list[str]] = {}
    for interface, text in facts.addresses:
        address = text.partition("/")[0]
        held.setdefault((interface, ip_address(address).version), []).append(address)
    return {its[0] for (_, version), its in held.items() if version == 4 or len(its) == 1}


def _ports(ref: Ref, spec: StaticMappingSpec, ports: Range, host: str, around: Surroundings,
           in_place: bool) -> Iterator[Problem]:
    where, todo, found = "spec.externalPort", "choose another, or auto", str(spec.external_port)
    for whole, address in whole_address_mappings(around, host):
        if address == spec.external_address and whole != ref:
            yield Problem("in_use", f"all of {address} is mapped by {whole}", "spec.externalAddress", address,
                          "choose another address, or delete that mapping")
    held = mapped(around.state, host, ref, spec, ports)
    if held is not None:
        yield Problem("in_use", f"{spec.protocol} port {held[1]} of host {host} is taken by {held[0]}", where, found,
                      todo)
    facts, stored = around.facts.get(host), around.state.host(host)
    listener = next(listeners_in(facts, spec, ports), None)
    if listener is not None and not in_place:
        yield Problem("in_use", f"{spec.protocol} port {listener[1]} of host {host} is taken by a program of "
                      f"the host that listens on {listener[0]}", where, found, todo + ", or stop that program")
    yield from _reserved(spec, ports, stored, around.state.vxlan_port())


def _reserved(spec: StaticMappingSpec, ports: Range, host: Stored[HostSpec] | None,
              vxlan_port: int) -> Iterator[Problem]:
    if host is None:
        return
    where, found, todo = "spec.externalPort", str(spec.external_port), "choose another, or auto"
    low, high = host.spec.nat_ports
    if ports[0] <= high and low <= ports[1]:
        which = f"port {ports[0]} is" if ports[0] == ports[1] else f"ports {ports[0]}-{ports[1]} are"
        yield Problem("in_use", f"{which} in the range {low}-{high} that NAT uses on host {host.ref.name}", where,
                      found, f"{todo}, or change spec.natPorts of Host {host.ref.name}")
    if spec.protocol == "udp" and host.spec.underlay and ports[0] <= vxlan_port <= ports[1]:
        yield Problem("in_use", f"udp port {vxlan_port} carries the overlay of host {host.ref.name}", where, found,
                      todo)


def mapped(state: State, host: str, ref: Ref, spec: StaticMappingSpec, ports: Range) -> tuple[Ref, int] | None:
    """Another mapping of the host that holds one of the ports, and that port."""
    for network in state.nat_networks_on(host):
        table = state.externals.get(network.ref, {})
        for port in range(ports[0], ports[1] + 1):
            for other, address in table.get((spec.protocol, port), ()):
                if other != ref and same_listener(address, spec.external_address):
                    return other, port
    return None


def listeners_in(facts: HostFacts | None, spec: StaticMappingSpec, ports: Range) -> Iterator[tuple[str, int]]:
    """Sockets of the host that hold one of the ports: address:port as text, and the port."""
    for protocol, address, port in facts.listeners if facts else ():
        if protocol != spec.protocol or not ports[0] <= port <= ports[1]:
            continue
        listening = ip_address(address)
        if listening.is_loopback:
            continue                        # not reachable from outside, so not in the way
        everywhere = listening.is_unspecified and (listening.version == 6 or spec.version == 4)
        if everywhere or same_listener(address, spec.external_address):
            yield (f"[{address}]:{port}" if listening.version == 6 else f"{address}:{port}"), port


def same_listener(one: str, other: str) -> bool:
    """Whether two addresses, which may be the any-address of a family, have one in common."""
    return one == other or ((":" in one) == (":" in other) and (one in ANY_ADDRESSES or other in ANY_ADDRESSES))


__all__ = ["check_mapping", "listeners_in", "mapped"]
