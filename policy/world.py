"""The world beyond an endpoint's network: the host itself, its other networks, and what lies behind the uplink."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

from policy.addresses import LINK_LOCAL, network_prefixes, to_prefix
from policy.contribution import HostView
from southbound.messages import NetworkGoal
from vfp.model import ETH_P_IP, ETH_P_IPV6, Address, Deny, Match, Prefix, Rule, ToUplink

__all__ = ["NOT_ROUTED", "exit_uid", "has_exit", "host_destinations", "inside_prefixes", "is_translated", "outside",
           "walls"]

# Destinations that no router forwards: this network, loopback (RFC 1122 3.2.1.3), multicast, limited
# broadcast; in IPv6 (RFC 4291 2.5) unspecified, loopback, link-local, multicast.
NOT_ROUTED: tuple[Prefix, ...] = (
    *map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32")),
    *map(IPv6Network, ("::/127", "fe80::/10", "ff00::/8")),
)


def has_exit(network: NetworkGoal) -> bool:
    """Whether other hosts' endpoints of an overlay network leave by this host, too."""
    return network.mode == "overlay" and any(route.here for route in network.routes)


def exit_uid(network: NetworkGoal) -> str:
    """By which the exit of a network is known among ports."""
    return f"exit/{network.id}"


def is_translated(network: NetworkGoal) -> bool:
    """Whether packets of the network leave this host with addresses of its uplink."""
    return network.mode == "nat" or (network.mode == "overlay" and network.egress) or has_exit(network)


def host_destinations(network: NetworkGoal, view: HostView) -> tuple[Address, ...]:
    """The host's addresses as the network's endpoints may reach them: those that are not an endpoint's."""
    taken = {text.split("/")[0] for port in view.ports_of(network) for text in (port.address, port.address6)}
    own = (address for address in view.host_addresses if str(address) not in taken)
    return tuple(sorted(own, key=lambda address: (address.version, int(address))))


def inside_prefixes(network: NetworkGoal, view: HostView) -> tuple[Prefix, ...]:
    """What is not the world: the network's subnets, those of its peers, and what it has routes to."""
    found = dict.fromkeys(network_prefixes(network))
    for peer in view.peers_of(network):
        found |= dict.fromkeys(network_prefixes(peer))
    for route in network.routes:
        try:
            prefix = ip_network(route.prefix)
        except ValueError:
            continue                        # the network's status says it
        if prefix.prefixlen:
            found[prefix] = None
    return (*found, LINK_LOCAL)


def walls(view: HostView) -> Iterator[tuple[str, Rule]]:
    """What keeps networks apart that the host's stack could bring together; NetworkGoal.id of each.

    Rules are made once for all networks: there may be hundreds of each.
    """
    for network in view.networks.values():
        if network.mode == "nat":
            for prefix in network_prefixes(network):
                yield network.id, Rule(30, to_prefix(prefix), Deny(), "other-network")


def outside(view: HostView) -> Iterator[Rule]:
    """The rest leaves by the uplink, if there is one, but for what no router forwards."""
    yield from (Rule(40, to_prefix(prefix), Deny(), "not-routed") for prefix in NOT_ROUTED)
    if view.uplink is not None:
        way = ToUplink(view.uplink.id)
        yield from (Rule(50, Match(ethertype=ethertype), way, "outside") for ethertype in (ETH_P_IP, ETH_P_IPV6))
