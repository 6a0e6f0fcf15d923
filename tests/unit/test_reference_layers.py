"""Conditions, groups, layers and their order."""

from ipaddress import IPv4Network, IPv6Network

import pytest
from reference_kit import A_1, A_2, A_9, MAC_1, MAC_2, WORLD, arp, echo, frame, host, layer, rule, tcp, udp
from scapy.layers.inet import ICMP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from vfp.model import Allow, Deny, Group, Layer, Match, Pass, PortRange, Rewrite
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict
from vfp.reference.layers import mismatch
from vfp.reference.packet import parse

SYN = tcp(A_1, A_2)
PING = echo(A_1, A_2)
ASK = arp(A_1, A_9)
NON_IP = bytes(Ether(type=0x88CC)) + bytes(20)


def holds(data: bytes, **match: object) -> bool:
    packet = parse(data)
    return not mismatch(Match(**match), packet.headers, packet.tuple)  # type: ignore[arg-type]


HOLDS = [
    (SYN, {}),
    (NON_IP, {}),
    (SYN, {"ethertype": 0x0800}),
    (NON_IP, {"ethertype": 0x88CC}),
    (SYN, {"src_mac": MAC_1}),
    (SYN, {"src": IPv4Network("10.1.0.0/24"), "dst": IPv4Network("10.1.0.2/32")}),
    (ASK, {"src": IPv4Network("10.1.0.1/32"), "dst": IPv4Network("10.1.0.9/32"), "protocol": 1}),
    (SYN, {"protocol": 6, "src_ports": PortRange(1000, 1000), "dst_ports": PortRange(0, 80)}),
    (frame(A_1, A_2, SCTP(sport=5, dport=6)), {"dst_ports": PortRange(6, 7)}),
    (PING, {"icmp_type": 8, "icmp_code": 0}),
    (SYN, {"tcp_flags": (0x12, 0x02)}),
    (tcp(A_1, A_2, tos=0x28), {"dscp": 10}),
    (ASK, {"arp_sender_is_source": True}),
]
FAILS = [
    (SYN, {"ethertype": 0x0806}),
    (SYN, {"src_mac": MAC_2}),
    (SYN, {"dst_mac": MAC_2}),
    (SYN, {"src": IPv4Network("10.2.0.0/16")}),
    (SYN, {"dst": IPv6Network("::/0")}),
    (NON_IP, {"src": IPv4Network("0.0.0.0/0")}),
    (NON_IP, {"protocol": 0}),
    (SYN, {"protocol": 17}),
    (SYN, {"dst_ports": PortRange(81, 90)}),
    (PING, {"dst_ports": PortRange(0, 65535)}),
    (ASK, {"src_ports": PortRange(0, 65535)}),
    (arp(A_1, A_9, opcode=6), {"dst_ports": PortRange(0, 65535)}),
    (SYN, {"icmp_type": 0}),
    (ASK, {"icmp_code": 0}),
    (PING, {"icmp_type": 0}),
    (PING, {"icmp_code": 1}),
    (SYN, {"tcp_flags": (0x10, 0x10)}),
    (udp(A_1, A_2), {"tcp_flags": (0, 0)}),
    (arp(A_1, A_9, opcode=6), {"tcp_flags": (0, 0)}),
    (SYN, {"dscp": 1}),
    (ASK, {"dscp": 0}),
    (arp(A_1, A_9, hwsrc=MAC_2), {"arp_sender_is_source": True}),
    (SYN, {"arp_sender_is_source": True}),
]


@pytest.mark.parametrize(("data", "match"), HOLDS)
def test_a_condition_holds(data: bytes, match: dict[str, object]) -> None:
    assert holds(data, **match)


@pytest.mark.parametrize(("data", "match"), FAILS)
def test_a_condition_does_not_hold(data: bytes, match: dict[str, object]) -> None:
    assert not holds(data, **match)


def send(*layers: Layer, data: bytes = SYN) -> Result:
    return Engine(host(one=layers)).process(Hook.PORT_OUT, 1, data, now_s=0.0)


