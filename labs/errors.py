"""What can go wrong with a lab, apart from an expectation that does not hold."""

from __future__ import annotations

from dataclasses import dataclass


class LabError(Exception):
    """The lab cannot be built, run or found. The message says what was found and what to do."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong in a lab file."""

    line: int                               # 1-based; 0: the file as a whole
    field: str                              # nodes.h1.interfaces.lan0.address
    message: str                            # what was found and what to do

    def at(self, file: str) -> str:
        """`file:line: field: message`, as editors understand it."""
        place = f"{file}:{self.line}" if self.line else file
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"


class InvalidLab(LabError):
    """The lab file is wrong; every flaw is named, in the order of the file."""

    def __init__(self, file: str, flaws: list[Flaw]) -> None:
        self.file = file
        self.flaws = tuple(sorted(flaws, key=lambda flaw: flaw.line))
        super().__init__("\n".join(flaw.at(file) for flaw in self.flaws))


class StepFailed(Exception):
    """An expectation did not hold. `details` is the output that shows why."""

    def __init__(self, message: str, details: str = "") -> None:
        self.details = details
        super().__init__(message)
