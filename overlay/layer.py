"""The `vnet` layer of overlay and private networks: a space per network.

In an overlay network an address is behind a port of this host, behind the VTEP of another (CA to PA), or it is a
gateway, which every host answers for. ARP and neighbour solicitations are answered here from the space, so no broadcast
crosses the underlay unless the network floods. An endpoint with IPv6 has its link-local address in the space, too.

The space of a network holds the endpoints of its peers as well, all with its own VNI: a connection is in the VNI of
the network of who began it. A private network is one without other hosts.

Endpoints of one network reach each other whatever their subnets: what they send to the gateway's MAC for another
subnet is delivered as to a neighbour, with its TTL as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from overlay.remotes import Remotes, autonomous_prefixes
from overlay.routes import routes
from policy.addresses import (
    LINK_LOCAL,
    behind_port,
    gateways,
    held_addresses,
    host_prefix,
    link_local,
    nd,
    network_prefixes,
    to_prefix,
)
from policy.contribution import Fault, HostView, ObjectError, Tables, mac_bytes
from policy.flooding import MOST_STATIONS, flooding_of
from policy.world import NOT_ROUTED, host_destinations, is_translated, outside, walls
from southbound.messages import NetworkGoal, PortGoal, RemotesGoal, key_of
from vfp.model import (
    ETH_P_ARP,
    Address,
    Allow,
    AnswerArp,
    Deny,
    Forward,
    Group,
    Layer,
    LocalPort,
    Location,
    Match,
    Prefix,
    Rule,
    Space,
    Switch,
    ToUplink,
    Virtual,
)

__all__ = ["OVERHEAD_BYTES", "OverlayVnet", "endpoint_mtu"]

MODES = ("overlay", "private")
SOLICITATION = 135
# RFC 7348: inner Ethernet 14, VXLAN 8, UDP 8, outer IPv4 20 or IPv6 40
OVERHEAD_BYTES = {4: 50, 6: 70}
_ALL_HOSTS: tuple[Prefix, ...] = (IPv4Network("224.0.0.0/4"), IPv4Network("255.255.255.255/32"),
                                  IPv6Network("ff00::/8"))


def endpoint_mtu(underlay_mtu_bytes: int, version: int = 4) -> int:
    """The largest IP packet of an endpoint that still fits into one underlay packet."""
    return underlay_mtu_bytes - OVERHEAD_BYTES[version]


class OverlayVnet:
    """Contributes `vnet` to the ports of overlay and private networks, and a space for each network."""

    def __init__(self) -> None:
        self._view: HostView | None = None
        self._layers: dict[str, Layer] = {}                 # by NetworkGoal.id: its ports share one
        self._walls: tuple[Rule, ...] = ()
        self._remotes = Remotes()

    def layer(self, port: PortGoal, view: HostView) -> Layer | None:
        """ARP from the space, its prefixes and routes by it; the rest by the uplink, if at all."""
        network = view.networks[port.network]
        if network.mode not in MODES:
            return None
        return self._layer(network, view)

    def exit_layer(self, network: NetworkGoal, view: HostView) -> Layer:
        """Of the network's exit here: what came by a route goes out, as it would from an endpoint."""
        return self._layer(network, view, "exit")

    def _layer(self, network: NetworkGoal, view: HostView, kind: str = "") -> Layer:
        if self._view is not view:
            self._view, self._layers = view, {}
            self._walls = tuple({rule.match.dst: rule for _, rule in walls(view)}.values())
        key = f"{kind}/{network.id}"
        if key not in self._layers:
            rules = tuple(_beyond(network, view, self._walls) if kind else _rules(network, view, self._walls))
            self._layers[key] = Layer("vnet", (Group("route", rules),), default_out=Deny(), default_in=Allow())
        return self._layers[key]

    def tables(self, view: HostView) -> Tables:
        """The space of each overlay network that is known here, and of each private one."""
        spaces: list[Space] = []
        faults: list[Fault] = []
        remotes: dict[str, list[RemotesGoal]] = {}
        for remote in view.remotes:
            remotes.setdefault(remote.network, []).append(remote)
        for network in view.networks.values():
            if network.mode in MODES:
                try:
                    spaces.append(self._space(network, view, remotes, faults))
                except ObjectError as error:
                    faults.append(Fault(key_of(network), str(error)))
        self._remotes.forget({space.id for space in spaces})
        return Tables(spaces=tuple(spaces), faults=tuple(dict.fromkeys(faults)))

    def _space(
        self, network: NetworkGoal, view: HostView, remotes: dict[str, list[RemotesGoal]], faults: list[Fault],
    ) -> Space:
        members = [network, *view.peers_of(network)]
        entries = _own_entries(members, view)
        blocks = [(remote, member) for member in members if member.mode == "overlay"
                  for remote in remotes.get(member.id, ())]
        return Space(
            network.space,
            tuple(entries.items()),
            blocks=self._remotes.blocks(network, blocks, view.underlays, tuple(entries), faults),
            routes=routes(network, view, faults),
            stations=_stations(network, view) if network.flood else (),
            flooding=flooding_of(network, faults),
        )


