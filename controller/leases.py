"""Addresses of a network that a host may give to containers by itself while the controller is away. Pure.

A lease is kept with its network: by host, the addresses in use that nobody else is given. An empty one says that
runtimes of the host use the network, which is then told to it. The revision of a network is that of what was declared
of it: leases do not move it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from pydantic_core import PydanticCustomError

from controller import ipam
from controller.assign import address_key, held_by_hosts, no_address, release, ring_of, taken_in
from controller.check_endpoints import check_address, check_host
from controller.check_modes import ON_SEGMENT
from controller.errors import Problem, Refused, refusal
from controller.ipam import Range
from controller.resources import EndpointSpec, HostSpec, NetworkSpec
from controller.state import Change, Ref, State, Stored
from controller.subnets import meant, subnets_of
from controller.texts import address, address_range, addresses
from southbound.messages import HostFacts

HOST_LABEL = "sluice.io/host"               # of a network that a host made for its runtimes: which
BLOCK = 16                                  # addresses of each family, at first
SHARE = 4                                   # of what is free, that part at most is leased at once
MAX_MORE = 256                              # addresses of a family in one request
MAX_LEASED = 4096                           # by one host in one network

Leases = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a host asks for. Nothing: its first block, if it has no lease yet."""

    addresses: tuple[str, ...] = ()         # these
    more: int = 0                           # or so many more of each family
    ranges: tuple[str, ...] = ()            # with `more`: of the families and from the ranges given here

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Wanted:
        """From a request's arguments.

        Raises:
            Refused: they are not what they should be.
        """
        more, by_hand, ranges = args.get("count"), args.get("addresses") or (), args.get("ranges") or ()
        if more is not None and (type(more) is not int or not 1 <= more <= MAX_MORE):
            raise Refused(Problem("out_of_range", "is how many more addresses to lease", "count", str(more),
                                  f"use 1 to {MAX_MORE}"))
        if len(by_hand) > MAX_MORE or len(ranges) > MAX_MORE:
            raise Refused(Problem("out_of_range", f"more than {MAX_MORE} at once", "addresses", str(len(by_hand)),
                                  "ask for them in several requests"))
        if (by_hand and more) or (ranges and not more):
            raise Refused(Problem("invalid", "ranges are for count, and addresses are given without it", "count",
                                  str(more or "nothing"), "give addresses, or count and maybe ranges"))
        return cls(tuple(_read(by_hand, "addresses", address)), more or 0, tuple(_read(ranges, "ranges", addresses)))


def _read(texts: Sequence[Any], field: str, form: Callable[[str], str]) -> Iterator[str]:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise Refused(Problem("invalid", "must be text", f"{field}[{i}]", str(text)[:80], "write it as text"))
        try:
            yield form(text)
        except PydanticCustomError as error:
            said = error.context or {}
            raise Refused(Problem(said["code"], said["text"], f"{field}[{i}]", text[:80], said["todo"])) from None


def is_whole(network: Stored[NetworkSpec], host: str) -> bool:
    """Whether all of a network is a host's to give out: it is on no other, and no machines of a LAN are in it."""
    return network.spec.host == host and network.spec.mode not in ON_SEGMENT


