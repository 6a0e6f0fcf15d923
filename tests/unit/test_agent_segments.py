"""Networks on the segment behind an uplink: transparent, l2bridge, l2tunnel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from pathlib import Path

import pytest
from agent_kit import (
    HOST,
    UPLINK,
    FakeDatapath,
    FakeSwitch,
    arp_request,
    built,
    error_of,
    goals,
    ids_for,
    ip,
    nat,
    network_of,
    number_of,
    port,
    reconciler,
    tcp,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from test_agent_overlay import rules_of, space_of

from agent.announce import frame
from agent.build import Built
from southbound.messages import FloodGoal, NetworkGoal, PortGoal
from vfp.model import AnswerArp, Flooding, Forward, LocalPort, Rate, Switch, ToUplink, Wire
from vfp.reference.explain import explain_frame
from vfp.reference.zones import Hook
from vswitch.links import UplinkState

ETH1 = UplinkState(7, "eth1", ("192.0.2.1/24",), 9000, "02:aa:00:00:00:07")
FLOOD = FloodGoal(1000, 2000)
TRANSPARENT = network_of("transparent", flood=FLOOD)
BRIDGE = network_of("l2bridge", "172.16.0.0/24", "fd16::/64", n=2)
TUNNEL = network_of("l2tunnel", "172.16.0.0/24", "fd16::/64", n=3)


def endpoint(network: NetworkGoal, n: int, **more: object) -> PortGoal:
    return port(f"e{n}", network, f"172.16.0.{n}", n, **more)


def test_a_transparent_network_switches_between_stations_and_its_wire() -> None:
    one, two = endpoint(TRANSPARENT, 21), endpoint(TRANSPARENT, 22)
    made = built(HOST, TRANSPARENT, one, two)
    space = space_of(made, TRANSPARENT)
    [uplink] = made.uplinks
    assert (uplink.name, uplink.mtu, uplink.loopback) == ("lan0", 1500, False)
    assert space.wire == Wire(uplink.id)
    assert space.flooding == Flooding(Rate(1000, 2000))
    assert space.stations == tuple((bytes((2, 0, 0, 0, 0, n)), number_of(made, goal))
                                   for n, goal in ((21, one), (22, two)))
    assert [rule.action for rule in rules_of(made, one)] == [Switch(TRANSPARENT.space)]
    assert made.promiscuous == {"lan0"}
    assert made.bridges == {}
    assert made.ports[one.id].gateways == ("172.16.0.1",)


@pytest.mark.parametrize("found", [BRIDGE, TUNNEL])
def test_on_a_proxied_wire_the_host_answers_for_its_endpoints(found: NetworkGoal) -> None:
    one = endpoint(found, 21, address6="fd16::21/64")
    made = built(HOST, found, one)
    space = space_of(made, found)
    assert space.wire == Wire(made.uplinks[0].id, proxy=True)
    assert made.promiscuous == frozenset()
    place = LocalPort(number_of(made, one), bytes((2, 0, 0, 0, 0, 21)))
    assert {str(address): location for address, location in space.entries} == {
        "172.16.0.21": place, "fd16::21": place, "fe80::ff:fe00:15": place}
    assert {rule.action for rule in rules_of(made, one) if rule.priority == 0} == {AnswerArp(found.space, proxy=True)}


def test_l2bridge_neighbours_are_direct_and_the_rest_is_the_segments() -> None:
    one, two = endpoint(BRIDGE, 21, address6="fd16::21/64"), endpoint(BRIDGE, 22)
    made = built(HOST, BRIDGE, one, two)
    [here] = made.engine.sets
    assert here.id == BRIDGE.space
    assert {str(member) for member in here.members} == {
        "172.16.0.21/32", "fd16::21/128", "fe80::ff:fe00:15/128", "172.16.0.22/32"}
    actions = {(rule.priority, rule.match.dst_set): rule.action for rule in rules_of(made, one) if rule.priority >= 10}
    uplink = made.uplinks[0].id
    assert actions == {(10, BRIDGE.space): Forward(BRIDGE.space), (20, None): ToUplink(uplink, bridged=True)}


def test_a_bridge_is_for_the_subnets_of_the_uplink() -> None:
    one = endpoint(BRIDGE, 21)
    made = built(HOST, BRIDGE, one)
    assert "lan0 has no address in fd16::/64" in error_of(made, BRIDGE)
    assert made.engine.ports
    both = replace(UPLINK, addresses6=("fd16::10/64",))
    assert built(HOST, BRIDGE, one, segments={"": both}).faults == ()


def test_l2tunnel_sends_all_to_the_gateway_of_its_subnet() -> None:
    one = endpoint(TUNNEL, 21, address6="fd16::21/64")
    made = built(HOST, TUNNEL, one)
    uplink = made.uplinks[0].id
    found = {str(rule.match.src): rule.action for rule in rules_of(made, one) if rule.priority >= 20}
    assert found == {
        "172.16.0.0/24": ToUplink(uplink, bridged=True, via=IPv4Address("172.16.0.1")),
        "fd16::/64": ToUplink(uplink, bridged=True, via=IPv6Address("fd16::1")),
        "fe80::/64": ToUplink(uplink, bridged=True, via=IPv6Address("fd16::1")),
    }
    assert not any(isinstance(rule.action, Forward) for rule in rules_of(made, one))


def test_a_host_may_have_several_uplinks_and_one_may_serve_several() -> None:
    far = replace(TRANSPARENT, uplink="eth1")
    web_network = nat(1)
    one, two, web = endpoint(far, 21), endpoint(BRIDGE, 22), port("web", web_network, "192.168.1.5", 5)
    segments = {"": UPLINK, "eth1": ETH1}
    made = built(HOST, far, BRIDGE, web_network, one, two, web, segments=segments)
    assert [uplink.name for uplink in made.uplinks] == ["lan0", "eth1"]
    by_name = {uplink.name: uplink for uplink in made.uplinks}
    assert space_of(made, far).wire == Wire(by_name["eth1"].id)
    assert space_of(made, BRIDGE).wire == Wire(by_name["lan0"].id, proxy=True)
    assert {pool.uplink for pool in made.engine.pools} == {by_name["lan0"].id}
    assert (made.ports[one.id].mtu_bytes, made.ports[two.id].mtu_bytes) == (9000, 1500)
    ids = ids_for(HOST, far, BRIDGE, web_network, one, two, web, segments=segments)
    assert ids.uplinks == {"lan0": 1, "eth1": 2}


def test_an_unknown_uplink_is_told_by_network_and_endpoint() -> None:
    network = replace(TRANSPARENT, uplink="eth9")
    one = endpoint(network, 21)
    made = built(HOST, network, one, segments={}, segment_errors={"eth9": "uplink 'eth9': no such interface"})
    assert "no such interface" in error_of(made, network)
    assert "no such interface" in error_of(made, one)
    assert made.engine.ports == ()


def test_a_link_of_our_own_is_no_segment() -> None:
    network = replace(TRANSPARENT, uplink="slb1")
    web_network = nat(1)
    web = port("web", web_network, "192.168.1.5", 5)
    segments = {"slb1": UplinkState(300, "slb1", (), 1500, "02:fe:00:00:01:01")}
    made = built(HOST, network, web_network, web, endpoint(network, 21), segments=segments)
    assert "it is the host's own" in error_of(made, network)
    assert [one.name for one in made.engine.ports] == ["default/web"]


def test_a_mac_or_address_is_once_on_a_segment_whatever_the_network() -> None:
    second = network_of("transparent", "172.16.9.0/24", n=9, flood=FLOOD)
    one, two = endpoint(TRANSPARENT, 21), replace(port("x", second, "172.16.9.5", 21), id="uid-x")
    made = built(HOST, TRANSPARENT, second, one, two)
    assert "MAC 02:00:00:00:00:15 is that of default/e21" in error_of(made, two)
    assert [len(space.stations) for space in made.engine.spaces] == [1, 0]
    other = network_of("l2bridge", n=8)
    three, four = endpoint(BRIDGE, 31), replace(endpoint(other, 31), id="uid-y", mac="02:00:00:00:00:99")
    made = built(HOST, BRIDGE, other, three, four)
    assert "address 172.16.0.31 is that of default/e31" in error_of(made, four)
    own = endpoint(BRIDGE, 10)
    made = built(HOST, BRIDGE, own)
    assert "address 172.16.0.10 is that of the host, on lan0" in error_of(made, own)


def test_tags_and_dhcp_are_for_transparent_networks() -> None:
    one = endpoint(TRANSPARENT, 21, vlans=(100, 200))
    made = built(HOST, TRANSPARENT, one)
    assert made.engine.ports[0].vlans == (100, 200)
    for bad, words in (
        (endpoint(BRIDGE, 21, vlans=(100,)), "only transparent ones carry tags"),
        (endpoint(TRANSPARENT, 21, vlans=(4095,)), "of 1 to 4094"),
        (endpoint(TRANSPARENT, 21, vlans=tuple(range(1, 10))), "at most 8"),
        (replace(endpoint(BRIDGE, 21, dhcp=True), address=""), "DHCP server"),
    ):
        assert words in error_of(built(HOST, TRANSPARENT, BRIDGE, bad), bad)


ASKING = replace(port("dyn", TRANSPARENT, "", 41), dhcp=True)
DISCOVER = bytes(Ether(src=ASKING.mac, dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255")
                 / UDP(sport=68, dport=67))


def guard_says(made: Built, goal: PortGoal, frame: bytes) -> str:
    """Which rule of the guard let a frame through or not; the default's name is empty."""
    said = explain_frame(made.engine, Hook.PORT_OUT, number_of(made, goal), frame, 0.0)
    return next((ref.rule.name for ref in said.decision.hits if ref.layer == "guard"), "")


