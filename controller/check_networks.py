"""Checks of a Network: its subnets, what of its host they collide with, its translation, what of it may change."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, cast

from controller import ipam
from controller.check_modes import check_modes
from controller.checks import Surroundings, exists, listing, own_addresses
from controller.documents import Declared
from controller.errors import Problem
from controller.ipam import Prefix
from controller.network_specs import MAX_SUBNETS, NatSpec, NetworkSpec, SubnetSpec
from controller.overlaps import of_networks, overlaps, touch
from controller.state import AnyStored, Ref, Stored
from controller.subnets import InUse, declared, kept, subnets_of, users

LENGTHS = {4: (8, 30), 6: (16, 126)}
"""Prefix lengths that a subnet may have."""
LONGEST_TRANSLATED = 64                     # RFC 6296 section 3.5: bits behind it are the interface's own
RESERVED4 = IPv4Network("0.0.0.0/8")


def check_network(document: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    """Problems of a Network."""
    spec, ref = document.spec, document.ref
    assert isinstance(spec, NetworkSpec)
    if not 1 <= len(spec.subnets) <= MAX_SUBNETS:
        yield Problem("invalid", f"a network has 1 to {MAX_SUBNETS} subnets", "spec.subnets",
                      f"{len(spec.subnets)} subnets", "give at least one prefix" if not spec.subnets else
                      "make another network for the others")
        return
    found = [problem for i, subnet in enumerate(spec.subnets) for problem in _subnet(subnet, f"spec.subnets[{i}]")]
    found += _apart(spec)
    yield from found
    if found:
        return
    if old is not None:
        assert isinstance(old.spec, NetworkSpec)
        changed = list(_immutable(spec, old))
        yield from changed
        if changed:
            return
        yield from _changed_subnets(spec, cast("Stored[NetworkSpec]", old), around)
    yield from check_modes(ref, spec, old, around)
    if spec.mode == "overlay":
        yield from _overlay(spec, old, around)
    elif spec.mode == "nat":
        yield from _nat_mode(ref, spec, old, around)


def _subnet(subnet: SubnetSpec, where: str) -> Iterator[Problem]:
    if subnet.prefix == "auto":
        return
    prefix = ip_network(subnet.prefix)
    shortest, longest = LENGTHS[prefix.version]
    example = "10.1.0.0/24" if prefix.version == 4 else "fd00:1::/64"
    if not shortest <= prefix.prefixlen <= longest:
        yield Problem("out_of_range", f"a subnet's prefix length is {shortest} to {longest}", f"{where}.prefix",
                      subnet.prefix, f"use for example a /{24 if prefix.version == 4 else 64}")
    elif prefix.is_loopback or prefix.is_multicast or prefix.is_reserved or prefix.is_link_local \
            or (isinstance(prefix, IPv4Network) and prefix.network_address in RESERVED4) \
            or (isinstance(prefix, IPv6Network) and prefix.network_address.packed[0] == 0):
        yield Problem("invalid", f"{prefix} is not for endpoints (loopback, link-local, multicast or reserved)",
                      f"{where}.prefix", subnet.prefix, f"use a private prefix such as {example}")
    else:
        if subnet.gateway:
            yield from outside(subnet.gateway, prefix, f"{where}.gateway", "gateway")
        used = declared(subnet)
        if not InUse(subnet, prefix, used.gateway).ring() and subnet.allocate:
            yield Problem("invalid", f"allocate and exclude leave no address of {prefix}", f"{where}.allocate",
                          ", ".join(subnet.allocate), "allocate from more, or exclude less")


def outside(address: str, prefix: Prefix, where: str, what: str) -> Iterator[Problem]:
    """Problems unless the address is one that an interface of the subnet can have."""
    low, high = (ipam.text_of(n, prefix.version) for n in ipam.usable(prefix))
    todo = f"use one from {low} to {high}"
    number = ip_address(address)
    if number not in prefix:
        yield Problem("outside", f"{what} is outside of its subnet {prefix}", where, address, todo)
    elif not int(ip_address(low)) <= int(number) <= int(ip_address(high)):
        kind = "broadcast" if number == prefix.broadcast_address else "network"
        yield Problem("invalid", f"{what} is the {kind} address of {prefix}", where, address, todo)


def _apart(spec: NetworkSpec) -> Iterator[Problem]:
    prefixes = [(i, ip_network(s.prefix)) for i, s in enumerate(spec.subnets) if s.prefix != "auto"]
    for place, (i, prefix) in enumerate(prefixes):
        for j, other in prefixes[:place]:
            if touch(prefix, other):
                yield Problem("overlap", f"overlaps subnets[{j}] {other} of the same network",
                              f"spec.subnets[{i}].prefix", str(prefix), "give each subnet a prefix of its own")


def _immutable(spec: NetworkSpec, old: AnyStored) -> Iterator[Problem]:
    was = old.spec
    assert isinstance(was, NetworkSpec)
    vni = old.assigned.space if was.mode == "overlay" and spec.vni != "auto" else spec.vni
    changes: list[tuple[str, Any, Any]] = [
        ("spec.mode", was.mode, spec.mode), ("spec.host", was.host, spec.host), ("spec.vni", vni, spec.vni)]
    places = kept(was.subnets, spec.subnets)
    gone = [i for i in range(len(was.subnets)) if i not in places]
    come = [i for i, place in enumerate(places) if place is None]
    changes += [(f"spec.subnets[{i}].prefix", was.subnets[j].prefix, spec.subnets[i].prefix)
                for i, j in zip(come, gone, strict=False)]
    for i, place in enumerate(places):
        if place is not None and spec.subnets[i].prefix != "auto":
            before, now = declared(was.subnets[place]).gateway, declared(spec.subnets[i]).gateway
            changes.append((f"spec.subnets[{i}].gateway", before, now))
    for where, before, now in changes:
        if before != now:
            shown = "nothing" if now is None else str(now)
            yield Problem("immutable", f"cannot be changed (it is {before or 'not set'})", where, shown,
                          "keep it, or make another network and move the endpoints")


def _changed_subnets(spec: NetworkSpec, old: Stored[NetworkSpec], around: Surroundings) -> Iterator[Problem]:
    """Problems of subnets that go while somebody is in them, and of exclusions that come over somebody."""
    state, before = around.state, subnets_of(old)
    places = kept(old.spec.subnets, spec.subnets)
    for i, subnet in enumerate(before):
        if i not in places and (held := users(subnet, old.ref, state)):
            yield Problem("in_use", f"subnet {subnet.prefix} is in use by {listing(held)}", "spec.subnets",
                          f"no {subnet.spec.prefix}", "keep it, or delete them first")
    for i, place in enumerate(places):
        if place is None or spec.subnets[i].exclude == before[place].spec.exclude:
            continue
        now = InUse(spec.subnets[i], before[place].prefix, before[place].gateway)
        hit = sorted((e.ref, address) for e in state.endpoints_of(old.ref) for address in e.assigned.addresses
                     if ip_address(address) in now.prefix and now.excludes(address))
        if hit:
            yield Problem("in_use", f"excludes {hit[0][1]}, the address of {listing([r for r, _ in hit])}",
                          f"spec.subnets[{i}].exclude", ", ".join(spec.subnets[i].exclude),
                          "exclude less, or delete them first")


def _overlay(spec: NetworkSpec, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    if spec.host is not None:
        yield Problem("invalid", "an overlay network spans hosts and has none of its own", "spec.host", spec.host,
                      "leave it out, or use mode nat")
    if old is None and isinstance(spec.vni, int) and spec.vni in around.state.spaces:
        yield Problem("in_use", f"VNI {spec.vni} is taken by {around.state.spaces[spec.vni]}", "spec.vni",
                      str(spec.vni), "choose another, or auto")
    for i, subnet in enumerate(spec.subnets):
        if subnet.prefix == "auto":
            yield Problem("invalid", "an overlay network is on no host that could say what is free",
                          f"spec.subnets[{i}].prefix", "auto", "give a prefix such as 10.1.0.0/24, or use mode nat")


def _nat_mode(ref: Ref, spec: NetworkSpec, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    if spec.host is None:
        yield Problem("missing", "a nat network lives on one host", "spec.host", "nothing", "add the name of a host")
        return
    if old is None:
        yield from exists(Ref("Host", "", spec.host), "spec.host", around)
    known = kept(old.spec.subnets if old is not None and isinstance(old.spec, NetworkSpec) else (), spec.subnets)
    for i, subnet in enumerate(spec.subnets):
        if known[i] is None and subnet.prefix != "auto":
            yield from _free(ref, ip_network(subnet.prefix), f"spec.subnets[{i}].prefix", spec.host, around)
    yield from _nat(ref, spec, spec.nat or NatSpec(), spec.host, around)


def _free(ref: Ref, prefix: Prefix, where: str, host: str, around: Surroundings) -> Iterator[Problem]:
    """Problems of a new prefix: the tenant's other networks there, prefixes to avoid, what the host has itself."""
    state = around.state
    for other, subnet in of_networks(state, host, ref):
        network = state.network(other)
        mine = other.tenant == ref.tenant and network is not None and network.spec.mode == "nat"
        if mine and touch(subnet.prefix, prefix):
            yield Problem("overlap", f"overlaps {subnet.prefix} of {other} on the same host {host}", where,
                          str(prefix), "choose a prefix that overlaps none of the tenant's nat networks there, or auto")
    own = state.network(ref)
    for subnet in subnets_of(own) if own is not None else ():
        if touch(subnet.prefix, prefix):
            yield Problem("overlap", f"overlaps {subnet.prefix} of the same network", where, str(prefix),
                          "choose a prefix of its own, or auto")
    todo = f"choose a prefix that is free on {host}, or auto"
    stored = state.host(host)
    for avoided in stored.spec.avoid_prefixes if stored is not None else ():
        if touch(ip_network(avoided), prefix):
            yield Problem("overlap", f"overlaps {avoided} of avoidPrefixes of Host {host}", where, str(prefix), todo)
    for each in overlaps(prefix, around.facts.get(host)):
        how = f"over interface {each.interface}" if each.what.startswith("route") else f"of interface {each.interface}"
        yield Problem("overlap", f"overlaps {each.what} {how if each.interface else 'to nowhere'} of host {host}",
                      where, str(prefix), todo)


