"""`agent.build.build`, remembered: most runs find what the last one left."""

from __future__ import annotations

from agent.build import Built, build
from agent.goals import Goals
from agent.ids import Ids
from agent.observed import Observed

__all__ = ["LastBuild"]


class LastBuild:
    """What was built last, and of what."""

    def __init__(self) -> None:
        self._last: tuple[tuple[Goals, Observed, Ids], Built] | None = None

    def __call__(self, goals: Goals, observed: Observed, ids: Ids) -> Built:
        """What is to be there; the same object again if nothing is other than last time."""
        what = (goals, observed, ids)
        if self._last is None or self._last[0] != what:
            self._last = (what, build(*what))
        return self._last[1]
