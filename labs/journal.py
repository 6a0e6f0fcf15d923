"""What a lab has made, written down before it is made, so that any later run can find and remove it.

One directory a lab, `/run/sluice-lab/<name>/`, with `journal.json`. A lab runner that dies at any point
leaves a journal that names at least everything that exists.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from labs.errors import LabError

ROOT = Path("/run/sluice-lab")


@dataclass(frozen=True, slots=True)
class Identity:
    """A process beyond doubt: pids are used again, a pid with its start time is not."""

    name: str                               # agent/h1, nginx/web, ...
    pid: int
    start: int                              # clock ticks since boot, proc(5) stat field 22


@dataclass(slots=True)
class Journal:
    """The record of one lab. Every change is on disk when the call returns."""

    name: str
    file: str = ""                          # the lab file, absolute
    namespaces: list[str] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    processes: list[Identity] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    machines: dict[str, Identity] = field(default_factory=dict)     # namespace: its machine's first process
    groups: list[str] = field(default_factory=list)                 # control groups of the machines

    @property
    def directory(self) -> Path:
        """Where the lab keeps its files; gone after `down`."""
        return ROOT / self.name

    @property
    def api(self) -> str:
        """SLUICE_API of the lab's controller."""
        return f"unix:{self.directory}/api.sock"

    @classmethod
    def find(cls, name: str) -> Self | None:
        """The journal of a lab that exists, whole or in parts; None when there is none."""
        directory = ROOT / name
        if not directory.is_dir():
            return None
        try:
            data: dict[str, Any] = json.loads((directory / "journal.json").read_text(encoding="utf-8"))
        except FileNotFoundError:           # died between making the directory and the first line
            return cls(name)
        except (OSError, ValueError) as error:
            raise LabError(f"{directory}/journal.json is unreadable: {error}; remove by hand what the lab "
                           f"made (namespaces that start with {name}-), then the directory") from error
        data["processes"] = [Identity(**identity) for identity in data["processes"]]
        data["machines"] = {name: Identity(**identity) for name, identity in data["machines"].items()}
        return cls(**data)

    def save(self) -> None:
        """Write it; a reader sees the old record or the new one."""
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        target = self.directory / "journal.json"
        draft = target.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        draft.replace(target)

    def add_process(self, identity: Identity) -> None:
        """Remember a process that was started."""
        self.processes.append(identity)
        self.save()

    def forget_process(self, pid: int) -> None:
        """Forget one that has ended."""
        self.processes = [known for known in self.processes if known.pid != pid]
        self.save()


def existing() -> Iterable[str]:
    """Names of the labs that exist, whole or in parts."""
    return sorted(path.name for path in ROOT.glob("*/")) if ROOT.is_dir() else []


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Only one runner at a time may build, run or remove a lab.

    Raises:
        LabError: another one is at it; its pid is named.
    """
    ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = ROOT / f"{name}.lock"
    descriptor = _locked(path, name)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        remove_root()


def remove_root() -> None:
    """Remove /run/sluice-lab if nothing is in it."""
    try:
        ROOT.rmdir()
    except OSError:
        return


def _locked(path: Path, name: str) -> int:
    while True:
        ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:           # another runner has just removed the directory
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise LabError(f"lab {name} is in the hands of another `sluice lab` (pid {pid or 'unknown'}); "
                           "wait until it is done, or end it with Ctrl-C") from None
        # The one who had it may have unlinked the file between our open and our lock.
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)
