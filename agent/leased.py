"""The goals that runtimes of this host add to those of the controller, and take away. Pure functions."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from agent.attachment import Attachment
from agent.attachment_files import Forgotten
from agent.goals import Goals
from southbound import codec
from southbound.earlier import decode_kept
from southbound.messages import FullSync, Goal, MappingGoal, NetworkGoal, PortGoal, key_of

__all__ = ["compose", "keep_goals", "kept_goals", "network_named"]


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
        yield from kept_goals(attachment.goals)


def keep_goals(goals: Sequence[Goal]) -> str:
    """Goals as text, as an attachment has them on disk."""
    return b64encode(codec.encode_sync(1, [codec.encode_goal(goal) for goal in goals])).decode() if goals else ""


@lru_cache(maxsize=4096)
def kept_goals(text: str) -> tuple[Goal, ...]:
    """The reverse of `keep_goals`, also of an earlier version of this software.

    Raises:
        ValueError, ProtocolError: it is not.
    """
    message = decode_kept(b64decode(text, validate=True)) if text else FullSync(1, ())
    assert isinstance(message, FullSync)
    return message.goals


def network_named(goals: Goals, tenant: str, name: str) -> NetworkGoal | None:
    """The network of this name, if this host is told of it."""
    return next((each for each in goals.networks if (each.tenant, each.name) == (tenant, name)), None)
