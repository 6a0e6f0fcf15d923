"""The agent's end: one session with the controller, kept up for ever; and joining in the first place."""

from __future__ import annotations

import asyncio
import itertools
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

from southbound.channel import Channel, Limits
from southbound.dial import dial
from southbound.errors import (
    IdentityError,
    JoinFailed,
    ProtocolError,
    QueryRefused,
    RequestRefused,
    SessionClosed,
    SessionRefused,
    SouthboundError,
    Unreachable,
)
from southbound.framing import BEFORE_SESSION_BYTES
from southbound.identity import Identity, draft_identity, load_identity
from southbound.messages import (
    PROTOCOL_VERSION,
    Answer,
    Delta,
    FullSync,
    Hello,
    Join,
    Joined,
    Message,
    Query,
    Refused,
    Reply,
    Request,
    Welcome,
)
from southbound.tls import agent_context, ca_of_chain, fetch_context, trusting_context
from southbound.tokens import parse_token

__all__ = ["AgentSession", "OnQuery", "connect", "join", "run"]

OnQuery = Callable[[str, dict[str, Any]], Awaitable[Any]]

TO_CONTROLLER_BYTES = 8 << 20               # what the controller takes in one frame
INBOX_MESSAGES = 1024                       # goal-state messages that wait for the agent
MAX_QUERIES = 16                            # answered at once
QUERY_S = 30.0
MAX_REQUESTS = 64                           # unanswered
REQUEST_S = 5.0
BACKOFF_S = (0.2, 5.0)                      # first and longest pause between sessions, before jitter
SETTLED_S = 5.0                             # a session that lasted this long resets the pause
EXPIRY_WARNING = timedelta(days=60)
_KEEPALIVE_S = (0.05, 300.0)                # what a Welcome may ask for

_log = structlog.get_logger(__name__)


