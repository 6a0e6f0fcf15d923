"""What documents of the modes, their neighbours and limits come to: goals of hosts, and addresses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from controller_kit import FACTS, Parts, document, endpoint, host, overlay, tenant, with_parts
from test_controller_planner import built, of, remotes

from controller.planner import plan
from controller.store import Report
from southbound.messages import FloodGoal, HostGoal, NatGoal, NetworkGoal, PortGoal, QosGoal, RouteGoal

SEGMENT = {"subnets": [{"prefix": "192.168.7.0/24"}], "host": "h1", "uplink": "lan1"}
RED = overlay(
    "red", "", subnets=[{"prefix": "10.1.0.0/24"}, {"prefix": "fd00:1::/64"}], peers=["blue"], egress={"host": "gw"},
    broadcast={"rate": 100, "burst": 200}, isolation=True, routerAdvertisements=True, slaac=True,
    routes=[{"destination": "10.9.0.0/16", "via": {"endpoint": "a"}},
            {"destination": "10.8.0.0/16", "via": {"address": "10.1.0.9"}},
            {"destination": "10.7.0.0/16", "via": {"host": "h2"}}],
    qos={"egress": {"rate": "1gbit"}, "connections": 7, "metering": True})
WORLD = [
    host("h1", ["172.31.0.1", "2001:DB8::1"], uplinkRate="10gbit"), host("h2", "172.31.0.2", vxlanPort=8472),
    host("gw", "172.31.0.7"), host("ext", "172.31.0.9", external=True),
    RED, overlay("blue", "10.2.0.0/24", egress="nat", nat={"portBlock": 64}),
    endpoint("a", "red", forwards=["10.9.0.0/16"], netns=None, tap="tap0", queues=4, qos={
        "minimum": "10mbit", "egress": {"rate": "100mbit", "burst": "256kb"}, "ingress": {"rate": "2.5gbit"},
        "dscp": 46, "packetRate": {"egress": 1000, "ingress": 2000}, "metering": False}),
    endpoint("in-a", "red", netns=None, behind="a"), endpoint("b", "red", "h2"), endpoint("c", "blue", "h2"),
    endpoint("far", "red", "ext", netns=None, mac="02:00:00:00:00:99", address="10.1.0.99"),
    document("Network", "seg", {"mode": "transparent", **SEGMENT}), endpoint("d", "seg", dhcp=True, vlans=[100, 7]),
]


def goal_of(found: list[Any], name: str) -> Any:
    return next(goal for goal in found if goal.name == name)


def test_all_that_an_overlay_says_reaches_the_hosts_that_need_it() -> None:
    made = plan(built(*WORLD))
    known = {name: sorted(n.name for n in of(made, name, NetworkGoal)) for name in ("h1", "h2", "gw", "ext")}
    assert known == {"h1": ["blue", "red", "seg"], "h2": ["blue", "red"], "gw": ["red"], "ext": []}
    red, blue = (goal_of(of(made, "h2", NetworkGoal), name) for name in ("red", "blue"))
    assert (red.peers, blue.peers) == ((blue.id,), (red.id,))
    assert red.routes == (
        RouteGoal("10.9.0.0/16", "10.1.0.2"), RouteGoal("10.8.0.0/16", "10.1.0.9"),
        RouteGoal("10.7.0.0/16", vteps=("172.31.0.2",), here=True), RouteGoal("0.0.0.0/0", vteps=("172.31.0.7",)),
        RouteGoal("::/0", vteps=("172.31.0.7",)))
    assert [r.here for r in goal_of(of(made, "gw", NetworkGoal), "red").routes] == [False, False, False, True, True]
    assert (red.isolated, red.advertise, red.slaac, red.egress, blue.egress) == (True, True, True, False, True)
    assert (red.nat, blue.nat) == (NatGoal(ipv6="masquerade"), NatGoal(block=64, ipv6="masquerade"))
    floods = {name: goal_of(of(made, name, NetworkGoal), "red").flood for name in ("h1", "h2", "gw")}
    assert floods["h1"] == FloodGoal(100, 200, ("172.31.0.9", "172.31.0.2"))
    assert floods["h2"] == FloodGoal(100, 200, ("172.31.0.9", "172.31.0.1"))
    assert floods["gw"] == FloodGoal(100, 200, ("172.31.0.9", "172.31.0.1", "172.31.0.2"))
    both = ("172.31.0.1", "2001:db8::1")
    assert remotes(made, "gw") == [
        ("a", "10.1.0.2", "fd00:1::2", both), ("b", "10.1.0.4", "fd00:1::4", ("172.31.0.2",)),
        ("far", "10.1.0.99", "", ("172.31.0.9",)), ("in-a", "10.1.0.3", "fd00:1::3", both)]
    assert [name for name, *_ in remotes(made, "h1")] == ["b", "c", "far"]
    assert of(made, "h1", HostGoal) == [
        HostGoal("self", "172.31.0.1", "", (20000, 32767), both, 8472, 10_000_000_000)]
    assert of(made, "gw", PortGoal) == []


def test_what_an_endpoint_says_comes_before_its_network() -> None:
    made = plan(built(*WORLD))
    ports = {port.name: port for name in ("h1", "h2") for port in of(made, name, PortGoal)}
    a, inner = ports["a"], ports["in-a"]
    assert a.qos == QosGoal(100_000_000, 256 << 10, 2_500_000_000, 3_125_000, 10_000_000, 46, 1000, 2000, 7, False)
    assert ports["b"].qos == QosGoal(1_000_000_000, 1_250_000, connections=7, meter=True)
    assert ports["c"].qos == inner.qos == QosGoal()
    assert (a.interface, a.netns, a.queues, a.forwards) == ("tap0", "", 4, ("10.9.0.0/16",))
    assert (inner.behind, inner.mac, inner.netns, inner.interface, inner.address) == (
        a.id, a.mac, "", "", "10.1.0.3/24")
    assert (ports["d"].dhcp, ports["d"].vlans, ports["d"].address) == (True, (100, 7), "")


def test_each_mode_has_a_space_of_its_own_and_its_uplink() -> None:
    modes = ("nat", "overlay", "transparent", "l2bridge", "l2tunnel", "private")
    prefixes = {mode: f"10.{i}.0.0/24" for i, mode in enumerate(modes, 1)}
    documents: list[Any] = [host("h1", "172.31.0.1")]
    for mode in modes:
        spec = {"mode": mode, "subnets": [{"prefix": prefixes[mode]}]} | ({"host": "h1"} if mode == "nat" else {})
        if mode in ("transparent", "l2bridge", "l2tunnel"):
            spec["uplink"] = "lan1"
        documents += [document("Network", mode, spec), endpoint(f"e-{mode}", mode)]
    made = plan(built(*documents))
    goals = {goal.name: goal for goal in of(made, "h1", NetworkGoal)}
    assert {name: goal.mode for name, goal in goals.items()} == {mode: mode for mode in modes}
    assert goals["overlay"].space == 4096
    assert sorted(goal.space - 2**24 for name, goal in goals.items() if name != "overlay") == [0, 1, 2, 3, 4]
    assert {name for name, goal in goals.items() if goal.uplink == "lan1"} == {"transparent", "l2bridge", "l2tunnel"}
    assert {name: goal.flood for name, goal in goals.items() if goal.flood} == {"transparent": FloodGoal(1000, 2000)}


def test_a_network_of_another_tenant_is_a_peer_by_its_path() -> None:
    made = plan(built(host("h1", "172.31.0.1"), host("h2", "172.31.0.2"), tenant("acme"),
                      overlay("shop", "10.2.0.0/24", in_tenant="acme"), overlay("red", peers=["acme/shop"]),
                      endpoint("a", "red"), endpoint("s", "shop", "h2", in_tenant="acme")))
    for name in ("h1", "h2"):
        assert {(n.tenant, n.name, len(n.peers)) for n in of(made, name, NetworkGoal)} == {
            ("default", "red", 1), ("acme", "shop", 1)}


def test_addresses_of_leases_and_of_other_machines_are_not_ours_to_give(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        facts = replace(FACTS, addresses=(("lan0", "192.168.7.2/24"), ("lan0", "192.168.7.4/24")),
                        links=("lan0", "lan1"))
        await parts.ledger.save_report("h1", Report("test", facts))
        answer = await parts.apply(*WORLD, endpoint("e", "seg"), endpoint("f", "seg"))
        assert answer.status_code == 200, answer.text
        given = {item["name"]: (item["resource"]["status"].get("address"), item["resource"]["status"].get("address6"))
                 for item in answer.json()["items"] if item["kind"] == "Endpoint"}
        assert given["d"] == (None, None)
        assert (given["e"], given["f"]) == (("192.168.7.3", None), ("192.168.7.5", None))
        assert given["far"] == ("10.1.0.99", None), "nobody knows what IPv6 address it has"
        assert given["in-a"][0] is not None

    with_parts(tmp_path, body)
