"""Dual stack and several subnets: guard, spaces and routes of both families, judged by the reference engine."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from agent_kit import (
    HOST,
    UPLINK,
    arp_request,
    built,
    engine,
    error_of,
    ip,
    ip6,
    mapping,
    nat,
    number_of,
    overlay,
    port,
    remote,
    tcp,
    udp,
)
from scapy.layers.dhcp6 import DHCP6_Advertise
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from policy.addresses import held_addresses, link_local
from southbound.messages import AclRule, AclTier, NetworkGoal, PortGoal, Subnet
from vfp.model import Allow, HostStack, LocalPort, Virtual
from vfp.reasons import DropReason
from vfp.reference import Hook, Result, Verdict

UPLINK_6 = replace(UPLINK, addresses6=("2001:db8:ff::10/64", "fd77::10/64"))

NAT = nat(1, "192.168.1.0/24", "fd00:1::/64", "192.168.7.0/24", "fd00:7::/64")
WEB = port("web", NAT, "192.168.1.5", 5, address6="fd00:1::5/64")
APP = port("app", NAT, "192.168.7.6", 6, address6="fd00:7::6/64")
OLD = port("old", NAT, "192.168.1.8", 8)
NEW = port("new", NAT, "", 9, address6="fd00:1::9/64")
RED = overlay(5001, "10.1.0.0/24", "fd00:5001::/64")
RED_A = port("ra", RED, "10.1.0.2", 0x12, address6="fd00:5001::2/64")
RED_B = port("rb", RED, "10.1.0.3", 0x13, address6="fd00:5001::3/64")
RED_FAR = remote("rf", RED, "10.1.0.9", 0x19, address6="fd00:5001::9")
FAR_MAC = RED_FAR.macs.hex(":")
OBJECTS = (HOST, NAT, RED, WEB, APP, OLD, NEW, RED_A, RED_B, RED_FAR)

LL = {one.id: str(held_addresses(one)[-1]) for one in (WEB, APP, RED_A, RED_B)}


def send(sender: PortGoal, frame: bytes, *objects: object, **more: object) -> Result:
    made = built(*(objects or OBJECTS), **({"uplink": UPLINK_6} | more))  # type: ignore[arg-type]
    return engine(made).process(Hook.PORT_OUT, number_of(made, sender), frame, now_s=0)


def neighbour(sender: PortGoal, packet: Packet, src: str, dst: str = "ff02::1", **fields: str) -> bytes:
    frame = Ether(src=fields.get("src_mac", sender.mac), dst="33:33:00:00:00:01")
    return bytes(frame / IPv6(src=src, dst=dst, hlim=255) / packet)


def solicitation(sender: PortGoal, target: str, src: str, mac: str = "") -> bytes:
    packet = ICMPv6ND_NS(tgt=target)
    if src != "::":
        packet /= ICMPv6NDOptSrcLLAddr(lladdr=mac or sender.mac)
    group = f"ff02::1:ff{bytes.fromhex(target_bytes(target)[-6:]).hex()[:2]}:{target_bytes(target)[-4:]}"
    return neighbour(sender, packet, src, group)


def target_bytes(target: str) -> str:
    from ipaddress import IPv6Address

    return IPv6Address(target).packed.hex()


def test_a_link_local_address_is_made_from_the_mac() -> None:
    assert str(link_local(bytes.fromhex("34567890abcd".replace(":", "")))) == "fe80::3656:78ff:fe90:abcd"    # RFC 2464
    assert held_addresses(OLD) == (IPv4Address("192.168.1.8"),)


def test_links_have_an_address_and_a_gateway_of_each_family_from_their_own_subnets() -> None:
    made = built(*OBJECTS)
    assert made.ports[APP.id].addresses == ("192.168.7.6/24", "fd00:7::6/64")
    assert made.ports[APP.id].gateways == ("192.168.7.1", "fd00:7::1")
    assert (made.ports[OLD.id].gateways, made.ports[NEW.id].addresses) == (("192.168.1.1",), ("fd00:1::9/64",))
    bridge = made.bridges[NAT.id]
    assert bridge.addresses == ("192.168.1.1/24", "fd00:1::1/64", "192.168.7.1/24", "fd00:7::1/64")
    assert made.neighbours[bridge.name] == {
        "192.168.1.5": WEB.mac, "fd00:1::5": WEB.mac, "192.168.7.6": APP.mac, "fd00:7::6": APP.mac,
        "192.168.1.8": OLD.mac, "fd00:1::9": NEW.mac,
    }
    assert made.faults == ()


def test_spaces_know_both_families_and_link_local_addresses() -> None:
    made = built(*OBJECTS)
    spaces = {space.id: {str(address): place for address, place in space.entries} for space in made.engine.spaces}
    inside = spaces[NAT.space]
    assert isinstance(inside["fd00:7::1"], HostStack)
    assert inside["fd00:1::5"] == inside[LL[WEB.id]] == inside["192.168.1.5"]
    assert isinstance(inside["fd00:1::9"], LocalPort)
    red = spaces[RED.space]
    assert isinstance(red["fd00:5001::1"], Virtual)
    (blocks,) = (space.blocks for space in made.engine.spaces if space.id == RED.space)
    far = {(block.addresses, block.macs) for block in blocks}
    sixes = IPv6Address("fd00:5001::9").packed, link_local(RED_FAR.macs).packed
    assert far == {(packed, RED_FAR.macs) for packed in (bytes((10, 1, 0, 9)), *sixes)}


@pytest.mark.parametrize(
    ("frame", "receiver"),
    [
        (ip(WEB, "192.168.7.6", tcp()), APP),
        (ip6(WEB, "fd00:7::6", tcp()), APP),
        (ip6(WEB, "fd00:1::9", udp()), NEW),
        (ip6(WEB, LL[APP.id], ICMPv6EchoRequest(), src=LL[WEB.id]), APP),
    ],
)
def test_endpoints_of_all_subnets_reach_each_other_untranslated(frame: bytes, receiver: PortGoal) -> None:
    made = built(*OBJECTS)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, WEB), frame, now_s=0)
    assert (result.verdict, result.port) == (Verdict.REDIRECT_PORT, number_of(made, receiver))
    there, here = Ether(result.frame), Ether(frame)
    assert there.dst == receiver.mac
    assert there.payload.src == here.payload.src


@pytest.mark.parametrize(("target", "mac"), [
    ("fd00:5001::3", RED_B.mac), ("fd00:5001::9", FAR_MAC), ("fd00:5001::1", RED.gateway_mac),
    (LL[RED_B.id], RED_B.mac),
])
@pytest.mark.parametrize("source", ["fd00:5001::2", LL[RED_A.id], "::"])
def test_solicitations_are_answered_locally_and_probes_see_who_is_there(target: str, mac: str, source: str) -> None:
    result = send(RED_A, solicitation(RED_A, target, source))
    assert result.verdict is Verdict.REPLY
    assert Ether(result.frame)[ICMPv6NDOptDstLLAddr].lladdr == mac


def test_a_probe_for_its_own_address_finds_nobody() -> None:
    result = send(RED_A, solicitation(RED_A, "fd00:5001::2", "::"))
    assert (result.verdict, result.reason) == (Verdict.DROP, DropReason.ARP_UNANSWERED)


@pytest.mark.parametrize("frame", [
    ip6(RED_A, "fd00:5001::3", udp(), src="fd00:5001::9"),
    ip6(RED_A, "fd00:5001::3", udp(), src_mac="02:00:00:00:00:99"),
    ip6(RED_A, "fd00:5001::3", udp(), src="fe80::1"),
    ip6(RED_A, "fd00:5001::3", udp(), src="::"),
    solicitation(RED_A, "fd00:5001::3", "fd00:5001::9"),
    solicitation(RED_A, "fd00:5001::3", "fd00:5001::2", mac="02:00:00:00:00:99"),
    neighbour(RED_A, ICMPv6ND_NA(tgt="fd00:5001::3", S=0) / ICMPv6NDOptDstLLAddr(lladdr=RED_A.mac), "fd00:5001::2"),
    neighbour(RED_A, ICMPv6ND_NA(tgt="fd00:5001::2", S=0) / ICMPv6NDOptDstLLAddr(lladdr=RED_B.mac), "fd00:5001::2"),
    neighbour(RED_A, ICMPv6ND_RA(), LL[RED_A.id]),
    neighbour(RED_A, ICMPv6ND_Redirect(tgt="fd00:5001::2", dst="fd00:5001::3"), LL[RED_A.id], "fd00:5001::3"),
    ip6(RED_A, "fd00:5001::3", UDP(sport=547, dport=546) / DHCP6_Advertise()),
    ip(RED_A, "10.1.0.3", UDP(sport=67, dport=68)),
], ids=["address", "mac", "link-local", "unspecified", "nd-source", "nd-mac", "na-target", "na-mac", "ra", "redirect",
        "dhcpv6", "dhcp"])
def test_guard_lets_an_endpoint_claim_only_itself(frame: bytes) -> None:
    result = send(RED_A, frame)
    assert (result.verdict, result.layer) == (Verdict.DROP, "guard")


def test_an_endpoint_without_an_ipv6_address_has_no_ipv6() -> None:
    frame = bytes(Ether(src=OLD.mac, dst=WEB.mac) / IPv6(src="fd00:1::8", dst="fd00:1::5") / udp())
    assert send(OLD, frame).layer == "guard"
    link = bytes(Ether(src=OLD.mac, dst=WEB.mac) / IPv6(src=str(link_local(bytes.fromhex("020000000008"))),
                                                        dst="fd00:1::5") / udp())
    assert send(OLD, link).layer == "guard"


def test_an_endpoint_without_an_ipv4_address_sends_no_ipv4_and_claims_none_by_arp() -> None:
    frame = bytes(Ether(src=NEW.mac, dst=WEB.mac) / IP(src="192.168.1.9", dst="192.168.1.5") / udp())
    assert send(NEW, frame).layer == "guard"
    assert send(NEW, arp_request(replace(NEW, address="192.168.1.9/24"), "192.168.1.5")).layer == "guard"


def test_ipv6_is_routed_by_the_uplink_unless_it_is_to_be_translated() -> None:
    result = send(WEB, ip6(WEB, "2001:db8::80", tcp()))
    assert result.verdict is Verdict.REDIRECT_UPLINK
    assert Ether(result.frame)[IPv6].src == "fd00:1::5"
    hidden = _with_nat(ipv6="masquerade")
    outside, near = (send(WEB, ip6(WEB, dst, tcp()), HOST, hidden, WEB) for dst in ("2001:db8::80", "fd77::80"))
    assert Ether(outside.frame)[IPv6].src == "2001:db8:ff::10"
    assert Ether(near.frame)[IPv6].src == "fd77::10"


def test_masquerade_without_an_ipv6_address_of_the_uplink_says_so_and_keeps_ipv4() -> None:
    hidden = _with_nat(ipv6="masquerade")
    made = built(HOST, hidden, WEB)
    assert "no IPv6 address" in error_of(made, hidden)
    run = engine(made)
    assert run.process(Hook.PORT_OUT, 1, ip(WEB, "172.16.0.80", tcp()), now_s=0).verdict is Verdict.REDIRECT_UPLINK
    assert run.process(Hook.PORT_OUT, 1, ip6(WEB, "2001:db8::80", tcp()), now_s=0).layer == "nat"


@pytest.mark.parametrize("destination", ["ff02::fb", "::1", "fe80::7:7"])
def test_what_no_ipv6_router_forwards_stays(destination: str) -> None:
    assert send(WEB, ip6(WEB, destination, udp())).verdict is Verdict.DROP


def test_other_nat_networks_are_out_of_reach_in_both_families() -> None:
    other = nat(2, "192.168.2.0/24", "fd00:2::/64")
    db = port("db", other, "192.168.2.5", 7, address6="fd00:2::5/64")
    result = send(WEB, ip6(WEB, "fd00:2::5", tcp()), HOST, NAT, other, WEB, db)
    assert result.denied_by is not None
    assert result.denied_by.rule is not None
    assert result.denied_by.rule.name == "other-network"


def test_an_ipv6_mapping_and_its_addresses() -> None:
    goal = mapping("m", WEB, 8080, 80, external_address="::", internal_address="fd00:1::5")
    made = built(*OBJECTS, goal, uplink=UPLINK_6)
    assert error_of(made, goal) == ""
    assert made.external_addresses[goal.id] == ("2001:db8:ff::10", "fd77::10")
    frame = bytes(Ether(src="02:bb:00:00:00:01", dst=UPLINK.mac) / IPv6(src="2001:db8::90", dst="fd77::10") / tcp(8080))
    result = engine(made).process(Hook.UPLINK_IN, 1, frame, now_s=0)
    assert (result.verdict, Ether(result.frame)[IPv6].dst) == (Verdict.REDIRECT_PORT, "fd00:1::5")


def test_a_policy_without_peers_is_of_both_families_and_never_of_nd() -> None:
    tier = AclTier("red/p", 1, (AclRule(1, "out", "deny", name="nothing"),))
    closed = replace(RED_A, tiers=(tier,))
    objects = (HOST, RED, closed, RED_B)
    for frame in (ip(closed, "10.1.0.3", udp()), ip6(closed, "fd00:5001::3", udp())):
        assert send(closed, frame, *objects).layer == "acl"
    assert send(closed, solicitation(closed, "fd00:5001::3", "fd00:5001::2"), *objects).verdict is Verdict.REPLY


def test_peers_of_both_families_are_one_set() -> None:
    rule = AclRule(1, "out", "allow", ("10.1.0.3/32", "fd00:5001::3/128"), name="to-b")
    closed = replace(RED_A, tiers=(AclTier("red/p", 1, (rule,)),), default_out="deny")
    made = built(HOST, RED, closed, RED_B, RED_FAR)
    (given,) = made.engine.sets
    assert [str(member) for member in given.members] == ["10.1.0.3/32", "fd00:5001::3/128"]
    run = engine(made)
    for frame, verdict in ((ip6(closed, "fd00:5001::3", udp()), Verdict.REDIRECT_PORT),
                           (ip6(closed, "fd00:5001::9", udp()), Verdict.DROP)):
        assert run.process(Hook.PORT_OUT, number_of(made, closed), frame, now_s=0).verdict is verdict


def test_a_rule_for_mapped_traffic_asks_the_engine_for_that() -> None:
    tier = AclTier("default/m", 1, (AclRule(1, "in", "allow", protocol=6, ports=((80, 80),), mapped=True),))
    made = built(HOST, NAT, replace(WEB, tiers=(tier,), default_in="deny"), compiled=False)
    acl = next(layer for layer in made.engine.ports[0].layers if layer.name == "acl")
    (rule,) = acl.groups_in[-1].rules
    assert (rule.match.mapped, rule.action) == (True, Allow())


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (replace(WEB, id="x", address="", address6=""), "neither"),
        (replace(WEB, id="x", address="", address6="fd00:9::5/64"), "outside network"),
        (replace(WEB, id="x", address="", address6="fd00:7::1/64"), "gateway"),
        (replace(WEB, id="x", address="", address6="192.168.1.9/24"), "192.168.1.9"),
        (replace(WEB, id="z", address="192.168.1.77/24"), "fd00:1::5 is that of default/web"),
        (replace(WEB, id="z", address="", address6="fd00:1::77/64"), "is that of default/web too"),     # one MAC
        (replace(NAT, id="x", space=99, subnets=(Subnet("fd01::/64", "fd02::1"),)), "outside prefix"),
        (replace(NAT, id="x", space=99, subnets=(Subnet("fd01::/64", "fd01::1"), Subnet("fd01::/48", "fd01::2"))),
         "overlap"),
    ],
)
def test_one_bad_object_is_one_fault(bad: PortGoal | NetworkGoal, words: str) -> None:
    made = built(*OBJECTS, bad)
    assert words in error_of(made, bad)
    assert len(made.faults) == 1


def _with_nat(**fields: object) -> NetworkGoal:
    return replace(NAT, nat=replace(NAT.nat, **fields))  # type: ignore[arg-type]
