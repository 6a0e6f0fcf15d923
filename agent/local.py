"""The agent's local socket: a line of JSON each way, for the plug-ins of container runtimes and for people.

An operation goes on when its asker hangs up: it is done, or undone, and a repetition finds out.
"""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from agent.attach_words import Arguments
from agent.errors import AgentError
from agent.local_errors import Away, Refusal

__all__ = ["LocalServer", "SocketTaken"]

_log = structlog.get_logger("agent")

MAX_LINE_BYTES = 1 << 20
MAX_CONNECTIONS = 256
MAX_LINES_SKIPPED, SKIP_S = 64, 2.0         # of a request that is too long
OPERATION_S = 6.0                           # for doing; undoing has the rest of the 8 s
BACKLOG = 128

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
        listener = _listen(self._path)
        mine = self._path.stat()
        server = await asyncio.start_unix_server(self._talk, sock=listener, limit=MAX_LINE_BYTES)
        _log.info("local socket answers", socket=str(self._path))
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            with suppress(OSError):
                found = self._path.stat()
                if (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino):
                    self._path.unlink()     # not that of a later agent

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


def _listen(path: Path) -> socket.socket:
    """A socket for its owner only. One that a dead agent left is replaced in one step."""
    beside = path.with_name(f".{path.name}.new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.exists() or path.is_symlink():
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise SocketTaken(f"{path} is not a socket; remove it, or give another with --socket")
            if _answers(path):
                raise SocketTaken(f"another agent answers at {path}; stop it, or give another with --socket")
        beside.unlink(missing_ok=True)
        listener.bind(str(beside))
        beside.chmod(0o600)                 # before anyone can connect: it does not listen yet
        listener.listen(BACKLOG)
        listener.setblocking(False)
        beside.replace(path)
    except OSError as error:
        listener.close()
        raise SocketTaken(f"cannot listen on {path}: {error}; a path has at most 100 characters") from error
    except SocketTaken:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True                     # busy: do not touch it
        return True
