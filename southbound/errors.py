"""The exceptions of the southbound protocol. Each says what was asked, what was found and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "ConnectionLost",
    "HelloRefused",
    "IdentityError",
    "JoinFailed",
    "JoinRefused",
    "ProtocolError",
    "QueryFailed",
    "QueryRefused",
    "RequestRefused",
    "SessionClosed",
    "SessionRefused",
    "SouthboundError",
    "TokenError",
    "Unreachable",
    "UntrustedController",
]


class SouthboundError(Exception):
    """Anything that went wrong between controller and agent."""


class ProtocolError(SouthboundError):
    """Bytes or a message that protocol version 1 does not have.

    Attributes:
        message: name of the message (`Hello`), `frame`, or empty when it is not known yet.
        field: path of the offending field (`facts.addresses[3]`), or empty.
        found: what was there, shortened.
    """

    def __init__(self, problem: str, *, message: str = "", field: str = "", found: str = "") -> None:
        place = ".".join(part for part in (message, field) if part)
        text = f"{place}: {problem}" if place else problem
        super().__init__(f"{text}; found {found}" if found else text)
        self.message = message
        self.field = field
        self.found = found


class ConnectionLost(SouthboundError):
    """The peer went away, fell silent, or does not read what it is sent."""


class SessionClosed(SouthboundError):
    """The session has ended; nothing more can be sent on it."""


class QueryFailed(SouthboundError):
    """A `Query` had no good answer: the agent's error, the deadline, or the end of the session."""


class JoinRefused(SouthboundError):
    """Raised by the controller's `on_join`; its text is told to the joining host: no secrets in it."""


class HelloRefused(SouthboundError):
    """Raised by the controller's `on_hello`; its text is what the agent is told."""


class QueryRefused(SouthboundError):
    """Raised by the agent's `on_query` for a question that is itself wrong; its text is the answer's error."""


class RequestRefused(SouthboundError):
    """A `Request` that the controller refused. `problems`: as the REST API gives them, at least one."""

    def __init__(self, problems: Sequence[Mapping[str, Any]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem.get("message", "")) for problem in self.problems))


class SessionRefused(SouthboundError):
    """Agent side: the controller answered `Refused`, or its TLS did not accept our certificate."""


class Unreachable(SouthboundError):
    """No TLS connection to the controller came about: name, route, port or time."""


class UntrustedController(SouthboundError):
    """Who answered is not the controller we know: other CA, other name, expired certificate."""


class IdentityError(SouthboundError):
    """The identity directory is missing, incomplete or contradicts itself."""


class TokenError(SouthboundError):
    """Text that is not a join token."""


class JoinFailed(SouthboundError):
    """`join` did not succeed: the controller's reason, or what is wrong with what it sent."""
