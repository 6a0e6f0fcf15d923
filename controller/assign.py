"""What the controller chooses for an object: VNI, prefixes, addresses, MACs, external ports. Pure but for the fork's
cursors.

A choice once made stays as long as the declaration leaves it open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import cast

from controller import ipam
from controller.check_mappings import listeners_in, mapped
from controller.check_modes import ON_SEGMENT
from controller.checks import own_addresses
from controller.documents import Declared
from controller.ipam import Range
from controller.overlaps import chosen
from controller.resources import EndpointSpec, HostSpec, NetworkSpec, StaticMappingSpec
from controller.state import AnyStored, Assigned, Change, Ref, State, Stored
from controller.subnets import InUse, declared, kept, meant, subnets_of
from controller.texts import port_range
from southbound.messages import HostFacts, Subnet


class Asked:
    """The addresses that the documents of one request ask for by hand: none of them is given out automatically."""

    def __init__(self, documents: Iterable[Declared] = ()) -> None:
        self._texts: dict[Ref, list[str]] = {}                  # by network
        self._known: dict[Ref, tuple[Stored[NetworkSpec], frozenset[str]]] = {}
        for document in documents:
            spec = document.spec
            if isinstance(spec, EndpointSpec):
                texts = self._texts.setdefault(Ref("Network", document.ref.tenant, spec.network), [])
                texts += [text for text in (spec.address, spec.address6) if text]

    def of(self, network: Stored[NetworkSpec]) -> frozenset[str]:
        """Those in a network as it is now, as they are in use."""
        if network.ref not in self._texts:
            return frozenset()
        known = self._known.get(network.ref)
        if known is None or known[0] is not network:
            subnets = subnets_of(network)
            found = (meant(subnets, text) for text in self._texts[network.ref])
            known = self._known[network.ref] = (network, frozenset(one[1] for one in found if one is not None))
        return known[1]


_NOTHING = Asked()
_NO_FACTS: Mapping[str, HostFacts] = {}


def assign(document: Declared, uid: str, state: State, facts: Mapping[str, HostFacts],
           asked: Asked = _NOTHING) -> Assigned:
    """Choose for a document that passed its checks; moves the cursors of `state`.

    `asked`: of the same request.

    Raises:
        ipam.Exhausted: nothing is free.
    """
    old, spec = state.get(document.ref), document.spec
    if isinstance(spec, NetworkSpec):
        before = cast("Stored[NetworkSpec] | None", old)
        assigned = before.assigned if before else _network(spec, uid, state)
        return replace(assigned, subnets=_subnets(document.ref, spec, before, state, facts))
    if isinstance(spec, EndpointSpec):
        return _endpoint(document.ref, spec, cast("Stored[EndpointSpec] | None", old), state, asked, facts)
    if isinstance(spec, StaticMappingSpec):
        port = _external_port(document.ref, spec, cast("Stored[StaticMappingSpec] | None", old), state, facts)
        return Assigned(external_port=port)
    return Assigned()


def follow(change: Change, state: State, asked: Asked = _NOTHING) -> list[Change]:
    """What else changes with a network that was put: its endpoints get addresses of a family that is new to it.

    Raises:
        ipam.Exhausted: nothing is free.
    """
    network = change.after
    if change.before is None or network is None or not isinstance(network.spec, NetworkSpec):
        return []
    assert isinstance(change.before.spec, NetworkSpec)
    if {s.version for s in network.spec.subnets} <= {s.version for s in change.before.spec.subnets}:
        return []
    changes = []
    for endpoint in sorted(state.endpoints_of(network.ref), key=lambda e: e.ref):
        new = replace(endpoint, assigned=_endpoint(endpoint.ref, endpoint.spec, endpoint, state, asked),
                      revision=state.revision)
        state.put(new)
        changes.append(Change(endpoint, new))
    return changes


def release(stored: AnyStored, state: State) -> None:
    """After an object was removed from `state`: keep what it held from being given out again at once."""
    spec, assigned, cursors = stored.spec, stored.assigned, state.cursors
    if isinstance(spec, EndpointSpec):
        network = state.network(State.network_ref(stored))
        for address in assigned.addresses if network is not None else ():
            assert network is not None
            version = ip_address(address).version
            key = address_key(network.uid, version)
            cursors[key] = ipam.cursor_past(ring_of(subnets_of(network), version), cursors.get(key, 0),
                                            int(ip_address(address)), taken_in(network.ref, version, state))
    elif isinstance(spec, NetworkSpec):
        for version in (4, 6):
            cursors.pop(address_key(stored.uid, version), None)
        if spec.mode == "overlay" and assigned.space >= ipam.MIN_AUTO_VNI:
            cursors["vni"] = ipam.cursor_past([(ipam.MIN_AUTO_VNI, ipam.MAX_VNI)], cursors.get("vni", 0),
                                              assigned.space, state.spaces.__contains__)
    elif isinstance(spec, StaticMappingSpec) and spec.external_port == "auto":
        network = state.network(State.network_ref(stored))
        host = state.host(network.spec.host) if network is not None and network.spec.host else None
        if host is not None:
            _release_ports(spec.externals(assigned.external_port), host, state)


def address_key(network_uid: str, version: int) -> str:
    """Where the cursor of a network's addresses is kept."""
    return f"{'address6' if version == 6 else 'address'}/{network_uid}"