def _nat(ref: Ref, spec: NetworkSpec, nat: NatSpec, host: str, around: Surroundings) -> Iterator[Problem]:
    versions = {subnet.version for subnet in spec.subnets}
    facts, stored = around.facts.get(host), around.state.host(host)
    for i, address in enumerate(nat.external_addresses):
        where = f"spec.nat.externalAddresses[{i}]"
        version = ip_address(address).version
        if version not in versions:
            yield Problem("family", f"is IPv{version}, and the network has no IPv{version} subnet", where, address,
                          "leave it out, or add a subnet of its family")
        elif facts is not None and address not in own_addresses(facts):
            own = [a for a in map(ip_address, own_addresses(facts)) if a.version == version and not a.is_loopback]
            yield Problem("outside", f"is not an address of host {host}", where, address,
                          f"use one of {', '.join(map(str, own[:6]))}, or add it to an interface of {host}")
        for mapping in whole_address_mappings(around, host):
            if mapping[1] == address:
                yield Problem("in_use", f"all of {address} is mapped by {mapping[0]}", where, address,
                              "choose another address, or delete that mapping")
    if nat.port_block and stored is not None:
        low, high = stored.spec.nat_ports
        if nat.port_block > high - low + 1:
            yield Problem("out_of_range", f"is larger than natPorts {low}-{high} of Host {host}", "spec.nat.portBlock",
                          str(nat.port_block), f"use at most {high - low + 1}, or more natPorts")
    sixes = [subnet for subnet in spec.subnets if subnet.version == 6]
    if nat.ipv6 != "routed" and not sixes:
        yield Problem("family", f"ipv6: {nat.ipv6}, and the network has no IPv6 subnet", "spec.nat.ipv6", nat.ipv6,
                      "leave it out, or add an IPv6 subnet such as fd00:1::/64")
    elif nat.external_prefix is not None:
        yield from _translated(sixes, ip_network(nat.external_prefix))


