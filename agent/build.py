"""What the host must look like: goal state, surroundings and identities to links and engine state. Pure.

The engine is told of a port by the ifindex of its link, which exists only after the link was made. So the
agent builds twice: once for the links, and, when they are there, again for the engine. A port whose link
is not there is not in the engine, and what refers to it (mappings, spaces) leaves it out; its packets, if
any, meet an unknown port.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from types import MappingProxyType

from agent.goals import Goals
from agent.ids import Ids, Wanted, bridge_alias, bridge_name, port_alias
from nat.layer import SourceNat
from nat.mappings import PROTOCOLS
from nat.vnet import NatVnet
from overlay.layer import OverlayVnet, endpoint_mtu
from policy.acl import Acl
from policy.contribution import (
    Contributor,
    DomainRule,
    Fault,
    HostView,
    ObjectError,
    Tables,
    UplinkView,
    mac_bytes,
    network_prefixes,
)
from policy.domains import has_domains
from policy.guard import Guard, own_address
from southbound.messages import NetworkGoal, PortGoal, Subnet, key_of
from vfp.model import EngineState, Layer, Port, Uplink
from vswitch.links import (
    OWNER_ALIAS,
    BridgeLink,
    OwnedLink,
    PortLink,
    TunnelLink,
    UplinkState,
    port_interface,
)

__all__ = ["CONTRIBUTORS", "INSPECT_LINKS", "TUNNEL", "Built", "Observed", "build", "wanted"]

# The features, in OUT order of their layers. Adding a feature is adding one entry.
CONTRIBUTORS: tuple[Contributor, ...] = (Guard(), Acl(), SourceNat(), NatVnet(), OverlayVnet())

TUNNEL = "slvx0"
INSPECT_LINKS = ("sl-ins0", "sl-ins1")     # to user space, and from there
_DEFAULT_MTU = 1500


@dataclass(frozen=True, slots=True)
class Observed:
    """The host as found. An `*_error` says why that part is None although it was asked for."""

    uplink: UplinkState | None = None
    uplink_error: str = ""
    underlay: UplinkState | None = None
    underlay_error: str = ""
    addresses: frozenset[IPv4Address] = frozenset()             # the host's own, not those Sluice made
    owned: Mapping[str, OwnedLink] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Built:
    """The host as it should be. `faults`: the objects that are not, or not wholly, in it."""

    engine: EngineState
    ports: Mapping[str, PortLink]                               # by PortGoal.id
    port_ids: Mapping[str, int]                                 # PortGoal.id -> model.Port.id, in the engine
    bridges: Mapping[str, BridgeLink]                           # by NetworkGoal.id
    tunnel: TunnelLink | None
    uplinks: tuple[Uplink, ...]                                 # the interfaces to hook
    loopback: bool                                              # lo is one of them: its settings are asked for
    neighbours: Mapping[str, Mapping[str, str]]                 # bridge name -> IPv4 address -> MAC
    reserved_ports: tuple[tuple[int, int], ...]
    external_addresses: Mapping[str, tuple[str, ...]]           # by MappingGoal.id
    faults: tuple[Fault, ...]
    domains: tuple[DomainRule, ...] = ()                        # whose sets the DNS inspector fills
    inspects: tuple[str, ...] = ()                              # PortGoal.id of whose DNS it sees; none: no detour

    def links(self) -> set[str]:
        """Names of all links that must exist; every other of ours must go."""
        names = {link.host_interface for link in self.ports.values()}
        names.update(link.name for link in self.bridges.values())
        if self.tunnel is not None:
            names.add(self.tunnel.name)
        if self.inspects:
            names.update(INSPECT_LINKS)
        return names


def wanted(goals: Goals, observed: Observed) -> Wanted:
    """What needs an identity before `build`. Our links that must still go keep theirs until then."""
    ports = {port.id for port in goals.ports}
    bridges = {network.id for network in goals.networks if network.mode == "nat"}
    for link in observed.owned.values():
        match link.alias.removeprefix(OWNER_ALIAS).split(":"):
            case ["port", uid, _]:
                ports.add(uid)
            case ["bridge", uid]:
                bridges.add(uid)
    uplink = observed.uplink if _needs_uplink(goals) else None
    return Wanted(
        ports=ports,
        bridges=bridges,
        uplinks=(uplink.name,) if uplink else (),
        pools=tuple(str(IPv4Interface(a).ip) for a in uplink.addresses) if uplink else (),
    )


def _needs_uplink(goals: Goals) -> bool:
    return any(network.mode == "nat" for network in goals.networks)


def build(
    goals: Goals,
    observed: Observed,
    ids: Ids,
    contributors: tuple[Contributor, ...] = CONTRIBUTORS,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> Built:
    """Derive links and engine state; a bad object becomes a fault and touches no other.

    `refused`: PortGoal.id of ports that the engine does not take, with the reason; they stay out of it.
    """
    faults: list[Fault] = []
    networks = _networks(goals, faults)
    tunnel = _tunnel(goals, networks, observed, faults)
    bridges = {
        network.id: _bridge(network, ids, observed) for network in networks.values() if network.id in
        ids.bridges
    }
    links = _port_links(goals, networks, bridges, observed, ids, faults)
    left = links
    while True:             # until no port is left out: layers and tables are of one view
        view = _view(goals, networks, left, observed, ids)
        layers, failed = _all_layers(view, contributors, refused)
        if not failed:
            break
        faults.extend(failed)
        left = {uid: links[uid] for uid in layers}
    tables = [contributor.tables(view) for contributor in contributors]
    engine = _engine(view, layers, links, tables, observed)
    for table in tables:
        faults.extend(table.faults)
    return Built(
        engine=engine,
        ports=links,
        port_ids={uid: ids.ports[uid] for uid in layers},
        bridges=bridges,
        tunnel=tunnel,
        uplinks=engine.uplinks,
        loopback=any(uplink.loopback for uplink in engine.uplinks),
        neighbours=_neighbours(bridges, view),
        reserved_ports=_reserved(view, tables),
        external_addresses=_external_addresses(goals, ids, engine),
        faults=tuple(faults),
        domains=tuple(rule for table in tables for rule in table.domains),
        inspects=tuple(sorted(port.id for port in goals.ports if has_domains(port))),
    )


def _networks(goals: Goals, faults: list[Fault]) -> dict[str, NetworkGoal]:
    """The networks that make sense by themselves and beside each other."""
    good: dict[str, NetworkGoal] = {}
    spaces: dict[int, NetworkGoal] = {}
    for network in goals.networks:
        try:
            prefixes = network_prefixes(network)
            mac_bytes(network.gateway_mac)
            if len(prefixes) != 1:
                raise ObjectError(f"{len(prefixes)} subnets; this version serves exactly one a network")
            if _gateway(network.subnets[0]) not in prefixes[0]:
                raise ObjectError(f"gateway {network.subnets[0].gateway} is outside prefix {prefixes[0]}")
            other = spaces.setdefault(network.space, network)
            if other is not network:
                raise ObjectError(f"space {network.space} is that of {other.tenant}/{other.name} too")
            if network.mode == "nat":
                _refuse_overlap(network, prefixes[0], good)
        except ObjectError as error:
            faults.append(Fault(key_of(network), str(error)))
            continue
        good[network.id] = network
    return good


def _gateway(subnet: Subnet) -> IPv4Address:
    try:
        return IPv4Address(subnet.gateway)
    except ValueError as error:
        raise ObjectError(f"gateway {subnet.gateway!r}: {error}") from None


def _refuse_overlap(network: NetworkGoal, prefix: IPv4Network, good: Mapping[str, NetworkGoal]) -> None:
    for other in good.values():
        if other.mode == "nat" and any(prefix.overlaps(taken) for taken in network_prefixes(other)):
            raise ObjectError(
                f"prefix {prefix} overlaps that of nat network {other.tenant}/{other.name} on this host"
            )


def _tunnel(
    goals: Goals, networks: Mapping[str, NetworkGoal], observed: Observed, faults: list[Fault]
) -> TunnelLink | None:
    if not any(network.mode == "overlay" for network in networks.values()):
        return None
    if observed.underlay is None:
        reason = observed.underlay_error or "the host has no underlay address; set spec.underlay of the host"
        if goals.host.underlay:
            faults.append(Fault(key_of(goals.host), reason))
        faults.extend(Fault(key_of(remote), f"not reachable: {reason}") for remote in goals.remotes)
        return None
    return TunnelLink(TUNNEL, f"{OWNER_ALIAS}tunnel", mtu_bytes=endpoint_mtu(observed.underlay.mtu_bytes))


def _bridge(network: NetworkGoal, ids: Ids, observed: Observed) -> BridgeLink:
    subnet = network.subnets[0]
    return BridgeLink(
        name=bridge_name(ids.bridges[network.id]),
        alias=bridge_alias(network.id),
        mac=network.gateway_mac,
        addresses=(f"{subnet.gateway}/{IPv4Network(subnet.prefix).prefixlen}",),
        mtu_bytes=_mtu(network, observed),
    )


def _mtu(network: NetworkGoal, observed: Observed) -> int:
    """The network's MTU, if given; else what its packets' way out of the host carries."""
    if network.mtu_bytes:
        return network.mtu_bytes
    if network.mode == "overlay":
        return endpoint_mtu(observed.underlay.mtu_bytes if observed.underlay else _DEFAULT_MTU)
    return observed.uplink.mtu_bytes if observed.uplink else _DEFAULT_MTU


def _port_links(
    goals: Goals,
    networks: Mapping[str, NetworkGoal],
    bridges: Mapping[str, BridgeLink],
    observed: Observed,
    ids: Ids,
    faults: list[Fault],
) -> dict[str, PortLink]:
    links: dict[str, PortLink] = {}
    taken: dict[tuple[str, IPv4Address], PortGoal] = {}
    for port in goals.ports:
        try:
            network = networks.get(port.network)
            if network is None:
                raise ObjectError("its network is not here, or has an error; see the network's status")
            if port.id not in ids.ports:
                raise ObjectError("this host has no free port id; remove endpoints or raise the limit")
            mac_bytes(port.mac)
            address = own_address(port)
            subnet = _subnet_of(network, address)
            other = taken.setdefault((network.id, address.ip), port)
            if other is not port:
                raise ObjectError(f"address {address.ip} is that of {other.tenant}/{other.name} too")
        except ObjectError as error:
            faults.append(Fault(key_of(port), str(error)))
            continue
        number = ids.ports[port.id]
        links[port.id] = PortLink(
            host_interface=port_interface(number),
            alias=port_alias(port.id, number),
            netns=port.netns,
            interface=port.interface,
            mac=port.mac,
            addresses=(port.address,),
            gateways=(subnet.gateway,),
            mtu_bytes=_mtu(network, observed),
            bridge=bridges[network.id].name if network.id in bridges else "",
        )
    return links


def _subnet_of(network: NetworkGoal, address: IPv4Interface) -> Subnet:
    for subnet in network.subnets:
        if address.ip in IPv4Network(subnet.prefix):
            if str(address.ip) == subnet.gateway:
                raise ObjectError(f"address {address.ip} is the network's gateway; give the endpoint another")
            return subnet
    raise ObjectError(f"address {address} is outside network {network.tenant}/{network.name}")


def _view(
    goals: Goals,
    networks: Mapping[str, NetworkGoal],
    links: Mapping[str, PortLink],
    observed: Observed,
    ids: Ids,
) -> HostView:
    """What the contributors see: the ports whose links exist, the uplink if there is one."""
    present = [port for port in goals.ports if port.id in links]
    uplink = None
    if observed.uplink is not None and observed.uplink.name in ids.uplinks:
        addresses = tuple(IPv4Interface(address) for address in observed.uplink.addresses)
        uplink = UplinkView(
            id=ids.uplinks[observed.uplink.name], name=observed.uplink.name,
            ifindex=observed.uplink.ifindex, addresses=tuple(address for address in addresses if
            str(address.ip) in ids.pools), mtu_bytes=observed.uplink.mtu_bytes, pools={address.ip:
            ids.pools[str(address.ip)] for address in addresses if str(address.ip) in ids.pools},
        )
    return HostView(
        host=goals.host,
        networks=networks,
        ports={port.id: port for port in present if links[port.id].host_interface in observed.owned},
        remotes=tuple(goals.remotes) if TUNNEL in observed.owned else (),
        mappings=tuple(goals.mappings),
        port_ids=ids.ports,
        uplink=uplink if _needs_uplink(goals) else None,
        host_addresses=observed.addresses,
    )


def _all_layers(
    view: HostView, contributors: tuple[Contributor, ...], refused: Mapping[str, str]
) -> tuple[dict[str, tuple[Layer, ...]], list[Fault]]:
    """The layers of each port, by PortGoal.id, and the ports that have none."""
    layers: dict[str, tuple[Layer, ...]] = {}
    failed = []
    for port in view.ports.values():
        try:
            if port.id in refused:
                raise ObjectError(refused[port.id])
            layers[port.id] = _layers(port, view, contributors)
        except ObjectError as error:
            failed.append(Fault(key_of(port), str(error)))
    return layers, failed


def _layers(port: PortGoal, view: HostView, contributors: tuple[Contributor, ...]) -> tuple[Layer, ...]:
    layers = (contributor.layer(port, view) for contributor in contributors)
    return tuple(layer for layer in layers if layer is not None)


def _engine(
    view: HostView,
    layers: Mapping[str, tuple[Layer, ...]],
    links: Mapping[str, PortLink],
    tables: list[Tables],
    observed: Observed,
) -> EngineState:
    ports = tuple(
        Port(
            id=view.port_ids[port.id],
            name=f"{port.tenant}/{port.name}",
            ifindex=observed.owned[links[port.id].host_interface].ifindex,
            mac=mac_bytes(port.mac),
            gateway_mac=mac_bytes(view.networks[port.network].gateway_mac),
            layers=layers[port.id],
            strict_tcp=port.strict_tcp,
        )
        for port in view.ports.values()
    )
    uplink = view.uplink
    tunnel = observed.owned.get(TUNNEL)
    detour = observed.owned.get(INSPECT_LINKS[0])
    return EngineState(
        ports=tuple(sorted(ports, key=lambda port: port.id)),
        spaces=tuple(space for table in tables for space in table.spaces),
        pools=tuple(pool for table in tables for pool in table.pools),
        mappings=tuple(mapping for table in tables for mapping in table.mappings),
        uplinks=(Uplink(uplink.id, uplink.name, uplink.ifindex),) if uplink else (),
        tunnel_ifindex=tunnel.ifindex if tunnel else 0,
        inspect_ifindex=detour.ifindex if detour else 0,
        sets=tuple(given for table in tables for given in table.sets),
    )


def _neighbours(bridges: Mapping[str, BridgeLink], view: HostView) -> dict[str, dict[str, str]]:
    """The bridge's stack knows its endpoints without asking."""
    return {
        bridge.name: {str(own_address(port).ip): port.mac for port in view.ports_of(view.networks[uid])}
        for uid, bridge in bridges.items()
    }


def _reserved(view: HostView, tables: list[Tables]) -> tuple[tuple[int, int], ...]:
    """Source ports that the host's own sockets must not pick: those of NAT, and those mapped statically."""
    if view.uplink is None:
        return ()
    mapped = {mapping.external_port for table in tables for mapping in table.mappings}
    return (view.host.nat_ports, *((port, port) for port in sorted(mapped)))


def _external_addresses(goals: Goals, ids: Ids, engine: EngineState) -> dict[str, tuple[str, ...]]:
    """The addresses on which each static mapping is open."""
    made: dict[tuple[int, int, int], list[str]] = {}
    for mapping in engine.mappings:
        opened = (mapping.protocol, mapping.external_port, mapping.port)
        made.setdefault(opened, []).append(str(mapping.external))
    return {
        goal.id: tuple(made.get((PROTOCOLS[goal.protocol], goal.external_ports[0], ids.ports.get(goal.port,
        0)), ())) for goal in goals.mappings
    }
