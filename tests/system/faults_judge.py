"""Which policies could have judged a packet, and whether what became of it is one of their verdicts. Values only.

A version is in force at some moment between the start of its push and the acknowledgement of the next one. So what
could have judged a packet are the versions from the last one acknowledged before it was sent to the last one pushed
before it was judged at the latest: when it came, or, if it did not, when any packet came that was sent after it (all
are sent on one CPU, and each CPU forwards in order).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from faults_policy import FLOWS, State

UNKNOWN = np.iinfo(np.int64).max


@dataclass(slots=True)
class Timeline:
    """Versions in the order in which they were pushed. Times are CLOCK_MONOTONIC, nanoseconds."""

    pushed_ns: list[int] = field(default_factory=list)
    acked_ns: list[int] = field(default_factory=list)           # UNKNOWN: never
    allowed: list[list[bool]] = field(default_factory=list)     # by flow

    def push(self, state: State, now_ns: int) -> int:
        """One more version; its number."""
        self.pushed_ns.append(now_ns)
        self.acked_ns.append(UNKNOWN)
        self.allowed.append([state.allows(flow) for flow in FLOWS])
        return len(self.pushed_ns) - 1

    def acknowledge(self, version: int, now_ns: int) -> None:
        """A version is in force, and no earlier one."""
        self.acked_ns[version] = min(self.acked_ns[version], now_ns)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Packets judged, by one version only, and those that contradict every version that could have judged them."""

    judged: int
    certain: int
    came: int
    passed: Sequence[int]
    lost: Sequence[int]


def judge(packets: np.ndarray, timeline: Timeline) -> Verdict:  # type: ignore[type-arg]
    """Judge a record of `faults_traffic`."""
    came = packets["came_ns"] > 0
    arrivals = np.where(came, packets["came_ns"], UNKNOWN)
    latest = np.minimum.accumulate(arrivals[::-1])[::-1]        # of this packet or one sent after it
    known = latest != UNKNOWN                                   # the last ones of all are not judged
    pushed = np.array(timeline.pushed_ns)
    acked = np.minimum.accumulate(np.array(timeline.acked_ns)[::-1])[::-1]   # a later one's acknowledgement will do
    oldest = np.maximum(np.searchsorted(acked, packets["sent_ns"], side="right") - 1, 0)
    newest = np.searchsorted(pushed, latest, side="right") - 1
    known &= newest >= oldest
    sums = np.concatenate((np.zeros((1, len(FLOWS)), np.int64), np.cumsum(timeline.allowed, axis=0, dtype=np.int64)))
    allowing = sums[newest + 1, packets["flow"]] - sums[oldest, packets["flow"]]
    possible = newest - oldest + 1
    return Verdict(
        judged=int(known.sum()),
        certain=int((known & ((allowing == 0) | (allowing == possible))).sum()),
        came=int(came.sum()),
        passed=np.flatnonzero(known & came & (allowing == 0)).tolist(),
        lost=np.flatnonzero(known & ~came & (allowing == possible)).tolist(),
    )
