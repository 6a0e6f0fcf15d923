"""What the agent keeps on disk, so that a host without its controller, or after a crash, goes on as it was.

`DIR/goal.msgpack`, `DIR/goal.log`: the last acknowledged goal state (`agent.goal_files`). `DIR/agent.json`: the
identities given on this host and the identity of the controller's database. Each file is replaced whole:
written beside, fsynced, renamed, and the directory fsynced. A file that cannot be read is put aside as
`*.unreadable` and counts as absent: the controller sends the goal state again, and identities come back from
the aliases of links.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

from agent.goal_files import GoalFiles, put_aside
from agent.goals import Goals
from agent.ids import Ids
from southbound.durable import write_file

__all__ = ["Disk", "Stored"]

_log = structlog.get_logger("agent")
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Stored:
    """All that is on disk. `store`: of the controller whose goal state this is; empty: not known."""

    goals: Goals = field(default_factory=Goals)
    ids: Ids = field(default_factory=Ids)
    store: str = ""


class Disk:
    """The state directory of one agent. It is made (mode 0700) if it is not there."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._goals = GoalFiles(directory)
        self._agent = directory / "agent.json"
        self._ids, self._store = self._load_agent()

    def load(self) -> Stored:
        """What was saved last."""
        return Stored(self._goals.load(), self._ids, self._store)

    def save_goals(self, goals: Goals) -> None:
        """Keep a goal state; when this returns it survives a power cut."""
        self._goals.save(goals)

    def save_ids(self, ids: Ids) -> None:
        """Keep identities, before anything in the kernel is made under them."""
        self._ids = ids
        self._save_agent()

    def save_store(self, store: str) -> None:
        """Keep the controller's identity; only after its goal state is on disk."""
        if store != self._store:
            self._store = store
            self._save_agent()

    def _save_agent(self) -> None:
        content = {"format": _FORMAT, "store": self._store, "ids": asdict(self._ids)}
        write_file(self._agent, json.dumps(content, indent=1, sort_keys=True).encode())

    def _load_agent(self) -> tuple[Ids, str]:
        try:
            return _read_agent(json.loads(self._agent.read_bytes()))
        except FileNotFoundError:
            return Ids(), ""
        except (ValueError, KeyError, TypeError) as error:
            put_aside(self._agent, repr(error))
            return Ids(), ""


def _read_agent(content: Mapping[str, Any]) -> tuple[Ids, str]:
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']!r}, this version reads {_FORMAT}")
    ids = content["ids"]
    return (
        Ids(
            ports=_numbers(ids["ports"]),
            bridges=_numbers(ids["bridges"]),
            uplinks=_numbers(ids["uplinks"]),
            pools=_numbers(ids["pools"]),
            last_port=int(ids["last_port"]),
        ),
        str(content["store"]),
    )


def _numbers(raw: Mapping[str, Any]) -> dict[str, int]:
    found = {str(name): int(number) for name, number in raw.items()}
    if len(set(found.values())) != len(found) or any(number < 1 for number in found.values()):
        raise ValueError("identities are not positive, or not unique")
    return found
