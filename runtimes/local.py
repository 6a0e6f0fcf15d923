"""The agent's local socket, from the side of a runtime's plug-in. Standard library only: `sluice-cni` starts fast.

A line of JSON each way over a Unix stream socket: `{"op": "attach", ...}` is answered with `{"ok": {...}}` or with
`{"error": {"code", "message", "field", "found", "todo"}}`. docs/runtimes.md has the operations.
"""

from __future__ import annotations

import os

from runtimes.lean import dumps, exchange, loads

TYPE_CHECKING = False                       # see runtimes.lean
if TYPE_CHECKING:
    from typing import Any

SOCKET = "/run/sluice/agent.sock"
SOCKET_VARIABLE = "SLUICE_AGENT"            # its path, if it is another
DEADLINE_S = 10.0                           # the agent gives up, and undoes, before this
MAX_LINE_BYTES = 1 << 20


class LocalError(Exception):
    """The agent refused, or cannot be asked. Nothing was changed, unless `code` is `lost`.

    `code`: invalid, not_found, exists, taken, outside, forbidden, exhausted, in_use, gone (the namespace), failed (the
    kernel), unavailable (the controller is away and no lease helps), timeout, absent (no agent), lost (it went away).
    """

    def __init__(self, code: str, message: str, field: str = "", found: str = "", todo: str = "") -> None:
        self.code, self.message, self.field, self.found, self.todo = code, message, field, found, todo
        super().__init__(self.text)

    @property
    def text(self) -> str:
        """Field, what is wrong, what was found, what to do, in one line."""
        text = f"{self.field}: {self.message}" if self.field else self.message
        if self.found and self.found not in text:
            text += f" (found: {self.found})"
        return f"{text}; {self.todo}" if self.todo else text


def call(op: str, path: str = "", deadline_s: float = DEADLINE_S, **arguments: Any) -> dict[str, Any]:
    """One operation over a connection of its own. Arguments that are None are left out.

    Raises:
        LocalError
    """
    where = path or os.environ.get(SOCKET_VARIABLE, SOCKET)
    request = {"op": op, **{name: value for name, value in arguments.items() if value is not None}}
    try:
        line = exchange(where, dumps(request), deadline_s, MAX_LINE_BYTES)
    except ConnectionAbortedError as error:
        raise LocalError("absent", "no agent answers", "socket", f"{where}: {error.strerror}",
                         "start it: `sluice agent run` or `sluice up`") from None
    except TimeoutError:
        raise LocalError("timeout", f"the agent did not answer {op} within {deadline_s:g} s",
                         todo="see its log") from None
    except OSError as error:
        raise LocalError("lost", f"the agent went away during {op}: {error}",
                         todo="repeat it: it is safe to") from None
    return result(line, op)


def result(line: bytes, op: str) -> dict[str, Any]:
    """What an answer says.

    Raises:
        LocalError
    """
    try:
        answer = loads(line)
    except ValueError:
        raise LocalError("lost", f"the agent went away during {op}", todo="repeat it: it is safe to") from None
    if "error" in answer:
        raise LocalError(**answer["error"])
    found: dict[str, Any] = answer["ok"]
    return found
