"""What the host must look like: goal state, surroundings and identities to links and engine state. Pure.

The engine is told of a port by the ifindex of its link, which exists only after the link was made. So the
agent builds twice: once for the links, and, when they are there, again for the engine. A port whose link
is not there is not in the engine, and what refers to it (mappings, spaces) leaves it out; its packets, if
any, meet an unknown port.

Translated networks have up to two uplinks: the link towards the world, and, if there are static mappings or networks
that the host's stack does not know (shadowed ones, overlays), the loopback device, by which the host's own processes
and those are in reach of each other. Networks on a segment have one each, which may be the same link.

An overlay network by which other hosts leave has an *exit* here: a port of the engine without a link.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, ip_address, ip_interface
from types import MappingProxyType

from agent.announce import Announcement, announcements
from agent.goals import Goals
from agent.ids import Ids, Wanted
from agent.networks import Networks, bridge, check_networks
from agent.observed import Observed
from agent.ports import Taken, is_there, neighbours, nested_ports, port_links, timeouts
from agent.qos import SHAPER_LINKS, Shape, not_guaranteed, packet_rate, shapes_of
from nat.access import HostAccess
from nat.layer import SourceNat
from nat.pools import pool_names
from nat.vnet import NatVnet
from overlay.layer import OverlayVnet, endpoint_mtu
from policy.acl import Acl
from policy.addresses import Interface, gateways_of
from policy.contribution import (
    Contributor,
    DomainRule,
    Fault,
    HostView,
    MeterRow,
    ObjectError,
    Tables,
    UplinkView,
    mac_bytes,
)
from policy.domains import has_domains
from policy.guard import Guard
from policy.meter import Metering
from policy.world import exit_uid, has_exit, is_translated
from segments.layer import MODES as SEGMENTS
from segments.layer import SegmentVnet
from southbound.messages import NetworkGoal, PortGoal, key_of
from southbound.vteps import choose_vtep
from vfp.model import Address, EngineState, Layer, Port, Underlay, Uplink
from vswitch.links import OWNER_ALIAS, BridgeLink, PortLink, TunnelLink, UplinkState

__all__ = [
    "CONTRIBUTORS", "INSPECT_LINKS", "LOOPBACK", "LOOPBACK_IFINDEX", "TUNNEL", "Built", "Observed", "build", "wanted",
]

# The features, in OUT order of their layers. Adding a feature is adding one entry.
_ACL, _NAT, _OVERLAY = Acl(), SourceNat(), OverlayVnet()
CONTRIBUTORS: tuple[Contributor, ...] = (
    Guard(), _ACL, Metering(_ACL), HostAccess(), _NAT, NatVnet(), _OVERLAY, SegmentVnet(),
)

TUNNEL = "slvx0"
INSPECT_LINKS = ("sl-ins0", "sl-ins1")     # to user space, and from there
LOOPBACK = "lo"
LOOPBACK_IFINDEX = 1                      # in every namespace
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
    shapes: Mapping[int, Shape] = field(default_factory=dict)   # model.Port.id -> what the queues do for it
    promiscuous: frozenset[str] = frozenset()                   # uplinks on which endpoints have MACs of their own
    meters: tuple[MeterRow, ...] = ()
    leases: Mapping[str, IPv4Interface] = field(default_factory=dict)   # PortGoal.id -> address got by DHCP
    nested: Mapping[str, str] = field(default_factory=dict)     # PortGoal.id -> that of the endpoint it is behind
    announcements: frozenset[Announcement] = frozenset()        # what segments should know of our endpoints
    gone: frozenset[str] = frozenset()                          # PortGoal.id of those whose link a runtime let go

    def links(self) -> set[str]:
        """Names of all links that must exist; every other of ours must go."""
        names = {link.host_interface for link in self.ports.values()}
        if any(shape.shaped for shape in self.shapes.values()):
            names.update(SHAPER_LINKS)
        names.update(link.name for link in self.bridges.values())
        if self.tunnel is not None:
            names.add(self.tunnel.name)
        if self.inspects:
            names.update(INSPECT_LINKS)
        return names


def wanted(goals: Goals, observed: Observed) -> Wanted:
    """What needs an identity before `build`. Our links that must still go keep theirs until then."""
    ports = {port.id for port in goals.ports if not port.behind}
    bridges = {network.id for network in goals.networks if network.mode == "nat"}
    for link in observed.owned.values():
        match link.alias.removeprefix(OWNER_ALIAS).split(":"):
            case ["port", uid, _]:
                ports.add(uid)
            case ["bridge", uid]:
                bridges.add(uid)
    networks = check_networks(goals, observed)
    ports.update(exit_uid(network) for network in networks.good.values() if has_exit(network))
    nats = [network for network in networks.good.values() if is_translated(network)]
    uplink = observed.uplink if nats else None
    uplinks = [uplink.name] if uplink else []
    if _needs_loopback(goals, networks):
        uplinks.append(LOOPBACK)
    uplinks += (link.name for _, link in sorted(observed.segments.items()) if link.name not in uplinks)
    addresses = _addresses(uplink)
    places = {port.id: port.network for port in goals.ports}
    mapped = {places.get(mapping.port) for mapping in goals.mappings}
    names = (
        name for network in nats
        for name in pool_names(network, addresses, network.id in _unknown(networks), network.id in mapped)
    )
    return Wanted(
        ports=ports,
        bridges=bridges,
        uplinks=tuple(uplinks),
        pools=tuple(dict.fromkeys(names)),
    )


def _unknown(networks: Networks) -> frozenset[str]:
    """NetworkGoal.id of translated networks that the host's stack does not know."""
    return networks.shadowed | {
        network.id for network in networks.good.values() if is_translated(network) and network.mode != "nat"}


