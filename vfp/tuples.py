"""Arrange rule records for tuple space search (`bpf/classify.h`): few masks, short buckets.

Tuple space search (Srinivasan, Suri, Varghese, SIGCOMM 1999) hashes a header under each mask of a group. One mask for
each shape of rule makes hundreds of look-ups; merging shapes into coarser masks makes long buckets. As in TupleMerge
(Daly et al., IEEE/ACM ToN 2019) a bucket may hold up to a bound of rules, and shapes are merged as far as that allows.
Here all rules are known, so masks are chosen greedily: the one that takes most of the rules that are left.

The kernel verifies each rule of a bucket in full, so no arrangement is ever wrong, only slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vfp.layout import MAX_TUPLES, If

__all__ = ["Arrangement", "Mask", "Words", "arrange", "hashes", "shapes", "words_of"]

Records = npt.NDArray[Any]
U64 = npt.NDArray[np.uint64]

SMALL = 32
"""Rules up to which one bucket that is searched from the top beats any hashing."""
BUCKET_RULES = 24
"""Rules of a bucket before a mask stops taking more; measured (docs/classifier.md)."""
MAX_MASKS = MAX_TUPLES - 12
"""Masks that an arrangement uses; the rest of a group's room is for rules that come later."""
MAX_RUN = 65535
"""Rules that a bucket can have (struct bucket)."""
SAMPLE = 16384
"""Rules by which masks are judged when there are more."""

ETHERTYPE, PROTOCOL, SPORT, DPORT = 1, 2, 4, 8
_FIELD_BITS = {SPORT: 0xFFFF, DPORT: 0xFFFF << 16, PROTOCOL: 0xFF << 32, ETHERTYPE: 0xFFFF << 40}

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Mask(NamedTuple):
    """Which bits of a header are hashed: prefix lengths and exact fields."""

    src_len: int
    dst_len: int
    fields: int                             # ETHERTYPE | PROTOCOL | SPORT | DPORT

    @classmethod
    def of(cls, row: Any) -> Mask:
        """The mask of a row of dtype TUPLE."""
        rest, fields = int(row["rest"]), 0
        for field, bits in _FIELD_BITS.items():
            fields |= field if rest & bits else 0
        return cls(int(row["src_len"]), int(row["dst_len"]), fields)

    @property
    def pair(self) -> int:
        """Mask of the first words of source and destination, as they lie in memory."""
        return _raw_mask(self.src_len) << 32 | _raw_mask(self.dst_len)

    @property
    def rest(self) -> int:
        """Mask of ports, protocol and ethertype."""
        return sum(bits for field, bits in _FIELD_BITS.items() if self.fields & field)

    @property
    def wide(self) -> bool:
        """Words beyond the first count."""
        return max(self.src_len, self.dst_len) > 32

    def takes(self, shape: Mask) -> bool:
        """A rule of `shape` has one value under this mask, so it can be in one bucket."""
        return (
            self.src_len <= shape.src_len and self.dst_len <= shape.dst_len and not self.fields & ~shape.fields
        )


