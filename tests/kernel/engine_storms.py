"""Storms: one host under some policies, hundreds of frames, two engines that must agree on all of it.

A storm is drawn by Hypothesis (policies) and by a seed (traffic). As it goes it becomes a `Case`: frames in the bytes
that entered, so that it can be replayed, cut down and kept. Time passes by making the past older: the kernel's clock
cannot be set, but every stamp in its tables can be moved back.
"""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from engine_backends import LIMITS, BpfBackend, Outcome, ReferenceBackend, outcome_of
from engine_states import changes, states
from engine_steps import Player, Rehome, Send, Update, Wait
from engine_traffic import Traffic
from hypothesis import strategies as st

from vfp.datapath.btf import struct_layout
from vfp.datapath.engine import OBJECT
from vfp.model import EngineState
from vfp.reference import Result

Event = Send | Update | Wait

CHECK_EVERY = 16                            # frames between two looks at the tables
_COARSE_NS = 20_000_000                     # by which the clock that the programs read may be late
_DRIFT_NS = 50_000_000

# Tables whose values have moments of the kernel's clock, in fields whose names end in `_ns`, and the values' structs.
_STAMPED = {"flows": "flow", "externals": "external", "blocks": "block", "contacts": "contact",
            "fragments": "fragment", "sets": "set_member"}


@dataclass(frozen=True, slots=True)
class Case:
    """A policy and what happens under it, all of it given."""

    state: EngineState
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Storm:
    """Policies that take turns, the seed of the traffic, and how many frames there are."""

    states: tuple[EngineState, ...]
    seed: int
    frames: int


class Difference(AssertionError):
    """The engines disagree. `sort` is what about; `case` leads there."""

    def __init__(self, sort: str, detail: str, case: Case) -> None:
        super().__init__(f"{sort}: {detail}")
        self.sort = sort
        self.detail = detail
        self.case = case


ROOMY = replace(LIMITS, half_open=24, udp=48)
"""Budgets that a storm meets now and then."""


class AgeingBpf(BpfBackend):
    """The kernel's engine, whose past can be made older."""

    limits = ROOMY

    def __init__(self) -> None:
        super().__init__()
        self._stamps = {table: [at for name, (at, size) in struct_layout(OBJECT, struct).fields.items()
                                if name.endswith("_ns") and size == 8]
                        for table, struct in _STAMPED.items()}

    def reset(self) -> None:
        super().reset()
        self._synced_ns = time.monotonic_ns()

    def elapse(self, seconds: float) -> None:
        """All that it remembers was that much longer ago, and what really passed since the last call did not."""
        now_ns = time.monotonic_ns()
        drift_ns, since_ns = now_ns - self._synced_ns, self._synced_ns - _COARSE_NS
        for name, offsets in self._stamps.items():
            table = self._datapath._object.map(name)
            keys, values = table.lookup_all()
            if not len(keys):
                continue
            rows = np.array(values)
            for at in offsets:
                stamps = rows[:, at:at + 8].copy().view(np.int64)
                fresh = (stamps > since_ns) & (stamps <= now_ns)
                moved = np.where(fresh, now_ns, stamps + drift_ns) - int(seconds * 1e9)
                stamps = np.where(stamps > 0, moved, 0)         # 0 is never
                rows[:, at:at + 8] = stamps.view(np.uint8)
            table.update_batch(keys, rows, len(keys))
        self._synced_ns = now_ns

    def settle(self) -> None:
        """However long a frame took, none of it counts, if that could be noticed."""
        if time.monotonic_ns() - self._synced_ns > _DRIFT_NS:
            self.elapse(0.0)

    def sweep(self, now_s: float) -> None:
        """As of the last `elapse`, to the nanosecond."""
        super().sweep(self._synced_ns / 1e9)


class AgeingReference(ReferenceBackend):
    """A second reference in the place of the kernel's engine: it has the time that it is told."""

    limits = ROOMY

    def elapse(self, seconds: float) -> None:
        """Nothing to do."""

    def settle(self) -> None:
        """Nothing to do."""


