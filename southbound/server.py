"""The controller's end: accepts agents over TLS, enrols hosts, keeps one session per host.

A connection's life: accepted (if the gate has room) → TLS handshake → first frame, all within `hello_s` → either
`Join`, answered and closed, or `Hello` and a session. Whatever goes wrong on one connection is logged with its peer
address and ends that connection only.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self

import structlog

from southbound.channel import Channel, Limits, close_writer, say_refused
from southbound.codec import decode, encode
from southbound.errors import (
    ConnectionLost,
    HelloRefused,
    JoinRefused,
    ProtocolError,
    QueryFailed,
    SessionClosed,
    SouthboundError,
)
from southbound.framing import BEFORE_SESSION_BYTES, CHUNK_BYTES, frame, read_frame, write_frame
from southbound.messages import (
    PROTOCOL_VERSION,
    Ack,
    Answer,
    Facts,
    Hello,
    Join,
    Joined,
    Message,
    Query,
    Resync,
    Welcome,
)
from southbound.tls import Peer, peer_of

__all__ = ["Handler", "Session", "SouthboundServer"]

HELLO_S = 10.0                              # from accept to the end of the first message
FROM_AGENT_BYTES = 8 << 20                  # an agent is not trusted with the memory that a goal state may take
MAX_UNAUTHENTICATED = 256                   # connections that have not said an acceptable Hello
MAX_UNAUTHENTICATED_PER_ADDRESS = 32
MAX_QUERIES = 64                            # unanswered, per session
MAX_EVENTS = 256                            # Ack, Facts, Resync that wait for the handler, per session
HANDLER_GRACE_S = 5.0                       # for a handler call under way when its session ends
_INTERNAL = "internal error of the controller; its log says more"

_log = structlog.get_logger(__name__)


class Session:
    """One enrolled agent that said Hello. Made by the server, handed to the handler."""

    def __init__(self, hello: Hello, peer: str, certificate_sha256: str, channel: Channel) -> None:
        self.hello = hello
        self.host = hello.host              # = the certificate's common name
        self.peer = peer                    # "address:port"
        self.certificate_sha256 = certificate_sha256   # over the DER, hex: tells a host that joined again
        self.ended = asyncio.Event()        # after `on_disconnect`
        self._channel = channel
        self._events: asyncio.Queue[Ack | Facts | Resync] = asyncio.Queue(MAX_EVENTS)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)

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

    async def _take(self, message: Message) -> None:
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
            case _:
                raise ProtocolError("an agent must not send this in a session", message=type(message).__name__)

    def _fail_queries(self, reason: str) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(QueryFailed(f"host {self.host}: disconnected: {reason}"))


class Handler(Protocol):
    """What the controller does with what agents say.

    Calls for one session come one after the other, in the order of the messages; sessions run beside each other.
    An exception other than the named ones is logged and ends that session only.
    """

    async def on_join(self, join: Join) -> Joined:
        """Enrol a host. Raise `JoinRefused(reason)`; the reason is shown to whoever asked."""

    async def on_hello(self, session: Session, hello: Hello) -> Welcome:
        """A session begins; an earlier one of the same host was ended and its `on_disconnect` has returned.

        Raise `HelloRefused(reason)` to turn it away (then no `on_disconnect` follows). The server fills in
        `version` and `keepalive_s` of the result.
        """

    async def on_ack(self, session: Session, ack: Ack) -> None:
        """The agent applied a revision."""

    async def on_facts(self, session: Session, facts: Facts) -> None:
        """The host's surroundings changed."""

    async def on_resync(self, session: Session, resync: Resync) -> None:
        """The agent wants a full sync."""

    async def on_disconnect(self, session: Session) -> None:
        """The session ended. Called once for every session whose `on_hello` returned."""


