"""The `nat` layer: source translation per uplink address on the way out, static mappings on the way in.

Inside its own network an endpoint is itself; so it is towards the host's own addresses, which answer by
the bridge. Everything else leaves with an address of the uplink. An uplink with several addresses has a
pool for each, and the destination chooses as the host's own source selection would: on-link prefixes
first, longest first, then the first address.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from nat.mappings import VXLAN_PORT, expand
from policy.contribution import Fault, HostView, Tables, UplinkView, network_prefixes
from southbound.messages import PortGoal, key_of
from vfp.model import (
    ETH_P_ARP,
    ETH_P_IP,
    Allow,
    Deny,
    Group,
    Layer,
    Match,
    Pool,
    PortRange,
    Rule,
    TranslateSource,
    Untranslate,
)

__all__ = ["SourceNat"]

UDP = 17


class SourceNat:
    """Contributes `nat` to the ports of nat networks, and the pools and mappings of the host."""

    def layer(self, port: PortGoal, view: HostView) -> Layer | None:
        """Inside and host untranslated, the rest from a pool; without an uplink nothing else leaves."""
        network = view.networks[port.network]
        if network.mode != "nat":
            return None
        rules = [Rule(0, Match(ethertype=ETH_P_ARP), Allow(), "arp")]
        for prefix in network_prefixes(network):
            rules.append(Rule(10, Match(ethertype=ETH_P_IP, dst=prefix), Allow(), "inside"))
        if view.host.underlay:
            # From our VTEP address, a translated datagram to 4789 would be a frame of any VNI to other hosts.
            forged = Match(ethertype=ETH_P_IP, protocol=UDP, dst_ports=PortRange(VXLAN_PORT, VXLAN_PORT))
            rules.append(Rule(15, forged, Deny(), "no-vxlan"))
        for address in sorted(view.host_addresses):
            rules.append(Rule(20, Match(ethertype=ETH_P_IP, dst=IPv4Network(address)), Allow(), "host"))
        if view.uplink is not None:
            rules.extend(_translations(view.uplink))
        return Layer(
            "nat",
            groups_out=(Group("source", tuple(rules)),),
            groups_in=(Group("static", (Rule(0, Match(), Untranslate(), "untranslate"),)),),
            default_out=Deny(),
            default_in=Allow(),
        )

    def tables(self, view: HostView) -> Tables:
        """A pool per uplink address, and the static mappings."""
        nats = [network for network in view.networks.values() if network.mode == "nat"]
        uplink = view.uplink
        if uplink is None or not uplink.addresses:
            what = f"uplink {view.host.uplink!r}" if view.host.uplink else "a default route"
            reason = f"no uplink address for NAT: the host has not {what} with an IPv4 address; set one up"
            faults = [Fault(key_of(network), reason) for network in nats]
            faults += [Fault(key_of(mapping), reason) for mapping in view.mappings]
            return Tables(faults=tuple(faults))
        if not nats:
            return Tables(faults=expand(view, uplink)[1])
        ports = PortRange(*view.host.nat_ports)
        pools = tuple(
            Pool(uplink.pools[address.ip], uplink.id, (address.ip,), ports) for address in uplink.addresses
        )
        mappings, mapping_faults = expand(view, uplink)
        return Tables(pools=pools, mappings=mappings, faults=mapping_faults)


def _translations(uplink: UplinkView) -> Iterator[Rule]:
    """Rules from priority 100: on-link prefixes, longest first, then the default."""
    if not uplink.addresses:
        return
    on_link: dict[IPv4Network, IPv4Address] = {}
    for address in uplink.addresses:
        if address.network.prefixlen < 32:
            on_link.setdefault(address.network, address.ip)
    first = _default_source(uplink.addresses).ip
    priority = 100
    for prefix, source in sorted(on_link.items(), key=lambda item: (-item[0].prefixlen, item[0])):
        if source != first:
            match = Match(ethertype=ETH_P_IP, dst=prefix)
            yield Rule(priority, match, TranslateSource(uplink.pools[source]), f"to-{prefix}")
            priority += 1
    yield Rule(priority, Match(ethertype=ETH_P_IP), TranslateSource(uplink.pools[first]), "outside")


def _default_source(addresses: tuple[IPv4Interface, ...]) -> IPv4Interface:
    """The first address with more than link scope (RFC 3927 addresses reach no further than the link)."""
    return next((address for address in addresses if not address.ip.is_link_local), addresses[0])
