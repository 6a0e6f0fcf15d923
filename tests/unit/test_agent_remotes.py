"""Columns of remote endpoints to the engine's blocks: what is in them, what changes, and whose fault it is."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from agent_kit import (
    HOST,
    OTHER_VTEP,
    UNDERLAY,
    VTEP,
    built,
    engine,
    error_of,
    goals,
    ids_for,
    ip,
    ip6,
    number_of,
    observed,
    overlay,
    port,
    remotes,
    tcp,
)

from agent.build import CONTRIBUTORS, Built, build
from agent.observed import UnderlayState
from overlay.layer import OverlayVnet
from policy.addresses import link_local
from southbound.messages import Goal, HostGoal, RemotesGoal
from southbound.vteps import choose_vtep
from vfp.datapath.engine import Hook
from vfp.model import Address, Remote, RemoteBlock, Space
from vfp.reasons import DropReason
from vfp.reference import Verdict

RED = overlay(5001, "10.1.0.0/16", "fd01::/64")
RED_A = port("ra", RED, "10.1.0.2", 0x12, address6="fd01::2/64")
FAR = remotes(RED, ("b", "10.1.0.9", 0x19, "fd01::9"), ("c", "10.1.0.10", 0x1A, ""), ("d", "", 0x1B, "fd01::b"))


def places(space: Space) -> dict[Address, Remote]:
    """Every remote address of a space, wherever it stands."""
    found = {address: place for address, place in space.entries if isinstance(place, Remote)}
    for block in space.blocks:
        width = 4 if block.version == 4 else 16
        for row in range(len(block.addresses) // width):
            address = ip_address(block.addresses[row * width : (row + 1) * width])
            assert address not in found, f"{address} twice"
            found[address] = Remote(block.vtep, block.vni, block.macs[row * 6 : row * 6 + 6])
    return found


def space_of(made: Built, number: int = 5001) -> Space:
    return next(space for space in made.engine.spaces if space.id == number)


def test_a_block_has_what_is_there_of_each_family_and_link_local_addresses() -> None:
    macs = {n: bytes((2, 0, 0, 0, 0, n)) for n in (0x19, 0x1A, 0x1B)}
    vtep = IPv4Address(OTHER_VTEP)
    assert places(space_of(built(HOST, RED, RED_A, FAR))) == {
        IPv4Address("10.1.0.9"): Remote(vtep, 5001, macs[0x19]),
        IPv4Address("10.1.0.10"): Remote(vtep, 5001, macs[0x1A]),
        IPv6Address("fd01::9"): Remote(vtep, 5001, macs[0x19]),
        link_local(macs[0x19]): Remote(vtep, 5001, macs[0x19]),
        IPv6Address("fd01::b"): Remote(vtep, 5001, macs[0x1B]),
        link_local(macs[0x1B]): Remote(vtep, 5001, macs[0x1B]),
    }


def test_packets_go_to_the_vtep_and_come_from_it() -> None:
    made = built(HOST, RED, RED_A, FAR)
    for frame in (ip(RED_A, "10.1.0.9", tcp(), dst_mac=RED.gateway_mac), ip6(RED_A, "fd01::b", tcp())):
        result = engine(made).process(Hook.PORT_OUT, number_of(made, RED_A), frame, now_s=0)
        assert (result.verdict, result.vni, result.vtep) == (Verdict.TUNNEL, 5001, IPv4Address(OTHER_VTEP))


def test_with_slaac_remote_endpoints_are_known_by_the_address_that_they_make() -> None:
    network = replace(RED, slaac=True)
    found = places(space_of(built(HOST, network, RED_A, FAR)))
    made = IPv6Address("fd01::" + str(link_local(bytes((2, 0, 0, 0, 0, 0x19)))).removeprefix("fe80::"))
    assert made in found
    own = {address for address, _ in space_of(built(HOST, network, RED_A)).entries}
    assert IPv6Address("fd01::ff:fe00:12") in own


def test_a_remote_address_that_is_also_its_own_slaac_address_is_there_once() -> None:
    network = replace(RED, slaac=True)
    far = remotes(network, ("b", "", 0x19, "fd01::ff:fe00:19"))
    assert len(places(space_of(built(HOST, network, RED_A, far)))) == 2


@pytest.mark.parametrize(("ours", "theirs", "expected"), [
    ((VTEP,), ("172.31.0.2", "2001:db8::2"), "172.31.0.2"),
    (("2001:db8::1",), ("172.31.0.2", "2001:db8::2"), "2001:db8::2"),
    ((VTEP, "2001:db8::1"), ("2001:db8::2",), "2001:db8::2"),
])
def test_two_hosts_speak_by_a_family_that_both_have(
    ours: tuple[str, ...], theirs: tuple[str, ...], expected: str
) -> None:
    made = _on(ours, RED, RED_A, remotes(RED, ("b", "10.1.0.9", 0x19, ""), vteps=theirs))
    assert {place.vtep for place in places(space_of(made)).values()} == {ip_address(expected)}


def _on(ours: tuple[str, ...], *objects: Goal) -> Built:
    """On a host with these underlay addresses."""
    host = replace(HOST, underlay=ours[0], underlays=ours)
    return built(host, *objects, underlays=tuple(UnderlayState(ip_address(one), UNDERLAY) for one in ours))


def test_hosts_without_a_common_family_do_not_reach_each_other_and_say_so() -> None:
    far = remotes(RED, ("b", "10.1.0.9", 0x19, ""), vteps=("2001:db8::2",))
    made = _on((VTEP,), RED, RED_A, far)
    assert "give both one of a family" in error_of(made, far)
    assert places(space_of(made)) == {}


def test_of_several_underlay_addresses_each_endpoint_has_one_by_its_mac() -> None:
    vteps = ("172.31.0.2", "172.31.0.3", "172.31.0.4")
    far = remotes(RED, *((f"e{n}", f"10.1.1.{n}", n, "") for n in range(1, 60)), vteps=vteps)
    made = _on(("172.31.0.1", "172.31.0.7"), RED, RED_A, far)
    found = places(space_of(made))
    assert {place.vtep for place in found.values()} == set(map(IPv4Address, vteps))
    assert len(found) == 59
    for place in found.values():
        assert str(place.vtep) == choose_vtep(vteps, 4, place.mac)
    assert made.engine.ports[0].vteps == (
        IPv4Address(choose_vtep(("172.31.0.1", "172.31.0.7"), 4, made.engine.ports[0].mac)),)


@pytest.mark.parametrize(("bad", "words"), [
    (replace(FAR, macs=b""), "do not fit together"),
    (replace(FAR, addresses=FAR.addresses[:4]), "do not fit together"),
    (replace(FAR, addresses6=FAR.addresses6[:16]), "do not fit together"),
    (replace(FAR, vteps=()), "(none)"),
    (replace(FAR, vteps=("172.31.0.300",)), "172.31.0.300"),
    (replace(FAR, vteps=("224.0.0.1",)), "224.0.0.1 is no address of a host"),
])
def test_a_bad_block_is_its_own_fault(bad: RemotesGoal, words: str) -> None:
    good = remotes(RED, ("x", "10.1.0.77", 0x77, ""), host="h3")
    made = built(HOST, RED, RED_A, bad, good)
    assert words in error_of(made, bad)
    assert error_of(made, good) == ""
    assert list(places(space_of(made))) == [IPv4Address("10.1.0.77")]


def test_of_two_that_claim_an_address_one_has_it_and_a_local_endpoint_always() -> None:
    mine = remotes(RED, ("thief", "10.1.0.2", 0x66, ""), ("good", "10.1.0.67", 0x67, ""), host="h3")
    second = remotes(RED, ("late", "10.1.0.9", 0x68, ""), host="h4")
    made = built(HOST, RED, RED_A, FAR, mine, second)
    assert "remote endpoint thief has address 10.1.0.2" in error_of(made, mine)
    assert "remote endpoint late has address 10.1.0.9" in error_of(made, second)
    assert error_of(made, FAR) == ""
    found = places(space_of(made))
    assert found[IPv4Address("10.1.0.9")].mac[5] == 0x19
    assert IPv4Address("10.1.0.67") in found
    assert IPv4Address("10.1.0.2") not in found


def test_an_address_that_moved_away_is_dropped_as_moved_or_unknown_here() -> None:
    made = built(HOST, RED, RED_A, FAR)
    frame = ip(RED_A, "10.1.0.99", tcp())
    assert engine(made).process(Hook.PORT_OUT, number_of(made, RED_A), frame, now_s=0).reason is DropReason.NO_MAPPING


def test_changes_in_any_order_leave_what_a_fresh_start_makes() -> None:
    """The blocks are kept from build to build: whatever came before, the same goals make the same space."""
    chosen = random.Random(5)
    others = tuple(one for one in CONTRIBUTORS if not isinstance(one, OverlayVnet))
    kept = (*others, OverlayVnet())
    ids = ids_for(HOST, RED, RED_A)
    blocks: dict[str, RemotesGoal] = {}
    for _ in range(150):
        for _ in range(chosen.randrange(1, 4)):
            host, number = chosen.choice(("h2", "h3", "h4")), chosen.randrange(3)
            rows = tuple(
                (f"e{n}", f"10.1.2.{n}" if chosen.random() < 0.9 else "", n, f"fd01::2:{n}" if n % 2 else "")
                for n in sorted({chosen.randrange(1, 60) for _ in range(chosen.randrange(5))}))
            goal = remotes(RED, *(row for row in rows if row[1] or row[3]), host=host, block=number,
                           vteps=chosen.choice(((OTHER_VTEP,), ("172.31.0.3", "172.31.0.4"), ("2001:db8::9",))))
            if chosen.random() < 0.3:
                blocks.pop(goal.id, None)
            else:
                blocks[goal.id] = goal
        state = goals(HOST, RED, RED_A, *blocks.values())
        host_now = observed(state, ids)
        made = build(state, host_now, ids, kept)
        fresh = build(state, host_now, ids, (*others, OverlayVnet()))
        assert places(space_of(made)) == places(space_of(fresh))
        assert made.engine == fresh.engine
        assert sorted(made.faults, key=str) == sorted(fresh.faults, key=str)


def test_a_change_makes_one_block_anew() -> None:
    goal = [remotes(RED, (f"e{n}", f"10.1.3.{n}", n, ""), host=f"h{n}") for n in range(2, 40)]
    contributors = (*(one for one in CONTRIBUTORS if not isinstance(one, OverlayVnet)), OverlayVnet())
    ids = ids_for(HOST, RED, RED_A)
    before = _blocks(goal, contributors, ids)
    goal[7] = remotes(RED, ("new", "10.1.3.200", 200, ""), host="h9")
    after = _blocks(goal, contributors, ids)
    assert sum(block is not other for block, other in zip(before, after, strict=True)) == 1


def _blocks(goal: list[RemotesGoal], contributors: object, ids: object) -> tuple[RemoteBlock, ...]:
    state = goals(HOST, RED, RED_A, *goal)
    return space_of(build(state, observed(state, ids), ids, contributors)).blocks  # type: ignore[arg-type]


def test_a_host_whose_addresses_are_not_all_there_uses_the_others() -> None:
    host = HostGoal("self", underlay=VTEP, underlays=(VTEP, "2001:db8::1"))
    made = built(host, RED, RED_A, FAR, underlay_error="no interface of this host has 2001:db8::1")
    assert "2001:db8::1" in error_of(made, host)
    assert made.tunnel is not None
    assert places(space_of(made))


def test_endpoints_behind_one_port_elsewhere_share_its_link_local_address() -> None:
    vm = remotes(RED, ("vm", "10.1.0.21", 0x21, "fd01::21"))
    nested = remotes(RED, ("c1", "10.1.0.22", 0x21, "fd01::22"), ("c2", "10.1.0.23", 0x21, "fd01::23"), block=1)
    made = built(HOST, RED, RED_A, vm, nested)
    assert made.faults == ()
    found = places(space_of(made))
    assert len(found) == 7
    assert link_local(bytes((2, 0, 0, 0, 0, 0x21))) in found
    alone = places(space_of(built(HOST, RED, RED_A, nested)))
    assert link_local(bytes((2, 0, 0, 0, 0, 0x21))) in alone


def test_link_local_addresses_of_a_peer_are_its_own_business() -> None:
    blue = replace(overlay(5002, "10.2.0.0/24", "fd02::/64"), peers=(RED.id,))
    red = replace(RED, peers=(blue.id,))
    near = port("bb", blue, "10.2.0.2", 0x12, address6="fd02::2/64")        # with the MAC of ra
    far = remotes(blue, ("bf", "10.2.0.9", 0x19, "fd02::9"))                # with that of b
    made = built(HOST, red, blue, RED_A, near, FAR, far)
    assert made.faults == ()
    reds, blues = places(space_of(made)), places(space_of(made, 5002))
    assert IPv6Address("fd02::9") in reds
    assert link_local(bytes((2, 0, 0, 0, 0, 0x19))) in reds
    assert reds[link_local(bytes((2, 0, 0, 0, 0, 0x19)))].vni == 5001
    assert IPv6Address("fd01::9") in blues
