"""Routes, ways out, gateways and what has moved: the same on both engines, case by case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from engine_backends import Backend, BpfBackend, Outcome, ReferenceBackend
from engine_frames import ACK, ICMP, SYN, TCP, ArpFrame, IpFrame, nd_frame, read_ip
from engine_states import nat_tail, overlay_tail

from vfp.model import (
    Address,
    Allow,
    EngineState,
    Forward,
    Group,
    Layer,
    LocalPort,
    Location,
    Mapping,
    Match,
    Pool,
    Port,
    PortRange,
    Remote,
    Route,
    Rule,
    Space,
    Uplink,
    Virtual,
)
from vfp.reasons import DropReason
from vfp.reference import Hook, Verdict

VNI, UPLINK, EXIT, HERE, ALSO_HERE = 100, 1, 7, 1, 2
MACS = {n: bytes.fromhex(f"02000000000{n}") for n in (1, 2, 5, 6, 7)}
GATEWAY_MAC = bytes.fromhex("0200000000fe")
VTEPS = IPv4Address("172.31.0.2"), IPv6Address("2001:db8:31::3")
WORLD = {4: IPv4Address("203.0.113.9"), 6: IPv6Address("2001:db8:f::9")}
OUTSIDE = {4: IPv4Address("198.51.100.1"), 6: IPv6Address("2001:db8:e::1")}
ANY = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
FAMILIES = (4, 6)


@pytest.fixture(scope="module")
def bpf() -> Iterator[BpfBackend]:
    backend = BpfBackend()
    yield backend
    backend.close()


@pytest.fixture(params=("reference", "kernel"))
def engine(request: pytest.FixtureRequest, bpf: BpfBackend) -> Backend:
    backend = ReferenceBackend() if request.param == "reference" else bpf
    backend.reset()
    return backend


def inside(n: int, family: int) -> Address:
    return ip_address(f"10.1.0.{n}") if family == 4 else ip_address(f"2001:db8::10.1.0.{n}")


def port(n: int) -> Port:
    forward = Layer("vnet", (Group("vnet", (Rule(0, Match(), Forward(VNI), "forward"),)),), (), Allow(), Allow())
    return Port(n, f"p{n}", 10 + n, MACS[n], GATEWAY_MAC, (forward,))


def exit_port() -> Port:
    return Port(EXIT, "exit", 0, MACS[7], GATEWAY_MAC, nat_tail(1, UPLINK), exit_of=VNI)


def state(family: int, *routes: Route, more: tuple[tuple[Address, Location], ...] = (), vtep: Address = VTEPS[0],
          mappings: tuple[Mapping, ...] = ()) -> EngineState:
    places = (
        *((inside(n, family), LocalPort(n, MACS[n])) for n in (HERE, ALSO_HERE)),
        (inside(5, family), Remote(vtep, VNI, MACS[5])), (inside(254, family), Virtual(GATEWAY_MAC)), *more)
    return EngineState(
        ports=(port(HERE), port(ALSO_HERE), exit_port()), spaces=(Space(VNI, places, routes=routes),),
        pools=(Pool(1, UPLINK, (OUTSIDE[family],), PortRange(20000, 20099)),), mappings=mappings,
        uplinks=(Uplink(UPLINK, "up1", 51),), tunnel_ifindex=99)


def packet(src: Address, dst: Address, mac: bytes = MACS[1], flags: int = SYN, ports: tuple[int, int] = (1000, 80),
           protocol: int = TCP) -> bytes:
    return IpFrame(mac, GATEWAY_MAC, src, dst, protocol, *ports, tcp_flags=flags).build()


def out(engine: Backend, frame: bytes, number: int = HERE) -> Outcome:
    return engine.process(Hook.PORT_OUT, number, frame, None, 0.0)


def over(engine: Backend, frame: bytes, vtep: Address = VTEPS[0]) -> Outcome:
    return engine.process(Hook.OVERLAY_IN, VNI, frame, vtep, 0.0)


def up(engine: Backend, frame: bytes) -> Outcome:
    return engine.process(Hook.UPLINK_IN, UPLINK, frame, None, 0.0)


def told(outcome: Outcome) -> tuple[str, DropReason, int]:
    return outcome.verdict, outcome.reason, outcome.target


def ttl(frame: bytes) -> int:
    return frame[22] if frame[12] == 8 else frame[21]


def drops(reason: DropReason) -> tuple[str, DropReason, int]:
    return Verdict.DROP.value, reason, 0


TO_TUNNEL = Verdict.TUNNEL.value, DropReason.NONE, VNI
TO_UPLINK = Verdict.REDIRECT_UPLINK.value, DropReason.NONE, UPLINK
TO_HERE = Verdict.REDIRECT_PORT.value, DropReason.NONE, HERE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vtep", VTEPS)
def test_a_route_leads_to_its_next_hop_and_lets_what_is_behind_it_speak(
        engine: Backend, family: int, vtep: Address) -> None:
    world = WORLD[family]
    engine.load(state(family, Route(ANY[family], inside(5, family)), vtep=vtep))
    sent = out(engine, packet(inside(1, family), world))
    assert told(sent) == TO_TUNNEL
    assert sent.frame[:6] == MACS[5]
    assert told(over(engine, packet(world, inside(1, family), MACS[5], SYN | ACK, (80, 1000)), vtep)) == TO_HERE
    other = next(each for each in VTEPS if each != vtep)
    strange = packet(world, inside(2, family), MACS[5])
    assert told(over(engine, strange, other)) == drops(DropReason.WRONG_VTEP)
    assert told(over(engine, strange, vtep))[0] == Verdict.REDIRECT_PORT.value
    engine.load(state(family, vtep=vtep))
    assert told(out(engine, packet(inside(1, family), world))) == drops(DropReason.NO_MAPPING)
    assert told(over(engine, packet(world, inside(2, family), MACS[5], ACK), vtep)) == drops(DropReason.UNKNOWN_SOURCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_route_counts_and_an_entry_before_it_also_for_flows_that_there_are(
        engine: Backend, family: int) -> None:
    world = WORLD[family]
    near = ip_network((world, 24 if family == 4 else 64), strict=False)
    default = Route(ANY[family], Remote(VTEPS[0], VNI, MACS[5]))
    engine.load(state(family, default))
    first = packet(inside(1, family), world)
    assert out(engine, first).frame[:6] == MACS[5]
    engine.load(state(family, default, Route(near, Remote(VTEPS[1], VNI, MACS[6]))))
    assert out(engine, first).frame[:6] == MACS[6], "a longer route came between"
    engine.load(state(family, default, Route(near, Remote(VTEPS[1], VNI, MACS[6])),
                      more=((world, LocalPort(ALSO_HERE, MACS[2])),)))
    assert told(out(engine, first)) == (Verdict.REDIRECT_PORT.value, DropReason.NONE, ALSO_HERE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_next_hop_without_a_place_is_no_way_whatever_shorter_routes_say(engine: Backend, family: int) -> None:
    near = ip_network((WORLD[family], 24 if family == 4 else 64), strict=False)
    engine.load(state(family, Route(ANY[family], inside(5, family)), Route(near, inside(9, family))))
    assert told(out(engine, packet(inside(1, family), WORLD[family]))) == drops(DropReason.NO_MAPPING)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vtep", VTEPS)
def test_another_host_reaches_the_world_by_our_exit_and_the_answer_finds_it(
        engine: Backend, family: int, vtep: Address) -> None:
    engine.load(state(family, Route(ANY[family], LocalPort(EXIT, MACS[7])), vtep=vtep))
    sent = over(engine, packet(inside(5, family), WORLD[family], MACS[5]), vtep)
    assert told(sent) == TO_UPLINK
    left = read_ip(sent.frame)
    assert left is not None
    assert left.src == OUTSIDE[family]
    assert ttl(sent.frame) == 63
    back = up(engine, replace(left.answer(SYN | ACK), src_mac=GATEWAY_MAC).build())
    assert told(back) == TO_TUNNEL
    assert back.frame[:12] == MACS[5] + GATEWAY_MAC
    answer = read_ip(back.frame)
    assert answer is not None
    assert (answer.dst, answer.dst_port, ttl(back.frame)) == (inside(5, family), 1000, 63)
    other = next(each for each in VTEPS if each != vtep)
    strange = over(engine, packet(inside(5, family), WORLD[family], MACS[5], ACK), other)
    assert told(strange) == drops(DropReason.WRONG_VTEP)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_port_here_leaves_by_the_exit_too_and_what_the_exit_maps_comes_in(engine: Backend, family: int) -> None:
    """A mapping of the exit leads to a port here, or over the overlay."""
    mappings = tuple(
        Mapping(UPLINK, TCP, OUTSIDE[family], 8000 + n, EXIT, inside(n, family), 80, f"m{n}") for n in (1, 5, 9))
    engine.load(state(family, Route(ANY[family], LocalPort(EXIT, MACS[7])), mappings=mappings))
    sent = out(engine, packet(inside(1, family), WORLD[family]))
    assert told(sent) == TO_UPLINK
    left = read_ip(sent.frame)
    assert left is not None
    assert left.src == OUTSIDE[family]
    assert told(up(engine, replace(left.answer(SYN | ACK), src_mac=GATEWAY_MAC).build())) == TO_HERE

    def mapped(n: int) -> Outcome:
        return up(engine, packet(WORLD[family], OUTSIDE[family], ports=(4000, 8000 + n)))

    came = mapped(1)
    assert told(came) == TO_HERE
    assert came.frame[6:12] == GATEWAY_MAC
    inner = read_ip(came.frame)
    assert inner is not None
    assert (inner.dst, inner.dst_port) == (inside(1, family), 80)
    answer = packet(inside(1, family), WORLD[family], MACS[1], SYN | ACK, (80, 4000))
    assert told(out(engine, answer)) == TO_UPLINK
    assert told(mapped(5)) == TO_TUNNEL
    answer = packet(inside(5, family), WORLD[family], MACS[5], SYN | ACK, (80, 4000))
    assert told(over(engine, answer)) == TO_UPLINK
    nowhere = told(mapped(9))
    assert nowhere == drops(DropReason.NO_ROUTE), "the default route leads out again"
    assert told(out(engine, packet(inside(1, family), OUTSIDE[family], ports=(1, 8001)))) == drops(DropReason.NO_ROUTE)
    assert told(out(engine, packet(inside(1, family), WORLD[family], MACS[7]), EXIT)) == drops(DropReason.UNKNOWN_PORT)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_comes_for_an_endpoint_that_has_moved_is_refused_by_that_name(engine: Backend, family: int) -> None:
    engine.load(state(family, more=((inside(6, family), Remote(VTEPS[1], VNI, MACS[6])),)))
    moved = packet(inside(5, family), inside(6, family), MACS[5])
    assert told(over(engine, moved)) == drops(DropReason.MOVED)
    assert told(over(engine, packet(inside(5, family), inside(7, family), MACS[5]))) == drops(DropReason.NO_MAPPING)


@pytest.mark.parametrize("vtep", VTEPS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "mac"), [(HERE, MACS[1]), (254, GATEWAY_MAC)])
def test_a_neighbour_over_the_overlay_is_answered_and_no_endpoint_is_asked(
        engine: Backend, family: int, vtep: Address, n: int, mac: bytes) -> None:
    engine.load(state(family, vtep=vtep))

    def asks(who: int) -> bytes:
        own, target = inside(who, family), inside(n, family)
        if isinstance(own, IPv4Address):
            assert isinstance(target, IPv4Address)
            return ArpFrame(MACS[5], b"\xff" * 6, 1, MACS[5], own, target).build()
        assert isinstance(target, IPv6Address)
        group = IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(target) & 0xFFFFFF)
        return nd_frame(MACS[5], b"\x33\x33" + group.packed[12:], own, group, kind=135, flags=0, target=target,
                        options=b"\x01\x01" + MACS[5])

    answer = over(engine, asks(5), vtep)
    assert answer.verdict == Verdict.REPLY.value
    assert answer.frame[:12] == MACS[5] + mac
    assert mac in answer.frame[14:]
    assert told(over(engine, asks(6), vtep)) == drops(DropReason.UNKNOWN_SOURCE)
    assert told(over(engine, asks(5), IPv4Address("172.31.0.99"))) == drops(DropReason.WRONG_VTEP)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["port", "overlay"])
def test_every_host_is_the_gateway_and_answers_echo_requests_only(engine: Backend, family: int, where: str) -> None:
    engine.load(state(family))
    gateway, number = inside(254, family), 1 if where == "port" else 5
    own, mac = inside(number, family), MACS[number]

    def send(frame: bytes) -> Outcome:
        return out(engine, frame) if where == "port" else over(engine, frame)

    ping = IpFrame(mac, GATEWAY_MAC, own, gateway, ICMP, 77, ttl=7, payload=b"is anybody there?")
    answer = send(ping.build())
    assert answer.verdict == Verdict.REPLY.value
    wanted = IpFrame(GATEWAY_MAC, mac, gateway, own, ICMP, 77, icmp_type=0, payload=b"is anybody there?").build()
    assert answer.frame == wanted, "checksums too"
    assert engine.flows() == []
    odd = replace(ping, options_words=1) if family == 4 else replace(ping, fragment_header=True)
    others = (replace(ping, icmp_type=13), replace(ping, icmp_type=0), odd,
              replace(ping, more_fragments=True, payload=bytes(24)))
    for frame in (packet(own, gateway, mac), *(other.build() for other in others)):
        assert told(send(frame)) == drops(DropReason.NO_MAPPING)


def test_the_overlay_tail_of_the_generators_is_a_gateway_too(engine: Backend) -> None:
    """What features build: AnswerArp, then Forward."""
    given = state(4)
    engine.load(replace(given, ports=(replace(port(HERE), layers=overlay_tail(VNI)),)))
    ping = IpFrame(MACS[1], GATEWAY_MAC, inside(1, 4), inside(254, 4), ICMP, 1).build()
    assert out(engine, ping).verdict == Verdict.REPLY.value