def _release_ports(freed: Range, host: Stored[HostSpec], state: State) -> None:
    tables = [state.externals.get(n.ref, {}) for n in state.nat_networks_on(host.ref.name)]

    def held(port: int) -> bool:
        return any((protocol, port) in table for table in tables for protocol in ("tcp", "udp", "sctp", "icmp"))

    key = f"port/{host.ref.name}"
    following = ipam.next_free([host.spec.mapping_ports], state.cursors.get(key, 0), held)
    if following is not None and freed[0] <= following <= freed[1]:
        state.cursors[key] = freed[1]


def _network(spec: NetworkSpec, uid: str, state: State) -> Assigned:
    if isinstance(spec.vni, int):
        space = spec.vni
    elif spec.mode == "overlay":
        space = state.cursors["vni"] = ipam.next_vni(state.cursors.get("vni", 0), state.spaces)
    else:
        space = ipam.next_space(state.cursors.get("nat-space", 0), state.spaces)
        state.cursors["nat-space"] = space
    return Assigned(space=space, gateway_mac=ipam.hashed_mac(f"gateway/{uid}", lambda _: False))


def _subnets(ref: Ref, spec: NetworkSpec, old: Stored[NetworkSpec] | None, state: State,
             facts: Mapping[str, HostFacts]) -> tuple[Subnet, ...]:
    """Those that were there stay as they are in use; new ones as declared, or free ones."""
    places = kept(old.spec.subnets if old else (), spec.subnets)
    settled = {i: old.assigned.subnets[place] if old is not None and place is not None else declared(subnet)
               for i, (subnet, place) in enumerate(zip(spec.subnets, places, strict=True))
               if place is not None or subnet.prefix != "auto"}
    for i, subnet in enumerate(spec.subnets):
        if i not in settled:
            assert spec.host is not None, "checked before"
            try:
                prefix = chosen(state, spec.host, ref, facts.get(spec.host), subnet.length,
                                [ip_network(each.prefix) for each in settled.values()])
            except ipam.Exhausted as error:
                raise ipam.Exhausted(str(error), f"spec.subnets[{i}].prefix", "auto",
                                     f"free one, give a prefix, or add to spec.autoPrefixes of Host {spec.host}"
                                     ) from None
            settled[i] = Subnet(str(prefix), ipam.default_gateway(prefix))
    return tuple(settled[i] for i in range(len(spec.subnets)))


def _endpoint(ref: Ref, spec: EndpointSpec, old: Stored[EndpointSpec] | None, state: State, asked: Asked,
              facts: Mapping[str, HostFacts] = _NO_FACTS) -> Assigned:
    network_ref = Ref("Network", ref.tenant, spec.network)
    network = state.network(network_ref)
    assert network is not None, "checked before"
    subnets = subnets_of(network)
    address, address6 = "", ""
    host = state.host(spec.host)
    external = host is not None and host.spec.external          # it has what it has; we choose nothing
    versions = {subnet.version for subnet in subnets}
    if 4 in versions and not spec.dhcp and (spec.address or not external):
        same = old is not None and spec.address in (None, old.spec.address)
        had = old.assigned.address if old and same else ""
        address = _address(network, 4, spec.address, had, state, asked, facts)
    if 6 in versions and (spec.address6 or not external):
        same = old is not None and spec.address6 in (None, old.spec.address6)
        had = old.assigned.address6 if old and same else ""
        address6 = _address(network, 6, spec.address6, had, state, asked, facts)
    mac = spec.mac or (old.assigned.mac if old else "")
    if spec.behind is not None:
        mac = ""                            # that of the link which it uses
    elif not mac:
        gateway_mac = network.assigned.gateway_mac
        mac = ipam.hashed_mac(f"{network.uid}/{ref.name}",
                              lambda m: m == gateway_mac or (network_ref, m) in state.macs)
    return Assigned(address=address, address6=address6, mac=mac)


