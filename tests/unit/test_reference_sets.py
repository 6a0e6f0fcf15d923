"""Sets, the newer conditions and the flags of rules: what is refused, what holds, and what decides again."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from reference_kit import A_1, A_2, A_9, VNI, VTEP, arp, host, layer, rule, tcp, udp

from vfp.compile import Compiler
from vfp.errors import CompileError
from vfp.layout import RULE, If, RuleFlag
from vfp.model import (
    Action,
    AddressSet,
    Allow,
    Deny,
    Direction,
    EngineState,
    Group,
    Layer,
    Log,
    Mark,
    Match,
    Pass,
    Port,
    Prefix,
    Rule,
)
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Verdict
from vfp.reference.layers import Dropped, RuleRef, Surroundings, mismatch, walk
from vfp.reference.packet import FlowTuple, Headers, parse
from vfp.reference.sets import Sets
from vfp.sets import compile_set, keys_of, prefix_of, set_of

CLIENTS = AddressSet(7, "clients", (IPv4Network("10.1.0.0/30"), IPv6Network("2001:db8::/64")))
LEARNT = AddressSet(8, "learnt", dynamic=True)
ONE = IPv4Network(A_1)
SYN_1_2 = tcp(A_1, A_2)


def with_rule(given: Rule, *sets: AddressSet) -> EngineState:
    return replace(host(two=(Layer("acl", (), (Group("g", (given,)),), Allow(), Allow()),)), sets=sets)


def compiled(given: Rule, *sets: AddressSet) -> Any:
    tables = Compiler().compile(with_rule(given, *sets), 16)
    (group,) = [group for group in tables.groups.values() if group.group.name == "g"]
    return group.whole()[0]


class Around(Surroundings):
    def __init__(self, *sets: AddressSet, vni: int | None = None) -> None:
        self._sets = Sets(EngineState(sets=sets))
        self._vni = vni

    @property
    def vni(self) -> int | None:
        return self._vni

    def in_set(self, set: int, address: Any) -> bool:
        return self._sets.has(set, address, 0.0, again=False)

    def set_name(self, set: int) -> str:
        return self._sets.name(set)


def why_not(data: bytes, around: Surroundings | None = None, **match: Any) -> str:
    packet = parse(data)
    return mismatch(Match(**match), packet.headers, packet.tuple, around)


# Compile


def test_records_hold_the_newer_conditions() -> None:
    record = compiled(Rule(1, Match(src_set=7, dst_set=8, vni=100, fragment=True), Deny()), CLIENTS, LEARNT)
    assert record.dtype == RULE
    assert int(record["conditions"]) == If.SRC_SET | If.DST_SET | If.VNI | If.FRAGMENT
    assert [int(record[name]) for name in ("src_set", "dst_set", "vni", "fragment")] == [7, 8, 100, 1]
    assert int(compiled(Rule(1, Match(fragment=False), Deny()))["fragment"]) == 0


def test_syn_only_is_a_test_of_flags_beside_those_given() -> None:
    record = compiled(Rule(1, Match(tcp_flags=(0x04, 0)), Deny(), syn_only=True))
    assert (int(record["tcp_mask"]), int(record["tcp_value"])) == (0x16, 0x02)
    assert int(record["conditions"]) == If.TCP_FLAGS


def test_a_rule_that_goes_on_says_so_and_is_never_stateless() -> None:
    assert int(compiled(Rule(1, Match(), Mark(10), stateful=False, terminating=False))["flags"]) == RuleFlag.CONTINUE
    assert int(compiled(Rule(1, Match(), Mark(10), stateful=False))["flags"]) == RuleFlag.STATELESS


@pytest.mark.parametrize(("given", "words"), [
    (Rule(1, Match(src_set=9), Deny(), "r"), "rule 'r': src_set 9 does not exist"),
    (Rule(1, Match(dst_set=9), Deny(), "r"), "rule 'r': dst_set 9 does not exist"),
    (Rule(1, Match(src_set=-1), Deny(), "r"), "src_set -1 is out of range"),
    (Rule(1, Match(vni=1 << 24), Deny(), "r"), "vni 16777216 is out of range"),
    (Rule(1, Match(), Allow(), "r", terminating=False), "rule 'r': action Allow decides"),
    (Rule(1, Match(), Pass(), "r", terminating=False), "rule 'r': action Pass decides"),
    (Rule(1, Match(tcp_flags=(0x10, 0x10)), Allow(), "r", syn_only=True), "syn_only wants SYN without ACK"),
    (Rule(1, Match(tcp_flags=(0x02, 0)), Allow(), "r", syn_only=True), "syn_only wants SYN without ACK"),
    (Rule(1, Match(protocol=17), Allow(), "r", syn_only=True), "protocol 17"),
])
def test_rules_that_cannot_be_are_refused(given: Rule, words: str) -> None:
    with pytest.raises(CompileError, match=words.replace("(", r"\(")):
        Compiler().compile(with_rule(given, CLIENTS), 16)


@pytest.mark.parametrize(("sets", "words"), [
    ((CLIENTS, replace(LEARNT, id=7)), "'clients' and 'learnt' both have id 7"),
    ((replace(CLIENTS, id=0),), "set 'clients': id 0 is out of range"),
    ((replace(CLIENTS, id=1 << 32),), "out of range"),
    ((replace(CLIENTS, dynamic=True),), "is dynamic and is given 2 members"),
])
def test_sets_that_cannot_be_are_refused(sets: tuple[AddressSet, ...], words: str) -> None:
    with pytest.raises(CompileError, match=words):
        Compiler().compile(EngineState(sets=sets), 16)


def test_rules_of_one_priority_end_their_layer_alike() -> None:
    pair = (Rule(1, Match(), Mark(1), "a"), Rule(1, Match(protocol=6), Mark(1), "b", terminating=False))
    state = host(two=(Layer("acl", (), (Group("g", pair),)),))
    with pytest.raises(CompileError, match="do different things"):
        Compiler().compile(state, 16)


def test_a_large_group_that_is_edited_knows_its_sets() -> None:
    rules = tuple(Rule(n, Match(src_set=7 if n == 5 else None, protocol=6), Deny(), f"r{n}") for n in range(300))

    def state(rules: tuple[Rule, ...], *sets: AddressSet) -> EngineState:
        return replace(host(two=(Layer("acl", (), (Group("g", rules),)),)), sets=sets)

    compiler = Compiler()
    named = [compiler.compile(state(rules, CLIENTS), 16).ports[2].sets]
    more = (*rules[:9], Rule(9, Match(dst_set=8), Deny(), "new"), *rules[10:])
    named.append(compiler.compile(state(more, CLIENTS, LEARNT), 16).ports[2].sets)
    named.append(compiler.compile(state((*more[:5], *more[6:]), LEARNT), 16).ports[2].sets)
    assert named == [{7}, {7, 8}, {8}]
    with pytest.raises(CompileError, match="dst_set 8 does not exist"):
        compiler.compile(state(more, CLIENTS), 16)


def test_members_become_keys_and_back() -> None:
    prefixes: list[Prefix] = [IPv4Network("10.1.2.0/23"), IPv4Network("0.0.0.0/0"), IPv6Network("2001:db8::7/128")]
    keys = keys_of(0xFFFFFFFF, prefixes)
    assert [prefix_of(key) for key in keys] == prefixes
    assert {set_of(key) for key in keys} == {0xFFFFFFFF}
    assert list(compile_set(CLIENTS).members) == keys_of(7, CLIENTS.members)


# Conditions


HOLDS: list[tuple[bytes, Surroundings | None, dict[str, Any]]] = [
    (SYN_1_2, Around(CLIENTS), {"src_set": 7, "dst_set": 7}),
    (SYN_1_2, Around(CLIENTS), {"src_set": 7, "src": ONE}),
    (arp(A_1, A_9), Around(CLIENTS), {"src_set": 7}),
    (SYN_1_2, Around(vni=100), {"vni": 100}),
    (SYN_1_2, None, {"fragment": False}),
    (udp(A_1, A_2, payload=bytes(8), flags="MF"), None, {"fragment": True}),
    (udp(A_1, A_2, frag=5), None, {"fragment": True}),
]
FAILS: list[tuple[bytes, Surroundings | None, dict[str, Any], str]] = [
    (tcp(A_9, A_2), Around(CLIENTS), {"src_set": 7}, "source 10.1.0.9 is not in set clients"),
    (tcp(A_1, A_9), Around(CLIENTS), {"src_set": 7, "dst_set": 7}, "destination 10.1.0.9 is not in set clients"),
    (SYN_1_2, Around(CLIENTS), {"src_set": 7, "src": IPv4Network(A_9)}, "source 10.1.0.1 is not in 10.1.0.9/32"),
    (SYN_1_2, Around(), {"src_set": 7}, "source 10.1.0.1 is not in set 7"),
    (SYN_1_2, None, {"src_set": 7}, "source 10.1.0.1 is not in set 7"),
    (SYN_1_2, Around(vni=100), {"vni": 101}, "VNI 100 is not 101"),
    (SYN_1_2, None, {"vni": 101}, "not from the overlay"),
    (SYN_1_2, None, {"fragment": True}, "no fragment"),
    (udp(A_1, A_2, payload=bytes(8), flags="MF"), None, {"fragment": False}, "a fragment"),
    (arp(A_1, A_9), None, {"fragment": False}, "not IP"),
]


@pytest.mark.parametrize(("data", "around", "match"), HOLDS)
def test_conditions_that_hold(data: bytes, around: Surroundings | None, match: dict[str, Any]) -> None:
    assert why_not(data, around, **match) == ""


@pytest.mark.parametrize(("data", "around", "match", "words"), FAILS)
def test_conditions_that_do_not_hold_say_why(
    data: bytes, around: Surroundings | None, match: dict[str, Any], words: str
) -> None:
    assert why_not(data, around, **match) == words


def test_a_set_is_asked_only_when_all_else_holds() -> None:
    class Silent(Around):
        def in_set(self, set: int, address: Any) -> bool:
            raise AssertionError("asked")

    assert why_not(SYN_1_2, Silent(CLIENTS), src_set=7, protocol=17) == "protocol 6 is not 17"


def test_syn_only_lets_connections_open_and_nothing_else() -> None:
    given = Rule(1, Match(), Deny(), "no", syn_only=True)
    for frame, dropped in ((SYN_1_2, True), (tcp(A_1, A_2, flags="SA"), False), (tcp(A_1, A_2, flags="A"), False),
                           (udp(A_1, A_2), False)):
        engine = Engine(with_rule(given))
        assert (engine.process(Hook.PORT_OUT, 1, frame, now_s=0).reason is DropReason.DENIED) == dropped


# The walk


class Traveller(Around):
    """Takes note of what rules do."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Action, bool]] = []
        packet = parse(SYN_1_2)
        self.headers: Headers = packet.headers
        self.cur: FlowTuple = packet.tuple

    def act(self, ref: RuleRef, direction: Direction, *, stateful: bool) -> str:
        self.done.append((ref.rule.action, stateful))
        return "done"


