"""Goal objects of one resource each: networks as a host has them, ports, mappings, hosts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import cast

from controller.endpoint_specs import EndpointSpec
from controller.ipam import Prefix, text_of
from controller.leases import is_whole
from controller.mapping_specs import StaticMappingSpec
from controller.network_specs import NatSpec, NetworkSpec
from controller.plan_acl import Verdict
from controller.routing_specs import EVERYTHING
from controller.state import Ref, State, Stored
from controller.subnets import subnets_of
from controller.texts import bits_per_second
from southbound.messages import (
    FloodGoal,
    HostGoal,
    LeaseGoal,
    MappingGoal,
    Mode,
    NatGoal,
    NetworkGoal,
    PortGoal,
    QosGoal,
    RouteGoal,
)
from southbound.vteps import common_family

HOST_GOAL_ID = "self"


def host_goal(state: State, name: str, vxlan_port: int) -> HostGoal | None:
    """What a host is told of itself; None: it has nothing to do, or no agent."""
    host = state.host(name)
    if host is None or host.spec.external:
        return None
    if not (state.endpoints_on(name) or state.leasing.get(name) or _is_exit(state, host.ref)):
        return None
    spec, underlays = host.spec, host.spec.underlays
    return HostGoal(HOST_GOAL_ID, underlays[0] if underlays else "", spec.uplink or "", spec.nat_ports, underlays,
                    vxlan_port, bits_per_second(spec.uplink_rate), spec.mapping_ports)


def _is_exit(state: State, host: Ref) -> bool:
    return any(state.has_endpoints(network) for network in state.named_by(host, "Network"))


def vteps_of(state: State, host: str) -> tuple[str, ...]:
    """The underlay addresses of a host."""
    stored = state.host(host)
    return stored.spec.underlays if stored is not None else ()


def network_goal(state: State, network: Stored[NetworkSpec]) -> NetworkGoal:
    """A network, without what differs from host to host (`on_host`)."""
    spec = network.spec
    flooding = spec.flooding
    return NetworkGoal(
        id=network.uid, name=network.ref.name, tenant=network.ref.tenant, mode=cast(Mode, spec.mode),
        space=network.assigned.space, subnets=network.assigned.subnets, gateway_mac=network.assigned.gateway_mac,
        mtu_bytes=spec.mtu if isinstance(spec.mtu, int) else 0, nat=_nat_goal(spec), uplink=spec.uplink or "",
        peers=tuple(peer.uid for peer in state.peers_of(network.ref)), routes=tuple(_routes(state, network)),
        egress=spec.egress == "nat", isolated=spec.isolation,
        flood=FloodGoal(*flooding) if flooding is not None else None, advertise=spec.router_advertisements,
        slaac=spec.slaac)


def on_host(goal: NetworkGoal, state: State, host: str, members: Iterable[str]) -> NetworkGoal:
    """A network as this host is told it; `members`: the hosts, external ones too, that have an endpoint in it."""
    own = vteps_of(state, host)
    routes = tuple(replace(route, here=True) if route.vteps and route.vteps == own else route for route in goal.routes)
    if routes != goal.routes:
        goal = replace(goal, routes=routes)
    if goal.flood is not None and goal.mode == "overlay":
        others = (_flooded(own, vteps_of(state, member)) for member in sorted(members) if member != host)
        goal = replace(goal, flood=replace(goal.flood, vteps=tuple(each for each in others if each)))
    return goal


def _flooded(own: Sequence[str], other: Sequence[str]) -> str:
    """The first address of another host that we can reach."""
    mark = {4: ".", 6: ":"}.get(common_family(own, other), "?")
    return next((address for address in other if mark in address), "")


def _routes(state: State, network: Stored[NetworkSpec]) -> Iterable[RouteGoal]:
    for route in network.spec.routes:
        via = route.via
        if via.host is not None:
            yield RouteGoal(route.destination, vteps=vteps_of(state, via.host))
        elif via.address is not None:
            yield RouteGoal(route.destination, via.address)
        else:
            hop = state.endpoint(Ref("Endpoint", network.ref.tenant, via.endpoint or ""))
            own = hop.assigned if hop is not None else None
            address = "" if own is None else own.address6 if ":" in route.destination else own.address
            if address:
                yield RouteGoal(route.destination, address)
    if network.spec.exit is not None:
        for version in sorted({ip_address(subnet.gateway).version for subnet in network.assigned.subnets}):
            yield RouteGoal(EVERYTHING[version], vteps=vteps_of(state, network.spec.exit))


def _nat_goal(spec: NetworkSpec) -> NatGoal:
    """How it is translated. From an overlay, which is on many hosts, IPv6 leaves as the host's own address."""
    goal = _translation(spec.nat) if spec.nat is not None else NatGoal()
    return replace(goal, ipv6="masquerade") if spec.mode == "overlay" and (spec.exits or spec.egress == "nat") else goal


