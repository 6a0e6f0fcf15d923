"""Rounds of readings: in each, every subject in turn, and whoever goes first differs from round to round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from bench.containers import CALLS, CNI, CONTAINERS, RUNS, Host, standing
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
from bench.processes import CommandFailed
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
        elif case == CONTAINERS:
            _containers(plan, log, tell)
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


def _containers(plan: Plan, log: _Log, tell: Tell) -> None:
    tell("containers: starting a dockerd and `sluice up`")
    try:
        with standing() as host, ExitStack() as running:
            for network, reason in host.absent.items():
                tell(f"containers: no {network}: {reason}")
                log.absences.append(Absence(CNI if network == CNI else CONTAINERS, network, "", reason))
            for pair in host.pairs.values():
                running.enter_context(servers(pair))
            for number in range(plan.rounds):
                tell(f"containers: round {number + 1} of {plan.rounds}")
                for case, subject, what, read in _container_readings(host, plan):
                    try:
                        found = read()
                    except (MeasureError, CommandFailed) as error:
                        tell(f"{case}: {what} of {subject}: {error}")
                        log.absences.append(Absence(case, subject, f"{what}, round {number + 1}", str(error)))
                    else:
                        log.samples.extend(Sample(Key(case, metric, subject, USUAL), number, value)
                                           for metric, value in found.items())
    except CommandFailed as error:
        tell(f"containers: {error}")
        log.absences.append(Absence(CONTAINERS, "docker", "", str(error)))


def _container_readings(host: Host, plan: Plan) -> Iterator[tuple[str, str, str, Callable[[], dict[str, float]]]]:
    for what, read in (("throughput", read_throughput), ("connections", read_connections)):
        for network, pair in host.pairs.items():
            time.sleep(_REST_S)
            yield CONTAINERS, network, what, partial(read, pair, plan.seconds)
    for network in host.pairs:
        yield CONTAINERS, network, "docker run", partial(host.read_runs, network, 1 if plan.quick else RUNS)
    for subject in ("reference", "sluice") if CNI not in host.absent else ():
        yield CNI, subject, "ADD and DEL", partial(host.read_calls, subject, 2 if plan.quick else CALLS)


def _turned(subjects: Sequence[_T], by: int) -> list[_T]:
    by %= max(1, len(subjects))
    return [*subjects[by:], *subjects[:by]]


def _size(case: str, subject: str) -> str:
    size = subject.partition("@")[2]
    return f"with {int(size):,} {counted(case)}" if size else ""