def _rules(network: NetworkGoal, view: HostView, walls_: tuple[Rule, ...]) -> Iterator[Rule]:
    inside = Forward(network.space)
    yield Rule(0, Match(ethertype=ETH_P_ARP), AnswerArp(network.space), "arp")
    yield Rule(0, nd(SOLICITATION), AnswerArp(network.space), "nd")
    if network.flood is not None:
        for prefix in (*_ALL_HOSTS, *_broadcasts(network)):
            yield Rule(5, to_prefix(prefix), Switch(network.space), "flood")
    prefixes = dict.fromkeys(network_prefixes(network))
    for peer in view.peers_of(network):
        prefixes |= dict.fromkeys(network_prefixes(peer))
    for prefix in (*prefixes, LINK_LOCAL):
        yield Rule(10, to_prefix(prefix), inside, "inside")
    everywhere = []
    for route in routes(network, view, []):
        if route.prefix.prefixlen:
            yield Rule(15, to_prefix(route.prefix), inside, "route")
        else:
            everywhere.append(route.prefix)
    if network.egress:
        yield from _beyond(network, view, walls_)
    elif everywhere:
        yield from (Rule(40, to_prefix(prefix), Deny(), "not-routed") for prefix in NOT_ROUTED)
    for prefix in everywhere:
        yield Rule(60, to_prefix(prefix), inside, "route")


def _broadcasts(network: NetworkGoal) -> Iterator[Prefix]:
    for prefix in network_prefixes(network):
        if isinstance(prefix, IPv4Network) and prefix.prefixlen < 31:
            yield host_prefix(prefix.broadcast_address)


def _beyond(network: NetworkGoal, view: HostView, walls_: tuple[Rule, ...]) -> Iterator[Rule]:
    """By this host's translation: its own addresses by the loopback uplink, the world by the other."""
    if not is_translated(network):
        return
    if view.loopback:
        for address in host_destinations(network, view):
            yield Rule(20, to_prefix(host_prefix(address)), ToUplink(view.loopback), "host")
    yield from walls_
    yield from outside(view)


def _stations(network: NetworkGoal, view: HostView) -> tuple[tuple[bytes, int], ...]:
    found = {mac_bytes(port.mac): view.port_ids[port.id] for port in view.ports_of(network)}
    return tuple(found.items())[:MOST_STATIONS]


def _own_entries(members: list[NetworkGoal], view: HostView) -> dict[Address, Location]:
    """Local endpoints of the network, which is the first, and of its peers; gateways, with the network's own MAC."""
    gateway = Virtual(mac_bytes(members[0].gateway_mac))
    entries: dict[Address, Location] = {}
    for member in members:
        own = gateways(member)
        entries.update((one.ip, gateway) for one in own)
        if any(one.version == 6 for one in own) and member is members[0]:
            entries[link_local(gateway.mac)] = gateway
        autonomous = autonomous_prefixes(member)
        for port in view.ports_of(member):
            mac = mac_bytes(port.mac)
            place = LocalPort(view.port_ids[port.id], mac)
            entries.update((address, place) for address in behind_port(port, view)
                           if member is members[0] or address not in LINK_LOCAL)
            if any(address.version == 6 for address in held_addresses(port)):
                identifier = link_local(mac).packed[8:]
                entries.update((IPv6Address(prefix + identifier), place) for prefix in autonomous)
    return entries
