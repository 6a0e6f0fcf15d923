"""Answers to the controller's questions, from fakes of the kernel's tables and the real reference engine."""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from agent_kit import HOST, OTHER_VTEP, FakeDatapath, FakeSwitch, goals, ip, nat, overlay, port, reconciler, remote, tcp

from agent.build import Built
from agent.claims import Claims
from agent.errors import BadQuery
from agent.inspect import RECENT_DROPS, Inspector
from agent.names import places
from agent.words import action_text, match_text, packet_text
from southbound.codec import encode
from southbound.messages import AclRule, AclTier, Answer, QosGoal
from vfp.compile import rule_cookie
from vfp.datapath.records import DropEvent, FlowRecord, LogEvent, MeterCount, RuleHits
from vfp.datapath.select import FlowFilter
from vfp.datapath.trace import Traced
from vfp.layout import PlaceKind, ZoneKind
from vfp.model import AnswerArp, Match, PortRange, Rewrite, Rule
from vfp.reasons import DropReason

NAT, RED = nat(1), overlay(5001)
DENY = AclRule(10, "out", "deny", ("10.1.0.9/32", "10.1.0.3/32"), 6, ((80, 80),), "no-web")
RED_A = port("ra", RED, "10.1.0.2", 6, tiers=(AclTier("red/web", 1, (DENY,)),))
RED_B = port("rb", RED, "10.1.0.3", 7)
WEB = port("web", NAT, "192.168.1.5", 5)
FAR = remote("far", RED, "10.1.0.9", 8)


@pytest.fixture
def datapath() -> FakeDatapath:
    return FakeDatapath()


@pytest.fixture
def built(tmp_path: Path, datapath: FakeDatapath) -> Built:
    state = goals(HOST, NAT, RED, RED_A, RED_B, WEB, FAR)
    return reconciler(tmp_path, FakeSwitch(), datapath).reconcile(state).built


@pytest.fixture
def inspector(built: Built, datapath: FakeDatapath) -> Inspector:
    return Inspector("h1", datapath, lambda: built)


def ask(inspector: Inspector, what: str, **args: Any) -> dict[str, Any]:
    """The answer, as it survives the wire."""
    answer = inspector.answer(what, args)
    encode(Answer(1, "", answer))
    return answer


def trace(inspector: Inspector, destination: str, dport: int, **more: Any) -> dict[str, Any]:
    args = {"port": RED_A.id, "direction": "out", "source": "10.1.0.2", "source_port": 40000}
    args |= {"any_source_port": "source_port" not in more} | more
    return ask(inspector, "trace", destination=destination, protocol=6, destination_port=dport, **args)


def test_trace_names_layer_and_rule_that_deny(inspector: Inspector) -> None:
    answer = trace(inspector, "10.1.0.9", 80)
    assert (answer["host"], answer["verdict"], answer["reason"]) == ("h1", "drop", "DENIED")
    assert answer["denied_by"] == {"port": "red/ra", "layer": "acl", "group": "red/web", "rule": "no-web"}


def test_trace_follows_to_vtep_and_local_port(inspector: Inspector) -> None:
    far = trace(inspector, "10.1.0.9", 443)
    assert far["leaves"] == {"to": "vtep", "vtep": OTHER_VTEP, "vni": 5001}
    near = trace(inspector, "10.1.0.3", 443)
    assert near["leaves"] == {"to": "port", "name": "red/rb"}
    assert {step["port"] for step in near["steps"]} == {"red/ra", "red/rb"}


def test_trace_in_from_the_overlay_needs_no_port(inspector: Inspector) -> None:
    answer = trace(inspector, "10.1.0.2", 443, port=None, direction="in", source="10.1.0.9", vni=5001)
    assert (answer["verdict"], answer["leaves"]["name"]) == ("forward", "red/ra")


