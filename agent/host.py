"""One host as the event loop sees it: the goal state, how it fared, and when to look again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace

import structlog

from agent.claims import Claims
from agent.goals import Goals
from agent.overlaps import Overlap, overlapping
from agent.reconcile import Outcome, Reconciler
from agent.seams import SwitchSeam
from agent.services import Services
from agent.standing import NOTHING, Standing
from agent.state import Disk
from agent.worker import Worker
from southbound.messages import Ack, Facts, HostFacts, Key, ObjectStatus, PortGoal
from vfp.datapath.errors import DatapathError
from vswitch.errors import VSwitchError

__all__ = ["LISTENERS_EVERY_S", "MEND_PAUSE", "RETRY_FIRST_S", "RETRY_MOST_S", "Host"]

_log = structlog.get_logger("agent")

RETRY_FIRST_S = 1.0
RETRY_MOST_S = 30.0
LISTENERS_EVERY_S = 10.0
MEND_PAUSE = 10             # times as long as the mending took

Listeners = tuple[tuple[str, str, int], ...]     # protocol, address and port of each
Report = Callable[[Ack | Facts], Awaitable[None]]


class Host:
    """Takes goal states, applies them one at a time, and tells whoever listens what changed by itself."""

    def __init__(
        self,
        worker: Worker,
        switch: SwitchSeam,
        reconciler: Reconciler,
        disk: Disk,
        features: tuple[str, ...] = (),
        services: Services | None = None,
        claims: Claims | None = None,
    ) -> None:
        stored = disk.load()
        self.goals: Goals = stored.goals
        self.store: str = stored.store
        self.outcome: Outcome | None = None     # of the last run that got to its end
        self.ack: Ack | None = None             # how the goal state fared when last looked at
        self.facts = HostFacts(features=features)
        self.overlaps: dict[str, Overlap] = {}  # by NetworkGoal.id: what of the host has the same prefix
        self.report: Report | None = None       # where changes go; set while a session is up
        self.statuses: Mapping[Key, ObjectStatus] = {}      # those of `ack`
        self.moved = asyncio.Event()            # set, and replaced by another, whenever `ack` is a new one
        self.compose: Callable[[Goals], Goals] = lambda goals: goals    # with what runtimes of this host did
        self.standing: Callable[[], Mapping[str, Standing]] = lambda: NOTHING   # of ports that runtimes asked for
        self._worker = worker
        self._switch = switch
        self._reconciler = reconciler
        self._disk = disk
        self._features = features
        self._services = services
        self._claims = claims if claims is not None else Claims()
        self._lock = asyncio.Lock()
        self._incomplete = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def effective(self) -> Goals:
        """What is to be programmed: the controller's goal state, and what runtimes of this host did meanwhile."""
        return self.compose(self.goals)

    async def start(self) -> None:
        """Apply what is on disk; the controller may be away. With nothing on disk, leave the kernel as it is."""
        await self.look_around()
        if self.goals.revision:
            await self.again()

    async def take(self, goals: Goals, store: str) -> Ack:
        """Keep a new goal state and apply it. `store`: identity of the controller it came from."""
        async with self._lock:
            await self._worker.run(self._disk.save_goals, goals)
            self.goals = goals
            await self._worker.run(self._disk.save_store, store)
            self.store = store
            return await self._apply(mend=False)

    async def again(self, mend: bool = True) -> None:
        """Apply the same goal state once more; report if it fares differently now.

        `mend`: look also at what should still be as we left it.
        """
        async with self._lock:
            before = self.ack
            ack = await self._apply(mend)
            if ack != before:
                await self._tell(ack)

    async def look_around(self) -> None:
        """Read the host's surroundings; report if they changed, and whether a network suffers from it."""
        try:
            facts = await self._worker.run(self._read_facts)
        except VSwitchError as error:
            _log.error("surroundings unreadable", error=str(error))
            return
        if facts == self.facts:
            return
        self.facts = facts
        await self._tell(Facts(facts))
        if self.goals.revision and overlapping(self.goals, facts) != self.overlaps:
            await self.again(mend=False)

    async def watch(self) -> None:
        """Look again whenever something about links, addresses, routes or namespaces changed. Never ends."""
        async with aclosing(self._switch.watch()) as changes:
            async for _ in changes:
                self._reconciler.paths.stale()
                if self.goals.revision:
                    await self.again(mend=False)
                    self._changed.set()
                await self.look_around()

    async def listen(self) -> None:
        """Look for new listening sockets now and then: nothing tells when one comes. Never ends."""
        known = self.facts.listeners
        while True:
            await asyncio.sleep(LISTENERS_EVERY_S)
            before, known = known, await self.listeners()
            if known != before and self.goals.revision:     # NAT keeps off their ports
                await self.again(mend=False)

    async def listeners(self) -> Listeners:
        """What listens on this host now; reported if it is other than before."""
        try:
            found = await self._worker.run(self._switch.listeners)
        except VSwitchError:
            return self.facts.listeners     # `look_around` says it
        if found != self.facts.listeners:
            self.facts = replace(self.facts, listeners=found)
            await self._tell(Facts(self.facts))
        return found

    async def mend(self) -> None:
        """After changes, look at everything again, in a small part of the worker's time. Never ends."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            began = time.monotonic()
            await self.again()
            await asyncio.sleep(MEND_PAUSE * (time.monotonic() - began))

    async def serve(self) -> None:
        """What endpoints are given besides. Never ends."""
        if self._services is not None:
            await self._services.keep(lambda: self.again(mend=False))

    async def follow_claims(self) -> None:
        """Tell of endpoints that announce others' addresses, as it comes and goes. Never ends."""
        while True:
            await self._claims.changed()
            async with self._lock:
                if self.outcome is not None and self.outcome.revision == self.goals.revision:
                    before, self.ack = self.ack, self._acknowledge(self.outcome)
                    if self.ack != before:
                        await self._tell(self.ack)

    def _acknowledge(self, outcome: Outcome) -> Ack:
        """How the objects fare, and which addresses that are others' they claim: that is refused, and no error."""
        objects = []
        for status in outcome.objects:
            claimed = self._claims.current(status.id) if status.kind == PortGoal.kind else []
            more = {"duplicate_addresses": claimed} if claimed else {}
            objects.append(replace(status, details={**status.details, **more}) if more else status)
        return Ack(outcome.revision, tuple(objects))

    async def retry(self) -> None:
        """Look again, ever less often, while something is not as it should be. Never ends."""
        delay_s = RETRY_FIRST_S
        while True:
            await self._incomplete.wait()
            await asyncio.sleep(delay_s)
            if self._incomplete.is_set():
                await self.again()
            delay_s = min(delay_s * 2, RETRY_MOST_S) if self._incomplete.is_set() else RETRY_FIRST_S

    async def _apply(self, mend: bool) -> Ack:
        goals, outcome = self.effective, None
        try:
            leases = self._services.leases() if self._services is not None else {}
            outcome = await self._worker.run(self._reconciler.reconcile, goals, mend, self.facts, leases,
                                             self.standing())
        except (VSwitchError, DatapathError, OSError) as error:
            _log.exception("reconcile failed", revision=goals.revision)
            self._incomplete.set()
            reason = f"the agent could not look at its host: {error}"
            failed = (ObjectStatus(*key, error=reason) for key in sorted(goals.objects))
            self.ack = Ack(goals.revision, tuple(failed))
        else:
            self._note(outcome)
            self._note_overlaps(goals, outcome.overlaps)
            self.ack = self._acknowledge(outcome)
        self.statuses = {(status.kind, status.id): status for status in self.ack.objects}
        self.moved.set()                    # whoever waits for a port need not wait for what it is given besides
        self.moved = asyncio.Event()
        ack = self.ack
        if self._services is not None and outcome is not None:
            await self._services.follow(goals, outcome.built)
        return ack

    def _note_overlaps(self, goals: Goals, overlaps: Mapping[str, Overlap]) -> None:
        names = {network.id: f"{network.tenant}/{network.name}" for network in goals.networks}
        for uid, overlap in overlaps.items():
            if self.overlaps.get(uid) != overlap:
                _log.warning("network degraded", network=names[uid], why=str(overlap))
        for uid in (self.overlaps.keys() - overlaps.keys()) & names.keys():
            _log.info("network no longer overlaps", network=names[uid])
        self.overlaps = dict(overlaps)

    def _note(self, outcome: Outcome) -> None:
        before = {} if self.outcome is None else {(s.kind, s.id): s.error for s in self.outcome.objects}
        for status in outcome.objects:
            if status.error and before.get((status.kind, status.id)) != status.error:
                _log.warning("object not programmed", kind=status.kind, id=status.id, error=status.error)
        for text in outcome.general:
            _log.warning("not as it should be", error=text)
        if self.outcome is None or self.outcome.revision != outcome.revision:
            errors = sum(1 for status in outcome.objects if status.error)
            _log.info("applied", revision=outcome.revision, objects=len(outcome.objects), errors=errors)
        self.outcome = outcome
        if outcome.complete:
            self._incomplete.clear()
        else:
            self._incomplete.set()

    async def _tell(self, message: Ack | Facts) -> None:
        if self.report is not None:
            await self.report(message)

    def _read_facts(self) -> HostFacts:
        found = self._switch.facts()
        return HostFacts(
            addresses=found.addresses,
            routes=found.routes,
            listeners=found.listeners,
            underlay_mtu_bytes=self._underlay_mtu(),
            features=self._features,
            links=found.links,
        )

    def _underlay_mtu(self) -> int:
        """Of the underlay, if it is known; else of the way out of the host; else Ethernet's."""
        try:
            host = self.goals.host
            wanted = host.underlays or tuple(filter(None, (host.underlay,)))
            if found := self._switch.underlays(wanted):
                return min(one.mtu_bytes for one in found.values())
            return self._switch.uplink(self.goals.host.uplink).mtu_bytes
        except VSwitchError:
            return 1500
