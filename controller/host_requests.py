"""What a host may ask for, for the runtimes on it: `apply`, `delete`, `get`, `lease`, `release`.

It speaks as the host of its certificate; `host_rights` says what it may. What a request asks for is looked at, done and
stored in one write, or nothing is.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from controller.documents import Declared, parse, shown, spec_json
from controller.edits import Edit, Facts, missing, put_all, remove_all
from controller.errors import Problem, Refused
from controller.host_rights import KINDS, may_delete, may_put, may_see, may_use, row, unlike
from controller.leases import HOST_LABEL, Wanted, lease, unlease
from controller.ledger import Ledger
from controller.resources import NetworkSpec
from controller.state import AnyStored, Ref, State, Stored

MAX_OBJECTS = 1024                          # in one request

Answer = dict[str, Any]


class HostRequests:
    """Answers what hosts ask."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def answer(self, host: str, what: str, args: Mapping[str, Any]) -> Any:
        """Result of one request, JSON-like.

        Raises:
            Refused: with every problem found; nothing was changed.
            KeyError, TypeError, ValueError: `args` are not those of `what`.
            StoreError: the database failed.
        """
        match what:
            case "apply":
                if "listeners" in args:     # before a mapping is checked: they are newer than the host's last report
                    await self._ledger.save_listeners(host, args["listeners"])
                return await self._apply(host, _listed(args["documents"]), _uids(args.get("uids") or {}))
            case "delete":
                refs = [_ref(each) for each in _listed(args["refs"])]
                return await self._delete(host, refs, _uids(args.get("uids") or {}))
            case "get":
                return self._get(host, [_ref(each) for each in _listed(args["refs"])])
            case "lease":
                return await self._lease(host, _network(args), Wanted.of(args))
            case "release":
                return await self._release(host, _network(args), args.get("addresses"))
        raise Refused(Problem("invalid", f"a host cannot ask for {what!r}", "what", what,
                              "use agent and controller of one version"))

    async def _apply(self, host: str, documents: Sequence[Any], uids: Mapping[str, str]) -> Answer:
        """Networks that are there are joined if they are as asked for; either way the host gets its lease of them."""
        parsed = [parse(document, f"document {number}") for number, document in enumerate(documents, 1)]
        answer: Answer = {}

        def work(fork: State, facts: Facts) -> Edit:
            put: list[Declared | list[Problem]] = []
            problems: list[Problem] = []
            for each in parsed:
                if isinstance(each, list):
                    put.append(each)
                    continue
                joined = _joined(host, each, fork)
                problems += joined if joined is not None else may_put(host, each, fork)
                if joined is None:
                    made = isinstance(each.spec, NetworkSpec)
                    put.append(replace(each, labels={**each.labels, HOST_LABEL: host}) if made else each)
            if problems:
                raise Refused(problems)
            known = {each.ref: uids[key] for each in put if isinstance(each, Declared)
                     if (key := f"{each.ref.kind}/{each.ref.path}") in uids}
            edit = put_all(fork, facts, put, uids=known)
            refs = [each.ref for each in parsed if isinstance(each, Declared)]
            for ref in refs:
                if ref.kind == "Network":
                    edit.add(lease(fork, facts, host, ref, Wanted())[0])
            results = {item.ref: item.result for item in edit.items}
            answer["items"] = [{"result": results.get(ref, "unchanged"), **_row(host, fork.objects[ref])}
                               for ref in refs]
            return edit

        outcome = await self._ledger.write(work)
        return {"revision": outcome.revision, **answer}

    async def _delete(self, host: str, refs: Sequence[Ref], uids: Mapping[str, str]) -> Answer:
        """What is stored under another uid than the one given is not what the host means, and stays.

        Mappings go with their endpoint, whoever made them: a container that is gone must not stay because of one.
        """
        def work(fork: State, facts: Facts) -> Edit:
            found = [stored for ref in dict.fromkeys(refs) if (stored := fork.get(ref)) is not None
                     and uids.get(f"{ref.kind}/{ref.path}", stored.uid) == stored.uid]
            problems = [problem for stored in found for problem in may_delete(host, stored, fork)]
            if problems:
                raise Refused(problems)
            going = [stored.ref for stored in found]
            return remove_all(fork, facts, [*going, *(each for ref in going for each in fork.mapped.get(ref, ()))])

        outcome = await self._ledger.write(work)
        return {"revision": outcome.revision, "deleted": [item.ref.path for item in outcome.items]}

    def _get(self, host: str, refs: Sequence[Ref]) -> Answer:
        state, problems, items = self._ledger.state, list[Problem](), list[Answer]()
        for ref in refs:
            stored = state.get(ref)
            found = list(may_use(host, ref, state) if stored is None else may_see(host, stored, state))
            if stored is None and not found:
                found = [missing(ref, state)]
            problems += found
            if stored is not None:
                items.append(_row(host, stored))
        if problems:
            raise Refused(problems)
        return {"items": items}

    async def _lease(self, host: str, ref: Ref, wanted: Wanted) -> Answer:
        answer: Answer = {}

        def work(fork: State, facts: Facts) -> Edit:
            problems = list(may_use(host, ref, fork))
            if not problems and fork.network(ref) is None:
                problems = [missing(ref, fork)]
            if problems:
                raise Refused(problems)
            edit = Edit()
            changes, given = lease(fork, facts, host, ref, wanted)
            edit.add(changes)
            answer["addresses"] = list(fork.objects[ref].assigned.leases[host])
            answer["given"] = list(given)
            return edit

        outcome = await self._ledger.write(work)
        return {"revision": outcome.revision, **answer}

    async def _release(self, host: str, ref: Ref, addresses: Sequence[Any] | None) -> Answer:
        """What is not leased is no error: an answer may have been lost."""
        wanted = None if addresses is None else Wanted.of({"addresses": addresses}).addresses
        answer: Answer = {}

        def work(fork: State, facts: Facts) -> Edit:
            edit = Edit()
            changes, freed = unlease(fork, host, ref, wanted)
            edit.add(changes)
            answer["released"] = list(freed)
            answer["deleted"] = fork.network(ref) is None
            return edit

        outcome = await self._ledger.write(work)
        return {"revision": outcome.revision, **answer}