@dataclass(frozen=True, slots=True)
class Words:
    """The hashed fields of rules, as the kernel loads them (`try_tuple`)."""

    src: npt.NDArray[np.uint32]             # [n, 4], raw
    dst: npt.NDArray[np.uint32]
    pair: U64
    rest: U64

    def __getitem__(self, which: Any) -> Words:
        return Words(self.src[which], self.dst[which], self.pair[which], self.rest[which])


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Which mask each rule is found by.

    Attributes:
        masks: the masks of a group.
        owner: for each rule the index of its mask.
    """

    masks: tuple[Mask, ...]
    owner: npt.NDArray[np.int64]


def words_of(records: Records) -> Words:
    """The hashed fields of `records` (dtype RULE)."""
    src = np.ascontiguousarray(records["src"]).view("<u4")
    dst = np.ascontiguousarray(records["dst"]).view("<u4")
    rest = (
        records["sport_low"].byteswap().astype(np.uint64)
        | records["dport_low"].byteswap().astype(np.uint64) << np.uint64(16)
        | records["protocol"].astype(np.uint64) << np.uint64(32)
        | records["ethertype"].astype(np.uint64) << np.uint64(40)
    )
    return Words(src, dst, _join(src[:, 0], dst[:, 0]), rest)


def shapes(records: Records) -> npt.NDArray[np.int64]:
    """The finest mask of each record, as rows (source length, destination length, fields)."""
    conditions = records["conditions"]
    out = np.zeros((len(records), 3), np.int64)
    out[:, 0], out[:, 1] = records["src_len"], records["dst_len"]
    exact_sport = (conditions & If.SPORT != 0) & (records["sport_low"] == records["sport_high"])
    exact_dport = (conditions & If.DPORT != 0) & (records["dport_low"] == records["dport_high"])
    out[:, 2] = (
        (conditions & If.ETHERTYPE != 0) * ETHERTYPE + (conditions & If.PROTOCOL != 0) * PROTOCOL
        + exact_sport * SPORT + exact_dport * DPORT
    )
    return out


def hashes(words: Words, mask: Mask, seed: int) -> U64:
    """Bucket of each row under `mask`. Twin of `try_tuple`."""
    hashed = _mix(np.full(len(words.pair), seed, np.uint64), words.pair & np.uint64(mask.pair))
    hashed = _mix(hashed, words.rest & np.uint64(mask.rest))
    if mask.wide:
        for word in (1, 2, 3):
            src = words.src[:, word] & np.uint32(_raw_mask(mask.src_len - 32 * word))
            dst = words.dst[:, word] & np.uint32(_raw_mask(mask.dst_len - 32 * word))
            hashed = _mix(hashed, _join(src, dst))
    return hashed


def arrange(records: Records) -> Arrangement:
    """Choose masks for `records`, which are in order of priority."""
    count = len(records)
    if count <= SMALL:
        return Arrangement((Mask(0, 0, 0),) if count else (), np.zeros(count, np.int64))
    shape, words = shapes(records), words_of(records)
    owner = np.full(count, -1, np.int64)
    masks: list[Mask] = []
    left = np.arange(count)
    while len(left):
        last = len(masks) >= MAX_MASKS - 1
        mask = Mask(0, 0, 0) if last else _best_mask(shape[left], words, left)
        taken = _taken(mask, shape[left], words[left], MAX_RUN if last else BUCKET_RULES)
        owner[left[taken]] = len(masks)
        masks.append(mask)
        left = left[~taken]
    return Arrangement(tuple(masks), owner)


def _taken(mask: Mask, shape: npt.NDArray[np.int64], words: Words, bound: int) -> npt.NDArray[np.bool_]:
    """Rules that go under `mask`: of each bucket the first `bound`."""
    fits = _fits(mask, shape)
    members = np.flatnonzero(fits)
    keys = hashes(words[members], mask, 0)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    sizes = np.diff(np.append(starts, len(ordered)))
    rank = np.arange(len(ordered)) - np.repeat(starts, sizes)
    taken = np.zeros(len(shape), np.bool_)
    taken[members[order[rank < bound]]] = True
    return taken


def _fits(mask: Mask, shape: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    fits: npt.NDArray[np.bool_] = (
        (shape[:, 0] >= mask.src_len) & (shape[:, 1] >= mask.dst_len) & (shape[:, 2] & mask.fields == mask.fields)
    )
    return fits


def _best_mask(shape: npt.NDArray[np.int64], words: Words, left: npt.NDArray[np.int64]) -> Mask:
    """The mask under which most rules find a place; of equals the finest, whose buckets are shortest."""
    step = -(-len(left) // SAMPLE)
    sample = left[::step]
    seen, sampled = shape[::step], words[sample]
    bound = max(2, BUCKET_RULES // step)
    best, best_score = Mask(0, 0, 0), (-1.0, 0)
    for mask in _candidates(seen):
        fits = _fits(mask, seen)
        if fits.sum() <= best_score[0]:
            continue
        keys = np.sort(hashes(sampled[fits], mask, 0))
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        sizes = np.diff(np.append(starts, len(keys)))
        score = (float(np.minimum(sizes, bound).sum()), mask.src_len + mask.dst_len + 8 * mask.fields.bit_count())
        if score > best_score:
            best, best_score = mask, score
    return best


def _candidates(shape: npt.NDArray[np.int64]) -> Iterator[Mask]:
    """Shapes that are there, and coarser ones."""
    src = _levels(shape[:, 0])
    dst = _levels(shape[:, 1])
    present = np.bitwise_and.reduce(shape[:, 2]) if len(shape) else 0
    fields = {int(f) for f in np.unique(shape[:, 2])} | {int(present)}
    fields |= {f & (PROTOCOL | DPORT) for f in fields} | {f & PROTOCOL for f in fields} | {0}
    for f in sorted(fields, reverse=True):
        for s in src:
            for d in dst:
                yield Mask(s, d, f)


def _levels(lengths: npt.NDArray[np.int64]) -> list[int]:
    """Prefix lengths that cut a distribution into a few parts."""
    cuts = np.quantile(lengths, (0, 0.1, 0.25, 0.5, 0.75), method="lower") if len(lengths) else np.zeros(1)
    return sorted({0, *(int(cut) for cut in cuts)}, reverse=True)


def _raw_mask(bits: int) -> int:
    """A prefix mask of one word in network order, read as little-endian: `mask32`."""
    if bits <= 0:
        return 0
    value = (0xFFFFFFFF << (32 - min(bits, 32))) & 0xFFFFFFFF
    return int.from_bytes(value.to_bytes(4, "big"), "little")


def _mix(hashed: U64, word: U64) -> U64:
    hashed = (hashed ^ word) * _MULTIPLIER
    return hashed ^ hashed >> np.uint64(32)


def _join(high: npt.NDArray[np.uint32], low: npt.NDArray[np.uint32]) -> U64:
    return high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