def test_the_lowest_priority_number_wins_whatever_the_order() -> None:
    assert send(layer("acl", (rule(20, Deny()), rule(10, Allow())))).verdict is Verdict.REDIRECT_PORT
    assert send(layer("acl", (rule(20, Allow()), rule(10, Deny())))).reason is DropReason.DENIED


def test_a_rule_that_acts_ends_the_layer_and_pass_only_the_group() -> None:
    allow, deny = Group("allow", (rule(10, Allow()),)), Group("deny", (rule(10, Deny()),))
    passing = Group("passing", (rule(10, Pass()), rule(20, Deny())))
    assert send(Layer("acl", (allow, deny))).verdict is Verdict.REDIRECT_PORT
    assert send(Layer("acl", (passing, deny))).denied_by.group == "deny"    # type: ignore[union-attr]
    assert send(Layer("acl", (passing, allow))).verdict is Verdict.REDIRECT_PORT


def test_a_layer_without_a_decision_has_its_default() -> None:
    passing = (Group("passing", (rule(10, Pass()), rule(20, Allow(), protocol=99))),)
    assert send(Layer("open", passing, default_out=Allow())).verdict is Verdict.REDIRECT_PORT
    denied = send(Layer("closed", passing, default_out=Deny()))
    assert (denied.reason, denied.layer, denied.denied_by) == (DropReason.LAYER_DEFAULT, "closed", None)
    assert denied.drop_port == 1


def test_in_layers_run_backwards() -> None:
    first = layer("first", (), (rule(10, Deny(), name="outer"),))
    second = layer("second", (), (rule(10, Deny(), name="inner"),))
    result = Engine(host(two=(first, second))).process(Hook.PORT_OUT, 1, SYN, now_s=0.0)
    assert result.denied_by is not None
    assert (result.denied_by.port, result.denied_by.rule.name) == (2, "inner")


def test_later_layers_and_the_receiver_see_the_rewritten_tuple() -> None:
    rewrite = layer("lb", (rule(10, Rewrite(dst=parse(tcp(A_1, A_2)).tuple.dst, dst_port=8080), dst=f"{WORLD}/32"),))
    later = layer("later", (rule(10, Deny(), dst=f"{WORLD}/32"),))
    guard = layer("acl", (), (rule(10, Allow(), dst_ports=PortRange(8080, 8080)), rule(20, Deny())))
    result = Engine(host(one=(rewrite, later), two=(guard,))).process(
        Hook.PORT_OUT, 1, tcp(A_1, WORLD), now_s=0.0)
    assert (result.verdict, result.port) == (Verdict.REDIRECT_PORT, 2)


def test_every_matched_rule_is_counted_once_a_decision_and_a_drop_by_its_rule() -> None:
    passing, denying = rule(10, Pass()), rule(10, Deny(), protocol=6, name="tcp")
    acl = Layer("acl", (Group("a", (passing,)), Group("b", (denying,))), default_out=Allow(), default_in=Allow())
    engine = Engine(host(one=(acl,)))
    for data in (SYN, SYN, PING, PING):
        engine.process(Hook.PORT_OUT, 1, data, now_s=0.0)
    hits = {ref.rule.name: n for ref, n in engine.rule_hits.items() if ref.layer == "acl"}
    assert hits == {"r10": 3, "tcp": 2}
    assert {ref.rule.name: n for ref, n in engine.rule_drops.items()} == {"tcp": 2}
    assert engine.drop_counts == {DropReason.DENIED: 2}


def test_other_icmp_and_other_protocols_meet_the_rules_too() -> None:
    closed = layer("acl", (rule(10, Deny(), icmp_type=13), rule(20, Deny(), protocol=47)))
    for data in (frame(A_1, A_2, ICMP(type=13) / bytes(12)), frame(A_1, A_2, Raw(bytes(8)), proto=47)):
        assert send(closed, data=data).reason is DropReason.DENIED
