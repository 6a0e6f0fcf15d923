"""Following what goes on at hosts: drops and captured packets as server-sent events.

The agent keeps a bounded buffer for each follower and is asked for what is new; it answers when there is something.
Only what the reader has taken is asked for again, so a slow one loses records at the agent, where they are counted, and
holds up nobody. When the reader goes, the agent is told; if that cannot be, it finds out by not being asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from controller.errors import Unavailable
from controller.push import Push

HEARTBEAT_S = 5.0
RETRY_S = 2.0                               # a host that went away may come back
_AHEAD = 2                                  # answers that wait for the reader, of all hosts

Message = dict[str, Any]


class Follows:
    """All that is being followed. `close` ends the streams."""

    def __init__(self) -> None:
        self._closing = asyncio.Event()
        self._goodbyes: set[asyncio.Task[None]] = set()
        self._queues: set[asyncio.Queue[Message]] = set()

    async def stream(self, push: Push, names: Sequence[str], args: Mapping[str, Any], *,
                     patient: bool, seconds: float | None = None) -> AsyncGenerator[str]:
        """Server-sent events whose data is {type: records, host, records, lost} or {type: error, host, message}.

        `lost` counts since the stream began. Patient: a host that cannot be asked is told as an
        error, and asked again; else that ends the stream. So do `seconds`, if they are given.

        Raises:
            Unavailable: not patient, and the host cannot be asked. Before the first event.
        """
        begun = {} if patient else {name: await self._begin(push, name, args) for name in names}
        queue: asyncio.Queue[Message] = asyncio.Queue(_AHEAD)
        tasks = [asyncio.create_task(self._follow(push, name, args, queue, begun.get(name), patient))
                 for name in names]
        self._queues.add(queue)
        end_s = math.inf if seconds is None else time.monotonic() + seconds
        try:
            yield ": following\n\n"
            while not self._closing.is_set() and (left_s := end_s - time.monotonic()) > 0:
                try:
                    async with asyncio.timeout(min(left_s, HEARTBEAT_S)):
                        message = await queue.get()
                except TimeoutError:
                    yield ": alive\n\n"
                    continue
                if message:
                    yield f"data: {json.dumps(message)}\n\n"
                if message.get("type") == "error" and not patient:
                    return
        finally:
            self._queues.discard(queue)
            for task in tasks:
                task.cancel()

    def close(self) -> None:
        """End every stream."""
        self._closing.set()
        for queue in self._queues:
            if not queue.full():
                queue.put_nowait({})        # wakes it

    async def _begin(self, push: Push, host: str, args: Mapping[str, Any]) -> tuple[str, Message]:
        name = uuid4().hex
        return name, await push.query(host, "follow", {**args, "stream": name, "after": None})

    async def _follow(self, push: Push, host: str, args: Mapping[str, Any], queue: asyncio.Queue[Message],
                      begun: tuple[str, Message] | None, patient: bool) -> None:
        """Ask one host again and again; what it says goes into the queue, which waits for the reader."""
        name = ""
        complained = False
        try:
            while True:
                try:
                    name, answer = begun or await self._begin(push, host, args)
                    complained = False
                    lost = -1
                    while True:
                        if answer["records"] or answer["lost"] != lost:
                            lost = answer["lost"]
                            await queue.put({"type": "records", "host": host, "records": answer["records"],
                                             "lost": lost})
                        answer = await push.query(host, "follow", {**args, "stream": name, "after": answer["last"]})
                except Unavailable as error:
                    begun = None
                    if not complained:
                        await queue.put({"type": "error", "host": host, "message": error.problems[0].message})
                    complained = True
                    if not patient:
                        return
                    await asyncio.sleep(RETRY_S)
        finally:
            if name:
                self._say_goodbye(push, host, name)

    def _say_goodbye(self, push: Push, host: str, name: str) -> None:
        """In a task of its own: the one that followed is being cancelled."""
        async def goodbye() -> None:
            with contextlib.suppress(Unavailable):
                await push.query(host, "unfollow", {"stream": name})

        task = asyncio.create_task(goodbye())
        self._goodbyes.add(task)
        task.add_done_callback(self._goodbyes.discard)


__all__ = ["Follows"]