def _needs_loopback(goals: Goals, networks: Networks) -> bool:
    nat = any(is_translated(network) for network in networks.good.values())
    return nat and bool(goals.mappings or _unknown(networks))


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
    taken: Taken = {}
    gone: set[str] = set()
    links = port_links(goals, networks.good, bridges, observed, ids, faults, taken, gone)
    nested = nested_ports(goals, networks.good, links, faults, taken)
    left = links
    while True:             # until no port is left out: layers and tables are of one view
        view = _view(goals, networks, left, nested, observed, ids)
        layers, failed = _all_layers(view, contributors, refused)
        if not failed:
            break
        faults.extend(failed)
        gone = {fault.key[1] for fault in failed}
        left = {uid: link for uid, link in left.items() if uid not in gone}
        faults.extend(Fault(key_of(port), "the endpoint that it is behind has an error; see that one's status")
                      for uid in gone for port in nested.get(uid, ()))
        nested = {uid: tuple(port for port in ports if port.id not in gone)
                  for uid, ports in nested.items() if uid not in gone}
    tables = [contributor.tables(view) for contributor in contributors]
    shapes = shapes_of(goals.host, (
        (ids.ports[port.id], links[port.id].host_interface, port) for port in goals.ports if port.id in links))
    engine = _engine(view, layers, links, tables, observed, shapes)
    for table in tables:
        faults.extend(table.faults)
    faults.extend(Fault(key_of(port), why) for port in view.ports.values()
                  if (why := not_guaranteed(port.qos, goals.host)))
    opened = {uid: addresses for table in tables for uid, addresses in table.opened.items()}
    return Built(
        engine=engine,
        ports=links,
        port_ids={uid: view.port_ids[uid] for uid in layers},
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
        shapes=shapes,
        promiscuous=frozenset(
            view.segments[network.id].name for network in view.networks.values()
            if network.mode == "transparent" and network.id in view.segments),
        meters=tuple(row for table in tables for row in table.meters),
        leases=view.leases,
        nested={port.id: uid for uid, ports in view.nested.items() for port in ports},
        announcements=frozenset(announcements(view)),
        gone=frozenset(gone),
    )


def _tunnel(
    goals: Goals, networks: Mapping[str, NetworkGoal], observed: Observed, faults: list[Fault]
) -> TunnelLink | None:
    lingers = goals.host.underlay and TUNNEL in observed.owned      # who has an old map of us is told so by a drop
    if not any(network.mode == "overlay" for network in networks.values()) and not lingers:
        return None
    if goals.host.underlay and observed.underlay_error:
        faults.append(Fault(key_of(goals.host), observed.underlay_error))
    if not observed.underlays:
        reason = observed.underlay_error or "the host has no underlay address; set spec.underlay of the host"
        faults.extend(Fault(key_of(remote), f"not reachable: {reason}") for remote in goals.remotes)
        return None
    largest = max(endpoint_mtu(one.link.mtu_bytes, one.address.version) for one in observed.underlays)
    return TunnelLink(TUNNEL, f"{OWNER_ALIAS}tunnel", udp_port=goals.host.vxlan_port, mtu_bytes=largest,
                      ipv6=any(one.address.version == 6 for one in observed.underlays))


def _view(
    goals: Goals,
    networks: Networks,
    links: Mapping[str, PortLink],
    nested: Mapping[str, tuple[PortGoal, ...]],
    observed: Observed,
    ids: Ids,
) -> HostView:
    """What the contributors see: the ports whose links exist, the uplinks if there are any."""
    found, uplink = observed.uplink, None
    nat = any(is_translated(network) for network in networks.good.values())
    if nat and found is not None and found.name != LOOPBACK:
        uplink = _uplink_view(found, ids)
    ports = {port.id: port for port in goals.ports if port.id in links and is_there(links[port.id], observed.owned)}
    segments, segment_errors = {}, {}
    for network in networks.good.values():
        if network.mode not in SEGMENTS:
            continue
        link = observed.segments.get(network.uplink)
        segment_errors[network.id] = observed.segment_errors.get(network.uplink, "")
        if link is not None and (link.name == LOOPBACK or link.name in observed.owned):
            segment_errors[network.id] = f"uplink {link.name!r} leads to no segment: it is the host's own; name another"
        elif link is not None and (segment := _uplink_view(link, ids)) is not None:
            segments[network.id] = segment
    return HostView(
        host=goals.host,
        networks=networks.good,
        ports=ports,
        remotes=tuple(goals.remotes) if TUNNEL in observed.owned else (),
        mappings=tuple(goals.mappings),
        port_ids=ids.ports,
        uplink=uplink,
        loopback=ids.uplinks.get(LOOPBACK, 0) if _needs_loopback(goals, networks) else 0,
        pool_ids=ids.pools,
        host_addresses=observed.addresses,
        listeners=observed.listeners,
        served=observed.served,
        shadowed=_unknown(networks),
        timeouts=observed.timeouts,
        nested={uid: behind for uid, behind in nested.items() if uid in ports},
        segments=segments,
        segment_errors=segment_errors,
        underlays=tuple(str(one.address) for one in observed.underlays) if TUNNEL in observed.owned else (),
        exits={network.id: ids.ports[exit_uid(network)] for network in networks.good.values()
               if has_exit(network) and exit_uid(network) in ids.ports},
        leases={uid: lease for uid, lease in observed.leases.items() if uid in ports and ports[uid].dhcp},
    )


