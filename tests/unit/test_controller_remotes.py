"""Blocks of remote endpoints: they follow from the endpoints alone, and a change is a small message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from controller import plan_remotes
from controller.plan_remotes import Entry, Home, entry_of

EMPTY = Home("n", "h1", ("172.31.0.1",))


@contextmanager
def block_of(size: int) -> Iterator[None]:
    """Blocks so small that few endpoints fill them."""
    before, plan_remotes.REMOTES_BLOCK = plan_remotes.REMOTES_BLOCK, size
    try:
        yield
    finally:
        plan_remotes.REMOTES_BLOCK = before


def entry(number: int) -> Entry:
    return entry_of(f"uid-{number}", f"e{number}", f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}",
                    f"10.0.{number >> 8}.{number & 255}", "" if number % 3 else f"fd00::{number:x}")


def names(home: Home) -> list[str]:
    return sorted(name for goal in home.goals.values() for name in goal.names)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.lists(st.tuples(st.sets(st.integers(0, 40), max_size=12),
                                             st.sets(st.integers(0, 40), max_size=12)), max_size=8))
def test_steps_come_to_what_making_it_anew_comes_to(size: int, steps: list[tuple[set[int], set[int]]]) -> None:
    with block_of(size):
        home, there = EMPTY, set[int]()
        for gone, come in steps:
            changed = gone | come
            home = home.with_changes([f"uid-{n}" for n in changed & there], [entry(n) for n in come])
            there = (there - gone) | come
            fresh = EMPTY.with_all(entry(n) for n in there)
            assert home == fresh
            assert names(home) == sorted(f"e{n}" for n in there)
            assert all(0 < len(entries) <= size for entries in home.leaves.values())


def test_blocks_that_no_bit_tells_apart_are_told_by_the_next_ones() -> None:
    """Hashes that agree in all bits but the last, and one that agrees in none: halves without anybody in between."""
    near = [Entry(n, f"u{n}", f"u{n}", bytes(6), bytes(4), bytes(16)) for n in (0, 1, 2, 3)]
    far = Entry(2**32 - 1, "far", "far", bytes(6), bytes(4), bytes(16))
    with block_of(1):
        home = EMPTY.with_all([*near, far])
        assert sorted(home.leaves) == [3, 2**32, 2**32 + 1, 2**32 + 2, 2**32 + 3]
        same = near[0]._replace(uid="same")     # all bits agree: such a block is larger than it should be
        assert [e.uid for e in EMPTY.with_all([*near, far, same]).leaves[2**32]] == ["same", "u0"]


def test_a_change_among_many_is_one_block_and_growth_leaves_the_others() -> None:
    many = [entry(n) for n in range(20_000)]
    home = EMPTY.with_all(many)
    assert len(home.goals) == 128
    assert names(home) == sorted(e.name for e in many)
    moved = many[777]._replace(address=bytes((192, 0, 2, 1)))
    after = home.with_changes([moved.uid], [moved])
    assert sum(home.goals[key] is not goal for key, goal in after.goals.items()) == 1
    more = [entry(n) for n in range(20_000, 20_400)]
    grown = home.with_changes([], more)
    assert grown == EMPTY.with_all([*many, *more])
    assert home.goals.keys() <= grown.goals.keys(), "nothing had to be split"
    assert home.at(("172.31.0.9",)).goals.keys() == home.goals.keys()
    assert home.at(home.vteps) is home