def _translated(sixes: list[SubnetSpec], external: Prefix) -> Iterator[Problem]:
    where, inner = "spec.nat.externalPrefix", ip_network(sixes[0].prefix)
    if len(sixes) > 1:
        yield Problem("invalid", f"one prefix cannot stand for {len(sixes)} IPv6 subnets", where, str(external),
                      "keep one IPv6 subnet, or use ipv6: routed or masquerade")
    elif external.prefixlen != inner.prefixlen:
        yield Problem("invalid", f"has length {external.prefixlen}, and the network's {inner} has {inner.prefixlen}",
                      where, str(external), f"give a /{inner.prefixlen}")
    elif external.prefixlen > LONGEST_TRANSLATED:
        yield Problem("out_of_range", f"a prefix of length {external.prefixlen} cannot be translated (RFC 6296)", where,
                      str(external), f"use subnet and externalPrefix of at most /{LONGEST_TRANSLATED}")
    elif touch(external, inner):
        yield Problem("overlap", f"overlaps the network's own {inner}", where, str(external), "give another prefix")


def whole_address_mappings(around: Surroundings, host: str) -> Iterator[tuple[Ref, str]]:
    """Mappings of protocol any on a host, with their external addresses."""
    for network in around.state.nat_networks_on(host):
        yield from around.state.externals.get(network.ref, {}).get(("any", 0), ())


__all__ = ["check_network", "outside", "whole_address_mappings"]
