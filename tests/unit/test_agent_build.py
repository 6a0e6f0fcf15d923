"""`agent.build` and `agent.ids`: what links and identities a goal state makes, and which object is at fault."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_kit import HOST, UPLINK, built, error_of, goals, ids_for, mapping, nat, observed, overlay, port, remote

from agent.build import CONTRIBUTORS, Observed, build, wanted
from agent.ids import Ids, Wanted, allocate, port_alias, recover
from policy.contribution import HostView, Tables
from southbound.messages import Goal, NetworkGoal, PortGoal, Subnet
from vfp.model import Layer
from vswitch.links import OwnedLink

NAT, RED = nat(1), overlay(5001)
WEB = port("web", NAT, "192.168.1.5", 5)
RED_A = port("ra", RED, "10.1.0.2", 6)


def test_ports_bridges_and_tunnel_are_named_marked_and_sized() -> None:
    made = built(HOST, NAT, RED, WEB, RED_A)
    ids = ids_for(HOST, NAT, RED, WEB, RED_A)
    web, red = made.ports[WEB.id], made.ports[RED_A.id]
    assert web.host_interface == f"slp{ids.ports[WEB.id]}"
    assert web.alias == f"sluice:port:{WEB.id}:{ids.ports[WEB.id]}"
    assert (web.bridge, red.bridge) == ("slb1", "")
    assert (web.gateways, web.mtu_bytes, red.mtu_bytes) == (("192.168.1.1",), 1500, 1350)
    bridge = made.bridges[NAT.id]
    assert (bridge.addresses, bridge.mac, bridge.alias) == (("192.168.1.1/24",), NAT.gateway_mac, "sluice:bridge:nat-1")
    assert made.neighbours == {"slb1": {"192.168.1.5": WEB.mac}}
    assert made.links() == {web.host_interface, red.host_interface, "slb1", "slvx0"}


def test_layers_come_in_out_order() -> None:
    made = built(HOST, NAT, RED, WEB, RED_A)
    by_name = {one.name: [layer.name for layer in one.layers] for one in made.engine.ports}
    assert by_name == {"default/web": ["guard", "acl", "nat", "vnet"], "red/ra": ["guard", "acl", "vnet"]}


def test_an_overlay_host_touches_no_uplink() -> None:
    made = built(HOST, RED, RED_A)
    assert (made.uplinks, made.loopback, made.engine.pools, made.reserved_ports) == ((), False, (), ())


def test_nat_and_mapped_ports_are_reserved() -> None:
    made = built(HOST, NAT, WEB, mapping("m", WEB, 8080, 80))
    assert made.reserved_ports == ((20000, 32767), (8080, 8080))


def test_a_port_without_its_link_is_wanted_but_not_in_the_engine() -> None:
    state, ids = goals(HOST, NAT, WEB), ids_for(HOST, NAT, WEB)
    made = build(state, Observed(UPLINK), ids)
    assert WEB.id in made.ports
    assert made.engine.ports == ()
    assert made.engine.spaces[0].id == NAT.space        # its bridge answers already


def test_a_refused_port_stays_out_and_takes_its_mappings_along() -> None:
    web_map = mapping("m", WEB, 8080, 80)
    state, ids = goals(HOST, NAT, WEB, web_map), ids_for(HOST, NAT, WEB)
    made = build(state, observed(state, ids), ids, refused={WEB.id: "too many groups"})
    assert error_of(made, WEB) == "too many groups"
    assert "not ready" in error_of(made, web_map)
    assert made.engine.mappings == ()
    assert all(str(address) != "192.168.1.5" for space in made.engine.spaces for address, _ in space.entries)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (replace(WEB, id="x", address="192.168.9.5/24"), "outside network"),
        (replace(WEB, id="x", address="192.168.1.1/24"), "is the network's gateway"),
        (replace(WEB, id="x", address="nonsense"), "nonsense"),
        (replace(WEB, id="x", mac="02:00"), "02:00"),
        (replace(WEB, id="x", network="gone"), "see the network's status"),
        (replace(WEB, id="z"), "is that of default/web too"),
        (replace(NAT, id="x", space=NAT.space + 9), "overlaps"),
        (replace(RED, id="x", name="other"), "space 5001"),
        (replace(NAT, id="x", space=99, subnets=(Subnet("192.168.7.1/24", "192.168.7.1"),)), "host bits"),
        (replace(RED, id="x", space=99, gateway_mac="?"), "MAC"),
        (replace(RED, id="x", space=99, subnets=()), "0 subnets"),
        (replace(RED, id="x", space=99, subnets=(Subnet("10.2.0.0/24", "10.3.0.1"),)), "outside prefix"),
        (remote("r", RED, "10.1.0.1", 9), "10.1.0.1"),
    ],
)
def test_one_bad_object_is_one_fault(bad: Goal, words: str) -> None:
    made = built(HOST, NAT, RED, WEB, RED_A, bad)
    assert words in error_of(made, bad)
    assert [one.name for one in made.engine.ports] == ["red/ra", "default/web"]
    assert len(made.faults) == 1


def test_a_feature_is_one_more_entry() -> None:
    class Meter:
        def layer(self, port: PortGoal, view: HostView) -> Layer:
            return Layer("meter")

        def tables(self, view: HostView) -> Tables:
            return Tables()

    state, ids = goals(HOST, RED, RED_A), ids_for(HOST, RED, RED_A)
    made = build(state, observed(state, ids), ids, (*CONTRIBUTORS, Meter()))
    assert [layer.name for layer in made.engine.ports[0].layers][-1] == "meter"


def test_a_network_mtu_that_is_given_is_taken() -> None:
    network: NetworkGoal = replace(RED, mtu_bytes=1200)
    assert built(HOST, network, RED_A).ports[RED_A.id].mtu_bytes == 1200


def test_ids_stay_and_are_not_given_again_at_once() -> None:
    first = allocate(Ids(), Wanted(ports=["a", "b"]), 4)
    assert dict(first.ports) == {"a": 1, "b": 2}
    second = allocate(first, Wanted(ports=["b", "c"]), 4)
    assert dict(second.ports) == {"b": 2, "c": 3}
    third = allocate(second, Wanted(ports=["b", "c", "d", "e"]), 4)
    assert dict(third.ports) == {"b": 2, "c": 3, "d": 1}       # round the range, then none is left for e


def test_uplinks_and_pools_keep_their_numbers_while_away() -> None:
    first = allocate(Ids(), Wanted(uplinks=["lan0"], pools=["n/172.16.0.10", "n/172.17.0.10"]), 9)
    roamed = allocate(first, Wanted(uplinks=["wlan0"], pools=["n/10.9.9.9"]), 9)
    back = allocate(roamed, Wanted(uplinks=["lan0"], pools=["n/172.17.0.10"]), 9)
    assert (back.uplinks["lan0"], back.uplinks["wlan0"]) == (1, 2)
    assert (back.pools["n/172.17.0.10"], back.pools["n/10.9.9.9"]) == (2, 3)


def test_pools_go_with_their_network_and_gateway() -> None:
    first = allocate(Ids(), Wanted(pools=["n/10.9.9.9", "m/10.9.9.9", "lo/192.168.1.1", "lo/192.168.2.1"]), 9)
    later = allocate(first, Wanted(pools=["m/10.8.8.8", "lo/192.168.2.1"]), 9)
    assert dict(later.pools) == {"m/10.9.9.9": 2, "lo/192.168.2.1": 4, "m/10.8.8.8": 1}


def test_ids_come_back_from_aliases_and_the_kernel_is_right() -> None:
    owned = [
        OwnedLink("slp7", 11, "veth", 1500, port_alias("web", 7)),
        OwnedLink("slb3", 12, "bridge", 1500, "sluice:bridge:net"),
        OwnedLink("slp9", 13, "veth", 1500, ""),
        OwnedLink("slvx0", 14, "vxlan", 1500, "sluice:tunnel"),
    ]
    lost = recover(Ids(), owned)
    assert (dict(lost.ports), dict(lost.bridges)) == ({"web": 7}, {"net": 3})
    stale = recover(Ids(ports={"web": 2, "other": 7, "third": 4}), owned)
    assert dict(stale.ports) == {"third": 4, "web": 7}


def test_links_that_must_still_go_keep_their_ids() -> None:
    leftover = OwnedLink("slp7", 11, "veth", 1500, port_alias("old", 7))
    asked = wanted(goals(HOST, NAT, WEB), Observed(UPLINK, owned={"slp7": leftover}))
    assert set(asked.ports) == {"old", WEB.id}