def walked(*layers: Layer) -> list[tuple[Action, bool]]:
    traveller = Traveller()
    try:
        walk(Port(1, "p", 1, bytes(6), bytes(6), layers), Direction.OUT, traveller, [])
    except Dropped:
        traveller.done.append((Deny(), True))           # by the layer's default
    return traveller.done


def groups(*rules: Rule, default: Allow | Deny) -> Layer:
    return Layer("l", tuple(Group(f"g{n}", (one,)) for n, one in enumerate(rules)), (), default, Allow())


def test_a_rule_that_goes_on_acts_and_hands_over_to_the_next_group() -> None:
    on = Rule(1, Match(), Mark(10), stateful=False, terminating=False)
    assert walked(groups(on, rule(1, Log()), rule(1, Mark(3)), default=Deny())) == [(Mark(10), True), (Log(), True)]
    assert walked(groups(on, default=Deny())) == [(Mark(10), True), (Deny(), True)]
    assert walked(groups(on, default=Allow()), groups(rule(1, Mark(4), stateful=False), default=Deny())) == [
        (Mark(10), True), (Mark(4), False)
    ]


# Changes of sets


def engine_of(*sets: AddressSet, deny: int) -> Engine:
    return Engine(with_rule(rule(1, Deny(), name="no", src_set=deny), *sets))


