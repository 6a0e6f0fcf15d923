"""The controller's view of one connected agent: what it can send it and ask it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from southbound.channel import Channel
from southbound.errors import ProtocolError, QueryFailed, SessionClosed
from southbound.messages import Ack, Answer, Facts, Hello, Message, Query, Refused, Reply, Request, Resync

__all__ = ["Session"]

MAX_QUERIES = 64                            # unanswered, per session
MAX_EVENTS = 256                            # Ack, Facts, Resync that wait for the handler, per session
MAX_REQUESTS = 64                           # that the handler works on, per session


class Session:
    """One enrolled agent that said Hello. Made by the server, handed to the handler."""

    def __init__(self, hello: Hello, peer: str, certificate_sha256: str, channel: Channel) -> None:
        self.hello = hello
        self.host = hello.host              # = the certificate's common name
        self.peer = peer                    # "address:port"
        self.certificate_sha256 = certificate_sha256   # over the DER, hex: tells a host that joined again
        self.ended = asyncio.Event()        # set after `on_disconnect`
        self.handling = False               # a handler call for this session is under way
        self._channel = channel
        self._events: asyncio.Queue[Ack | Facts | Resync] = asyncio.Queue(MAX_EVENTS)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._replying: set[asyncio.Task[None]] = set()
        self.on_request: Callable[[Request], Awaitable[Reply]] | None = None

    def __repr__(self) -> str:
        return f"Session(host={self.host!r}, peer={self.peer!r}, closed={self.closed})"

    @property
    def closed(self) -> bool:
        """Whether the session has ended or is about to."""
        return self._channel.closed

    async def send(self, message: Message) -> None:
        """Queue a message; order is kept; never waits for the network.

        A peer that lets its queue grow full, or reads nothing for a while, is disconnected. What is sent inside
        `on_hello` goes out after the `Welcome`.

        Raises:
            SessionClosed: the session has ended (or ends because the queue is full).
            ProtocolError: the message cannot be encoded or is larger than a frame; nothing was sent.
        """
        await self._channel.send(message)

    async def query(self, what: str, args: dict[str, Any], timeout_s: float = 5.0) -> Any:
        """Ask the agent; returns the `data` of its answer. From any handler method but `on_hello`.

        Raises:
            QueryFailed: the agent's error text, no answer in time, or the session ended.
        """
        if len(self._answers) >= MAX_QUERIES:
            raise QueryFailed(f"host {self.host}: {MAX_QUERIES} queries are unanswered; try again later")
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self.send(Query(number, what, args))
                return await answer
        except TimeoutError:
            raise QueryFailed(f"host {self.host}: no answer to {what!r} within {timeout_s:g} s; is its agent "
                              "overloaded?") from None
        except SessionClosed as error:
            raise QueryFailed(f"host {self.host}: disconnected: {error}") from error
        finally:
            del self._answers[number]

    def close(self, reason: str) -> None:
        """Tell the agent `Refused(reason)` and end the session; returns at once. Idempotent."""
        self._channel.close(reason, tell=True)

    # What follows is for the server.

    async def take(self, message: Message) -> None:
        """Sort a message that came: answers to who waits for them, the rest to the handler."""
        match message:
            case Answer(number, error, data):
                answer = self._answers.get(number)
                if answer is None or answer.done():
                    return                  # its deadline has passed
                if error:
                    answer.set_exception(QueryFailed(f"host {self.host}: {error}"))
                else:
                    answer.set_result(data)
            case Ack() | Facts() | Resync():
                await self._events.put(message)
            case Request():
                task = asyncio.create_task(self._reply(message, busy=len(self._replying) >= MAX_REQUESTS))
                self._replying.add(task)
                task.add_done_callback(self._replying.discard)
            case Refused(reason):
                raise SessionClosed(f"the agent ended it: {reason}")
            case _:
                raise ProtocolError("an agent must not send this in a session", message=type(message).__name__)

    async def _reply(self, request: Request, *, busy: bool) -> None:
        if busy or self.on_request is None:
            reply = Reply(request.id, (_problem(f"{MAX_REQUESTS} requests of this host are under way",
                                                "try again later"),), None)
        else:
            reply = await self.on_request(request)
        with suppress(SessionClosed):
            try:
                await self._channel.send(reply)
            except ProtocolError as unsendable:
                await self._channel.send(Reply(request.id, (_problem(f"{request.what}: {unsendable}", ""),), None))

    async def next_event(self) -> Ack | Facts | Resync:
        """What the handler must be told next."""
        return await self._events.get()

    def end(self, reason: str) -> None:
        """Nothing more can be sent, and no answer will come."""
        self._channel.close(reason)
        for task in self._replying:
            task.cancel()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(QueryFailed(f"host {self.host}: disconnected: {reason}"))


def _problem(message: str, todo: str) -> dict[str, Any]:
    """As the REST API has them."""
    return {"code": "unavailable", "message": message, "field": "", "found": "", "todo": todo, "resource": ""}