class AgentSession:
    """A session with the controller, after `Hello` and `Welcome`.

    Iterate over it for goal state; Ping, Pong and Query are dealt with behind it::

        async for message in session:        # FullSync | Delta
            ...
            await session.send(Ack(message.revision))

    The iteration never ends by itself: it raises `ConnectionLost`, `SessionRefused` or `ProtocolError`.
    """

    def __init__(self, welcome: Welcome, channel: Channel, on_query: OnQuery) -> None:
        self.welcome = welcome
        self._channel = channel
        self._on_query = on_query
        self._inbox: asyncio.Queue[FullSync | Delta] = asyncio.Queue()
        self._answering: set[asyncio.Task[None]] = set()
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._pump = asyncio.create_task(channel.run(self._take))

    async def __aiter__(self) -> AsyncIterator[FullSync | Delta]:
        """Goal-state messages as they come."""
        while True:
            message = asyncio.ensure_future(self._inbox.get())
            try:
                await asyncio.wait({message, self._pump}, return_when=asyncio.FIRST_COMPLETED)
                if self._pump.done():
                    self._pump.result()     # raises why the session ended
                yield message.result()
            finally:
                message.cancel()

    async def send(self, message: Message) -> None:
        """Queue `Ack`, `Facts` or `Resync`; order is kept; never waits for the network.

        Raises:
            SessionClosed: the session has ended; the iteration says why.
            ProtocolError: the message cannot be encoded or is larger than a frame; nothing was sent.
        """
        await self._channel.send(message)

    async def request(self, what: str, args: dict[str, Any], timeout_s: float = REQUEST_S) -> Any:
        """Ask the controller for something; returns the `data` of its reply.

        Raises:
            RequestRefused: the controller's problems.
            SessionClosed: the session has ended, or ends before a reply: whether it was carried out is not known.
            Unreachable: no reply in time; likewise.
            ProtocolError: it cannot be encoded.
        """
        if len(self._replies) >= MAX_REQUESTS:
            raise Unreachable(f"{MAX_REQUESTS} requests to the controller are unanswered; try again later")
        number = next(self._numbers)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self.send(Request(number, what, args))
                await asyncio.wait({reply, self._pump}, return_when=asyncio.FIRST_COMPLETED)
                if not reply.done():
                    raise SessionClosed(f"the session with the controller ended before its reply to {what!r}")
                return reply.result()
        except TimeoutError:
            raise Unreachable(f"no reply of the controller to {what!r} within {timeout_s:g} s") from None
        finally:
            del self._replies[number]
            if reply.done():
                reply.exception()           # so that nobody misses it

    async def close(self) -> None:
        """End the session and everything that runs for it."""
        self._channel.close("the agent closed the session")
        tasks = {self._pump, *self._answering}
        for task in self._answering:
            task.cancel()
        await asyncio.wait(tasks)
        if not self._pump.cancelled():
            self._pump.exception()          # was raised by the iteration, if anybody iterated

    async def _take(self, message: Message) -> None:
        match message:
            case FullSync() | Delta():
                if self._inbox.qsize() >= INBOX_MESSAGES:
                    self._channel.close(f"{INBOX_MESSAGES} messages wait for the agent; starting over with a "
                                        "full sync")
                self._inbox.put_nowait(message)
            case Query():
                self._answer(message)
            case Reply(number, problems, data):
                reply = self._replies.get(number)
                if reply is None or reply.done():
                    return                  # its deadline has passed
                if problems:
                    reply.set_exception(RequestRefused(problems))
                else:
                    reply.set_result(data)
            case Refused(reason):
                raise SessionRefused(reason)
            case _:
                raise ProtocolError("the controller must not send this in a session",
                                    message=type(message).__name__)

    def _answer(self, query: Query) -> None:
        task = asyncio.create_task(self._ask_and_send(query, busy=len(self._answering) >= MAX_QUERIES))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _ask_and_send(self, query: Query, *, busy: bool) -> None:
        error, data = "", None
        try:
            if busy:
                raise SouthboundError(f"the agent is answering {MAX_QUERIES} queries; try again")
            async with asyncio.timeout(QUERY_S):
                data = await self._on_query(query.what, query.args)
        except TimeoutError:
            error = f"{query.what}: took longer than {QUERY_S:g} s"
        except QueryRefused as refused:
            error = str(refused)
        except Exception as failure:        # the asker is told; this host goes on
            _log.warning("query failed", what=query.what, error=str(failure), exc_info=True)
            error = str(failure) or type(failure).__name__
        with suppress(SessionClosed):
            try:
                await self._channel.send(Answer(query.id, error, data))
            except ProtocolError as unsendable:   # too long or not JSON-like
                await self._channel.send(Answer(query.id, f"{query.what}: {unsendable}", None))


@asynccontextmanager
async def connect(identity_dir: Path, hello: Hello, on_query: OnQuery) -> AsyncIterator[AgentSession]:
    """Connect once: TLS with our certificate, `Hello`, `Welcome`. `hello.host` must be the identity's host.

    `on_query(what, args)` answers queries: it returns JSON-like data, or raises (its text becomes the answer's
    error). Several may run at once; it must not block the loop for long, or the controller takes us for dead.

    Raises:
        IdentityError, Unreachable, UntrustedController, SessionRefused, ProtocolError, ConnectionLost
    """
    identity, context = await asyncio.to_thread(_credentials, identity_dir)
    if hello.host != identity.host:
        raise IdentityError(f"this agent is to be host {hello.host!r}, its certificate is for {identity.host!r}; "
                            "start it with that name or join again")
    async with dial(identity.controller, context) as line:
        welcome = await line.ask(hello, BEFORE_SESSION_BYTES)
        if not isinstance(welcome, Welcome):
            raise ProtocolError("expected Welcome", message=type(welcome).__name__)
        low, high = _KEEPALIVE_S
        if not low <= welcome.keepalive_s <= high:
            raise ProtocolError(f"expected {low}..{high}", message="Welcome", field="keepalive_s",
                                found=f"{welcome.keepalive_s}")
        limits = Limits(send_bytes=TO_CONTROLLER_BYTES, keepalive_s=welcome.keepalive_s)
        session = AgentSession(welcome, Channel(line.reader, line.writer, limits), on_query)
        try:
            yield session
        finally:
            await session.close()


