"""What can keep an agent from running. Each says what was found and what to do."""

from __future__ import annotations

from southbound.errors import QueryRefused

__all__ = ["AgentError", "AlreadyRunning", "BadQuery", "WrongName"]


class AgentError(Exception):
    """Root of the tree."""


class AlreadyRunning(AgentError):
    """Another process has the state directory."""


class WrongName(AgentError):
    """The agent was started under a name that its certificate does not have."""


class BadQuery(AgentError, QueryRefused):
    """The controller asked for something this agent does not know; the text goes back as the answer's error."""
