"""Where a lab's steps take place: its namespaces, programs, files and saved names."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labs.errors import StepFailed
from labs.journal import Journal
from labs.processes import Outcome, Processes
from labs.schema import Lab
from labs.values import fill_text

PACKAGE_ROOT = Path(__file__).resolve().parent.parent


@dataclass(slots=True)
class Site:
    """One lab while it runs. `saved` are the `${names}` of all steps so far."""

    lab: Lab
    journal: Journal
    processes: Processes
    places: Mapping[str, str]
    saved: dict[str, Any] = field(default_factory=dict)
    captures: dict[str, Path] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Directory for files of steps, `${work}`."""
        return self.journal.directory / "work"

    def namespace(self, place: str | None, names: Mapping[str, Any]) -> str:
        """Namespace that a place means; empty for None, the root namespace."""
        if place is None:
            return ""
        wanted = fill_text(place, names)
        if wanted not in self.places:
            raise StepFailed(f"no node or endpoint is called {wanted!r}; there are "
                             f"{', '.join(sorted(set(self.places) - set(self.places.values())))}")
        return self.places[wanted]

    def words(self, command: str | Sequence[str], names: Mapping[str, Any]) -> list[str]:
        """A command of the file as words, names filled in."""
        split = shlex.split(command) if isinstance(command, str) else list(command)
        words = [fill_text(word, names) for word in split]
        if words[:1] == ["sluice"]:
            return [*sluice(), *words[1:]]
        if words[:1] == ["probe"]:
            return [sys.executable, "-m", "labs.probe", *words[1:]]
        return words

    async def sluice(self, *arguments: str, timeout_s: float = 30) -> Outcome:
        """Run the real command-line program and expect success.

        Raises:
            StepFailed: it failed; with its output.
        """
        outcome = await self.processes.run([*sluice(), *arguments], timeout_s=timeout_s)
        if outcome.exit:
            raise StepFailed(f"`sluice {' '.join(arguments)}` failed: {outcome.stderr.strip()[-200:]}",
                             outcome.shown())
        return outcome


def sluice() -> list[str]:
    """The `sluice` command of this installation."""
    script = Path(sys.executable).with_name("sluice")
    return [str(script)] if script.exists() else [sys.executable, "-m", "cli.main"]


def environment(journal: Journal) -> dict[str, str]:
    """What every program of a lab finds in its environment."""
    # Not the real ones: whoever forgets `in: h1` is told so by docker. `labs.machine` has the ones of its own.
    return {"DOCKER_HOST": f"unix://{journal.directory}/docker-needs-in.sock", "SLUICE_API": journal.api,
            "PYTHONPATH": str(PACKAGE_ROOT), "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8", "COLUMNS": "200"}
