"""What this host may give an endpoint by itself while the controller is away: an address, a MAC, ports. Pure functions.

The same as the controller would choose where it can be (the MAC), and what it will not refuse later where that is
known here. What cannot be known here is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from ipaddress import ip_address, ip_network

from agent.attach_words import range_of
from agent.attachment import Attachment, Mapped
from agent.goals import Goals
from agent.local_errors import Refusal
from southbound.messages import HostFacts, LeaseGoal, MappingGoal, NetworkGoal, PortGoal

__all__ = ["addresses_in_use", "choose_address", "lease_of", "leased_mappings", "leased_port", "length_of", "may_give"]

MOST_LOOKED_AT = 65536                      # addresses of a range
_ANY = {4: "0.0.0.0", 6: "::"}
_EVERYONE = ("0.0.0.0/0", "::/0")
_PROTOCOLS = ("tcp", "udp", "sctp", "icmp")


def lease_of(goals: Goals, tenant: str, name: str) -> tuple[NetworkGoal, LeaseGoal] | None:
    """The network of this name and the lease of it; None: there is none."""
    for lease in goals.leases:
        network = goals.objects.get((NetworkGoal.kind, lease.id))
        if isinstance(network, NetworkGoal) and (network.tenant, network.name) == (tenant, name):
            return network, lease
    return None


def addresses_in_use(goals: Goals, network: NetworkGoal, but: str = "") -> set[str]:
    """Those of endpoints here, and of gateways. `but`: PortGoal.id whose own do not count."""
    used = {subnet.gateway for subnet in network.subnets}
    for port in goals.ports:
        if port.network == network.id and port.id != but:
            used.update(text.partition("/")[0] for text in (port.address, port.address6) if text)
    return used


def may_give(lease: LeaseGoal, address: str) -> bool:
    """Whether an address is this host's to give."""
    number, version = int(ip_address(address)), ip_address(address).version
    return address in lease.addresses or (lease.whole and any(
        family == version and low <= number <= high for family, low, high in _ranges(lease)))


def choose_address(lease: LeaseGoal, version: int, used: Collection[str], within: str = "", after: str = "") -> str:
    """The next free one behind `after`, which was given last; empty: there is none. `within`: only of this range."""
    bounds = range_of(within, "range") if within else None
    first = ""
    passed = not after
    for address in _offered(lease, version):
        inside = bounds is None or (bounds[0] == version and bounds[1] <= int(ip_address(address)) <= bounds[2])
        if inside and address not in used:
            if passed:
                return address
            first = first or address
        passed = passed or address == after
    return first


def _offered(lease: LeaseGoal, version: int) -> Iterator[str]:
    yield from (address for address in lease.addresses if (6 if ":" in address else 4) == version)
    if not lease.whole:
        return
    for family, low, high in _ranges(lease):
        if family == version:
            for number in range(low, min(high, low + MOST_LOOKED_AT) + 1):
                yield str(ip_address(number.to_bytes(4 if version == 4 else 16, "big")))


def _ranges(lease: LeaseGoal) -> Iterator[tuple[int, int, int]]:
    for first, last in lease.ranges:
        yield ip_address(first).version, int(ip_address(first)), int(ip_address(last))


def length_of(network: NetworkGoal, address: str) -> int | None:
    """Prefix length of the subnet that an address is in; None: in none."""
    for subnet in network.subnets:
        prefix = ip_network(subnet.prefix)
        if ip_address(address) in prefix:
            return prefix.prefixlen
    return None


def leased_port(
    wanted: Attachment, network: NetworkGoal, lease: LeaseGoal, goals: Goals, used: Collection[str]
) -> PortGoal:
    """The port of an attachment by the lease. `used`: addresses that others have or keep.

    Raises:
        Refusal: unavailable, taken, outside: it cannot be made without the controller.
    """
    if wanted.labels or wanted.qos or wanted.name in lease.named:
        what = "labels" if wanted.labels else "qos" if wanted.qos else f"the name {wanted.name}"
        raise Refusal("unavailable", f"the controller is away, and says what holds for an endpoint with {what}",
                      what.split()[-1] if wanted.labels or wanted.qos else "name", "",
                      "start the controller, or leave it out")
    found: dict[int, str] = {}
    for version in sorted({ip_network(subnet.prefix).version for subnet in network.subnets}):
        text = next((each for each in wanted.addresses if (6 if ":" in each else 4) == version), "")
        address = text or choose_address(lease, version, used)
        if not address:
            raise Refusal("unavailable", f"the controller is away, and all IPv{version} addresses of {network.tenant}/"
                          f"{network.name} that it leased this host are in use", "network", network.name,
                          "start the controller")
        length = length_of(network, address)
        if length is None:
            raise Refusal("outside", f"is in no subnet of {network.tenant}/{network.name}", "addresses", address,
                          f"use one of {', '.join(subnet.prefix for subnet in network.subnets)}")
        if text and text in used:
            raise Refusal("taken", "is in use on this host", "addresses", text, "choose another, or leave it out")
        if text and not may_give(lease, text):
            raise Refusal("unavailable", "the controller is away, and did not lease this address to this host",
                          "addresses", text, "start the controller, or leave it out")
        found[version] = f"{address}/{length}"
    macs = {network.gateway_mac} | {port.mac for port in goals.ports
                                   if port.network == network.id and port.id != wanted.uid}
    return PortGoal(
        id=wanted.uid, name=wanted.name, tenant=wanted.tenant, network=network.id, address=found.get(4, ""),
        address6=found.get(6, ""), mac=wanted.mac or _mac(f"{network.id}/{wanted.name}", macs),
        netns=wanted.place.path, interface=wanted.far_interface or wanted.place.tap or wanted.interface,
        tiers=lease.tiers, default_in=lease.default_in, default_out=lease.default_out, strict_tcp=lease.strict_tcp,
        qos=lease.qos, queues=wanted.queues, handed=wanted.place.handed,
    )


