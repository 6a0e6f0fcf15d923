"""The `guard` layer: an endpoint can send only as itself.

Out of the port go IPv4 packets with the endpoint's own MAC and address, and ARP that claims nothing else:
the sender address is the endpoint's own, or 0.0.0.0 (a probe, RFC 5227 section 2.1.1), and the sender
hardware address is the Ethernet source. Everything else, IPv6 included in this cut, falls to the layer's
default: Deny.
"""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network

from policy.contribution import HostView, ObjectError, Tables, mac_bytes
from southbound.messages import PortGoal
from vfp.model import ETH_P_ARP, ETH_P_IP, Allow, Deny, Group, Layer, Match, Rule

__all__ = ["Guard", "own_address"]

_PROBE = IPv4Network("0.0.0.0/32")


def own_address(port: PortGoal) -> IPv4Interface:
    """The port's address with its prefix length.

    Raises:
        ObjectError: the goal's address is no IPv4 interface address.
    """
    try:
        return IPv4Interface(port.address)
    except ValueError as error:
        name = f"{port.tenant}/{port.name}"
        raise ObjectError(f"address {port.address!r} of endpoint {name}: {error}") from None


class Guard:
    """Contributes `guard` to every port."""

    def layer(self, port: PortGoal, view: HostView) -> Layer:
        """Own MAC and own address out; anything in."""
        mac = mac_bytes(port.mac)
        own = IPv4Network(own_address(port).ip)

        def arp(sender: IPv4Network) -> Match:
            return Match(ethertype=ETH_P_ARP, src_mac=mac, src=sender, arp_sender_is_source=True)

        rules = (
            Rule(10, Match(ethertype=ETH_P_IP, src_mac=mac, src=own), Allow(), "own-ipv4"),
            Rule(20, arp(own), Allow(), "own-arp"),
            Rule(30, arp(_PROBE), Allow(), "arp-probe"),
        )
        return Layer("guard", groups_out=(Group("own", rules),), default_out=Deny(), default_in=Allow())

    def tables(self, view: HostView) -> Tables:
        """Guard needs no tables."""
        return Tables()