def test_trace_in_from_the_hosts_stack(inspector: Inspector) -> None:
    answer = trace(inspector, "192.168.1.5", 443, port=WEB.id, direction="in", source="192.168.1.1")
    assert answer["verdict"] == "stack"


def test_trace_shows_the_flow_if_there_is_one(inspector: Inspector, built: Built, datapath: FakeDatapath) -> None:
    number = built.port_ids[RED_A.id]
    datapath.records = [flow(ZoneKind.PORT, number, "10.1.0.2", "10.1.0.3", 443, ports=(number, 0))]
    assert trace(inspector, "10.1.0.3", 443)["flow"]["packets"] == 9
    assert trace(inspector, "10.1.0.3", 443, source_port=1)["flow"] is None
    assert trace(inspector, "10.1.0.3", 444)["flow"] is None


@pytest.mark.parametrize(
    ("what", "args", "words"),
    [
        ("colour", {}, "does not know 'colour'"),
        ("trace", {}, "port is missing"),
        ("trace", {"port": "uid-nobody"}, "not programmed"),
        ("trace", {"port": "uid-ra", "source": "x", "destination": "10.1.0.3"}, "source"),
        ("trace", {"port": "uid-ra", "source": "10.1.0.2", "destination": "10.1.0.3", "protocol": "tcp"}, "protocol"),
        ("trace", {"port": "uid-ra", "direction": "up"}, "direction"),
        ("flows", {"port": "uid-nobody"}, "not programmed"),
    ],
)
def test_bad_questions_are_told_what_is_wrong(
    inspector: Inspector, what: str, args: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadQuery, match=words):
        inspector.answer(what, args)


def test_before_the_first_goal_state_there_is_nothing_to_see(datapath: FakeDatapath) -> None:
    with pytest.raises(BadQuery, match="no goal state"):
        Inspector("h1", datapath, lambda: None).answer("flows", {})


def flow(kind: ZoneKind, zone: int, src: str, dst: str, dport: int, **more: Any) -> FlowRecord:
    fields: dict[str, Any] = {
        "reply": False, "state": "established", "packets": 9, "bytes": 900, "idle_s": 1.0, "age_s": 2.0,
        "place": "tunnel", "ports": (0, 0), "ifindex": 0, "vtep": IPv4Address(OTHER_VTEP), "vni": 5001,
    }
    return FlowRecord(kind, zone, 6, IPv4Address(src), IPv4Address(dst), 40000, dport, **(fields | more))


def test_flows_bear_names_and_are_filtered_by_endpoint(
    inspector: Inspector, built: Built, datapath: FakeDatapath
) -> None:
    number, other = built.port_ids[RED_A.id], built.port_ids[RED_B.id]
    web = next(one for one in built.engine.ports if one.name == "default/web")
    datapath.records = [
        flow(ZoneKind.PORT, number, "10.1.0.2", "10.1.0.9", 443, ports=(number, 0)),
        flow(ZoneKind.OVERLAY, 5001, "10.1.0.9", "10.1.0.2", 40000, ports=(number, 0), reply=True, place="port"),
        flow(ZoneKind.UPLINK, 1, "172.16.0.80", "172.16.0.10", 20001, ports=(web.id, 0), place="port",
             ifindex=web.ifindex),
        flow(ZoneKind.HOST, other, "10.1.0.1", "10.1.0.3", 22, place="stack"),
    ]
    rows = ask(inspector, "flows")["flows"]
    assert [(row["endpoint"], row["zone"], row["direction"], row["place"]) for row in rows] == [
        ("red/ra", "port red/ra", "forward", f"vtep {OTHER_VTEP} vni 5001"),
        ("red/ra", "vni 5001", "reply", "port"),
        ("default/web", "uplink lan0", "forward", "port default/web"),
        ("red/rb", "host red/rb", "forward", "stack"),
    ]
    assert len(ask(inspector, "flows", port=RED_A.id)["flows"]) == 2
    assert len(ask(inspector, "flows", port=RED_B.id)["flows"]) == 1


