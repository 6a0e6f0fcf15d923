"""The map `filter`: which bucket keys may exist, so that the search seldom asks the hash table in vain."""

from __future__ import annotations

from typing import Any

import numpy as np

from vfp.datapath.map import BpfMap

__all__ = ["Filter", "filter_words"]


def filter_words(rules: int) -> int:
    """Words of the filter for a table of `rules`: sixteen to thirty-two bits each, in a power of two."""
    return 1 << max(6, (rules // 4 - 1).bit_length())


class Filter:
    """The map `filter`: a bit for each bucket key. A bit without a bucket costs a look-up; a missing one, rules.

    So bits are set before their bucket is written, and cleared only by `renew`, which knows all that are there.
    """

    def __init__(self, table: BpfMap) -> None:
        """Take over what the map holds."""
        self._table = table
        _, rows = table.lookup_all()
        self._words = np.ascontiguousarray(rows).reshape(-1).view(np.uint64).copy()
        self.mask = len(self._words) - 1
        self.added = 0                                  # keys since `renew`, some of them gone by now

    def add(self, keys: Any) -> None:
        """Set the bits of `keys` (uint64)."""
        places, inverse = np.unique(self._places(keys), return_inverse=True)
        words = self._words[places]
        np.bitwise_or.at(words, inverse, _bits(keys))
        self._write(places, words)
        self.added += len(keys)

    def renew(self, keys: Any) -> None:
        """Have the bits of `keys` and no others."""
        words = np.zeros_like(self._words)
        np.bitwise_or.at(words, self._places(keys), _bits(keys))
        self._write(np.arange(len(words)), words)
        self.added = len(keys)

    def _places(self, keys: Any) -> Any:
        return ((keys >> np.uint64(6)) & np.uint64(self.mask)).astype(np.int64)

    def _write(self, places: Any, words: Any) -> None:
        changed = words != self._words[places]
        if changed.any():
            self._table.update_batch(places[changed].astype(np.uint32), np.ascontiguousarray(words[changed]))
            self._words[places] = words


def _bits(keys: Any) -> Any:
    return np.uint64(1) << (keys & np.uint64(63))
