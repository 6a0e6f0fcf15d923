"""The links of endpoints: veth pairs, and tap devices for machines; and what the stack must know to reach them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from agent.goals import Goals
from agent.ids import Ids, port_alias
from agent.networks import mtu
from agent.observed import Observed
from agent.qos import check_qos
from agent.standing import UNKNOWN
from policy.addresses import Interface, gateways, held_addresses, own_addresses
from policy.contribution import Fault, HostView, ObjectError, mac_bytes
from policy.world import is_translated
from southbound.messages import HostGoal, NetworkGoal, PortGoal, key_of
from vfp.model import Address
from vfp.timeouts import Timeouts
from vswitch.links import BridgeLink, OwnedLink, PortLink, port_interface

__all__ = ["is_there", "neighbours", "nested_ports", "port_links", "timeouts"]

# Names that this agent gives to links, and the loopback device.
_OUR_NAMES = re.compile(r"(slp|slb)\d+|slvx0|slq[01]|sl-ins[01]|lo")
_HANDED_NAMES = re.compile(r"slc[0-9a-z]+")     # that it gives to far ends which runtimes take

_MOST_VLANS, _TAGS = 8, 4095             # model.Port.vlans


class Gone(ObjectError):
    """The endpoint had its link, and what it was for is no more."""


Taken = dict[tuple[str, Address], PortGoal]     # by NetworkGoal.id


def port_links(
    goals: Goals,
    networks: Mapping[str, NetworkGoal],
    bridges: Mapping[str, BridgeLink],
    observed: Observed,
    ids: Ids,
    faults: list[Fault],
    taken: Taken,
    gone: set[str],
) -> dict[str, PortLink]:
    """The link of each endpoint that can have one, by PortGoal.id. `taken`: gets their addresses; `gone`: the endpoints
    whose link went with their container."""
    links: dict[str, PortLink] = {}
    taken_names: dict[str, PortGoal] = {}
    for port in goals.ports:
        if port.behind:
            continue
        try:
            if port.id not in ids.ports:
                raise ObjectError("this host has no free port id; remove endpoints or raise the limit")
            network = _check(port, networks, goals.host, taken)
            addresses = own_addresses(port)
            ways_out = [gateway for address in addresses for gateway in _gateway(network, address)]
            if not port.netns:
                _check_name(port, taken_names, observed)
            if _is_gone(port, ids.ports[port.id], observed):
                raise Gone("its link is gone: the container ended, or its runtime removed it; start the container"
                           " again, or delete the endpoint")
        except ObjectError as error:
            if isinstance(error, Gone):
                gone.add(port.id)
            faults.append(Fault(key_of(port), str(error)))
            continue
        taken.update(((network.id, held), port) for held in held_addresses(port))
        number = ids.ports[port.id]
        tap = not port.netns and not port.handed
        links[port.id] = PortLink(
            host_interface=port.interface if tap else port_interface(number),
            alias=port_alias(port.id, number),
            netns=port.netns,
            interface="" if tap else port.interface,
            mac=port.mac,
            addresses=tuple(str(address) for address in addresses),
            gateways=tuple(str(gateway.ip) for gateway in ways_out),
            dead_end=not leads_out(network),
            mtu_bytes=mtu(network, observed),
            bridge=bridges[network.id].name if network.id in bridges else "",
            tap=tap,
            queues=port.queues if tap else 1,
            dhcp=port.dhcp,
            accept_ra=network.advertise or network.slaac,
            slaac=network.slaac,
            handed=port.handed,
            namespace=observed.standing.get(port.id, UNKNOWN).namespace,
        )
    return links


def nested_ports(
    goals: Goals, networks: Mapping[str, NetworkGoal], links: Mapping[str, PortLink], faults: list[Fault], taken: Taken
) -> dict[str, tuple[PortGoal, ...]]:
    """Endpoints that have no link of their own, by the PortGoal.id of the one that they are behind."""
    found: dict[str, tuple[PortGoal, ...]] = {}
    ports = {port.id: port for port in goals.ports if not port.behind}
    for port in goals.ports:
        if not port.behind:
            continue
        try:
            network = _check(port, networks, goals.host, taken)
            outer = ports.get(port.behind)
            if outer is None or outer.id not in links:
                raise ObjectError(f"the endpoint that it is behind ({outer.name if outer else port.behind}) is not"
                                  " ready on this host; see that one's status")
            if outer.network != port.network:
                raise ObjectError(f"endpoint {outer.name}, which it is behind, is in another network; put both in one")
        except ObjectError as error:
            faults.append(Fault(key_of(port), str(error)))
            continue
        taken.update(((network.id, address.ip), port) for address in own_addresses(port))
        found[port.behind] = (*found.get(port.behind, ()), port)
    return found


def _check(port: PortGoal, networks: Mapping[str, NetworkGoal], host: HostGoal, taken: Taken) -> NetworkGoal:
    """What holds for every endpoint.

    Raises:
        ObjectError: it cannot be served.
    """
    network = networks.get(port.network)
    if network is None:
        raise ObjectError("its network is not here, or has an error; see the network's status")
    mac = mac_bytes(port.mac)
    if mac[0] & 1 or not any(mac):
        raise ObjectError(f"MAC {port.mac} is no endpoint's: the lowest bit of its first byte is for groups, and one of"
                          " zeros is nobody's; give another")
    own = own_addresses(port)
    for one in own:
        _gateway(network, one)
    held = [one.ip for one in own] if port.behind else held_addresses(port)
    for address in held:
        other = taken.get((network.id, address), port)
        if other is not port:
            raise ObjectError(f"address {address} is that of {other.tenant}/{other.name} too")
    if port.dhcp and network.mode != "transparent":
        raise ObjectError(f"dhcp in a network of mode {network.mode}; only transparent ones have a DHCP server")
    if port.vlans and network.mode != "transparent":
        raise ObjectError(f"vlans {', '.join(map(str, port.vlans))} in a network of mode {network.mode}; only"
                          " transparent ones carry tags")
    if len(set(port.vlans)) < len(port.vlans) or len(port.vlans) > _MOST_VLANS or any(
            not 0 < tag < _TAGS for tag in port.vlans):
        raise ObjectError(f"vlans {', '.join(map(str, port.vlans))}; give at most {_MOST_VLANS}, of 1 to {_TAGS - 1},"
                          " each once")
    check_qos(port.qos, host)
    return network


def leads_out(network: NetworkGoal) -> bool:
    """Whether its gateway leads to more than its own subnets."""
    if network.mode == "overlay":
        return bool(network.egress or network.routes or network.peers)
    return network.mode != "private"


def _gateway(network: NetworkGoal, address: Interface) -> list[Interface]:
    for gateway in gateways(network):
        if address.version == gateway.version and address.ip in gateway.network:
            if address.ip == gateway.ip:
                raise ObjectError(f"address {address.ip} is the network's gateway; give the endpoint another")
            return [gateway]
    raise ObjectError(f"address {address} is outside network {network.tenant}/{network.name}")


def _is_gone(port: PortGoal, number: int, observed: Observed) -> bool:
    """Whether a runtime took the far end, and with it the pair went: it would be made for nobody."""
    found = observed.owned.get(port_interface(number))
    return port.handed and observed.standing.get(port.id, UNKNOWN).taken and (
        found is None or found.alias != port_alias(port.id, number))


def _check_name(port: PortGoal, taken: dict[str, PortGoal], observed: Observed) -> None:
    """The name of a tap device, or of a far end that waits, is one among all that this namespace has."""
    name, what = port.interface, "far end" if port.handed else "tap device"
    if not name:
        raise ObjectError("a port without a namespace is a tap device; give its name as the interface")
    if (_OUR_NAMES.fullmatch(name) or (observed.uplink is not None and name == observed.uplink.name)
            or (_HANDED_NAMES.fullmatch(name) and not port.handed)):
        raise ObjectError(f"{what} {name!r}: the name is that of another link of this host; choose another")
    other = taken.setdefault(name, port)
    if other is not port:
        raise ObjectError(f"{what} {name!r} is that of endpoint {other.tenant}/{other.name} too; choose another")


def is_there(link: PortLink, owned: Mapping[str, OwnedLink]) -> bool:
    """Whether the link exists. A tap's name may be another port's still: its mark says whose it is."""
    found = owned.get(link.host_interface)
    return found is not None and (not link.tap or found.alias == link.alias)


def neighbours(bridges: Mapping[str, BridgeLink], view: HostView) -> dict[str, dict[str, str]]:
    """Address to MAC by bridge: its stack knows its endpoints without asking. One without an address speaks to none."""
    return {
        bridge.name: {
            str(address.ip): port.mac
            for port in view.ports_of(view.networks[uid])
            for one in (port, *view.nested.get(port.id, ())) for address in own_addresses(one)
        } if bridge.addresses else {}
        for uid, bridge in bridges.items()
    }


def timeouts(network: NetworkGoal, engine: Timeouts) -> Timeouts | None:
    """The times of a network's flows; None: the engine's."""
    if not is_translated(network) or not network.nat.timeouts:
        return None
    return replace(engine, **{f"{name}_s": seconds for name, seconds in network.nat.timeouts})