def test_rules_show_one_row_a_policy_rule_with_its_counter(
    inspector: Inspector, built: Built, datapath: FakeDatapath
) -> None:
    number = built.port_ids[RED_A.id]
    cookie = rule_cookie("acl", "red/web", Rule(10, Match(), AnswerArp(0), "no-web"))
    datapath.hits = {(number, cookie): RuleHits(7, 5)}
    rows = ask(inspector, "rules", port=RED_A.id)["rules"]
    (row,) = [row for row in rows if row["rule"] == "no-web"]
    assert row == {
        "endpoint": "red/ra", "direction": "out", "layer": "acl", "group": "red/web", "priority": 10,
        "match": "tcp dst set red/web/no-web dport 80", "action": "deny", "rule": "no-web",
        "hits": 7, "drops": 5,
    }
    assert [row["layer"] for row in rows[:3]] == ["guard"] * 3
    assert {row["endpoint"] for row in ask(inspector, "rules")["rules"]} == {"red/ra", "red/rb", "default/web"}


def event(number: int, layer: int | None, cookie: int, reason: DropReason = DropReason.DENIED) -> DropEvent:
    return DropEvent(reason=reason, layer=layer, **packet(number, cookie))


def packet(number: int, cookie: int) -> dict[str, Any]:
    return {
        "time_s": time.monotonic(), "zone_kind": ZoneKind.PORT, "zone": number, "port": number, "cookie": cookie,
        "ethertype": 0x0800, "protocol": 6, "src": IPv4Address("10.1.0.2"), "dst": IPv4Address("10.1.0.9"),
        "src_port": 40000, "dst_port": 80, "src_mac": bytes(6), "dst_mac": bytes(6), "length": 74,
    }


def test_drops_by_reason_by_rule_and_the_latest(inspector: Inspector, built: Built, datapath: FakeDatapath) -> None:
    number = built.port_ids[RED_A.id]
    cookie = rule_cookie("acl", "red/web", Rule(10, Match(), AnswerArp(0), "no-web"))
    datapath.hits = {(number, cookie): RuleHits(7, 5), (999, 1): RuleHits(1, 1)}
    datapath.engine.drop_counts[DropReason.DENIED] = 5
    datapath.events = [event(number, 1, cookie), event(number, 0, 0, DropReason.LAYER_DEFAULT), event(999, None, 0)]
    answer = ask(inspector, "drops")
    assert answer["reasons"] == [{"reason": "DENIED", "packets": 5}]
    assert answer["rules"] == [
        {"endpoint": "red/ra", "layer": "acl", "group": "red/web", "rule": "no-web", "packets": 5}
    ]
    assert [(row["endpoint"], row["layer"], row["rule"]) for row in answer["recent"]] == [
        ("", "", ""), ("red/ra", "guard", ""), ("red/ra", "acl", "no-web")
    ]
    assert answer["recent"][-1]["packet"].startswith("tcp 10.1.0.2:40000 > 10.1.0.9:80")
    assert abs(answer["recent"][0]["time"] - time.time()) < 10
    assert len(ask(inspector, "drops", port=RED_A.id)["recent"]) == 2


def test_only_the_latest_drops_are_kept(inspector: Inspector, datapath: FakeDatapath) -> None:
    datapath.events = [event(1, None, 0)] * (RECENT_DROPS + 5)
    assert len(ask(inspector, "drops")["recent"]) == RECENT_DROPS


def test_words() -> None:
    assert match_text(Match()) == "any"
    assert match_text(Match(ethertype=0x0806, protocol=1, arp_sender_is_source=True)) == "arp opcode 1 sender = smac"
    assert match_text(Match(protocol=47, src_ports=PortRange(1, 9), dscp=3)) == "protocol 47 sport 1-9 dscp 3"
    assert match_text(Match(protocol=6, mapped=True)) == "tcp mapped"
    assert match_text(Match(mapped=False)) == "not mapped"
    assert action_text(Rewrite(dst=IPv4Address("10.0.0.1"), dst_port=80)) == "rewrite dst 10.0.0.1 dport 80"
    macs = (bytes(6), b"\xff" * 6)
    assert packet_text(0x0806, 1, "10.0.0.1", "10.0.0.2", 0, 0, macs, 42).startswith("arp 10.0.0.1 asks for 10.0.0.2")
    assert packet_text(0x86DD, 0, "0.0.0.0", "0.0.0.0", 0, 0, macs, 90).startswith("ipv6, ")