def lease(state: State, facts: Mapping[str, HostFacts], host: str, ref: Ref,
          wanted: Wanted) -> tuple[list[Change], tuple[str, ...]]:
    """Give a host addresses of a network that is there; changes `state`. Also returned: those that are new.

    Raises:
        Refused: with every problem found.
    """
    network = state.network(ref)
    assert network is not None, "checked before"
    had = network.assigned.leases.get(host)
    problems = list(check_host(host, "host", network, state))
    for i, text in enumerate(wanted.addresses):
        found = meant(subnets_of(network), text)
        if had is None or found is None or found[1] not in had:
            problems += check_address(None, host, text, f"addresses[{i}]", network, state)
    if problems:
        raise refusal(problems)
    given: list[str] = []
    try:
        if wanted.addresses:
            places = [meant(subnets_of(network), text) for text in wanted.addresses]
            given = [place[1] for place in places if place is not None and place[1] not in (had or ())]
        elif wanted.more:
            given = _more(state, facts, network, wanted)
        elif had is None and not is_whole(network, host):
            for version in _versions(network):
                ring = ring_of(subnets_of(network), version)
                given += _free(state, facts, network, ring, version, min(BLOCK, _fair(state, network, version)))
    except ipam.Exhausted as error:
        raise refusal([Problem("exhausted", str(error), error.field, error.found, error.todo)]) from None
    now = _ordered({*(had or ()), *given})
    if len(now) > MAX_LEASED:
        raise refusal([Problem("exhausted", f"host {host} has leased {len(had or ())} addresses of {ref}, of "
                               f"{MAX_LEASED} at most", "addresses", str(len(now)), "release some")])
    if had is not None and not given:
        return [], ()
    return [_put(state, network, {**network.assigned.leases, host: now})], tuple(given)


def unlease(state: State, host: str, ref: Ref, texts: Sequence[str] | None) -> tuple[list[Change], tuple[str, ...]]:
    """Take addresses back, or (None) the whole lease; with the last one a network that a host made goes, if nothing
    is in it. Changes `state`. Also returned: those that were leased.
    """
    network = state.network(ref)
    had = network.assigned.leases.get(host) if network is not None else None
    if network is None or had is None:
        return [], ()
    leases = dict(network.assigned.leases)
    if texts is None:
        del leases[host]
        freed = had
    else:
        places = [meant(subnets_of(network), text) for text in texts]
        freed = tuple(place[1] for place in places if place is not None and place[1] in had)
        if not freed:
            return [], ()
        leases[host] = tuple(each for each in had if each not in freed)
    changes = [_put(state, network, leases)]
    for each in freed:
        _pass(state, network, each)
    return [*changes, *_swept(state, ref)], freed


def follow(change: Change, state: State, facts: Mapping[str, HostFacts]) -> list[Change]:
    """What becomes of leases after an object was put or removed; changes `state`."""
    before, after = change.before, change.after
    either = after or before
    assert either is not None
    spec = either.spec
    if isinstance(spec, EndpointSpec):
        if after is None:
            return _swept(state, State.network_ref(either))
        return [each for address in after.assigned.addresses
                if (holder := state.leased.get((State.network_ref(after), address))) not in (None, spec.host)
                for each in unlease(state, holder or "", State.network_ref(after), (address,))[0]]
    if isinstance(spec, HostSpec):
        gone, name = after is None or spec.external, either.ref.name
        return [each for network in state.leased_by(name)
                if gone or (network.spec.mode == "overlay" and not spec.underlays)
                for each in unlease(state, name, network.ref, None)[0]]
    if isinstance(spec, NetworkSpec) and before is not None and after is not None:
        return _resized(state, facts, before.ref, {ip_address(s.gateway).version for s in before.assigned.subnets})
    return []


def _more(state: State, facts: Mapping[str, HostFacts], network: Stored[NetworkSpec], wanted: Wanted) -> list[str]:
    rings = _rings(network, wanted.ranges)
    found = []
    for version, ring in rings.items():
        count = min(wanted.more, max(1, _fair(state, network, version)))
        given = _free(state, facts, network, ring, version, count)
        if not given:
            raise no_address(network, version, "ranges" if wanted.ranges else "count")
        found += given
    return found


def _rings(network: Stored[NetworkSpec], ranges: Sequence[str]) -> dict[int, list[Range]]:
    """By family, what is given out, in these ranges."""
    subnets = subnets_of(network)
    if not ranges:
        return {version: ring_of(subnets, version) for version in _versions(network)}
    found: dict[int, list[Range]] = {}
    for i, text in enumerate(ranges):
        version, low, high = address_range(text)
        first, last = meant(subnets, ipam.text_of(low, version)), meant(subnets, ipam.text_of(high, version))
        if first is None or last is None or first[0] != last[0]:
            known = ", ".join(str(subnet.prefix) for subnet in subnets)
            raise refusal([Problem("outside", f"is in no subnet of {network.ref}", f"ranges[{i}]", text,
                                   f"use a part of {known}")])
        bounds = int(ip_address(first[1])), int(ip_address(last[1]))
        found.setdefault(version, []).extend(ipam.within(first[0].ring(), bounds))
    return found


