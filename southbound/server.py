"""The controller's end: accepts agents over TLS, enrols hosts, keeps one session per host.

A connection's life: accepted (if the gate has room) → TLS handshake → first frame, all within `hello_s` → either
`Join`, answered and closed, or `Hello` and a session. Whatever goes wrong on one connection is logged with its peer
address and ends that connection only.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

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
from southbound.framing import BEFORE_SESSION_BYTES, frame, read_frame, write_frame
from southbound.gate import Gate, Place
from southbound.messages import PROTOCOL_VERSION, Ack, Facts, Hello, Join, Joined, Reply, Request, Resync, Welcome
from southbound.session import Session
from southbound.tls import Peer, peer_of

__all__ = ["Handler", "Session", "SouthboundServer"]

HELLO_S = 10.0                              # from accept to the end of the first message
FROM_AGENT_BYTES = 8 << 20                  # an agent is not trusted with the memory that a goal state may take
MAX_UNAUTHENTICATED = 256                   # connections that have not said an acceptable Hello
HANDLER_GRACE_S = 5.0                       # for a handler call under way when its session ends
_INTERNAL = "internal error of the controller; its log says more"

_log = structlog.get_logger(__name__)


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

    async def on_request(self, session: Session, request: Request) -> Reply:
        """The agent asks for something. Several may be under way at once, beside the other calls."""

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
        self._gate = Gate(max_unauthenticated)
        self._sessions: dict[str, Session] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._serving: dict[asyncio.Task[None], Channel] = {}   # those of the connections that have a session
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
            if (channel := self._serving.get(task)) is not None:
                channel.close("the controller stops")   # cancelled, it could miss its `on_disconnect`
            else:
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
        place = self._gate.enter(address)
        if place is None:
            log.warning("southbound connection refused: too many that have not said who they are")
            connection.close()
            return
        try:
            await self._converse(connection, peer, place)
        except SessionClosed as error:
            log.info("southbound session ended", reason=str(error))
        except SouthboundError as error:
            log.warning("southbound connection closed", reason=str(error))
        except Exception:
            log.exception("southbound connection failed")
        finally:
            place.leave()

    async def _converse(self, connection: socket.socket, peer: str, place: Place) -> None:
        deadline = asyncio.get_running_loop().time() + self._hello_s
        reader, writer = await self._handshake(connection)
        try:
            who = peer_of(writer.get_extra_info("ssl_object"))
            first = await self._first_message(reader, who, deadline)
            if isinstance(first, Join):
                await self._enrol(first, writer)
                return
            channel = Channel(reader, writer, self._limits)
            session, welcome = await self._greet(first, who, peer, channel)
            place.leave()
            await self._run(session, channel, welcome)
        except (ConnectionLost, SessionClosed):
            raise                           # nobody there to be told
        except SouthboundError as error:
            await say_refused(writer, str(error))
            raise
        except Exception:
            await say_refused(writer, _INTERNAL)
            raise
        finally:
            await close_writer(writer)

    async def _handshake(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=BEFORE_SESSION_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._context, ssl_handshake_timeout=self._hello_s,
                ssl_shutdown_timeout=1.0)
        except OSError as error:            # ssl.SSLError is one, and so is the handshake's deadline
            raise ConnectionLost(f"no TLS 1.3 handshake: {error}; not a Sluice agent, or its certificate is not "
                                 "by this controller") from error
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _first_message(self, reader: asyncio.StreamReader, who: Peer | None, deadline: float) -> Join | Hello:
        limit = BEFORE_SESSION_BYTES if who is None else self._limits.receive_bytes
        try:
            async with asyncio.timeout_at(deadline):
                payload = await read_frame(reader, limit_bytes=limit, idle_s=self._hello_s, stall_s=self._hello_s)
        except TimeoutError:
            raise ConnectionLost(f"no complete first message within {self._hello_s:g} s") from None
        except ConnectionLost:
            if who is None and reader.at_eof():
                raise SessionClosed("closed without a message; `sluice join` does so once it saw our CA") from None
            raise
        match decode(payload), who:
            case Join() as join, None:
                return join
            case Hello() as hello, Peer():
                return hello
            case other, _:
                raise ProtocolError("only Hello is accepted from a connection with a certificate, only Join from "
                                    "one without", message=type(other).__name__)

    async def _enrol(self, join: Join, writer: asyncio.StreamWriter) -> None:
        try:
            joined = await self._handler.on_join(join)
        except JoinRefused as error:
            raise JoinRefused(f"join of host {join.host!r}: {error}") from error
        await write_frame(writer, frame(encode(joined)), stall_s=self._hello_s)
        _log.info("host joined", host=join.host)

    async def _greet(self, hello: Hello, who: Peer | None, peer: str,
                     channel: Channel) -> tuple[Session, Welcome]:
        if who is None or hello.host != who.common_name:
            raise HelloRefused(f"Hello says host {hello.host!r}, the certificate is for "
                               f"{who and who.common_name!r}; an agent speaks for its own host only")
        session = Session(hello, peer, who.certificate_sha256, channel)
        session.on_request = lambda request: self._request(session, request)
        while (earlier := self._sessions.get(hello.host)) is not None:
            earlier.close(f"replaced by a newer session from {peer}")
            await earlier.ended.wait()
        self._sessions[hello.host] = session
        try:
            return session, await self._handler.on_hello(session, hello)
        except BaseException:
            self._forget(session)
            raise

    async def _run(self, session: Session, channel: Channel, welcome: Welcome) -> None:
        """Serve a greeted session until it ends; then tell the handler."""
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = channel
        worker = asyncio.create_task(self._work(session))
        reason = ""
        try:
            channel.send_first(replace(welcome, version=PROTOCOL_VERSION, keepalive_s=self._limits.keepalive_s))
            _log.info("agent connected", host=session.host, peer=session.peer, agent=session.hello.agent,
                      applied_revision=session.hello.applied_revision)
            await channel.run(session.take)
        except SouthboundError as error:
            reason = str(error)
            raise
        finally:
            session.end(reason)
            if session.handling:            # a handler call is finished rather than cut in two
                await asyncio.wait({worker}, timeout=HANDLER_GRACE_S)
            worker.cancel()
            await asyncio.wait({worker})
            try:
                await self._handler.on_disconnect(session)
            finally:
                self._forget(session)
                del self._serving[task]

    def _forget(self, session: Session) -> None:
        del self._sessions[session.host]
        session.ended.set()

    async def _request(self, session: Session, request: Request) -> Reply:
        try:
            return await self._handler.on_request(session, request)
        except Exception:
            _log.exception("request failed", host=session.host, what=request.what)
            problem = {"code": "internal", "message": _INTERNAL, "field": "", "found": "", "todo": "", "resource": ""}
            return Reply(request.id, (problem,), None)

    async def _work(self, session: Session) -> None:
        """Hand the session's events to the handler, one after the other, beside the reading of answers."""
        while not session.closed:
            event = await session.next_event()
            session.handling = True
            try:
                match event:
                    case Ack():
                        await self._handler.on_ack(session, event)
                    case Facts():
                        await self._handler.on_facts(session, event)
                    case Resync():
                        await self._handler.on_resync(session, event)
            except (SessionClosed, QueryFailed) as error:
                _log.info("handler stopped", host=session.host, reason=str(error))
            except Exception:
                _log.exception("handler failed", host=session.host, message=type(event).__name__)
                session.close(_INTERNAL)
            finally:
                session.handling = False