def test_a_live_trace_says_whether_the_kernel_agrees(inspector: Inspector, datapath: FakeDatapath) -> None:
    for destination, dport in (("10.1.0.9", 80), ("10.1.0.9", 443), ("10.1.0.3", 443)):
        live = trace(inspector, destination, dport, live=True)["live"]
        assert (live["agrees"], live["differences"]) == (True, [])
    assert trace(inspector, "10.1.0.3", 443)["live"] is None
    datapath.traced = Traced(PlaceKind.NONE, DropReason.NO_ROUTE, 0, None, b"", (), 0, 1, None)
    answer = trace(inspector, "10.1.0.3", 443, live=True)["live"]
    differing = {each["field"]: (each["reference"], each["kernel"]) for each in answer["differences"]}
    assert not answer["agrees"]
    assert differing["verdict"] == ("forward", "drop")
    assert differing["reason"] == ("", "NO_ROUTE")
    assert {"leaves", "rules that matched", "bytes"} <= differing.keys()


def test_a_trace_takes_a_frame_and_gives_the_one_that_leaves(inspector: Inspector) -> None:
    crafted = trace(inspector, "10.1.0.9", 443)
    frame = ip(RED_A, "10.1.0.9", tcp(80))
    answer = ask(inspector, "trace", port=RED_A.id, direction="out", frame=base64.b64encode(frame).decode())
    assert (answer["reason"], answer["packet"]["destination_port"]) == ("DENIED", 80)
    assert base64.b64decode(crafted["frame"])[:6] == FAR.macs
    with pytest.raises(BadQuery, match="base64"):
        ask(inspector, "trace", port=RED_A.id, frame="?")
    with pytest.raises(BadQuery, match="leave --live out"):
        ask(inspector, "trace", port=RED_A.id, live=True, frame=base64.b64encode(frame.ljust(4000)).decode())


def test_a_trace_asks_for_the_port_that_is_free_now(inspector: Inspector, datapath: FakeDatapath) -> None:
    args = {"port": WEB.id, "source": "192.168.1.5", "source_port": 20001}
    assert trace(inspector, "8.8.8.8", 53, **args)["transposition"]["set"].get("src_port", 20001) == 20001
    datapath.held = {20001}
    answer = trace(inspector, "8.8.8.8", 53, **args)
    assert answer["transposition"]["set"].get("src_port", 20001) != 20001, answer


def test_flows_are_asked_for_by_address_protocol_port_and_state(inspector: Inspector, datapath: FakeDatapath) -> None:
    ask(inspector, "flows", address="10.1.0.7/24", protocol="6", transportPort="443", state="new", limit="9")
    assert datapath.wanted == FlowFilter(0, IPv4Network("10.1.0.0/24"), 6, 443, "new", 9)
    for args, words in (({"address": "x"}, "address"), ({"state": "old"}, "use new"), ({"limit": "-1"}, "limit"),
                        ({"protocol": "256"}, "protocol")):
        with pytest.raises(BadQuery, match=words):
            ask(inspector, "flows", **args)


