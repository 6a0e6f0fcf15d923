"""Peers of policy rules become sets: one a rule, shared by ports, changed by writing members, named in traces."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

from agent_kit import HOST, built, overlay, port

from agent.words import match_text
from policy.peers import set_identity
from southbound.messages import AclRule, AclTier, PortGoal
from vfp.model import AddressSet, Match, Rule
from vfp.reference import Hook, explain, probe

RED, BLUE = overlay(5001), overlay(5002, "10.2.0.0/24", tenant="blue")
PEERS = tuple(f"10.1.0.{n}/32" for n in range(100, 150))


def policy(*rules: AclRule) -> tuple[AclTier, ...]:
    return (AclTier("red/web", 1, rules),)


def allow(*peers: str, name: str = "clients", **more: object) -> AclRule:
    return AclRule(10, "in", "allow", peers, 6, ((80, 80),), name, **more)  # type: ignore[arg-type]


def two(*rules: AclRule) -> tuple[PortGoal, PortGoal]:
    return (port("ra", RED, "10.1.0.2", 2, tiers=policy(*rules)), port("rb", RED, "10.1.0.3", 3, tiers=policy(*rules)))


def web_rules(*objects: PortGoal) -> tuple[list[tuple[Rule, ...]], tuple[AddressSet, ...]]:
    made = built(HOST, RED, BLUE, *objects)
    rules = [
        group.rules for one in made.engine.ports for layer in one.layers for group in layer.groups_in
        if group.name == "red/web"
    ]
    return rules, made.engine.sets


def test_many_peers_are_one_rule_and_one_set_for_all_ports() -> None:
    rules, sets = web_rules(*two(allow(*PEERS, PEERS[0])))
    assert [len(one) for one in rules] == [1, 1]
    assert rules[0] == rules[1]
    (given,) = sets
    assert given.name == "red/web/clients"
    assert given.members == tuple(map(IPv4Network, PEERS))
    match = rules[0][0].match
    assert (match.src_set, match.src, match.dst_set) == (given.id, None, None)


def test_a_change_of_peers_is_a_change_of_members() -> None:
    before, (old,) = web_rules(*two(allow(*PEERS)))
    after, (new,) = web_rules(*two(allow(*PEERS[1:], "10.1.9.9/32")))
    assert before == after
    assert (old.id, old.name) == (new.id, new.name)
    assert old.members != new.members


def test_one_peer_needs_no_set() -> None:
    rules, sets = web_rules(*two(allow(PEERS[0], PEERS[0])))
    assert sets == ()
    assert rules[0][0].match.src == IPv4Network(PEERS[0])


def test_each_rule_and_direction_has_its_own_set_also_with_equal_names() -> None:
    same = allow(*PEERS)
    out = replace(same, direction="out", priority=20)
    other = replace(allow("10.9.0.0/24", "10.8.0.0/24"), priority=11)
    _, sets = web_rules(*two(same, other, out))
    assert len({given.id for given in sets}) == 3
    assert sorted(len(given.members) for given in sets) == [2, 50, 50]


def test_a_policy_of_another_network_has_its_own_set() -> None:
    ra, _ = two(allow(*PEERS))
    blue = port("ba", BLUE, "10.2.0.2", 4, tiers=policy(allow(*PEERS)))
    _, sets = web_rules(ra, blue)
    assert len(sets) == 2


def test_ports_that_contradict_each_other_get_what_each_says() -> None:
    ra, rb = two(allow(*PEERS))
    rb = replace(rb, tiers=policy(allow(*PEERS[:2])))
    rules, sets = web_rules(ra, rb)
    members = {given.id: len(given.members) for given in sets}
    assert [members[one[0].match.src_set or 0] for one in rules] == [50, 2]


def test_a_port_that_is_left_out_takes_no_set_away_from_the_others() -> None:
    """The first of two lists goes with its port; the other keeps meaning what it says."""
    ra, rb = two(allow(*PEERS))
    rb = replace(rb, tiers=policy(allow(*PEERS[:2])))
    bad = AclTier("red/bad", 2, (AclRule(10, "out", "allow", ("10.1.0.3/24",)),))
    rules, sets = web_rules(replace(ra, tiers=(*ra.tiers, bad)), rb)
    (given,) = sets
    assert (len(given.members), rules[0][0].match.src_set) == (2, given.id)


def test_a_bad_peer_among_many_stops_its_port_and_says_so() -> None:
    ra, rb = two(allow(*PEERS, "10.1.0.3/24"))
    made = built(HOST, RED, ra, replace(rb, tiers=()))
    (fault,) = made.faults
    assert fault.key == ("port", ra.id)
    assert "policy rule clients: peer: 10.1.0.3/24 has host bits set" in fault.message
    assert made.engine.sets == ()


def test_two_keys_of_one_hash_are_two_sets() -> None:
    first = set_identity(("net", "red/web", "in", "r", 0, 0), set())
    assert set_identity(("net", "red/web", "in", "r", 0, 0), {first}) != first


def test_traces_and_listings_name_the_set() -> None:
    ra, rb = two(allow(*PEERS))
    made = built(HOST, RED, ra, rb)
    packet = probe(made.engine, Hook.PORT_OUT, 1, source=IPv4Network("10.1.0.2").network_address,
                   destination=IPv4Network("10.1.0.3").network_address, protocol=6, destination_port=80)
    steps = explain(made.engine, Hook.PORT_OUT, 1, packet).to_dict()["steps"]
    assert [step["note"] for step in steps if step["rule"] == "clients"] == [
        "source 10.1.0.2 is not in set red/web/clients"
    ]
    (given,) = made.engine.sets
    match = Match(protocol=6, src_set=given.id)
    assert match_text(match, {given.id: given.name}) == "tcp src set red/web/clients"
    assert match_text(match) == f"tcp src set {given.id}"
