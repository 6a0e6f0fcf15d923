"""The table `spaces`: address to place. Written by difference: of chunks first, then of the rows in those that differ.

Which chunks the kernel has is remembered; a process that adopts the table, or whose last write failed, reads it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vfp.datapath.map import BpfMap
from vfp.errors import TableFull
from vfp.layout import LOCATION, ROUTE_KEY, SPACE_KEY, LocationKind
from vfp.spaces import Chunk, CompiledSpace, U8Array, match_rows, rows_of

__all__ = ["SpaceChange", "SpaceTable", "families_of"]


@dataclass(frozen=True, slots=True, eq=False)
class SpaceChange:
    """What differs between the table and a wanted state."""

    removed: tuple[Chunk, ...]
    added: tuple[Chunk, ...]
    keys: U8Array                           # to write
    values: U8Array
    gone: U8Array                           # keys to remove
    spaces: frozenset[int]                  # of which an entry changes or goes
    grown: frozenset[tuple[int, int]]       # (space, family) that has new entries

    def __bool__(self) -> bool:
        return bool(self.removed or self.added)

    @property
    def writes(self) -> bool:
        """Whether a row differs, and not only the chunks that rows are kept in."""
        return bool(len(self.keys) or len(self.gone))


class SpaceTable:
    """The map and what is in it."""

    def __init__(self, table: BpfMap, most: int) -> None:
        """`most`: entries that fit."""
        self._map = table
        self._most = most
        self._chunks: dict[int, Chunk] | None = None        # by identity; None: not known

    def change(self, wanted: Mapping[int, CompiledSpace]) -> SpaceChange:
        """What it takes to have `wanted`. The cost is that of the chunks that differ.

        Raises:
            TableFull: it does not fit.
        """
        new = {id(chunk): chunk for space in wanted.values() for chunk in space.chunks}
        if (count := sum(len(chunk.keys) for chunk in new.values())) > self._most:
            raise TableFull(f"table spaces: {count} entries wanted, {self._most} fit; raise Limits.space_entries")
        old = self._known()
        removed = tuple(chunk for identity, chunk in old.items() if identity not in new)
        added = tuple(chunk for identity, chunk in new.items() if identity not in old)
        before, after = _joined(removed), _joined(added)
        there = match_rows(before.keys, before.hashes, after.keys, after.hashes)
        stays = there >= 0
        same = stays.copy()
        same[stays] = (before.values[stays] == after.values[there[stays]]).all(axis=1)
        write = np.ones(len(after.keys), bool)
        write[there[same]] = False
        fresh = np.ones(len(after.keys), bool)
        fresh[there[stays]] = False
        new_rows = _rows(after.keys[fresh])
        grown = _pairs(new_rows["space"], new_rows["family"])
        return SpaceChange(removed, added, after.keys[write], after.values[write], before.keys[~stays],
                           frozenset(np.unique(_rows(before.keys[~same])["space"]).tolist()), frozenset(grown))

    def put(self, change: SpaceChange) -> None:
        """Entries that come or change."""
        if not change:
            return
        known, self._chunks = self._known(), None       # until it is done
        if len(change.keys):
            self._map.update_batch(change.keys, change.values, len(change.keys))
        self._chunks = known | {id(chunk): chunk for chunk in change.added}

    def remove(self, change: SpaceChange, spaces: frozenset[int] | None = None) -> None:
        """Entries that go, of those spaces; None: of all that are left."""
        if not change:
            return
        known, self._chunks = self._known(), None
        gone = change.gone
        if spaces is not None:
            gone = gone[np.isin(_rows(gone)["space"], list(spaces))]
        if len(gone):
            self._map.delete_batch(gone, len(gone))
        over = {id(chunk) for chunk in change.removed if spaces is None or chunk.space in spaces}
        self._chunks = {identity: chunk for identity, chunk in known.items() if identity not in over}

    def ports_in(self, spaces: Iterable[int]) -> set[int]:
        """Ports that are a place in one of `spaces`: what comes to them over an overlay was decided by it."""
        wanted = frozenset(spaces)
        return {port for chunk in self._known().values() if chunk.space in wanted for port in chunk.ports}

    def _known(self) -> dict[int, Chunk]:
        if self._chunks is None:
            self._chunks = {id(chunk): chunk for chunk in _by_space(*self._map.lookup_all())}
        return self._chunks


def families_of(routes: Iterable[bytes]) -> set[tuple[int, int]]:
    """(space, family) of keys of the table `routes`."""
    keys = np.frombuffer(b"".join(routes), ROUTE_KEY)
    return _pairs(keys["space"], keys["family"])


def _pairs(spaces: npt.NDArray[Any], families: npt.NDArray[Any]) -> set[tuple[int, int]]:
    both = np.unique(spaces.astype(np.uint64) << np.uint64(8) | families.astype(np.uint64))
    return {(pair >> 8, pair & 0xFF) for pair in both.tolist()}


def _by_space(keys: U8Array, values: U8Array) -> Iterable[Chunk]:
    """What the kernel has, a chunk a space."""
    if not len(keys):
        return
    keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
    space = keys.reshape(-1).view(SPACE_KEY)["space"]
    order = np.argsort(space, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(space[order])) + 1):
        places = values[rows].reshape(-1).view(LOCATION)
        ports = frozenset(places["port"][places["kind"] == LocationKind.PORT].tolist())
        yield rows_of(int(space[rows[0]]), keys[rows], values[rows], ports)


def _rows(keys: U8Array) -> npt.NDArray[Any]:
    return np.ascontiguousarray(keys).reshape(-1).view(SPACE_KEY)


def _joined(chunks: Iterable[Chunk]) -> Chunk:
    """One chunk of the rows of several, for a comparison."""
    chunks = list(chunks)
    if len(chunks) == 1:
        return chunks[0]
    if not chunks:
        return rows_of(0, np.empty((0, SPACE_KEY.itemsize), np.uint8), np.empty((0, LOCATION.itemsize), np.uint8))
    return Chunk(0, np.concatenate([chunk.keys for chunk in chunks]),
                 np.concatenate([chunk.values for chunk in chunks]),
                 np.concatenate([chunk.hashes for chunk in chunks]))
