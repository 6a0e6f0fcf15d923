"""Networks of this host whose prefix somebody else has come to use: a LAN that was joined, a VPN that went up.

The controller refuses such a prefix when it is declared; this is for what comes later, controller or not. Endpoints of
such a network still reach each other and the host, but not who has the same address out there.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network

from agent.goals import Goals
from southbound.messages import HostFacts, NetworkGoal

__all__ = ["overlap_text", "overlapping"]

Prefix = IPv4Network | IPv6Network


def overlapping(goals: Goals, facts: HostFacts) -> dict[str, tuple[str, ...]]:
    """By NetworkGoal.id, what overlaps it: `wlan0 172.17.0.0/16`, one of each interface. Others are left out."""
    taken = list(_taken(facts))
    found = {network.id: tuple(_of(network, taken)) for network in goals.networks if network.mode == "nat"}
    return {uid: texts for uid, texts in found.items() if texts}


def overlap_text(texts: tuple[str, ...]) -> str:
    """As status and listings say it."""
    return f"overlap with {', '.join(texts)}"


def _of(network: NetworkGoal, taken: list[tuple[str, Prefix]]) -> Iterator[str]:
    prefixes = [prefix for subnet in network.subnets if (prefix := _prefix(subnet.prefix)) is not None]
    seen: set[str] = set()
    for interface, other in taken:
        if interface not in seen and any(_touch(prefix, other) for prefix in prefixes):
            seen.add(interface)
            yield f"{interface or 'a route to nowhere'} {other}"


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