def test_who_asks_by_dhcp_may_ask_and_probe_and_then_be_what_it_was_leased() -> None:
    before = built(HOST, TRANSPARENT, ASKING)
    probe = bytes(Ether(src=ASKING.mac, dst="ff:ff:ff:ff:ff:ff")
                  / ARP(op=1, hwsrc=ASKING.mac, psrc="0.0.0.0", pdst="172.16.0.77"))
    leased = ip(ASKING, "172.16.0.5", tcp(), src="172.16.0.77")
    claim = bytes(Ether(src=ASKING.mac, dst="ff:ff:ff:ff:ff:ff")
                  / ARP(op=1, hwsrc=ASKING.mac, psrc="172.16.0.77", pdst="172.16.0.77"))
    assert guard_says(before, ASKING, DISCOVER) == "dhcp-client"
    assert guard_says(before, ASKING, probe) == "arp-probe"
    assert guard_says(before, ASKING, leased) == ""
    assert guard_says(before, ASKING, claim) == "duplicate-address"
    after = built(HOST, TRANSPARENT, ASKING, leases={ASKING.id: IPv4Interface("172.16.0.77/24")})
    assert guard_says(after, ASKING, leased) == "own-ipv4"
    assert guard_says(after, ASKING, claim) == "own-arp"
    assert after.leases == {ASKING.id: IPv4Interface("172.16.0.77/24")}
    assert after.engine.ports[0].gateways == (IPv4Address("172.16.0.1"),)


