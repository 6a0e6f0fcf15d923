"""What a host may ask for, for the runtimes on it: `apply`, `delete`, `get`, `lease`.

A host is trusted with its own endpoints only. It speaks as the host of its certificate, in the tenants that its Host
document names; it declares endpoints of its own and mappings to them, and networks that nobody else declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from controller.documents import Declared, parse, spec_json
from controller.errors import Problem, Refused
from controller.ledger import Ledger, missing
from controller.resources import EndpointSpec, NetworkSpec, Spec, StaticMappingSpec
from controller.state import AnyStored, Ref

KINDS = ("Network", "Endpoint", "StaticMapping")


class HostRequests:
    """Answers what hosts ask."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def answer(self, host: str, what: str, args: Mapping[str, Any]) -> Any:
        """Result of one request, JSON-like.

        Raises:
            Refused: with every problem found; nothing was changed.
            StoreError: the database failed.
        """
        match what:
            case "apply":
                return await self._apply(host, list(args["documents"]), dict(args.get("uids", {})))
            case "delete":
                return await self._delete(host, [_ref(each) for each in args["refs"]], dict(args.get("uids", {})))
            case "get":
                return self._get(host, [_ref(each) for each in args["refs"]])
        raise Refused(Problem("invalid", f"a host cannot ask for {what!r}", "what", what,
                              "use agent and controller of one version"))

    async def _apply(self, host: str, documents: Sequence[Any], uids: Mapping[str, str]) -> dict[str, Any]:
        titles = [f"document {number}" for number in range(1, len(documents) + 1)]
        parsed = [parse(document, title) for document, title in zip(documents, titles, strict=True)]
        declared = [each for each in parsed if isinstance(each, Declared)]
        problems = [problem for each in declared for problem in self._foreign(host, each.ref, each.spec)]
        if problems:
            raise Refused(problems)
        named = {each.ref: uids[key] for each in declared if (key := f"{each.ref.kind}/{each.ref.path}") in uids}
        outcome = await self._ledger.apply(documents, titles=titles, uids=named)
        return {"revision": outcome.revision,
                "items": [{"result": item.result, **_row(item.stored)} for item in outcome.items]}

    async def _delete(self, host: str, refs: Sequence[Ref], uids: Mapping[str, str]) -> dict[str, Any]:
        """`uids`: by kind/tenant/name; what is stored under another uid is somebody else's, and stays."""
        state = self._ledger.state
        refs = [ref for ref in refs if (stored := state.get(ref)) is None
                or uids.get(f"{ref.kind}/{ref.path}", stored.uid) == stored.uid]
        problems = [problem for ref in refs if (stored := state.get(ref)) is not None
                    for problem in self._foreign(host, ref, stored.spec)]
        if problems:
            raise Refused(problems)
        outcome = await self._ledger.delete(refs, missing_ok=True)
        return {"revision": outcome.revision, "deleted": [item.ref.path for item in outcome.items]}

    def _get(self, host: str, refs: Sequence[Ref]) -> dict[str, Any]:
        state = self._ledger.state
        found = [state.get(ref) for ref in refs]
        problems = [missing(ref, state) for ref, stored in zip(refs, found, strict=True) if stored is None]
        if problems:
            raise Refused(problems)
        return {"items": [_row(stored) for stored in found if stored is not None]}

    def _foreign(self, host: str, ref: Ref, spec: Spec) -> Iterator[Problem]:
        """Problems of what this host must not say."""
        state = self._ledger.state
        if isinstance(spec, EndpointSpec):
            if spec.host != host:
                yield Problem("forbidden", f"host {host} asked for an endpoint of host {spec.host}", "spec.host",
                              spec.host, f"use host {host}, or the controller's API", str(ref))
        elif isinstance(spec, StaticMappingSpec):
            target = state.endpoint(Ref("Endpoint", ref.tenant, spec.endpoint))
            if target is not None and target.spec.host != host:
                yield Problem("forbidden", f"host {host} asked for a mapping to an endpoint of another host",
                              "spec.endpoint", spec.endpoint, "use the controller's API", str(ref))
        elif not isinstance(spec, NetworkSpec):
            yield Problem("forbidden", f"a host cannot declare a {ref.kind}", "kind", ref.kind,
                          "use the controller's API", str(ref))


def _ref(value: Sequence[str]) -> Ref:
    kind, tenant, name = value
    if kind not in KINDS:
        raise Refused(Problem("invalid", f"a host cannot ask for a {kind}", "kind", kind, "use the controller's API"))
    return Ref(kind, tenant, name)


def _row(stored: AnyStored) -> dict[str, Any]:
    """One object as a host sees it."""
    ref = stored.ref
    row: dict[str, Any] = {"kind": ref.kind, "tenant": ref.tenant, "name": ref.name, "uid": stored.uid,
                           "revision": stored.revision, "labels": dict(stored.labels), "spec": spec_json(stored.spec),
                           "assigned": stored.assigned.to_json()}
    return row


__all__ = ["KINDS", "HostRequests"]
