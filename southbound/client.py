"""The agent's end (in progress: signatures are stable)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from southbound.identity import Identity
from southbound.messages import Delta, FullSync, Hello, Message, Welcome

__all__ = ["AgentSession", "connect", "join", "run"]

OnQuery = Callable[[str, dict[str, Any]], Awaitable[Any]]


class AgentSession:
    """A session with the controller, after `Hello` and `Welcome`.

    Iterate over it for goal state; Ping, Pong and Query are dealt with behind it::

        async for message in session:        # FullSync | Delta
            ...
            await session.send(Ack(message.revision))

    The iteration does not end by itself: it raises `ConnectionLost` or `SessionRefused`.
    """

    welcome: Welcome

    def __aiter__(self) -> AsyncIterator[FullSync | Delta]:
        """Goal-state messages as they come."""
        raise NotImplementedError

    async def send(self, message: Message) -> None:
        """Queue `Ack`, `Facts`, `Resync`; order is kept. Raises `SessionClosed`, `ProtocolError`."""
        raise NotImplementedError


def connect(identity_dir: Path, hello: Hello, on_query: OnQuery) -> AbstractAsyncContextManager[AgentSession]:
    """Connect once: TLS with our certificate, `Hello`, `Welcome`. `hello.host` must be the identity's host.

    `on_query(what, args)` answers queries: returns JSON-like data, or raises (its text becomes the answer's error).
    Several may run at once; it must not block the loop.

    Raises:
        IdentityError, Unreachable, UntrustedController, SessionRefused, ProtocolError, ConnectionLost
    """
    raise NotImplementedError


async def run(identity_dir: Path, make_hello: Callable[[Identity], Hello],
              serve: Callable[[AgentSession], Awaitable[None]], on_query: OnQuery, *,
              on_lost: Callable[[Exception], None] | None = None) -> None:
    """Keep a session up for ever: connect, `await serve(session)`, and again after a jittered pause (0.2 s to 5 s).

    `make_hello(identity)` is called for each attempt (identity.host is our name). `serve` normally iterates over the
    session until that raises; a `SouthboundError` from it is a lost session (told to `on_lost`), any other exception
    propagates. Ends only by cancellation or `IdentityError`.
    """
    raise NotImplementedError


async def join(controller: str, token: str, host: str, state_dir: Path) -> Identity:
    """Enrol this host: `controller` is `HOST:PORT`; writes `state_dir/identity/{key.pem,cert.pem,ca.pem,controller}`.

    The controller's CA is checked against the token's fingerprint before the token is sent. CLI: `asyncio.run(join(...))`.

    Raises:
        TokenError, Unreachable, UntrustedController, JoinFailed, IdentityError
    """
    raise NotImplementedError