def _free(state: State, facts: Mapping[str, HostFacts], network: Stored[NetworkSpec], ring: Sequence[Range],
          version: int, count: int) -> list[str]:
    """The next free addresses, at most so many."""
    key, held = address_key(network.uid, version), held_by_hosts(network, facts)
    taken, found = taken_in(network.ref, version, state), dict[str, None]()
    for _ in range(count):
        number = ipam.next_free(ring, state.cursors.get(key, 0), lambda number: taken(number) or (
            text := ipam.text_of(number, version)) in held or text in found)
        if number is None:
            break
        state.cursors[key] = number
        found[ipam.text_of(number, version)] = None
    return list(found)


def _fair(state: State, network: Stored[NetworkSpec], version: int) -> int:
    """How many addresses a host may lease at once, so that others find some."""
    total = sum(high - low + 1 for low, high in ring_of(subnets_of(network), version))
    leased = sum(ip_address(each).version == version for its in network.assigned.leases.values() for each in its)
    return max(0, total - leased - sum(state.members.get(network.ref, {}).values())) // SHARE


def _versions(network: Stored[NetworkSpec]) -> list[int]:
    return sorted({ip_address(subnet.gateway).version for subnet in network.assigned.subnets})


def _resized(state: State, facts: Mapping[str, HostFacts], ref: Ref, versions: set[int]) -> list[Change]:
    """A network's subnets may have changed: no addresses of those that went, nor excluded ones; and a block of a family
    that is new."""
    network = state.network(ref)
    if network is None or not network.assigned.leases:
        return []
    subnets = subnets_of(network)

    def stays(text: str) -> bool:
        place = next((subnet for subnet in subnets if ip_address(text) in subnet.prefix), None)
        return place is not None and not place.excludes(text)

    leases = {host: tuple(filter(stays, its)) for host, its in network.assigned.leases.items()}
    changes = [] if leases == network.assigned.leases else [_put(state, network, leases)]
    for host in leases:
        network = state.network(ref)
        assert network is not None
        more = [address for version in _versions(network) if version not in versions and not is_whole(network, host)
                for address in _free(state, facts, network, ring_of(subnets, version), version,
                                     min(BLOCK, _fair(state, network, version)))]
        if more:
            now = _ordered((*network.assigned.leases[host], *more))
            changes.append(_put(state, network, {**network.assigned.leases, host: now}))
    return changes


def _swept(state: State, ref: Ref) -> list[Change]:
    """A network that a host made goes when no host has a lease of it and nothing is in it."""
    network = state.network(ref)
    if network is None or HOST_LABEL not in network.labels or network.assigned.leases:
        return []
    if not state.is_empty(ref) or state.users.get(ref):
        return []
    state.remove(ref)
    release(network, state)
    return [Change(network, None)]


def _put(state: State, network: Stored[NetworkSpec], leases: Leases) -> Change:
    new = replace(network, assigned=replace(network.assigned, leases=dict(sorted(leases.items()))))
    state.put(new)
    return Change(network, new)


def _pass(state: State, network: Stored[NetworkSpec], freed: str) -> None:
    """Keep an address from being given again at once."""
    version = ip_address(freed).version
    key = address_key(network.uid, version)
    state.cursors[key] = ipam.cursor_past(ring_of(subnets_of(network), version), state.cursors.get(key, 0),
                                          int(ip_address(freed)), taken_in(network.ref, version, state))


def _ordered(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(texts, key=lambda text: (":" in text, int(ip_address(text)))))


__all__ = ["HOST_LABEL", "Wanted", "follow", "is_whole", "lease", "unlease"]