def _translation(spec: NatSpec) -> NatGoal:
    return NatGoal(
        addresses=spec.external_addresses, exceptions=spec.exceptions, destinations=spec.destinations,
        filtering=spec.filtering, block=spec.port_block, quota=spec.ports_per_endpoint, log=spec.log, ipv6=spec.ipv6,
        external_prefix=spec.external_prefix or "", timeouts=spec.timeouts.given())


def port_goal(endpoint: Stored[EndpointSpec], network_id: str, prefixes: Sequence[Prefix], verdict: Verdict,
              qos: QosGoal, behind: Stored[EndpointSpec] | None) -> PortGoal:
    """An endpoint on its own host. `behind`: the endpoint by whose link it is reached."""
    spec, assigned = endpoint.spec, endpoint.assigned
    return PortGoal(
        id=endpoint.uid, name=endpoint.ref.name, tenant=endpoint.ref.tenant, network=network_id,
        address=_with_length(assigned.address, prefixes), mac=(behind or endpoint).assigned.mac, netns=spec.netns or "",
        interface="" if behind is not None else spec.tap or spec.veth or spec.interface, tiers=verdict.tiers,
        default_in=verdict.default_in, default_out=verdict.default_out, strict_tcp=verdict.strict_tcp,
        address6=_with_length(assigned.address6, prefixes),
        qos=qos, dhcp=spec.dhcp, forwards=spec.forwards,
        vlans=spec.vlans, behind=behind.uid if behind is not None else "", queues=spec.queues,
        handed=spec.veth is not None)


def lease_goals(state: State, network: Stored[NetworkSpec], verdict: Verdict, named: tuple[str, ...],
                qos: QosGoal) -> dict[str, LeaseGoal]:
    """By host, what it may do by itself. `verdict`, `qos`: of an endpoint of which nothing is known."""
    found = {}
    for name, addresses in network.assigned.leases.items():
        host = state.host(name)
        if host is None or network.ref.tenant not in host.spec.runtimes.tenants:
            continue
        whole = is_whole(network, name)
        ranges = [(text_of(low, subnet.version), text_of(high, subnet.version))
                  for subnet in (subnets_of(network) if whole else ()) for low, high in subnet.ring()]
        found[name] = LeaseGoal(
            id=network.uid, addresses=addresses, whole=whole, ranges=tuple(ranges), named=named, tiers=verdict.tiers,
            default_in=verdict.default_in, default_out=verdict.default_out, strict_tcp=verdict.strict_tcp, qos=qos)
    return found


def _with_length(address: str, prefixes: Sequence[Prefix]) -> str:
    """The address with the length of its subnet's prefix."""
    if not address:
        return ""
    version = 6 if ":" in address else 4
    own = [prefix for prefix in prefixes if prefix.version == version]
    if len(own) > 1:
        number = ip_address(address)
        own = [prefix for prefix in own if number in prefix]
    return f"{address}/{own[0].prefixlen}"


def mapping_goal(mapping: Stored[StaticMappingSpec], target: Stored[EndpointSpec],
                 link: Stored[EndpointSpec]) -> MappingGoal:
    """A static mapping; `link`: the endpoint by whose link its target is reached, the target itself if that has one."""
    spec, first = mapping.spec, mapping.assigned.external_port
    return MappingGoal(
        id=mapping.uid, name=mapping.ref.name, tenant=mapping.ref.tenant, protocol=spec.protocol,
        external_address=spec.external_address, external_ports=spec.externals(first), port=link.uid,
        internal_address=target.assigned.address6 if spec.version == 6 else target.assigned.address,
        internal_port=spec.internal(first))


__all__ = ["HOST_GOAL_ID", "host_goal", "lease_goals", "mapping_goal", "network_goal", "on_host", "port_goal",
           "vteps_of"]
