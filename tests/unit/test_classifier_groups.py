"""Compiled groups: an arrangement finds what a linear search finds, and an edit gives what a fresh compile gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vfp.tuples
from vfp.classifier import ALIVE, MAX_EDIT, Change, CompiledGroup, compile_group, difference, edit_group
from vfp.compile import Compiler
from vfp.errors import CompileError
from vfp.layout import RULE, TUPLE, pack, pack_address
from vfp.model import Allow, Deny, EngineState, Group, Layer, Match, Port, PortRange, Rule, Untranslate
from vfp.tuples import Mask, arrange, hashes, shapes, words_of

_V4 = [IPv4Address("10.0.0.1"), IPv4Address("10.0.0.200"), IPv4Address("10.1.2.3"), IPv4Address("192.168.7.7")]
_V6 = [IPv6Address("2001:db8::1"), IPv6Address("2001:db8:0:1::2"), IPv6Address("fd00::7")]


@st.composite
def prefixes(draw: st.DrawFn, six: bool) -> IPv4Network | IPv6Network | None:
    if not draw(st.booleans()):
        return None
    if six:
        return IPv6Network((draw(st.sampled_from(_V6)), draw(st.sampled_from((0, 16, 48, 64, 128)))), strict=False)
    return IPv4Network((draw(st.sampled_from(_V4)), draw(st.sampled_from((0, 8, 16, 24, 31, 32)))), strict=False)


ports = st.none() | st.builds(lambda low, more: PortRange(low, low + more), st.integers(1, 5), st.integers(0, 2))


@st.composite
def matches(draw: st.DrawFn) -> Match:
    six = draw(st.booleans())
    return Match(
        ethertype=draw(st.none() | st.just(0x86DD if six else 0x0800)), src=draw(prefixes(six)),
        dst=draw(prefixes(six)), protocol=draw(st.none() | st.sampled_from((6, 17))), src_ports=draw(ports),
        dst_ports=draw(ports),
    )


@st.composite
def groups(draw: st.DrawFn, least: int = 0) -> Group:
    drawn = draw(st.lists(matches(), min_size=least, max_size=60))
    return Group("g", tuple(Rule(position, match, Allow(), f"r{position}") for position, match in enumerate(drawn)))


@st.composite
def headers(draw: st.DrawFn) -> tuple[int, IPv4Address | IPv6Address, IPv4Address | IPv6Address, int, int, int]:
    addresses = _V6 if draw(st.booleans()) else _V4
    return (
        0x86DD if addresses is _V6 else 0x0800, draw(st.sampled_from(addresses)), draw(st.sampled_from(addresses)),
        draw(st.sampled_from((6, 17))), draw(st.integers(1, 7)), draw(st.integers(1, 7)),
    )


Asked = tuple[int, IPv4Address | IPv6Address, IPv4Address | IPv6Address, int, int, int]


def holds(match: Match, header: Asked) -> bool:
    ethertype, src, dst, protocol, sport, dport = header
    return (
        match.ethertype in (None, ethertype)
        and (match.src is None or src in match.src) and (match.dst is None or dst in match.dst)
        and match.protocol in (None, protocol)
        and (match.src_ports is None or match.src_ports.low <= sport <= match.src_ports.high)
        and (match.dst_ports is None or match.dst_ports.low <= dport <= match.dst_ports.high)
    )


def search(group: Group, header: Asked) -> int:
    """As the kernel does it: every mask's bucket, each of its rules in full; the lowest priority that holds, or -1."""
    records = compile_group("acl", group).whole()
    arrangement = arrange(records)
    ethertype, src, dst, protocol, sport, dport = header
    asked = words_of(np.frombuffer(pack(
        RULE, ethertype=ethertype, src=pack_address(src), dst=pack_address(dst), protocol=protocol, sport_low=sport,
        dport_low=dport,
    ), RULE))
    found = []
    for number, mask in enumerate(arrangement.masks):
        mine = np.flatnonzero(arrangement.owner == number)
        bucket = mine[hashes(words_of(records[mine]), mask, 7) == hashes(asked, mask, 7)[0]]
        found += [int(index) for index in bucket if holds(group.rules[index].match, header)]
    return min(found, default=-1)


