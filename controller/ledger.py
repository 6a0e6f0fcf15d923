"""The one place where declared state changes: check, choose, commit, publish; one write after the other.

Checks run on a fork of the state, so a refused request leaves nothing behind. The commit runs in the store's own
thread and is not given up when the client who asked goes away.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, ParamSpec, TypeVar

from controller.assign import Asked, assign, follow, release
from controller.check_relations import check_relations
from controller.checks import Surroundings
from controller.documents import Declared, parse, render
from controller.errors import NotFound, Outdated, Problem, on, refusal
from controller.ipam import Exhausted
from controller.renumber import renumber
from controller.resources import RESOURCES, EndpointSpec, NetworkSpec, StaticMappingSpec, TenantSpec
from controller.state import DEFAULT_TENANT_REF, AnyStored, Change, Ref, State, Stored
from controller.store import Commit, Event, Report, Store
from controller.validate import check, check_removal
from southbound.messages import HostFacts

P = ParamSpec("P")
R = TypeVar("R")

RANK = {kind: rank for rank, kind in enumerate(RESOURCES)}
"""Kinds in the order of dependence."""

_NO_UIDS: Mapping[Ref, str] = {}

Result = Literal["created", "configured", "unchanged", "deleted"]


@dataclass(frozen=True, slots=True)
class Item:
    """What a write did to one object. `stored` is the object after it (before it, if deleted)."""

    ref: Ref
    result: Result
    stored: AnyStored


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
            tenant = _new(DEFAULT_TENANT_REF, TenantSpec(), {}, revision, str(uuid.uuid4()))
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
                    titles: Sequence[str] = (), uids: Mapping[Ref, str] = _NO_UIDS) -> Outcome:
        """Store all documents, or none.

        `if_match`: revision that the (single) document must replace. `uids`: of objects that a host has made already,
        while it could not ask; of one that is stored it must be the stored one's.

        Raises:
            Refused: with every problem found.
            StoreError: the database failed; nothing is stored.
        """
        titles = titles or [f"document {n}" for n in range(1, len(documents) + 1)]
        parsed = [parse(document, title) for document, title in zip(documents, titles, strict=True)]
        return await self._write(lambda: self._apply(parsed, if_match, uids), dry_run)

    async def delete(self, refs: Sequence[Ref], *, missing_ok: bool = False, if_match: int | None = None,
                     dry_run: bool = False) -> Outcome:
        """Remove all, or none; the order does not matter. Raises as `apply` does."""
        return await self._write(lambda: self._delete(refs, missing_ok, if_match), dry_run)

    async def save_report(self, host: str, report: Report) -> None:
        """Take what a host reported for checks to come, and keep it over a restart."""
        if self.reports.get(host) != report:
            self.reports[host] = report
            await self.in_store_thread(self._store.save_report, host, report)
            for listener in self.on_report:
                listener(host)

    async def renumber(self, host: str) -> Outcome:
        """Move the networks of a host that it has come to overlap, as far as they are to move, in one revision.

        The items are the networks that moved. Raises `StoreError`.
        """
        return await self._write(lambda: self._renumber(host), False)

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

    async def _write(self, work: Callable[[], tuple[State, list[Item], list[Change]]], dry_run: bool) -> Outcome:
        # A task of its own: if the asking client goes away in mid-commit, memory must still follow the database.
        task = asyncio.create_task(self._write_now(work, dry_run))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await _shielded(task)

    async def _write_now(self, work: Callable[[], tuple[State, list[Item], list[Change]]],
                         dry_run: bool) -> Outcome:
        async with self._lock:
            fork, items, changes = work()
            if dry_run or not changes:
                return Outcome(self.state.revision, tuple(items))
            commit = _commit(self.state, fork, tuple(changes))
            await self.in_store_thread(self._store.commit, commit)
            self.state = fork
            for ref in commit.removed:
                if ref.kind == "Host":
                    self.reports.pop(ref.name, None)
            outcome = Outcome(fork.revision, tuple(items), tuple(changes), commit.events)
            for listener in self.on_commit:
                listener(outcome, fork)
            return outcome

    def _apply(self, parsed: Sequence[Declared | list[Problem]], if_match: int | None,
               uids: Mapping[Ref, str]) -> tuple[State, list[Item], list[Change]]:
        fork = self.state.fork()
        fork.revision += 1
        problems = [p for each in parsed if isinstance(each, list) for p in each]
        declared = [each for each in parsed if isinstance(each, Declared)]
        problems += _repeated(declared)
        refused: set[Ref] = set()
        items: dict[Ref, Item] = {}
        changes: dict[Ref, Change] = {}
        facts, asked = self.facts, Asked(declared)
        for each in sorted(declared, key=_turn):
            old = fork.get(each.ref)
            if if_match is not None:
                _match(each.ref, old, if_match)
            if old is not None and old.spec == each.spec and dict(old.labels) == dict(each.labels):
                items[each.ref] = Item(each.ref, "unchanged", old)
                continue
            uid = uids.get(each.ref) or (old.uid if old is not None else str(uuid.uuid4()))
            found = [*check(each, Surroundings(fork, facts, refused)), *_other_uid(uid, each.ref, old, fork)]
            if not found:
                try:
                    for change in _put(each, old, fork, facts, asked, uid):
                        before = changes[change.ref].before if change.ref in changes else change.before
                        changes[change.ref] = Change(before, change.after)
                except Exhausted as error:
                    found = [Problem("exhausted", str(error), error.field, error.found, error.todo)]
            if found:
                refused.add(each.ref)
                problems += on(str(each.ref), found)
                continue
            items[each.ref] = Item(each.ref, "configured" if old else "created", fork.objects[each.ref])
        if not problems:
            put = [after for change in changes.values() if (after := change.after) is not None]
            problems = check_relations(put, Surroundings(fork, facts))
        if problems:
            raise refusal(_without_echoes(problems, parsed))
        return fork, [items[each.ref] for each in declared], list(changes.values())

    def _renumber(self, host: str) -> tuple[State, list[Item], list[Change]]:
        fork = self.state.fork()
        fork.revision += 1
        changes = renumber(fork, host, self.facts.get(host))
        items = [Item(change.ref, "configured", change.after) for change in changes
                 if change.after is not None and change.ref.kind == "Network"]
        return fork, items, changes

    def _delete(self, refs: Sequence[Ref], missing_ok: bool,
                if_match: int | None) -> tuple[State, list[Item], list[Change]]:
        fork = self.state.fork()
        fork.revision += 1
        problems: list[Problem] = []
        changes: dict[Ref, Change] = {}
        going = frozenset(refs)
        for ref in sorted(going, key=lambda r: -RANK[r.kind]):
            stored = fork.get(ref)
            if if_match is not None:
                _match(ref, stored, if_match)
            if stored is None:
                if not missing_ok:
                    problems.append(missing(ref, fork))
                continue
            found = check_removal(stored, fork, going)
            if found:
                problems += on(str(ref), found)
                continue
            fork.remove(ref)
            release(stored, fork)
            changes[ref] = Change(stored, None)
        if problems:
            raise NotFound(problems) if all(p.code == "not_found" for p in problems) else refusal(problems)
        items = [Item(ref, "deleted", before) for ref in dict.fromkeys(refs)
                 if ref in changes and (before := changes[ref].before) is not None]
        return fork, items, list(changes.values())


def missing(ref: Ref, state: State) -> Problem:
    """The problem of a reference to nothing."""
    known = [r.name for r in state.by_kind.get(ref.kind, ()) if r.tenant == ref.tenant]
    todo = f"there are: {', '.join(sorted(known)[:10])}" if known else f"there is no {ref.kind} at all here"
    return Problem("not_found", f"there is no {ref}", "metadata.name", ref.name, todo, str(ref))


async def _shielded(task: asyncio.Task[Outcome]) -> Outcome:
    waiting: Awaitable[Outcome] = asyncio.shield(task)
    return await waiting


def _turn(declared: Declared) -> tuple[int, int, bool]:
    """Order of a request: what others depend on first, and what leaves a choice open after what does not."""
    spec, rank = declared.spec, RANK[declared.ref.kind]
    if isinstance(spec, NetworkSpec):
        return rank, any(subnet.prefix == "auto" for subnet in spec.subnets), spec.vni == "auto"
    if isinstance(spec, EndpointSpec):
        return rank, (spec.address is None) + (spec.address6 is None), spec.mac is None
    return rank, isinstance(spec, StaticMappingSpec) and spec.external_port == "auto", False


def _repeated(declared: Sequence[Declared]) -> list[Problem]:
    seen: set[Ref] = set()
    problems = []
    for each in declared:
        if each.ref in seen:
            problems.append(Problem("invalid", "is declared twice in one request", "metadata.name", each.ref.name,
                                    "keep one of them", str(each.ref)))
        seen.add(each.ref)
    return problems


def _without_echoes(problems: list[Problem], parsed: Sequence[Declared | list[Problem]]) -> list[Problem]:
    """In the order of the documents, without references to those whose form was refused already."""
    malformed = {p.resource for each in parsed if isinstance(each, list) for p in each}
    kept = [p for p in problems if not (p.code.startswith("unknown_") and _target(p) in malformed)]
    titles = [each[0].resource if isinstance(each, list) else str(each.ref) for each in parsed]
    place = {title: i for i, title in reversed(list(enumerate(titles)))}
    return sorted(kept or problems, key=lambda p: place.get(p.resource, len(place)))


def _target(problem: Problem) -> str:
    kind = next((k for k in RESOURCES if problem.code == f"unknown_{k.lower()}"), "")
    tenant = problem.resource.partition(" ")[2].partition("/")[0]
    return str(Ref(kind, "" if kind in ("Tenant", "Host") else tenant, problem.found))


def _match(ref: Ref, stored: AnyStored | None, revision: int) -> None:
    found = stored.revision if stored else 0
    if found != revision:
        raise Outdated(Problem("outdated", f"{ref} is at revision {found}" if stored else f"there is no {ref}",
                               "If-Match", str(revision), "get it again, and repeat the change on that", str(ref)))


def _put(declared: Declared, old: AnyStored | None, fork: State, facts: Mapping[str, HostFacts],
         asked: Asked, uid: str) -> list[Change]:
    """Choose for a checked document, put it, and what follows from it."""
    if old is None:
        new = _new(declared.ref, declared.spec, declared.labels, fork.revision, uid)
    else:
        new = replace(old, spec=declared.spec, labels=declared.labels, revision=fork.revision)
    new = replace(new, assigned=assign(declared, new.uid, fork, facts, asked))
    fork.put(new)
    change = Change(old, new)
    return [change, *follow(change, fork, asked)]


def _other_uid(uid: str, ref: Ref, old: AnyStored | None, fork: State) -> Iterator[Problem]:
    holder = fork.uids.get(uid, ref)
    if holder != ref or (old is not None and old.uid != uid):
        why = f"is not what a host made as {uid}" if holder == ref else f"{uid} is {holder}"
        yield Problem("in_use", why, "metadata.uid", uid, "choose another name", str(ref))


def _new(ref: Ref, spec: Any, labels: Mapping[str, str], revision: int, uid: str) -> AnyStored:
    created_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Stored(ref, uid, revision, created_at, spec, labels)


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


__all__ = ["RANK", "Item", "Ledger", "Outcome", "Result", "missing"]
