"""The one place where declared state changes: check, choose, commit, publish; one write after the other.

Checks run on a fork of the state, so a refused request leaves nothing behind. The commit runs in the store's own
thread and is not given up when the client who asked goes away.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from controller.documents import parse, render
from controller.edits import NO_UIDS, Edit, Facts, Item, new_object, put_all, remove_all
from controller.renumber import renumber
from controller.resources import TenantSpec
from controller.state import DEFAULT_TENANT_REF, Change, Ref, State
from controller.store import Commit, Event, Report, Store
from southbound.messages import HostFacts

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished write, in the order asked. `changes` is empty when nothing changed (or in a dry run)."""

    revision: int
    items: tuple[Item, ...]
    changes: tuple[Change, ...] = ()
    events: tuple[Event, ...] = ()


class Ledger:
    """The declared state and the way to change it. Close it last."""

    def __init__(self, store: Store) -> None:
        """Load the state; the `default` tenant is made at first start. Blocks for the time of a load."""
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._lock = asyncio.Lock()
        self._writes: set[asyncio.Task[Outcome]] = set()
        self.on_commit: list[Callable[[Outcome, State], None]] = []
        self.on_report: list[Callable[[str], None]] = []        # with the host whose report differs from the last
        self.identity = store.identity
        self.reports: dict[str, Report] = store.reports()
        self.state = store.load()
        if DEFAULT_TENANT_REF not in self.state.objects:
            revision = self.state.revision + 1
            tenant = new_object(DEFAULT_TENANT_REF, TenantSpec(), {}, revision, str(uuid.uuid4()))
            fork = self.state.fork()
            fork.put(tenant)
            fork.revision = revision
            store.commit(_commit(self.state, fork, (Change(None, tenant),)))
            self.state = fork

    @property
    def facts(self) -> Mapping[str, HostFacts]:
        """What each host reported last."""
        return {host: report.facts for host, report in self.reports.items()}

    async def apply(self, documents: Sequence[Any], *, dry_run: bool = False, if_match: int | None = None,
                    titles: Sequence[str] = (), uids: Mapping[Ref, str] = NO_UIDS) -> Outcome:
        """Store all documents, or none.

        `if_match`: revision that the (single) document must replace. `uids`: of objects that a host has made already,
        while it could not ask; of one that is stored it must be the stored one's.

        Raises:
            Refused: with every problem found.
            StoreError: the database failed; nothing is stored.
        """
        titles = titles or [f"document {n}" for n in range(1, len(documents) + 1)]
        parsed = [parse(document, title) for document, title in zip(documents, titles, strict=True)]
        return await self.write(lambda fork, facts: put_all(fork, facts, parsed, if_match, uids), dry_run)

    async def delete(self, refs: Sequence[Ref], *, missing_ok: bool = False, if_match: int | None = None,
                     dry_run: bool = False) -> Outcome:
        """Remove all, or none; the order does not matter. Raises as `apply` does."""
        return await self.write(lambda fork, facts: remove_all(fork, facts, refs, missing_ok, if_match), dry_run)

    async def save_report(self, host: str, report: Report) -> None:
        """Take what a host reported for checks to come, and keep it over a restart."""
        if self.reports.get(host) != report:
            self.reports[host] = report
            await self.in_store_thread(self._store.save_report, host, report)
            for listener in self.on_report:
                listener(host)

    async def save_listeners(self, host: str, listeners: Iterable[Any]) -> None:
        """Keep what a host says that listens on it now: protocol, address and port of each.

        Raises:
            TypeError, ValueError: it is not that.
        """
        found = tuple((str(protocol), str(address), int(port)) for protocol, address, port in listeners)
        known = self.reports.get(host)
        if known is not None:
            await self.save_report(host, Report(known.agent, replace(known.facts, listeners=found)))

    async def renumber(self, host: str) -> Outcome:
        """Move the networks of a host that it has come to overlap, as far as they are to move, in one revision.

        The items are the networks that moved. Raises `StoreError`.
        """
        def work(fork: State, facts: Facts) -> Edit:
            edit = Edit()
            edit.add(renumber(fork, host, facts.get(host)))
            edit.items = [Item(change.ref, "configured", change.after) for change in edit.changes
                          if change.after is not None and change.ref.kind == "Network"]
            return edit

        return await self.write(work)

    async def write(self, work: Callable[[State, Facts], Edit], dry_run: bool = False) -> Outcome:
        """Make an edit on a fork of the state at the next revision, and commit it.

        Raises what `work` raises, then nothing has changed; and `StoreError`.
        """
        # A task of its own: if the asking client goes away in mid-commit, memory must still follow the database.
        task = asyncio.create_task(self._write_now(work, dry_run))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await _shielded(task)

    async def add_token(self, secret_hash: str, host: str, ttl_s: float) -> float:
        """Keep a join token; returns when it expires (seconds since 1970)."""
        now = time.time()
        await self.in_store_thread(self._store.add_token, secret_hash, host, now + ttl_s, now)
        return now + ttl_s

    async def take_token(self, secret_hash: str, host: str) -> str:
        """Use a token up: `taken`, or why not."""
        return await self.in_store_thread(self._store.take_token, secret_hash, host, time.time())

    async def events_after(self, revision: int) -> list[Event] | None:
        """The watch log behind a revision; None: too old."""
        return await self.in_store_thread(self._store.events_after, revision)

    async def in_store_thread(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking call of the store."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))

    async def close(self) -> None:
        """Let running writes end, then close the store."""
        if self._writes:
            await asyncio.wait(self._writes)
        await self.in_store_thread(self._store.close)
        self._thread.shutdown()

    async def _write_now(self, work: Callable[[State, Facts], Edit], dry_run: bool) -> Outcome:
        async with self._lock:
            fork = self.state.fork()
            fork.revision += 1
            edit = work(fork, self.facts)
            items, changes = tuple(edit.items), edit.changes
            if dry_run or not changes:
                return Outcome(self.state.revision, items)
            commit = _commit(self.state, fork, changes)
            await self.in_store_thread(self._store.commit, commit)
            self.state = fork
            for ref in commit.removed:
                if ref.kind == "Host":
                    self.reports.pop(ref.name, None)
            outcome = Outcome(fork.revision, items, changes, commit.events)
            for listener in self.on_commit:
                listener(outcome, fork)
            return outcome


async def _shielded(task: asyncio.Task[Outcome]) -> Outcome:
    waiting: Awaitable[Outcome] = asyncio.shield(task)
    return await waiting


def _commit(before: State, after: State, changes: tuple[Change, ...]) -> Commit:
    cursors: dict[str, int | None] = {k: None for k in before.cursors if k not in after.cursors}
    cursors |= {k: v for k, v in after.cursors.items() if before.cursors.get(k) != v}
    return Commit(
        base=before.revision, revision=after.revision,
        put=tuple(c.after for c in changes if c.after is not None),
        removed=tuple(c.ref for c in changes if c.after is None),
        cursors=cursors,
        events=tuple(_event(c, after.revision) for c in changes))


def _event(change: Change, revision: int) -> Event:
    if change.after is not None:
        return Event(revision, "put", change.ref, render(change.after))
    assert change.before is not None
    return Event(revision, "delete", change.ref, render(change.before))


__all__ = ["Ledger", "Outcome"]
