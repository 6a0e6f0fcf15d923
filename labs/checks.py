"""The end of a command against what a lab expects of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any

from labs.errors import StepFailed
from labs.processes import Outcome
from labs.schema import Check, Matcher, Save
from labs.values import fill_text, find, mismatch, number

Names = Mapping[str, Any]


def judge(check: Check, outcome: Outcome, names: Names) -> None:
    """Compare the end of a command with what was expected.

    Raises:
        StepFailed: the first thing that differs.
    """
    why = ""
    if check.exit == "failure":
        why = "" if outcome.exit else "it succeeded, but should have failed"
    elif check.exit != "any" and outcome.exit != check.exit:
        why = f"exit status {outcome.exit} instead of {check.exit}"
        last = (outcome.stderr or outcome.stdout).strip().splitlines()
        why += f": {last[-1].strip()[:160]}" if last else ""
    streams = (("stdout", check.stdout, outcome.stdout), ("stderr", check.stderr, outcome.stderr))
    for label, expected, text in streams:
        if not why and expected is not None and (found := mismatch(expected, [text], names)):
            why = f"{label}: {found}"
    if not why and check.json_:
        why = _judge_json(check.json_, _json(outcome), names)
    if why:
        raise StepFailed(f"`{_short(outcome.command)}`: {why}", outcome.shown())


def _judge_json(expected: Mapping[str, Matcher], data: Any, names: Names) -> str:
    for path, matcher in expected.items():
        filled = fill_text(path, names)
        if why := mismatch(matcher, find(filled, data), names):
            return f"{filled}: {why}"
    return ""


def _json(outcome: Outcome) -> Any:
    try:
        return loads(outcome.stdout)
    except JSONDecodeError as error:
        raise StepFailed(f"`{_short(outcome.command)}`: its output is not JSON: {error}",
                         outcome.shown()) from None


def save(saved: dict[str, Any], wanted: Mapping[str, Save], outcome: Outcome, names: Names) -> None:
    """Put what the file wants to keep of an outcome into `saved`.

    Raises:
        StepFailed: it is not there.
    """
    for key, source in wanted.items():
        name = fill_text(key, names)
        values = _saved(source, outcome, names)
        if not values:
            if "default" not in source.model_fields_set:
                raise StepFailed(f"nothing to save as {name}", outcome.shown())
            values = [source.default]
        saved[name] = values[0] if len(values) == 1 else values


def _saved(source: Save, outcome: Outcome, names: Names) -> list[Any]:
    if source.clock is not None:
        return [outcome.began_s if source.clock == "began" else outcome.ended_s]
    if source.json_ is not None:
        values = find(fill_text(source.json_, names), _json(outcome))
        return [sum(map(number, values))] if source.sum and values else values
    found = re.search(fill_text(source.stdout or "(?s)(.*)", names), outcome.stdout, re.MULTILINE)
    if not found:
        return []
    return [(found[1] if found.re.groups else found[0]).strip()]


def _short(command: Sequence[str]) -> str:
    """A command without the paths of this installation."""
    words = list(command)
    words[:1] = [Path(word).name for word in words[:1]]
    text = " ".join(words).replace("python -m labs.probe", "probe").replace("python -m cli.main", "sluice")
    return text if len(text) < 120 else text[:117] + "..."
