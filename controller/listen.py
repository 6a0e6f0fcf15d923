"""The API's sockets: a unix socket guarded by file permission, TCP guarded by a bearer token."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import socket
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
