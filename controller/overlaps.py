"""What of a host a prefix collides with: addresses, routes of all tables, prefixes to avoid, other networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_interface, ip_network

from controller import ipam
from controller.host_specs import AUTO_PREFIXES
from controller.ipam import Prefix, Range
from controller.state import Ref, State
from controller.subnets import InUse, subnets_of
from southbound.messages import HostFacts

WIDEST_ROUTE = {4: 1, 6: 3}
"""Prefix lengths up to which a route is a default one: 0.0.0.0/0 and the halves that VPNs use, ::/0 and 2000::/3."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """An address or route of a host that a prefix collides with. `interface` empty: a route to nowhere."""

    interface: str
    prefix: Prefix
    what: str                               # address 192.168.7.10/24, or route 10.8.0.0/16
    bounds: Range

    def __str__(self) -> str:
        return f"{self.interface or 'a route to nowhere'} {self.prefix}"


@lru_cache(maxsize=256)
def held(facts: HostFacts | None) -> tuple[Overlap, ...]:
    """Every prefix that a host uses by itself, addresses before routes."""
    found = []
    for interface, address in facts.addresses if facts else ():
        prefix = ip_interface(address).network
        found.append(Overlap(interface, prefix, f"address {address}", ipam.range_of(prefix)))
    for interface, text in facts.routes if facts else ():
        route = ip_network(text, strict=False)
        if route.prefixlen > WIDEST_ROUTE[route.version]:
            found.append(Overlap(interface, route, f"route {text}", ipam.range_of(route)))
    return tuple(found)


def overlaps(prefix: Prefix, facts: HostFacts | None) -> list[Overlap]:
    """What of a host collides with a prefix, one an interface."""
    found: dict[str, Overlap] = {}
    for each in collisions(prefix, facts):
        found.setdefault(each.interface, each)
    return list(found.values())


def collisions(prefix: Prefix, facts: HostFacts | None) -> list[Overlap]:
    """All of a host that collides with a prefix."""
    low, high = ipam.range_of(prefix)
    return [each for each in held(facts)
            if each.bounds[0] <= high and low <= each.bounds[1] and each.prefix.version == prefix.version]


def touch(one: Prefix, other: Prefix) -> bool:
    """Whether two prefixes, of any family, have an address in common."""
    return one.version == other.version and one.overlaps(other)


def of_networks(state: State, host: str, besides: Ref) -> Iterator[tuple[Ref, InUse]]:
    """The subnets of all other networks that are on a host."""
    here = {n.ref for n in state.nat_networks_on(host)} | {State.network_ref(e) for e in state.endpoints_on(host)}
    here |= state.leasing.get(host, {}).keys()
    for ref in sorted(here - {besides}):
        network = state.network(ref)
        for subnet in subnets_of(network) if network is not None else ():
            yield ref, subnet


def obstacles(state: State, host: str, besides: Ref, facts: HostFacts | None) -> Iterator[Prefix]:
    """What a prefix that is chosen for a network of a host keeps off."""
    for each in held(facts):
        yield each.prefix
    for _, subnet in of_networks(state, host, besides):
        yield subnet.prefix
        if subnet.spec.prefix != "auto":
            yield ip_network(subnet.spec.prefix)
    stored = state.host(host)
    if stored is not None:
        yield from map(ip_network, stored.spec.avoid_prefixes)
        yield from map(ip_network, stored.spec.underlays)


def chosen(state: State, host: str, network: Ref, facts: HostFacts | None, length: int,
           besides: Iterable[Prefix], local: str = "") -> Prefix:
    """A free prefix for a network of a host: the first of the host's autoPrefixes that collides with nothing.

    `besides`: more to keep off. `local`: an IPv6 prefix is wanted; if the host names none, a local one by this name.

    Raises:
        ipam.Exhausted: there is none.
    """
    stored = state.host(host)
    named = [ip_network(text) for text in (stored.spec.auto_prefixes if stored is not None else ())]
    version = 6 if local else 4
    sources = [prefix for prefix in named if prefix.version == version]
    if not sources:
        sources = [ipam.local_prefix(local)] if local else [ip_network(text) for text in AUTO_PREFIXES]
    return ipam.free_prefix(sources, length, [*obstacles(state, host, network, facts), *besides])


__all__ = ["Overlap", "chosen", "collisions", "held", "obstacles", "of_networks", "overlaps", "touch"]
