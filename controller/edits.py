"""What a write does to a fork of the state: documents put, objects removed, and what follows from that. Pure.

A refused edit raises; its fork is thrown away.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from controller import leases
from controller.assign import Asked, assign, follow, release
from controller.check_relations import check_relations
from controller.checks import Surroundings
from controller.documents import Declared
from controller.errors import NotFound, Outdated, Problem, on, refusal
from controller.ipam import Exhausted
from controller.resources import RESOURCES, EndpointSpec, NetworkSpec, StaticMappingSpec
from controller.state import AnyStored, Change, Ref, State, Stored
from controller.validate import check, check_removal
from southbound.messages import HostFacts

RANK = {kind: rank for rank, kind in enumerate(RESOURCES)}
"""Kinds in the order of dependence."""

NO_UIDS: Mapping[Ref, str] = {}

Facts = Mapping[str, HostFacts]
Result = Literal["created", "configured", "unchanged", "deleted"]


@dataclass(frozen=True, slots=True)
class Item:
    """What a write did to one object. `stored` is the object after it (before it, if deleted)."""

    ref: Ref
    result: Result
    stored: AnyStored


@dataclass(slots=True)
class Edit:
    """What was asked for, in that order, and all that changed."""

    items: list[Item] = field(default_factory=list)
    changed: dict[Ref, Change] = field(default_factory=dict)

    def add(self, changes: Iterable[Change]) -> None:
        """More changes; several of one object are one."""
        for change in changes:
            before = self.changed[change.ref].before if change.ref in self.changed else change.before
            if before is None and change.after is None:
                del self.changed[change.ref]
            else:
                self.changed[change.ref] = Change(before, change.after)

    @property
    def changes(self) -> tuple[Change, ...]:
        """One for each object."""
        return tuple(self.changed.values())


def put_all(fork: State, facts: Facts, parsed: Sequence[Declared | list[Problem]], if_match: int | None = None,
            uids: Mapping[Ref, str] = NO_UIDS) -> Edit:
    """Put all documents.

    Raises:
        Refused: with every problem found.
    """
    problems = [p for each in parsed if isinstance(each, list) for p in each]
    declared = [each for each in parsed if isinstance(each, Declared)]
    problems += _repeated(declared)
    refused: set[Ref] = set()
    items: dict[Ref, Item] = {}
    edit, asked = Edit(), Asked(declared)
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
                edit.add(_put(each, old, fork, facts, asked, uid))
            except Exhausted as error:
                found = [Problem("exhausted", str(error), error.field, error.found, error.todo)]
        if found:
            refused.add(each.ref)
            problems += on(str(each.ref), found)
            continue
        items[each.ref] = Item(each.ref, "configured" if old else "created", fork.objects[each.ref])
    if not problems:
        put = [after for change in edit.changes if (after := change.after) is not None]
        problems = check_relations(put, Surroundings(fork, facts))
    if problems:
        raise refusal(_without_echoes(problems, parsed))
    edit.items = [items[each.ref] for each in declared]
    return edit


def remove_all(fork: State, facts: Facts, refs: Sequence[Ref], missing_ok: bool = False,
               if_match: int | None = None) -> Edit:
    """Remove all. Raises as `put_all` does."""
    problems: list[Problem] = []
    edit, going = Edit(), frozenset(refs)
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
        edit.add([Change(stored, None)])
    if problems:
        raise NotFound(problems) if all(p.code == "not_found" for p in problems) else refusal(problems)
    edit.items = [Item(ref, "deleted", before) for ref in dict.fromkeys(refs)
                  if ref in edit.changed and (before := edit.changed[ref].before) is not None]
    for change in edit.changes:
        edit.add(leases.follow(change, fork, facts))
    return edit


def missing(ref: Ref, state: State) -> Problem:
    """The problem of a reference to nothing."""
    known = [r.name for r in state.by_kind.get(ref.kind, ()) if r.tenant == ref.tenant]
    todo = f"there are: {', '.join(sorted(known)[:10])}" if known else f"there is no {ref.kind} at all here"
    return Problem("not_found", f"there is no {ref}", "metadata.name", ref.name, todo, str(ref))


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
        new = new_object(declared.ref, declared.spec, declared.labels, fork.revision, uid)
    else:
        new = replace(old, spec=declared.spec, labels=declared.labels, revision=fork.revision)
    new = replace(new, assigned=assign(declared, new.uid, fork, facts, asked))
    fork.put(new)
    change = Change(old, new)
    return [change, *follow(change, fork, asked), *leases.follow(change, fork, facts)]


def _other_uid(uid: str, ref: Ref, old: AnyStored | None, fork: State) -> Iterator[Problem]:
    holder = fork.uids.get(uid, ref)
    if holder != ref or (old is not None and old.uid != uid):
        why = f"is not what a host made as {uid}" if holder == ref else f"{uid} is {holder}"
        yield Problem("in_use", why, "metadata.uid", uid, "choose another name", str(ref))


def new_object(ref: Ref, spec: Any, labels: Mapping[str, str], revision: int, uid: str) -> AnyStored:
    """An object that is not there yet."""
    created_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Stored(ref, uid, revision, created_at, spec, labels)


__all__ = ["NO_UIDS", "RANK", "Edit", "Facts", "Item", "Result", "missing", "new_object", "put_all", "remove_all"]