def test_only_who_is_told_to_ask_may_and_nobody_serves() -> None:
    static = endpoint(TRANSPARENT, 21)
    made = built(HOST, TRANSPARENT, static, ASKING)
    asks = bytes(Ether(src=static.mac, dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255")
                 / UDP(sport=68, dport=67))
    assert guard_says(made, static, asks) == ""
    offer = ip(static, "255.255.255.255", UDP(sport=67, dport=68), dst_mac="ff:ff:ff:ff:ff:ff")
    assert guard_says(made, static, offer) == "no-dhcp-server"
    assert guard_says(made, ASKING, bytes(Ether(DISCOVER[:14]) / IP(src="0.0.0.0", dst="255.255.255.255")
                                          / UDP(sport=67, dport=68))) == "no-dhcp-server"


def test_a_stranger_to_a_lease_is_not_served_by_it() -> None:
    static = endpoint(TRANSPARENT, 21)
    made = built(HOST, TRANSPARENT, static, leases={static.id: IPv4Interface("172.16.0.88/24")})
    assert guard_says(made, static, ip(static, "172.16.0.5", tcp(), src="172.16.0.88")) == ""


def test_an_announcement_of_anothers_address_is_refused_by_name() -> None:
    one = endpoint(BRIDGE, 21)
    made = built(HOST, BRIDGE, one, endpoint(BRIDGE, 22))
    lie = bytes(Ether(src=one.mac, dst="ff:ff:ff:ff:ff:ff")
                / ARP(op=2, hwsrc=one.mac, psrc="172.16.0.22", pdst="172.16.0.22"))
    assert guard_says(made, one, lie) == "duplicate-address"
    assert guard_says(made, one, arp_request(one, "172.16.0.22")) == "own-arp"


def test_the_segment_is_told_whose_an_address_is() -> None:
    one = endpoint(BRIDGE, 21, address6="fd16::21/64")
    two = port("two", TRANSPARENT, "172.16.0.22", 22)
    made = built(HOST, BRIDGE, TRANSPARENT, one, two)
    said = {(str(what.address), what.mac.hex(":")) for what in made.announcements}
    assert said == {("172.16.0.21", UPLINK.mac), ("fd16::21", UPLINK.mac), ("fe80::ff:fe00:15", UPLINK.mac),
                    ("172.16.0.22", two.mac)}
    for what in made.announcements:
        assert what.ifindex == UPLINK.ifindex
        heard = Ether(frame(what))
        assert heard.src == what.mac.hex(":")
        if what.address.version == 4:
            assert (heard[ARP].op, heard[ARP].psrc, heard[ARP].pdst) == (1, str(what.address), str(what.address))
            assert (heard.dst, heard[ARP].hwsrc) == ("ff:ff:ff:ff:ff:ff", heard.src)
        else:
            told = heard[ICMPv6ND_NA]
            assert (told.tgt, told.O, told.S, told.R) == (str(what.address), 1, 0, 0)
            assert told[ICMPv6NDOptDstLLAddr].lladdr == heard.src
            assert (heard[IPv6].hlim, heard.dst) == (255, "33:33:00:00:00:01")
            right = told.cksum
            del told.cksum
            assert Ether(bytes(heard))[ICMPv6ND_NA].cksum == right


def test_an_announcement_is_sent_once_and_again_when_the_address_comes_again(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    one, two = endpoint(BRIDGE, 21), endpoint(BRIDGE, 22)
    worker = reconciler(tmp_path, switch, datapath)
    worker.reconcile(goals(HOST, BRIDGE, one))
    worker.reconcile(goals(HOST, BRIDGE, one))
    assert len(switch.sent) == 1
    worker.reconcile(goals(HOST, BRIDGE, two))
    worker.reconcile(goals(HOST, BRIDGE, one, two))
    assert [Ether(sent)[ARP].psrc for _, sent in switch.sent] == ["172.16.0.21", "172.16.0.22", "172.16.0.21"]


def test_an_uplink_without_a_mac_carries_no_bridge() -> None:
    tunnel = replace(UPLINK, mac="")
    one = endpoint(BRIDGE, 21)
    assert "needs an Ethernet link" in error_of(built(HOST, BRIDGE, one, segments={"": tunnel}), BRIDGE)
