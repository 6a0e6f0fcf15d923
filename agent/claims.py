"""Addresses that endpoints announced as theirs though they are another's: refused by the guard, and told of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["KEEP_S", "Claims"]

KEEP_S = 600.0              # a claim is told of as long after it was heard last
MOST = 16                   # addresses of one endpoint: a scan is one event, not a thousand


class Claims:
    """Who claimed what, lately. `note` is called in the worker's thread, the rest in the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, dict[str, float]] = {}   # PortGoal.id -> address -> when last
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    def note(self, port: str, address: str) -> None:
        """A port announced an address that is not its own."""
        claimed = self._heard.get(port, {})
        is_new = address not in claimed
        if is_new and len(claimed) >= MOST:
            return
        self._heard = {**self._heard, port: {**claimed, address: self._clock()}}
        if is_new and self._loop is not None:
            self._loop.call_soon_threadsafe(self._news.set)

    def current(self, port: str) -> list[str]:
        """Addresses that the port claims."""
        since_s = self._clock() - KEEP_S
        return sorted(address for address, heard_s in self._heard.get(port, {}).items() if heard_s > since_s)

    async def changed(self) -> None:
        """Wait until there is another claim, or one has been forgotten."""
        self._loop = asyncio.get_running_loop()
        ends = [heard_s + KEEP_S for claimed in self._heard.values() for heard_s in claimed.values()]
        wait_s = max(0.0, min(ends) - self._clock()) + 0.1 if ends else None
        try:
            await asyncio.wait_for(self._news.wait(), wait_s)
        except TimeoutError:
            self._forget()
        self._news.clear()

    def _forget(self) -> None:
        since_s = self._clock() - KEEP_S
        kept = {port: {address: heard_s for address, heard_s in claimed.items() if heard_s > since_s}
                for port, claimed in self._heard.items()}
        self._heard = {port: claimed for port, claimed in kept.items() if claimed}
