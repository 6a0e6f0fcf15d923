"""Checks of what a Network of each mode may say: which fields belong to it, and families, lengths and links. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from controller.checks import Surroundings, exists
from controller.errors import Problem
from controller.ipam import Prefix
from controller.network_specs import NetworkSpec
from controller.overlaps import touch
from controller.state import AnyStored, Ref, Stored
from controller.subnets import subnets_of

ON_SEGMENT = ("transparent", "l2bridge", "l2tunnel")
"""Modes whose endpoints are on the segment of an uplink, whose router is there."""
SHORTEST_MTU6 = 1280                        # RFC 8200 section 5
SLAAC_LENGTH = 64                           # RFC 4862 5.5.3 with interface identifiers of 64 bits (RFC 4291 2.5.1)

_ONLY: dict[str, tuple[str, ...]] = {
    "peers": ("overlay",), "routes": ("overlay",), "egress": ("overlay",), "uplink": ON_SEGMENT,
    "broadcast": ("overlay", "private", "transparent"), "routerAdvertisements": ("overlay", "nat", "private"),
    "slaac": ("overlay", "nat", "private"), "vni": ("overlay",), "onOverlap": ("nat",), "nat": ("nat", "overlay"),
}
"""Fields that only networks of some modes have."""


def check_modes(ref: Ref, spec: NetworkSpec, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    """Problems of fields that do not belong to a network's mode, or not to its subnets."""
    yield from _fields(spec)
    yield from _families(spec)
    yield from _nat(spec)
    if spec.mode != "overlay" and spec.mode != "nat":
        if spec.host is not None and old is None:
            yield from exists(Ref("Host", "", spec.host), "spec.host", around)
        for i, subnet in enumerate(spec.subnets):
            if subnet.prefix == "auto" and (spec.mode in ON_SEGMENT or spec.host is None):
                why = "has that of its segment" if spec.mode in ON_SEGMENT else "without host knows none that is free"
                yield Problem("invalid", f"a {spec.mode} network {why}", f"spec.subnets[{i}].prefix", "auto",
                              "give the prefix, such as 192.168.7.0/24")
        if spec.mode in ON_SEGMENT:
            yield from _segment(ref, spec, around)
    if spec.host is not None:
        host = around.state.host(spec.host)
        if host is not None and host.spec.external:
            yield Problem("invalid", f"host {spec.host} is external: no agent makes a {spec.mode} network there",
                          "spec.host", spec.host, "name another host")


def _fields(spec: NetworkSpec) -> Iterator[Problem]:
    for field, modes in _ONLY.items():
        if spec.mode in modes or not (found := _said(spec, field)):
            continue
        article = "an" if spec.mode[0] in "aeio" else "a"
        yield Problem("wrong_mode" if field not in _OLD_WORDS else "invalid",
                      _OLD_WORDS.get(field, "{article} {mode} network has no {field}").format(
                          article=article, mode=spec.mode, field=field),
                      f"spec.{field}", found, f"leave it out, or use mode {' or '.join(modes)}")


_OLD_WORDS = {
    "vni": "{article} {mode} network has no VNI",
    "onOverlap": "{article} {mode} network is apart from the prefixes of its hosts",
    "nat": "{article} {mode} network is not translated",
}


def _said(spec: NetworkSpec, field: str) -> str:
    """What a document says in a field, for an error; empty: nothing."""
    match field:
        case "peers":
            return ", ".join(spec.peers)
        case "routes":
            return ", ".join(route.destination for route in spec.routes)
        case "egress":
            return "" if spec.egress == "none" else spec.exit or str(spec.egress)
        case "broadcast":
            return "" if spec.flooding is None or spec.broadcast is None else f"rate {spec.flooding[0]}"
        case "routerAdvertisements":
            return "true" if spec.router_advertisements else ""
        case "slaac":
            return "true" if spec.slaac else ""
        case "vni":
            return "" if spec.vni == "auto" else str(spec.vni)
        case "onOverlap":
            return "" if spec.on_overlap == "degrade" else spec.on_overlap
        case "nat":
            return "" if spec.nat is None else "a nat section"
    return spec.uplink or ""


