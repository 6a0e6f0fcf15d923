"""The controller's end (in progress: signatures are stable)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from southbound.messages import Ack, Facts, Hello, Join, Joined, Message, Resync, Welcome

__all__ = ["Handler", "Session", "SouthboundServer"]


class Session:
    """One enrolled agent that said Hello. Made by the server, handed to the handler."""

    host: str                               # certificate common name = Hello.host
    peer: str                               # "address:port"
    certificate_sha256: str                 # of the agent's certificate (DER), hex: tells re-enrolled from old
    hello: Hello

    async def send(self, message: Message) -> None:
        """Queue a message; order is kept; never waits for the network.

        A peer that lets its queue grow full, or reads nothing for a while, is disconnected.
        What is sent inside `on_hello` goes out after the `Welcome`.

        Raises:
            SessionClosed: the session has ended (or ends because the queue is full).
            ProtocolError: the message cannot be encoded or is larger than a frame; nothing was sent.
        """
        raise NotImplementedError

    async def query(self, what: str, args: dict[str, Any], timeout_s: float = 5.0) -> Any:
        """Ask the agent; returns the `data` of its answer. Safe to call from any handler method.

        Raises:
            QueryFailed: the agent's error text, no answer in time, or the session ended.
        """
        raise NotImplementedError

    def close(self, reason: str) -> None:
        """Tell the agent `Refused(reason)` and end the session; returns at once. Idempotent."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether the session has ended."""
        raise NotImplementedError


class Handler(Protocol):
    """What the controller does with what agents say.

    Calls for one session come one after the other, in the order of the messages; sessions run beside each other.
    An exception other than the named ones is logged and ends that session only.
    """

    async def on_join(self, join: Join) -> Joined:
        """Enrol a host. Raise `JoinRefused(reason)`; the reason is shown to whoever asked."""

    async def on_hello(self, session: Session, hello: Hello) -> Welcome:
        """A session begins; an earlier one of the same host was ended and its `on_disconnect` has returned.

        Raise `HelloRefused(reason)` to turn it away (then no `on_disconnect` follows).
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
                 keepalive_s: float = 5.0) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        """Listen. `port` 0 picks a free one; see `port`."""
        raise NotImplementedError

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """Close the port and all sessions."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        """The TCP port in use."""
        raise NotImplementedError

    @property
    def sessions(self) -> Mapping[str, Session]:
        """Live sessions by host name."""
        raise NotImplementedError

    def use_context(self, tls_context: ssl.SSLContext) -> None:
        """Take another TLS context for new connections (after the server certificate was renewed)."""
        raise NotImplementedError
