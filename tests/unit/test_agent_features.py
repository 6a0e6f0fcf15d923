"""The layers that the features contribute, put together as the agent does, judged by the reference engine."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from agent_kit import (
    HOST,
    HOST_ADDRESS,
    OTHER_VTEP,
    SECOND_ADDRESS,
    VTEP,
    arp_request,
    built,
    engine,
    error_of,
    from_world,
    ip,
    mapping,
    nat,
    number_of,
    overlay,
    port,
    remote,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import ARP, Ether

from overlay.layer import endpoint_mtu
from southbound.messages import AclRule, AclTier, HostGoal, PortGoal
from vfp.reasons import DropReason
from vfp.reference import Hook, Result, Verdict

NAT_1, NAT_2 = nat(1), nat(2)
WEB = port("web", NAT_1, "192.168.1.5", 5)
APP = port("app", NAT_1, "192.168.1.6", 6)
DB = port("db", NAT_2, "192.168.2.5", 7)
SERVER, CLIENT = "172.16.0.80", "172.16.0.90"

RED, BLUE = overlay(5001), overlay(5002, tenant="blue")
RED_A, RED_B = port("ra", RED, "10.1.0.2", 0x12), port("rb", RED, "10.1.0.3", 0x13)
BLUE_A = port("ba", BLUE, "10.1.0.2", 0x22)
RED_FAR, BLUE_FAR = remote("rf", RED, "10.1.0.9", 0x19), remote("bf", BLUE, "10.1.0.9", 0x29)
FAR_MAC = RED_FAR.macs.hex(":")

NATS = (HOST, NAT_1, NAT_2, WEB, APP, DB)
OVERLAYS = (HOST, RED, BLUE, RED_A, RED_B, BLUE_A, RED_FAR, BLUE_FAR)


@pytest.mark.parametrize("sender", [WEB, DB])
def test_both_nat_networks_reach_the_lan_as_the_host(sender: PortGoal) -> None:
    made = built(*NATS)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, sender), ip(sender, SERVER, tcp()), now_s=0)
    assert result.verdict is Verdict.REDIRECT_UPLINK
    packet = Ether(result.frame)
    assert packet[IP].src == HOST_ADDRESS
    assert 20000 <= packet[TCP].sport <= 32767
    assert made.faults == ()


def test_the_reply_from_the_lan_finds_its_endpoint() -> None:
    made = built(*NATS)
    host = engine(made)
    out = Ether(host.process(Hook.PORT_OUT, number_of(made, WEB), ip(WEB, SERVER, tcp()), now_s=0).frame)
    reply = from_world(SERVER, HOST_ADDRESS, TCP(sport=80, dport=out[TCP].sport, flags="SA"))
    back = host.process(Hook.UPLINK_IN, 1, reply, now_s=1)
    assert (back.verdict, back.port) == (Verdict.REDIRECT_PORT, number_of(made, WEB))
    assert Ether(back.frame)[IP].dst == "192.168.1.5"
    assert Ether(back.frame)[TCP].dport == 40000


def test_another_address_of_the_uplink_is_used_towards_its_own_prefix() -> None:
    made = built(*NATS)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, WEB), ip(WEB, "172.17.0.80", tcp()), now_s=0)
    assert Ether(result.frame)[IP].src == SECOND_ADDRESS


def test_neighbours_in_a_nat_network_are_not_translated() -> None:
    made = built(*NATS)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, WEB), ip(WEB, "192.168.1.6", tcp()), now_s=0)
    assert (result.verdict, result.port) == (Verdict.REDIRECT_PORT, number_of(made, APP))
    assert Ether(result.frame)[IP].src == "192.168.1.5"


@pytest.mark.parametrize("address", ["192.168.1.1", HOST_ADDRESS])
def test_gateway_and_host_are_reached_through_the_bridge(address: str) -> None:
    made = built(*NATS)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, WEB), ip(WEB, address, udp()), now_s=0)
    assert result.verdict is Verdict.STACK


@pytest.mark.parametrize(
    ("destination", "rule"),
    [("192.168.2.5", "other-network"), ("224.0.0.251", "not-routed"), ("127.0.0.1", "not-routed")],
)
def test_what_a_nat_endpoint_must_not_reach(destination: str, rule: str) -> None:
    made = built(*NATS)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, WEB), ip(WEB, destination, udp()), now_s=0)
    assert (result.verdict, result.reason, result.layer) == (Verdict.DROP, DropReason.DENIED, "vnet")
    assert result.denied_by is not None
    assert result.denied_by.rule.name == rule


def test_a_nat_endpoint_cannot_forge_vxlan_from_the_hosts_vtep() -> None:
    made = built(*NATS)
    forged = ip(WEB, OTHER_VTEP, udp(4789))
    result = engine(made).process(Hook.PORT_OUT, number_of(made, WEB), forged, now_s=0)
    assert (result.reason, result.layer) == (DropReason.DENIED, "nat")
    inside = ip(WEB, "192.168.1.6", udp(4789))      # its own VXLAN to a neighbour is its own business
    assert engine(made).process(Hook.PORT_OUT, number_of(made, WEB), inside, now_s=0).verdict is not Verdict.DROP


def test_without_an_uplink_neighbours_still_talk_and_the_network_says_why_not_more() -> None:
    made = built(*NATS, uplink=None)
    host = engine(made)
    inside = host.process(Hook.PORT_OUT, number_of(made, WEB), ip(WEB, "192.168.1.6", tcp()), now_s=0)
    outside = host.process(Hook.PORT_OUT, number_of(made, WEB), ip(WEB, SERVER, tcp()), now_s=0)
    assert inside.verdict is Verdict.REDIRECT_PORT
    assert (outside.verdict, outside.reason) == (Verdict.DROP, DropReason.LAYER_DEFAULT)
    assert "lan0" in error_of(made, NAT_1)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_static_mapping_brings_the_lan_in_with_its_own_address(protocol: str) -> None:
    goal = mapping("m", WEB, 8080, 80, protocol=protocol)
    made = built(*NATS, goal)
    payload = tcp(8080) if protocol == "tcp" else udp(8080)
    result = engine(made).process(Hook.UPLINK_IN, 1, from_world(CLIENT, SECOND_ADDRESS, payload), now_s=0)
    assert (result.verdict, result.port) == (Verdict.REDIRECT_PORT, number_of(made, WEB))
    packet = Ether(result.frame)
    assert (packet[IP].src, packet[IP].dst, packet[IP].payload.dport) == (CLIENT, "192.168.1.5", 80)
    assert made.external_addresses[goal.id] == (HOST_ADDRESS, SECOND_ADDRESS)


def test_a_mapping_is_only_on_the_address_it_names() -> None:
    made = built(*NATS, mapping("m", WEB, 8080, 80, external_address=HOST_ADDRESS))
    result = engine(made).process(Hook.UPLINK_IN, 1, from_world(CLIENT, SECOND_ADDRESS, tcp(8080)), now_s=0)
    assert result.verdict is Verdict.STACK


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"external_address": "172.16.0.99"}, "172.16.0.99 is not on uplink lan0"),
        ({"external_ports": (20080, 20080)}, "NAT ports 20000-32767"),
        ({"external_ports": (4789, 4789), "protocol": "udp"}, "overlay"),
        ({"port": "uid-nobody"}, "not ready"),
        ({"internal_address": "192.168.1"}, "192.168.1"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused_alone(change: dict[str, object], words: str) -> None:
    good = mapping("good", APP, 9090, 90)
    bad = mapping("bad", WEB, 8080, 80)
    from dataclasses import replace

    bad = replace(bad, **change)  # type: ignore[arg-type]
    made = built(*NATS, good, bad)
    assert words in error_of(made, bad)
    assert error_of(made, good) == ""
    assert {m.external_port for m in made.engine.mappings} == {9090}


def test_of_two_mappings_for_one_port_the_one_that_names_the_address_holds() -> None:
    anywhere = mapping("a", WEB, 8080, 80)
    here = mapping("b", APP, 8080, 80, external_address=HOST_ADDRESS)
    made = built(*NATS, anywhere, here)
    assert error_of(made, here) == ""
    assert "taken by static mapping default/b" in error_of(made, anywhere)


def test_a_mapping_into_an_overlay_is_refused() -> None:
    bad = mapping("m", RED_A, 8080, 80)
    made = built(*NATS, RED, RED_A, bad)
    assert "not in a nat network" in error_of(made, bad)


@pytest.mark.parametrize(
    ("lie", "layer"),
    [({"src": "10.1.0.3"}, "guard"), ({"src_mac": "02:00:00:00:00:99"}, "guard"), ({}, "")],
)
def test_guard_lets_an_endpoint_send_only_as_itself(lie: dict[str, str], layer: str) -> None:
    made = built(*OVERLAYS)
    frame = ip(RED_A, "10.1.0.3", udp(), dst_mac=RED_B.mac, **lie)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, RED_A), frame, now_s=0)
    assert result.layer == layer
    assert (result.verdict is Verdict.DROP) == bool(layer)


@pytest.mark.parametrize(
    ("fields", "answered"),
    [
        ({}, True),
        ({"psrc": "10.1.0.3"}, False),
        ({"hwsrc": "02:00:00:00:00:99"}, False),
    ],
)
def test_guard_and_arp_claims(fields: dict[str, str], answered: bool) -> None:
    made = built(*OVERLAYS)
    ask = ARP(**({"op": 1, "hwsrc": RED_A.mac, "psrc": "10.1.0.2", "pdst": "10.1.0.9"} | fields))
    frame = bytes(Ether(src=RED_A.mac, dst="ff:ff:ff:ff:ff:ff") / ask)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, RED_A), frame, now_s=0)
    assert (result.verdict is Verdict.REPLY) == answered
    if not answered:
        assert result.layer == "guard"


@pytest.mark.parametrize(
    ("target", "mac"), [("10.1.0.3", RED_B.mac), ("10.1.0.9", FAR_MAC), ("10.1.0.1", RED.gateway_mac)]
)
def test_overlay_arp_is_answered_locally(target: str, mac: str) -> None:
    made = built(*OVERLAYS)
    asked = arp_request(RED_A, target)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, RED_A), asked, now_s=0)
    assert result.verdict is Verdict.REPLY
    assert Ether(result.frame)[ARP].hwsrc == mac


def test_arp_for_nobody_goes_nowhere() -> None:
    made = built(*OVERLAYS)
    asked = arp_request(RED_A, "10.1.0.77")
    result = engine(made).process(Hook.PORT_OUT, number_of(made, RED_A), asked, now_s=0)
    assert (result.verdict, result.reason) == (Verdict.DROP, DropReason.ARP_UNANSWERED)


@pytest.mark.parametrize(("sender", "vni"), [(RED_A, 5001), (BLUE_A, 5002)])
def test_colours_share_addresses_but_not_tunnels(sender: PortGoal, vni: int) -> None:
    made = built(*OVERLAYS)
    frame = ip(sender, "10.1.0.9", tcp(), dst_mac="02:00:00:00:00:19")
    result = engine(made).process(Hook.PORT_OUT, number_of(made, sender), frame, now_s=0)
    assert (result.verdict, result.vni, result.vtep) == (Verdict.TUNNEL, vni, IPv4Address(OTHER_VTEP))


def test_what_comes_by_the_tunnel_reaches_only_its_colour() -> None:
    made = built(*OVERLAYS)
    frame = bytes(Ether(src=FAR_MAC, dst=RED_A.mac) / IP(src="10.1.0.9", dst="10.1.0.2") / ICMP(type=8))
    red = engine(made).process(Hook.OVERLAY_IN, 5001, frame, vtep=IPv4Address(OTHER_VTEP), now_s=0)
    blue = engine(made).process(Hook.OVERLAY_IN, 5002, frame, vtep=IPv4Address(OTHER_VTEP), now_s=0)
    forged = engine(made).process(Hook.OVERLAY_IN, 5001, frame, vtep=IPv4Address("172.31.0.66"), now_s=0)
    assert red.port == number_of(made, RED_A)
    assert blue.port == number_of(made, BLUE_A)
    assert forged.reason is DropReason.WRONG_VTEP


def test_an_overlay_endpoint_does_not_leave_its_prefix() -> None:
    made = built(*OVERLAYS)
    frame = ip(RED_A, "8.8.8.8", udp(), dst_mac=RED.gateway_mac)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, RED_A), frame, now_s=0)
    assert (result.verdict, result.layer) == (Verdict.DROP, "vnet")


def test_a_remote_that_claims_a_local_address_is_refused_alone() -> None:
    thief = remote("thief", RED, "10.1.0.2", 0x66)
    made = built(*OVERLAYS, thief)
    assert "10.1.0.2" in error_of(made, thief)
    assert error_of(made, RED) == ""


def test_overlay_mtu_leaves_room_for_vxlan() -> None:
    made = built(*OVERLAYS)
    assert made.ports[RED_A.id].mtu_bytes == endpoint_mtu(1400) == 1350
    assert made.tunnel is not None
    assert made.tunnel.mtu_bytes == 1350


def _with_policy(*rules: AclRule, order: int = 1000, **more: object) -> PortGoal:
    tier = AclTier("red/web", order, rules)
    return port("ra", RED, "10.1.0.2", 0x12, tiers=(tier,), **more)


def _send(sender: PortGoal, frame: bytes) -> tuple[Verdict, str, str]:
    made = built(HOST, RED, sender, RED_B, RED_FAR)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, sender), frame, now_s=0)
    return result.verdict, result.layer, result.denied_by.rule.name if result.denied_by else ""


def test_a_policy_denies_what_it_names_and_says_which_rule() -> None:
    deny = AclRule(10, "out", "deny", ("10.1.0.3/32", "10.1.0.4/32"), 6, ((80, 80), (8000, 8100)))
    sender = _with_policy(AclRule(0, "in", "allow"), deny)
    for dport in (80, 8050):
        outcome = _send(sender, ip(sender, "10.1.0.3", tcp(dport), dst_mac=RED_B.mac))
        assert outcome == (Verdict.DROP, "acl", "red/web[1]")
    for frame in (tcp(81), udp(80)):
        assert _send(sender, ip(sender, "10.1.0.3", frame, dst_mac=RED_B.mac))[0] is Verdict.REDIRECT_PORT


def test_a_policy_rejects_marks_and_logs() -> None:
    sender = _with_policy(
        AclRule(1, "out", "reject", protocol=6, ports=((80, 80),), name="refused"),
        AclRule(2, "out", "allow", protocol=6, ports=((81, 81),), dscp=46),
        AclRule(3, "out", "allow", protocol=6, ports=((82, 82),), log=True, name="told"))
    made = built(HOST, RED, sender, RED_B, RED_FAR)
    one = engine(made)

    def send(dport: int) -> Result:
        frame = ip(sender, "10.1.0.3", tcp(dport), dst_mac=RED_B.mac)
        return one.process(Hook.PORT_OUT, number_of(made, sender), frame, now_s=0)

    refused = send(80)
    assert (refused.reason, refused.layer) == (DropReason.REJECTED, "acl")
    assert refused.denied_by is not None
    assert refused.denied_by.rule.name == "refused"
    assert refused.answer is not None
    assert Ether(refused.answer.frame)["TCP"].flags == "RA"
    assert Ether(send(81).frame)[IP].tos >> 2 == 46
    assert send(82).verdict is Verdict.REDIRECT_PORT
    assert [record.rule.rule.name for record in one.journal.records] == ["told"]


def test_in_rules_match_the_source_and_run_at_the_receiver() -> None:
    tier = AclTier("red/db", 5, (AclRule(10, "in", "deny", ("10.1.0.9/32",), name="no-far"),))
    receiver = port("ra", RED, "10.1.0.2", 0x12, tiers=(tier,))
    made = built(HOST, RED, receiver, RED_B, RED_FAR)
    near = ip(RED_B, "10.1.0.2", tcp(), dst_mac=receiver.mac)
    far = bytes(Ether(src=FAR_MAC, dst=receiver.mac) / IP(src="10.1.0.9", dst="10.1.0.2") / tcp())
    assert engine(made).process(Hook.PORT_OUT, number_of(made, RED_B), near, now_s=0).verdict is not Verdict.DROP
    result = engine(made).process(Hook.OVERLAY_IN, 5001, far, vtep=IPv4Address(OTHER_VTEP), now_s=0)
    assert result.denied_by is not None
    assert (result.denied_by.layer, result.denied_by.rule.name) == ("acl", "no-far")


def test_pass_hands_over_to_the_next_tier_and_defaults_come_last() -> None:
    first = AclTier("red/first", 1, (AclRule(0, "out", "pass", protocol=6), AclRule(5, "out", "deny", protocol=17)))
    second = AclTier("red/second", 2, (AclRule(0, "out", "allow", protocol=6, ports=((80, 80),)),))
    sender = port("ra", RED, "10.1.0.2", 0x12, tiers=(second, first), default_out="deny")
    to_b = {dport: ip(sender, "10.1.0.3", tcp(dport), dst_mac=RED_B.mac) for dport in (80, 81)}
    assert _send(sender, to_b[80])[0] is Verdict.REDIRECT_PORT
    assert _send(sender, to_b[81]) == (Verdict.DROP, "acl", "")
    datagram = ip(sender, "10.1.0.3", udp(80), dst_mac=RED_B.mac)
    assert _send(sender, datagram) == (Verdict.DROP, "acl", "red/first[1]")


def test_default_deny_still_answers_arp() -> None:
    sender = port("ra", RED, "10.1.0.2", 0x12, default_in="deny", default_out="deny")
    assert _send(sender, arp_request(sender, "10.1.0.3"))[0] is Verdict.REPLY


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ((AclRule(10, "out", "allow"), AclRule(10, "out", "deny")), "different actions"),
        ((AclRule(70000, "out", "allow"),), "70000"),
        ((AclRule(10, "out", "allow", ("10.1.0.3/24",)),), "host bits"),
        ((AclRule(10, "out", "allow", dscp=64),), "0..63"),
        ((AclRule(10, "out", "deny", dscp=46),), "only allow"),
        ((AclRule(10, "out", "allow", dscp=46, log=True),), "only allow has one"),
        ((AclRule(10, "out", "allow"), AclRule(10, "out", "allow", dscp=46)), "different actions"),
    ],
)
def test_a_policy_that_makes_no_layer_stops_only_its_port(rules: tuple[AclRule, ...], words: str) -> None:
    bad = _with_policy(*rules)
    made = built(HOST, RED, bad, RED_B)
    assert words in error_of(made, bad)
    assert [one.name for one in made.engine.ports] == ["red/rb"]
    result = engine(made).process(Hook.PORT_OUT, 99, ip(bad, "10.1.0.3", tcp()), now_s=0)
    assert result.reason is DropReason.UNKNOWN_PORT


def test_a_host_without_underlay_says_so_to_host_and_remotes() -> None:
    host = HostGoal("self", underlay="172.31.9.9", uplink="lan0")
    made = built(host, RED, RED_A, RED_FAR, underlays=(), underlay_error="no interface has 172.31.9.9")
    assert made.tunnel is None
    assert "172.31.9.9" in error_of(made, host)
    assert "not reachable" in error_of(made, RED_FAR)
    assert VTEP not in error_of(made, host)
