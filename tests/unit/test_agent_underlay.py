"""The reconciler and what carries the overlay: hooks at underlays, paths, links that hear stations, queues."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from agent_kit import (
    HOST,
    OTHER_VTEP,
    UNDERLAY,
    FakeDatapath,
    FakeSwitch,
    goals,
    mapping,
    nat,
    overlay,
    port,
    reconciler,
    remote,
)

from agent.bandwidth import limits, total_bps
from agent.paths import Paths
from agent.qos import Shape
from southbound.messages import HostGoal, NetworkGoal, PortGoal, QosGoal, Subnet
from vfp.model import EngineState
from vswitch.links import Limit, PathState

NAT, RED = nat(1), overlay(5001)
WEB, APP = port("web", NAT, "192.168.1.5", 5), port("app", NAT, "192.168.1.6", 6)
RED_A, FAR = port("ra", RED, "10.1.0.2", 7), remote("far", RED, "10.1.0.9", 8)
MAP = mapping("m", WEB, 8080, 80)
ALL = goals(HOST, NAT, RED, WEB, APP, RED_A, FAR, MAP)
MBIT = 1_000_000


def test_the_underlays_link_is_hooked_and_let_go(tmp_path: Path) -> None:
    switch = FakeSwitch(others_hooked={"old0": 77})
    switch.filters[77, "ingress"] = "sluice_underlay_in"
    one = reconciler(tmp_path, switch, FakeDatapath())
    one.reconcile(ALL)
    assert switch.filters[UNDERLAY.ifindex, "ingress"] == "sluice_underlay_in"
    assert (77, "ingress") not in switch.filters            # of a process before, and of no use now
    one.reconcile(goals(HOST))                              # peers may still have old maps
    assert switch.filters[UNDERLAY.ifindex, "ingress"] == "sluice_underlay_in"
    one.reconcile(goals(HostGoal("self")))
    assert (UNDERLAY.ifindex, "ingress") not in switch.filters


def test_paths_are_asked_for_once_and_when_they_may_have_changed(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    one = reconciler(tmp_path, switch, datapath)
    one.reconcile(ALL)
    asked = switch.calls.count(("paths", OTHER_VTEP))
    assert asked == 1
    switch.widths[OTHER_VTEP] = 1300
    one.reconcile(ALL, mend=False)
    assert (switch.calls.count(("paths", OTHER_VTEP)), datapath.applied[-1].paths) == (1, ())
    one.paths.stale()
    one.reconcile(ALL, mend=False)
    assert datapath.applied[-1].paths == ((IPv4Address(OTHER_VTEP), 1300),)


def test_what_a_router_said_is_asked_for_again_when_it_is_forgotten() -> None:
    class Told(FakeSwitch):
        def paths(self, addresses: object) -> dict[str, PathState]:
            return {OTHER_VTEP: PathState(1300, 600.0)}

    paths = Paths(Told())
    assert paths.expires_in_s() is None
    paths._ask({OTHER_VTEP})
    assert paths.expires_in_s() == pytest.approx(600, abs=1)


def test_links_of_transparent_networks_hear_everything(tmp_path: Path) -> None:
    class Taking(FakeDatapath):
        def apply(self, state: EngineState) -> None:
            self.applied.append(state)

    switch = FakeSwitch()
    one = reconciler(tmp_path, switch, Taking())
    subnets = (Subnet("172.16.0.0/24", "172.16.0.1"),)
    lan = NetworkGoal("uid-lan", "lan", "red", "transparent", (1 << 24) + 900, subnets, "02:00:00:00:09:01", 0)
    end = PortGoal("uid-s", "s", "red", "uid-lan", "172.16.0.90/24", "02:00:00:00:09:02", "ns-s", "eth0")
    one.reconcile(goals(HostGoal("self"), lan, end))
    assert switch.hearing == ({"lan0"}, set())
    one.reconcile(goals(HostGoal("self")))
    assert switch.hearing == (set(), set())


def test_each_cap_is_a_class_and_goes_with_its_port(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath(calls=[])
    datapath.calls = switch.calls
    one = reconciler(tmp_path, switch, datapath)
    ports = [goal for goal in ALL.objects.values() if isinstance(goal, PortGoal)]
    capped = replace(ports[0], qos=QosGoal(egress_bps=10 * MBIT, ingress_bps=20 * MBIT))
    one.reconcile(goals(*[capped if goal.id == capped.id else goal for goal in ALL.objects.values()]))
    assert list(switch.classes.values()) == [Limit(10 * MBIT, 10 * MBIT)]
    assert list(switch.queues.values()) == [Limit(20 * MBIT, 20 * MBIT)]
    assert datapath.applied[-1].shaper == switch.links["slq0"].ifindex
    calls = [call[0] for call in switch.calls]
    assert calls.index("classes") < calls.index("apply")
    one.reconcile(ALL)
    assert (switch.classes, switch.queues, "slq0" in switch.links) == ({}, {}, False)
    assert datapath.applied[-1].shaper == 0


def test_guarantees_leave_something_for_the_rest() -> None:
    first, second, third = (
        Shape(1, "slp1", minimum_bps=60 * MBIT, shaped=True), Shape(2, "slp2", egress_bps=5 * MBIT, shaped=True),
        Shape(3, "slp3", shaped=True))
    assert total_bps(100 * MBIT, [second]) == 0
    assert limits(100 * MBIT, [second]) == {2: Limit(5 * MBIT, 5 * MBIT)}
    found = limits(100 * MBIT, [first, second, third])
    assert found[1] == Limit(60 * MBIT, 95 * MBIT)
    assert found[2] == Limit(MBIT, 5 * MBIT)
    assert found[3] == Limit(MBIT, 95 * MBIT)
    assert sum(limit.rate_bps for limit in found.values()) <= 95 * MBIT
    crowded = limits(10 * MBIT, [replace(first, minimum_bps=9_500_000), second, third])
    assert all(1 <= limit.rate_bps <= limit.ceil_bps for limit in crowded.values())
