"""The `vnet` layer of networks on the segment behind an uplink, and their spaces.

- `transparent`: frames are switched by MAC, unchanged: an endpoint is a machine of the segment like any other.
- `l2bridge`: on the wire every frame has the host's MAC. ARP and neighbour solicitations are answered here, both ways;
  endpoints of one host reach each other directly.
- `l2tunnel`: as that, but everything goes to the gateway, also between two endpoints of one host: whoever is behind
  the wire (the host of this virtual machine) judges each packet by its address.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

from policy.addresses import ETHERTYPES, LINK_LOCAL, behind_port, gateways, host_prefix, nd, network_prefixes, to_prefix
from policy.contribution import Fault, HostView, ObjectError, Tables, UplinkView, mac_bytes
from policy.flooding import MOST_STATIONS, flooding_of
from southbound.messages import NetworkGoal, PortGoal, key_of
from vfp.model import (
    ETH_P_ARP,
    Address,
    AddressSet,
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
    Wire,
)

__all__ = ["MODES", "SegmentVnet"]

MODES = ("transparent", "l2bridge", "l2tunnel")
_SOLICITATION = 135

# The engine rewrites what goes by these networks' uplink to one neighbour's MAC: there is none for a group of them.
_GROUPS: tuple[Prefix, ...] = (
    *map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32")),
    *map(IPv6Network, ("::/127", "ff00::/8")),
)


class SegmentVnet:
    """Contributes `vnet` to the ports of networks on a segment, and a space for each network."""

    def __init__(self) -> None:
        self._view: HostView | None = None
        self._layers: dict[str, Layer] = {}                 # by NetworkGoal.id: its ports share one

    def layer(self, port: PortGoal, view: HostView) -> Layer | None:
        """Switched by MAC, or by the host's neighbours."""
        network = view.networks[port.network]
        if network.mode not in MODES:
            return None
        uplink = _uplink(network, view)
        if self._view is not view:
            self._view, self._layers = view, {}
        if network.id not in self._layers:
            rules = tuple(_RULES[network.mode](network, uplink))
            self._layers[network.id] = Layer(
                "vnet", (Group("route", rules),), default_out=Deny(), default_in=Allow())
        return self._layers[network.id]

    def tables(self, view: HostView) -> Tables:
        """The space of each network, and, of l2bridge, who is on this host."""
        spaces: list[Space] = []
        sets: list[AddressSet] = []
        faults: list[Fault] = []
        segments: dict[int, _Segment] = {}
        for network in view.networks.values():
            if network.mode not in MODES:
                continue
            try:
                uplink = _uplink(network, view)
                make = _switched if network.mode == "transparent" else _proxied
                space = make(network, view, uplink, segments.setdefault(uplink.id, _Segment()), faults)
            except ObjectError as error:
                faults.append(Fault(key_of(network), str(error)))
                continue
            spaces.append(space)
            if network.mode == "l2bridge":
                faults += _not_shared(network, uplink)
                here = tuple(host_prefix(address) for address, _ in space.entries)
                sets.append(AddressSet(network.space, f"{network.tenant}/{network.name}/here", here))
        return Tables(spaces=tuple(spaces), sets=tuple(sets), faults=tuple(faults))


def _uplink(network: NetworkGoal, view: HostView) -> UplinkView:
    uplink = view.segments.get(network.id)
    if uplink is None:
        raise ObjectError(view.segment_errors.get(network.id) or "its uplink is not there; see spec.uplink")
    if not uplink.mac and network.mode != "transparent":
        raise ObjectError(f"uplink {uplink.name} has no MAC address; {network.mode} needs an Ethernet link")
    return uplink


def _switch_rules(network: NetworkGoal, uplink: UplinkView) -> Iterator[Rule]:
    yield Rule(0, Match(), Switch(network.space), "segment")


