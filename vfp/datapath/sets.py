"""Members of address sets in the kernel. What the maps hold is the only memory, as for all of the engine.

A look-up asks for each prefix length that the set is said to have (map `set_lengths`), so a length is there before its
first member and leaves after its last; one too many, left by a crash, costs a look-up and is mended when the maps are
adopted.

A member says in which turn of the ports' programs it is one (`vfp/datapath/switch.py`). What comes with a turn is
written for that turn only, beside what leaves with it: each decision reads whose turn it is once, so it meets all of a
change or nothing. Once no decision can be of the turn before, `settle` makes the ones members of both, and takes the
others out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from vfp.datapath import groups
from vfp.datapath.errors import DatapathError
from vfp.datapath.map import BpfMap
from vfp.errors import PolicyError, TableFull
from vfp.layout import SET_LENGTHS, SET_LENGTHS_KEY, SET_MEMBER, pack
from vfp.model import Prefix
from vfp.sets import CompiledSet, keys_of, prefix_of, set_of

__all__ = ["SetTable"]

_FAMILY, _LENGTH = 4, 5                                 # offsets in struct set_key
_TURNS = 8                                              # in struct set_member
_BOTH = 3


class SetTable:
    """The maps `sets` and `set_lengths`."""

    def __init__(self, members: BpfMap, lengths: BpfMap, turn: int) -> None:
        """Take over what the maps hold; `turn` is in force."""
        self._map, self._lengths_map = members, lengths
        self._turn = turn
        self._dynamic: frozenset[int] = frozenset()     # of the state that was applied
        self._adopt()

    def changed(self, wanted: Mapping[int, CompiledSet]) -> set[int]:
        """The sets whose members `put` and `drop` would change."""
        static = {
            given.id for given in wanted.values()
            if not given.dynamic and self._members.get(given.id, {}) != given.members
        }
        return static | (self._members.keys() - wanted.keys())

    def check_room(self, wanted: Mapping[int, CompiledSet]) -> None:
        """See that `wanted` fits beside what is there.

        Raises:
            TableFull: it does not.
        """
        if len(wanted) * 2 > self._lengths_map.max_entries:
            raise TableFull(
                f"table set_lengths: {len(wanted)} sets wanted, {self._lengths_map.max_entries // 2} fit; raise "
                f"Limits.sets"
            )
        new = sum(
            len(given.members.keys() - self._members.get(given.id, {}).keys())
            for given in wanted.values() if not given.dynamic
        )
        self._check_members(new, 0)         # what leaves does so before it is written

    def expect(self, wanted: Mapping[int, CompiledSet]) -> None:
        """Learn which sets take members."""
        self._dynamic = frozenset(given.id for given in wanted.values() if given.dynamic)

    def is_one_step(self, wanted: Mapping[int, CompiledSet], named: Container[int]) -> bool:
        """Whether at most one member of the sets that rules name comes or goes: then it does so in place."""
        left = 1
        for number in self.changed(wanted):
            if number in named:
                have, want = self._members.get(number, {}), _wanted(wanted, number)
                left -= sum(have.get(key) != end for key, end in want.items()) + len(have.keys() - want.keys())
        return left >= 0

    def put(self, wanted: Mapping[int, CompiledSet], turning: Container[int]) -> None:
        """Make the members of static sets those of the state, by difference, and take sets out that it does not have;
        the members of dynamic ones stay. Of the sets in `turning` it comes into force with the next turn.
        """
        for number in self.changed(wanted):
            have, want = self._members.get(number, {}), _wanted(wanted, number)
            new = {key: end for key, end in want.items() if have.get(key) != end}
            gone = [key for key in have if key not in want]
            if number in turning:
                self._write(new, 1 << (self._turn ^ 1))
                self._leave(number, gone)
            else:
                self._write(new)
                self._erase(number, gone)

    def turned(self, turn: int) -> None:
        """The turn is in force, from this moment on."""
        self._turn = turn
        self._since_s = time.monotonic()

    def collect(self) -> None:
        """`settle`, if the last turn was long enough ago."""
        if self._since_s <= time.monotonic() - groups.GRACE_S:
            self.settle()

    def settle(self) -> None:
        """Those of this turn are members in both, those of the other in none. No decision of the other is under way."""
        if self._coming:
            self._write({key: self._members[set_of(key)][key] for key in self._coming})
        if self._leaving:
            with self._writing():
                self._delete(list(self._leaving))

    # Dynamic sets

    def to_add(self, set_id: int, members: Iterable[Prefix], ttl_s: float | None) -> tuple[dict[bytes, int], bool]:
        """What `add` must write, and whether a member comes that was not there, or whose time was over.

        Raises:
            PolicyError: the set is not one of the state's dynamic ones, or the time is not positive.
            TableFull: there is no room.
        """
        self._check_dynamic(set_id)
        if ttl_s is not None and ttl_s <= 0:
            raise PolicyError(f"set {set_id}: time to live {ttl_s} s; give a positive one, or None for no end")
        now = time.monotonic_ns()
        end = 0 if ttl_s is None else now + max(1, int(ttl_s * 1e9))
        have = self._members.get(set_id, {})
        rows = dict.fromkeys(keys_of(set_id, members), end)
        more = sum(key not in have and key not in self._leaving for key in rows)   # a difference would go over `have`
        self._check_members(more, len(self._leaving))
        changed = {key: value for key, value in rows.items() if have.get(key) != value}
        return changed, any(key not in have or 0 < have[key] <= now for key in changed)

    def add(self, rows: dict[bytes, int]) -> None:
        """Write members: one map write, and one for each prefix length that is new to the set."""
        self._write(rows)

    def to_remove(self, set_id: int, members: Iterable[Prefix]) -> list[bytes]:
        """What `remove` must delete: those of `members` that are there.

        Raises:
            PolicyError: the set is not one of the state's dynamic ones.
        """
        self._check_dynamic(set_id)
        have = self._members.get(set_id, {})
        return [key for key in dict.fromkeys(keys_of(set_id, members)) if key in have]

    def remove(self, set_id: int, keys: list[bytes]) -> None:
        """Delete members: one map write, and one for each prefix length that the set has no more."""
        self._erase(set_id, keys)

    def members(self, set_id: int) -> dict[Prefix, float | None]:
        """The members of a set, with the monotonic time at which each ends, s; None: never. Ended ones are there,
        too, until they are removed."""
        return {prefix_of(key): end / 1e9 if end else None for key, end in self._members.get(set_id, {}).items()}

    # Private

    def _check_dynamic(self, set_id: int) -> None:
        if set_id not in self._dynamic:
            raise PolicyError(f"set {set_id} is no dynamic set of the state; apply a state that has it first")

    def _check_members(self, new: int, leaving: int) -> None:
        there = sum(map(len, self._members.values())) + leaving
        if there + new > self._map.max_entries:
            raise TableFull(
                f"table sets: {new} members more wanted, {self._map.max_entries - there} of {self._map.max_entries} "
                f"are free; raise Limits.set_members"
            )

    def _adopt(self) -> None:
        self._members: dict[int, dict[bytes, int]] = {} # set -> key -> end, ns; 0: never
        self._lengths: dict[tuple[int, int], Counter[int]] = {}     # (set, family) -> members by prefix length
        self._coming: set[bytes] = set()                # members in this turn only
        self._leaving: set[bytes] = set()               # what is none in this turn; counted in `_lengths`
        self._since_s = time.monotonic()
        for key, raw in self._map.items():
            turns = int.from_bytes(raw[_TURNS : _TURNS + 4], "little")
            if turns >> self._turn & 1:
                self._members.setdefault(set_of(key), {})[key] = int.from_bytes(raw[:_TURNS], "little")
                if turns != _BOTH:
                    self._coming.add(key)
            else:
                self._leaving.add(key)
            self._count(key, 1)
        self._mend_lengths()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """If the kernel refuses half-way, what is there is what it says."""
        try:
            yield
        except DatapathError:
            self._adopt()
            raise

    def _write(self, rows: dict[bytes, int], turns: int = _BOTH) -> None:
        if rows:
            with self._writing():
                self._write_rows(rows, turns)

    def _write_rows(self, rows: dict[bytes, int], turns: int) -> None:
        touched = set()
        for key in rows:
            have = self._members.setdefault(set_of(key), {})
            if key not in have and key not in self._leaving and self._count(key, 1) == 1:
                touched.add((set_of(key), key[_FAMILY]))
            have[key] = rows[key]
        for of in touched:
            self._write_lengths(of)
        self._store(rows, turns)
        self._leaving -= rows.keys()
        self._coming = self._coming - rows.keys() if turns == _BOTH else self._coming | rows.keys()

    def _store(self, rows: dict[bytes, int], turns: int) -> None:
        values = np.zeros(len(rows), SET_MEMBER)
        values["expires_ns"] = list(rows.values())
        values["turns"] = turns
        if len(rows) == 1:
            self._map.update(next(iter(rows)), values.tobytes())
        else:
            self._map.update_batch(b"".join(rows), values, len(rows))

    def _leave(self, number: int, keys: list[bytes]) -> None:
        """Members of this turn only, that are none any more when it is over."""
        if keys:
            with self._writing():
                self._store({key: self._members[number].pop(key) for key in keys}, 1 << self._turn)
            self._leaving |= set(keys)
            if not self._members[number]:
                del self._members[number]

    def _erase(self, number: int, keys: list[bytes]) -> None:
        if keys:
            with self._writing():
                have = self._members[number]
                for key in keys:
                    del have[key]
                if not have:
                    del self._members[number]
                self._delete(keys)

    def _delete(self, keys: list[bytes]) -> None:
        if len(keys) == 1:
            self._map.delete(keys[0])
        else:
            self._map.delete_batch(b"".join(keys), len(keys))
        touched = {(set_of(key), key[_FAMILY]) for key in keys if self._count(key, -1) == 0}
        self._leaving -= set(keys)
        self._coming -= set(keys)
        for of in touched:
            self._write_lengths(of)

    def _count(self, key: bytes, change: int) -> int:
        """Members of the key's prefix length after one came or went."""
        counts = self._lengths.setdefault((set_of(key), key[_FAMILY]), Counter())
        counts[key[_LENGTH]] += change
        return counts[key[_LENGTH]]

    def _write_lengths(self, of: tuple[int, int]) -> None:
        key = pack(SET_LENGTHS_KEY, set=of[0], family=of[1])
        if bits := self._bits(of):
            self._lengths_map.update(key, bits.to_bytes(SET_LENGTHS.itemsize, "little"))
        else:
            self._lengths_map.delete(key)
            self._lengths.pop(of, None)

    def _bits(self, of: tuple[int, int]) -> int:
        return sum(1 << length for length, count in self._lengths.get(of, {}).items() if count > 0)

    def _mend_lengths(self) -> None:
        """A crash between a member and its length."""
        wanted = {pack(SET_LENGTHS_KEY, set=of[0], family=of[1]): of for of in self._lengths}
        for key, value in list(self._lengths_map.items()):
            if key not in wanted:
                self._lengths_map.delete(key)
            elif int.from_bytes(value, "little") == self._bits(wanted[key]):
                del wanted[key]
        for of in wanted.values():
            self._write_lengths(of)


def _wanted(wanted: Mapping[int, CompiledSet], number: int) -> dict[bytes, int]:
    return wanted[number].members if number in wanted else {}
