"""The `vnet` layer of overlay networks: a space per VNI, the same on every host but for what is local.

An address is behind a port of this host, behind the VTEP of another (CA to PA), or it is the gateway,
which exists only in ARP answers. ARP is answered here from the space, so no broadcast ever crosses the
underlay.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from policy.contribution import Fault, HostView, ObjectError, Tables, mac_bytes, network_prefixes
from policy.guard import own_address
from southbound.messages import NetworkGoal, PortGoal, RemoteGoal, key_of
from vfp.model import (
    ETH_P_ARP,
    ETH_P_IP,
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
        rules = [Rule(0, Match(ethertype=ETH_P_ARP), AnswerArp(network.space), "arp")]
        for prefix in network_prefixes(network):
            rules.append(Rule(10, Match(ethertype=ETH_P_IP, dst=prefix), Forward(network.space), "inside"))
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
    entries: dict[Address, Location] = {IPv4Address(subnet.gateway): gateway for subnet in network.subnets}
    for port in view.ports_of(network):
        entries[own_address(port).ip] = LocalPort(view.port_ids[port.id], mac_bytes(port.mac))
    return entries


def _add_remote(entries: dict[Address, Location], remote: RemoteGoal, network: NetworkGoal) -> None:
    """Add one CA to PA entry.

    Raises:
        ObjectError: an address is malformed, or the address is already somewhere else.
    """
    try:
        address, vtep = IPv4Address(remote.address), IPv4Address(remote.vtep)
    except ValueError as error:
        raise ObjectError(f"remote endpoint {remote.name}: {error}") from None
    if address in entries:
        raise ObjectError(
            f"remote endpoint {remote.name} has address {address}, which is already in network"
            f" {network.tenant}/{network.name} on this host; one of them must go"
        )
    entries[address] = Remote(vtep, network.space, mac_bytes(remote.mac))
