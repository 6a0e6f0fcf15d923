"""What came of a run of the reconciler: how each object of the goal state fared, as the controller is told it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from agent.build import Built
from agent.goals import Goals
from agent.overlaps import Overlap
from policy.contribution import Fault
from southbound.messages import Goal, Key, MappingGoal, NetworkGoal, ObjectStatus, PortGoal, RemotesGoal

__all__ = ["Outcome", "statuses"]

_NONE = [""]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: how each object fared, and what was built. `general`: what went wrong that is no object's."""

    revision: int
    objects: tuple[ObjectStatus, ...]
    built: Built
    general: tuple[str, ...] = ()
    overlaps: Mapping[str, Overlap] = field(default_factory=dict)   # by NetworkGoal.id
    gone: frozenset[str] = frozenset()      # PortGoal.id: link or namespace went away (`agent.standing`); an error each
    back: frozenset[str] = frozenset()      # PortGoal.id: taken, and the far end is here: not yet, or not any more

    @property
    def complete(self) -> bool:
        """Nothing to try again."""
        return not self.general and not any(status.error for status in self.objects)


def statuses(
    goals: Goals, built: Built, failures: Iterable[Fault], overlaps: Mapping[str, Overlap]
) -> Iterator[ObjectStatus]:
    """Of all of them. `failures`: what went wrong besides `built.faults`; the first of an object is its error."""
    errors: dict[Key, list[str]] = {}
    for fault in (*failures, *built.faults):
        errors.setdefault(fault.key, []).append(fault.message)
    for key in sorted(goals.objects):
        # A link that failed is the cause; what the engine then says of the same object only follows from it.
        error = errors.get(key, _NONE)[0]
        if key[0] == RemotesGoal.kind and not error:
            yield _programmed(*key)         # thousands, and nothing to say of them
        else:
            yield ObjectStatus(key[0], key[1], error, _details(goals.objects[key], built, overlaps))


@lru_cache(maxsize=16_384)
def _programmed(kind: str, uid: str) -> ObjectStatus:
    return ObjectStatus(kind, uid)


def _details(goal: Goal, built: Built, overlaps: Mapping[str, Overlap]) -> dict[str, Any]:
    match goal:
        case PortGoal() if goal.id in built.nested:
            return {"behind": built.nested[goal.id]}
        case PortGoal() if goal.id in built.ports:
            link = built.ports[goal.id]
            lease = {"address": str(built.leases[goal.id])} if goal.id in built.leases else {}
            return {"host_interface": link.host_interface, "mtu_bytes": link.mtu_bytes, **lease}
        case PortGoal() if goal.id in built.nested and built.nested[goal.id] in built.ports:
            link = built.ports[built.nested[goal.id]]
            return {"host_interface": link.host_interface, "mtu_bytes": link.mtu_bytes, "behind": built.nested[goal.id]}
        case NetworkGoal() if goal.id in built.bridges:
            # An overlap is no error: the network is programmed, and its endpoints reach each other.
            overlap = {"overlap": str(overlaps[goal.id])} if goal.id in overlaps else {}
            return {"bridge": built.bridges[goal.id].name, **overlap}
        case MappingGoal():
            return {"external_addresses": list(built.external_addresses.get(goal.id, ()))}
    return {}
