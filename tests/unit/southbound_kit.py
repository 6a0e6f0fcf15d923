"""A controller's southbound end on loopback with real TLS, and agents to connect to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from controller.pki import Pki, PkiError
from southbound.client import AgentSession, connect, join
from southbound.errors import HelloRefused, JoinRefused, TokenError
from southbound.messages import (
    PROTOCOL_VERSION,
    REMOTES_BLOCK,
    Ack,
    Facts,
    FullSync,
    Hello,
    HostFacts,
    HostGoal,
    Join,
    Joined,
    RemotesGoal,
    Reply,
    Request,
    Resync,
    Welcome,
)
from southbound.server import Session, SouthboundServer
from southbound.tls import trusting_context


class RecordingHandler:
    """A controller that writes down what it is told and sends a full sync of one object to everyone."""

    def __init__(self, pki: Pki) -> None:
        self.pki = pki
        self.tokens: dict[str, str] = {}    # secret hash to host
        self.events: list[tuple[Any, ...]] = []
        self.turned_away: set[str] = set()
        self.on_event: Callable[[Session, object], Any] | None = None

    def make_token(self, host: str) -> str:
        text, secret_hash = self.pki.make_token()
        self.tokens[secret_hash] = host
        return text

    async def on_join(self, message: Join) -> Joined:
        try:
            if self.tokens.pop(self.pki.token_hash(message.token), None) != message.host:
                raise JoinRefused("token: unknown, used, expired or for another host")
            return Joined(self.pki.sign(message.csr_pem, message.host), self.pki.ca_pem)
        except (TokenError, PkiError) as error:
            raise JoinRefused(str(error)) from error

    async def on_hello(self, session: Session, hello: Hello) -> Welcome:
        if hello.host in self.turned_away:
            raise HelloRefused(f"host {hello.host!r} is not declared")
        self.events.append(("hello", hello.host))
        await session.send(FullSync(1, (HostGoal("self"),)))
        return Welcome(PROTOCOL_VERSION, "store-1", 0.0)

    async def _told(self, session: Session, name: str, message: object) -> None:
        self.events.append((name, session.host, message))
        if self.on_event is not None:
            await self.on_event(session, message)

    async def on_ack(self, session: Session, ack: Ack) -> None:
        await self._told(session, "ack", ack)

    async def on_facts(self, session: Session, facts: Facts) -> None:
        await self._told(session, "facts", facts)

    async def on_resync(self, session: Session, resync: Resync) -> None:
        await self._told(session, "resync", resync)

    async def on_request(self, session: Session, request: Request) -> Reply:
        return Reply(request.id, (), {"what": request.what, "args": request.args})

    async def on_disconnect(self, session: Session) -> None:
        self.events.append(("disconnect", session.host))


async def echo(what: str, args: dict[str, Any]) -> Any:
    return {"what": what, "args": args}


class Rig:
    """A running server, its handler, and a way to enrol and connect agents."""

    def __init__(self, directory: Path, server: SouthboundServer, handler: RecordingHandler) -> None:
        self.directory = directory
        self.server = server
        self.handler = handler
        self.pki = handler.pki
        self.address = f"127.0.0.1:{server.port}"

    async def enrol(self, host: str) -> Path:
        """Join; returns the identity directory."""
        state = self.directory / host
        await join(self.address, self.handler.make_token(host), host, state)
        return state / "identity"

    @asynccontextmanager
    async def agent(self, host: str, on_query: Any = echo) -> AsyncIterator[AgentSession]:
        """An enrolled, connected agent that has had its full sync."""
        identity = self.directory / host / "identity"
        if not identity.exists():
            await self.enrol(host)
        async with connect(identity, hello(host), on_query) as session:
            assert await first(session) == FullSync(1, (HostGoal("self"),))
            yield session

    @asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Whatever happens inside, an agent that was connected before stays so and is served."""
        async with self.agent("witness"):
            session = self.server.sessions["witness"]
            yield
            assert self.server.sessions["witness"] is session
            assert await session.query("still", {"there": True}, 2.0) == {"what": "still", "args": {"there": True}}

    async def open(self, context: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TLS connection without certificate (or by `context`) that speaks for itself."""
        context = context or trusting_context(self.pki.ca_pem.decode())
        return await asyncio.open_connection("127.0.0.1", self.server.port, ssl=context,
                                             server_hostname="127.0.0.1")


@asynccontextmanager
async def rig(directory: Path, **options: Any) -> AsyncIterator[Rig]:
    pki = Pki.open(directory / "pki")
    handler = RecordingHandler(pki)
    options = {"keepalive_s": 1.0, "hello_s": 2.0, **options}
    async with SouthboundServer("127.0.0.1", 0, pki.server_context(), handler, **options) as server:
        yield Rig(directory, server, handler)


def hello(host: str, version: int = PROTOCOL_VERSION) -> Hello:
    return Hello(version, host, "0.1.0", "boot-1", 0, HostFacts())


async def first(session: AgentSession) -> object:
    async with asyncio.timeout(5):
        async for message in session:
            return message
    raise AssertionError("the iteration ended")


async def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 5.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():          # noqa: ASYNC110 - any state of the server, not one event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


async def closed_by_server(reader: asyncio.StreamReader, timeout_s: float = 5.0) -> bytes:
    """What the server still says before it closes."""
    async with asyncio.timeout(timeout_s):
        try:
            return await reader.read()
        except OSError:
            return b""


def remotes(count: int) -> tuple[RemotesGoal, ...]:
    """So many endpoints with long names, in blocks: 140 bytes each."""
    return tuple(
        RemotesGoal(f"net-1/h2/{first}", "net-1", "h2", ("172.31.0.1",),
                    tuple(f"{number:0126}" for number in range(first, min(first + REMOTES_BLOCK, count))),
                    bytes(6 * REMOTES_BLOCK), bytes(4 * REMOTES_BLOCK), b"")
        for first in range(0, count, REMOTES_BLOCK))
