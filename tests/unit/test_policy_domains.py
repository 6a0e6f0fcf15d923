"""Domain names in policy: whose DNS is inspected, and that it is allowed only where policy allows it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from agent_kit import HOST, FakeDatapath, built, engine, goals, ids_for, ip, nat, number_of, observed, port, tcp, udp
from scapy.packet import Packet

from agent.build import INSPECT_LINKS, Built, build
from southbound.messages import AclRule, AclTier, PortGoal
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict

NAT = nat(1)
RESOLVER, WORLD = "172.16.0.53", "203.0.113.9"
NAMES = AclRule(20, "out", "allow", (), 6, ((443, 443),), "names", domains=("api.example.com", "*.example.org"))
RESOLVE = AclRule(10, "out", "allow", (f"{RESOLVER}/32",), 17, ((53, 53),), "resolver")


def web(*tiers: AclTier, default_out: str = "deny") -> PortGoal:
    return port("web", NAT, "192.168.1.5", 5, tiers=tiers, default_out=default_out)


def tier(*rules: AclRule, order: int = 10, name: str = "default/egress") -> AclTier:
    return AclTier(name, order, rules)


def sent(made: Built, goal: PortGoal, dst: str, payload: Packet, within: Engine | None = None) -> Result:
    return (within or engine(made)).process(Hook.PORT_OUT, number_of(made, goal), ip(goal, dst, payload), now_s=0)


def test_names_open_what_the_set_has_and_nothing_else() -> None:
    goal = web(tier(RESOLVE, NAMES))
    made = built(HOST, NAT, goal)
    (rule,) = made.domains
    assert (rule.port, rule.names) == (number_of(made, goal), NAMES.domains)
    here = engine(made)
    assert sent(made, goal, WORLD, tcp(443), here).reason is DropReason.LAYER_DEFAULT
    here.add_members(rule.set_id, (ip_network(f"{WORLD}/32"),), 0, 60, redecide=False)
    assert sent(made, goal, WORLD, tcp(443), here).verdict is Verdict.REDIRECT_UPLINK
    assert sent(made, goal, WORLD, tcp(80, sport=9), here).reason is DropReason.LAYER_DEFAULT
    assert sent(made, goal, "203.0.113.8", tcp(443), here).reason is DropReason.LAYER_DEFAULT


def test_dns_is_inspected_where_policy_allows_it_and_nowhere_else() -> None:
    goal = web(tier(RESOLVE, NAMES))
    made = built(HOST, NAT, goal)
    assert made.inspects == (goal.id,)
    assert set(INSPECT_LINKS) <= made.links()
    assert made.engine.inspect_ifindex
    assert sent(made, goal, RESOLVER, udp(53)).verdict is Verdict.INSPECT
    assert sent(made, goal, RESOLVER, tcp(53)).reason is DropReason.LAYER_DEFAULT       # only UDP was allowed
    assert sent(made, goal, WORLD, udp(53)).reason is DropReason.LAYER_DEFAULT


@pytest.mark.parametrize(("rule", "verdict"), [
    (AclRule(5, "out", "deny", (), 17, ((53, 53),)), DropReason.DENIED),
    (AclRule(5, "out", "pass", (), 17), DropReason.LAYER_DEFAULT),
    (AclRule(10, "out", "allow", (), None), Verdict.INSPECT),
    (AclRule(10, "out", "allow", (), 17, ((50, 60),)), Verdict.INSPECT),
    (AclRule(10, "out", "allow", (), 17, ((54, 60),)), DropReason.LAYER_DEFAULT),
])
def test_other_rules_about_dns_keep_their_place(rule: AclRule, verdict: DropReason | Verdict) -> None:
    rules = (rule, NAMES) if rule.action == "allow" else (rule, RESOLVE, NAMES)
    goal = web(tier(*rules))
    result = sent(built(HOST, NAT, goal), goal, RESOLVER, udp(53))
    assert verdict in (result.verdict, result.reason)


def test_a_later_tier_and_the_default_inspect_too() -> None:
    first = tier(AclRule(0, "out", "pass", (), 17), NAMES)
    goal = web(first, tier(RESOLVE, order=20, name="default/later"))
    assert sent(built(HOST, NAT, goal), goal, RESOLVER, udp(53)).verdict is Verdict.INSPECT
    goal = web(tier(NAMES), default_out="allow")
    made = built(HOST, NAT, goal)
    assert sent(made, goal, RESOLVER, udp(53)).verdict is Verdict.INSPECT
    assert sent(made, goal, RESOLVER, tcp(53)).verdict is Verdict.INSPECT
    assert sent(made, goal, RESOLVER, udp(54)).verdict is Verdict.REDIRECT_UPLINK


def test_without_a_detour_dns_is_closed() -> None:
    goal = web(tier(RESOLVE, NAMES))
    made = built(HOST, NAT, goal)
    here = Engine(replace(made.engine, inspect_ifindex=0))
    assert sent(made, goal, RESOLVER, udp(53), here).reason is DropReason.INSPECT_UNAVAILABLE


def test_sets_are_of_one_endpoint_and_rule_and_keep_their_ids() -> None:
    other = replace(web(tier(RESOLVE, NAMES)), id="uid-app", name="app", address="192.168.1.6/24",
                    mac="02:00:00:00:00:06", netns="ns-app")
    goal = web(tier(RESOLVE, NAMES))
    first, again = built(HOST, NAT, goal), built(HOST, NAT, other, goal)
    assert len({rule.set_id for rule in again.domains}) == 2
    assert {rule.set_id for rule in first.domains} < {rule.set_id for rule in again.domains}
    assert all(given.dynamic for given in again.engine.sets)
    changed = built(HOST, NAT, web(tier(RESOLVE, replace(NAMES, domains=("other.example.com",)))))
    assert {rule.set_id for rule in changed.domains}.isdisjoint(rule.set_id for rule in first.domains)


def test_who_names_no_domains_is_not_inspected() -> None:
    goal = web(tier(RESOLVE), default_out="allow")
    made = built(HOST, NAT, goal)
    assert (made.inspects, made.domains) == ((), ())
    assert not set(INSPECT_LINKS) & made.links()
    assert sent(made, goal, RESOLVER, udp(53)).verdict is Verdict.REDIRECT_UPLINK


def test_the_detour_is_wanted_before_it_is_there() -> None:
    goal = web(tier(RESOLVE, NAMES))
    state, ids = goals(HOST, NAT, goal), ids_for(HOST, NAT, goal)
    found = observed(state, ids)
    without = {name: link for name, link in found.owned.items() if name not in INSPECT_LINKS}
    plan = build(state, replace(found, owned=without), ids)
    assert set(INSPECT_LINKS) <= plan.links()
    assert plan.engine.inspect_ifindex == 0
    FakeDatapath().apply(plan.engine)
