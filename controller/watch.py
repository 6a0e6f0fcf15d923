"""Watching: every change as a server-sent event, from a revision on or from now, and status as it moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from controller.errors import Gone, Problem
from controller.ledger import Ledger, Outcome
from controller.state import Ref, State
from controller.status import Statuses

HEARTBEAT_S = 5.0
MAX_BEHIND = 20_000                         # events that wait for one watcher; more: its stream ends

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Filter:
    """What a watcher wants to see. Empty text: anything."""

    kind: str = ""
    tenant: str = ""

    def wants(self, ref: Ref) -> bool:
        """Whether an object is of the kind and in the tenant."""
        return (not self.kind or ref.kind == self.kind) and (not self.tenant or ref.tenant == self.tenant)


@dataclass(slots=True, eq=False)
class _Watcher:
    filter: Filter
    queue: asyncio.Queue[Message] = field(default_factory=lambda: asyncio.Queue(MAX_BEHIND))
    lost: bool = False


class Watches:
    """Hands out changes to watchers. `close` ends their streams."""

    def __init__(self, ledger: Ledger, statuses: Statuses) -> None:
        self._ledger = ledger
        self._statuses = statuses
        self._watchers: set[_Watcher] = set()
        self._closing = asyncio.Event()
        ledger.on_commit.append(self._committed)

    def status_moved(self, refs: Iterable[Ref]) -> None:
        """The status of these objects may differ now."""
        if not self._watchers:
            return
        for ref in refs:
            stored = self._ledger.state.get(ref)
            if stored is not None:
                self._tell(ref, lambda stored=stored, ref=ref: _message(    # type: ignore[misc]
                    "status", stored.revision, ref, self._statuses.document(stored)))

    async def stream(self, wanted: Filter, since: int | None) -> AsyncGenerator[str]:
        """Server-sent events (HTML standard, section 9.2): backlog behind `since`, a bookmark, then what comes.

        Raises:
            Gone: the log does not reach back to `since`, or `since` is in the future. Before the first event.
        """
        with self._watching(wanted) as watcher:
            now = self._ledger.state.revision
            backlog = [] if since is None else await self._backlog(since, now)
            for event in backlog:
                if event.revision <= now and wanted.wants(event.ref):
                    yield _sse(_message(event.type, event.revision, event.ref, dict(event.resource)))
            yield _sse({"type": "bookmark", "revision": now})
            while not self._closing.is_set() and not watcher.lost:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        message = await watcher.queue.get()
                except TimeoutError:
                    yield ": alive\n\n"
                    continue
                if message:
                    yield _sse(message)

    def close(self) -> None:
        """End every stream."""
        self._closing.set()
        for watcher in self._watchers:
            if not watcher.queue.full():
                watcher.queue.put_nowait({})        # wakes it

    async def _backlog(self, since: int, now: int) -> list[Any]:
        events = await self._ledger.events_after(since) if since <= now else None
        if events is None:
            raise Gone(Problem("gone", f"cannot go on from revision {since}: the log does not have it", "since",
                               str(since), f"list again and watch from revision {now}"))
        return events

    @contextmanager
    def _watching(self, wanted: Filter) -> Iterator[_Watcher]:
        watcher = _Watcher(wanted)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def _committed(self, outcome: Outcome, state: State) -> None:
        for event in outcome.events:
            self._tell(event.ref, lambda event=event: _message(             # type: ignore[misc]
                event.type, event.revision, event.ref, self._current(event.ref) or dict(event.resource)))

    def _current(self, ref: Ref) -> Message | None:
        stored = self._ledger.state.get(ref)
        return self._statuses.document(stored) if stored is not None else None

    def _tell(self, ref: Ref, make: Callable[[], Message]) -> None:
        watchers = [w for w in self._watchers if w.filter.wants(ref)]
        if not watchers:
            return
        message = make()
        for watcher in watchers:
            if watcher.queue.full():
                watcher.lost = True
            else:
                watcher.queue.put_nowait(message)


def _message(kind_of_event: str, revision: int, ref: Ref, resource: Message) -> Message:
    return {"type": kind_of_event, "revision": revision, "kind": ref.kind, "tenant": ref.tenant, "name": ref.name,
            "resource": resource}


def _sse(message: Message) -> str:
    # Status does not move the revision, so it must not move the point to go on from either.
    identity = "" if message["type"] == "status" else f"id: {message['revision']}\n"
    return f"event: {message['type']}\n{identity}data: {json.dumps(message)}\n\n"


__all__ = ["Filter", "Watches"]