class SouthboundServer:
    """Accepts agents over TLS. An async context manager: leaving it closes every session and the port."""

    def __init__(self, listen_host: str, port: int, tls_context: ssl.SSLContext, handler: Handler, *,
                 keepalive_s: float = 5.0, hello_s: float = HELLO_S,
                 max_unauthenticated: int = MAX_UNAUTHENTICATED, limits: Limits | None = None) -> None:
        self._listen_host = listen_host
        self._port = port
        self._context = tls_context
        self._handler = handler
        self._hello_s = hello_s
        self._limits = replace(limits or Limits(receive_bytes=FROM_AGENT_BYTES), keepalive_s=keepalive_s)
        self._gate = _Gate(max_unauthenticated)
        self._sessions: dict[str, Session] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._listener: socket.socket | None = None

    async def __aenter__(self) -> Self:
        """Listen. `port` 0 picks a free one; see `port`.

        Raises:
            SouthboundError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._listen_host, self._port, type=socket.SOCK_STREAM,
                                           flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            self._listener = socket.create_server(address[:2], family=family, backlog=1024)
        except OSError as error:
            raise SouthboundError(f"southbound: cannot listen on {self._listen_host}:{self._port}: {error}; is "
                                  "another controller running, is the address on this host?") from error
        self._listener.setblocking(False)
        self._port = self._listener.getsockname()[1]
        self._accepting = loop.create_task(self._accept(self._listener))
        _log.info("southbound listening", address=self._listen_host, port=self._port)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """Close the port and all sessions; `on_disconnect` is called for each."""
        assert self._accepting is not None
        assert self._listener is not None
        tasks = {self._accepting, *self._connections}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._listener.close()

    @property
    def port(self) -> int:
        """The TCP port in use."""
        return self._port

    @property
    def sessions(self) -> Mapping[str, Session]:
        """Sessions by host name: those that `on_hello` was called for and that have not ended. A live view."""
        return MappingProxyType(self._sessions)

    def use_context(self, tls_context: ssl.SSLContext) -> None:
        """Take another TLS context for new connections (after the server certificate was renewed)."""
        self._context = tls_context

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:        # out of file descriptors, or the peer is gone already
                _log.error("southbound accept failed", error=str(error))
                await asyncio.sleep(0.1)
                continue
            task = loop.create_task(self._serve(connection, str(address[0]), int(address[1])))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket, address: str, port: int) -> None:
        """One connection from accept to end; only cancellation leaves it."""
        peer = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        log = _log.bind(peer=peer)
        if not self._gate.enter(address):
            log.warning("southbound connection refused: too many that have not said who they are")
            connection.close()
            return
        inside = _Place(self._gate, address)
        try:
            await self._converse(connection, peer, inside)
        except SessionClosed as error:
            log.info("southbound session ended", reason=str(error))
        except SouthboundError as error:
            log.warning("southbound connection closed", reason=str(error))
        except Exception:
            log.exception("southbound connection failed")
        finally:
            inside.leave()

    async def _converse(self, connection: socket.socket, peer: str, inside: _Place) -> None:
        deadline = asyncio.get_running_loop().time() + self._hello_s
        reader, writer = await self._handshake(connection)
        try:
            try:
                who = peer_of(writer.get_extra_info("ssl_object"))
                limit = BEFORE_SESSION_BYTES if who is None else self._limits.receive_bytes
                async with asyncio.timeout_at(deadline):
                    first = decode(await read_frame(reader, limit_bytes=limit, idle_s=self._hello_s,
                                                    stall_s=self._hello_s))
                match first:
                    case Join() if who is None:
                        await self._enrol(first, writer)
                        return
                    case Hello() if who is not None:
                        session = await self._greet(first, who, peer, Channel(reader, writer, self._limits))
                    case _:
                        raise ProtocolError("only Hello is accepted from a connection with a certificate, only Join "
                                            "from one without", message=type(first).__name__)
            except TimeoutError:
                raise ConnectionLost(f"no complete first message within {self._hello_s:g} s") from None
            except (ProtocolError, HelloRefused, JoinRefused) as error:
                await say_refused(writer, str(error))
                raise
            except Exception:
                await say_refused(writer, _INTERNAL)
                raise
            inside.leave()
            await self._run(session)
        finally:
            await close_writer(writer)

    async def _handshake(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=CHUNK_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._context, ssl_handshake_timeout=self._hello_s,
                ssl_shutdown_timeout=1.0)
        except (OSError, EOFError) as error:     # ssl.SSLError and the handshake's timeout are OSErrors
            raise ConnectionLost(f"no TLS 1.3 handshake: {error}; not a Sluice agent, or its certificate is not of "
                                 "this controller") from error
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _enrol(self, join: Join, writer: asyncio.StreamWriter) -> None:
        try:
            joined = await self._handler.on_join(join)
        except JoinRefused as error:
            raise JoinRefused(f"join of host {join.host!r}: {error}") from error
        await write_frame(writer, frame(encode(joined)), stall_s=self._hello_s)
        _log.info("host joined", host=join.host)

    async def _greet(self, hello: Hello, who: Peer, peer: str, channel: Channel) -> Session:
        if hello.host != who.common_name:
            raise HelloRefused(f"Hello says host {hello.host!r}, the certificate is for {who.common_name!r}; an agent "
                               "speaks for its own host only")
        session = Session(hello, peer, who.certificate_sha256, channel)
        while (earlier := self._sessions.get(hello.host)) is not None:
            earlier.close(f"replaced by a newer session from {peer}")
            await earlier.ended.wait()
        self._sessions[hello.host] = session
        try:
            welcome = await self._handler.on_hello(session, hello)
        except BaseException:
            self._forget(session)
            raise
        channel.send_first(replace(welcome, version=PROTOCOL_VERSION, keepalive_s=self._limits.keepalive_s))
        _log.info("agent connected", host=session.host, peer=peer, agent=hello.agent,
                  applied_revision=hello.applied_revision)
        return session

    async def _run(self, session: Session) -> None:
        """Serve a welcomed session until it ends; then tell the handler."""
        worker = asyncio.create_task(self._work(session))
        reason = "the controller stopped"
        try:
            await session._channel.run(session._take)
        except SouthboundError as error:
            reason = str(error)
            raise
        finally:
            session._fail_queries(reason)
            await _stop(worker)
            try:
                await self._handler.on_disconnect(session)
            finally:
                self._forget(session)

    def _forget(self, session: Session) -> None:
        session._channel.close("the session ended")
        if self._sessions.get(session.host) is session:
            del self._sessions[session.host]
        session.ended.set()

    async def _work(self, session: Session) -> None:
        """Hand the session's events to the handler, one after the other, beside the reading of answers."""
        while not session.closed:
            event = await session._events.get()
            try:
                match event:
                    case Ack():
                        await self._handler.on_ack(session, event)
                    case Facts():
                        await self._handler.on_facts(session, event)
                    case Resync():
                        await self._handler.on_resync(session, event)
            except SouthboundError as error:
                _log.warning("handler stopped", host=session.host, reason=str(error))
            except Exception:
                _log.exception("handler failed", host=session.host, event=type(event).__name__)
                session.close(_INTERNAL)


async def _stop(worker: asyncio.Task[None]) -> None:
    raise NotImplementedError


class _Gate:
    """How many connections may be inside without having said who they are, in all and from one address."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_address: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        if (self._by_address.total() >= self._limit
                or self._by_address[address] >= min(self._limit, MAX_UNAUTHENTICATED_PER_ADDRESS)):
            return False
        self._by_address[address] += 1
        return True

    def leave(self, address: str) -> None:
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class _Place:
    """One connection's place inside the gate; left once."""

    def __init__(self, gate: _Gate, address: str) -> None:
        self._gate: _Gate | None = gate
        self._address = address

    def leave(self) -> None:
        if self._gate is not None:
            self._gate.leave(self._address)
            self._gate = None
