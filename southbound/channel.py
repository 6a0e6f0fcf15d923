"""One connection that carries messages both ways: bounded queue, keepalive, dead-peer detection.

Both ends use it. Three tasks run for a channel: reading (and answering Ping), writing what is queued, and
sending a Ping every `keepalive_s`. A peer from which no byte came for three of these is dead, as is one that takes
none of ours.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from southbound.codec import decode, encode
from southbound.errors import ConnectionLost, ProtocolError, SessionClosed, SouthboundError
from southbound.framing import MAX_FRAME_BYTES, frame, read_frame, write_frame
from southbound.messages import Ack, Answer, Delta, FullSync, Goal, Message, Ping, Pong, Refused, RemotesGoal

__all__ = ["Channel", "Limits", "close_writer", "say_refused"]

GOODBYE_S = 1.0
_LARGE_ITEMS = 2000                         # messages of more objects, or frames of more bytes,
_LARGE_BYTES = 256 << 10                    # are coded in a thread: 100,000 goals take 0.3 s


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one channel."""

    receive_bytes: int = MAX_FRAME_BYTES    # of one frame's payload
    send_bytes: int = MAX_FRAME_BYTES
    queue_messages: int = 1024              # waiting to be written
    queue_bytes: int = 2 * MAX_FRAME_BYTES
    keepalive_s: float = 5.0

    @property
    def dead_after_s(self) -> float:
        """How long a peer may be silent, or not read."""
        return 3 * self.keepalive_s


class Channel:
    """Messages over a pair of streams. `send` and `close` work from its creation on, `run` moves the data."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._queued = asyncio.Event()
        self._order = asyncio.Lock()        # encoding in a thread must not let a later message pass
        self._closing = asyncio.Event()
        self._reason = ""
        self._tell = False
        self._in_frame = False

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._closing.is_set()

    async def send(self, message: Message) -> None:
        """Queue a message behind the others. Does not wait for the network.

        Raises:
            SessionClosed: the channel has ended, or ends now because the queue is full.
            ProtocolError: the message does not encode, or is longer than a frame; the channel goes on.
        """
        async with self._order:
            in_thread = _large(message)
            self._enqueue(await asyncio.to_thread(self._framed, message) if in_thread else self._framed(message))

    def send_first(self, message: Message) -> None:
        """Queue a message before all others; for what must open the conversation."""
        self._enqueue(self._framed(message), first=True)

    def close(self, reason: str, *, tell: bool = False) -> None:
        """End the channel: `run` raises `SessionClosed(reason)`. `tell`: the last message is `Refused(reason)`."""
        if not self.closed:
            self._reason, self._tell = reason, tell
            self._closing.set()

    async def run(self, on_message: Callable[[Message], Awaitable[None]]) -> None:
        """Move messages until the channel ends, and close the connection. Never returns without an exception.

        `on_message` gets all but Ping and Pong, one after the other; while it waits, nothing is read.

        Raises:
            SessionClosed: `close` was called.
            ConnectionLost: the peer went away, is silent, or does not read.
            ProtocolError: the peer sent what it must not.
        """
        end: SouthboundError = SessionClosed("the session was stopped")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(on_message))
                group.create_task(self._write())
                group.create_task(self._ping())
                group.create_task(self._wait_for_close())
        except* SouthboundError as errors:
            end = _first(errors)
        finally:
            self.close(str(end), tell=isinstance(end, ProtocolError))
            if self._tell and not self._in_frame:
                await say_refused(self._writer, self._reason)
            await close_writer(self._writer)
        raise end

    def _framed(self, message: Message) -> bytes:
        return frame(encode(message), self._limits.send_bytes)

    def _enqueue(self, framed: bytes, *, first: bool = False) -> None:
        if self.closed:
            raise SessionClosed(self._reason)
        full = self._queued_bytes + len(framed) > self._limits.queue_bytes
        if len(self._queue) >= self._limits.queue_messages or (self._queue and full):
            self.close(f"the peer reads too slowly: {len(self._queue)} messages, {self._queued_bytes} bytes wait")
            raise SessionClosed(self._reason)
        if first:
            self._queue.appendleft(framed)
        else:
            self._queue.append(framed)
        self._queued_bytes += len(framed)
        self._queued.set()

    async def _read(self, on_message: Callable[[Message], Awaitable[None]]) -> None:
        silence_s = self._limits.dead_after_s
        while True:
            payload = await read_frame(self._reader, limit_bytes=self._limits.receive_bytes, idle_s=silence_s,
                                       stall_s=silence_s)
            large = len(payload) > _LARGE_BYTES
            message = await asyncio.to_thread(decode, payload) if large else decode(payload)
            match message:
                case Ping(sequence):
                    self._enqueue(self._framed(Pong(sequence)))
                case Pong():
                    pass                    # it was heard, which is all a Ping is for
                case _:
                    await on_message(message)

    async def _write(self) -> None:
        while True:
            await self._queued.wait()
            framed = self._queue.popleft()
            self._in_frame = True
            await write_frame(self._writer, framed, stall_s=self._limits.dead_after_s)
            self._in_frame = False
            self._queued_bytes -= len(framed)
            if not self._queue:
                self._queued.clear()

    async def _ping(self) -> None:
        for sequence in itertools.count(1):
            await asyncio.sleep(self._limits.keepalive_s)
            self._enqueue(self._framed(Ping(sequence)))

    async def _wait_for_close(self) -> None:
        await self._closing.wait()
        raise SessionClosed(self._reason)


def _large(message: Message) -> bool:
    match message:
        case FullSync():
            return _weight(message.goals) > _LARGE_ITEMS
        case Delta():
            return _weight(message.put) + len(message.remove) > _LARGE_ITEMS
        case Ack():
            return len(message.objects) > _LARGE_ITEMS
        case Answer():
            return True                     # of unknown size, and not frequent
        case _:
            return False


def _weight(goals: Sequence[Goal]) -> int:
    """How many objects they are; the names of eight remote endpoints count as one."""
    return len(goals) + sum(len(goal.names) >> 3 for goal in goals if isinstance(goal, RemotesGoal))


def _first(errors: BaseExceptionGroup[SouthboundError]) -> SouthboundError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, SouthboundError)
    return error


async def say_refused(writer: asyncio.StreamWriter, reason: str) -> None:
    """Send `Refused`, if the peer takes it within a second."""
    if writer.is_closing():
        return
    with suppress(ConnectionLost):
        await write_frame(writer, frame(encode(Refused(reason))), stall_s=GOODBYE_S)


async def close_writer(writer: asyncio.StreamWriter) -> None:
    """Close in good order within a second, else abort. May be called again."""
    if not writer.is_closing():             # in Python 3.11.2 (Debian 12) a second close() breaks the abort() below
        writer.close()
    # A task of its own: a deadline around `wait_closed` would cancel the stream's future for the next caller too.
    closing = asyncio.ensure_future(writer.wait_closed())
    closing.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait({closing}, timeout=GOODBYE_S)
    finally:
        writer.transport.abort()
    await asyncio.wait({closing}, timeout=GOODBYE_S)
