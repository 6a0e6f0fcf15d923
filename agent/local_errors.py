"""What the local socket answers when it refuses: the same fields as a problem of the controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.errors import AgentError

__all__ = ["Away", "Refusal", "refusal_of"]

_CODES = {
    "not_found": "not_found", "outside": "outside", "forbidden": "forbidden", "exhausted": "exhausted",
    "in_use": "in_use", "overlap": "in_use", "unavailable": "unavailable", "store": "unavailable",
    "taken": "taken", "exists": "exists", "immutable": "exists",
}
_TAKEN = ("spec.address", "spec.address6", "spec.mac", "addresses")     # nobody else can have the same


class Refusal(AgentError):
    """An operation that was not done; nothing of it is left. `code`: see `runtimes.local.LocalError`."""

    def __init__(self, code: str, message: str, field: str = "", found: str = "", todo: str = "") -> None:
        self.code, self.message, self.field, self.found, self.todo = code, message, field, found, todo
        super().__init__(f"{field}: {message}" if field else message)

    def to_json(self) -> dict[str, str]:
        """As it goes over the socket."""
        return {"code": self.code, "message": self.message, "field": self.field, "found": self.found,
                "todo": self.todo}


class Away(AgentError):
    """The controller cannot be asked, or did not answer: whether it did what was asked is not known."""


def refusal_of(problems: Sequence[Mapping[str, Any]]) -> Refusal:
    """What the controller refused, as the runtime is told: the first problem, which is the cause of the others."""
    first = problems[0]
    code, field = str(first.get("code", "")), str(first.get("field", ""))
    known = "not_found" if code.startswith("unknown_") and code != "unknown_field" else _CODES.get(code, "invalid")
    if known == "in_use" and field in _TAKEN:
        known = "taken"
    resource = str(first.get("resource", ""))
    message = str(first.get("message", ""))
    if resource and resource not in message:
        message = f"{resource}: {message}"
    return Refusal(known, message, field, str(first.get("found", "")), str(first.get("todo", "")))
