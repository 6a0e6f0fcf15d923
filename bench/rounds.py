"""Rounds of readings: in each, every subject in turn, and whoever goes first differs from round to round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from bench.mappings import PLACES, REMOTES, among, receive
from bench.measure import (
    MeasureError,
    Pair,
    read_connections,
    read_latency,
    read_round_trips,
    read_throughput,
    servers,
)
from bench.nat import BINDINGS, INBOUND, MAPPINGS, OUTBOUND, inbound, outbound
from bench.nat_engine import translating
from bench.packets import read_packets
from bench.program import LAYERS, engines
from bench.report import Absence, counted
from bench.results import BASES, Key, Sample
from bench.rules import USUAL
from bench.topologies import ACROSS, SAME, SCALE_RULES, Builder, built, scale

__all__ = ["Plan", "measure"]

Reading = Callable[[Sequence[Pair], float], Iterable[dict[str, float] | MeasureError]]
Tell = Callable[[str], None]
_T = TypeVar("_T")


def _each(read: Callable[[Pair, float], dict[str, float]]) -> Reading:
    """Of one after the other."""
    def read_all(pairs: Sequence[Pair], seconds: float) -> Iterator[dict[str, float] | MeasureError]:
        for pair in pairs:
            time.sleep(_REST_S)
            try:
                yield read(pair, seconds)
            except MeasureError as error:
                yield error

    return read_all


_SCALED: dict[str, Reading] = {"packets": _each(read_packets), "connections": _each(read_connections)}
_ALL: dict[str, Reading] = {"throughput": _each(read_throughput), "latency": _each(read_latency), **_SCALED}
_TRANSLATED: dict[str, Reading] = {
    "throughput": _each(read_throughput), "latency": read_round_trips, "connections": _each(read_connections),
    "packets": _each(lambda pair, seconds: read_packets(pair, seconds / 2)),
}
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

    def few(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes, or, for a look, all but the largest, which takes long to build."""
        return sizes[:-1] if self.quick else sizes


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
        elif case == "nat":
            _nat(plan, log, tell)
        elif case == "overlay":
            log.samples.extend(_overlay(plan, tell))
        elif case == "scale":
            _links(case, scale(plan.sizes, plan.peers), _SCALED, plan, log, tell)
        else:
            chosen = {peer: build for peer, build in (SAME if case == "same-host" else ACROSS).items()
                      if peer in plan.peers or peer == BASES[case]}
            _links(case, chosen, _ALL, plan, log, tell)
    return log.samples, log.absences


def _links(
    case: str, builders: dict[str, Builder], readings: dict[str, Reading], plan: Plan, log: _Log, tell: Tell
) -> None:
    tell(f"{case}: building {', '.join(builders)}")
    with built(builders) as made, ExitStack() as running:
        for subject, reason in made.absent.items():
            tell(f"{case}: no {subject}: {reason}")
            log.absences.append(Absence(case, subject.partition("@")[0], _size(case, subject), reason))
        for pair in made.pairs.values():
            running.enter_context(servers(pair))
        failed: set[tuple[str, str]] = set()
        for number in range(plan.rounds):
            tell(f"{case}: round {number + 1} of {plan.rounds}")
            for reading, read in readings.items():
                subjects = [each for each in _turned(list(made.pairs), number) if (reading, each) not in failed]
                for subject, found in zip(subjects, read([made.pairs[each] for each in subjects], plan.seconds),
                                          strict=True):
                    if isinstance(found, MeasureError):
                        failed.add((reading, subject))
                        tell(f"{case}: {reading} of {subject}: {found}")
                        log.absences.append(Absence(
                            case, subject.partition("@")[0], f"{reading} {_size(case, subject)}".strip(), str(found)
                        ))
                        continue
                    kind, _, rules = subject.partition("@")
                    log.samples.extend(
                        Sample(Key(case, metric, kind, int(rules or USUAL)), number, value)
                        for metric, value in found.items()
                    )


def _nat(plan: Plan, log: _Log, tell: Tell) -> None:
    _links(OUTBOUND, outbound(plan.few(BINDINGS), plan.peers), _TRANSLATED, plan, log, tell)
    _links(INBOUND, inbound(plan.few(MAPPINGS), plan.peers), _TRANSLATED, plan, log, tell)
    for bindings in plan.few(BINDINGS):
        tell(f"nat-hit: {plan.rounds} rounds with {bindings:,} bindings")
        with translating(bindings) as read:
            log.samples.extend(
                Sample(Key("nat-hit", metric, "sluice", bindings), number, value)
                for number in range(plan.rounds) for metric, value in read().items())


def _engine(plan: Plan, tell: Tell) -> Iterator[Sample]:
    tell("engine: compiling")
    with engines(plan.sizes, LAYERS) as policies:
        for number in range(plan.rounds):
            tell(f"engine: round {number + 1} of {plan.rounds}")
            for rules, layers in _turned(list(policies), number):
                for metric, value in policies[rules, layers].read().items():
                    yield Sample(Key("engine", metric, "sluice", rules, layers), number, value)


def _overlay(plan: Plan, tell: Tell) -> Iterator[Sample]:
    for number in range(plan.rounds):
        tell(f"overlay: {REMOTES:,} remote endpoints, round {number + 1} of {plan.rounds}")
        for metric, value in receive().items():
            yield Sample(Key("overlay-remotes", metric, "sluice", REMOTES), number, value)
    tell("overlay: engines with mappings")
    places = plan.few(PLACES)
    with among(places) as engines:
        for number in range(plan.rounds):
            tell(f"overlay: packets, round {number + 1} of {plan.rounds}")
            for size in _turned(places, number):
                for metric, value in engines[size]().items():
                    yield Sample(Key("overlay-hit", metric, "sluice", size), number, value)


def _turned(subjects: Sequence[_T], by: int) -> list[_T]:
    by %= max(1, len(subjects))
    return [*subjects[by:], *subjects[:by]]


def _size(case: str, subject: str) -> str:
    size = subject.partition("@")[2]
    return f"with {int(size):,} {counted(case)}" if size else ""
