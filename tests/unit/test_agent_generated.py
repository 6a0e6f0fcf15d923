"""Any goal state makes links and an engine state that fit together; what cannot be served is a fault of that object."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from itertools import combinations
from typing import TypeVar

from agent_kit import MAX_PORTS, UPLINK, goals, observed, overlay, remote, subnet
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from agent.build import Built, build, wanted
from agent.goals import Goals
from agent.ids import Ids, allocate
from agent.observed import Observed
from southbound.messages import (
    Goal,
    HostGoal,
    MappingGoal,
    NatGoal,
    NetworkGoal,
    PortGoal,
    RemotesGoal,
    key_of,
)
from vfp.compile import Compiler
from vfp.model import (
    EngineState,
    Forward,
    Hairpin,
    LocalPort,
    Rule,
    ToUplink,
    TranslateSource,
)
from vfp.reference import Engine, Hook, Verdict

T = TypeVar("T")

pick = st.sampled_from

PREFIXES = ("10.1.0.0/24", "10.1.0.0/25", "10.2.0.0/24", "172.16.0.0/24", "10.3.0.0/16")
PREFIXES_6 = ("fd00:1::/64", "fd00:1::/48", "fd00:2::/64")
BAD_PREFIXES = ("10.1.0.7/24", "nonsense", "fd00::1/64")
BAD_ADDRESSES = ("10.9.9.9/24", "fd00:9::9/64", "bad", "10.1.0.1/24")
OUTSIDE = ("0.0.0.0", "0.0.0.0", "172.16.0.10", "172.17.0.10", "172.16.0.11", "172.16.0.11", "127.0.0.1")
OUTSIDE_6 = ("::", "::", "2001:db8:ff::10", "2001:db8:ff::11", "::1")
UPLINK_2 = replace(UPLINK, addresses=("172.16.0.10/24", "172.16.0.11/24", "172.17.0.10/24"),
                   addresses6=("2001:db8:ff::10/64", "2001:db8:ff::11/64", "fd77::10/64"))
UPLINKS = (UPLINK, UPLINK_2, UPLINK_2, UPLINK_2, None, replace(UPLINK, addresses=(), addresses6=UPLINK_2.addresses6),
           replace(UPLINK, addresses=()))
HEARD = (("tcp", "0.0.0.0", 80), ("udp", "::", 20001), ("tcp", "127.0.0.1", 8000))


def mostly(good: st.SearchStrategy[T], *bad: T) -> st.SearchStrategy[T]:
    """Something good, one time in 16 something bad."""
    return st.integers(0, 15).flatmap(lambda number: pick(bad) if number == 7 else good)


NATS = st.builds(
    NatGoal,
    addresses=mostly(pick(((), (), (), ("172.16.0.10",), ("172.16.0.10", "172.17.0.10", "2001:db8:ff::11"))),
                     ("9.9.9.9",), ("bad",)),
    exceptions=mostly(pick(((), (), ("10.0.0.0/8", "fd00::/8"), ("0.0.0.0/0",))), ("10.0.0.1/8",)),
    destinations=mostly(pick(((), (), ("172.16.0.0/12",), ("172.16.0.0/25", "2001:db8::/32"))), ("all",)),
    filtering=pick(("endpoint-independent", "address-dependent", "address-and-port-dependent")),
    block=mostly(pick((0, 64)), 5000), quota=pick((0, 100)), log=st.booleans(),
    ipv6=pick(("routed", "masquerade", "prefix")), external_prefix=pick(("2001:db8:1::/64", "2001:db8:2::/48")),
    timeouts=mostly(pick(((), (("udp", 60.0),))), (("upd", 60.0),)),
)


@st.composite
def networks(draw: st.DrawFn, number: int) -> NetworkGoal:
    prefixes = [*draw(st.lists(pick(PREFIXES), max_size=2, unique=True)),
                *draw(st.lists(pick(PREFIXES_6), max_size=1))] or ["10.2.0.0/24"]
    subnets = [subnet(prefix) for prefix in prefixes]
    if bad := draw(mostly(st.just(""), *BAD_PREFIXES)):
        subnets.append(replace(subnets[0], prefix=bad))
    nat = draw(pick((True, True, True, False)))
    space = draw(mostly(st.just(number), 1)) + ((1 << 24) if nat else 5000)
    return NetworkGoal(
        f"n{number}", f"net{number}", draw(pick(("red", "blue", "green"))), "nat" if nat else "overlay", space,
        tuple(subnets), draw(mostly(st.just("02:fe:00:00:00:01"), "02")), 0, draw(NATS))


@st.composite
def ports(draw: st.DrawFn, number: int, nets: list[NetworkGoal]) -> PortGoal:
    network = draw(pick(nets))
    given: dict[int, str] = {4: "", 6: ""}
    for one in network.subnets:
        if one.prefix not in BAD_PREFIXES and draw(pick((True, True, False))):
            prefix = ip_network(one.prefix)
            given[prefix.version] = f"{prefix[4 + draw(mostly(st.just(number), 0))]}/{prefix.prefixlen}"
    if not any(given.values()):
        given[4] = "10.1.0.99/24"
    tap = draw(pick((False, False, False, True)))
    name = draw(mostly(st.just(f"tap{number}"), "tap1", "slp1", "")) if tap else "eth0"
    return PortGoal(
        f"p{number}", f"port{number}", network.tenant, draw(mostly(st.just(network.id), "gone")),
        draw(mostly(st.just(given[4]), *BAD_ADDRESSES)), draw(mostly(st.just(f"02:00:00:00:00:{number:02x}"), "02")),
        "" if tap else f"ns{number}", name, address6=draw(mostly(st.just(given[6]), *BAD_ADDRESSES)))


@st.composite
def mappings(draw: st.DrawFn, number: int, endpoints: list[PortGoal]) -> MappingGoal:
    to = draw(pick(endpoints))
    inside = draw(pick([text for text in (to.address, to.address6) if text] or ["10.1.0.99/24"])).split("/")[0]
    protocol = draw(pick(("tcp", "tcp", "udp", "sctp", "icmp", "any")))
    outside = draw(mostly(pick(OUTSIDE_6 if ":" in inside else OUTSIDE), "9.9.9.9", "bad", "::"))
    if protocol == "any" and draw(pick((True, True, False))):
        outside = "2001:db8:ff::11" if ":" in inside else "172.16.0.11"
    first = 0 if protocol == "any" else draw(mostly(pick((80, 81, 8000)), 0, 20005, 65535))
    last = first if protocol == "any" else first + draw(pick((0, 0, 3)))
    port = 0 if protocol == "any" else draw(mostly(st.just(first), 82, 65534))
    return MappingGoal(f"m{number}", f"map{number}", to.tenant, protocol, outside, (first, last),
                       draw(mostly(st.just(to.id), "gone")), draw(mostly(st.just(inside), "10.1.0.99")), port)


@st.composite
def hosts(draw: st.DrawFn) -> tuple[Goals, Observed]:
    nets = [draw(networks(number)) for number in range(1, 1 + draw(st.integers(1, 4)))]
    endpoints = [draw(ports(number, nets)) for number in range(1, 1 + draw(st.integers(1, 6)))]
    maps = [draw(mappings(number, endpoints)) for number in range(draw(st.integers(0, 5)))]
    far = remote("far", overlay(5001), draw(pick(("10.1.0.5", "10.1.0.77", ""))), 9,
                 address6=draw(pick(("", "fd00:1::77"))))
    host = HostGoal("self", uplink="lan0", underlay=draw(pick(("", "172.31.0.1"))),
                    nat_ports=draw(mostly(st.just((20000, 20100)), (9, 3))))
    uplink = draw(pick(UPLINKS))
    own = (*uplink.addresses, *uplink.addresses6) if uplink else ()
    around = Observed(
        uplink=uplink, addresses=frozenset(ip_interface(text).ip for text in own),
        listeners=draw(pick(((), HEARD))), served=frozenset(draw(pick(((), ("m0", "m1"))))),
        overlaps=draw(pick(({}, {}, {"n1": "overlap with wlan0 10.1.0.0/24"}))))
    found: list[Goal] = [host, *nets, *endpoints, *maps, replace(far, network=draw(pick(nets)).id)]
    return goals(*found), around


def rules(state: EngineState) -> list[Rule]:
    return [rule for port in state.ports for layer in port.layers for group in (*layer.groups_out, *layer.groups_in)
            for rule in group.rules]


def made_of(state: Goals, around: Observed) -> Built:
    ids = allocate(Ids(), wanted(state, around), MAX_PORTS)
    fields = {name: getattr(around, name) for name in ("uplink", "addresses", "listeners", "served", "overlaps")}
    return build(state, observed(state, ids, **fields), ids)


@settings(max_examples=150, deadline=None)
@given(hosts())
def test_whatever_is_asked_for_fits_together(case: tuple[Goals, Observed]) -> None:
    state, around = case
    made = made_of(state, around)
    engine = made.engine
    Compiler().compile(engine, MAX_PORTS)
    faulty = {fault.key for fault in made.faults}
    # Every object is served, or says why not.
    for goal in state.objects.values():
        match goal:
            case PortGoal():
                assert (goal.id in made.port_ids) != (key_of(goal) in faulty)
            case MappingGoal():
                assert made.external_addresses[goal.id] or key_of(goal) in faulty
            case NetworkGoal(mode="nat"):
                assert goal.id in made.bridges or key_of(goal) in faulty
            case RemotesGoal():
                pass
    # What rules name is there, and of the right kind.
    pools = {pool.id: pool for pool in engine.pools}
    uplinks = {uplink.id: uplink for uplink in engine.uplinks}
    spaces = {space.id for space in engine.spaces}
    for rule in rules(engine):
        match rule.action:
            case TranslateSource(pool) | Hairpin(pool):
                assert rule.match.ethertype == (0x0800 if pools[pool].addresses[0].version == 4 else 0x86DD)
            case ToUplink(uplink):
                assert uplink in uplinks
            case Forward(space):
                assert space in spaces
    numbers = {port.id for port in engine.ports}
    assert all(mapping.port in numbers and mapping.uplink in uplinks for mapping in engine.mappings)
    places = [place for space in engine.spaces for _, place in space.entries if isinstance(place, LocalPort)]
    assert all(place.port in numbers for place in places)
    # An address that belongs to one endpoint is no other's.
    whole = {mapping.external for mapping in engine.mappings if not mapping.protocol}
    assert not whole & {address for pool in engine.pools for address in pool.addresses}
    # The host's stack has one way to each address, and no neighbour where it has no address.
    known = [ip_interface(text).network for bridge in made.bridges.values() for text in bridge.addresses]
    assert not any(one.version == other.version and one.overlaps(other) for one, other in combinations(known, 2))
    for bridge in made.bridges.values():
        for address in made.neighbours[bridge.name]:
            assert any(ip_address(address) in ip_interface(text).network for text in bridge.addresses)


DESTINATIONS = ("10.1.0.5", "10.1.0.1", "172.16.0.10", "172.16.0.80", "8.8.8.8", "127.0.0.1", "224.0.0.1", "fd00:1::6",
                "fd00:1::1", "2001:db8:ff::10", "2001:db8::80", "::1", "ff02::1", "fe80::1")


@settings(max_examples=100, deadline=None)
@given(hosts(), st.lists(st.tuples(pick(DESTINATIONS), pick((TCP(dport=80, sport=4000), UDP(dport=53, sport=4000),
                                                             ICMP(id=7)))), min_size=1, max_size=6))
def test_who_leaves_is_who_it_says(case: tuple[Goals, Observed], packets: list[tuple[str, object]]) -> None:
    """A packet leaves to the world with an address of the uplink, or one that policy says is routed as it is."""
    state, around = case
    made = made_of(state, around)
    run = Engine(made.engine)
    loopback = {uplink.id for uplink in made.engine.uplinks if uplink.loopback}
    own = {ip_interface(text).ip for text in (
        (*around.uplink.addresses, *around.uplink.addresses6) if around.uplink else ())}
    for goal in state.ports:
        number = made.port_ids.get(goal.id)
        if number is None:
            continue
        network = next(one for one in state.networks if one.id == goal.network)
        for destination, payload in packets:
            address = goal.address6 if ":" in destination else goal.address
            if not address or (":" in destination and isinstance(payload, ICMP)):
                continue
            head = (IPv6 if ":" in destination else IP)(src=address.split("/")[0], dst=destination)
            frame = bytes(Ether(src=goal.mac, dst=network.gateway_mac) / head / payload)
            result = run.process(Hook.PORT_OUT, number, frame, now_s=0)
            if result.verdict is not Verdict.REDIRECT_UPLINK:
                continue
            sent = ip_address(Ether(result.frame).payload.src)
            to = ip_address(destination)
            if result.uplink in loopback:
                assert network.id in made.shadowed
                assert sent in own | around.addresses
            elif sent not in own:
                assert _is_routed(network, to) or sent in ip_network(network.nat.external_prefix or "::/128")


def _is_routed(network: NetworkGoal, to: IPv4Address | IPv6Address) -> bool:
    nat = network.nat
    if to.version == 6 and nat.ipv6 == "routed":
        return True
    exceptions, within = ([ip_network(text) for text in texts] for texts in (nat.exceptions, nat.destinations))
    return any(to in one for one in exceptions) or (bool(within) and not any(to in one for one in within))
