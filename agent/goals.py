"""The goal state of this host at one revision, and how messages change it. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from southbound.messages import (
    Delta,
    FullSync,
    Goal,
    HostGoal,
    Key,
    LeaseGoal,
    MappingGoal,
    NetworkGoal,
    PortGoal,
    RemotesGoal,
    key_of,
)

__all__ = ["Goals", "NotAtBase", "apply_delta", "from_sync"]


class NotAtBase(Exception):
    """A delta is for another base than what we have."""


G = TypeVar("G", HostGoal, NetworkGoal, PortGoal, RemotesGoal, MappingGoal, LeaseGoal)


@dataclass(frozen=True, slots=True)
class Goals:
    """All goal-state objects by key. Revision 0: nothing was ever received."""

    revision: int = 0
    objects: Mapping[Key, Goal] = field(default_factory=dict)
    _by_type: dict[type[Goal], list[Any]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for key in sorted(self.objects):    # once: there may be thousands, and each run asks many times
            goal = self.objects[key]
            self._by_type.setdefault(type(goal), []).append(goal)

    def _all(self, kind: type[G]) -> list[G]:
        return list(self._by_type.get(kind, ()))

    @property
    def host(self) -> HostGoal:
        """The host object; the defaults if the controller sent none."""
        return next(iter(self._all(HostGoal)), HostGoal("self"))

    @property
    def networks(self) -> list[NetworkGoal]:
        """Networks by uid."""
        return self._all(NetworkGoal)

    @property
    def ports(self) -> list[PortGoal]:
        """Ports by uid."""
        return self._all(PortGoal)

    @property
    def remotes(self) -> list[RemotesGoal]:
        """Blocks of remote endpoints by id."""
        return self._all(RemotesGoal)

    @property
    def mappings(self) -> list[MappingGoal]:
        """Static mappings by uid."""
        return self._all(MappingGoal)

    @property
    def leases(self) -> list[LeaseGoal]:
        """Addresses that this host may give by itself, by NetworkGoal.id."""
        return self._all(LeaseGoal)


def from_sync(message: FullSync) -> Goals:
    """The goal state that a full sync says."""
    return Goals(message.revision, {key_of(goal): goal for goal in message.goals})


def apply_delta(goals: Goals, message: Delta) -> Goals:
    """The goal state after a delta.

    Raises:
        NotAtBase: the delta does not start at our revision.
    """
    if message.base != goals.revision:
        raise NotAtBase(
            f"delta from revision {message.base} to {message.revision}, but we are at {goals.revision}"
        )
    objects = dict(goals.objects)
    for key in message.remove:
        objects.pop((key[0], key[1]), None)
    objects.update((key_of(goal), goal) for goal in message.put)
    return Goals(message.revision, objects)
