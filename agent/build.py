"""What the host must look like: goal state, surroundings and identities to links and engine state. Pure.

The engine is told of a port by the ifindex of its link, which exists only after the link was made. So the
agent builds twice: once for the links, and, when they are there, again for the engine. A port whose link
is not there is not in the engine, and what refers to it (mappings, spaces) leaves it out; its packets, if
any, meet an unknown port.

Nat networks have up to two uplinks: the link towards the world, and, if there are static mappings or shadowed
networks, the loopback device, by which the host's own processes and those are in reach of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface
from types import MappingProxyType

from agent.goals import Goals
from agent.ids import Ids, Wanted
from agent.networks import Networks, bridge, check_networks
from agent.observed import Observed
from agent.ports import is_there, neighbours, port_links, timeouts
from nat.access import HostAccess
from nat.layer import SourceNat
from nat.pools import pool_names
from nat.vnet import NatVnet
from overlay.layer import OverlayVnet, endpoint_mtu
from policy.acl import Acl
from policy.addresses import Interface
from policy.contribution import (
    Contributor,
    DomainRule,
    Fault,
    HostView,
    ObjectError,
    Tables,
    UplinkView,
    mac_bytes,
)
from policy.domains import has_domains
from policy.guard import Guard
from southbound.messages import NetworkGoal, PortGoal, key_of
from vfp.model import EngineState, Layer, Port, Uplink
from vswitch.links import OWNER_ALIAS, BridgeLink, PortLink, TunnelLink, UplinkState

__all__ = ["CONTRIBUTORS", "INSPECT_LINKS", "LOOPBACK", "TUNNEL", "Built", "Observed", "build", "wanted"]

# The features, in OUT order of their layers. Adding a feature is adding one entry.
CONTRIBUTORS: tuple[Contributor, ...] = (Guard(), Acl(), HostAccess(), SourceNat(), NatVnet(), OverlayVnet())

TUNNEL = "slvx0"
INSPECT_LINKS = ("sl-ins0", "sl-ins1")     # to user space, and from there
LOOPBACK = "lo"
_LOOPBACK_IFINDEX = 1                      # in every namespace
_PORT_PROTOCOLS = (6, 17, 132)


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
    neighbours: Mapping[str, Mapping[str, str]]                 # bridge name -> address -> MAC
    reserved_ports: tuple[tuple[int, int], ...]
    external_addresses: Mapping[str, tuple[str, ...]]           # by MappingGoal.id
    faults: tuple[Fault, ...]
    domains: tuple[DomainRule, ...] = ()                        # whose sets the DNS inspector fills
    inspects: tuple[str, ...] = ()                              # PortGoal.id of whose DNS it sees; none: no detour
    shadowed: frozenset[str] = frozenset()                      # NetworkGoal.id whose bridge has no address
    pool_names: Mapping[int, str] = field(default_factory=dict)  # model.Pool.id -> its name in `agent.ids`

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
    networks = check_networks(goals, observed)
    nats = [network for network in networks.good.values() if network.mode == "nat"]
    uplink = observed.uplink if nats else None
    uplinks = [uplink.name] if uplink else []
    if _needs_loopback(goals, networks):
        uplinks.append(LOOPBACK)
    addresses = _addresses(uplink)
    places = {port.id: port.network for port in goals.ports}
    mapped = {places.get(mapping.port) for mapping in goals.mappings}
    names = (
        name for network in nats
        for name in pool_names(network, addresses, network.id in networks.shadowed, network.id in mapped)
    )
    return Wanted(
        ports=ports,
        bridges=bridges,
        uplinks=tuple(uplinks),
        pools=tuple(dict.fromkeys(names)),
    )


def _needs_loopback(goals: Goals, networks: Networks) -> bool:
    nat = any(network.mode == "nat" for network in networks.good.values())
    return nat and bool(goals.mappings or networks.shadowed)


def _addresses(uplink: UplinkState | None) -> tuple[Interface, ...]:
    return tuple(ip_interface(address) for address in (*uplink.addresses, *uplink.addresses6)) if uplink else ()


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
    networks = check_networks(goals, observed)
    faults = list(networks.faults)
    tunnel = _tunnel(goals, networks.good, observed, faults)
    bridges = {
        network.id: bridge(network, ids, observed, network.id in networks.shadowed)
        for network in networks.good.values() if network.mode == "nat" and network.id in ids.bridges
    }
    links = port_links(goals, networks.good, bridges, observed, ids, faults)
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
    opened = {uid: addresses for table in tables for uid, addresses in table.opened.items()}
    return Built(
        engine=engine,
        ports=links,
        port_ids={uid: ids.ports[uid] for uid in layers},
        bridges=bridges,
        tunnel=tunnel,
        uplinks=engine.uplinks,
        loopback=any(uplink.loopback for uplink in engine.uplinks),
        neighbours=neighbours(bridges, view),
        reserved_ports=_reserved(view, engine),
        external_addresses={goal.id: opened.get(goal.id, ()) for goal in goals.mappings},
        faults=tuple(faults),
        domains=tuple(rule for table in tables for rule in table.domains),
        inspects=tuple(sorted(port.id for port in goals.ports if has_domains(port))),
        shadowed=networks.shadowed,
        pool_names={number: name for name, number in ids.pools.items()},
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


def _view(
    goals: Goals,
    networks: Networks,
    links: Mapping[str, PortLink],
    observed: Observed,
    ids: Ids,
) -> HostView:
    """What the contributors see: the ports whose links exist, the uplinks if there are any."""
    found, uplink = observed.uplink, None
    nat = any(network.mode == "nat" for network in networks.good.values())
    if nat and found is not None and found.name in ids.uplinks and found.name != LOOPBACK:
        uplink = UplinkView(
            ids.uplinks[found.name], found.name, found.ifindex, _addresses(found), found.mtu_bytes
        )
    return HostView(
        host=goals.host,
        networks=networks.good,
        ports={port.id: port for port in goals.ports if port.id in links and is_there(links[port.id], observed.owned)},
        remotes=tuple(goals.remotes) if TUNNEL in observed.owned else (),
        mappings=tuple(goals.mappings),
        port_ids=ids.ports,
        uplink=uplink,
        loopback=ids.uplinks.get(LOOPBACK, 0) if _needs_loopback(goals, networks) else 0,
        pool_ids=ids.pools,
        host_addresses=observed.addresses,
        listeners=observed.listeners,
        served=observed.served,
        shadowed=networks.shadowed,
        timeouts=observed.timeouts,
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
    ports = (_port(port, view, layers[port.id], links[port.id], observed) for port in view.ports.values())
    tunnel = observed.owned.get(TUNNEL)
    detour = observed.owned.get(INSPECT_LINKS[0])
    return EngineState(
        ports=tuple(sorted(ports, key=lambda port: port.id)),
        spaces=tuple(space for table in tables for space in table.spaces),
        pools=tuple(pool for table in tables for pool in table.pools),
        mappings=tuple(mapping for table in tables for mapping in table.mappings),
        uplinks=_uplinks(view),
        tunnel_ifindex=tunnel.ifindex if tunnel else 0,
        inspect_ifindex=detour.ifindex if detour else 0,
        sets=tuple(given for table in tables for given in table.sets),
        prefixes=tuple(prefix for table in tables for prefix in table.prefixes),
    )


def _port(
    port: PortGoal, view: HostView, layers: tuple[Layer, ...], link: PortLink, observed: Observed
) -> Port:
    network = view.networks[port.network]
    return Port(
        id=view.port_ids[port.id],
        name=f"{port.tenant}/{port.name}",
        ifindex=observed.owned[link.host_interface].ifindex,
        mac=mac_bytes(port.mac),
        gateway_mac=mac_bytes(network.gateway_mac),
        layers=layers,
        strict_tcp=port.strict_tcp,
        timeouts=timeouts(network, view.timeouts),
        tap=link.tap,
    )


def _uplinks(view: HostView) -> tuple[Uplink, ...]:
    found = []
    if view.uplink is not None:
        found.append(Uplink(view.uplink.id, view.uplink.name, view.uplink.ifindex, mtu=view.uplink.mtu_bytes))
    if view.loopback:
        found.append(Uplink(view.loopback, LOOPBACK, _LOOPBACK_IFINDEX, loopback=True))
    return tuple(found)


def _reserved(view: HostView, engine: EngineState) -> tuple[tuple[int, int], ...]:
    """Source ports that the host's own sockets must not pick: those of NAT, and those mapped statically."""
    mapped = {
        mapping.external_port for mapping in engine.mappings if mapping.protocol in _PORT_PROTOCOLS
    }
    ranges: list[tuple[int, int]] = []
    for port in sorted(mapped):
        if ranges and ranges[-1][1] == port - 1:
            ranges[-1] = (ranges[-1][0], port)
        else:
            ranges.append((port, port))
    return (*((view.host.nat_ports,) if engine.pools else ()), *ranges)
