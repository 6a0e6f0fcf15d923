"""What listens on a host now, asked just before a StaticMapping is checked: netlink does not tell of new listeners."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from controller.errors import Unavailable
from controller.ledger import Ledger
from controller.push import Push
from controller.resources import DEFAULT_TENANT
from controller.state import Ref, State

WITHIN_S = 2.0


async def look_again(push: Push, ledger: Ledger, documents: Sequence[Any]) -> None:
    """Renew the listeners of each host that a mapping of these documents is for.

    A host that does not answer in time is left at what it said last; its agent looks once more when it applies.
    """
    hosts = sorted(set(_hosts(documents, ledger.state)) & ledger.reports.keys())
    await asyncio.gather(*(_ask(push, ledger, host) for host in hosts))


def _hosts(documents: Sequence[Any], state: State) -> Iterator[str]:
    wanted = {_ref(each, each["spec"].get("network")) for each in _of_kind(documents, "StaticMapping")}
    for each in _of_kind(documents, "Network"):
        if _ref(each, each["metadata"].get("name")) in wanted:
            yield str(each["spec"].get("host"))
    for ref in wanted:
        network = state.network(ref)
        if network is not None and network.spec.host is not None:
            yield network.spec.host


def _of_kind(documents: Sequence[Any], kind: str) -> Iterator[dict[str, Any]]:
    """Documents are not checked yet: anything may be in them."""
    for each in documents:
        if isinstance(each, dict) and each.get("kind") == kind and \
                isinstance(each.get("spec"), dict) and isinstance(each.get("metadata"), dict):
            yield each


def _ref(document: dict[str, Any], network: Any) -> Ref:
    return Ref("Network", str(document["metadata"].get("tenant") or DEFAULT_TENANT), str(network))


async def _ask(push: Push, ledger: Ledger, host: str) -> None:
    with contextlib.suppress(Unavailable, TimeoutError, TypeError, ValueError, KeyError):
        answer = await asyncio.wait_for(push.query(host, "listeners", {}), WITHIN_S)
        await ledger.save_listeners(host, answer["listeners"])


__all__ = ["look_again"]
