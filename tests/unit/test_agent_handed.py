"""Ports that runtimes take, and namespaces that runtimes remove: made again before that, gone after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from agent_kit import HOST, FakeDatapath, FakeSwitch, goals, mapping, nat, port, reconciler

from agent.reconcile import Outcome
from agent.standing import Standing
from southbound.messages import PortGoal

NET = nat(1)
FIRST = replace(port("one", NET, "192.168.1.5", 5), netns="", interface="slc1", handed=True)
SECOND = replace(port("two", NET, "192.168.1.6", 6), netns="", interface="slc2", handed=True)
INSIDE = port("in", NET, "192.168.1.7", 7)
MAP = mapping("m", FIRST, 8080, 80)
ALL = goals(HOST, NET, FIRST, SECOND, INSIDE, MAP)
TAKEN = {FIRST.id: Standing(taken=True), SECOND.id: Standing(taken=True), INSIDE.id: Standing(namespace="boot/ns-in")}


def errors(outcome: Outcome) -> dict[str, str]:
    return {status.id: status.error for status in outcome.objects if status.error}


def link_of(outcome: Outcome, goal: PortGoal) -> str:
    return outcome.built.ports[goal.id].host_interface


def test_a_handed_port_is_a_pair_of_ours_that_is_no_tap(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    outcome = reconciler(tmp_path, switch, datapath).reconcile(ALL)
    assert errors(outcome) == {}
    link = outcome.built.ports[FIRST.id]
    assert (link.handed, link.tap, link.netns, link.interface) == (True, False, "", "slc1")
    assert link.host_interface.startswith("slp")
    told = next(one for one in datapath.applied[-1].ports if one.id == outcome.built.port_ids[FIRST.id])
    assert not told.tap
    assert told.ifindex == switch.links[link.host_interface].ifindex


@pytest.mark.parametrize("mend", [True, False])
def test_before_it_is_taken_a_lost_pair_is_made_again(tmp_path: Path, mend: bool) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    agent = reconciler(tmp_path, switch, datapath)
    first = agent.reconcile(ALL)
    del switch.links[link_of(first, FIRST)]
    again = agent.reconcile(ALL, mend)
    assert (errors(again), again.gone) == ({}, frozenset())
    assert link_of(first, FIRST) in switch.links


@pytest.mark.parametrize("mend", [True, False])
@pytest.mark.parametrize("restarted", [True, False])
def test_after_it_was_taken_a_lost_pair_is_gone_and_stays_so(tmp_path: Path, mend: bool, restarted: bool) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    agent = reconciler(tmp_path, switch, datapath)
    first = agent.reconcile(ALL)
    assert agent.reconcile(ALL, mend, standing=TAKEN).gone == set()
    del switch.links[link_of(first, FIRST)]
    if restarted:
        agent = reconciler(tmp_path, switch, datapath)
    for _ in range(2):
        outcome = agent.reconcile(ALL, mend, standing=TAKEN)
        assert outcome.gone == {FIRST.id}
        assert "its link is gone" in errors(outcome)[FIRST.id]
        assert link_of(first, FIRST) not in switch.links
        assert link_of(first, SECOND) in switch.links
        assert {one.name for one in datapath.applied[-1].ports} == {"default/two", "default/in"}
        assert datapath.applied[-1].mappings == ()
    assert errors(agent.reconcile(goals(HOST, NET, SECOND, INSIDE), standing=TAKEN)) == {}


def test_the_address_of_one_that_is_gone_is_anothers_at_once(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    agent = reconciler(tmp_path, switch, datapath)
    first = agent.reconcile(ALL)
    del switch.links[link_of(first, FIRST)]
    heir = replace(port("heir", NET, "192.168.1.5", 9), netns="", interface="slc9", handed=True)
    outcome = agent.reconcile(goals(HOST, NET, FIRST, heir), standing=TAKEN)
    assert errors(outcome).keys() == {FIRST.id}


def test_the_number_of_one_that_is_gone_with_anothers_mark_is_gone_too(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    agent = reconciler(tmp_path, switch, datapath)
    name = link_of(agent.reconcile(ALL), FIRST)
    switch.links[name] = replace(switch.links[name], alias="sluice:")
    assert agent.reconcile(ALL, standing=TAKEN).gone == {FIRST.id}


def test_a_taken_port_whose_far_end_is_here_is_told(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    agent = reconciler(tmp_path, switch, datapath)
    first = agent.reconcile(ALL)
    for goal in (FIRST, SECOND):
        name = link_of(first, goal)
        switch.links[name] = replace(switch.links[name], far_here=True)
    assert agent.reconcile(ALL).back == set()                   # they wait
    assert agent.reconcile(ALL, standing={FIRST.id: Standing(taken=True)}).back == {FIRST.id}
    switch.links[link_of(first, FIRST)] = replace(switch.links[link_of(first, FIRST)], far_here=False)
    outcome = agent.reconcile(ALL, standing=TAKEN)
    assert (outcome.back, outcome.gone) == ({SECOND.id}, set())
    assert errors(outcome) == {}


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_namespace_that_is_no_more_takes_its_port_along(tmp_path: Path, how: str) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    agent = reconciler(tmp_path, switch, datapath)
    agent.reconcile(ALL)
    first = agent.reconcile(ALL, standing=TAKEN)
    assert errors(first) == {}
    if how == "removed":
        switch.missing.add(INSIDE.netns)
        del switch.links[link_of(first, INSIDE)]
    else:
        switch.identities[INSIDE.netns] = "boot/another"
    for mend in (True, False):
        outcome = agent.reconcile(ALL, mend, standing=TAKEN)
        assert outcome.gone == {INSIDE.id}
        assert errors(outcome).keys() == {INSIDE.id}


def refused(tmp_path: Path, *ports: PortGoal) -> dict[str, str]:
    return errors(reconciler(tmp_path, FakeSwitch(), FakeDatapath()).reconcile(goals(HOST, NET, *ports)))


def test_names_of_far_ends_are_nobody_elses(tmp_path: Path) -> None:
    twin = replace(SECOND, interface="slc1")
    assert "is that of endpoint default/one too" in refused(tmp_path, FIRST, twin)[twin.id]
    for wrong in ("slp7", "slb1", "lan0", "lo"):
        assert "another link of this host" in refused(tmp_path, replace(FIRST, interface=wrong))[FIRST.id]
    tap = replace(FIRST, handed=False, interface="slc77")
    assert "tap device 'slc77'" in refused(tmp_path, tap)[FIRST.id]
