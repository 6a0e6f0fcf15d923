"""Members of address sets in the kernel. What the maps hold is the only memory, as for all of the engine.

A look-up asks for each prefix length that the set is said to have (map `set_lengths`), so a length is there before its
first member and leaves after its last; one too many, left by a crash, costs a look-up and is mended when the maps are
adopted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from vfp.datapath.errors import DatapathError
from vfp.datapath.map import BpfMap
from vfp.errors import PolicyError, TableFull
from vfp.layout import SET_LENGTHS, SET_LENGTHS_KEY, pack
from vfp.model import Prefix
from vfp.sets import CompiledSet, keys_of, prefix_of, set_of

__all__ = ["SetTable"]

_FAMILY, _LENGTH = 4, 5                                 # offsets in struct set_key


class SetTable:
    """The maps `sets` and `set_lengths`."""

    def __init__(self, members: BpfMap, lengths: BpfMap) -> None:
        """Take over what the maps hold."""
        self._map, self._lengths_map = members, lengths
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
        self._check_members(new)

    def expect(self, wanted: Mapping[int, CompiledSet]) -> None:
        """Learn which sets take members."""
        self._dynamic = frozenset(given.id for given in wanted.values() if given.dynamic)

    def put(self, wanted: Mapping[int, CompiledSet]) -> None:
        """Make the members of static sets those of the state, by difference; those of dynamic ones stay."""
        for number in self.changed(wanted) & wanted.keys():
            have, want = self._members.get(number, {}), wanted[number].members
            self._write({key: end for key, end in want.items() if have.get(key) != end})
            self._erase(number, [key for key in have if key not in want])

    def drop(self, wanted: Mapping[int, CompiledSet]) -> None:
        """Remove the members of sets that the state does not have."""
        for number in self._members.keys() - wanted.keys():
            self._erase(number, list(self._members[number]))

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
        self._check_members(sum(key not in have for key in rows))   # not by a set difference: that goes over `have`
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

    def _check_members(self, new: int) -> None:
        there = sum(map(len, self._members.values()))
        if there + new > self._map.max_entries:
            raise TableFull(
                f"table sets: {new} members more wanted, {self._map.max_entries - there} of {self._map.max_entries} "
                f"are free; raise Limits.set_members"
            )

    def _adopt(self) -> None:
        self._members: dict[int, dict[bytes, int]] = {} # set -> key -> end, ns; 0: never
        self._lengths: dict[tuple[int, int], Counter[int]] = {}     # (set, family) -> members by prefix length
        for key, value in self._map.items():
            self._members.setdefault(set_of(key), {})[key] = int.from_bytes(value, "little")
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

    def _write(self, rows: dict[bytes, int]) -> None:
        if rows:
            with self._writing():
                self._write_rows(rows)

    def _write_rows(self, rows: dict[bytes, int]) -> None:
        touched = set()
        for key in rows:
            have = self._members.setdefault(set_of(key), {})
            if key not in have and self._count(key, 1) == 1:
                touched.add((set_of(key), key[_FAMILY]))
            have[key] = rows[key]
        for of in touched:
            self._write_lengths(of)
        if len(rows) == 1:
            (key, end), = rows.items()
            self._map.update(key, end.to_bytes(8, "little"))
        else:
            ends = np.fromiter(rows.values(), np.uint64, len(rows))
            self._map.update_batch(b"".join(rows), ends, len(rows))

    def _erase(self, number: int, keys: list[bytes]) -> None:
        if keys:
            with self._writing():
                self._erase_keys(number, keys)

    def _erase_keys(self, number: int, keys: list[bytes]) -> None:
        if len(keys) == 1:
            self._map.delete(keys[0])
        else:
            self._map.delete_batch(b"".join(keys), len(keys))
        have = self._members[number]
        touched = set()
        for key in keys:
            del have[key]
            if self._count(key, -1) == 0:
                touched.add((number, key[_FAMILY]))
        if not have:
            del self._members[number]
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