@pytest.mark.parametrize(("small", "bound"), [(0, 1), (0, 3), (32, 12)])
@given(group=groups(), header=headers())
@settings(max_examples=60, deadline=None)
def test_an_arranged_group_finds_what_a_linear_search_finds(
    group: Group, header: Asked, small: int, bound: int
) -> None:
    linear = next((index for index, rule in enumerate(group.rules) if holds(rule.match, header)), -1)
    with patch.object(vfp.tuples, "SMALL", small), patch.object(vfp.tuples, "BUCKET_RULES", bound):
        assert search(group, header) == linear


@given(group=groups(least=1))
@settings(max_examples=60, deadline=None)
def test_every_rule_is_under_a_mask_that_takes_it(group: Group) -> None:
    records = compile_group("acl", group).whole()
    with patch.object(vfp.tuples, "SMALL", 0):
        arrangement = arrange(records)
    for shape, owner in zip(shapes(records), arrangement.owner, strict=True):
        assert arrangement.masks[owner].takes(Mask(*(int(part) for part in shape)))
    assert set(arrangement.owner.tolist()) == set(range(len(arrangement.masks)))


def test_the_masks_of_a_hopeless_group_are_bounded() -> None:
    rules = tuple(Rule(n, Match(src_ports=PortRange(n, n + 1)), Allow(), str(n)) for n in range(3000))
    arrangement = arrange(compile_group("acl", Group("g", rules)).whole())
    assert len(arrangement.masks) <= vfp.tuples.MAX_MASKS
    assert (arrangement.owner >= 0).all()


@given(mask=st.builds(Mask, st.integers(0, 128), st.integers(0, 128), st.integers(0, 15)))
def test_a_mask_survives_the_kernels_shape(mask: Mask) -> None:
    row = np.array((0, mask.pair, mask.rest, 0, mask.src_len, mask.dst_len, mask.wide, 0), TUPLE)
    assert Mask.of(row) == mask


# Edits


def _edits(rules: tuple[Rule, ...], drawn: list[tuple[int, Match | None]]) -> Iterator[tuple[Rule, ...]]:
    """One change after another: None removes the rule at a place, a match adds one there."""
    for number, (place, match) in enumerate(drawn):
        at = place % (len(rules) + 1)
        if match is None:
            rules = rules[:at] + rules[at + 1 :]
        else:
            rules = (*rules[:at], Rule(1000 + number, match, Deny(), f"new{number}"), *rules[at:])
        yield rules


@given(
    group=groups(least=20),
    changes=st.lists(st.tuples(st.integers(0, 100), st.none() | matches()), min_size=1, max_size=8),
)
@settings(max_examples=80, deadline=None)
def test_an_edit_has_the_identity_of_a_fresh_compile(
    group: Group, changes: list[tuple[int, Match | None]]
) -> None:
    compiled = compile_group("acl", group, b"secret")
    for rules in _edits(group.rules, changes):
        parent, wanted = compiled, compile_group("acl", replace(group, rules=rules), b"secret")
        change = difference(parent.group.rules, rules)
        assert change is not None
        edited = edit_group(parent, replace(group, rules=rules), change, b"secret")
        assert edited.edit is not None
        compiled = edited
        assert (compiled.id, compiled.actions) == (wanted.id, wanted.actions)
        assert compiled.whole().tobytes() == wanted.whole().tobytes()
        assert len(edited.edit.added) - len(edited.edit.removed) == len(rules) - len(parent.group.rules)


def _rules(count: int) -> tuple[Rule, ...]:
    return tuple(
        Rule(2 * n, Match(protocol=6, dst_ports=PortRange(n, n)), Allow(), str(n)) for n in range(1, count + 1)
    )