def _bridge_rules(network: NetworkGoal, uplink: UplinkView) -> Iterator[Rule]:
    yield from _answers(network)
    for ethertype in ETHERTYPES.values():
        yield Rule(10, Match(ethertype=ethertype, dst_set=network.space), Forward(network.space), "inside")
    yield from _not_groups()
    for ethertype in ETHERTYPES.values():
        yield Rule(20, Match(ethertype=ethertype), ToUplink(uplink.id, bridged=True), "segment")


def _tunnel_rules(network: NetworkGoal, uplink: UplinkView) -> Iterator[Rule]:
    yield from _answers(network)
    yield from _not_groups()
    ways = [(prefix, gateway.ip) for prefix, gateway in zip(network_prefixes(network), gateways(network), strict=True)]
    ways += [(LINK_LOCAL, gateway) for prefix, gateway in ways if prefix.version == 6][:1]
    for number, (prefix, gateway) in enumerate(ways, 20):
        match = Match(ethertype=ETHERTYPES[prefix.version], src=prefix)
        yield Rule(number, match, ToUplink(uplink.id, bridged=True, via=gateway), "to-gateway")


_RULES = {"transparent": _switch_rules, "l2bridge": _bridge_rules, "l2tunnel": _tunnel_rules}


def _answers(network: NetworkGoal) -> Iterator[Rule]:
    answer = AnswerArp(network.space, proxy=True)
    yield Rule(0, Match(ethertype=ETH_P_ARP), answer, "arp")
    yield Rule(0, nd(_SOLICITATION), answer, "nd")


def _not_groups() -> Iterator[Rule]:
    return (Rule(5, to_prefix(prefix), Deny(), "not-routed") for prefix in _GROUPS)


def _not_shared(network: NetworkGoal, uplink: UplinkView) -> Iterator[Fault]:
    """Whom the host cannot find on the segment its endpoints do not either: they go by its neighbours."""
    for prefix in network_prefixes(network):
        if not any(one.version == prefix.version and one.ip in prefix for one in uplink.addresses):
            yield Fault(key_of(network), f"uplink {uplink.name} has no address in {prefix}, so that nobody there is"
                        " reached: give it one, or take the subnet out")


class _Segment:
    """Who is on the wire of one uplink already, of whatever network: a MAC, an address is there once."""

    def __init__(self) -> None:
        self.macs: dict[bytes, PortGoal] = {}
        self.addresses: dict[Address, PortGoal] = {}


def _switched(network: NetworkGoal, view: HostView, uplink: UplinkView, on: _Segment, faults: list[Fault]) -> Space:
    stations: list[tuple[bytes, int]] = []
    for port in view.ports_of(network):
        mac = mac_bytes(port.mac)
        other = on.macs.setdefault(mac, port)
        if other is not port:
            faults.append(Fault(key_of(port), f"MAC {port.mac} is that of {other.tenant}/{other.name} on the same"
                                              " segment; give the endpoint another"))
        elif len(stations) == MOST_STATIONS:
            faults.append(Fault(key_of(port), f"the network has {MOST_STATIONS} endpoints on this host already; more"
                                              " cannot be told apart by MAC: put it on another host"))
        else:
            stations.append((mac, view.port_ids[port.id]))
    return Space(
        network.space, stations=tuple(stations), wire=Wire(uplink.id), flooding=flooding_of(network, faults))


def _proxied(network: NetworkGoal, view: HostView, uplink: UplinkView, on: _Segment, faults: list[Fault]) -> Space:
    entries: dict[Address, Location] = {}
    hosts = {one.ip for one in uplink.addresses}
    for port in view.ports_of(network):
        place = LocalPort(view.port_ids[port.id], mac_bytes(port.mac))
        for address in behind_port(port, view):
            other = on.addresses.setdefault(address, port)
            if other is not port or address in hosts:
                whose = f"{other.tenant}/{other.name}" if other is not port else f"the host, on {uplink.name}"
                faults.append(Fault(key_of(port), f"address {address} is that of {whose}, on the same segment; give"
                                                  " the endpoint another"))
            else:
                entries[address] = place
    return Space(network.space, tuple(entries.items()), wire=Wire(uplink.id, proxy=True))
