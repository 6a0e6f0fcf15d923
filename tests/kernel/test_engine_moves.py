"""Who began a connection over the overlay moves: what is sent to it follows, the same on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from engine_backends import Backend, BpfBackend, ReferenceBackend
from engine_frames import ACK, SYN
from test_engine_overlay import (
    ALSO_HERE,
    FAMILIES,
    HERE,
    MACS,
    TO_HERE,
    TO_TUNNEL,
    VNI,
    VTEPS,
    drops,
    inside,
    out,
    over,
    packet,
    state,
    told,
)

from vfp.model import Allow, Deny, EngineState, Group, Layer, LocalPort, Match, Port, PortRange, Remote, Rule, Space
from vfp.reasons import DropReason
from vfp.reference import Verdict

CAME = 5                                    # last digit of who moves


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


def moved(before: EngineState, family: int, to: LocalPort | Remote) -> EngineState:
    """The place of who moves is another; a port comes with it."""
    (space,) = before.spaces
    entries = tuple((address, to if address == inside(CAME, family) else place) for address, place in space.entries)
    ports = before.ports
    if isinstance(to, LocalPort):
        ports = (*ports, replace(ports[0], id=to.port, name="moved", ifindex=10 + to.port, mac=MACS[CAME]))
    return replace(before, ports=ports, spaces=(Space(VNI, entries),))


@pytest.mark.parametrize("family", FAMILIES)
def test_to_this_host(engine: Backend, family: int) -> None:
    """It began the connection, so the flow is the overlay's; it need not speak first from its new place."""
    before = state(family)
    engine.load(before)
    assert told(over(engine, packet(inside(CAME, family), inside(HERE, family), MACS[CAME]))) == TO_HERE
    answer = packet(inside(HERE, family), inside(CAME, family), flags=SYN | ACK, ports=(80, 1000))
    assert told(out(engine, answer)) == TO_TUNNEL
    engine.load(moved(before, family, LocalPort(6, MACS[CAME])))
    sent = out(engine, answer)
    assert told(sent) == (Verdict.REDIRECT_PORT.value, DropReason.NONE, 6)
    assert sent.frame[:6] == MACS[CAME]
    back = packet(inside(CAME, family), inside(HERE, family), MACS[CAME], ACK)
    assert told(out(engine, back, 6)) == TO_HERE
    assert told(over(engine, back)) == drops(DropReason.UNKNOWN_SOURCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_to_this_host_where_those_here_may_begin_nothing(engine: Backend, family: int) -> None:
    """What was an answer is judged as any packet: none slips through a policy that lets nothing out."""
    rule = Rule(1, Match(src_ports=PortRange(80, 80)), Deny(), "shut")
    shut = Layer("acl", (Group("acl", (rule,)),), (), Allow(), Allow())

    def with_shut(one: EngineState) -> EngineState:
        ports: tuple[Port, ...] = tuple(
            replace(port, layers=(shut, *port.layers)) if port.id == HERE else port for port in one.ports)
        return replace(one, ports=ports)

    before = with_shut(state(family))
    engine.load(before)
    assert told(over(engine, packet(inside(CAME, family), inside(HERE, family), MACS[CAME]))) == TO_HERE
    answer = packet(inside(HERE, family), inside(CAME, family), flags=SYN | ACK, ports=(80, 1000))
    assert told(out(engine, answer)) == TO_TUNNEL
    engine.load(moved(before, family, LocalPort(6, MACS[CAME])))
    assert told(out(engine, answer)) == drops(DropReason.DENIED)


@pytest.mark.parametrize("family", FAMILIES)
def test_away_from_this_host(engine: Backend, family: int) -> None:
    """Its port is gone: what came back to it over the overlay, or from a neighbour, finds who has the address now."""
    before = state(family)
    engine.load(before)
    begun = packet(inside(ALSO_HERE, family), inside(CAME, family), MACS[ALSO_HERE])
    near = packet(inside(ALSO_HERE, family), inside(HERE, family), MACS[ALSO_HERE])
    assert told(out(engine, begun, ALSO_HERE)) == TO_TUNNEL
    assert told(out(engine, near, ALSO_HERE)) == TO_HERE
    (space,) = before.spaces
    there = Remote(VTEPS[0], VNI, MACS[6])
    entries = tuple((address, there if address == inside(ALSO_HERE, family) else place)
                    for address, place in space.entries)
    ports = tuple(port for port in before.ports if port.id != ALSO_HERE)
    engine.load(replace(before, ports=ports, spaces=(Space(VNI, entries),)))
    answer = packet(inside(HERE, family), inside(ALSO_HERE, family), flags=SYN | ACK, ports=(80, 1000))
    assert told(out(engine, answer)) == TO_TUNNEL
    # Another has its address here, before anybody looked at the flow of the one that is gone.
    engine.load(replace(before, ports=(*ports, replace(before.ports[0], id=6, ifindex=16, mac=MACS[6])),
                        spaces=(Space(VNI, tuple(
                            (address, LocalPort(6, MACS[6]) if address == inside(ALSO_HERE, family) else place)
                            for address, place in space.entries)),)))
    late = packet(inside(CAME, family), inside(ALSO_HERE, family), MACS[CAME], SYN | ACK, (80, 1000))
    assert told(over(engine, late)) == (Verdict.REDIRECT_PORT.value, DropReason.NONE, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_to_another_host(engine: Backend, family: int) -> None:
    before = state(family)
    engine.load(before)
    assert told(over(engine, packet(inside(CAME, family), inside(ALSO_HERE, family), MACS[CAME]))) == (
        Verdict.REDIRECT_PORT.value, DropReason.NONE, ALSO_HERE)
    answer = packet(inside(ALSO_HERE, family), inside(CAME, family), MACS[ALSO_HERE], SYN | ACK, (80, 1000))
    assert told(out(engine, answer, ALSO_HERE)) == TO_TUNNEL
    engine.load(moved(before, family, Remote(VTEPS[1], VNI, MACS[CAME])))
    assert told(out(engine, answer, ALSO_HERE)) == TO_TUNNEL
    more = packet(inside(CAME, family), inside(ALSO_HERE, family), MACS[CAME], ACK)
    assert told(over(engine, more, VTEPS[0])) == drops(DropReason.WRONG_VTEP)
    assert told(over(engine, more, VTEPS[1])) == (Verdict.REDIRECT_PORT.value, DropReason.NONE, ALSO_HERE)
