"""Compiled groups in the kernel: content-addressed, so that equal groups are one and a restart finds its own."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Iterable

import numpy as np

from vfp.classifier import CompiledGroup
from vfp.datapath.map import BpfMap
from vfp.errors import TableFull
from vfp.layout import BUCKET, BUCKET_KEY, GROUP

GRACE_S = 1.0
"""A packet's walk takes microseconds; a group that left every program is unreachable long before this."""


class GroupTable:
    """The maps `groups`, `buckets` and `rules`, and which runs of rules are free."""

    def __init__(self, groups: BpfMap, buckets: BpfMap, rules: BpfMap) -> None:
        """Take over what the maps hold."""
        self._groups, self._buckets, self._rules = groups, buckets, rules
        self._runs: dict[int, tuple[int, int]] = {}     # group id -> first rule, count
        self._retired: dict[int, float] = {}            # group id -> when it was found unused
        self._bucket_count = 0
        for key, value in groups.items():
            group = np.frombuffer(value, GROUP)[0]
            self._runs[int.from_bytes(key, "little")] = (int(group["first"]), int(group["rules"]))
        self._drop_orphan_buckets()

    def __contains__(self, identity: int) -> bool:
        return identity in self._runs

    def check_room(self, wanted: Iterable[CompiledGroup]) -> None:
        """Raises:
        TableFull: the new groups among `wanted` do not fit beside the old ones.
        """
        new = [group for group in wanted if group.id not in self._runs]
        rules, buckets = sum(len(group.rules) for group in new), sum(len(group.buckets) for group in new)
        used = sum(count for _, count in self._runs.values())
        if used + rules > self._rules.max_entries or self._bucket_count + buckets > self._buckets.max_entries:
            raise TableFull(
                f"table rules: {rules} more wanted, {self._rules.max_entries - used} of {self._rules.max_entries} "
                f"are free; raise Limits.rules (a change needs room for old and new side by side)"
            )

    def add(self, wanted: Iterable[CompiledGroup]) -> None:
        """Write groups that are not there yet; the group's own record last, so that it is whole when it is found."""
        for group in wanted:
            self._retired.pop(group.id, None)
            if group.id in self._runs:
                continue
            first = self._allocate(len(group.rules))
            if len(group.rules):
                indexes = np.arange(first, first + len(group.rules), dtype=np.uint32)
                self._rules.update_batch(indexes, group.rules, len(indexes))
            runs = np.zeros(len(group.buckets), BUCKET)
            runs["first"], runs["count"] = group.buckets[:, 0] + first, group.buckets[:, 1]
            if len(runs):
                self._buckets.update_batch(group.bucket_keys, runs, len(runs))
            record = np.zeros((), GROUP)
            record["count"], record["first"], record["rules"] = len(group.tuples), first, len(group.rules)
            record["tuples"][: len(group.tuples)] = group.tuples
            self._groups.update(group.id.to_bytes(8, "little"), record.tobytes())
            self._runs[group.id] = (first, len(group.rules))
            self._bucket_count += len(runs)

    def retire_unused(self, used: set[int]) -> None:
        """Note which groups no program refers to; `collect` frees them after a grace."""
        now = time.monotonic()
        for identity in self._runs.keys() - used:
            self._retired.setdefault(identity, now)

    def collect(self) -> None:
        """Free groups that were retired long enough ago."""
        now = time.monotonic()
        due = [identity for identity, since in self._retired.items() if now - since >= GRACE_S]
        if not due:
            return
        for identity in due:
            self._groups.delete(identity.to_bytes(8, "little"))
            del self._runs[identity], self._retired[identity]
        self._drop_orphan_buckets()

    def _drop_orphan_buckets(self) -> None:
        """Remove buckets of groups that do not exist: freed ones, or half-written before a crash."""
        keys, _ = self._buckets.lookup_all()
        owners = np.ascontiguousarray(keys).reshape(-1).view(BUCKET_KEY)["group"]
        orphans = ~np.isin(owners, np.array(list(self._runs), np.uint64))
        if orphans.any():
            self._buckets.delete_batch(np.ascontiguousarray(keys[orphans]), int(orphans.sum()))
        self._bucket_count = len(keys) - int(orphans.sum())

    def _allocate(self, count: int) -> int:
        """First run of `count` free rules.

        Raises:
            TableFull: free rules are too scattered.
        """
        position = 0
        taken: list[tuple[int, int]] = []
        for run in self._runs.values():
            insort(taken, run)
        for first, length in taken:
            if length and first - position >= count:
                return position
            position = max(position, first + length)
        if position + count > self._rules.max_entries:
            raise TableFull(
                f"table rules: no run of {count} free entries in {self._rules.max_entries}; raise Limits.rules"
            )
        return position
