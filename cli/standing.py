"""Waiting for what hosts could not program at once, as long as that may still heal.

Hosts heal each other: the uplink of one is an endpoint of another's network that the same files declare. The agent
tries again when something about its links, addresses or routes changes, and else 1, 3 and 7 s after a fault began. So
a fault is taken for permanent when all that was declared has stood as it is for `SETTLED_S`: two tries at least.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from cli.kinds import reference_of
from cli.problems import Fault

if TYPE_CHECKING:
    from controller.client import Written

__all__ = ["SETTLED_S", "standing"]

SETTLED_S = 3.5
_REPORTED = ("Network", "Endpoint", "StaticMapping")    # kinds that hosts report on
_LOOK_S = 0.2
_SHARE = 4                                              # of the time at most a quarter is spent on asking


class Lister(Protocol):
    """What is asked of `controller.client.Client`."""

    def list(self, kind: str, tenant: str | None = None) -> list[dict[str, Any]]: ...


def standing(client: Lister, written: Written, deadline_s: float, settled_s: float = SETTLED_S) -> list[Fault]:
    """Of what was just declared, that which its hosts report as failed: at the deadline, or as soon as that is settled.

    Args:
        deadline_s: of `time.monotonic`.
        settled_s: nothing moves any more, if nothing has for so long.
    """
    names: dict[tuple[str, str], set[str]] = {}
    for item in written.items:
        if item["kind"] in _REPORTED:
            names.setdefault((item["kind"], item["tenant"]), set()).add(item["name"])
    seen = None
    settled_at_s = 0.0
    while True:
        began_s = time.monotonic()
        found = _states(client, names)
        faults = [Fault(where, "not programmed", message, "mend the cause; the agent tries again by itself")
                  for where, phase, message in found if phase == "Failed" and message]
        now_s = time.monotonic()
        if found != seen:
            seen, settled_at_s = found, now_s + settled_s
        pause_s = max(_LOOK_S, (_SHARE - 1) * (now_s - began_s))
        end_s = min(deadline_s, settled_at_s)
        if not faults or now_s >= end_s:
            return faults
        time.sleep(min(pause_s, max(0.0, end_s - now_s)))


def _states(client: Lister, names: Mapping[tuple[str, str], set[str]]) -> list[tuple[str, str, str]]:
    """Name, phase and message of each object."""
    found = []
    for (kind, tenant), wanted in names.items():
        for resource in client.list(kind, tenant):
            if resource["metadata"]["name"] in wanted:
                status = resource.get("status") or {}
                found.append((str(reference_of(resource)), status.get("phase", "Failed"), status.get("message", "")))
    return found