def test_a_member_that_comes_ends_the_flow_and_one_that_goes_brings_it_back() -> None:
    engine = engine_of(LEARNT, deny=8)
    assert engine.process(Hook.PORT_OUT, 1, SYN_1_2, now_s=0).verdict is Verdict.REDIRECT_PORT
    engine.add_members(8, [ONE], 1)
    assert engine.process(Hook.PORT_OUT, 1, SYN_1_2, now_s=2).reason is DropReason.DENIED
    engine.remove_members(8, [ONE])
    assert engine.process(Hook.PORT_OUT, 1, SYN_1_2, now_s=3).verdict is Verdict.REDIRECT_PORT


def test_a_change_that_is_told_not_to_matter_leaves_flows_alone() -> None:
    engine = engine_of(LEARNT, deny=8)
    engine.process(Hook.PORT_OUT, 1, SYN_1_2, now_s=0)
    engine.add_members(8, [ONE], 1, redecide=False)
    assert engine.process(Hook.PORT_OUT, 1, SYN_1_2, now_s=2).verdict is Verdict.REDIRECT_PORT
    assert engine.process(Hook.PORT_OUT, 1, tcp(A_1, A_2, sport=99), now_s=2).reason is DropReason.DENIED


def test_a_member_whose_time_is_over_keeps_what_it_let_in() -> None:
    layers = (layer("acl", (), (rule(1, Allow(), src_set=8),), default=(Allow(), Deny())),)
    engine = Engine(replace(host(two=layers), sets=(LEARNT,)))
    engine.add_members(8, [ONE], 0, ttl_s=10)
    old, new = tcp(A_1, A_2, sport=1000), tcp(A_1, A_2, sport=2000)
    assert engine.process(Hook.PORT_OUT, 1, old, now_s=9).verdict is Verdict.REDIRECT_PORT
    engine.add_members(8, [IPv4Network("10.1.0.77")], 9)
    assert engine.process(Hook.PORT_OUT, 1, old, now_s=11).verdict is Verdict.REDIRECT_PORT, "decided again, and kept"
    assert engine.process(Hook.PORT_OUT, 1, new, now_s=11).reason is DropReason.LAYER_DEFAULT
    engine.remove_members(8, [ONE])
    assert engine.process(Hook.PORT_OUT, 1, old, now_s=12).reason is DropReason.LAYER_DEFAULT


