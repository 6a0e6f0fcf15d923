"""Rounds of readings: in each, every subject in turn, and whoever goes first differs from round to round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from bench.measure import MeasureError, Pair, read_connections, read_latency, read_throughput, servers
from bench.packets import read_packets
from bench.program import LAYERS, engines
from bench.report import Absence
from bench.results import Key, Sample
from bench.rules import USUAL
from bench.topologies import ACROSS, SAME, SCALE_RULES, Builder, built, scale

__all__ = ["Plan", "measure"]

Reading = Callable[[Pair, float], dict[str, float]]
Tell = Callable[[str], None]
_T = TypeVar("_T")

_ALL: dict[str, Reading] = {
    "throughput": read_throughput, "latency": read_latency, "packets": read_packets, "connections": read_connections,
}
_SCALED: dict[str, Reading] = {"packets": read_packets, "connections": read_connections}
_QUICK_RULES = (20, 10_000)
_REST_S = 0.05                              # what the reading before set going ends


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    cases: tuple[str, ...]
    peers: tuple[str, ...]
    rounds: int
    seconds: float
    quick: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of rules."""
        return _QUICK_RULES if self.quick else SCALE_RULES


@dataclass(slots=True)
class _Log:
    """What came out so far."""

    samples: list[Sample] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)


def measure(plan: Plan, tell: Tell) -> tuple[list[Sample], list[Absence]]:
    """Every case of the plan. A reading that fails is told and not tried again; the others go on."""
    log = _Log()
    for case in plan.cases:
        if case == "engine":
            log.samples.extend(_engine(plan, tell))
        elif case == "scale":
            _links(case, scale(plan.sizes, plan.peers), _SCALED, plan, log, tell)
        else:
            chosen = {peer: build for peer, build in (SAME if case == "same-host" else ACROSS).items()
                      if peer in plan.peers}
            _links(case, chosen, _ALL, plan, log, tell)
    return log.samples, log.absences


def _links(
    case: str, builders: dict[str, Builder], readings: dict[str, Reading], plan: Plan, log: _Log, tell: Tell
) -> None:
    tell(f"{case}: building {', '.join(builders)}")
    with built(builders) as made, ExitStack() as running:
        for subject, reason in made.absent.items():
            tell(f"{case}: no {subject}: {reason}")
            log.absences.append(Absence(case, subject.partition("@")[0], _size(subject), reason))
        for pair in made.pairs.values():
            running.enter_context(servers(pair))
        failed: set[tuple[str, str]] = set()
        for number in range(plan.rounds):
            tell(f"{case}: round {number + 1} of {plan.rounds}")
            for reading, read in readings.items():
                for subject in _turned(list(made.pairs), number):
                    if (reading, subject) in failed:
                        continue
                    time.sleep(_REST_S)
                    try:
                        found = read(made.pairs[subject], plan.seconds)
                    except MeasureError as error:
                        failed.add((reading, subject))
                        tell(f"{case}: {reading} of {subject}: {error}")
                        log.absences.append(Absence(
                            case, subject.partition("@")[0], f"{reading} {_size(subject)}".strip(), str(error)
                        ))
                        continue
                    kind, _, rules = subject.partition("@")
                    log.samples.extend(
                        Sample(Key(case, metric, kind, int(rules or USUAL)), number, value)
                        for metric, value in found.items()
                    )


def _engine(plan: Plan, tell: Tell) -> Iterator[Sample]:
    tell("engine: compiling")
    with engines(plan.sizes, LAYERS) as policies:
        for number in range(plan.rounds):
            tell(f"engine: round {number + 1} of {plan.rounds}")
            for rules, layers in _turned(list(policies), number):
                for metric, value in policies[rules, layers].read().items():
                    yield Sample(Key("engine", metric, "sluice", rules, layers), number, value)


def _turned(subjects: Sequence[_T], by: int) -> list[_T]:
    by %= max(1, len(subjects))
    return [*subjects[by:], *subjects[:by]]


def _size(subject: str) -> str:
    rules = subject.partition("@")[2]
    return f"with {int(rules):,} rules" if rules else ""
