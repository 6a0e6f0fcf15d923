"""Child processes of `sluice up`: started so that they end with it, watched, ended in order."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from cli.problems import problem

STOP_S = 10.0  # between SIGTERM and SIGKILL
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Child:
    """One running daemon."""

    name: str
    process: subprocess.Popen[bytes]


class Children:
    """Daemons in their own process groups, so that Ctrl-C reaches only us and we end them last started first.

    If we are killed the kernel sends them SIGTERM (prctl(2) PR_SET_PDEATHSIG, by way of setpriv(1)).
    """

    def __init__(self) -> None:
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start `sluice ARGUMENTS`."""
        setpriv = shutil.which("setpriv")
        prefix = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
        command = [*prefix, sys.executable, "-m", "cli.main", *arguments]
        self._children.append(
            Child(name, subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0))
        )

    def wait_until(self, ready: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait for something that the children bring about.

        Raises:
            Problem: a child ended first, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise problem(
                    "sluice up",
                    f"{what} did not come up within {timeout_s:g} s",
                    "",
                    "its messages stand above; `sluice doctor` says what this host lacks",
                )
            time.sleep(POLL_S)

    def check(self) -> None:
        """Raise `Problem` if a child has ended by itself."""
        for child in self._children:
            status = child.process.poll()
            if status is not None:
                raise problem(
                    "sluice up",
                    f"the {child.name} ended",
                    f"status {status}",
                    "its messages stand above; `sluice doctor` says what this host lacks",
                )

    def wait(self) -> None:
        """Until a child ends by itself (`Problem`) or somebody interrupts."""
        while True:
            self.check()
            time.sleep(0.5)

    def stop(self) -> None:
        """End all, the last started first; one that does not listen is killed."""
        while self._children:
            child = self._children.pop()
            child.process.terminate()
            try:
                child.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