def _address(network: Stored[NetworkSpec], version: int, wanted: str | None, had: str, state: State, asked: Asked,
             facts: Mapping[str, HostFacts]) -> str:
    """An address of a family: the one it had, the one that is asked for, or the next free one (leased is not free)."""
    if had:
        return had
    subnets = subnets_of(network)
    if wanted:
        found = meant(subnets, wanted)
        assert found is not None, "checked before"
        return found[1]
    ring = ring_of(subnets, version)
    key = address_key(network.uid, version)
    reserved = asked.of(network)
    if network.spec.mode in ON_SEGMENT:
        reserved |= held_by_hosts(network, facts)
    taken = taken_in(network.ref, version, state)
    number = ipam.next_free(ring, state.cursors.get(key, 0),
                            lambda number: taken(number) or ipam.text_of(number, version) in reserved)
    if number is not None:
        state.cursors[key] = number
        return ipam.text_of(number, version)
    raise no_address(network, version, "spec.address6" if version == 6 else "spec.address")


def held_by_hosts(network: Stored[NetworkSpec], facts: Mapping[str, HostFacts]) -> frozenset[str]:
    """What hosts have on a network's segment themselves."""
    if network.spec.mode not in ON_SEGMENT:
        return frozenset()
    return frozenset(address for each in facts.values() for address in own_addresses(each))


def no_address(network: Stored[NetworkSpec], version: int, field: str) -> ipam.Exhausted:
    """That nothing of a family is free."""
    subnets = [subnet for subnet in subnets_of(network) if subnet.version == version]
    count = sum(high - low + 1 for low, high in ring_of(subnets, version))
    leases = {host: n for host, addresses in network.assigned.leases.items()
              if (n := sum(ip_address(each).version == version for each in addresses))}
    leased = ", ".join(f"{n} to {host}" for host, n in leases.items())
    return ipam.Exhausted(f"all {count} addresses that {', '.join(str(subnet.prefix) for subnet in subnets)} has to "
                          f"give are in use or asked for{'; leased are ' if leased else ''}{leased}", field, "nothing")


def ring_of(subnets: Sequence[InUse], version: int) -> list[Range]:
    """What the subnets of a family give out, in their order."""
    return [each for subnet in subnets if subnet.version == version for each in subnet.ring()]


def taken_in(network: Ref, version: int, state: State) -> Callable[[int], bool]:
    """Whether an address, as an integer, is that of an endpoint, or leased to a host."""
    def taken(number: int) -> bool:
        key = network, ipam.text_of(number, version)
        return key in state.addresses or key in state.leased

    return taken


def _external_port(ref: Ref, spec: StaticMappingSpec, old: Stored[StaticMappingSpec] | None, state: State,
                   facts: Mapping[str, HostFacts]) -> int:
    """The first of its ports; 0: it has none."""
    if spec.external_port is None:
        return 0
    if spec.external_port != "auto":
        return port_range(spec.external_port)[0]
    network = state.network(Ref("Network", ref.tenant, spec.network))
    assert network is not None, "checked before"
    assert network.spec.host is not None, "checked before"
    name = network.spec.host
    host = state.host(name)
    assert host is not None, "a nat network's host is there"
    (low, high), (first, last) = host.spec.nat_ports, host.spec.mapping_ports
    listening = {port for _, port in listeners_in(facts.get(name), spec, (first, last))}
    if spec.protocol == "udp" and host.spec.underlay:
        listening.add(state.vxlan_port())

    def taken(port: int) -> bool:
        return low <= port <= high or port in listening or mapped(state, name, ref, spec, (port, port)) is not None

    if old is not None and old.spec.external_port == "auto":
        begin, end = spec.externals(old.assigned.external_port)
        if first <= begin and end <= last and not any(map(taken, range(begin, end + 1))):
            return begin
    key = f"port/{name}"
    try:
        port = ipam.next_ports((first, last), spec.size, state.cursors.get(key, 0), taken)
    except ipam.Exhausted as error:
        raise ipam.Exhausted(f"{error} (mappingPorts of Host {name})", "spec.externalPort", "auto",
                             "free some, give a port, or more mappingPorts") from None
    state.cursors[key] = port + spec.size - 1
    return port


__all__ = ["Asked", "address_key", "assign", "follow", "held_by_hosts", "no_address", "release", "ring_of",
           "taken_in"]
