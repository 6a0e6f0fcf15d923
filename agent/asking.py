"""The way to the controller for what runtimes of this host want: the session, while there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from agent.local_errors import Away, refusal_of
from southbound.errors import RequestRefused, SouthboundError

__all__ = ["Asker", "Asks"]

AT_ONCE = 32                                # requests; a session bears twice as many


class Asks(Protocol):
    """What a session offers; see `southbound.client.AgentSession`."""

    async def request(self, what: str, args: dict[str, Any], timeout_s: float = ...) -> Any: ...  # noqa: D102


TROUBLES = ("store", "unavailable")          # of the controller, which pass: nothing is wrong with the request


class Asker:
    """Asks the controller, or says that it is away."""

    def __init__(self) -> None:
        self.listeners: Callable[[], Awaitable[Sequence[Any]]] | None = None   # of this host, now; see `Host.listeners`
        self._session: Asks | None = None
        self._came = asyncio.Event()
        self._went = asyncio.Event()
        self._at_once = asyncio.Semaphore(AT_ONCE)

    @property
    def connected(self) -> bool:
        """Whether there is a session."""
        return self._session is not None

    def follow(self, session: Asks | None) -> None:
        """The session that there is now."""
        self._session = session
        if session is None:
            self._came.clear()
            self._went.set()
        else:
            self._went.clear()
            self._came.set()

    async def came(self) -> None:
        """Wait for a session."""
        await self._came.wait()

    async def went(self) -> None:
        """Wait until there is none."""
        await self._went.wait()

    async def apply(self, documents: Sequence[dict[str, Any]], uids: Mapping[str, str], timeout_s: float) -> Any:
        """Have documents made or changed. With a mapping goes what listens here: its port may just have been given up.

        Raises:
            Refusal, Away: as `request` does.
        """
        args: dict[str, Any] = {"documents": documents, "uids": uids}
        if self.listeners is not None and any(each["kind"] == "StaticMapping" for each in documents):
            args["listeners"] = await self.listeners()
        return await self.request("apply", args, timeout_s)

    async def request(self, what: str, args: dict[str, Any], timeout_s: float) -> Any:
        """Ask. A session that is about to come is waited for.

        Raises:
            Refusal: the controller's answer.
            Away: nobody answered.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._came.wait()
                async with self._at_once:
                    if self._session is None:       # it ended while others asked
                        raise Away("the session with the controller has ended")
                    return await self._session.request(what, args, timeout_s)
        except RequestRefused as error:
            if error.problems[0].get("code") in TROUBLES:
                raise Away(f"the controller cannot do it now: {error}") from None
            raise refusal_of(error.problems) from None
        except TimeoutError:
            why = f"did not answer within {timeout_s:g} s" if self.connected else "is away"
            raise Away(f"the controller {why}") from None
        except SouthboundError as error:
            raise Away(str(error)) from None
