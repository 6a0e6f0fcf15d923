"""Why the controller refuses: problems (field, what was found, what to do) and the exceptions they ride in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request. Empty text: does not apply."""

    code: str                               # stable word for programs: invalid, unknown_field, in_use, ...
    message: str
    field: str = ""                         # e.g. spec.subnets[0].prefix
    found: str = ""
    todo: str = ""
    resource: str = ""                      # e.g. Network default/red, or document 3

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.resource, self.field) if part)
        text = f"{where}: {self.message}" if where else self.message
        if self.found and self.found not in text:
            text += f" (found: {self.found})"
        return f"{text}; {self.todo}" if self.todo else text


class Refused(Exception):
    """A request that changes nothing because of `problems`; `status` is its HTTP status."""

    status: ClassVar[int] = 422

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def body(self) -> dict[str, object]:
        """The error as the API sends it: the first problem under `error`, all under `errors`."""
        problems = [asdict(p) for p in self.problems]
        return {"error": problems[0], "errors": problems}


class Invalid(Refused):
    """The request is understood and cannot be right."""


class Malformed(Refused):
    """The request cannot be read at all."""

    status = 400


class NotFound(Refused):
    """What the request names does not exist."""

    status = 404


class InUse(Refused):
    """The request is fine by itself and clashes with what is stored."""

    status = 409


class Gone(Refused):
    """A watch or a page was asked to go on from a point that is no longer kept."""

    status = 410


class Outdated(Refused):
    """`If-Match` named another revision than the stored one."""

    status = 412


class Unavailable(Refused):
    """A host that must be asked is not connected, or did not answer."""

    status = 503


CLASHES = frozenset({"in_use", "overlap", "immutable"})
"""Problem codes that mean 409 when nothing else is wrong."""


def refusal(problems: Sequence[Problem]) -> Refused:
    """The exception for a list of problems: 409 if they are all clashes, else 422."""
    return (InUse if all(p.code in CLASHES for p in problems) else Invalid)(problems)


def on(resource: str, problems: Iterable[Problem]) -> list[Problem]:
    """The problems, said of `resource`."""
    return [replace(p, resource=resource) for p in problems]


def suggestion(word: str, known: Iterable[str]) -> str:
    """What to do about a mistyped word: the likely one, or the known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(word.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    if close:
        return f"did you mean {next(k for k in known if k.lower() == close[0])!r}?"
    return f"use one of: {', '.join(known)}" if known else ""


__all__ = ["Gone", "InUse", "Invalid", "Malformed", "NotFound", "Outdated", "Problem", "Refused",
           "Unavailable", "on", "refusal", "suggestion"]