class Duel:
    """Two engines side by side. `backend` is held against a fresh reference."""

    def __init__(self, backend: AgeingBpf | AgeingReference, state: EngineState) -> None:
        self._backend = backend
        self._reference = AgeingReference()
        self._state = state
        self._events: list[Event] = []
        self._elapsed_s = 0.0
        self._begun_s = time.monotonic()
        backend.reset()
        self._load(state)
        self.player = Player(self._reference.engine)
        self.frames = 0
        self.seen: Counter[str] = Counter()

    @property
    def state(self) -> EngineState:
        """The policy in force."""
        return self._reference.engine.state

    @property
    def case(self) -> Case:
        """What happened so far."""
        return Case(self._state, tuple(self._events))

    def can_wait(self, seconds: float) -> bool:
        """Whether the kernel's clock is old enough: before it began there was no time."""
        return self._elapsed_s + seconds < self._begun_s - 1.0

    def take(self, event: Event) -> None:
        """Let both have it.

        Raises:
            Difference: they disagree about a frame, or the reference fails.
        """
        self._events.append(event)
        match event:
            case Send():
                self._send(event)
            case Update(state):
                self._load(state)
            case Wait(seconds):
                self._elapsed_s += seconds
                self._backend.elapse(seconds)
                for each in (self._reference, self._backend):
                    each.sweep(self._now_s)

    def compare_tables(self) -> None:
        """Raises `Difference` if flows or bindings are not the same."""
        self._compare("flows")
        self._compare("bindings")
        self._backend.settle()

    def compare_all(self) -> None:
        """Raises `Difference` if flows, bindings or counters are not the same."""
        for what in ("flows", "bindings", "binding_log", "drop_counts", "rule_hits", "mapping_hits"):
            self._compare(what)

    @property
    def _now_s(self) -> float:
        """Time goes on by waiting only: a busy machine makes no difference."""
        return self._begun_s + self._elapsed_s

    def _load(self, state: EngineState) -> None:
        for each in (self._reference, self._backend):
            each.load(state)

    def _send(self, send: Send) -> None:
        self.frames += 1
        wanted = self._expected(self._process(send))
        self.seen[wanted.reason.name if wanted.reason else wanted.verdict] += 1
        found = self._backend.process(send.hook, send.number, send.frame, send.vtep, self._now_s)
        if found != wanted:
            raise Difference("frame", f"{_short(send)}\n  reference: {_told(wanted)}\n  BPF:       {_told(found)}",
                             self.case)

    def _expected(self, result: Result) -> Outcome:
        """As far as the other engine can tell it."""
        return outcome_of(result)

    def _process(self, send: Send) -> Result:
        try:
            return self.player.play(send, self._now_s)
        except Exception:
            raise Difference("reference failed", traceback.format_exc(), self.case) from None

    def _compare(self, what: str) -> None:
        wanted, found = getattr(self._reference, what)(), getattr(self._backend, what)()
        if wanted == found:
            return
        wanted, found = Counter(_items(wanted)), Counter(_items(found))
        only = [f"\n  only in {name}: {item}" for name, items in (
            ("reference", wanted - found), ("BPF", found - wanted)) for item in items]
        raise Difference(what, "".join(only), self.case)


def _items(table: Any) -> list[Any]:
    return list(table.items()) if isinstance(table, dict) else list(table)


def _short(send: Send) -> str:
    return f"{send.hook.value} {send.number} {send.vtep or ''} {send.frame.hex()}"


def _told(outcome: Outcome) -> str:
    return f"{outcome.verdict} {outcome.reason.name} {outcome.target} {outcome.frame.hex()}"


@st.composite
def storms(draw: st.DrawFn, frames: int = 250) -> Storm:
    """A host, what becomes of its policy, and a seed."""
    plain = draw(st.booleans())
    turns = [draw(states(plain))]
    for _ in range(draw(st.integers(0, 4))):
        turns.append(draw(changes(turns[-1], plain)))
    return Storm(tuple(turns), draw(st.integers(0, 2**32 - 1)), frames)


def rage(storm: Storm, backend: AgeingBpf | AgeingReference) -> Duel:
    """Let a storm go over both engines.

    Raises:
        Difference: with the case as it was until then.
    """
    duel = Duel(backend, storm.states[0])
    traffic = Traffic(storm.seed, storm.states)
    turns = random.Random(storm.seed)
    unchecked = 0
    attempts = 4 * storm.frames             # of which some have nothing to answer
    while duel.frames < storm.frames and (attempts := attempts - 1):
        if turns.random() < 1 / 40:
            duel.compare_tables()
            duel.take(Update(turns.choice(storm.states)))
        step = traffic.step(duel.state, duel.frames)
        match step:
            case Wait(seconds):
                if duel.can_wait(seconds):
                    duel.take(step)
                    duel.compare_tables()
            case Rehome():
                duel.take(Update(duel.player.state_of(step)))
            case _:
                if (send := duel.player.frame_of(step)) is not None:
                    duel.take(traffic.spoil(send))
                    unchecked += 1
        if unchecked >= CHECK_EVERY:
            duel.compare_tables()
            unchecked = 0
    duel.compare_all()
    return duel


def replay(case: Case, backend: AgeingBpf | AgeingReference) -> None:
    """Let a case happen again, with a look at the tables after each event.

    Raises:
        Difference: the shortest beginning of the case that shows it.
    """
    duel = Duel(backend, case.state)
    for event in case.events:
        duel.take(event)
        duel.compare_tables()
    duel.compare_all()


def waits_s(case: Case) -> float:
    """How much time passes in a case; a host that is up for less cannot replay it."""
    return sum(event.seconds for event in case.events if isinstance(event, Wait))
