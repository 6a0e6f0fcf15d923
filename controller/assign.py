"""What the controller chooses for an object: VNI, addresses, MACs, external port. Pure but for the fork's cursors.

A choice once made stays as long as the declaration leaves it open.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from controller import ipam
from controller.documents import Declared
from controller.resources import EndpointSpec, NetworkSpec, StaticMappingSpec
from controller.state import AnyStored, Assigned, Ref, State
from controller.validate import claims_port, gateway_of, listener_on
from southbound.messages import HostFacts


def assign(declared: Declared, uid: str, state: State, facts: Mapping[str, HostFacts]) -> Assigned:
    """Choose for a document that passed its checks; moves the cursors of `state`.

    Raises:
        ipam.Exhausted: nothing is free.
    """
    old, spec = state.get(declared.ref), declared.spec
    if isinstance(spec, NetworkSpec):
        return old.assigned if old else _network(spec, uid, state)
    if isinstance(spec, EndpointSpec):
        return _endpoint(declared.ref, spec, old, state)
    if isinstance(spec, StaticMappingSpec):
        return Assigned(external_port=_external_port(declared.ref, spec, old, state, facts))
    return Assigned()


def release(stored: AnyStored, state: State) -> None:
    """After an object was removed from `state`: keep what it held from being given out again at once."""
    spec, assigned, cursors = stored.spec, stored.assigned, state.cursors
    if isinstance(spec, EndpointSpec):
        network_ref = State.network_ref(stored)
        network = state.network(network_ref)
        if network is None:
            return
        key = _address_key(network.uid)
        low, high = ipam.usable(IPv4Network(network.spec.subnets[0].prefix))
        gateway = int(IPv4Address(gateway_of(network.spec)))
        cursors[key] = ipam.cursor_past(
            low, high, cursors.get(key, 0), int(IPv4Address(assigned.address)),
            lambda n: n == gateway or (network_ref, str(IPv4Address(n))) in state.addresses)
    elif isinstance(spec, NetworkSpec):
        cursors.pop(_address_key(stored.uid), None)
        if spec.mode == "overlay" and assigned.space >= ipam.MIN_AUTO_VNI:
            cursors["vni"] = ipam.cursor_past(ipam.MIN_AUTO_VNI, ipam.MAX_VNI, cursors.get("vni", 0),
                                              assigned.space, state.spaces.__contains__)
    elif isinstance(spec, StaticMappingSpec):
        network = state.network(State.network_ref(stored))
        if network is not None and network.spec.host:
            key = f"port/{network.spec.host}"
            held = {m.assigned.external_port for m in state.mappings_on(network.spec.host)}
            cursors[key] = ipam.cursor_past(*ipam.AUTO_PORTS, cursors.get(key, 0), assigned.external_port,
                                            held.__contains__)


def _network(spec: NetworkSpec, uid: str, state: State) -> Assigned:
    if isinstance(spec.vni, int):
        space = spec.vni
    elif spec.mode == "overlay":
        space = state.cursors["vni"] = ipam.next_vni(state.cursors.get("vni", 0), state.spaces)
    else:
        space = ipam.next_nat_space(state.cursors.get("nat-space", 0), state.spaces)
        state.cursors["nat-space"] = space
    return Assigned(space=space, gateway_mac=ipam.hashed_mac(f"gateway/{uid}", lambda _: False))


def _endpoint(ref: Ref, spec: EndpointSpec, old: AnyStored | None, state: State) -> Assigned:
    network_ref = Ref("Network", ref.tenant, spec.network)
    network = state.network(network_ref)
    assert network is not None, "checked before"
    address = spec.address or (old.assigned.address if old else "")
    if not address:
        key = _address_key(network.uid)
        number = ipam.next_address(IPv4Network(network.spec.subnets[0].prefix), gateway_of(network.spec),
                                   state.cursors.get(key, 0), lambda a: (network_ref, a) in state.addresses)
        state.cursors[key] = number
        address = str(IPv4Address(number))
    mac = spec.mac or (old.assigned.mac if old else "")
    if not mac:
        gateway_mac = network.assigned.gateway_mac
        mac = ipam.hashed_mac(f"{network.uid}/{ref.name}",
                              lambda m: m == gateway_mac or (network_ref, m) in state.macs)
    return Assigned(address=address, mac=mac)


def _external_port(ref: Ref, spec: StaticMappingSpec, old: AnyStored | None, state: State,
                   facts: Mapping[str, HostFacts]) -> int:
    if isinstance(spec.external_port, int):
        return spec.external_port
    network = state.network(Ref("Network", ref.tenant, spec.network))
    assert network is not None, "checked before"
    assert network.spec.host is not None, "checked before"
    host = network.spec.host
    stored_host = state.host(host)
    low, high = stored_host.spec.nat_ports if stored_host else (0, 0)
    others = [m for m in state.mappings_on(host) if m.ref != ref]

    def taken(port: int) -> bool:
        return (low <= port <= high
                or any(claims_port(m, spec.protocol, spec.external_address, port) for m in others)
                or bool(listener_on(facts.get(host), spec.protocol, spec.external_address, port)))

    if old is not None and ipam.AUTO_PORTS[0] <= old.assigned.external_port <= ipam.AUTO_PORTS[1] \
            and not taken(old.assigned.external_port):
        return old.assigned.external_port
    key = f"port/{host}"
    port = state.cursors[key] = ipam.next_port(state.cursors.get(key, 0), taken)
    return port


def _address_key(network_uid: str) -> str:
    return f"address/{network_uid}"


__all__ = ["assign", "release"]
