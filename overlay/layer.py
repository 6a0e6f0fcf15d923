"""The `vnet` layer of overlay networks: a space per VNI, the same on every host but for what is local.

An address is behind a port of this host, behind the VTEP of another (CA to PA), or it is a gateway, which exists only
in ARP answers. ARP and neighbour solicitations are answered here from the space, so no broadcast ever crosses the
underlay. An endpoint with IPv6 has its link-local address in the space, too.

Endpoints of one network reach each other whatever their subnets: what they send to the gateway's MAC for another
subnet is delivered as to a neighbour, with its TTL as it was.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from policy.addresses import LINK_LOCAL, gateways, held_addresses, link_local, nd, network_prefixes, to_prefix
from policy.contribution import Fault, HostView, ObjectError, Tables, mac_bytes
from southbound.messages import NetworkGoal, PortGoal, RemoteGoal, key_of
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
    Remote,
    Rule,
    Space,
    Virtual,
)

__all__ = ["OVERHEAD_BYTES", "OverlayVnet", "endpoint_mtu"]

SOLICITATION = 135
OVERHEAD_BYTES = 50     # RFC 7348: inner Ethernet 14, VXLAN 8, UDP 8, outer IPv4 20


def endpoint_mtu(underlay_mtu_bytes: int) -> int:
    """The largest IP packet of an endpoint that still fits into one underlay packet."""
    return underlay_mtu_bytes - OVERHEAD_BYTES


class OverlayVnet:
    """Contributes `vnet` to the ports of overlay networks, and a space per VNI."""

    def layer(self, port: PortGoal, view: HostView) -> Layer | None:
        """ARP and the network's prefixes from the space; nothing else leaves."""
        network = view.networks[port.network]
        if network.mode != "overlay":
            return None
        rules = [
            Rule(0, Match(ethertype=ETH_P_ARP), AnswerArp(network.space), "arp"),
            Rule(0, nd(SOLICITATION), AnswerArp(network.space), "nd"),
        ]
        for prefix in (*network_prefixes(network), LINK_LOCAL):
            rules.append(Rule(10, to_prefix(prefix), Forward(network.space), "inside"))
        return Layer("vnet", (Group("route", tuple(rules)),), default_out=Deny(), default_in=Allow())

    def tables(self, view: HostView) -> Tables:
        """The space of each overlay network that has a port here."""
        spaces: list[Space] = []
        faults: list[Fault] = []
        remotes: dict[str, list[RemoteGoal]] = {}
        for remote in view.remotes:
            remotes.setdefault(remote.network, []).append(remote)
        for network in view.networks.values():
            if network.mode == "overlay":
                try:
                    entries = _own_entries(network, view)
                except ObjectError as error:
                    faults.append(Fault(key_of(network), str(error)))
                    continue
                for remote in remotes.get(network.id, ()):
                    try:
                        _add_remote(entries, remote, network)
                    except ObjectError as error:
                        faults.append(Fault(key_of(remote), str(error)))
                spaces.append(Space(network.space, tuple(entries.items())))
        return Tables(spaces=tuple(spaces), faults=tuple(faults))


def _own_entries(network: NetworkGoal, view: HostView) -> dict[Address, Location]:
    gateway = Virtual(mac_bytes(network.gateway_mac))
    entries: dict[Address, Location] = {one.ip: gateway for one in gateways(network)}
    for port in view.ports_of(network):
        place = LocalPort(view.port_ids[port.id], mac_bytes(port.mac))
        entries.update(dict.fromkeys(held_addresses(port), place))
    return entries


def _add_remote(entries: dict[Address, Location], remote: RemoteGoal, network: NetworkGoal) -> None:
    """Add the CA to PA entries of one endpoint.

    Raises:
        ObjectError: an address is malformed, or the address is already somewhere else.
    """
    mac = mac_bytes(remote.mac)
    try:
        vtep = IPv4Address(remote.vtep)
        addresses: list[Address] = [IPv4Address(remote.address)] if remote.address else []
        addresses += [IPv6Address(remote.address6), link_local(mac)] if remote.address6 else []
    except ValueError as error:
        raise ObjectError(f"remote endpoint {remote.name}: {error}") from None
    if not addresses:
        raise ObjectError(f"remote endpoint {remote.name} has neither an IPv4 nor an IPv6 address")
    for address in addresses:
        if address in entries:
            raise ObjectError(
                f"remote endpoint {remote.name} has address {address}, which is already in network"
                f" {network.tenant}/{network.name} on this host; one of them must go"
            )
    entries.update(dict.fromkeys(addresses, Remote(vtep, network.space, mac)))
