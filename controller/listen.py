"""The API's sockets: a unix socket guarded by file permission, TCP guarded by a bearer token."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from controller.errors import Problem, Refused

BACKLOG = 256
GRACE_S = 3                                 # for requests under way when the controller ends


class AddressTaken(Exception):
    """Somebody listens there already, or the address is not ours to listen on."""


class ApiServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the controller's process has them."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none",
                                        timeout_graceful_shutdown=GRACE_S, server_header=False))
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer, and say so."""
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def unix_socket(path: Path) -> socket.socket:
    """Listen on `path`, for its owner only. A socket that a dead controller left is replaced in one step.

    Raises:
        AddressTaken: a living process listens there, or something else is in the way.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.exists() or path.is_symlink():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AddressTaken(f"{path} is not a socket; remove it, or give another path for the API")
        if _answers(path):
            raise AddressTaken(f"another controller answers at {path}; stop it, or give another path for the API")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(beside))
        beside.chmod(0o600)                 # before anyone can connect: it does not listen yet
        listener.listen(BACKLOG)
        listener.setblocking(False)
        beside.replace(path)
    except OSError as error:
        listener.close()
        beside.unlink(missing_ok=True)
        raise AddressTaken(f"cannot listen on {path}: {error}; a path has at most 107 characters") from error
    return listener


def remove_socket(path: Path, listener: socket.socket) -> None:
    """Take the file of our socket away, unless a later controller has replaced it."""
    if path.is_socket() and not _answers(path):
        path.unlink(missing_ok=True)


def tcp_socket(address: str) -> socket.socket:
    """Listen on `ADDR:PORT`.

    Raises:
        AddressTaken: it is in use, or not an address of this host.
    """
    host, _, port = address.rpartition(":")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)
    except (OSError, ValueError, OverflowError) as error:
        raise AddressTaken(f"cannot listen on {address!r}: {error}; give ADDR:PORT of this host") from error
    listener.setblocking(False)
    return listener


def api_token(path: Path) -> str:
    """The bearer token for TCP, from its file; made at first start, readable for the owner only."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        token = path.read_text().strip()
        if token:
            return token
        path.unlink()                       # a start that was cut off before it wrote
        return api_token(path)
    with os.fdopen(descriptor, "w") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token


def guarded(app: ASGIApp, token: str) -> ASGIApp:
    """The application, for those who show the bearer token (RFC 6750)."""
    expected = f"Bearer {token}".encode()

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not hmac.compare_digest(
                dict(scope["headers"]).get(b"authorization", b""), expected):
            problem = Problem("unauthorized", "no or wrong bearer token", "Authorization", "",
                              "set SLUICE_API_TOKEN to the text in api-token of the controller's state folder")
            answer = JSONResponse(Refused(problem).body(), 401, headers={"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, send)
            return
        await app(scope, receive, send)

    return guard


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True                     # busy or not ours: do not touch it
        return True


__all__ = ["AddressTaken", "ApiServer", "api_token", "guarded", "remove_socket", "tcp_socket", "unix_socket"]
