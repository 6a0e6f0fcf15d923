"""Generated goal states of every mode: what is built compiles, and every object is served or says why not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_network
from typing import TypeVar

from agent_kit import HOST, MAX_PORTS, OTHER_VTEP, UNDERLAY, UPLINK, goals, observed, remotes, subnet
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.build import build, wanted
from agent.goals import Goals
from agent.ids import Ids, allocate
from agent.observed import Observed, UnderlayState
from southbound.messages import (
    AclRule,
    AclTier,
    FloodGoal,
    Goal,
    HostGoal,
    Mode,
    NetworkGoal,
    PortGoal,
    QosGoal,
    RouteGoal,
    key_of,
)
from vfp.compile import Compiler
from vfp.model import Forward, LocalPort, Switch, ToUplink
from vswitch.links import UplinkState

T = TypeVar("T")
MODES: tuple[Mode, ...] = ("nat", "overlay", "private", "transparent", "l2bridge", "l2tunnel")
PREFIXES = ("172.16.0.0/24", "10.1.0.0/24", "10.2.0.0/24", "fd16::/64", "fd01::/64")
SEGMENTS = {"": UPLINK, "eth1": UplinkState(7, "eth1", ("10.1.0.200/24",), 9000, "02:aa:00:00:00:07"),
            "wg0": UplinkState(8, "wg0", (), 1420, ""), "slb1": UplinkState(300, "slb1", (), 1500, "02:fe:00:00:01:01")}


def pick(*options: T) -> st.SearchStrategy[T]:
    return st.sampled_from(options)


def mostly(good: st.SearchStrategy[T], *bad: T) -> st.SearchStrategy[T]:
    """Something good, one time in 12 something bad."""
    return st.integers(0, 11).flatmap(lambda number: pick(*bad) if number == 7 else good)


ROUTES = st.lists(mostly(
    pick(RouteGoal("10.9.0.0/16", address="10.1.0.5"), RouteGoal("0.0.0.0/0", vteps=(OTHER_VTEP,)),
         RouteGoal("::/0", vteps=("172.31.0.1",), here=True), RouteGoal("10.8.0.0/16", vteps=("2001:db8::2",))),
    RouteGoal("10.9.0.1/16", address="10.1.0.5"), RouteGoal("10.9.0.0/16", address="fd01::5"),
    RouteGoal("10.7.0.0/16", vteps=("224.0.0.1",)), RouteGoal("10.6.0.0/16")), max_size=3)
FLOODS = mostly(pick(None, FloodGoal(100, 200), FloodGoal(1000, 2000, (OTHER_VTEP, "2001:db8::2"))),
                FloodGoal(0, 1), FloodGoal(1, 1, ("bad",)), FloodGoal(1, 1, tuple(f"10.0.1.{n}" for n in range(200))))
LIMITS = mostly(pick(QosGoal(), QosGoal(10**7, 4096, 10**7, 4096), QosGoal(minimum_bps=10**6, dscp=46),
                     QosGoal(packets_out=5, packets_in=1 << 40, connections=9, meter=True)),
                QosGoal(egress_bps=-1), QosGoal(dscp=99), QosGoal(connections=1 << 40))
RULES = st.lists(mostly(
    pick(AclRule(1, "out", "deny", protocol=6), AclRule(2, "out", "allow", ("10.1.0.5/32", "fd01::5/128"), dscp=9),
         AclRule(3, "in", "allow", log=True), AclRule(4, "in", "pass"),
         AclRule(5, "out", "allow", domains=("a.test",))),
    AclRule(1, "out", "allow"), AclRule(70000, "in", "deny"), AclRule(9, "in", "allow", ("bad",))), max_size=4)


@st.composite
def networks(draw: st.DrawFn, number: int) -> NetworkGoal:
    mode = draw(pick(*MODES))
    prefixes = draw(st.lists(pick(*PREFIXES), min_size=1, max_size=3, unique=True))
    space = draw(mostly(st.just(number), 1, (1 << 31) + 5)) + (5000 if mode == "overlay" else 1 << 24)
    peers = tuple(draw(st.lists(pick("n1", "n2", "n3", "gone"), max_size=2, unique=True)))
    return NetworkGoal(
        f"n{number}", f"net{number}", draw(pick("red", "blue")), mode, space, tuple(map(subnet, prefixes)),
        draw(mostly(st.just(f"02:fe:00:00:00:{number:02x}"), "02")), draw(mostly(st.just(0), 1279, 70000)),
        uplink=draw(mostly(pick("", "", "eth1"), "eth9", "wg0", "slb1")),
        peers=peers if mode == "overlay" else (),
        routes=tuple(draw(ROUTES)), egress=draw(st.booleans()) and mode == "overlay", isolated=draw(st.booleans()),
        flood=draw(FLOODS), slaac=draw(st.booleans()))


@st.composite
def ports(draw: st.DrawFn, number: int, nets: list[NetworkGoal]) -> PortGoal:
    network = draw(pick(*nets))
    given: dict[int, str] = {4: "", 6: ""}
    for one in network.subnets:
        prefix = ip_network(one.prefix)
        given[prefix.version] = f"{prefix[4 + draw(mostly(st.just(number), 0, 1))]}/{prefix.prefixlen}"
    dhcp = draw(mostly(st.just(False), True))
    if dhcp and network.mode == "transparent":
        given[4] = ""
    tiers = tuple(AclTier(f"red/p{order}", order, tuple(draw(RULES))) for order in range(draw(st.integers(0, 2))))
    behind = f"p{draw(st.integers(1, number))}" if draw(pick(True, False, False, False)) else ""
    return PortGoal(
        f"p{number}", f"port{number}", network.tenant, network.id, given[4],
        draw(mostly(st.just(f"02:00:00:00:00:{number:02x}"), "02", "01:00:00:00:00:01", "02:00:00:00:00:01")),
        "" if behind else f"ns{number}", "" if behind else "eth0", tiers, address6=given[6], qos=draw(LIMITS),
        default_in=draw(pick("allow", "deny")), default_out=draw(pick("allow", "deny")), dhcp=dhcp,
        forwards=draw(mostly(pick((), ("10.9.0.0/16", "fd09::/48")), ("bad",))),
        vlans=draw(mostly(pick((), ()), (100,), (0,), (5, 5))), behind=behind if behind != f"p{number}" else "")


@st.composite
def hosts(draw: st.DrawFn) -> tuple[Goals, Observed]:
    nets = [draw(networks(number)) for number in range(1, 1 + draw(st.integers(1, 4)))]
    endpoints = [draw(ports(number, nets)) for number in range(1, 1 + draw(st.integers(1, 8)))]
    vteps = mostly(pick((OTHER_VTEP,), (OTHER_VTEP, "2001:db8::2")), (), ("bad",))
    far = [remotes(draw(pick(*nets)), ("f", f"10.1.0.{draw(st.integers(2, 12))}", 9, draw(pick("", "fd01::6"))),
                   host=f"h{number}", vteps=draw(vteps))
           for number in range(draw(st.integers(0, 3)))]
    own = draw(pick((), ("172.31.0.1",), ("172.31.0.1", "172.31.0.9", "2001:db8::1"), ("2001:db8::1",)))
    host = replace(HOST, underlay=own[0] if own else "", underlays=own, uplink_bps=draw(pick(0, 10**9)))
    around = Observed(
        uplink=draw(pick(UPLINK, None)), segments=SEGMENTS, segment_errors={"eth9": "uplink 'eth9': no such interface"},
        underlays=tuple(UnderlayState(ip_address(one), UNDERLAY) for one in own),
        addresses=frozenset({ip_address("172.16.0.10")}), paths=draw(pick((), ((ip_address(OTHER_VTEP), 1300),))),
        leases=draw(pick({}, {"p1": IPv4Interface("172.16.0.77/24")})))
    found: list[Goal] = [host, *nets, *endpoints, *far]
    return goals(*found), around


@settings(max_examples=100, deadline=None)
@given(hosts())
def test_whatever_the_modes_it_compiles_and_every_object_is_served_or_says_why_not(
    case: tuple[Goals, Observed]
) -> None:
    state, around = case
    ids = allocate(Ids(), wanted(state, around), MAX_PORTS)
    fields = {name: getattr(around, name) for name in Observed.__slots__ if name not in ("owned", "timeouts")}
    made = build(state, observed(state, ids, **fields), ids)
    engine = made.engine
    Compiler().compile(engine, MAX_PORTS)
    faulty = {fault.key for fault in made.faults}
    numbers, spaces = {port.id for port in engine.ports}, {space.id for space in engine.spaces}
    uplinks = {uplink.id for uplink in engine.uplinks}
    for goal in state.ports:
        served = goal.id in made.nested if goal.behind else goal.id in made.port_ids
        assert served or key_of(goal) in faulty, (goal, made.faults)
    for network in state.networks:
        assert network.space in spaces or key_of(network) in faulty, (network, made.faults)
    for port in engine.ports:
        for layer in port.layers:
            for group in (*layer.groups_out, *layer.groups_in):
                for rule in group.rules:
                    match rule.action:
                        case Forward(space) | Switch(space):
                            assert space in spaces
                        case ToUplink(uplink):
                            assert uplink in uplinks
    for space in engine.spaces:
        assert all(place.port in numbers for _, place in space.entries if isinstance(place, LocalPort))
        assert all(number in numbers for _, number in space.stations)
        assert space.wire is None or space.wire.uplink in uplinks
    assert len({row.meter for row in made.meters}) == len(made.meters)
    assert isinstance(state.host, HostGoal)
