"""Cutting a case down to what still makes the engines differ, and writing it as a Python file to keep."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from enum import Enum
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from engine_steps import Update
from engine_storms import AgeingBpf, AgeingReference, Case, Difference, replay

import vfp.model
from vfp.errors import PolicyError
from vfp.model import EngineState, Location

Fails = Callable[[Case], bool]

_WHOLE = (IPv4Address, IPv4Network, IPv6Address, IPv6Network, Enum, bytes, str, bool, int, float, type(None))


def shrunk(difference: Difference, backend: AgeingBpf | AgeingReference, patience_s: float = 60.0) -> Difference:
    """A difference of the same sort with as little policy and as few events as patience allows."""
    best = difference
    deadline = time.monotonic() + patience_s

    def fails(case: Case) -> bool:
        nonlocal best
        try:
            replay(case, backend)
        except Difference as found:
            if found.sort == difference.sort:
                best = Difference(found.sort, found.detail, case)
                return True
        except (PolicyError, TypeError, ValueError):    # no policy at all
            pass
        return False

    if not fails(difference.case):          # needs what `replay` does otherwise: more looks at the tables
        return difference
    size = -1
    while size != (size := len(source_of(best.case))) and time.monotonic() < deadline:
        for shrink in (_fewer_events, _less_policy):
            shrink(best.case, fails, deadline)
    return best


def _fewer_events(case: Case, fails: Fails, deadline: float) -> None:
    """Delta debugging: leave out halves, quarters, ..., single events, from the end."""
    events = case.events
    size = max(1, len(events) // 2)
    while True:
        at = len(events)
        while at > 0 and time.monotonic() < deadline:
            low = max(0, at - size)
            fewer = events[:low] + events[at:]
            if fails(replace(case, events=fewer)):
                events = fewer
            at = low
        if size == 1:
            return
        size //= 2


def _less_policy(case: Case, fails: Fails, deadline: float) -> None:
    """Simpler states, first the same simplification in all of them, then in each alone."""
    everywhere = _simplify(case.state, lambda state: fails(_with_states(
        case, tuple(_alike(old, state, case.state) for old in _states_of(case)))), deadline)
    case = _with_states(case, tuple(_alike(old, everywhere, case.state) for old in _states_of(case)))
    for index in range(len(_states_of(case))):
        with_state = partial(_with_state, case, index)
        simpler = _simplify(_states_of(case)[index], lambda state, at=with_state: fails(at(state)), deadline)
        case = with_state(simpler)


def _states_of(case: Case) -> tuple[EngineState, ...]:
    return (case.state, *(event.state for event in case.events if isinstance(event, Update)))


def _with_states(case: Case, states: tuple[EngineState, ...]) -> Case:
    rest = iter(states[1:])
    return Case(states[0], tuple(Update(next(rest)) if isinstance(event, Update) else event for event in case.events))


def _with_state(case: Case, index: int, state: EngineState) -> Case:
    states = _states_of(case)
    return _with_states(case, (*states[:index], state, *states[index + 1:]))


def _alike(other: EngineState, simpler: EngineState, original: EngineState) -> EngineState:
    """`other`, where it is the same as `original`, becomes as `simpler` is."""
    return replace(other, **{
        field.name: getattr(simpler, field.name) for field in fields(EngineState)
        if getattr(other, field.name) == getattr(original, field.name)})


def _simplify(state: EngineState, fails: Callable[[Any], bool], deadline: float) -> EngineState:
    """Greedily take the first simpler variant that still fails, until there is none."""
    progress = True
    while progress:
        progress = False
        for variant in _variants(state):
            if time.monotonic() > deadline:
                return state
            if fails(variant):
                state, progress = variant, True
                break
    return state


def _variants(value: Any) -> Iterator[Any]:
    """Simpler values in place of this one: without elements, or with fields as they are by default."""
    if isinstance(value, tuple):
        size = len(value)
        while size:
            for at in range(0, len(value), size):
                yield value[:at] + value[at + size:]
            size //= 2
        for at, each in enumerate(value):
            for variant in _variants(each):
                yield (*value[:at], variant, *value[at + 1:])
    elif is_dataclass(value) and not isinstance(value, Location | type):
        for field in fields(value):
            now = getattr(value, field.name)
            usual = field.default if field.default_factory is MISSING else field.default_factory()
            if usual is not MISSING and now != usual and field.name != "name":
                yield replace(value, **{field.name: usual})
            if not isinstance(now, _WHOLE):
                for variant in _variants(now):
                    yield replace(value, **{field.name: variant})


def source_of(value: Any) -> str:
    """Python source that makes a value, with defaults left out."""
    match value:
        case Enum():
            return f"{type(value).__name__}.{value.name}"
        case bytes():
            return f'bytes.fromhex("{value.hex()}")'
        case IPv4Address() | IPv6Address() | IPv4Network() | IPv6Network():
            return f'{type(value).__name__}("{value}")'
        case tuple():
            inner = ", ".join(source_of(each) for each in value)
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        case _ if is_dataclass(value) and not isinstance(value, type):
            given = []
            for field in fields(value):
                now = getattr(value, field.name)
                usual = field.default if field.default_factory is MISSING else field.default_factory()
                if now != usual:
                    given.append(f"{field.name}={source_of(now)}")
            return f"{type(value).__name__}({', '.join(given)})"
    return repr(value)


def module_of(difference: Difference, seed: str) -> str:
    """A file for tests/kernel/regressions: the case, and what was wrong."""
    case = difference.case
    names = sorted(set(_classes(case)))
    told = "\n".join(f"# {line}"[:119].rstrip() for line in str(difference).splitlines()[:40])
    imports = [
        f"from {module} import {', '.join(wanted)}" for module, wanted in (
            ("ipaddress", [name for name in names if name.startswith("IPv")]),
            ("engine_steps", [name for name in names if name in ("Send", "Update", "Wait")]),
            ("engine_storms", ["Case"]),
            ("vfp.model", [name for name in names if hasattr(vfp.model, name) and not name.startswith("IPv")]),
            ("vfp.reference", [name for name in names if name == "Hook"]),
        ) if wanted]
    events = "".join(f"        {source_of(event)},\n" for event in case.events)
    return (
        f'"""Found by fuzzing, {seed}. Say here what it proves, once it is mended."""\n{told}\n'
        f"# ruff: noqa: E501, I001\n\n" + "\n".join(imports)
        + f"\n\nCASE = Case(\n    state={source_of(case.state)},\n    events=(\n{events}    ),\n)\n")


def _classes(value: Any) -> Iterator[str]:
    if isinstance(value, tuple):
        for each in value:
            yield from _classes(each)
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value).__name__
        for field in fields(value):
            yield from _classes(getattr(value, field.name))
    elif isinstance(value, Enum | IPv4Address | IPv4Network | IPv6Address | IPv6Network):
        yield type(value).__name__