def _mac(identity: str, taken: Collection[str]) -> str:
    """As the controller makes it (controller.ipam.hashed_mac)."""
    for attempt in range(1000):
        digest = hashlib.sha256(f"{identity}#{attempt}".encode()).digest()
        mac = ":".join(f"{octet:02x}" for octet in b"\x02" + digest[:5])
        if mac not in taken:
            return mac
    raise Refusal("exhausted", "no free MAC address", "mac", identity, "give one")


def leased_mappings(
    wanted: Attachment, port: PortGoal, network: NetworkGoal, lease: LeaseGoal, goals: Goals, facts: HostFacts
) -> list[MappingGoal]:
    """Mappings of an attachment that is made by a lease.

    Raises:
        Refusal: in_use, invalid, unavailable.
    """
    taken = [mapping for mapping in goals.mappings if mapping.port != wanted.uid]
    made: list[MappingGoal] = []
    for position, mapped in enumerate(wanted.mappings):
        if network.mode != "nat":
            raise Refusal("invalid", f"network {network.name} is {network.mode}; mappings are for nat networks",
                          f"mappings[{position}]", "", "leave them out")
        made.append(_mapping(mapped, position, port, lease, [*taken, *made], goals, facts))
    return made


def _mapping(mapped: Mapped, position: int, port: PortGoal, lease: LeaseGoal, taken: Iterable[MappingGoal],
             goals: Goals, facts: HostFacts) -> MappingGoal:
    field, spec = f"mappings[{position}]", mapped.spec
    protocol = spec.get("protocol")
    sources = tuple(spec.get("allowFrom") or _EVERYONE)
    outside = str(spec.get("externalAddress") or _ANY[4])
    version = 6 if ":" in outside else 4
    if protocol not in _PROTOCOLS or lease.default_in != "allow" or _EVERYONE[version == 6] not in sources:
        raise Refusal("unavailable", "the controller is away, and such a mapping needs it", field, str(dict(spec)),
                      "start the controller, or leave it out")
    inside = (port.address6 if version == 6 else port.address).partition("/")[0]
    external, internal = spec.get("externalPort"), spec.get("internalPort")
    ports = _ports(internal if external == "auto" else external, f"{field}.externalPort")
    size = ports[1] - ports[0]
    first_inside = _ports(internal, f"{field}.internalPort")[0] if internal is not None else ports[0]
    busy = _Busy(protocol, outside, taken, goals, facts)
    if external == "auto":
        first, last = goals.host.mapping_ports
        low = next((low for low in range(first, last - size + 1) if not busy.why(low, low + size)), 0)
        if not low:
            raise Refusal("exhausted", "no port is free", f"{field}.externalPort", "auto", "give one")
        ports = low, low + size
    elif why := busy.why(*ports):
        raise Refusal("in_use", why, f"{field}.externalPort", str(external), "choose another, or auto")
    return MappingGoal(mapped.uid, mapped.name, port.tenant, protocol, outside, ports, port.id, inside, first_inside)


class _Busy:
    """Ports of the host that are not free."""

    def __init__(self, protocol: str, outside: str, taken: Iterable[MappingGoal], goals: Goals,
                 facts: HostFacts) -> None:
        self._nat = goals.host.nat_ports
        self._mappings = [each for each in taken if each.protocol in (protocol, "any")
                          and _meet(each.external_address, outside)]
        self._listeners = {port: address for its, address, port in facts.listeners
                           if its == protocol and _meet(address, outside) and not ip_address(address).is_loopback}

    def why(self, low: int, high: int) -> str:
        """Why a range is not free; empty: it is."""
        if low <= self._nat[1] and self._nat[0] <= high:
            return f"ports {self._nat[0]}-{self._nat[1]} are those that NAT uses on this host"
        for each in self._mappings:
            if each.protocol == "any" or (low <= each.external_ports[1] and each.external_ports[0] <= high):
                return f"is taken by StaticMapping {each.tenant}/{each.name}"
        for port, address in self._listeners.items():
            if low <= port <= high:
                return f"port {port} is taken by a program of the host that listens on {address}"
        return ""


def _meet(one: str, other: str) -> bool:
    return one == other or ((":" in one) == (":" in other) and (one in _ANY.values() or other in _ANY.values()))


def _ports(value: object, field: str) -> tuple[int, int]:
    low, _, high = str(value).partition("-")
    if not low.isdecimal() or not (high or low).isdecimal() or not 1 <= int(low) <= int(high or low) <= 65535:
        raise Refusal("invalid", "is no port", field, str(value), 'give 1 to 65535, or a range like "8000-8010"')
    return int(low), int(high or low)
