"""What rules ask for beside forwarding: reject, mark, meter, log, mirror."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from reference_kit import (
    A_1,
    A_2,
    A_9,
    EXTERNAL,
    MAC_1,
    MAC_2,
    N_3,
    OTHER_VTEP,
    VNI,
    VTEP,
    WORLD,
    arp,
    frame,
    host,
    layer,
    recomputed,
    rule,
    show,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP

from vfp.model import Action, Direction, Layer, Log, Mark, Meter, Mirror, Reject
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict, explain, probe
from vfp.reference.reject import ANSWERS_BURST, ANSWERS_PER_S, AnswerLimit
from vfp.reference.transposition import ToPort, ToStack, ToUplink, ToVtep


def asks(action: Action, direction: Direction = Direction.OUT, *, name: str = "asks", **match: Any) -> Layer:
    rules = (rule(10, action, name="it", **match),)
    return layer(name, rules) if direction is Direction.OUT else layer(name, (), rules)


def go(engine: Engine, data: bytes, port: int = 1, now_s: float = 0.0) -> Result:
    return engine.process(Hook.PORT_OUT, port, data, now_s=now_s)


# Reject.


def test_a_rejected_packet_is_dropped_counted_by_its_rule_and_answered() -> None:
    engine = Engine(host(one=(asks(Reject()),)))
    result = go(engine, tcp(A_1, A_2))
    assert (result.verdict, result.reason, result.layer, result.drop_port) == (
        Verdict.DROP, DropReason.REJECTED, "asks", 1)
    assert engine.drop_counts == {DropReason.REJECTED: 1}
    assert [ref.rule.name for ref in engine.rule_drops] == ["it"]
    assert engine.flows(0.0) == []
    assert result.answer is not None
    assert result.answer.exit == ToPort(1)
    answer = show(result.answer.frame)
    assert (answer[IP].src, answer[IP].dst, answer[TCP].sport, answer[TCP].dport) == (A_2, A_1, 80, 1000)
    assert (answer[TCP].flags, answer[TCP].seq, answer[TCP].ack) == ("RA", 0, 1)
    assert recomputed(result.answer.frame) == result.answer.frame


def test_who_is_rejected_by_the_receiver_is_told_at_his_own_place() -> None:
    state = host(two=(asks(Reject(), Direction.IN),), three=(asks(Reject(), Direction.IN),))
    engine = Engine(state)
    exits = []
    for hook, number, data, vtep in (
        (Hook.PORT_OUT, 1, tcp(A_1, A_2), None),
        (Hook.OVERLAY_IN, VNI, tcp(A_9, A_2, dst_mac=MAC_2), VTEP),
        (Hook.UPLINK_IN, 1, tcp(WORLD, str(EXTERNAL), dport=8080, dst_mac=MAC_1), None),
        (Hook.PORT_IN, 3, tcp("192.168.0.1", N_3, dst_mac=MAC_1), None),
    ):
        result = engine.process(hook, number, data, vtep=vtep, now_s=0.0)
        assert result.answer is not None
        exits.append(result.answer.exit)
    assert exits == [ToPort(1), ToVtep(VTEP, VNI), ToUplink(1), ToStack()]
    forged = engine.process(Hook.OVERLAY_IN, VNI, tcp(A_9, A_2), vtep=OTHER_VTEP, now_s=0.0)
    assert forged.answer is None            # never judged


def test_a_reset_continues_where_the_sender_is() -> None:
    engine = Engine(host(one=(asks(Reject()),)))
    opened = go(engine, frame(A_1, A_2, TCP(sport=1, dport=2, flags="SF", seq=2**32 - 3) / b"four"))
    under_way = go(engine, frame(A_1, A_2, TCP(sport=1, dport=2, flags="A", seq=7, ack=99) / b"four"))
    assert opened.answer is not None
    assert under_way.answer is not None
    assert show(opened.answer.frame)[TCP].ack == 3
    assert (show(under_way.answer.frame)[TCP].seq, show(under_way.answer.frame)[TCP].flags) == (99, "R")


def test_an_error_quotes_what_came_options_and_all() -> None:
    engine = Engine(host(one=(asks(Reject()),)))
    data = frame(A_1, A_2, UDP(sport=1, dport=2) / bytes(600), options=[IPOption_NOP()] * 4)
    result = go(engine, data)
    assert result.answer is not None
    answer = show(result.answer.frame)
    assert (answer[ICMP].type, answer[ICMP].code, answer[IP].len) == (3, 13, 576)
    assert result.answer.frame[42:] == data[14:14 + 548]


@pytest.mark.parametrize("data", [
    tcp(A_1, A_2, flags="R"), arp(A_1, A_2), frame(A_1, "255.255.255.255", UDP()), frame(A_1, "224.0.0.5", UDP()),
    frame("0.0.0.0", A_2, UDP(), src_mac=MAC_1), frame("127.0.0.1", A_2, UDP(), src_mac=MAC_1),
    frame(A_1, A_2, ICMP(type=3, code=3)), frame(A_1, A_2, ICMP(type=5)), udp(A_1, A_2, dst_mac=b"\xff" * 6),
])
def test_some_are_never_told(data: bytes) -> None:
    result = go(Engine(host(one=(asks(Reject()),))), data)
    assert (result.reason, result.answer) == (DropReason.REJECTED, None)


def test_errors_are_limited_and_resets_are_not() -> None:
    engine = Engine(host(one=(asks(Reject()),)))
    answered = sum(go(engine, udp(A_1, A_2)).answer is not None for _ in range(ANSWERS_BURST + 50))
    assert answered == ANSWERS_BURST
    assert all(go(engine, tcp(A_1, A_2)).answer for _ in range(50))
    assert go(engine, udp(A_1, A_2), now_s=1.5 / ANSWERS_PER_S).answer is not None


def test_the_limit_is_a_rate() -> None:
    limit = AnswerLimit()
    asked = 3 * ANSWERS_PER_S
    taken = sum(limit.take(number / asked * 2) for number in range(asked))     # in two seconds
    assert abs(taken - (2 * ANSWERS_PER_S + ANSWERS_BURST)) <= 2


def test_an_open_connection_that_becomes_rejected_is_reset_at_both_ends_and_stays_dead() -> None:
    engine = Engine(host())
    go(engine, tcp(A_1, A_2))
    go(engine, tcp(A_2, A_1, sport=80, dport=1000, flags="SA"), port=2)
    engine.update(host(one=(asks(Reject()),)))
    for _ in range(2):
        mine = go(engine, tcp(A_1, A_2, flags="A"))
        theirs = go(engine, tcp(A_2, A_1, sport=80, dport=1000, flags="A"), port=2)
        for result, port in ((mine, 1), (theirs, 2)):
            assert result.reason is DropReason.REJECTED
            assert result.answer is not None
            assert result.answer.exit == ToPort(port)
    assert len(engine.flows(0.0)) == 2


def test_explain_says_what_rejects() -> None:
    state = host(one=(asks(Reject()),))
    made = probe(state, Hook.PORT_OUT, 1, source=IPv4Address(A_1), destination=IPv4Address(A_2), protocol=6,
                 destination_port=80)
    said = explain(state, Hook.PORT_OUT, 1, made).to_dict()
    assert (said["verdict"], said["reason"], said["denied_by"]["rule"]) == ("drop", "REJECTED", "it")


# Mark.


def test_both_directions_leave_with_the_mark_and_their_own_ecn() -> None:
    engine = Engine(host(one=(asks(Mark(46)), asks(Mark(10), name="later"))))
    for data, port in ((tcp(A_1, A_2, tos=0xBB), 1), (tcp(A_2, A_1, sport=80, dport=1000, flags="SA", tos=1), 2),
                       (tcp(A_1, A_2, flags="A"), 1)):
        result = go(engine, data, port)
        assert show(result.frame)[IP].tos == 10 << 2 | show(data)[IP].tos & 3
        assert recomputed(result.frame) == result.frame


def test_what_has_no_flow_is_marked_and_what_is_not_ip_is_left() -> None:
    engine = Engine(host(one=(asks(Mark(46)),)))
    assert show(go(engine, frame(A_1, A_2, ICMP(type=13))).frame)[IP].tos == 46 << 2
    assert go(engine, arp(A_1, A_2)).verdict is Verdict.REPLY


# Meter.


def test_a_meter_counts_each_direction_from_the_first_packet_on() -> None:
    engine = Engine(host(one=(asks(Meter(7)),), two=(asks(Meter(8), Direction.IN),)))
    there, back = tcp(A_1, A_2), tcp(A_2, A_1, sport=80, dport=1000, flags="SA")
    for data, port in ((there, 1), (back, 2), (there, 1)):
        go(engine, data, port)
    for meter in (7, 8):
        assert engine.journal.packets[meter, False] == 2
        assert engine.journal.bytes[meter, False] == 2 * len(there)
        assert (engine.journal.packets[meter, True], engine.journal.bytes[meter, True]) == (1, len(back))


def test_a_meter_that_both_sides_name_counts_a_packet_once_and_goes_with_its_last_rule() -> None:
    engine = Engine(host(one=(asks(Meter(7)), asks(Meter(9), name="later")), two=(asks(Meter(9), Direction.IN),)))
    go(engine, frame(A_1, A_2, ICMP(type=13)))
    assert engine.journal.packets == {(9, False): 1}
    engine.update(host())
    assert engine.journal.packets == {}


# Log.


def _told(engine: Engine) -> int:
    return len(engine.journal.records)


def test_one_record_when_a_flow_begins() -> None:
    engine = Engine(host(one=(asks(Log()),)))
    for _ in range(3):
        go(engine, tcp(A_1, A_2))
    assert _told(engine) == 1
    engine.update(host(one=(asks(Log(), protocol=6),)))
    go(engine, tcp(A_1, A_2))
    assert _told(engine) == 1               # decided again, not begun
    for _ in range(3):
        go(engine, frame(A_1, A_2, ICMP(type=13)))
    assert _told(engine) == 1               # the rule is about TCP


def test_a_record_of_each_nth_packet_of_either_half_and_of_all_that_have_no_flow() -> None:
    engine = Engine(host(one=(asks(Log(3)),)))
    for _ in range(7):
        go(engine, tcp(A_1, A_2))
    for _ in range(3):
        go(engine, tcp(A_2, A_1, sport=80, dport=1000, flags="SA"), port=2)
    assert [int(record.zone) for record in engine.journal.records] == [1, 1, 2]
    for _ in range(2):
        go(engine, frame(A_1, A_2, ICMP(type=13)))
    assert _told(engine) == 5


# Mirror.


def test_a_copy_goes_to_the_port_if_there_is_one() -> None:
    state = host(one=(asks(Mirror(3)),))
    engine = Engine(state)
    assert go(engine, tcp(A_1, A_2)).mirror == 3
    assert go(engine, tcp(A_2, A_1, sport=80, dport=1000, flags="SA"), port=2).mirror == 3
    engine.update(replace(state, ports=state.ports[:2], mappings=()))
    assert go(engine, tcp(A_1, A_2)).mirror == 0


def test_nothing_is_copied_of_what_layers_drop() -> None:
    engine = Engine(host(one=(asks(Mirror(3)), asks(Reject(), name="no"))))
    assert go(engine, tcp(A_1, A_2)).mirror == 0


# All of them.


@pytest.mark.parametrize("action", [Mark(1), Meter(1), Log(), Mirror(3)])
def test_a_modifier_ends_its_layer_as_allow_does(action: Action) -> None:
    groups = layer("one", (rule(10, action, stateful=False), rule(20, Reject())))
    engine = Engine(host(one=(groups,)))
    assert go(engine, tcp(A_1, A_2)).verdict is Verdict.REDIRECT_PORT
    assert len(engine.flows(0.0)) == 1      # stateless