def test_the_difference_of_two_groups_is_what_differs() -> None:
    rules = _rules(1000)
    extra = Rule(7, Match(), Deny(), "extra")
    assert difference(rules, rules) == Change((), (), 1000, 1000)
    assert difference(rules, rules[:500] + rules[501:]) == Change((rules[500],), (), 500, 500)
    assert difference(rules, (*rules[:3], extra, *rules[4:])) == Change((rules[3],), (extra,), 3, 4)
    assert difference(rules, (*rules, extra)) == Change((), (extra,), 1000, 1001)
    assert difference(rules, (extra, *rules[1:-1], extra)) == Change((rules[0], rules[-1]), (extra, extra), 0, 1000)
    assert difference(rules, rules[: 999 - MAX_EDIT]) is None
    many = _rules(10_000)
    assert difference(many, (*many[1:-1], extra)) == Change((many[0], many[-1]), (extra,), 0, 9999)
    twice = (extra, extra, *rules)
    assert difference(twice, (extra, *rules)) == Change((extra,), (), 1, 1)
    swapped = (*rules[:9], rules[10], rules[9], *rules[11:])
    assert difference(rules, swapped) == Change((), (), 9, 11)


def test_the_identity_depends_on_the_secret_and_the_content_alone() -> None:
    group = Group("g", _rules(40))
    turned = Group("g", group.rules[::-1])
    assert compile_group("acl", group, b"a").id == compile_group("acl", turned, b"a").id
    assert compile_group("acl", group, b"a").id != compile_group("acl", group, b"b").id
    assert compile_group("acl", group, b"a").id != compile_group("acl", Group("h", group.rules), b"a").id


@pytest.mark.parametrize("ordered", [True, False])
def test_an_edit_is_checked_like_a_whole_group(ordered: bool) -> None:
    rules = _rules(300) if ordered else _rules(300)[::-1]
    parent = compile_group("acl", Group("g", rules))
    assert parent.ordered is ordered
    clash = Rule(rules[7].priority, Match(), Deny(), "clash")
    with pytest.raises(CompileError, match="both have priority"):
        _edited(parent, (*rules[:8], clash, *rules[8:]))
    with pytest.raises(CompileError, match="out of range"):
        _edited(parent, (*rules, Rule(1 << 32, Match(), Deny(), "far")))


def _edited(parent: CompiledGroup, rules: tuple[Rule, ...]) -> CompiledGroup:
    change = difference(parent.group.rules, rules)
    assert change is not None
    return edit_group(parent, Group(parent.group.name, rules), change)


def _state(rules: tuple[Rule, ...], direction: str = "in") -> EngineState:
    layer = Layer("acl", groups_in=(Group("g", rules),)) if direction == "in" else Layer(
        "acl", groups_out=(Group("g", rules),))
    return EngineState(ports=(Port(1, "p1", 11, bytes(6), bytes(6), (layer,)),))


def test_the_compiler_edits_a_large_group_and_forgets_none_of_its_rules() -> None:
    compiler = Compiler()
    rules = _rules(400)
    (first,) = compiler.compile(_state(rules), 16).groups.values()
    assert first.edit is None
    (again,) = compiler.compile(_state(rules), 16).groups.values()
    assert again is first
    (edited,) = compiler.compile(_state(rules[1:]), 16).groups.values()
    assert edited.edit is not None
    assert edited.edit.parent == first.id
    assert len(edited.whole()) == 399
    assert (edited.whole()["died"] == ALIVE).all()


def test_an_action_in_the_wrong_direction_is_found_in_an_edit_too() -> None:
    compiler = Compiler()
    rules = _rules(400)
    compiler.compile(_state(rules, "out"), 16)
    with pytest.raises(CompileError, match=r"rule 'odd'.*Untranslate cannot be used in direction out"):
        compiler.compile(_state((*rules, Rule(9999, Match(), Untranslate(), "odd")), "out"), 16)
