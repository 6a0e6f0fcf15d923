"""The controller's process: store, certificate authority, southbound server, REST API.

`DIR/sluice.db` is the store, `DIR/pki` the CA, `DIR/api-token` the bearer token for TCP. SIGTERM and Ctrl-C end it
in order; a kill at any time loses nothing that was answered.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from starlette.types import ASGIApp

from controller.api import Controller, create_app
from controller.ledger import Ledger
from controller.listen import ApiServer, api_token, guarded, tcp_socket
from controller.pki import Pki
from controller.push import KEEPALIVE_S, Push
from controller.roaming import Roaming
from controller.status import Statuses
from controller.store import SqliteStore
from controller.watch import Watches
from southbound.listening import listen
from southbound.server import SouthboundServer

DEFAULT_NAMES = ("localhost", "127.0.0.1")
ANY_ADDRESSES = ("", "0.0.0.0", "::", "[::]")

_log = structlog.get_logger("controller")


class AlreadyRunning(Exception):
    """Another controller holds the state folder."""


@dataclass(frozen=True, slots=True)
class Config:
    """Where the controller keeps its state and where it listens.

    `api`: `unix:/path`. `listen`: ADDR:PORT for HTTP with a bearer token; empty: none. `southbound`: ADDR:PORT for
    agents; port 0: any. `names`: DNS names and addresses by which agents reach it, beside localhost and that address.
    """

    state_dir: Path
    api: str = "unix:/run/sluice/api.sock"
    listen: str = ""
    southbound: str = "0.0.0.0:7443"
    names: tuple[str, ...] = ()
    keepalive_s: float = KEEPALIVE_S


@dataclass(frozen=True, slots=True)
class Started:
    """What a started controller listens on. `listen_port` 0: no TCP."""

    southbound_port: int
    listen_port: int


def run(config: Config) -> None:
    """Run until SIGTERM or Ctrl-C.

    Raises:
        AlreadyRunning, PathTaken, AddressTaken, StoreError, PkiError, SouthboundError: it cannot start.
    """
    log_to_stderr()

    async def until_told() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for which in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(which, stop.set)
        await serve(config, stop)

    asyncio.run(until_told())


async def serve(config: Config, stop: asyncio.Event, started: Callable[[Started], None] | None = None) -> None:
    """Run until `stop` is set (or the task is cancelled). `started` is called when everything listens.

    Raises as `run` does.
    """
    if not config.api.startswith("unix:/"):
        raise ValueError(f"api: expected unix:/path, found {config.api!r}; use listen for TCP")
    address, _, port = config.southbound.rpartition(":")
    async with AsyncExitStack() as stack:
        stack.enter_context(_only_one(config.state_dir))
        pki = await asyncio.to_thread(Pki.open, config.state_dir / "pki", _names(config, address))
        store = await asyncio.to_thread(SqliteStore, config.state_dir / "sluice.db")
        ledger = Ledger(store)
        stack.push_async_callback(ledger.close)
        stack.push_async_callback(Roaming(ledger).close)
        controller = _assembled(ledger, pki)
        server = SouthboundServer(address.strip("[]"), int(port), pki.server_context(), controller.push,
                                  keepalive_s=config.keepalive_s)
        await stack.enter_async_context(server)
        app = create_app(controller)
        path = Path(config.api.removeprefix("unix:"))
        unix = listen(path, "controller", "--api")
        stack.callback(unix.remove)
        apis: list[tuple[ASGIApp, socket.socket]] = [(app, unix.socket)]
        listen_port = 0
        if config.listen:
            token = await asyncio.to_thread(api_token, config.state_dir / "api-token")
            tcp = tcp_socket(config.listen)
            stack.callback(tcp.close)
            apis.append((guarded(app, token), tcp))
            listen_port = tcp.getsockname()[1]
        await _serve_apis(apis, controller, stop, lambda: _ready(
            config, Started(server.port, listen_port), started))
    _log.info("controller ended")


def _assembled(ledger: Ledger, pki: Pki) -> Controller:
    push = Push(ledger, pki)                # listens to commits before the watches do: they show its view
    statuses = Statuses(ledger, push)
    watches = Watches(ledger, statuses)
    push.on_status.append(watches.status_moved)
    return Controller(ledger, push, statuses, watches, pki)


async def _serve_apis(apis: list[tuple[ASGIApp, socket.socket]], controller: Controller, stop: asyncio.Event,
                      ready: Callable[[], None]) -> None:
    """Serve until `stop`; then let requests end, close watches, and give up on what takes too long."""
    servers = [ApiServer(app) for app, _ in apis]
    tasks = [asyncio.create_task(server.serve(sockets=[listener]))
             for server, (_, listener) in zip(servers, apis, strict=True)]
    listening = asyncio.ensure_future(asyncio.gather(*(server.listening.wait() for server in servers)))
    stopped = asyncio.create_task(stop.wait())
    try:
        waited: list[asyncio.Future[Any]] = [listening, *tasks]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            ready()
            await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        listening.cancel()
        stopped.cancel()
        controller.watches.close()
        controller.follows.close()
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)


def _ready(config: Config, what: Started, started: Callable[[Started], None] | None) -> None:
    _log.info("controller ready", api=config.api, southbound_port=what.southbound_port,
              listen=config.listen or None, state=str(config.state_dir))
    if started is not None:
        started(what)


def _names(config: Config, address: str) -> tuple[str, ...]:
    """Names for the server's certificate: those given, its address, and those of this host."""
    own = () if address in ANY_ADDRESSES else (address.strip("[]"),)
    return tuple(dict.fromkeys((*config.names, *own, *DEFAULT_NAMES)))


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Hold the state folder; the lock goes with the process, however that ends."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"another controller uses {state_dir}; stop it first, or give another folder "
                                 "with --state") from None
        yield
    finally:
        os.close(descriptor)


def log_to_stderr() -> None:
    """Readable on a terminal, JSON elsewhere."""
    renderer: Any = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"),
                    structlog.processors.dict_tracebacks, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr))


__all__ = ["AlreadyRunning", "Config", "Started", "log_to_stderr", "run", "serve"]
