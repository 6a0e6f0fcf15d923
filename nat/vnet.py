"""The `vnet` layer of nat networks: neighbours by port, the host by its bridge, the world by the uplink.

Endpoints of one network reach each other whatever their subnets: what they send to the gateway's MAC for another
subnet is delivered as to a neighbour, with its TTL as it was. Two nat networks of one host do not reach each other's
endpoints directly; a static mapping is the way in. A shadowed network's bridge has no address, so its endpoints reach
the host by the loopback uplink.
"""

from __future__ import annotations

from policy.addresses import (
    LINK_LOCAL,
    behind_port,
    gateways,
    host_prefix,
    link_local,
    nd,
    network_prefixes,
    to_prefix,
)
from policy.contribution import Fault, HostView, ObjectError, Tables, mac_bytes
from policy.world import host_destinations, outside, walls
from southbound.messages import NetworkGoal, PortGoal, key_of
from vfp.model import (
    ETH_P_ARP,
    Address,
    Allow,
    AnswerArp,
    Deny,
    Forward,
    Group,
    HostStack,
    Layer,
    LocalPort,
    Location,
    Match,
    Rule,
    Space,
    ToUplink,
    Virtual,
)

__all__ = ["NatVnet"]

_SOLICITATION = 135


class NatVnet:
    """Contributes `vnet` to the ports of nat networks, and a space per network."""

    def __init__(self) -> None:
        self._view: HostView | None = None
        self._layers: dict[str, Layer] = {}                         # by NetworkGoal.id: its ports share one
        self._walls: list[tuple[str, Rule]] = []                    # against other networks; NetworkGoal.id of each

    def layer(self, port: PortGoal, view: HostView) -> Layer | None:
        """ARP and ND from the space, own prefixes and host by the space, the rest by the uplink."""
        network = view.networks[port.network]
        if network.mode != "nat":
            return None
        if self._view is not view:
            self._view, self._layers, self._walls = view, {}, list(walls(view))
        if network.id not in self._layers:
            self._layers[network.id] = _layer(network, view, self._walls)
        return self._layers[network.id]

    def tables(self, view: HostView) -> Tables:
        """The space of each nat network: its ports, its gateways and the host's own addresses."""
        spaces: list[Space] = []
        faults: list[Fault] = []
        for network in view.networks.values():
            if network.mode == "nat":
                try:
                    spaces.append(_space(network, view))
                except ObjectError as error:
                    faults.append(Fault(key_of(network), str(error)))
        return Tables(spaces=tuple(spaces), faults=tuple(faults))


def _layer(network: NetworkGoal, view: HostView, others: list[tuple[str, Rule]]) -> Layer:
    inside = Forward(network.space)
    rules = [
        Rule(0, Match(ethertype=ETH_P_ARP), AnswerArp(network.space), "arp"),
        Rule(0, nd(_SOLICITATION), AnswerArp(network.space), "nd"),
        *(Rule(10, to_prefix(prefix), inside, "inside") for prefix in (*network_prefixes(network), LINK_LOCAL)),
    ]
    for address in host_destinations(network, view):
        match = to_prefix(host_prefix(address))
        if network.id not in view.shadowed:
            rules.append(Rule(20, match, inside, "host"))
        elif view.loopback:
            rules.append(Rule(5, match, ToUplink(view.loopback), "host"))
    rules += {rule.match.dst: rule for other, rule in others if other != network.id}.values()
    rules += outside(view)
    return Layer("vnet", (Group("route", tuple(rules)),), default_out=Deny(), default_in=Allow())


def _space(network: NetworkGoal, view: HostView) -> Space:
    mac = mac_bytes(network.gateway_mac)
    router: Location = Virtual(mac) if network.id in view.shadowed else HostStack(mac)
    entries: dict[Address, Location] = dict.fromkeys(host_destinations(network, view), router)
    entries.update((gateway.ip, router) for gateway in gateways(network))
    if any(gateway.version == 6 for gateway in gateways(network)):
        entries[link_local(mac)] = router
    for port in view.ports_of(network):
        place = LocalPort(view.port_ids[port.id], mac_bytes(port.mac))
        entries.update(dict.fromkeys(behind_port(port, view), place))
    return Space(network.space, tuple(entries.items()))
