"""Watches what hosts report, and moves networks that must not stay where they are (`renumber`).

A host in motion reports many times in a row. So a move waits until reports have had time to settle, it is made for
what the host says then, and a host's networks do not move again for a while.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from controller.ledger import Ledger, Outcome
from controller.network_specs import NetworkSpec
from controller.renumber import due
from controller.state import State
from controller.store import StoreError

SETTLE_S = 1.0                              # from the first report of an overlap to the move
PAUSE_S = 30.0                              # between two moves at one host

_log = structlog.get_logger("controller.roaming")


class Roaming:
    """Moves networks of hosts that roam. Made in a running event loop; close it before the ledger."""

    def __init__(self, ledger: Ledger, settle_s: float = SETTLE_S, pause_s: float = PAUSE_S) -> None:
        self._ledger = ledger
        self._settle_s, self._pause_s = settle_s, pause_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closed = False
        self._moved_at_s: dict[str, float] = {}                 # monotonic, by host
        ledger.on_report.append(self.look)
        ledger.on_commit.append(self._committed)
        for host in sorted(ledger.reports):
            self.look(host)                 # the controller may have ended before a move was made

    def look(self, host: str) -> None:
        """See to it that the networks of a host are moved if they must be."""
        if not self._closed and host not in self._tasks and self._due(host):
            task = self._tasks[host] = asyncio.create_task(self._move(host))
            task.add_done_callback(lambda _: self._tasks.pop(host, None))

    async def close(self) -> None:
        """Begin nothing any more; a move that is being stored is finished by the ledger."""
        self._closed = True
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _due(self, host: str) -> bool:
        return bool(due(self._ledger.state, host, self._ledger.facts.get(host)))

    async def _move(self, host: str) -> None:
        while self._due(host):
            rested = self._moved_at_s.get(host, float("-inf")) + self._pause_s - time.monotonic()
            await asyncio.sleep(max(self._settle_s, rested))
            try:
                outcome = await self._ledger.renumber(host)
            except StoreError as error:
                _log.error("networks could not be renumbered", host=host, error=str(error))
                return
            if not outcome.changes:         # the overlap has gone, or there is no free prefix
                stuck = due(self._ledger.state, host, self._ledger.facts.get(host))
                if stuck:
                    _log.warning("no free prefix for overlapped networks; add to autoPrefixes of the host", host=host,
                                 networks=[str(network.ref) for network in stuck])
                return
            self._moved_at_s[host] = time.monotonic()
            for item in outcome.items:
                _log.warning("network renumbered", host=host, network=str(item.ref), what=item.stored.assigned.moved)

    def _committed(self, outcome: Outcome, state: State) -> None:
        hosts = set()
        for change in outcome.changes:      # prefixes may be free now: of a network that went, of more autoPrefixes
            if change.ref.kind == "Host":
                hosts.add(change.ref.name)
            for side in (change.before, change.after):
                if side is not None and isinstance(side.spec, NetworkSpec) and side.spec.host is not None:
                    hosts.add(side.spec.host)
        for host in sorted(hosts):
            self.look(host)


__all__ = ["Roaming"]