async def run(identity_dir: Path, make_hello: Callable[[Identity], Hello],
              serve: Callable[[AgentSession], Awaitable[None]], on_query: OnQuery, *,
              on_lost: Callable[[Exception], None] | None = None) -> None:
    """Keep a session up for ever: connect, `await serve(session)`, and again after a jittered pause.

    The pause is 0.2 s, doubles up to 5 s, and starts anew after a session that lasted. `make_hello(identity)` is
    called for each attempt; `identity.host` is our name. `serve` normally iterates over the session until that
    raises; a `SouthboundError` from it (also in an exception group) is a lost session and is told to `on_lost`, as
    is a failure to connect. Any other exception propagates. Ends only by that, by cancellation or `IdentityError`.
    """
    pause_s, longest_s = BACKOFF_S
    said = ""
    while True:
        began = time.monotonic()
        try:
            identity = await asyncio.to_thread(load_identity, identity_dir)
            async with connect(identity_dir, make_hello(identity), on_query) as session:
                _log.info("connected to the controller", controller=identity.controller)
                if identity.expires - datetime.now(UTC) < EXPIRY_WARNING:
                    _log.warning("this host's certificate expires soon; run `sluice join` with a new token",
                                 expires=identity.expires.isoformat())
                said = ""
                await serve(session)
            lost: Exception = SessionClosed("the agent ended the session")
        except IdentityError:
            raise
        except SouthboundError as error:
            lost = error
        except BaseExceptionGroup as group:
            lost = _only_southbound(group)
        if str(lost) != said:               # once for each reason, not for each attempt
            said = str(lost)
            _log.warning("no session with the controller; trying again", reason=said)
        if on_lost is not None:
            on_lost(lost)
        if time.monotonic() - began > SETTLED_S:
            pause_s = BACKOFF_S[0]
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(pause_s * 2, longest_s)


def _only_southbound(group: BaseExceptionGroup[BaseException]) -> SouthboundError:
    """The first error of a group in which all are ours; else the group is raised again."""
    ours, others = group.split(SouthboundError)
    if ours is None or others is not None:
        raise group
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, SouthboundError)
    if isinstance(error, IdentityError):
        raise error
    return error


def _credentials(identity_dir: Path) -> tuple[Identity, ssl.SSLContext]:
    identity = load_identity(identity_dir)
    try:
        return identity, agent_context(identity.key, identity.certificate, identity.ca)
    except (OSError, ValueError) as error:
        if load_identity(identity_dir) != identity:
            return _credentials(identity_dir)    # `sluice join` replaced it while we read
        raise IdentityError(f"{identity.directory}: TLS cannot use it: {error}; join again with a new "
                            "token") from error


async def join(controller: str, token: str, host: str, state_dir: Path) -> Identity:
    """Enrol this host: `controller` is `HOST:PORT`; writes `state_dir/identity/{key,cert,ca}.pem` and `controller`.

    The controller's CA is checked against the token's fingerprint before the token is sent, and everything that can
    fail on our side is tried before, since a token works once. From the CLI: `asyncio.run(join(...))`.

    Raises:
        TokenError: not a token.
        Unreachable: no TLS connection.
        UntrustedController: fingerprint mismatch, or a certificate for another name.
        JoinFailed: the controller refused: token unknown, used, expired, or for another host.
        IdentityError: `state_dir` is not writable, or the controller sent a certificate that is not ours.
    """
    fingerprint = parse_token(token).fingerprint
    with draft_identity(state_dir, host) as draft:
        async with dial(controller, fetch_context()) as line:
            ca_pem = ca_of_chain(line.tls, fingerprint)
        # From here on the ordinary verification of TLS holds, with that CA as the only root.
        async with dial(controller, trusting_context(ca_pem)) as line:
            request = Join(PROTOCOL_VERSION, host, token.strip(), draft.csr_pem)
            try:
                answer = await line.ask(request, BEFORE_SESSION_BYTES)
            except SessionRefused as error:
                raise JoinFailed(f"the controller refused: {error}") from error
        if not isinstance(answer, Joined):
            raise JoinFailed(f"expected Joined, found {type(answer).__name__}; is the controller of this version?")
        return await asyncio.to_thread(draft.complete, answer.certificate_pem, ca_pem.encode(), controller)
