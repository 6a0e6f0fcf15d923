"""Remembered decisions are those that the layers would have made: counted, and gone with a change of policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import numpy as np
import pytest
from engine_backends import LIMITS, BpfBackend
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from vfp.layout import MEMORY
from vfp.model import (
    Allow,
    Deny,
    EngineState,
    Forward,
    Group,
    Layer,
    LocalPort,
    Match,
    Pool,
    Port,
    PortRange,
    Rule,
    Space,
    ToUplink,
    TranslateSource,
    Uplink,
)
from vfp.reasons import DropReason
from vfp.reference import Hook

MACS = {number: bytes.fromhex(f"02000000000{number}") for number in (1, 2)}
GATEWAY = bytes.fromhex("0200000000fe")
HERE, THERE = "10.1.0.1", "10.1.0.2"
SPACE = 1 << 24
GO = Forward(SPACE)


def port(number: int, *acl: Rule, action: Forward | ToUplink = GO, nat: tuple[Rule, ...] = ()) -> Port:
    layers = [Layer("acl", (Group("acl", acl),), (Group("acl", acl),), Allow(), Allow())]
    if nat:
        layers.append(Layer("nat", (Group("nat", nat),), default_in=Allow()))
    layers.append(Layer("vnet", (Group("vnet", (Rule(0, Match(), action, "go"),)),), default_in=Allow()))
    return Port(number, f"p{number}", 10 + number, MACS[number], GATEWAY, tuple(layers))


def joined(*acl: Rule) -> EngineState:
    places = tuple((IPv4Address(f"10.1.0.{n}"), LocalPort(n, MACS[n])) for n in MACS)
    return EngineState(ports=(port(1, *acl), port(2)), spaces=(Space(SPACE, places),))


def syn(sport: int, dport: int = 80) -> bytes:
    return frame(TCP(sport=sport, dport=dport, flags="S"))


def frame(transport: TCP | UDP, dst: str = THERE, tos: int = 0) -> bytes:
    return bytes(Ether(src=MACS[1].hex(":"), dst=MACS[2].hex(":")) / IP(src=HERE, dst=dst, tos=tos) / transport)


@pytest.fixture(scope="module")
def loaded() -> Iterator[BpfBackend]:
    backend = BpfBackend(replace(LIMITS, half_open=0, udp=0))
    yield backend
    backend.close()


@pytest.fixture
def engine(loaded: BpfBackend) -> BpfBackend:
    loaded.reset()
    return loaded


def reason(engine: BpfBackend, packet: bytes) -> DropReason:
    return engine.process(Hook.PORT_OUT, 1, packet, None, 0.0).reason


def remembered(engine: BpfBackend, port: int) -> int:
    """Decisions kept for packets to a destination port, on all CPUs."""
    total = 0
    for _, value in engine._datapath._object.map("memories").items():
        rows = np.frombuffer(value, MEMORY)
        total += int(((rows["whole"] == 1) & (rows["reply"]["pair"]["dport"] == port)).sum())
    return total


ALLOW_WEB = Rule(10, Match(protocol=6, dst_ports=PortRange(80, 80)), Allow(), "web")


def test_a_second_connection_to_a_service_is_remembered_and_every_one_counted(engine: BpfBackend) -> None:
    engine.load(joined(ALLOW_WEB))
    before = remembered(engine, 80)
    for sport in range(1000, 1010):
        assert reason(engine, syn(sport)) is DropReason.NONE
    assert remembered(engine, 80) > before
    assert sorted({count for (port, _, what), count in engine.rule_hits().items() if what == "hits"}) == [10]
    flows = engine.flows()
    assert len(flows) == 20
    assert {(flow.src_port, flow.dst_port) for flow in flows if not flow.reply} == {(s, 80) for s in range(1000, 1010)}
    assert {(flow.src_port, flow.dst_port) for flow in flows if flow.reply} == {(80, s) for s in range(1000, 1010)}


def test_a_change_of_policy_is_not_overlooked(engine: BpfBackend) -> None:
    state = joined(ALLOW_WEB)
    engine.load(state)
    assert [reason(engine, syn(sport)) for sport in (1, 2, 3)] == [DropReason.NONE] * 3
    engine.load(joined(replace(ALLOW_WEB, action=Deny())))
    assert reason(engine, syn(4)) is DropReason.DENIED
    engine.load(state)
    assert reason(engine, syn(5)) is DropReason.NONE
    receiver = replace(state.ports[1], layers=port(2, replace(ALLOW_WEB, action=Deny())).layers)
    engine.load(replace(state, ports=(state.ports[0], receiver)))
    assert reason(engine, syn(6)) is DropReason.DENIED


@pytest.mark.parametrize(("condition", "packets", "forbidden"), [
    (Match(src_ports=PortRange(5, 5)), [syn(n) for n in range(1, 7)], 4),
    (Match(tcp_flags=(0x10, 0x10)), [*map(syn, range(1, 5)), frame(TCP(sport=5, dport=80, flags="A"))], 4),
    (Match(dscp=46), [*map(syn, range(1, 5)), frame(TCP(sport=5, dport=80, flags="S"), tos=46 << 2)], 4),
])
def test_what_a_rule_tests_beyond_the_question_is_asked_each_time(
    engine: BpfBackend, condition: Match, packets: list[bytes], forbidden: int
) -> None:
    engine.load(joined(Rule(5, condition, Deny(), "no"), ALLOW_WEB))
    for number, packet in enumerate(packets):
        assert (reason(engine, packet) is DropReason.DENIED) == (number == forbidden)


def test_a_translated_source_gets_its_own_port_each_time(engine: BpfBackend) -> None:
    translate = Rule(0, Match(ethertype=0x0800), TranslateSource(1), "snat")
    engine.load(EngineState(
        ports=(port(1, action=ToUplink(1), nat=(translate,)),), uplinks=(Uplink(1, "up", 51),),
        pools=(Pool(1, 1, (IPv4Address("198.51.100.1"),), PortRange(20000, 20009)),),
    ))
    for sport in range(1000, 1006):
        assert reason(engine, frame(UDP(sport=sport, dport=53), dst="203.0.113.1")) is DropReason.NONE
    replies = [flow for flow in engine.flows() if flow.reply]
    assert len({flow.dst_port for flow in replies}) == len(replies) == 6


def test_another_senders_mac_is_another_question(engine: BpfBackend) -> None:
    guard = Rule(1, Match(src_mac=MACS[1], src=IPv4Network(HERE)), Allow(), "own")
    deny = Rule(2, Match(), Deny(), "spoof")
    engine.load(joined(guard, deny))
    for sport in range(1, 4):
        assert reason(engine, syn(sport)) is DropReason.NONE
    spoofed = syn(9)[:6] + bytes.fromhex("020000000009") + syn(9)[12:]
    assert reason(engine, spoofed) is DropReason.DENIED
