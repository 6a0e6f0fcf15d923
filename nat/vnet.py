"""The `vnet` layer of nat networks: neighbours by port, the host by its bridge, the world by the uplink.

Two nat networks of one host do not reach each other's endpoints directly; a static mapping is the way in.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from policy.contribution import Fault, HostView, ObjectError, Tables, mac_bytes, network_prefixes
from policy.guard import own_address
from southbound.messages import NetworkGoal, PortGoal, key_of
from vfp.model import (
    ETH_P_ARP,
    ETH_P_IP,
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
)

__all__ = ["NatVnet"]

# Destinations that no router forwards: this network, loopback (RFC 1122 3.2.1.3), multicast, limited
# broadcast.
_NOT_ROUTED = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32")))


class NatVnet:
    """Contributes `vnet` to the ports of nat networks, and a space per network."""

    def layer(self, port: PortGoal, view: HostView) -> Layer | None:
        """ARP from the space, own prefix and host by the space, the rest by the uplink."""
        network = view.networks[port.network]
        if network.mode != "nat":
            return None
        rules = [Rule(0, Match(ethertype=ETH_P_ARP), AnswerArp(network.space), "arp")]
        for prefix in network_prefixes(network):
            rules.append(_to(10, prefix, Forward(network.space), "inside"))
        for address in sorted(view.host_addresses):
            rules.append(_to(20, IPv4Network(address), Forward(network.space), "host"))
        for prefix in _other_prefixes(network, view):
            rules.append(_to(30, prefix, Deny(), "other-network"))
        for prefix in _NOT_ROUTED:
            rules.append(_to(40, prefix, Deny(), "not-routed"))
        if view.uplink is not None:
            rules.append(Rule(50, Match(ethertype=ETH_P_IP), ToUplink(view.uplink.id), "outside"))
        return Layer("vnet", (Group("route", tuple(rules)),), default_out=Deny(), default_in=Allow())

    def tables(self, view: HostView) -> Tables:
        """The space of each nat network: its ports, its gateway and the host's own addresses."""
        spaces: list[Space] = []
        faults: list[Fault] = []
        for network in view.networks.values():
            if network.mode == "nat":
                try:
                    spaces.append(_space(network, view))
                except ObjectError as error:
                    faults.append(Fault(key_of(network), str(error)))
        return Tables(spaces=tuple(spaces), faults=tuple(faults))


def _to(priority: int, prefix: IPv4Network, action: Forward | Deny, name: str) -> Rule:
    return Rule(priority, Match(ethertype=ETH_P_IP, dst=prefix), action, name)


def _other_prefixes(network: NetworkGoal, view: HostView) -> list[IPv4Network]:
    found: set[IPv4Network] = set()
    for other in view.networks.values():
        if other.mode == "nat" and other.id != network.id:
            found.update(network_prefixes(other))
    return sorted(found)


def _space(network: NetworkGoal, view: HostView) -> Space:
    bridge = HostStack(mac_bytes(network.gateway_mac))
    entries: dict[Address, Location] = dict.fromkeys(sorted(view.host_addresses), bridge)
    for subnet in network.subnets:
        entries[IPv4Address(subnet.gateway)] = bridge
    for port in view.ports_of(network):
        entries[own_address(port).ip] = LocalPort(view.port_ids[port.id], mac_bytes(port.mac))
    return Space(network.space, tuple(entries.items()))
