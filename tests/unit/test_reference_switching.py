"""Frames by their MACs: who gets them, which flows they use, what a wire's neighbours are told, what is refused."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether

from vfp.compile import Compiler
from vfp.errors import CompileError
from vfp.model import (
    Address,
    Allow,
    AnswerArp,
    Deny,
    EngineState,
    Flooding,
    Forward,
    Group,
    Layer,
    LocalPort,
    Match,
    Port,
    Rate,
    Remote,
    Rule,
    Space,
    Switch,
    ToUplink,
    Uplink,
    Wire,
)
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict
from vfp.reference.transposition import ToPort, ToVtep, ToWire

MAC = {number: bytes((2, 0, 0, 0, 0, number)) for number in range(1, 8)}
UPLINK_MAC, ROUTER, OTHER_ROUTER = MAC[7], MAC[6], MAC[5]
ADDRESS = {number: IPv4Address(f"192.0.2.{number}") for number in range(1, 8)}
BROADCAST = b"\xff" * 6
SPACE, VNI, UP = 1 << 24, 100, 1
RATE = Rate(10, 3)


def _port(number: int, *rules: Rule, in_: tuple[Rule, ...] = (), **fields: Any) -> Port:
    return Port(number, f"p{number}", 10 + number, MAC[number], MAC[4], (
        Layer("vnet", (Group("vnet", rules),), (Group("in", in_),) if in_ else (), Deny(), Allow()),), **fields)


def _switched(**fields: Any) -> EngineState:
    given: dict[str, Any] = {
        "stations": ((MAC[1], 1), (MAC[2], 2)), "wire": Wire(UP), "flooding": Flooding(RATE)} | fields
    switch = Rule(0, Match(), Switch(SPACE), "switch")
    return EngineState(
        ports=(_port(1, switch, vlans=(5,)), _port(2, switch)), spaces=(Space(SPACE, **given),),
        uplinks=(Uplink(UP, "up", 50, mac=UPLINK_MAC),))


def _proxied(*, via: Address | None = None) -> EngineState:
    places = tuple((ADDRESS[number], LocalPort(number, MAC[number])) for number in (1, 2))
    rules = (Rule(0, Match(ethertype=0x0806), AnswerArp(SPACE, proxy=True), "arp"),
             Rule(1, Match(), ToUplink(UP, bridged=True, via=via), "out"))
    return EngineState(
        ports=(_port(1, *rules), _port(2, *rules)), spaces=(Space(SPACE, places, wire=Wire(UP, proxy=True)),),
        uplinks=(Uplink(UP, "up", 50, mac=UPLINK_MAC),))


def _udp(source: int, target: int, src_mac: bytes, dst_mac: bytes, ports: tuple[int, int] = (1000, 53)) -> bytes:
    return bytes(Ether(src=src_mac, dst=dst_mac) / IP(src=str(ADDRESS[source]), dst=str(ADDRESS[target])) /
                 UDP(sport=ports[0], dport=ports[1]))


def _out(engine: Engine, number: int, frame: bytes, now_s: float = 1.0) -> Result:
    return engine.process(Hook.PORT_OUT, number, frame, now_s=now_s)


def _in(engine: Engine, frame: bytes, now_s: float = 1.0) -> Result:
    return engine.process(Hook.UPLINK_IN, UP, frame, now_s=now_s)


def test_a_station_gets_the_frame_and_the_wire_what_is_nobodys() -> None:
    engine = Engine(_switched())
    frame = _udp(1, 2, MAC[1], MAC[2])
    assert (_out(engine, 1, frame).port, _out(engine, 1, frame).frame) == (2, frame)
    frame = _udp(1, 6, MAC[1], ROUTER)
    result = _out(engine, 1, frame)
    assert (result.verdict, result.uplink, result.frame) == (Verdict.REDIRECT_WIRE, UP, frame)
    answer = _udp(6, 1, OTHER_ROUTER, MAC[1], (53, 1000))
    assert (_in(engine, answer).port, _in(engine, answer).frame) == (1, answer)


def test_one_tuple_to_another_mac_is_another_flow() -> None:
    engine = Engine(_switched())
    assert _out(engine, 1, _udp(1, 6, MAC[1], ROUTER)).verdict is Verdict.REDIRECT_WIRE
    assert _out(engine, 1, _udp(1, 6, MAC[1], MAC[2])).port == 2
    assert _out(engine, 1, _udp(1, 6, MAC[1], MAC[1])).reason is DropReason.NO_MAPPING


def test_the_answer_to_the_wire_may_go_to_another_router_but_not_to_a_group() -> None:
    engine = Engine(_switched())
    assert _in(engine, _udp(6, 1, OTHER_ROUTER, MAC[1])).port == 1
    answer = _udp(1, 6, MAC[1], ROUTER, (53, 1000))
    result = _out(engine, 1, answer)
    assert result.verdict is Verdict.REDIRECT_WIRE
    assert [flow.packets for flow in engine.flows(1.0) if flow.reply] == [1]
    assert _out(engine, 1, BROADCAST + answer[6:]).verdict is Verdict.FLOOD


def test_without_wire_and_flooding_there_is_nobody_else() -> None:
    engine = Engine(_switched(wire=None, flooding=None))
    assert _out(engine, 1, _udp(1, 6, MAC[1], ROUTER)).reason is DropReason.NO_MAPPING
    assert _out(engine, 1, _udp(1, 6, MAC[1], BROADCAST)).reason is DropReason.NOT_FLOODED
    lldp = bytes(Ether(src=MAC[1], dst=MAC[2], type=0x88CC) / b"x")
    assert _out(engine, 1, lldp).reason is DropReason.NO_ROUTE


def test_groups_get_as_many_frames_as_the_rate_lets() -> None:
    vteps = (IPv4Address("198.51.100.2"), IPv6Address("2001:db8::2"))
    state = replace(_switched(flooding=Flooding(RATE, VNI, vteps)), tunnel_ifindex=9)
    engine = Engine(state)
    frame = _udp(1, 6, MAC[1], BROADCAST)
    result = _out(engine, 1, frame)
    assert result.flooded == (ToWire(UP), *(ToVtep(vtep, VNI) for vtep in vteps), ToPort(2))
    assert not engine.flows(1.0)
    assert [_out(engine, 1, frame).verdict for _ in range(3)] == [Verdict.FLOOD, Verdict.FLOOD, Verdict.DROP]
    assert _out(engine, 1, frame, 1.1).verdict is Verdict.FLOOD
    assert _in(engine, frame, 2.0).flooded == (ToPort(1), ToPort(2))
    for _ in range(3):
        result = _in(engine, frame, 2.0)
    assert (result.verdict, engine.drop_counts[DropReason.NOT_FLOODED]) == (Verdict.STACK, 2)


def test_the_overlay_floods_to_stations_what_may_come_from_there() -> None:
    remote = Remote(IPv4Address("198.51.100.2"), VNI, MAC[6])
    engine = Engine(EngineState(
        ports=(_port(1), _port(2)), tunnel_ifindex=9,
        spaces=(Space(VNI, ((ADDRESS[6], remote),), stations=((MAC[1], 1), (MAC[2], 2)),
                      flooding=Flooding(RATE, VNI, (remote.vtep,))),)))
    frame = bytes(Ether(src=MAC[6], dst=BROADCAST) / IP(src=str(ADDRESS[6]), dst="255.255.255.255") / UDP())
    result = engine.process(Hook.OVERLAY_IN, VNI, frame, vtep=remote.vtep, now_s=1.0)
    assert result.flooded == (ToPort(1), ToPort(2))
    stranger = engine.process(Hook.OVERLAY_IN, VNI, frame, vtep=IPv4Address("198.51.100.3"), now_s=1.0)
    assert stranger.reason is DropReason.WRONG_VTEP


def test_two_spaces_of_one_wire_are_one_segment() -> None:
    one, other = Rule(0, Match(), Switch(SPACE), "one"), Rule(0, Match(), Switch(SPACE + 1), "other")
    state = EngineState(
        ports=(_port(1, one), _port(2, other)), uplinks=(Uplink(UP, "up", 50),),
        spaces=(Space(SPACE, stations=((MAC[1], 1),), wire=Wire(UP)),
                Space(SPACE + 1, stations=((MAC[2], 2),), wire=Wire(UP))))
    engine = Engine(state)
    assert _out(engine, 1, _udp(1, 2, MAC[1], MAC[2])).port == 2
    moved = replace(state, spaces=(state.spaces[0], replace(state.spaces[1], stations=())))
    assert engine.update(moved) == {1, 2}
    assert _out(engine, 1, _udp(1, 2, MAC[1], MAC[2])).verdict is Verdict.REDIRECT_WIRE


def test_a_tag_is_for_ports_that_may_have_it_and_a_flow_of_its_own() -> None:
    engine = Engine(_switched())
    plain = _udp(1, 6, MAC[1], ROUTER)
    tag = bytes(Dot1Q(vlan=5, type=0x0800))[:4]
    tagged = plain[:12] + b"\x81\x00" + tag[:2] + plain[12:]
    assert _out(engine, 1, tagged).verdict is Verdict.REDIRECT_WIRE
    assert _out(engine, 1, plain).verdict is Verdict.REDIRECT_WIRE
    assert sorted(flow.key.tuple.vlan for flow in engine.flows(1.0)) == [0, 0, 5, 5]
    assert _out(engine, 1, MAC[2] + tagged[6:]).reason is DropReason.VLAN_TAGGED
    assert _out(engine, 1, BROADCAST + tagged[6:]).flooded == (ToWire(UP),)
    assert _out(engine, 2, tagged[:6] + MAC[2] + tagged[12:]).reason is DropReason.VLAN_TAGGED


def test_a_proxy_wire_answers_for_ours_with_the_uplinks_mac_and_takes_what_comes() -> None:
    engine = Engine(_proxied())
    asks = bytes(Ether(src=ROUTER, dst=BROADCAST) / ARP(
        op=1, hwsrc=ROUTER, psrc=str(ADDRESS[6]), pdst=str(ADDRESS[1])))
    result = _in(engine, asks)
    assert (result.verdict, result.uplink) == (Verdict.REPLY, UP)
    assert result.frame[6:12] == UPLINK_MAC
    assert _in(engine, asks[:-4] + ADDRESS[3].packed).verdict is Verdict.STACK
    result = _in(engine, _udp(6, 1, ROUTER, UPLINK_MAC))
    assert (result.port, result.frame[:12]) == (1, MAC[1] + MAC[4])
    assert result.frame[22] == _udp(6, 1, ROUTER, UPLINK_MAC)[22]
    answer = _out(engine, 1, _udp(1, 6, MAC[1], MAC[4], (53, 1000)))
    assert (answer.verdict, answer.uplink) == (Verdict.REDIRECT_UPLINK, UP)


def test_between_two_of_one_wire_the_answer_goes_back_to_who_passed_it_on() -> None:
    engine = Engine(_proxied(via=ADDRESS[6]))
    assert _out(engine, 1, _udp(1, 2, MAC[1], MAC[4])).verdict is Verdict.REDIRECT_UPLINK
    assert _in(engine, _udp(1, 2, ROUTER, UPLINK_MAC)).port == 2
    answer = _out(engine, 2, _udp(2, 1, MAC[2], MAC[4], (53, 1000)))
    assert (answer.verdict, answer.frame[:12]) == (Verdict.REDIRECT_WIRE, ROUTER + UPLINK_MAC)


def test_a_proxy_answers_for_what_it_has_no_place_for_but_no_probe() -> None:
    engine = Engine(_proxied())

    def asks(source: str) -> Result:
        return _out(engine, 1, bytes(Ether(src=MAC[1], dst=BROADCAST) / ARP(
            op=1, hwsrc=MAC[1], psrc=source, pdst=str(ADDRESS[6]))))

    assert asks(str(ADDRESS[1])).frame[6:12] == MAC[4]
    assert asks("0.0.0.0").reason is DropReason.ARP_UNANSWERED


def test_what_is_bridged_keeps_its_ttl_and_goes_to_no_group() -> None:
    engine = Engine(_proxied())
    frame = bytes(Ether(src=MAC[1], dst=MAC[4]) / IP(src=str(ADDRESS[1]), dst=str(ADDRESS[6]), ttl=1) / ICMP(id=7))
    result = _out(engine, 1, frame)
    assert (result.verdict, result.frame[22]) == (Verdict.REDIRECT_UPLINK, 1)
    assert _out(engine, 1, BROADCAST + frame[6:]).reason is DropReason.NO_ROUTE


_PLACE = (ADDRESS[1], LocalPort(1, MAC[1]))


@pytest.mark.parametrize(("change", "words"), [
    ({"stations": ((BROADCAST, 1),)}, "space 16777216: station ff:ff:ff:ff:ff:ff is no MAC of one station"),
    ({"stations": ((MAC[1], 1), (MAC[1], 2))}, "station 02:00:00:00:00:01 is given twice"),
    ({"flooding": Flooding(Rate(0, 1))}, "space 16777216: flooding: rate 0 is out of range"),
    ({"flooding": Flooding(Rate(1, 0))}, "space 16777216: flooding: burst 0 is out of range"),
    ({"flooding": Flooding(RATE, VNI, (IPv4Address("224.0.0.1"),))}, "VTEP 224.0.0.1 is no address of a host"),
    ({"flooding": Flooding(RATE, VNI, (IPv4Address("198.51.100.2"),) * 129)}, "129 VTEPs, at most 128"),
    ({"id": 0xFFFFFF01}, "space 4294967041: ids from 4294967040 on are the engine's own"),
])
def test_what_contradicts_itself_is_refused(change: dict[str, Any], words: str) -> None:
    state = _switched()
    with pytest.raises(CompileError, match=words):
        Compiler().compile(replace(state, spaces=(replace(state.spaces[0], **change),)), 64)


@pytest.mark.parametrize(("state", "words"), [
    (replace(_proxied(), uplinks=(Uplink(UP, "up", 50),)), "uplink up has no MAC to answer with; give Uplink.mac"),
    (replace(_switched(), uplinks=(Uplink(UP, "up", 50, loopback=True),)), "leads to the host's own sockets"),
    (replace(_proxied(), spaces=tuple(Space(id, (_PLACE,), wire=Wire(UP, proxy=True)) for id in (7, 8))),
     "space 8: address 192.0.2.1 is on the wire of uplink 1 by space 7, too"),
    (replace(_switched(), ports=(_port(1, vlans=(0,)),)), "port p1: VLAN 0 is out of range"),
    (replace(_switched(), ports=(_port(1, vlans=(5, 5)),)), "port p1: 2 VLANs, some perhaps twice"),
    (EngineState(ports=(_port(1, in_=(Rule(0, Match(), Switch(SPACE), "switch"),)),)),
     "action Switch cannot be used in direction in"),
    (EngineState(ports=(_port(1, in_=(Rule(0, Match(), Forward(SPACE), "to"),)),)), "action Forward cannot be used"),
])
def test_what_contradicts_another_is_refused(state: EngineState, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        Compiler().compile(state, 64)