def _uplink_view(link: UplinkState, ids: Ids) -> UplinkView | None:
    if link.name not in ids.uplinks:
        return None
    return UplinkView(ids.uplinks[link.name], link.name, link.ifindex, _addresses(link), link.mtu_bytes, link.mac)


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
            failed.append(Fault((PortGoal.kind, error.culprit or port.id), str(error)))
    for uid in view.exits:
        network = view.networks[uid]
        layers[exit_uid(network)] = (_NAT.exit_layer(network, view), _OVERLAY.exit_layer(network, view))
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
    shapes: Mapping[int, Shape],
) -> EngineState:
    ports = [_port(port, view, layers[port.id], links[port.id], observed, shapes) for port in view.ports.values()]
    ports += (_exit(view.networks[uid], view, layers[exit_uid(view.networks[uid])], observed) for uid in view.exits)
    tunnel, detour, queues = (observed.owned.get(name) for name in (TUNNEL, INSPECT_LINKS[0], SHAPER_LINKS[0]))
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
        underlays=_underlays(observed) if tunnel else (),
        paths=observed.paths if tunnel else (),
        tunnel_port=view.host.vxlan_port if tunnel else EngineState().tunnel_port,
        shaper=queues.ifindex if queues and any(shape.shaped for shape in shapes.values()) else 0,
    )


def _underlays(observed: Observed) -> tuple[Underlay, ...]:
    return tuple(Underlay(one.address, one.link.ifindex, one.link.mtu_bytes) for one in observed.underlays)


def _port(
    port: PortGoal,
    view: HostView,
    layers: tuple[Layer, ...],
    link: PortLink,
    observed: Observed,
    shapes: Mapping[int, Shape],
) -> Port:
    network = view.networks[port.network]
    number = view.port_ids[port.id]
    shape = shapes.get(number)
    mac = mac_bytes(port.mac)
    return Port(
        id=number,
        name=f"{port.tenant}/{port.name}",
        ifindex=observed.owned[link.host_interface].ifindex,
        mac=mac,
        gateway_mac=mac_bytes(network.gateway_mac),
        layers=layers,
        strict_tcp=port.strict_tcp,
        timeouts=timeouts(network, view.timeouts),
        tap=link.tap,
        gateways=gateways_of(port, network),
        mtu=link.mtu_bytes,
        shaped=shape is not None and shape.shaped,
        queued=shape is not None and shape.queued,
        rate_out=packet_rate(port.qos.packets_out),
        rate_in=packet_rate(port.qos.packets_in),
        connections=port.qos.connections,
        vteps=_vteps(mac, view) if network.mode == "overlay" and TUNNEL in observed.owned else (),
        vlans=port.vlans,
    )


def _vteps(mac: bytes, view: HostView) -> tuple[Address, ...]:
    """Of several underlay addresses of ours each port has one, which other hosts expect it behind."""
    families = [family for family, mark in ((4, "."), (6, ":")) if any(mark in address for address in view.underlays)]
    return tuple(ip_address(choose_vtep(view.underlays, family, mac)) for family in families)


def _exit(network: NetworkGoal, view: HostView, layers: tuple[Layer, ...], observed: Observed) -> Port:
    mac = mac_bytes(network.gateway_mac)
    return Port(
        id=view.exits[network.id],
        name=f"{network.tenant}/{network.name} exit",
        ifindex=0,
        mac=mac,
        gateway_mac=mac,
        layers=layers,
        timeouts=timeouts(network, view.timeouts),
        vteps=_vteps(mac, view) if TUNNEL in observed.owned else (),
        exit_of=network.space,
    )


def _uplinks(view: HostView) -> tuple[Uplink, ...]:
    links = {link.id: link for link in (view.uplink, *view.segments.values()) if link is not None}
    found = [Uplink(link.id, link.name, link.ifindex, mtu=link.mtu_bytes, mac=_mac(link))
             for _, link in sorted(links.items())]
    if view.loopback:
        found.append(Uplink(view.loopback, LOOPBACK, LOOPBACK_IFINDEX, loopback=True))
    return tuple(found)


def _mac(link: UplinkView) -> bytes:
    return mac_bytes(link.mac) if link.mac else bytes(6)


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