def _joined(host: str, document: Declared, state: State) -> list[Problem] | None:
    """None: the document is to be put. Else it speaks of a network that is there, and these are the problems."""
    stored = state.get(document.ref)
    if not isinstance(document.spec, NetworkSpec) or stored is None:
        return None
    problems = list(may_use(host, document.ref, state))
    if not problems:
        problems = list(unlike(document.spec, cast("Stored[NetworkSpec]", stored)))
    if problems and stored.labels.get(HOST_LABEL) == host and stored.assigned.leases.keys() <= {host}:
        return None                         # its own, and nobody else's
    return problems


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, found {type(value).__name__}")
    if len(value) > MAX_OBJECTS:
        raise Refused(Problem("out_of_range", f"more than {MAX_OBJECTS} objects in one request", "args",
                              str(len(value)), "split it"))
    return list(value)


def _uids(value: Any) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected uids by name, found {type(value).__name__}")
    for key, uid in value.items():
        try:
            known = str(uuid.UUID(uid))
        except (ValueError, AttributeError, TypeError):
            known = ""
        if known != uid:
            raise Refused(Problem("invalid", f"what is to be the uid of {key} is none", f"uids.{key}", shown(uid),
                                  "make one with uuid4"))
    return value


def _ref(value: Any) -> Ref:
    kind, tenant, name = value
    if not all(isinstance(each, str) for each in value):
        raise TypeError("a reference is kind, tenant and name")
    if kind not in KINDS:
        raise Refused(Problem("forbidden", f"a host cannot ask for a {kind}", "kind", shown(kind),
                              "use the controller's API"))
    return Ref(kind, tenant, name)


def _network(args: Mapping[str, Any]) -> Ref:
    return _ref(("Network", args["tenant"], args["network"]))


def _row(host: str, stored: AnyStored) -> Answer:
    """One object as a host sees it."""
    ref = stored.ref
    return {"kind": ref.kind, "tenant": ref.tenant, "name": ref.name, "uid": stored.uid, "revision": stored.revision,
            "labels": dict(stored.labels), "spec": spec_json(stored.spec), "assigned": row(host, stored)}


__all__ = ["HostRequests"]
