"""Networks of this host whose prefix somebody else has come to use: a LAN that was joined, a VPN that went up.

The controller refuses such a prefix when it is declared; this is for what comes later, controller or not. Endpoints of
such a network still reach each other, but not who has the same address out there. Where the other prefix is wider, the
network's is a hole in it for the host as well. Where it is the same or within, the host's stack could not have both: it
keeps what is outside, and the network is hidden from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network

from agent.goals import Goals
from southbound.messages import HostFacts, NetworkGoal

__all__ = ["Overlap", "overlapping"]

Prefix = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Overlap:
    """What overlaps a network: `wlan0 172.17.0.0/16`, one of each interface. `eclipses`: none of them is wider."""

    places: tuple[str, ...]
    eclipses: bool

    def __str__(self) -> str:
        return f"overlap with {', '.join(self.places)}"


def overlapping(goals: Goals, facts: HostFacts) -> dict[str, Overlap]:
    """By NetworkGoal.id; networks that nothing overlaps are left out."""
    taken = list(_taken(facts))
    found: dict[str, Overlap] = {}
    for network in goals.networks:
        if network.mode == "nat" and (touching := list(_touching(network, taken))):
            places: dict[str, str] = {}
            for interface, _, other in touching:
                places.setdefault(interface, f"{interface or 'a route to nowhere'} {other}")
            eclipses = any(other.prefixlen >= own.prefixlen for _, own, other in touching)
            found[network.id] = Overlap(tuple(places.values()), eclipses)
    return found


def _touching(network: NetworkGoal, taken: list[tuple[str, Prefix]]) -> Iterator[tuple[str, Prefix, Prefix]]:
    """(interface, prefix of the network, the other)."""
    own = [prefix for subnet in network.subnets if (prefix := _prefix(subnet.prefix)) is not None]
    return ((interface, prefix, other) for interface, other in taken for prefix in own if _touch(prefix, other))


def _taken(facts: HostFacts) -> Iterator[tuple[str, Prefix]]:
    """Addresses before routes: who has an address says best whose prefix it is."""
    for interface, text in facts.addresses:
        yield interface, ip_interface(text).network
    for interface, text in facts.routes:
        if (prefix := _prefix(text)) is not None:
            yield interface, prefix


def _prefix(text: str) -> Prefix | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None                         # the network has a fault of its own


def _touch(one: Prefix, other: Prefix) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)
