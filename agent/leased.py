"""The goals that runtimes of this host add to those of the controller, and take away. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import fields
from typing import Any

from agent.attachment import Attachment
from agent.attachment_files import Forgotten
from agent.goals import Goals
from southbound.messages import Goal, MappingGoal, NetworkGoal, PortGoal, QosGoal, key_of

__all__ = ["compose", "goal_from_json", "network_named"]


def compose(goals: Goals, leased: Iterable[Attachment], forgotten: Iterable[Forgotten]) -> Goals:
    """What is to be programmed: without what is forgotten, with what was made by a lease and is not declared yet."""
    gone = [key for each in forgotten for uid in each.uids.values()
            for key in ((PortGoal.kind, uid), (MappingGoal.kind, uid)) if key in goals.objects]
    more = [goal for goal in _made(leased) if goals.objects.get(key_of(goal)) != goal]
    if not gone and not more:
        return goals
    objects = dict(goals.objects)
    for key in gone:
        del objects[key]
    objects.update((key_of(goal), goal) for goal in more)
    return Goals(goals.revision, objects)


def _made(leased: Iterable[Attachment]) -> Iterator[Goal]:
    for attachment in leased:
        for value in attachment.goals:
            yield goal_from_json(value)


def goal_from_json(value: Any) -> PortGoal | MappingGoal:
    """A goal as an attachment keeps it, which has lists for tuples and has no tiers: those are the lease's."""
    kind: type[PortGoal | MappingGoal] = PortGoal if "mac" in value else MappingGoal
    known = {one.name for one in fields(kind)}
    return kind(**{name: tuple(each) if isinstance(each, list) else each
                   for name, each in value.items() if name in known})


def network_named(goals: Goals, tenant: str, name: str) -> NetworkGoal | None:
    """The network of this name, if this host is told of it."""
    return next((each for each in goals.networks if (each.tenant, each.name) == (tenant, name)), None)
