"""The agent's local socket: a line of JSON each way, for the plug-ins of container runtimes and for people.

An operation goes on when its asker hangs up: it is done, or undone, and a repetition finds out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from agent.attach_words import Arguments
from agent.errors import AgentError
from agent.local_errors import Away, Refusal
from southbound.listening import PathTaken, listen

__all__ = ["LocalServer", "SocketTaken"]

_log = structlog.get_logger("agent")

MAX_LINE_BYTES = 1 << 20
MAX_CONNECTIONS = 256
MAX_LINES_SKIPPED, SKIP_S = 64, 2.0         # of a request that is too long
OPERATION_S = 6.0                           # for doing; undoing has the rest of the 8 s

Operation = Callable[[Arguments], Awaitable[dict[str, Any]]]


class SocketTaken(AgentError):
    """Another process listens there, or the path cannot be used."""


class LocalServer:
    """Answers on one Unix socket. `operations`: by name."""

    def __init__(self, path: Path, operations: Mapping[str, Operation]) -> None:
        self._path = path
        self._operations = operations
        self._connections = 0
        self._running: set[asyncio.Task[dict[str, Any]]] = set()

    async def serve(self) -> None:
        """Answer. Never ends; when it is cancelled, the socket goes.

        Raises:
            SocketTaken
        """
        try:
            listening = listen(self._path, "agent", "--socket")
        except PathTaken as error:
            raise SocketTaken(str(error)) from error
        server = await asyncio.start_unix_server(self._talk, sock=listening.socket, limit=MAX_LINE_BYTES)
        _log.info("local socket answers", socket=str(self._path))
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            listening.remove()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            while line := await self._line(reader):
                answer = await self.answer(line)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except _Unreadable as error:
            with suppress(OSError):
                writer.write(json.dumps({"error": error.refusal.to_json()}).encode() + b"\n")
                await writer.drain()
        except OSError:
            pass                            # the asker hung up
        finally:
            self._connections -= 1
            writer.close()

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        if self._connections > MAX_CONNECTIONS:
            raise _Unreadable(Refusal("exhausted", f"{MAX_CONNECTIONS} connections are open", "socket",
                                      str(self._path), "close some, and try again"))
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            line = error.partial            # without its end: the asker went, or forgot it
        except asyncio.LimitOverrunError:
            await _skip(reader)
            raise _Unreadable(Refusal("invalid", f"the request is longer than {MAX_LINE_BYTES} bytes", "", "",
                                      "ask for less")) from None
        return line

    async def answer(self, line: bytes) -> dict[str, Any]:
        """The answer to one request."""
        try:
            operation, arguments = self._read(line)
            work = asyncio.create_task(self._do(operation, arguments))
            self._running.add(work)
            work.add_done_callback(self._running.discard)
            return {"ok": await asyncio.shield(work)}
        except Refusal as error:
            return {"error": error.to_json()}
        except Away as error:
            return {"error": Refusal("unavailable", str(error), todo="start the controller, or try again later"
                                     ).to_json()}
        except Exception as error:          # a bug; the asker is told, and others are served
            _log.exception("operation failed", request=line[:200])
            return {"error": Refusal("failed", f"{type(error).__name__}: {error}", todo="see the agent's log"
                                     ).to_json()}

    def _read(self, line: bytes) -> tuple[Operation, Arguments]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Refusal("invalid", f"the request is not JSON: {error}", "", line[:40].decode(errors="replace"),
                          "send one object a line") from None
        if not isinstance(request, dict):
            raise Refusal("invalid", "the request is not an object", "", str(request)[:40], "send one object a line")
        op = request.get("op")
        operation = self._operations.get(op) if isinstance(op, str) else None
        if operation is None:
            raise Refusal("invalid", "there is no such operation", "op", str(op)[:40],
                          f"use one of {', '.join(sorted(self._operations))}")
        return operation, Arguments(str(op), request)

    async def _do(self, operation: Operation, arguments: Arguments) -> dict[str, Any]:
        try:
            async with asyncio.timeout(OPERATION_S):
                return await operation(arguments)
        except TimeoutError:
            raise Refusal("timeout", f"{arguments.op} was not done within {OPERATION_S:g} s, and is undone",
                          todo="see the agent's log, and try again") from None


async def _skip(reader: asyncio.StreamReader) -> None:
    """Read on to the end of the line, so that the asker hears the answer: one who cannot send does not listen."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SKIP_S):
            for _ in range(MAX_LINES_SKIPPED):
                chunk = await reader.read(MAX_LINE_BYTES)
                if not chunk or b"\n" in chunk:
                    return


class _Unreadable(Exception):
    """What came is no request, and what follows cannot be told from it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal
