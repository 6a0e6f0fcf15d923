"""The `guard` layer: an endpoint can send only as itself.

Out of the port go, with the endpoint's own MAC:

- IPv4 from its own address, and ARP that claims nothing else: the sender address is the endpoint's own, or 0.0.0.0 (a
  probe, RFC 5227 section 2.1.1), and the sender hardware address is the Ethernet source;
- IPv6 from its own address or from the link-local one that its MAC makes; neighbour discovery that speaks for these
  two only and for its own MAC, and probes from :: (RFC 4862 section 5.4.2).

Not even with its own addresses does an endpoint play the router or the DHCP server: router advertisements and
redirects, and DHCP to clients, are denied (RFC 6105, RFC 7610). Everything else falls to the layer's default: Deny.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_network

from policy.addresses import ETHERTYPES, ICMPV6, ND_TYPES, held_addresses, host_prefix, nd
from policy.contribution import HostView, Tables, mac_bytes
from southbound.messages import PortGoal
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
    PortRange,
    Prefix,
    Rule,
)

__all__ = ["Guard"]

UDP = 17
_NOBODY, _NOBODY_6 = ip_network("0.0.0.0/32"), ip_network("::/128")
_SOLICITATION = 135
_ROUTERS = ((134, "no-router-advertisement"), (137, "no-redirect"))
_CLIENTS = ((ETH_P_IP, 68, "no-dhcp-server"), (ETH_P_IPV6, 546, "no-dhcpv6-server"))    # RFC 2131, RFC 8415


class Guard:
    """Contributes `guard` to every port."""

    def layer(self, port: PortGoal, view: HostView) -> Layer:
        """Own MAC and own addresses out; anything in."""
        return _layer(mac_bytes(port.mac), held_addresses(port))

    def tables(self, view: HostView) -> Tables:
        """Guard needs no tables."""
        return Tables()


@lru_cache(maxsize=8192)                   # the same object each time: the engine's compiler knows its group by that
def _layer(mac: bytes, held: tuple[Address, ...]) -> Layer:
    by_family = {version: [a for a in held if a.version == version] for version in (4, 6)}
    rules = [*_roles(by_family)]
    if by_family[4]:
        rules += _arp(mac, by_family[4])
    if by_family[6]:
        rules += _discovery(mac, by_family[6])
    for address in held:
        match = Match(ethertype=ETHERTYPES[address.version], src_mac=mac, src=host_prefix(address))
        rules.append(Rule(40, match, Allow(), f"own-ipv{address.version}"))
    return Layer("guard", groups_out=(Group("own", tuple(rules)),), default_out=Deny(), default_in=Allow())


def _roles(by_family: dict[int, list[Address]]) -> Iterator[Rule]:
    """What only the network's own router and server may send."""
    for ethertype, port, name in _CLIENTS:
        if by_family[4 if ethertype == ETH_P_IP else 6]:
            match = Match(ethertype=ethertype, protocol=UDP, dst_ports=PortRange(port, port))
            yield Rule(10, match, Deny(), name)
    for icmp_type, name in _ROUTERS if by_family[6] else ():
        yield Rule(10, Match(ethertype=ETH_P_IPV6, protocol=ICMPV6, icmp_type=icmp_type), Deny(), name)


def _arp(mac: bytes, own: list[Address]) -> Iterator[Rule]:
    def claiming(sender: Prefix) -> Match:
        return Match(ethertype=ETH_P_ARP, src_mac=mac, src=sender, arp_sender_is_source=True)

    for address in own:
        yield Rule(20, claiming(host_prefix(address)), Allow(), "own-arp")
    yield Rule(20, claiming(_NOBODY), Allow(), "arp-probe")


def _discovery(mac: bytes, own: list[Address]) -> Iterator[Rule]:
    """An advertisement's `src` is the address that it speaks for, so the same condition holds for both types."""
    for icmp_type in ND_TYPES:
        speaks = replace(nd(icmp_type), src_mac=mac, nd_sender_is_source=True)
        for address in own:
            yield Rule(20, replace(speaks, src=host_prefix(address)), Allow(), "own-nd")
        if icmp_type == _SOLICITATION:
            yield Rule(20, replace(speaks, src=_NOBODY_6), Allow(), "nd-probe")
    for icmp_type in ND_TYPES:              # before the endpoint's own IPv6, which would let them pass
        yield Rule(30, nd(icmp_type), Deny(), "not-own-nd")