def test_rules_by_layer_by_counter_and_without_a_hit(
    inspector: Inspector, built: Built, datapath: FakeDatapath
) -> None:
    number = built.port_ids[RED_A.id]
    cookie = rule_cookie("acl", "red/web", Rule(10, Match(), AnswerArp(0), "no-web"))
    datapath.hits = {(number, cookie): RuleHits(7, 5)}
    assert {row["layer"] for row in ask(inspector, "rules", layer="acl")["rules"]} == {"acl"}
    assert ask(inspector, "rules", sort="hits")["rules"][0]["hits"] == 7
    unused = ask(inspector, "rules", unused="true", limit=2)
    assert (len(unused["rules"]), all(row["hits"] == 0 for row in unused["rules"])) == (2, True)
    assert unused["total"] > 2
    with pytest.raises(BadQuery, match="acl"):
        ask(inspector, "rules", layer="alc")


def test_a_listener_is_told_drops_with_the_endpoint(inspector: Inspector, built: Built, datapath: FakeDatapath) -> None:
    told: list[tuple[list[dict[str, Any]], int]] = []
    inspector.listener = lambda rows, lost: told.append((rows, lost))
    datapath.events, datapath.lost_records = [event(built.port_ids[RED_A.id], 1, 0), event(999, None, 0)], 4
    inspector.collect()
    ((rows, lost),) = told
    assert [(row["port"], row["endpoint"]) for row in rows] == [(RED_A.id, "red/ra"), ("", "")]
    assert lost == 4
    inspector.collect()
    assert len(told) == 1


def test_logged_packets_are_told_apart_from_drops(inspector: Inspector, built: Built, datapath: FakeDatapath) -> None:
    number = built.port_ids[RED_A.id]
    cookie = rule_cookie("acl", "red/web", Rule(10, Match(), AnswerArp(0), "no-web"))
    datapath.events = [event(number, 1, cookie), LogEvent(**packet(number, cookie)), LogEvent(**packet(999, 0))]
    (row,) = inspector.answer("logs", {"port": RED_A.id})["logs"]
    assert (row["endpoint"], row["layer"], row["group"], row["rule"]) == ("red/ra", "acl", "red/web", "no-web")
    assert row["packet"].startswith("tcp 10.1.0.2:40000 > 10.1.0.9:80")
    assert inspector.answer("logs", {"limit": 1})["total"] == 2
    assert len(inspector.answer("drops", {})["recent"]) == 1


def test_meters_say_what_the_endpoint_sent_and_got(tmp_path: Path) -> None:
    metered = replace(RED_A, qos=QosGoal(meter=True))
    state = goals(HOST, RED, metered, RED_B)
    datapath = FakeDatapath()
    built = reconciler(tmp_path, FakeSwitch(), datapath).reconcile(state).built
    assert built.meters
    for row in built.meters:
        datapath.metered[row.meter] = MeterCount(3, 300, 2, 200)
    inspector = Inspector("h1", datapath, lambda: built, lambda: state)
    rows = ask(inspector, "meters")["meters"]
    assert {row["endpoint"] for row in rows} == {"red/ra"}
    out = next(row for row in rows if row["direction"] == "out")
    into = next(row for row in rows if row["direction"] == "in")
    assert (out["sent_packets"], out["sent_bytes"], out["received_packets"], out["received_bytes"]) == (3, 300, 2, 200)
    assert (into["sent_packets"], into["sent_bytes"], into["received_packets"], into["received_bytes"]) == (
        2, 200, 3, 300)
    assert ask(inspector, "meters", network=out["network"], port=RED_A.id)["total"] == len(rows)
    assert ask(inspector, "meters", network="red/other")["meters"] == []
    assert ask(inspector, "meters", port=RED_B.id)["meters"] == []


def test_who_announces_anothers_address_is_noted(built: Built, datapath: FakeDatapath) -> None:
    claims = Claims()
    inspector = Inspector("h1", datapath, lambda: built, claims=claims)
    place = next(place for place in places(built) if place.rule.name == "duplicate-address")
    datapath.events = [event(place.counter[0], 0, place.counter[1])] * 3
    inspector.collect()
    uid = next(uid for uid, number in built.port_ids.items() if number == place.port.id)
    assert claims.current(uid) == ["10.1.0.2"]