def _families(spec: NetworkSpec) -> Iterator[Problem]:
    """Problems of IPv6 without room for it, and of routes into families that the network has not."""
    sixes = [(i, ip_network(s.prefix)) for i, s in enumerate(spec.subnets) if s.version == 6]
    versions = {subnet.version for subnet in spec.subnets}
    if sixes and isinstance(spec.mtu, int) and spec.mtu < SHORTEST_MTU6:
        yield Problem("out_of_range", f"IPv6 needs an MTU of {SHORTEST_MTU6} (RFC 8200), and subnet {sixes[0][1]} is "
                      "IPv6", "spec.mtu", str(spec.mtu), f"use {SHORTEST_MTU6} or more, or auto, or leave IPv6 out")
    if spec.router_advertisements and not sixes:
        yield Problem("family", "router advertisements are IPv6, and the network has no IPv6 subnet",
                      "spec.routerAdvertisements", "true", "leave it out, or add a subnet such as fd00:1::/64")
    if spec.slaac and not spec.router_advertisements:
        yield Problem("missing", "without router advertisements nobody learns of slaac", "spec.routerAdvertisements",
                      "false", "set routerAdvertisements: true, or leave slaac out")
    elif spec.slaac:
        for i, prefix in sixes:
            if prefix.prefixlen != SLAAC_LENGTH:
                yield Problem("out_of_range", f"slaac needs a prefix of length {SLAAC_LENGTH} (RFC 4862)",
                              f"spec.subnets[{i}].prefix", str(prefix), "give a /64, or leave slaac out")
    seen: dict[str, int] = {}
    for i, route in enumerate(spec.routes):
        where, destination = f"spec.routes[{i}].destination", ip_network(route.destination)
        if destination.version not in versions:
            yield Problem("family", f"{destination} is IPv{destination.version}, and the network has no "
                          f"IPv{destination.version} subnet", where, route.destination,
                          "leave it out, or add a subnet of its family")
        if route.destination in seen:
            yield Problem("in_use", f"is the destination of routes[{seen[route.destination]}], too", where,
                          route.destination, "keep one of them")
        elif spec.egress != "none" and destination.prefixlen == 0:
            yield Problem("in_use", "everything goes by egress already", where, route.destination,
                          "leave out one of the two")
        seen.setdefault(route.destination, i)
    for i, peer in enumerate(spec.peers):
        if peer in spec.peers[:i]:
            yield Problem("invalid", "is named twice", f"spec.peers[{i}]", peer, "keep one of them")


def _nat(spec: NetworkSpec) -> Iterator[Problem]:
    """Problems of the translation of a network that is on many hosts."""
    if spec.mode != "overlay" or spec.nat is None:
        return
    if spec.egress == "none" and not spec.exits:
        yield Problem("invalid", "an overlay network without egress is not translated", "spec.nat", "a nat section",
                      "leave it out, add egress, or use mode nat")
    if spec.nat.external_addresses and (spec.egress == "nat" or len(spec.exits) != 1):
        yield Problem("invalid", "several hosts cannot have one external address", "spec.nat.externalAddresses",
                      ", ".join(spec.nat.external_addresses), "leave it out, or use egress: {host: NAME}")
    if spec.nat.ipv6 == "prefix":
        yield Problem("invalid", "from an overlay network IPv6 leaves as an address of the host", "spec.nat.ipv6",
                      "prefix", "use masquerade, or mode nat")


def _segment(ref: Ref, spec: NetworkSpec, around: Surroundings) -> Iterator[Problem]:
    """Problems of the uplink, and of another network that answers for the same addresses on the same segment."""
    if spec.uplink is not None:
        hosts = [spec.host] if spec.host is not None else sorted(around.state.members.get(ref, ()))
        for host in hosts:
            yield from known_link(spec.uplink, "spec.uplink", host, around)
    if spec.mode == "transparent":
        return
    for other in around.state.networks():
        if other.ref == ref or other.spec.mode not in ("l2bridge", "l2tunnel") or not _meet(spec, other.spec):
            continue
        for i, subnet in enumerate(spec.subnets):
            if subnet.prefix != "auto" and (held := _held(other, ip_network(subnet.prefix))) is not None:
                yield Problem("overlap", f"overlaps {held} of {other.ref} on the same segment",
                              f"spec.subnets[{i}].prefix", subnet.prefix, "use that network, or another uplink")


def _meet(one: NetworkSpec, other: NetworkSpec) -> bool:
    return one.uplink == other.uplink and (one.host is None or other.host is None or one.host == other.host)


def _held(network: Stored[NetworkSpec], prefix: Prefix) -> Prefix | None:
    return next((subnet.prefix for subnet in subnets_of(network) if touch(subnet.prefix, prefix)), None)


def known_link(name: str, where: str, host: str, around: Surroundings, role: str = "") -> Iterator[Problem]:
    """A problem if a host has reported its links, and this one is not among them."""
    facts = around.facts.get(host)
    if facts is not None and facts.links and name not in facts.links:
        shown = ", ".join(facts.links[:8]) + (f" and {len(facts.links) - 8} more" if len(facts.links) > 8 else "")
        yield Problem("unknown_link", f"host {host} has no interface {name}{role}", where, name, f"use one of: {shown}")


__all__ = ["ON_SEGMENT", "check_modes", "known_link"]
