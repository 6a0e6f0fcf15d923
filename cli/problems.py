"""What goes wrong for the user, in three parts: where, what was found, what to do.

Every expected failure of a command is a `Problem`; `cli.main` prints it to stderr and ends with its status.
There is never a traceback on the screen of someone who made a typing mistake.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

USAGE = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `where` is a field, a file with a line, or an option."""

    where: str
    message: str
    found: str = ""
    todo: str = ""

    def lines(self) -> list[str]:
        """The text for stderr: one line each for the fault, what was found and what to do."""
        head = f"{self.where}: {self.message}" if self.where else self.message
        lines = [f"error: {_flat(head)}"]
        if self.found:
            lines.append(f"  found: {_flat(self.found)}")
        if self.todo:
            lines.append(f"  do:    {_flat(self.todo)}")
        return lines


class Problem(Exception):
    """Ends a command: the faults to print and the exit status."""

    def __init__(self, faults: Iterable[Fault], status: int = 1) -> None:
        self.faults = tuple(faults)
        self.status = status
        super().__init__("; ".join(f"{fault.where}: {fault.message}" for fault in self.faults))


def problem(where: str, message: str, found: object = "", todo: str = "", status: int = 1) -> Problem:
    """A `Problem` with one fault."""
    return Problem([Fault(where, message, str(found), todo)], status)


def report(error: Problem) -> None:
    """Print the faults to stderr."""
    for fault in error.faults:
        for line in fault.lines():
            print(line, file=sys.stderr)


def _flat(text: str) -> str:
    """One line of text without control characters: names and messages may come from elsewhere."""
    return "".join(char if char.isprintable() else " " for char in text).strip()
