"""Endpoints nested behind another: each is judged by its own policies on the port that they share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_kit import HOST, arp_request, built, engine, error_of, ip, number_of, overlay, port, remotes, tcp, udp

from agent.build import Built
from southbound.messages import AclRule, AclTier, PortGoal
from vfp.model import LocalPort, Space
from vfp.reference import Verdict
from vfp.reference.engine import Result
from vfp.reference.explain import explain_frame
from vfp.reference.zones import Hook

RED = overlay(5001)
VM = port("vm", RED, "10.1.0.2", 0x12)
OTHER = port("other", RED, "10.1.0.3", 0x13)
FAR = remotes(RED, ("far", "10.1.0.9", 0x19, ""))


def nested(name: str, address: str, *rules: AclRule, policy: str = "red/web", **more: object) -> PortGoal:
    tiers = (AclTier(policy, 10, rules),) if rules else ()
    one = port(name, RED, address, 0x12, tiers=tiers, **more)
    return replace(one, netns="", interface="", behind=VM.id)


NO_WEB = AclRule(10, "out", "deny", protocol=6, ports=((80, 80),), name="no-web")
C1 = nested("c1", "10.1.0.21", NO_WEB, AclRule(20, "in", "deny", ("10.1.0.9/32",), name="no-far"))
C2 = nested("c2", "10.1.0.22")
ALL = (HOST, RED, VM, OTHER, FAR)


def send(made: Built, source: str, target: str, dport: int = 80) -> Result:
    frame = ip(VM, target, tcp(dport), src=source, dst_mac=RED.gateway_mac)
    return engine(made).process(Hook.PORT_OUT, number_of(made, VM), frame, now_s=0)


def test_nested_endpoints_have_no_link_and_are_behind_the_port() -> None:
    made = built(*ALL, C1, C2)
    assert set(made.ports) == {VM.id, OTHER.id}
    assert made.nested == {C1.id: VM.id, C2.id: VM.id}
    space: Space = made.engine.spaces[0]
    place = LocalPort(number_of(made, VM), bytes((2, 0, 0, 0, 0, 0x12)))
    assert {str(address) for address, location in space.entries if location == place} == {
        "10.1.0.2", "10.1.0.21", "10.1.0.22"}


def test_policy_for_one_does_not_touch_its_neighbour_nor_the_machine() -> None:
    made = built(*ALL, C1, C2)
    denied = send(made, "10.1.0.21", "10.1.0.3")
    assert denied.denied_by is not None
    assert (denied.layer, denied.denied_by.group, denied.denied_by.rule.name) == ("acl", "red/web", "c1: no-web")
    for source in ("10.1.0.22", "10.1.0.2"):
        assert send(made, source, "10.1.0.3").port == number_of(made, OTHER)
    assert send(made, "10.1.0.21", "10.1.0.3", 81).port == number_of(made, OTHER)


def test_between_two_of_one_machine_both_policies_hold() -> None:
    only_c1 = AclRule(10, "in", "allow", ("10.1.0.21/32",), 6, ((80, 81),), name="from-c1")
    strict = replace(nested("c2", "10.1.0.22", only_c1), default_in="deny")
    made = built(*ALL, C1, strict)
    assert send(made, "10.1.0.21", "10.1.0.22", 81).port == number_of(made, VM)
    assert send(made, "10.1.0.21", "10.1.0.22", 80).layer == "acl"      # c1 may not
    refused = send(made, "10.1.0.2", "10.1.0.22", 81)
    assert refused.denied_by is not None
    assert refused.denied_by.rule.name == "c2: default"


def test_the_machines_own_policies_are_not_its_containers() -> None:
    machine = replace(VM, tiers=(AclTier("red/vm", 5, (AclRule(1, "out", "deny", name="nothing"),)),))
    made = built(HOST, RED, machine, OTHER, FAR, C1, C2)
    assert send(made, "10.1.0.2", "10.1.0.3").verdict is Verdict.DROP
    assert send(made, "10.1.0.22", "10.1.0.3").port == number_of(made, OTHER)


def test_the_machine_answers_and_sends_for_all_of_them_and_for_nobody_else() -> None:
    made = built(*ALL, C1, C2)
    asks = arp_request(replace(VM, address="10.1.0.21/24"), "10.1.0.3")
    assert engine(made).process(Hook.PORT_OUT, number_of(made, VM), asks, now_s=0).verdict is Verdict.REPLY
    assert send(made, "10.1.0.23", "10.1.0.3").layer == "guard"


def test_many_with_one_policy_need_one_group() -> None:
    crowd = [nested(f"n{n}", f"10.1.0.{n}", NO_WEB, policy=f"red/p{n % 3}") for n in range(30, 130)]
    made = built(HOST, RED, VM, OTHER, *crowd)
    acl = next(layer for one in made.engine.ports if one.name == "red/vm" for layer in one.layers
               if layer.name == "acl")
    assert [group.name for group in acl.groups_out] == ["arp", "red/p0", "red/p1", "red/p2", "nested"]
    denied = send(made, "10.1.0.77", "10.1.0.3")
    assert denied.denied_by is not None
    assert denied.denied_by.rule.name == "n77: no-web"
    assert send(made, "10.1.0.77", "10.1.0.3", 81).verdict is Verdict.REDIRECT_PORT


@pytest.mark.parametrize(("bad", "words"), [
    (replace(C1, behind="gone"), "(gone) is not ready"),
    (replace(C1, address="10.1.0.3/24"), "that of red/other too"),
    (replace(C1, address="10.7.0.3/24"), "outside network"),
    (nested("c1", "10.1.0.21", AclRule(70000, "out", "allow")), "70000"),
])
def test_a_bad_one_is_out_alone(bad: PortGoal, words: str) -> None:
    made = built(*ALL, bad, C2)
    assert words in error_of(made, bad)
    assert error_of(made, VM) == error_of(made, C2) == ""
    assert send(made, "10.1.0.22", "10.1.0.3").port == number_of(made, OTHER)
    assert bad.id not in made.nested


def test_when_the_machine_is_not_there_its_containers_say_so() -> None:
    made = built(HOST, RED, replace(VM, mac="nonsense"), C1)
    assert "is not ready on this host" in error_of(made, C1)


def test_domain_rules_of_a_nested_endpoint_fill_its_own_set() -> None:
    one = nested("c1", "10.1.0.21", AclRule(10, "out", "allow", domains=("example.com",)))
    made = built(*ALL, one)
    [rule] = made.domains
    assert (rule.port, rule.names) == (number_of(made, VM), ("example.com",))
    query = ip(VM, "10.1.0.3", udp(53), src="10.1.0.21", dst_mac=RED.gateway_mac)
    said = explain_frame(made.engine, Hook.PORT_OUT, number_of(made, VM), query, 0.0)
    assert "c1: default (dns)" in [ref.rule.name for ref in said.decision.hits]