def test_sets_raise_the_generation_only_when_a_rule_could_tell() -> None:
    state = with_rule(rule(1, Deny(), src_set=7), CLIENTS, LEARNT, replace(CLIENTS, id=9))
    sets = Sets(state)

    def raised(change: Any) -> int:
        before = sets.generation
        change()
        return sets.generation - before

    def members(id: int, *given: Prefix) -> EngineState:
        return replace(state, sets=tuple(replace(s, members=given) if s.id == id else s for s in state.sets))

    assert raised(lambda: sets.update(state)) == 0
    assert raised(lambda: sets.update(members(9, ONE))) == 0, "nobody names it"
    assert raised(lambda: sets.update(members(7, ONE))) == 1
    assert raised(lambda: sets.add(8, [ONE], 0, None, redecide=True)) == 0
    named = replace(with_rule(rule(1, Deny(), src_set=8)), sets=state.sets)
    assert raised(lambda: sets.update(named)) == 0, "whose rules changed decides again anyhow"
    assert raised(lambda: sets.add(8, [ONE], 0, None, redecide=True)) == 0, "it is there"
    assert raised(lambda: sets.add(8, [ONE], 0, 5, redecide=True)) == 0, "another end"
    assert raised(lambda: sets.add(8, [ONE], 9, 5, redecide=True)) == 1, "it was over"
    assert raised(lambda: sets.remove(8, [IPv4Network(A_9)], redecide=True)) == 0
    assert raised(lambda: sets.remove(8, [ONE], redecide=True)) == 1


def test_a_dynamic_set_outlives_updates_and_goes_with_its_set() -> None:
    state = with_rule(rule(1, Deny(), src_set=8), LEARNT)
    engine = Engine(state)
    engine.add_members(8, [ONE], 0)
    engine.update(replace(state, tunnel_ifindex=77))
    assert engine.members(8) == {ONE: None}
    engine.update(host())
    engine.update(state)
    assert engine.members(8) == {}


def test_a_vni_is_that_of_the_overlay_a_packet_came_by() -> None:
    for vni, dropped in ((VNI, True), (VNI + 1, False)):
        engine = Engine(with_rule(rule(1, Deny(), vni=vni)))
        result = engine.process(Hook.OVERLAY_IN, VNI, tcp(A_9, A_2), vtep=VTEP, now_s=0)
        assert (result.reason is DropReason.DENIED) == dropped
        assert engine.process(Hook.PORT_OUT, 1, SYN_1_2, now_s=0).verdict is Verdict.REDIRECT_PORT
