"""Checks of what a request leaves behind as a whole: objects that name each other, in any order. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import cast

from controller.checks import Surroundings, endpoint_of, exists, listing
from controller.endpoint_specs import EndpointSpec
from controller.errors import Problem, on
from controller.host_specs import HostSpec
from controller.ipam import Prefix
from controller.network_specs import NetworkSpec
from controller.overlaps import touch
from controller.routing_specs import RouteSpec
from controller.state import AnyStored, Ref, State, Stored, peers
from controller.subnets import meant, subnets_of
from controller.texts import bits_per_second
from southbound.vteps import common_family

MAX_FLOODED = 128                           # vfp.model.Flooding.vteps


def check_relations(changed: Iterable[AnyStored], around: Surroundings) -> list[Problem]:
    """What is wrong between the objects that a request put and all others; empty: nothing."""
    problems: list[Problem] = []
    looked_at: set[tuple[object, ...]] = set()          # places of endpoints: thousands may come to one
    for stored in changed:
        found: Iterable[Problem] = ()
        if isinstance(stored.spec, NetworkSpec):
            found = _network(cast("Stored[NetworkSpec]", stored), around)
        elif isinstance(stored.spec, EndpointSpec):
            endpoint = cast("Stored[EndpointSpec]", stored)
            found = [*_endpoint(endpoint, around), *_place(endpoint, around.state, looked_at)]
        elif isinstance(stored.spec, HostSpec):
            found = _host(cast("Stored[HostSpec]", stored), around)
        problems += on(str(stored.ref), found)
    return problems


def _network(network: Stored[NetworkSpec], around: Surroundings) -> Iterator[Problem]:
    spec, state = network.spec, around.state
    found = [problem for i, ref in enumerate(peers(network))
             for problem in _peer(network, ref, f"spec.peers[{i}]", spec.peers[i], around)]
    yield from found
    if not found:
        yield from _peers_apart(network, state)
    for i, route in enumerate(spec.routes):
        yield from _route(network, route, f"spec.routes[{i}]", around)
    if spec.exit is not None:
        yield from _exit(network, spec.exit, "spec.egress.host", around)
    yield from _flooded(network, "spec.broadcast", f"rate {spec.flooding[0]}" if spec.flooding else "", state)
    if spec.qos is not None and spec.qos.minimum:
        yield from _guarantees(sorted(state.members.get(network.ref, ())), "spec.qos.minimum", spec.qos.minimum, state)


# Peers

def _peer(network: Stored[NetworkSpec], ref: Ref, where: str, text: str, around: Surroundings) -> Iterator[Problem]:
    state = around.state
    if ref == network.ref:
        yield Problem("invalid", "a network cannot be peered with itself", where, text, "leave it out")
        return
    yield from exists(ref, where, around)
    peer = state.network(ref)
    if peer is None:
        return
    if peer.spec.mode != "overlay":
        yield Problem("wrong_mode", f"{ref} is a {peer.spec.mode} network; only overlay networks are peered", where,
                      text, "name a network of mode overlay")
        return
    path = _path(state, network.ref, ref)
    if path is not None:
        way = " - ".join(each.path for each in (*path, network.ref))
        yield Problem("invalid", f"{ref} is peered already: {way}", where, text, "leave it out: peering works both ways"
                      if len(path) == 2 else "leave it out, or take one of the others out of that loop")


def _path(state: State, start: Ref, end: Ref) -> list[Ref] | None:
    """A way from `start` to `end` over peerings, but for the one that `start` itself names."""
    ways: dict[Ref, list[Ref]] = {start: [start]}
    todo = [start]
    while todo:
        here = todo.pop(0)
        network = state.network(here)
        named = peers(network) if network is not None else []
        for ref in (*named, *state.named_by(here, "Network")):
            if ref in ways or (here == start and ref == end and here not in _named(state, end)):
                continue
            ways[ref] = [*ways[here], ref]
            if ref == end:
                return ways[ref]
            todo.append(ref)
    return None


def _named(state: State, ref: Ref) -> list[Ref]:
    network = state.network(ref)
    return peers(network) if network is not None else []


def _peers_apart(network: Stored[NetworkSpec], state: State) -> Iterator[Problem]:
    """Problems of prefixes: of the network and its peers, and of those and their other peers."""
    own = state.peers_of(network.ref)
    named = {ref: i for i, ref in enumerate(peers(network))}
    for center in (network, *own):
        group = [center, *state.peers_of(center.ref)]
        for place, one in enumerate(group):
            for other in group[:place]:
                clash = _clash(one, other)
                if clash is None or (center.ref != network.ref and network.ref not in (one.ref, other.ref)):
                    continue
                about = next((each for each in (one, other, center) if each.ref in named), center)
                words = "they are peers" if center in (one, other) else f"both are peers of {center.ref}"
                where = f"spec.peers[{named[about.ref]}]" if about.ref in named else "spec.subnets"
                yield Problem("overlap", f"{clash[0]} of {one.ref} overlaps {clash[1]} of {other.ref}, and "
                              f"{words}", where, about.ref.name, "peer networks whose prefixes are apart")
                return


def _clash(one: Stored[NetworkSpec], other: Stored[NetworkSpec]) -> tuple[Prefix, Prefix] | None:
    return next(((mine.prefix, its.prefix) for mine in subnets_of(one) for its in subnets_of(other)
                 if touch(mine.prefix, its.prefix)), None)


# Routes and exits

def _route(network: Stored[NetworkSpec], route: RouteSpec, where: str, around: Surroundings) -> Iterator[Problem]:
    state, destination = around.state, ip_network(route.destination)
    for each in (network, *state.peers_of(network.ref)):
        inner = next((s.prefix for s in subnets_of(each) if touch(s.prefix, destination)
                      and s.prefix.prefixlen <= destination.prefixlen), None)
        if inner is not None:
            yield Problem("overlap", f"{destination} is in subnet {inner} of {each.ref}", f"{where}.destination",
                          route.destination, "route prefixes that are in no subnet")
            return
    via = route.via
    if via.host is not None:
        yield from _exit(network, via.host, f"{where}.via.host", around)
    elif via.address is not None:
        yield from _next_hop(network, destination, via.address, f"{where}.via.address", state)
    elif via.endpoint is not None:
        yield from endpoint_of(via.endpoint, f"{where}.via.endpoint", network.ref, around)
        hop = state.endpoint(Ref("Endpoint", network.ref.tenant, via.endpoint))
        own = "" if hop is None else hop.assigned.address6 if destination.version == 6 else hop.assigned.address
        if hop is not None and hop.spec.network == network.ref.name and not own:
            yield Problem("family", f"{hop.ref} has no IPv{destination.version} address, and {destination} is "
                          f"IPv{destination.version}", f"{where}.via.endpoint", via.endpoint,
                          f"give it one, or route an IPv{10 - destination.version} prefix")


def _next_hop(network: Stored[NetworkSpec], destination: Prefix, text: str, where: str,
              state: State) -> Iterator[Problem]:
    version, subnets = ip_address(text).version, subnets_of(network)
    found = meant(subnets, text)
    if version != destination.version:
        yield Problem("family", f"{text} is IPv{version}, and {destination} IPv{destination.version}", where, text,
                      f"give an IPv{destination.version} address")
    elif found is None:
        yield Problem("outside", f"is in no subnet of {network.ref}", where, text,
                      f"use one of {', '.join(str(s.prefix) for s in subnets if s.version == version) or 'them'}")
    elif found[0].gateway == found[1]:
        yield Problem("invalid", f"{text} is the gateway of {network.ref}, which is every host itself", where, text,
                      "name the router, or a host")


def _exit(network: Stored[NetworkSpec], name: str, where: str, around: Surroundings) -> Iterator[Problem]:
    state = around.state
    yield from exists(Ref("Host", "", name), where, around)
    host = state.host(name)
    if host is None:
        return
    if host.spec.external:
        yield Problem("invalid", f"host {name} is external: no agent lets packets out there", where, name,
                      "name another host, or the address of an endpoint there")
    elif not host.spec.underlay:
        yield Problem("invalid", f"host {name} has no underlay address, by which it would be reached", where, name,
                      f"set spec.underlay of Host {name}")


# Endpoints

def _endpoint(endpoint: Stored[EndpointSpec], around: Surroundings) -> Iterator[Problem]:
    spec, ref, state = endpoint.spec, endpoint.ref, around.state
    if spec.behind is not None:
        yield from _behind(endpoint, spec.behind, around)
    hanging = sorted(each for each in state.named_by(ref, "Endpoint")
                     if (nested := state.endpoint(each)) is not None and nested.spec.host != spec.host)
    if hanging:
        yield Problem("in_use", f"{listing(hanging)} behind it would stay on another host", "spec.host", spec.host,
                      "move them in the same request")
    if spec.place is None and (nested_ones := sorted(state.named_by(ref, "Endpoint"))):
        yield Problem("in_use", f"{listing(nested_ones)} behind it would have no link", "spec.behind",
                      spec.behind or "nothing", "attach them elsewhere first, or in the same request")


def _place(endpoint: Stored[EndpointSpec], state: State, looked_at: set[tuple[object, ...]]) -> Iterator[Problem]:
    """Problems of a host with one more endpoint; each host is looked at once."""
    spec, network = endpoint.spec, state.network(State.network_ref(endpoint))
    if network is None:
        return
    if network.spec.mode == "overlay" and (network.ref, spec.host) not in looked_at:
        looked_at.add((network.ref, spec.host))
        yield from _reachable(network, spec.host, "spec.host", state)
        yield from _flooded(network, "spec.host", spec.host, state)
    own = spec.qos.minimum if spec.qos is not None else None
    if (own or (network.spec.qos is not None and network.spec.qos.minimum)) and (spec.host,) not in looked_at:
        looked_at.add((spec.host,))
        yield from _guarantees([spec.host], "spec.qos.minimum" if own else "spec.host", own or spec.host, state)


def _behind(endpoint: Stored[EndpointSpec], name: str, around: Surroundings) -> Iterator[Problem]:
    spec, ref, state = endpoint.spec, endpoint.ref, around.state
    where = "spec.behind"
    if name == ref.name:
        yield Problem("invalid", "an endpoint cannot be behind itself", where, name, "name another, or give netns")
        return
    yield from endpoint_of(name, where, State.network_ref(endpoint), around)
    link = state.endpoint(Ref("Endpoint", ref.tenant, name))
    if link is None:
        return
    if link.spec.behind is not None:
        yield Problem("invalid", f"{link.ref} is itself behind {link.spec.behind}", where, name,
                      f"name {link.spec.behind}, whose link it is")
    elif link.spec.place is None:
        yield Problem("invalid", f"{link.ref} is on an external host and has no link of ours", where, name,
                      "name another, or declare it as an endpoint of that host")
    elif link.spec.host != spec.host:
        yield Problem("invalid", f"{link.ref} is on host {link.spec.host}", "spec.host", spec.host,
                      f"use host {link.spec.host}")


def _reachable(network: Stored[NetworkSpec], host: str, where: str, state: State) -> Iterator[Problem]:
    """A problem if two hosts of an overlay have underlay addresses of different families only."""
    own = state.host(host)
    if own is None or {ip_address(each).version for each in own.spec.underlays} >= {4, 6}:
        return
    for name in sorted(state.members.get(network.ref, ())):
        other = state.host(name)
        if other is None or not own.spec.underlays or not other.spec.underlays:
            continue
        if not common_family(own.spec.underlays, other.spec.underlays):
            yield Problem("family", f"hosts {host} ({', '.join(own.spec.underlays)}) and {name} "
                          f"({', '.join(other.spec.underlays)}), both with endpoints in {network.ref}, have no "
                          "underlay address of one family", where, host, "add one of the other's family")
            return


def _flooded(network: Stored[NetworkSpec], where: str, found: str, state: State) -> Iterator[Problem]:
    """A problem if broadcast would go to more hosts than a host sends copies to."""
    hosts = len(state.members.get(network.ref, ()))
    if network.spec.mode == "overlay" and network.spec.flooding is not None and hosts - 1 > MAX_FLOODED:
        yield Problem("out_of_range", f"{network.ref} has endpoints on {hosts} hosts, and broadcast goes to at most "
                      f"{MAX_FLOODED} others", where, found, "use broadcast: off, or fewer hosts")


# Hosts

def _host(host: Stored[HostSpec], around: Surroundings) -> Iterator[Problem]:
    spec, name, state = host.spec, host.ref.name, around.state
    if spec.vxlan_port is not None:
        for other in state.hosts():
            if other.spec.vxlan_port not in (None, spec.vxlan_port):
                yield Problem("in_use", f"{other.ref} uses UDP port {other.spec.vxlan_port}, and all hosts have the "
                              "same", "spec.vxlanPort", str(spec.vxlan_port),
                              "give all of them one in the same request, or leave it out")
                break
    endpoints = state.endpoints_on(name)
    for network in sorted({State.network_ref(e) for e in endpoints}):
        stored = state.network(network)
        if stored is not None and stored.spec.mode == "overlay":
            yield from _reachable(stored, name, "spec.underlay", state)
    leaving = sorted(state.named_by(host.ref, "Network"))
    if leaving and (spec.external or not spec.underlay):
        where = ("spec.external", "true") if spec.external else ("spec.underlay", "nothing")
        yield Problem("in_use", f"{listing(leaving)} leaves by it, which needs its agent and underlay address", *where,
                      "change that network first, or keep it")
    wrong = sorted(e.ref for e in endpoints if spec.external != (e.spec.place is None and e.spec.behind is None))
    if wrong:
        lacks = "attached there by its agent" if spec.external else "on it without a link"
        yield Problem("in_use", f"{listing(wrong)} {'is' if len(wrong) == 1 else 'are'} {lacks}", "spec.external",
                      "true" if spec.external else "false", "delete them first, or keep it")
    yield from _guarantees([name], "spec.uplinkRate", spec.uplink_rate, state)


def _guarantees(hosts: Iterable[str], where: str, found: str | None, state: State) -> Iterator[Problem]:
    """Problems of guaranteed minimums that a host's uplink does not carry."""
    for name in hosts:
        host = state.host(name)
        if host is None or host.spec.external:
            continue
        given = {e.ref: bits for e in state.endpoints_on(name) if (bits := _minimum(e, state))}
        if not given:
            continue
        rate = bits_per_second(host.spec.uplink_rate)
        if not rate:
            yield Problem("missing", f"a minimum for {listing(sorted(given))} is guaranteed of the uplink's rate, and "
                          f"host {name} says none", where, found or "nothing", f"set spec.uplinkRate of Host {name}")
        elif sum(given.values()) > rate:
            yield Problem("out_of_range", f"minimums of {len(given)} endpoints on host {name} come to "
                          f"{sum(given.values()) // 1000}kbit, and its uplink carries {host.spec.uplink_rate}", where,
                          found or "nothing", f"guarantee less, or move endpoints away from {name}")


def _minimum(endpoint: Stored[EndpointSpec], state: State) -> int:
    network = state.network(State.network_ref(endpoint))
    said = (endpoint.spec.qos, network.spec.qos if network is not None else None)
    if endpoint.spec.behind is not None:
        return 0
    return next((bits_per_second(qos.minimum) for qos in said if qos is not None and qos.minimum), 0)


__all__ = ["check_relations"]
