"""Compiled groups in the kernel: known by content, so that equal groups are one and a restart finds its own.

A group's rules belong to an *instance*, written at once from an arrangement (`vfp.tuples`). Each rule lives from one
version of its instance to another, and a group is an instance at a version. An edit therefore touches only what it
changes: new rules are written to live from the next version on, old ones are marked to die with it, and a new group
record gives the new content its version. Whoever walks by the old record sees the old rules and nothing else, so the
change is whole at the moment when a port's program names the new group, however many rules it has.

Nothing that a packet may still read is reused before `GRACE_S` has passed: runs of rules that were replaced, groups
that no program names, rules that died.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from secrets import randbits
from typing import Any

import numpy as np

from vfp.classifier import ALIVE, CompiledGroup, Edit
from vfp.datapath.errors import DatapathError
from vfp.datapath.filter import Filter
from vfp.datapath.map import BpfMap
from vfp.errors import TableFull
from vfp.layout import BUCKET, GROUP, MAX_TUPLES, RULE, TUPLE
from vfp.tuples import BUCKET_RULES, Arrangement, Mask, Records, arrange, hashes, shapes, words_of

GRACE_S = 1.0
"""A packet's walk takes microseconds; what left every program is unreachable long before this."""

_MAX_INSTANCES = 65535                                  # struct bucket


class _NoMask(Exception):
    """An instance's masks do not fit a new rule, and there is no room for another mask."""


@dataclass(slots=True)
class _Instance:
    """What this process knows of an instance.

    `newest` is its last version, whether or not a group has it. `broken`: an edit was begun and not ended, so that
    rules may be marked for a version that never was. `versions`: those that a packet may be walking by, with the number
    of group records that have them or had them until lately. `dead`: rules that died, as (version, bucket key).
    """

    newest: int
    broken: bool = False
    versions: Counter[int] = field(default_factory=Counter)
    dead: list[tuple[int, int]] = field(default_factory=list)

    def leave(self, version: int) -> None:
        """One record less has `version`."""
        self.versions[version] -= 1
        if not self.versions[version]:
            del self.versions[version]

    def oldest(self) -> int:
        """The first version that somebody may need; rules that died until then are dead to all."""
        return min(self.versions, default=ALIVE - 1)


