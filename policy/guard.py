"""The `guard` layer: an endpoint can send only as itself.

Out of the port go, with the endpoint's own MAC:

- IPv4 from its own address, and ARP that claims nothing else: the sender address is the endpoint's own, or 0.0.0.0 (a
  probe, RFC 5227 section 2.1.1), and the sender hardware address is the Ethernet source;
- IPv6 from its own address or from the link-local one that its MAC makes; neighbour discovery that speaks for these
  two only and for its own MAC, and probes from :: (RFC 4862 section 5.4.2).

Its own are the addresses that it was given, the one that it was leased, and those of the endpoints nested behind it;
an endpoint that asks by DHCP may do so before it has any. A router sends from what it forwards for as well, but
answers for its own only. Who announces an address that is another's is told of under the name `duplicate-address`.

Not even with its own addresses does an endpoint play the router or the DHCP server: router advertisements and
redirects, and DHCP to clients, are denied (RFC 6105, RFC 7610). Everything else falls to the layer's default: Deny.

Endpoints of an isolated network send nothing to each other, nor to those of its peers: only to the gateways and to
what is behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv6Address, ip_network

from policy.addresses import (
    ETHERTYPES,
    ICMPV6,
    LINK_LOCAL,
    ND_TYPES,
    behind_port,
    gateways,
    host_prefix,
    link_local,
    nd,
    network_prefixes,
    to_prefix,
)
from policy.contribution import HostView, ObjectError, Tables, mac_bytes
from southbound.messages import NetworkGoal, PortGoal
from vfp.model import (
    ETH_P_ARP,
    ETH_P_IP,
    ETH_P_IPV6,
    Address,
    Allow,
    Deny,
    Group,
    Layer,
    Match,
    Pass,
    PortRange,
    Prefix,
    Rule,
)

__all__ = ["Guard"]

UDP = 17
_NOBODY, _NOBODY_6, _EVERYBODY = ip_network("0.0.0.0/32"), ip_network("::/128"), ip_network("255.255.255.255/32")
_SOLICITATION, _ADVERTISEMENT = ND_TYPES
_ROUTERS = ((134, "no-router-advertisement"), (137, "no-redirect"))
_CLIENTS = ((ETH_P_IP, 68, "no-dhcp-server"), (ETH_P_IPV6, 546, "no-dhcpv6-server"))    # RFC 2131, RFC 8415


class Guard:
    """Contributes `guard` to every port."""

    def __init__(self) -> None:
        self._view: HostView | None = None
        self._isolation: dict[str, tuple[Group, ...]] = {}      # by NetworkGoal.id: its ports share one

    def layer(self, port: PortGoal, view: HostView) -> Layer:
        """Own MAC and own addresses out; anything in."""
        if self._view is not view:
            self._view, self._isolation = view, {}
        network = view.networks[port.network]
        if network.id not in self._isolation:
            self._isolation[network.id] = _isolation(network, view) if network.isolated else ()
        claimed = tuple(prefix for prefix in network_prefixes(network) if prefix.version == 4)
        own = (*behind_port(port, view), *_autonomous(port, network))
        return _layer(mac_bytes(port.mac), own, claimed, _forwarded(port), port.dhcp, self._isolation[network.id])

    def tables(self, view: HostView) -> Tables:
        """Guard needs no tables."""
        return Tables()


def _forwarded(port: PortGoal) -> tuple[Prefix, ...]:
    try:
        return tuple(ip_network(text) for text in dict.fromkeys(port.forwards))
    except ValueError as error:
        raise ObjectError(f"forwards of endpoint {port.tenant}/{port.name}: {error}") from None


def _autonomous(port: PortGoal, network: NetworkGoal) -> Iterator[Address]:
    """What the endpoint makes of its MAC in the network's prefixes, if it is told to (RFC 4862 5.5.3)."""
    if network.slaac and port.address6:
        identifier = link_local(mac_bytes(port.mac)).packed[8:]
        for prefix in network_prefixes(network):
            if prefix.version == 6 and prefix.prefixlen == 64:
                yield IPv6Address(prefix.network_address.packed[:8] + identifier)


