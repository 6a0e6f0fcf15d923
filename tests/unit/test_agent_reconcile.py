"""`agent.reconcile` against fakes: order, difference, one bad object alone, crash and recovery."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from agent_kit import (
    HOST,
    MAX_PORTS,
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

from agent.goals import Goals
from agent.ids import Ids
from agent.reconcile import Outcome, Reconciler
from agent.state import Disk
from policy.contribution import DomainRule
from southbound.messages import AclRule, AclTier, key_of
from vswitch.links import Detour

NAT, RED = nat(1), overlay(5001)
WEB, APP = port("web", NAT, "192.168.1.5", 5), port("app", NAT, "192.168.1.6", 6)
RED_A, FAR = port("ra", RED, "10.1.0.2", 7), remote("far", RED, "10.1.0.9", 8)
MAP = mapping("m", WEB, 8080, 80)
ALL = goals(HOST, NAT, RED, WEB, APP, RED_A, FAR, MAP)


def errors(outcome: Outcome) -> dict[str, str]:
    return {status.id: status.error for status in outcome.objects if status.error}


def details(outcome: Outcome, uid: str) -> dict[str, object]:
    return next(status.details for status in outcome.objects if status.id == uid)


def test_from_nothing_all_is_made_hooked_and_programmed(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    outcome = reconciler(tmp_path, switch, datapath).reconcile(ALL)
    assert outcome.complete
    assert set(switch.links) == {"slb1", "slp1", "slp2", "slp3", "slvx0"}
    ports = {switch.links[name].ifindex for name in switch.links if name.startswith("slp")}
    for ifindex in ports:
        assert switch.filters[ifindex, "ingress"] == "sluice_port_out"
        assert switch.filters[ifindex, "egress"] == "sluice_port_in"
    assert switch.filters[switch.links["slvx0"].ifindex, "ingress"] == "sluice_overlay_in"
    assert switch.filters[3, "ingress"] == "sluice_uplink_in"
    assert len(datapath.applied[-1].ports) == 3
    assert datapath.applied[-1].tunnel_ifindex == switch.links["slvx0"].ifindex
    assert switch.neighbours["slb1"] == {"192.168.1.5": WEB.mac, "192.168.1.6": APP.mac}
    assert switch.reserved == [(20000, 32767), (8080, 8080)]
    assert details(outcome, MAP.id)["external_addresses"] == ["172.16.0.10", "172.17.0.10"]


def test_a_new_link_is_hooked_before_anything_else_happens_and_programmed_before_the_uplink(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    reconciler(tmp_path, switch, datapath).reconcile(ALL)
    calls = switch.calls
    for name in ("slp1", "slp2", "slp3"):
        made = calls.index(("ensure", name))
        ifindex = str(switch.links[name].ifindex)
        assert calls[made + 1 : made + 3] == [
            ("attach", ifindex, "ingress", "sluice_port_out"),
            ("attach", ifindex, "egress", "sluice_port_in"),
        ]
    assert calls.index(("apply",)) < calls.index(("attach", "3", "ingress", "sluice_uplink_in"))


def test_identities_are_on_disk_before_links_are_made(tmp_path: Path) -> None:
    class Dying(FakeSwitch):
        def ensure_port(self, link: object, hooked: object = ()) -> int:
            raise KeyboardInterrupt

    switch = Dying()
    with pytest.raises(KeyboardInterrupt):
        reconciler(tmp_path, switch, FakeDatapath()).reconcile(ALL)
    assert set(Disk(tmp_path).load().ids.ports) == {WEB.id, APP.id, RED_A.id}


def test_a_second_run_writes_nothing_to_the_engine(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    one = reconciler(tmp_path, switch, datapath)
    first = one.reconcile(ALL)
    second = one.reconcile(ALL)
    assert len(datapath.applied) == 1
    assert first.objects == second.objects


def test_a_restarted_agent_keeps_every_link_and_id(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    reconciler(tmp_path, switch, datapath).reconcile(ALL)
    links = dict(switch.links)
    reconciler(tmp_path, switch, datapath).reconcile(ALL)
    assert switch.links == links
    assert datapath.applied[0] == datapath.applied[1]
    assert not [call for call in switch.calls if call[0] in ("remove", "detach")]


def test_lost_disk_state_comes_back_from_aliases(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    reconciler(tmp_path / "old", switch, datapath).reconcile(goals(HOST, NAT, RED, APP))
    reconciler(tmp_path / "old", switch, datapath).reconcile(ALL)      # so ids are not in the order of uids
    reconciler(tmp_path / "new", switch, datapath).reconcile(ALL)
    assert datapath.applied[-1] == datapath.applied[-2]


def test_missing_namespace_is_that_endpoints_error_alone_and_mends(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(missing={WEB.netns}), FakeDatapath()
    one = reconciler(tmp_path, switch, datapath)
    outcome = one.reconcile(ALL)
    assert not outcome.complete
    assert set(errors(outcome)) == {WEB.id, MAP.id}
    assert WEB.netns in errors(outcome)[WEB.id]
    assert {p.name for p in datapath.applied[-1].ports} == {"default/app", "red/ra"}
    switch.missing.clear()
    assert one.reconcile(ALL).complete
    assert len(datapath.applied[-1].ports) == 3


def test_a_tunnel_that_fails_names_host_and_remotes(tmp_path: Path) -> None:
    switch = FakeSwitch(broken="slvx0")
    outcome = reconciler(tmp_path, switch, FakeDatapath()).reconcile(ALL)
    assert set(errors(outcome)) == {"self", FAR.id}


def test_a_lost_uplink_names_networks_and_mappings_and_the_host_keeps_its_own_way_in(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    one = reconciler(tmp_path, switch, datapath)
    one.reconcile(ALL)
    switch.lost_uplink = True
    outcome = one.reconcile(ALL)
    assert set(errors(outcome)) == {NAT.id, MAP.id}
    assert switch.reserved == [(20000, 32767), (8080, 8080)]
    assert [uplink.name for uplink in datapath.applied[-1].uplinks] == ["lo"]


def test_what_is_no_longer_wanted_goes_ports_first_bridge_last(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    one = reconciler(tmp_path, switch, datapath)
    one.reconcile(ALL)
    switch.calls.clear()
    assert one.reconcile(goals(HOST, revision=2)).complete
    assert set(switch.links) == {"slvx0"}           # who has an old map of us is told so by a drop
    assert one.reconcile(goals(replace(HOST, underlay=""), revision=3)).complete
    assert switch.links == {}
    order = [call[1] if call[0] == "remove" else call[0] for call in switch.calls]
    assert order.index("slp1") < order.index("apply") < order.index("slb1")
    assert (3, "ingress") not in switch.filters
    assert switch.reserved == []
    assert datapath.applied[-1].ports == ()


def test_a_port_that_does_not_compile_stops_no_other(tmp_path: Path) -> None:
    tiers = tuple(AclTier(f"red/p{n}", n, (AclRule(0, "out", "pass"),)) for n in range(40))
    crowded = replace(RED_A, tiers=tiers)
    datapath = FakeDatapath()
    outcome = reconciler(tmp_path, FakeSwitch(), datapath).reconcile(goals(HOST, NAT, RED, WEB, crowded))
    assert set(errors(outcome)) == {RED_A.id}
    assert "groups" in errors(outcome)[RED_A.id]
    assert [p.name for p in datapath.applied[-1].ports] == ["default/web"]


def test_more_ports_than_ids_leave_the_rest_out(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    one = reconciler(tmp_path, switch, datapath)
    one._max_ports = 3
    outcome = one.reconcile(ALL)
    assert len(datapath.applied[-1].ports) == 2
    assert any("no free port id" in error for error in errors(outcome).values())


def test_every_goal_has_a_status(tmp_path: Path) -> None:
    state: Goals = ALL
    outcome = reconciler(tmp_path, FakeSwitch(), FakeDatapath()).reconcile(state)
    assert {(status.kind, status.id) for status in outcome.objects} == {key_of(g) for g in state.objects.values()}


def test_a_run_that_does_not_mend_touches_only_ports_that_changed(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    one = reconciler(tmp_path, switch, datapath)
    one.reconcile(ALL, mend=False)
    switch.calls.clear()
    policy = replace(WEB, tiers=(AclTier("default/p", 1, (AclRule(0, "out", "deny"),)),))
    one.reconcile(goals(HOST, NAT, RED, policy, APP, replace(RED_A, address="10.1.0.4/24"), FAR, MAP), mend=False)
    touched = [call[1] for call in switch.calls if call[0] == "ensure" and call[1].startswith("slp")]
    assert touched == [f"slp{one._ids.ports[RED_A.id]}"]
    assert ("apply",) in switch.calls


def test_a_link_that_vanished_or_lost_its_bridge_is_made_again_without_mending(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    one = reconciler(tmp_path, switch, datapath)
    one.reconcile(ALL)
    web, app = (f"slp{one._ids.ports[goal.id]}" for goal in (WEB, APP))
    del switch.links[web]
    switch.calls.clear()
    one.reconcile(ALL, mend=False)
    assert ("ensure", web) in switch.calls
    assert ("ensure", app) not in switch.calls
    del switch.links["slb1"]
    one.reconcile(ALL, mend=False)
    assert ("ensure", app) in switch.calls


def test_what_is_as_it_was_made_is_not_looked_at_without_mending(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    one = reconciler(tmp_path, switch, datapath)
    one.reconcile(ALL)
    switch.calls.clear()
    one.reconcile(ALL, mend=False)
    assert switch.calls == []
    one.reconcile(goals(HOST, NAT, RED, WEB, APP, RED_A, FAR), mend=False)     # nobody needs lo any more
    assert ("close loopback",) in switch.calls
    one.reconcile(ALL, mend=False)
    assert ("attach", "1", "ingress", "sluice_uplink_in") in switch.calls


@pytest.mark.parametrize("link", ["slb1", "slvx0"])
def test_a_bridge_or_tunnel_that_vanished_is_made_again_without_mending(link: str, tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    one = reconciler(tmp_path, switch, datapath)
    one.reconcile(ALL)
    hooks = len(switch.filters)
    gone = switch.links.pop(link)
    switch.filters = {place: name for place, name in switch.filters.items() if place[0] != gone.ifindex}
    switch.calls.clear()
    one.reconcile(ALL, mend=False)
    assert ("ensure", link) in switch.calls
    assert len(switch.filters) == hooks


def test_mending_looks_at_every_port_and_its_hooks(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(), FakeDatapath()
    one = reconciler(tmp_path, switch, datapath)
    one.reconcile(ALL)
    switch.filters.clear()
    one.reconcile(ALL, mend=True)
    assert len(switch.filters) == 10


@dataclass
class FakeEgress:
    """What a reconciler tells whoever serves the DNS queue."""

    calls: list[tuple[str, ...]] = field(default_factory=list)

    def follow(self, detour: Detour) -> None:
        self.calls.append(("follow", str(detour.ifindex)))

    def configure(self, rules: Iterable[DomainRule]) -> None:
        self.calls.append(("configure", *(name for rule in rules for name in rule.names)))

    def stop(self) -> None:
        self.calls.append(("stop",))


NAMED = port("named", NAT, "192.168.1.9", 9, tiers=(AclTier("default/egress", 10, (
    AclRule(10, "out", "allow", domains=("api.example.com",)),)),))


def test_dns_is_served_before_the_policy_that_needs_it_and_no_longer_than_that(tmp_path: Path) -> None:
    switch, datapath, egress = FakeSwitch(), FakeDatapath(), FakeEgress()
    made = Reconciler(switch, datapath, Disk(tmp_path), Ids(), MAX_PORTS, egress)
    datapath.calls = egress.calls
    outcome = made.reconcile(goals(HOST, NAT, NAMED))
    assert outcome.complete
    assert [call[0] for call in egress.calls] == ["follow", "configure", "apply"]
    assert egress.calls[1] == ("configure", "api.example.com")
    assert datapath.applied[-1].inspect_ifindex == switch.links["sl-ins0"].ifindex
    egress.calls.clear()
    made.reconcile(goals(HOST, NAT))
    assert egress.calls[-1] == ("stop",)
    assert "sl-ins0" not in switch.links


def test_a_host_that_cannot_inspect_says_so_of_the_ports_that_need_it(tmp_path: Path) -> None:
    switch, datapath = FakeSwitch(broken="sl-ins0"), FakeDatapath()
    made = Reconciler(switch, datapath, Disk(tmp_path), Ids(), MAX_PORTS, FakeEgress())
    outcome = made.reconcile(goals(HOST, NAT, NAMED, WEB))
    failed = {status.id: status.error for status in outcome.objects if status.error}
    assert set(failed) == {NAMED.id}
    assert "egress by domain name" in failed[NAMED.id]
    assert datapath.applied[-1].inspect_ifindex == 0