class GroupTable:
    """The maps `groups`, `buckets` and `rules`, and which rules are free."""

    def __init__(self, groups: BpfMap, buckets: BpfMap, filter: BpfMap, rules: BpfMap) -> None:
        """Take over what the maps hold."""
        self._groups, self._buckets, self._rules = groups, buckets, rules
        self._filter = Filter(filter)
        self._records: dict[int, Any] = {}              # group id -> dtype GROUP
        self._instances: dict[int, _Instance] = {}
        self._retired: dict[int, float] = {}            # group id -> when it was found unused
        self._leaving: list[tuple[float, int, int]] = []    # (since, first, count): runs that were replaced
        self._lingering: list[tuple[float, int, int]] = []  # (since, instance, version): group records replaced
        self._taken = bytearray(rules.max_entries)
        self._bucket_count = 0
        for key, value in groups.items():
            self._records[int.from_bytes(key, "little")] = np.frombuffer(value, GROUP)[0]
        self._next_instance = max((int(record["instance"]) for record in self._records.values()), default=0)
        self._adopt()

    def __contains__(self, identity: int) -> bool:
        return identity in self._records

    def check_room(self, wanted: Iterable[CompiledGroup]) -> None:
        """See that the new groups among `wanted` fit; may wait until what changes before left behind is free.

        Raises:
            TableFull: they do not fit beside the old ones.
        """
        rules = 0
        edited: set[int] = set()
        for group in wanted:
            if group.edit is not None and self._is_edit(group) and group.edit.parent not in edited:
                rules += len(group.edit.added) * 2 * BUCKET_RULES
                edited.add(group.edit.parent)
            elif group.id not in self._records:
                rules += len(group.group.rules)
        if rules > self._free() and (self._leaving or self._retired):
            time.sleep(GRACE_S)
            self.collect()              # groups, and what died with them
            time.sleep(GRACE_S)
            self.collect()              # their rules
        if rules > self._free():
            raise TableFull(
                f"table rules: {rules} more wanted, {self._free()} of {self._rules.max_entries} are free; raise "
                f"Limits.rules (a change needs room for old and new side by side)"
            )

    def add(self, wanted: Iterable[CompiledGroup]) -> None:
        """Write groups that are not there yet; a group's own record last, so that it is whole when it is found."""
        for group in wanted:
            if group.edit is not None and self._is_edit(group):
                try:
                    self._write_edit(group.id, group.edit)
                except _NoMask:
                    self._write_whole(group)
            elif group.id not in self._records:
                self._write_whole(group)
            self._retired.pop(group.id, None)

    def retire_unused(self, used: set[int]) -> None:
        """Note which groups no program refers to; `collect` frees them after a grace."""
        now = time.monotonic()
        for identity in self._records.keys() - used:
            self._retired.setdefault(identity, now)

    def collect(self) -> None:
        """Free what was retired long enough ago."""
        before = time.monotonic() - GRACE_S
        for since, first, count in self._leaving:
            if since <= before:
                self._taken[first : first + count] = bytes(count)
        self._leaving = [run for run in self._leaving if run[0] > before]
        for since, number, version in self._lingering:
            if since <= before:
                self._instances[number].leave(version)
        self._lingering = [version for version in self._lingering if version[0] > before]
        due = [identity for identity, since in self._retired.items() if since <= before]
        for identity in due:
            self._groups.delete(identity.to_bytes(8, "little"))
            record = self._records.pop(identity)
            self._instances[int(record["instance"])].leave(int(record["version"]))
            del self._retired[identity]
        if not all(instance.versions for instance in self._instances.values()):
            self._drop_instances()
        for number, instance in self._instances.items():
            if instance.dead:
                self._bury(number, instance)
        if self._filter.added > 2 * self._bucket_count + 1024:
            self._filter.renew(self._keys())

    def _free(self) -> int:
        return min(self._taken.count(0), self._buckets.max_entries - self._bucket_count)

    # Whole groups

    def _write_whole(self, group: CompiledGroup) -> None:
        records = group.whole()
        arrangement = arrange(records)
        tuples, keys = _placed(records, arrangement)
        while self._are_others(keys):
            tuples, keys = _placed(records, arrangement)
        instance = self._free_number()
        order = np.argsort(keys, kind="stable")         # of one bucket, by priority
        ordered = keys[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(ordered) else order
        runs = np.zeros(len(starts), BUCKET)
        first = self._allocate(len(records))
        runs["first"] = first + starts
        runs["count"] = np.diff(np.append(starts, len(ordered)))
        runs["instance"] = instance
        if len(records):
            self._rules.update_batch(np.arange(first, first + len(records), dtype=np.uint32), records[order])
            self._filter.add(ordered[starts])
            self._buckets.update_batch(np.ascontiguousarray(ordered[starts]), runs)
        self._bucket_count += len(runs)
        self._instances[instance] = _Instance(newest=0)
        self._put_record(group.id, instance, 0, len(records), tuples)

    def _are_others(self, keys: Any) -> bool:
        """A bucket of another group has one of `keys`: by a chance of 2^-64 each, but then it would be overwritten."""
        if len(keys) <= 64:
            return any(self._bucket(key) is not None for key in set(keys.tolist()))
        return bool(np.isin(keys, self._keys()).any())

    def _keys(self) -> Any:
        """Key of every bucket."""
        keys, _ = self._buckets.lookup_all()
        return np.ascontiguousarray(keys).reshape(-1).view(np.uint64)

    def _free_number(self) -> int:
        """A number for an instance, in turn, so that one is not soon used again."""
        for _ in range(_MAX_INSTANCES):
            self._next_instance = self._next_instance % _MAX_INSTANCES + 1
            if self._next_instance not in self._instances:
                return self._next_instance
        raise TableFull(f"table groups: {_MAX_INSTANCES} groups are in use; merge equal ones")

    def _put_record(self, identity: int, instance: int, version: int, rules: int, tuples: Any) -> None:
        record = np.zeros((), GROUP)
        record["count"], record["rules"] = len(tuples), rules
        record["instance"], record["version"] = instance, version
        record["filter_mask"] = self._filter.mask
        record["tuples"][: len(tuples)] = tuples[np.argsort(tuples["best_priority"], kind="stable")]
        old = self._records.get(identity)
        if old is not None:
            self._lingering.append((time.monotonic(), int(old["instance"]), int(old["version"])))
        self._groups.update(identity.to_bytes(8, "little"), record.tobytes())
        self._records[identity] = record
        self._instances[instance].versions[version] += 1

    # Edits

    def _is_edit(self, group: CompiledGroup) -> bool:
        """`group` can be written as an edit: its parent is the newest content of a sound instance."""
        if group.edit is None:
            return False
        parent = self._records.get(group.edit.parent)
        if parent is None or (group.id in self._records and group.id not in self._retired):
            return False
        instance = self._instances[int(parent["instance"])]
        return not instance.broken and instance.newest == int(parent["version"])

    def _write_edit(self, identity: int, edit: Edit) -> None:
        parent = self._records[edit.parent]
        number = int(parent["instance"])
        tuples = parent["tuples"][: int(parent["count"])].copy()
        with self._next_version(number) as version:
            for record in edit.added:
                tuples = self._insert(number, tuples, record, version)
            for record in edit.removed:
                self._kill(number, tuples, record, version)
            rules = int(parent["rules"]) + len(edit.added) - len(edit.removed)
            self._put_record(identity, number, version, rules, tuples)

    @contextmanager
    def _next_version(self, number: int) -> Iterator[int]:
        """A version that no group has. If writing it fails, the instance is never edited again."""
        instance = self._instances[number]
        instance.newest += 1
        instance.broken = True
        yield instance.newest
        instance.broken = False

    def _insert(self, number: int, tuples: Any, record: Any, version: int) -> Any:
        """Put a rule into the shortest bucket that can have it; returns the tuples with what that changed."""
        shape = _shape(record)
        best: tuple[int, int, int, Any] | None = None       # (length, index, key, bucket)
        for index, key in _keys(tuples, record, shape):
            bucket = self._bucket(key)
            if bucket is not None and int(bucket["instance"]) != number:
                continue
            length = int(bucket["count"]) if bucket is not None else 0
            if best is None or length < best[0]:
                best = (length, index, key, bucket)
        if best is None or (best[0] >= 2 * BUCKET_RULES and len(tuples) < MAX_TUPLES):
            if len(tuples) == MAX_TUPLES:
                raise _NoMask
            tuples = np.append(tuples, np.array([_tuple(shape, int(record["priority"]))], TUPLE))
            index, key = len(tuples) - 1, int(_key(tuples[-1], shape, record))
            best = (0, index, key, self._bucket(key))
        _, index, key, bucket = best
        new = record.copy()
        new["born"] = version
        run = self._run(bucket)
        at = int(np.searchsorted(run["priority"], new["priority"], side="right"))
        self._write_bucket(number, key, bucket, np.insert(run, at, new))
        tuples[index]["best_priority"] = min(int(tuples[index]["best_priority"]), int(new["priority"]))
        return tuples

    def _kill(self, number: int, tuples: Any, record: Any, version: int) -> None:
        """Mark one rule like `record` to die with `version`."""
        shape = _shape(record)
        wanted = _content(record)
        for _, key in _keys(tuples, record, shape):
            bucket = self._bucket(key)
            if bucket is None or int(bucket["instance"]) != number:
                continue
            for offset, rule in enumerate(self._run(bucket, tidy=False)):
                if int(rule["died"]) == ALIVE and _content(rule) == wanted:
                    rule["died"] = version
                    self._rules.update((int(bucket["first"]) + offset).to_bytes(4, "little"), rule.tobytes())
                    self._instances[number].dead.append((version, key))
                    return
        raise DatapathError(f"instance {number} has no rule like the one to remove: the maps were changed by others")

    def _bucket(self, key: int) -> Any | None:
        raw = self._buckets.lookup(key.to_bytes(8, "little"))
        return np.frombuffer(raw, BUCKET)[0] if raw is not None else None

    def _run(self, bucket: Any | None, tidy: bool = True) -> Records:
        """A bucket's rules; `tidy`: without those that are dead to every group."""
        if bucket is None:
            return np.zeros(0, RULE)
        first, count = int(bucket["first"]), int(bucket["count"])
        raw = b"".join(self._rules.lookup(index.to_bytes(4, "little")) or b"" for index in range(first, first + count))
        run = np.frombuffer(raw, RULE).copy()
        return run[run["died"] > self._instances[int(bucket["instance"])].oldest()] if tidy else run

    def _write_bucket(self, number: int, key: int, old: Any | None, run: Records) -> None:
        """Point a bucket to a new run, in one step; the old run is free after a grace."""
        if len(run):
            first = self._allocate(len(run))
            self._rules.update_batch(np.arange(first, first + len(run), dtype=np.uint32), run)
            value = np.array((first, len(run), number), BUCKET)
            if old is None:
                self._filter.add(np.array([key], np.uint64))
            self._buckets.update(key.to_bytes(8, "little"), value.tobytes())
        else:
            self._buckets.delete(key.to_bytes(8, "little"))
        self._bucket_count += bool(len(run)) - (old is not None)
        if old is not None:
            self._leaving.append((time.monotonic(), int(old["first"]), int(old["count"])))

    # Tidying

    def _bury(self, number: int, instance: _Instance) -> None:
        """Take rules that are dead to all out of their buckets."""
        oldest = instance.oldest()
        for key in {key for died, key in instance.dead if died <= oldest}:
            bucket = self._bucket(key)
            if bucket is None or int(bucket["instance"]) != number:
                continue
            run = self._run(bucket)
            if len(run) < int(bucket["count"]):
                self._write_bucket(number, key, bucket, run)
        instance.dead = [(died, key) for died, key in instance.dead if died > oldest]

    def _drop_instances(self) -> None:
        """Remove instances without a group: freed ones, or half-written before a crash."""
        alive = {number for number, instance in self._instances.items() if instance.versions}
        keys, values = self._buckets.lookup_all()
        buckets = np.ascontiguousarray(values).reshape(-1).view(BUCKET)
        orphans = ~np.isin(buckets["instance"], np.array(list(alive), np.uint16))
        if orphans.any():
            self._buckets.delete_batch(np.ascontiguousarray(keys[orphans]), int(orphans.sum()))
            now = time.monotonic()
            self._leaving.extend((now, first, count) for first, count in _joined(buckets[orphans]))
            self._filter.renew(np.ascontiguousarray(keys[~orphans]).reshape(-1).view(np.uint64))
        self._bucket_count = len(keys) - int(orphans.sum())
        for number in self._instances.keys() - alive:
            del self._instances[number]

    def _adopt(self) -> None:
        """Learn from the maps which rules are taken, which versions instances have, and where dead rules are."""
        for record in self._records.values():
            known = self._instances.setdefault(int(record["instance"]), _Instance(newest=0))
            known.newest = max(known.newest, int(record["version"]))
            known.versions[int(record["version"])] += 1
        self._drop_instances()
        self._leaving.clear()                           # nobody walks by what no group names
        keys, values = self._buckets.lookup_all()
        if not len(keys):
            return
        _, rows = self._rules.lookup_all()
        rules = np.ascontiguousarray(rows).reshape(-1).view(RULE)
        buckets = np.ascontiguousarray(values).reshape(-1).view(BUCKET)
        of_bucket = np.repeat(np.arange(len(buckets)), buckets["count"])
        counts = buckets["count"].astype(np.int64)
        offsets = np.arange(len(of_bucket)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = buckets["first"][of_bucket] + offsets
        np.frombuffer(self._taken, np.uint8)[places] = 1
        born, died = rules["born"][places], rules["died"][places]
        owners = buckets["instance"][of_bucket]
        bucket_keys = np.ascontiguousarray(keys).reshape(-1).view(np.uint64)[of_bucket]
        latest = np.maximum(born, np.where(died == ALIVE, 0, died))
        for number, instance in self._instances.items():
            mine = owners == number
            if latest[mine].max(initial=0) > instance.newest:       # an edit that was cut short
                instance.broken = True
            dead = mine & (died != ALIVE)
            instance.dead.extend(zip(died[dead].tolist(), bucket_keys[dead].tolist(), strict=True))

    def _allocate(self, count: int) -> int:
        """First of `count` free rules in a row.

        Raises:
            TableFull: free rules are too scattered.
        """
        first = self._taken.find(bytes(count))
        if first < 0:
            self.collect()
            first = self._taken.find(bytes(count))
        if first < 0:
            raise TableFull(
                f"table rules: no run of {count} free entries in {self._rules.max_entries}; raise Limits.rules"
            )
        self._taken[first : first + count] = b"\1" * count
        return first


def _joined(buckets: Any) -> Iterator[tuple[int, int]]:
    """Runs of rules as (first, count), adjacent ones joined."""
    ordered = buckets[np.argsort(buckets["first"])]
    ends = ordered["first"] + ordered["count"]
    if not len(ordered):
        return
    starts = np.flatnonzero(np.concatenate(([True], ordered["first"][1:] != ends[:-1])))
    for at, after in pairwise([*starts.tolist(), len(ordered)]):
        yield int(ordered["first"][at]), int(ends[after - 1] - ordered["first"][at])


def _placed(records: Records, arrangement: Arrangement) -> tuple[Any, Any]:
    """Tuples (dtype TUPLE) with new seeds, and the bucket key of each record."""
    tuples = np.zeros(len(arrangement.masks), TUPLE)
    words = words_of(records)
    keys = np.zeros(len(records), np.uint64)
    for number, mask in enumerate(arrangement.masks):
        mine = np.flatnonzero(arrangement.owner == number)
        tuples[number] = _tuple(mask, int(records["priority"][mine[0]]))
        keys[mine] = hashes(words[mine], mask, int(tuples[number]["seed"]))
    return tuples, keys


def _tuple(mask: Mask, best_priority: int) -> Any:
    return np.array(
        (randbits(64), mask.pair, mask.rest, best_priority, mask.src_len, mask.dst_len, mask.wide, 0), TUPLE
    )[()]


def _shape(record: Any) -> Mask:
    src, dst, fields = shapes(np.atleast_1d(record))[0]
    return Mask(int(src), int(dst), int(fields))


def _keys(tuples: Any, record: Any, shape: Mask) -> Iterator[tuple[int, int]]:
    """(index, bucket key) of the tuples that can have `record`."""
    words = words_of(np.atleast_1d(record))
    for index, row in enumerate(tuples):
        mask = Mask.of(row)
        if mask.takes(shape):
            yield index, int(hashes(words, mask, int(row["seed"]))[0])


def _key(row: Any, mask: Mask, record: Any) -> int:
    return int(hashes(words_of(np.atleast_1d(record)), mask, int(row["seed"]))[0])


def _content(record: Any) -> bytes:
    """A record without its life."""
    bare = record.copy()
    bare["born"], bare["died"] = 0, ALIVE
    return bytes(bare.tobytes())