@lru_cache(maxsize=8192)                   # the same object each time: the engine's compiler knows its group by that
def _layer(
    mac: bytes, held: tuple[Address, ...], claimed: tuple[Prefix, ...], forwarded: tuple[Prefix, ...], dhcp: bool,
    isolation: tuple[Group, ...],
) -> Layer:
    by_family = {version: [a for a in dict.fromkeys(held) if a.version == version] for version in (4, 6)}
    rules = [*_roles({4: bool(by_family[4]) or dhcp, 6: bool(by_family[6])})]
    if by_family[4] or dhcp:
        rules += _arp(mac, by_family[4], claimed)
    if by_family[6]:
        rules += _discovery(mac, by_family[6])
    if dhcp:
        asks = Match(ethertype=ETH_P_IP, src_mac=mac, src=_NOBODY, dst=_EVERYBODY, protocol=UDP,
                     src_ports=PortRange(68, 68), dst_ports=PortRange(67, 67))
        rules.append(Rule(40, asks, Allow(), "dhcp-client"))
    for address in dict.fromkeys(held):
        match = Match(ethertype=ETHERTYPES[address.version], src_mac=mac, src=host_prefix(address))
        rules.append(Rule(40, match, Allow(), f"own-ipv{address.version}"))
    for prefix in forwarded:
        match = Match(ethertype=ETHERTYPES[prefix.version], src_mac=mac, src=prefix)
        rules.append(Rule(50, match, Allow(), "forwards"))
    own = Group("own", tuple(rules))
    return Layer("guard", groups_out=(*isolation, own), default_out=Deny(), default_in=Allow())


def _isolation(network: NetworkGoal, view: HostView) -> tuple[Group, ...]:
    """Before what the endpoint may send at all: to whom it may not."""
    rules = [Rule(0, nd(icmp_type), Pass(), "nd") for icmp_type in ND_TYPES]
    prefixes: dict[Prefix, None] = {LINK_LOCAL: None}
    for member in (network, *view.peers_of(network)):
        prefixes |= dict.fromkeys(network_prefixes(member))
        ways_out = [gateway.ip for gateway in gateways(member)]
        if any(address.version == 6 for address in ways_out):
            ways_out.append(link_local(mac_bytes(member.gateway_mac)))
        rules += [Rule(1, to_prefix(host_prefix(address)), Pass(), "gateway") for address in ways_out]
    rules += [Rule(2, to_prefix(prefix), Deny(), "isolated") for prefix in prefixes]
    return (Group("isolation", tuple(rules)),)


def _roles(by_family: dict[int, bool]) -> Iterator[Rule]:
    """What only the network's own router and server may send."""
    for ethertype, port, name in _CLIENTS:
        if by_family[4 if ethertype == ETH_P_IP else 6]:
            match = Match(ethertype=ethertype, protocol=UDP, dst_ports=PortRange(port, port))
            yield Rule(10, match, Deny(), name)
    for icmp_type, name in _ROUTERS if by_family[6] else ():
        yield Rule(10, Match(ethertype=ETH_P_IPV6, protocol=ICMPV6, icmp_type=icmp_type), Deny(), name)


def _arp(mac: bytes, own: list[Address], claimed: tuple[Prefix, ...]) -> Iterator[Rule]:
    def claiming(sender: Prefix) -> Match:
        return Match(ethertype=ETH_P_ARP, src_mac=mac, src=sender, arp_sender_is_source=True)

    for address in own:
        yield Rule(20, claiming(host_prefix(address)), Allow(), "own-arp")
    yield Rule(20, claiming(_NOBODY), Allow(), "arp-probe")
    for prefix in claimed:
        yield Rule(25, Match(ethertype=ETH_P_ARP, src=prefix), Deny(), "duplicate-address")


def _discovery(mac: bytes, own: list[Address]) -> Iterator[Rule]:
    """An advertisement's `src` is the address that it speaks for, so the same condition holds for both types."""
    for icmp_type in ND_TYPES:
        speaks = replace(nd(icmp_type), src_mac=mac, nd_sender_is_source=True)
        for address in own:
            yield Rule(20, replace(speaks, src=host_prefix(address)), Allow(), "own-nd")
        if icmp_type == _SOLICITATION:
            yield Rule(20, replace(speaks, src=_NOBODY_6), Allow(), "nd-probe")
    # Before the endpoint's own IPv6, which would let them pass.
    yield Rule(30, nd(_SOLICITATION), Deny(), "not-own-nd")
    yield Rule(30, nd(_ADVERTISEMENT), Deny(), "duplicate-address")
