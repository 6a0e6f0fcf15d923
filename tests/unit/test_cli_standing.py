"""`sluice apply` waits for faults that heal, and not long for those that do not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from cli.standing import standing
from controller.client import Written

State = Callable[[float], tuple[str, str]]


class Cluster:
    """Objects of one tenant whose phase and message are functions of the time since it was made."""

    def __init__(self, **objects: State) -> None:
        self._objects, self._began_s = objects, time.monotonic()
        self.asked = 0
        self.written = Written(1, tuple({"kind": "Network", "tenant": "default", "name": name, "result": "created",
                                         "resource": {}} for name in objects if name != "other"), ())

    def list(self, kind: str, tenant: str | None = None) -> list[dict[str, Any]]:
        self.asked += 1
        since_s = time.monotonic() - self._began_s
        found = []
        for name, state in self._objects.items():
            phase, message = state(since_s)
            found.append({"kind": kind, "metadata": {"name": name, "tenant": tenant},
                          "status": {"phase": phase, "message": message}})
        return found

    def faults(self, wait_s: float, settled_s: float = 0.5) -> tuple[list[tuple[str, str]], float]:
        """What stands, and after how long that is said."""
        began_s = time.monotonic()
        faults = standing(self, self.written, began_s + wait_s, settled_s)
        return [(fault.where, fault.found) for fault in faults], time.monotonic() - began_s


def ready(_: float) -> tuple[str, str]:
    return "Ready", ""


def heals(at_s: float, why: str = "no uplink") -> State:
    return lambda since_s: ("Failed", why) if since_s < at_s else ("Ready", "")


def test_without_a_fault_it_looks_once() -> None:
    cluster = Cluster(a=ready, b=ready, other=heals(99))
    assert cluster.faults(10)[0] == []
    assert cluster.asked == 1


def test_faults_that_heal_one_after_the_other_are_waited_for() -> None:
    cluster = Cluster(a=heals(0.4), b=heals(0.8), c=heals(1.2))      # each sooner than it would be settled
    faults, took_s = cluster.faults(10)
    assert faults == []
    assert 1.2 <= took_s < 3


def test_a_fault_that_stays_is_told_when_it_is_settled_with_the_words_that_stand() -> None:
    def words(since_s: float) -> tuple[str, str]:
        return "Failed", "no link" if since_s < 0.3 else "no address"

    (fault, *more), took_s = Cluster(a=words, b=ready).faults(10)
    assert (fault[1], more) == ("no address", [])
    assert 0.5 <= took_s < 2.5


def test_other_objects_that_still_move_keep_it_waiting_until_the_deadline() -> None:
    def restless(since_s: float) -> tuple[str, str]:
        return "Pending", f"step {int(since_s * 5)}"

    faults, took_s = Cluster(a=heals(99), b=restless).faults(1.5)
    assert len(faults) == 1
    assert 1.5 <= took_s < 2.5


@pytest.mark.parametrize("wait_s", [0.0, 0.3])
def test_the_deadline_holds(wait_s: float) -> None:
    faults, took_s = Cluster(a=heals(99)).faults(wait_s, 60)
    assert len(faults) == 1
    assert took_s < wait_s + 1
