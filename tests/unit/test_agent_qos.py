"""Limits, marks and meters of endpoints."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from agent_kit import HOST, built, engine, error_of, ip, number_of, overlay, port, tcp, udp
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from agent.build import Built
from agent.qos import SHAPER_LINKS, Shape, packet_rate
from policy.contribution import MeterRow
from southbound.messages import AclRule, AclTier, QosGoal
from vfp.datapath.engine import Hook
from vfp.model import Meter, Port, Rate
from vfp.reference import Verdict

RED = overlay(5001)
FREE, OTHER = port("free", RED, "10.1.0.2", 2), port("other", RED, "10.1.0.3", 3)
TEN, HUNDRED = 10_000_000, 100_000_000


def port_of(made: Built, name: str) -> Port:
    return next(one for one in made.engine.ports if one.name == f"red/{name}")


def test_caps_are_queues_rates_and_connections() -> None:
    limits = QosGoal(TEN, 32768, 2 * TEN, 65536, packets_out=10_000, packets_in=5, connections=100)
    capped = port("capped", RED, "10.1.0.4", 4, qos=limits)
    made = built(HOST, RED, FREE, capped)
    one, free = port_of(made, "capped"), port_of(made, "free")
    assert (one.shaped, one.queued, one.connections) == (True, True, 100)
    assert (one.rate_out, one.rate_in) == (Rate(10_000, 1000), Rate(5, 1))
    assert (free.shaped, free.queued, free.connections, free.rate_out, free.rate_in) == (False, False, 0, None, None)
    number = number_of(made, capped)
    assert made.shapes == {number: Shape(number, f"slp{number}", TEN, 32768, 0, 2 * TEN, 65536, True, True)}
    assert made.links() >= set(SHAPER_LINKS)
    assert made.engine.shaper == 100 + sorted(made.links()).index("slq0")


def test_without_caps_there_are_no_queues() -> None:
    made = built(HOST, RED, FREE)
    assert (made.shapes, made.engine.shaper) == ({}, 0)
    assert not made.links() & set(SHAPER_LINKS)


def test_an_ingress_cap_alone_needs_no_shaper() -> None:
    capped = port("capped", RED, "10.1.0.4", 4, qos=QosGoal(ingress_bps=TEN, ingress_burst_bytes=1))
    made = built(HOST, RED, capped)
    assert (port_of(made, "capped").shaped, port_of(made, "capped").queued) == (False, True)
    assert not made.links() & set(SHAPER_LINKS)


def test_a_guarantee_holds_among_all_and_only_of_an_uplink_that_is_known() -> None:
    kept = port("kept", RED, "10.1.0.4", 4, qos=QosGoal(minimum_bps=TEN))
    made = built(HOST, RED, FREE, kept)
    assert "spec.uplinkRate" in error_of(made, kept)
    assert made.shapes == {}
    assert "red/kept" in {one.name for one in made.engine.ports}
    made = built(replace(HOST, uplink_bps=HUNDRED), RED, FREE, kept)
    assert made.faults == ()
    assert {shape.minimum_bps for shape in made.shapes.values()} == {0, TEN}
    assert all(shape.shaped for shape in made.shapes.values())
    assert len(made.shapes) == 2


@pytest.mark.parametrize(("qos", "words"), [
    (QosGoal(egress_bps=-1), "qos.egress.rate -1"),
    (QosGoal(connections=-5), "qos.connections -5"),
    (QosGoal(dscp=64), "qos.dscp 64"),
    (QosGoal(egress_bps=TEN, minimum_bps=HUNDRED), "more than qos.egress.rate"),
    (QosGoal(minimum_bps=10 * HUNDRED), "more than the uplink carries"),
])
def test_what_cannot_be_kept_is_refused(qos: QosGoal, words: str) -> None:
    bad = replace(FREE, qos=qos)
    made = built(replace(HOST, uplink_bps=HUNDRED), RED, bad, OTHER)
    assert words in error_of(made, bad)
    assert [one.name for one in made.engine.ports] == ["red/other"]


@pytest.mark.parametrize(("asked", "rate"), [(0, None), (1, Rate(1, 1)), (100, Rate(100, 10)),
                                             (1 << 40, Rate(1 << 31, 1 << 20))])
def test_what_may_come_at_once_is_a_tenth_of_a_second(asked: int, rate: Rate | None) -> None:
    assert packet_rate(asked) == rate


def test_a_mark_is_on_what_the_endpoint_sends() -> None:
    marked = port("marked", RED, "10.1.0.4", 4, qos=QosGoal(dscp=46))
    made = built(HOST, RED, marked, OTHER)
    frame = ip(marked, "10.1.0.3", tcp(), dst_mac=OTHER.mac)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, marked), frame, now_s=0)
    assert Ether(result.frame)[IP].tos >> 2 == 46
    assert [layer.name for layer in port_of(made, "marked").layers] == ["guard", "acl", "meter", "vnet"]
    assert "meter" not in [layer.name for layer in port_of(made, "other").layers]


WEB = AclTier("red/web", 10, (
    AclRule(10, "out", "deny", protocol=17, ports=((53, 53),), name="no-dns"),
    AclRule(20, "out", "pass", protocol=6, ports=((443, 443),)),
    AclRule(30, "out", "allow", protocol=6, name="tcp"),
    AclRule(40, "out", "allow", protocol=17, ports=((5000, 5001),), dscp=10, name="voice"),
    AclRule(10, "in", "allow", ("10.1.0.3/32", "10.1.0.9/32"), name="from-known"),
))
LATER = AclTier("red/later", 20, (AclRule(5, "out", "allow", protocol=6, name="rest"),))
METERED = port("metered", RED, "10.1.0.4", 4, tiers=(WEB, LATER), qos=QosGoal(meter=True))


def meters_of(made: Built) -> dict[int, MeterRow]:
    return {row.meter: row for row in made.meters}


def test_each_rule_that_lets_through_has_a_meter_in_each_direction() -> None:
    made = built(HOST, RED, METERED, OTHER)
    assert Counter((row.direction, row.policy, row.rule) for row in made.meters) == Counter([
        ("out", "red/web", "tcp"), ("out", "red/web", "voice"), ("out", "red/later", "rest"), ("out", "", "default"),
        ("in", "red/web", "from-known"), ("in", "", "default")])
    assert {row.port for row in made.meters} == {METERED.id}
    assert len(meters_of(made)) == 6


@pytest.mark.parametrize(("payload", "rule"), [
    (tcp(80), ("out", "red/web", "tcp")),
    (tcp(443), ("out", "red/later", "rest")),
    (udp(5000), ("out", "red/web", "voice")),
    (udp(9), ("out", "", "default")),
    (udp(53), None),
])
def test_a_packet_is_on_the_meter_of_the_rule_that_allowed_it(payload: object, rule: tuple[str, ...] | None) -> None:
    made = built(HOST, RED, METERED, OTHER)
    one = engine(made)
    frame = ip(METERED, "10.1.0.3", payload, dst_mac=OTHER.mac)  # type: ignore[arg-type]
    result = one.process(Hook.PORT_OUT, number_of(made, METERED), frame, now_s=0)
    counted = {number for number, _ in one.journal.packets}
    if rule is None:
        assert (result.verdict, counted) == (Verdict.DROP, set())
        return
    assert result.verdict is Verdict.REDIRECT_PORT
    [number] = counted
    row = meters_of(made)[number]
    assert (row.direction, row.policy, row.rule) == rule
    if rule[2] == "voice":
        assert Ether(result.frame)[IP].tos >> 2 == 10


def test_what_comes_to_a_metered_endpoint_is_counted_there() -> None:
    made = built(HOST, RED, METERED, OTHER)
    one = engine(made)
    frame = ip(OTHER, "10.1.0.4", tcp(), dst_mac=METERED.mac)
    one.process(Hook.PORT_OUT, number_of(made, OTHER), frame, now_s=0)
    [number] = {number for number, _ in one.journal.packets}
    row = meters_of(made)[number]
    assert (row.direction, row.policy, row.rule) == ("in", "red/web", "from-known")


def test_meters_keep_their_numbers_when_others_come_and_go() -> None:
    before = {(row.policy, row.rule, row.direction): row.meter for row in built(HOST, RED, METERED, OTHER).meters}
    more = replace(METERED, tiers=(WEB,))
    second = port("second", RED, "10.1.0.5", 5, qos=QosGoal(meter=True))
    after = built(HOST, RED, more, second, OTHER).meters
    for row in after:
        if row.port == METERED.id:
            assert before[row.policy, row.rule, row.direction] == row.meter
    assert len({row.meter for row in after}) == len(after)


def test_discovery_is_not_metered() -> None:
    made = built(HOST, RED, METERED, OTHER)
    meter = next(layer for layer in port_of(made, "metered").layers if layer.name == "meter")
    assert not any(isinstance(rule.action, Meter) for rule in meter.groups_out[0].rules)
