"""The links of endpoints: veth pairs, and tap devices for machines; and what the stack must know to reach them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from agent.goals import Goals
from agent.ids import Ids, port_alias
from agent.networks import mtu
from agent.observed import Observed
from policy.addresses import Interface, gateways, held_addresses, own_addresses
from policy.contribution import Fault, HostView, ObjectError, mac_bytes
from southbound.messages import NetworkGoal, PortGoal, key_of
from vfp.model import Address
from vfp.timeouts import Timeouts
from vswitch.links import BridgeLink, OwnedLink, PortLink, port_interface

__all__ = ["is_there", "neighbours", "port_links", "timeouts"]

# Names that this agent gives to links, and the loopback device.
_OUR_NAMES = re.compile(r"(slp|slb)\d+|slvx0|sl-ins[01]|lo")


def port_links(
    goals: Goals,
    networks: Mapping[str, NetworkGoal],
    bridges: Mapping[str, BridgeLink],
    observed: Observed,
    ids: Ids,
    faults: list[Fault],
) -> dict[str, PortLink]:
    """The link of each endpoint that can have one, by PortGoal.id."""
    links: dict[str, PortLink] = {}
    taken: dict[tuple[str, Address], PortGoal] = {}
    taps: dict[str, PortGoal] = {}
    for port in goals.ports:
        try:
            network = networks.get(port.network)
            if network is None:
                raise ObjectError("its network is not here, or has an error; see the network's status")
            if port.id not in ids.ports:
                raise ObjectError("this host has no free port id; remove endpoints or raise the limit")
            mac_bytes(port.mac)
            addresses = own_addresses(port)
            ways_out = [gateway for address in addresses for gateway in _gateway(network, address)]
            for held in held_addresses(port):
                other = taken.get((network.id, held), port)
                if other is not port:
                    raise ObjectError(f"address {held} is that of {other.tenant}/{other.name} too")
            if not port.netns:
                _check_tap(port, taps, observed)
        except ObjectError as error:
            faults.append(Fault(key_of(port), str(error)))
            continue
        taken.update(((network.id, held), port) for held in held_addresses(port))
        number = ids.ports[port.id]
        links[port.id] = PortLink(
            host_interface=port_interface(number) if port.netns else port.interface,
            alias=port_alias(port.id, number),
            netns=port.netns,
            interface=port.interface if port.netns else "",
            mac=port.mac,
            addresses=tuple(str(address) for address in addresses),
            gateways=tuple(str(gateway.ip) for gateway in ways_out),
            mtu_bytes=mtu(network, observed),
            bridge=bridges[network.id].name if network.id in bridges else "",
            tap=not port.netns,
        )
    return links


def _gateway(network: NetworkGoal, address: Interface) -> list[Interface]:
    for gateway in gateways(network):
        if address.version == gateway.version and address.ip in gateway.network:
            if address.ip == gateway.ip:
                raise ObjectError(f"address {address.ip} is the network's gateway; give the endpoint another")
            return [gateway]
    raise ObjectError(f"address {address} is outside network {network.tenant}/{network.name}")


def _check_tap(port: PortGoal, taps: dict[str, PortGoal], observed: Observed) -> None:
    """The name of a tap device is the user's choice, among all that this namespace has."""
    name = port.interface
    if not name:
        raise ObjectError("a port without a namespace is a tap device; give its name as the interface")
    if _OUR_NAMES.fullmatch(name) or (observed.uplink is not None and name == observed.uplink.name):
        raise ObjectError(f"tap device {name!r}: the name is that of another link of this host; choose another")
    other = taps.setdefault(name, port)
    if other is not port:
        raise ObjectError(f"tap device {name!r} is that of endpoint {other.tenant}/{other.name} too; choose another")


def is_there(link: PortLink, owned: Mapping[str, OwnedLink]) -> bool:
    """Whether the link exists. A tap's name may be another port's still: its mark says whose it is."""
    found = owned.get(link.host_interface)
    return found is not None and (not link.tap or found.alias == link.alias)


def neighbours(bridges: Mapping[str, BridgeLink], view: HostView) -> dict[str, dict[str, str]]:
    """Address to MAC by bridge: its stack knows its endpoints without asking. One without an address speaks to none."""
    return {
        bridge.name: {
            str(address.ip): port.mac
            for port in view.ports_of(view.networks[uid]) for address in own_addresses(port)
        } if bridge.addresses else {}
        for uid, bridge in bridges.items()
    }


def timeouts(network: NetworkGoal, engine: Timeouts) -> Timeouts | None:
    """The times of a network's flows; None: the engine's."""
    if network.mode != "nat" or not network.nat.timeouts:
        return None
    return replace(engine, **{f"{name}_s": seconds for name, seconds in network.nat.timeouts})
