"""Overlay and private networks beyond addresses: peers, routes, ways out, broadcast, the gateway."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network

import pytest
from agent_kit import (
    HOST,
    HOST_ADDRESS,
    OTHER_VTEP,
    built,
    engine,
    error_of,
    goals,
    ids_for,
    ip,
    nat,
    network_of,
    number_of,
    observed,
    overlay,
    port,
    remotes,
    tcp,
    udp,
)
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from agent.build import Built, build
from policy.addresses import link_local
from policy.world import exit_uid
from southbound.messages import FloodGoal, NetworkGoal, PortGoal, RouteGoal
from vfp.compile import Compiler
from vfp.datapath.engine import Hook
from vfp.model import Flooding, Forward, LocalPort, Rate, Remote, Route, Rule, Space, Switch, ToUplink, Virtual
from vfp.reasons import DropReason
from vfp.reference import Verdict
from vswitch.links import OwnedLink

RED, BLUE, GREEN = overlay(5001, "10.1.0.0/24"), overlay(5002, "10.2.0.0/24"), overlay(5003, "10.3.0.0/24")
RED_P = replace(RED, peers=(BLUE.id,))
BLUE_P = replace(BLUE, peers=(RED.id, GREEN.id))
A, B = port("a", RED, "10.1.0.2", 0x12), port("b", BLUE, "10.2.0.2", 0x22)
FAR_BLUE = remotes(BLUE, ("far", "10.2.0.9", 0x29, ""))
FAR_RED = remotes(RED, ("farr", "10.1.0.9", 0x19, ""))


def space_of(made: Built, network: NetworkGoal) -> Space:
    return next(space for space in made.engine.spaces if space.id == network.space)


def rules_of(made: Built, endpoint: PortGoal, layer: str = "vnet") -> list[Rule]:
    one = next(one for one in made.engine.ports if one.id == number_of(made, endpoint))
    return [rule for found in one.layers if found.name == layer for group in found.groups_out for rule in group.rules]


def test_peers_are_in_each_others_space_with_the_vni_of_who_begins() -> None:
    made = built(HOST, RED_P, BLUE_P, A, B, FAR_RED, FAR_BLUE)
    red, blue = dict(space_of(made, RED).entries), dict(space_of(made, BLUE).entries)
    assert red[IPv4Address("10.2.0.2")] == LocalPort(number_of(made, B), bytes((2, 0, 0, 0, 0, 0x22)))
    assert blue[IPv4Address("10.1.0.2")] == LocalPort(number_of(made, A), bytes((2, 0, 0, 0, 0, 0x12)))
    assert {(block.vni, len(block.macs) // 6) for block in space_of(made, RED).blocks} == {(5001, 1)}
    assert len(space_of(made, RED).blocks) == len(space_of(made, BLUE).blocks) == 2
    to_blue = ip(A, "10.2.0.9", tcp(), dst_mac=RED.gateway_mac)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, A), to_blue, now_s=0)
    assert (result.verdict, result.vni) == (Verdict.TUNNEL, 5001)
    local = ip(A, "10.2.0.2", tcp(), dst_mac=RED.gateway_mac)
    assert engine(made).process(Hook.PORT_OUT, number_of(made, A), local, now_s=0).port == number_of(made, B)


def test_a_peer_that_this_host_does_not_know_is_no_fault() -> None:
    made = built(HOST, RED_P, A, FAR_RED)
    assert made.faults == ()
    assert {rule.match.dst for rule in rules_of(made, A) if isinstance(rule.action, Forward)} == {
        ip_network("10.1.0.0/24"), ip_network("fe80::/64")}


def test_networks_that_are_not_peered_do_not_reach_each_other() -> None:
    made = built(HOST, RED_P, BLUE_P, GREEN, A, B, port("g", GREEN, "10.3.0.2", 0x32), FAR_BLUE)
    frame = ip(A, "10.3.0.2", tcp(), dst_mac=RED.gateway_mac)
    assert engine(made).process(Hook.PORT_OUT, number_of(made, A), frame, now_s=0).verdict is Verdict.DROP


@pytest.mark.parametrize(("goal", "route"), [
    (RouteGoal("10.9.0.0/16", address="10.1.0.2"), Route(IPv4Network("10.9.0.0/16"), IPv4Address("10.1.0.2"))),
    (RouteGoal("0.0.0.0/0", vteps=(OTHER_VTEP,)), Route(IPv4Network("0.0.0.0/0"), Remote(
        IPv4Address(OTHER_VTEP), 5001, bytes.fromhex(RED.gateway_mac.replace(":", ""))))),
])
def test_routes_are_by_an_address_or_another_host(goal: RouteGoal, route: Route) -> None:
    network = replace(RED, routes=(goal,))
    made = built(HOST, network, A, FAR_RED)
    assert space_of(made, RED).routes == (route,)
    assert any(rule.match.dst == route.prefix and rule.action == Forward(5001) for rule in rules_of(made, A))


@pytest.mark.parametrize(("goal", "words"), [
    (RouteGoal("10.9.0.0/99", address="10.1.0.2"), "10.9.0.0/99"),
    (RouteGoal("10.9.0.0/16", address="10.1.0"), "10.1.0"),
    (RouteGoal("fd09::/64", address="10.1.0.2"), "different families"),
    (RouteGoal("10.1.0.0/24", address="10.1.0.2"), "subnet of the network itself"),
    (RouteGoal("10.9.0.0/16", vteps=("2001:db8::2",)), "both one of a family"),
])
def test_a_bad_route_is_told_of_and_the_others_hold(goal: RouteGoal, words: str) -> None:
    good = RouteGoal("10.8.0.0/16", address="10.1.0.2")
    network = replace(RED, routes=(goal, good))
    made = built(HOST, network, A)
    assert words in error_of(made, network)
    assert [str(route.prefix) for route in space_of(made, RED).routes] == ["10.8.0.0/16"]


def test_a_router_may_send_what_it_forwards_and_answers_for_itself_alone() -> None:
    nva = replace(port("nva", RED, "10.1.0.7", 0x17), forwards=("10.9.0.0/16",))
    made = built(HOST, RED, A, nva)
    out = engine(made)
    through = ip(nva, "10.1.0.2", tcp(), src="10.9.1.1", dst_mac=A.mac)
    other = ip(nva, "10.1.0.2", tcp(), src="10.8.1.1", dst_mac=A.mac)
    assert out.process(Hook.PORT_OUT, number_of(made, nva), through, now_s=0).port == number_of(made, A)
    assert out.process(Hook.PORT_OUT, number_of(made, nva), other, now_s=0).layer == "guard"
    bad = replace(nva, forwards=("10.9.0.1/16",))
    assert "host bits" in error_of(built(HOST, RED, A, bad), bad)


def test_egress_by_nat_leaves_with_the_hosts_address_and_only_then() -> None:
    network = replace(RED, egress=True)
    made = built(HOST, network, A, FAR_RED)
    frame = ip(A, "8.8.8.8", udp(), dst_mac=RED.gateway_mac)
    result = engine(made).process(Hook.PORT_OUT, number_of(made, A), frame, now_s=0)
    assert result.verdict is Verdict.REDIRECT_UPLINK
    assert {pool.addresses for pool in made.engine.pools} >= {(IPv4Address(HOST_ADDRESS),)}
    assert made.reserved_ports == ((20000, 32767),)
    inside = ip(A, "10.1.0.9", tcp(), dst_mac=RED.gateway_mac)
    assert engine(made).process(Hook.PORT_OUT, number_of(made, A), inside, now_s=0).verdict is Verdict.TUNNEL
    plain = built(HOST, RED, A, FAR_RED)
    assert (plain.engine.pools, plain.uplinks) == ((), ())


def test_egress_does_not_lead_into_a_nat_network_of_the_host_nor_send_vxlan() -> None:
    network, other = replace(RED, egress=True), nat(1)
    web = port("web", other, "192.168.1.5", 5)
    made = built(HOST, network, other, A, web)
    forged = ip(A, OTHER_VTEP, udp(4789), dst_mac=RED.gateway_mac)
    for frame in (ip(A, "192.168.1.5", tcp(), dst_mac=RED.gateway_mac), forged):
        assert engine(made).process(Hook.PORT_OUT, number_of(made, A), frame, now_s=0).verdict is Verdict.DROP


def test_an_exit_is_a_port_without_a_link_for_whoever_comes_by_a_route() -> None:
    network = replace(RED, routes=(RouteGoal("0.0.0.0/0", vteps=("172.31.0.1",), here=True),))
    made = built(HOST, network, FAR_RED)
    [exit_port] = made.engine.ports
    assert (exit_port.exit_of, exit_port.ifindex, exit_port.name) == (5001, 0, "red/net exit")
    assert made.port_ids == {exit_uid(network): exit_port.id}
    assert [layer.name for layer in exit_port.layers] == ["nat", "vnet"]
    assert space_of(made, RED).routes == (
        Route(IPv4Network("0.0.0.0/0"), LocalPort(exit_port.id, exit_port.mac)),)
    outside = [rule for group in exit_port.layers[1].groups_out for rule in group.rules if rule.name == "outside"]
    assert {rule.action for rule in outside} == {ToUplink(made.uplinks[0].id)}
    assert made.links() == {"slvx0"}
    frame = bytes(Ether(src="02:00:00:00:00:19", dst=network.gateway_mac) / IP(src="10.1.0.9", dst="8.8.8.8") / udp())
    result = engine(made).process(Hook.OVERLAY_IN, 5001, frame, vtep=IPv4Address(OTHER_VTEP), now_s=0)
    assert result.verdict is Verdict.REDIRECT_UPLINK
    assert Ether(result.frame)[IP].src == HOST_ADDRESS
    stranger = bytes(Ether(src="02:00:00:00:00:20", dst=network.gateway_mac)
                     / IP(src="10.1.0.20", dst="8.8.8.8") / udp())
    result = engine(made).process(Hook.OVERLAY_IN, 5001, stranger, vtep=IPv4Address(OTHER_VTEP), now_s=0)
    assert result.reason is DropReason.UNKNOWN_SOURCE


def test_what_comes_to_the_old_host_is_dropped_as_moved() -> None:
    made = built(HOST, RED, A, FAR_RED)
    frame = bytes(Ether(src="02:00:00:00:00:19", dst="02:00:00:00:00:77") / IP(src="10.1.0.9", dst="10.1.0.77") / tcp())
    moved = remotes(RED, ("gone", "10.1.0.77", 0x77, ""), host="h3", vteps=("172.31.0.3",))
    after = built(HOST, RED, A, FAR_RED, moved)
    reasons = [engine(one).process(Hook.OVERLAY_IN, 5001, frame, vtep=IPv4Address(OTHER_VTEP), now_s=0).reason
               for one in (made, after)]
    assert reasons == [DropReason.NO_MAPPING, DropReason.MOVED]


def test_a_route_by_an_endpoint_reaches_it_and_lets_its_network_behind_speak() -> None:
    nva = replace(port("nva", RED, "10.1.0.7", 0x17), forwards=("10.9.0.0/16",))
    network = replace(RED, routes=(RouteGoal("10.9.0.0/16", address="10.1.0.7"),))
    made = built(HOST, network, A, nva, FAR_RED)
    to = ip(A, "10.9.3.3", tcp(), dst_mac=RED.gateway_mac)
    assert engine(made).process(Hook.PORT_OUT, number_of(made, A), to, now_s=0).port == number_of(made, nva)


def test_broadcast_floods_only_if_the_network_says_so() -> None:
    network = replace(RED, flood=FloodGoal(100, 200, (OTHER_VTEP, "2001:db8::2")))
    made = built(HOST, network, A)
    space = space_of(made, RED)
    assert space.flooding == Flooding(Rate(100, 200), 5001, (IPv4Address(OTHER_VTEP), IPv6Address("2001:db8::2")))
    assert space.stations == ((bytes((2, 0, 0, 0, 0, 0x12)), number_of(made, A)),)
    flooded = {str(rule.match.dst) for rule in rules_of(made, A) if rule.action == Switch(5001)}
    assert flooded == {"224.0.0.0/4", "255.255.255.255/32", "ff00::/8", "10.1.0.255/32"}
    quiet = built(HOST, RED, A)
    assert space_of(quiet, RED).flooding is None
    group = ip(A, "224.0.0.1", udp(), dst_mac="01:00:5e:00:00:01")
    assert engine(quiet).process(Hook.PORT_OUT, number_of(quiet, A), group, now_s=0).verdict is Verdict.DROP


def test_the_gateway_is_everywhere_with_a_link_local_address_where_there_is_ipv6() -> None:
    network = overlay(5001, "10.1.0.0/24", "fd01::/64")
    made = built(HOST, network, port("a", network, "10.1.0.2", 0x12, address6="fd01::2/64"))
    mac = bytes.fromhex(network.gateway_mac.replace(":", ""))
    entries = dict(space_of(made, network).entries)
    for address in ("10.1.0.1", "fd01::1", str(link_local(mac))):
        assert entries[ip_address(address)] == Virtual(mac)
    [one] = made.engine.ports
    assert one.gateways == (IPv4Address("10.1.0.1"), IPv6Address("fd01::1"))


def test_a_private_network_is_its_endpoints_on_this_host() -> None:
    network = network_of("private", "10.7.0.0/24")
    one, two = port("p1", network, "10.7.0.2", 1), port("p2", network, "10.7.0.3", 2)
    made = built(HOST, network, one, two)
    out = engine(made)
    assert (made.tunnel, made.uplinks, made.bridges) == (None, (), {})
    assert made.ports[one.id].mtu_bytes == 1500
    near = ip(one, "10.7.0.3", tcp(), dst_mac=two.mac)
    assert out.process(Hook.PORT_OUT, number_of(made, one), near, now_s=0).port == number_of(made, two)
    for address in ("8.8.8.8", HOST_ADDRESS):
        far = ip(one, address, tcp(), dst_mac=network.gateway_mac)
        assert out.process(Hook.PORT_OUT, number_of(made, one), far, now_s=0).verdict is Verdict.DROP


def test_isolated_endpoints_reach_what_is_behind_the_gateway_but_not_each_other_nor_peers() -> None:
    network = replace(RED_P, isolated=True, egress=True)
    neighbour = port("n", RED, "10.1.0.3", 0x13)
    made = built(HOST, network, BLUE_P, A, B, neighbour)
    for target, mac in (("10.1.0.3", neighbour.mac), ("10.2.0.2", RED.gateway_mac)):
        result = engine(made).process(Hook.PORT_OUT, number_of(made, A), ip(A, target, tcp(), dst_mac=mac), now_s=0)
        assert result.denied_by is not None
        assert (result.layer, result.denied_by.rule.name) == ("guard", "isolated")
    world = ip(A, "8.8.8.8", udp(), dst_mac=RED.gateway_mac)
    assert engine(made).process(Hook.PORT_OUT, number_of(made, A), world, now_s=0).verdict is Verdict.REDIRECT_UPLINK
    back = ip(B, "10.1.0.2", tcp(), dst_mac=BLUE.gateway_mac)       # blue is not isolated
    assert engine(made).process(Hook.PORT_OUT, number_of(made, B), back, now_s=0).port == number_of(made, A)


@pytest.mark.parametrize("mtu", [67, 1279, 70000])
def test_an_mtu_that_a_family_cannot_have_is_refused(mtu: int) -> None:
    network = replace(overlay(5001, "10.1.0.0/24", "fd01::/64"), mtu_bytes=mtu)
    assert f"mtu {mtu}" in error_of(built(HOST, network), network)


def test_the_tunnel_stays_while_the_host_has_an_underlay_so_that_old_maps_are_answered_by_a_drop() -> None:
    there = OwnedLink("slvx0", 500, "vxlan", 1350, "sluice:tunnel")
    made = built(HOST, nat(1), owned={"slvx0": there})
    assert made.tunnel is not None
    assert (made.engine.tunnel_ifindex, made.engine.underlays[0].address) == (500, IPv4Address("172.31.0.1"))
    assert built(HOST, nat(1)).tunnel is None
    assert built(replace(HOST, underlay=""), nat(1), owned={"slvx0": there}).tunnel is None


@pytest.mark.parametrize(("bad", "words"), [
    (replace(RED, space=1 << 24), "VNI 16777216 is out of range; use 1 to 16777215"),
    (replace(network_of("private"), space=5001), "space 5001 is out of range"),
])
def test_a_number_that_is_no_networks_is_refused(bad: NetworkGoal, words: str) -> None:
    made = built(HOST, bad, GREEN, port("g", GREEN, "10.3.0.2", 0x32))
    assert words in error_of(made, bad)
    assert [one.name for one in made.engine.ports] == ["red/g"]


@pytest.mark.parametrize("mac", ["01:00:5e:00:00:01", "00:00:00:00:00:00"])
def test_a_mac_that_is_no_endpoints_is_refused(mac: str) -> None:
    bad = replace(A, mac=mac)
    made = built(HOST, RED, bad, port("ok", RED, "10.1.0.8", 8))
    assert "is no endpoint's" in error_of(made, bad)
    assert [one.name for one in made.engine.ports] == ["red/ok"]


def test_without_the_tunnel_device_local_endpoints_still_reach_each_other() -> None:
    """Its UDP port is somebody else's: nothing may be taken from there, and nothing is said of underlays."""
    state = goals(HOST, RED, A, port("n", RED, "10.1.0.3", 0x13), FAR_RED)
    ids = ids_for(*state.objects.values())
    there = observed(state, ids)
    owned = {name: link for name, link in there.owned.items() if name != "slvx0"}
    made = build(state, replace(there, owned=owned), ids)
    Compiler().compile(made.engine, 64)
    assert (made.engine.underlays, {one.vteps for one in made.engine.ports}) == ((), {()})
    near = ip(A, "10.1.0.3", tcp(), dst_mac="02:00:00:00:00:13")
    assert engine(made).process(Hook.PORT_OUT, number_of(made, A), near, now_s=0).verdict is Verdict.REDIRECT_PORT
