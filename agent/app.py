"""The agent's process: opens the kernel, applies what is on disk, then keeps up with controller and host.

SIGTERM and Ctrl-C end the process and nothing else: links, programs and flows stay, and the next agent adopts them.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from agent.asking import Asker
from agent.claims import Claims
from agent.egress import Egress
from agent.errors import AgentError, AlreadyRunning, WrongName
from agent.host import Host
from agent.inspect import Inspector
from agent.purge import purge_host
from agent.reconcile import Reconciler
from agent.record_file import RecordFile
from agent.runtimes_here import RuntimesHere
from agent.services import Services
from agent.session import Session
from agent.state import Disk
from agent.streams import Streams
from agent.worker import Worker
from inspection.dns import Clamp
from southbound.identity import Identity, load_identity
from vfp.datapath.engine import Datapath, Limits
from vfp.datapath.errors import DatapathError
from vfp.errors import PolicyError
from vfp.layout import Ring
from vfp.timeouts import Timeouts
from vswitch.switch import Switch

__all__ = ["Clamp", "Config", "purge", "run", "serve"]

_log = structlog.get_logger("agent")

REAP_EVERY_S = 1.0
SWEEP_EMPTY_S = 5.0         # until the next look at a table that had nothing in it: walking it costs the same
SWEEP_SHARE = 0.04          # of one core, at most, for looking at every flow
EXPIRE_EVERY_S = 5.0
_COPY_PAUSE_S = 0.01
_RINGS = {"drops": Ring.EVENTS, "capture": Ring.CAPTURES, "bindings": Ring.BINDINGS}    # by kind of stream
_DRAIN_PAUSE_S = 0.1        # between two emptyings of the event ring, so that a flood of drops costs little


@dataclass(frozen=True, slots=True)
class Config:
    """Where the agent keeps what. `name`: the host's; empty: that of the certificate."""

    state_dir: Path
    pin_dir: Path = Path("/sys/fs/bpf/sluice")
    name: str = ""
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    clamp: Clamp = field(default_factory=Clamp)     # how long addresses of domain names stay open
    nat_log: Path | None = None                     # where records of bindings are appended; None: nowhere
    socket: Path | None = None                      # where runtimes of this host ask; None: nowhere


Beside = Callable[[], Coroutine[Any, Any, None]]


def run(config: Config, *beside: Beside) -> None:
    """Run until SIGTERM or Ctrl-C. `beside`: what runs in the same loop, as long as the agent; plug-ins of runtimes.

    Raises:
        AgentError, IdentityError, DatapathError, VSwitchError: it cannot start, or cannot go on.
    """
    _log_to_stderr()
    asyncio.run(_until_told(serve(config, *beside)))


def purge(config: Config) -> list[str]:
    """Remove all that Sluice made on this host, a line for each thing; identity and certificate stay.

    Raises:
        AlreadyRunning: an agent uses the state directory; stop it first.
    """
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_one(config.state_dir):
        return purge_host(config.state_dir, config.pin_dir)


async def serve(config: Config, *beside: Beside) -> None:
    """Be the agent of this host until cancelled. The network namespace is that of the calling thread.

    Raises:
        AgentError, IdentityError, DatapathError, VSwitchError: it cannot start, or cannot go on.
    """
    identity = load_identity(config.state_dir / "identity")
    if config.name not in ("", identity.host):
        raise WrongName(
            f"this host is to be {config.name!r}, but its certificate in {identity.directory} is for"
            f" {identity.host!r}; leave --name out, or join again"
        )
    with ExitStack() as owned:
        owned.enter_context(_only_one(config.state_dir))
        disk = Disk(config.state_dir)
        switch = owned.enter_context(Switch(config.state_dir))
        datapath = owned.enter_context(Datapath.open(config.pin_dir, config.limits, config.timeouts))
        worker, ager = owned.enter_context(Worker()), owned.enter_context(Worker())
        egress = owned.enter_context(Egress(datapath, config.clamp))
        limits = config.limits
        reconciler = Reconciler(switch, datapath, disk, disk.load().ids, limits.ports, egress, config.timeouts,
                                limits.pools)
        services = Services(switch, worker, reconciler.paths, config.state_dir, datapath.mark())
        claims, asker = Claims(), Asker()
        host = Host(worker, switch, reconciler, disk, services=services, claims=claims)
        inspector = Inspector(
            identity.host, datapath, lambda: host.outcome.built if host.outcome else None,
            lambda: host.effective, lambda: host.overlaps, claims,
        )
        runtimes = RuntimesHere(identity.host, host, asker, config.state_dir, owned.enter_context(Worker()), switch)
        await runtimes.start()
        await host.start()
        besides = (runtimes.keep(config.socket), *(_guarded(each()) for each in beside))
        try:
            await _all(identity, host, inspector, datapath, worker, ager, egress, config.nat_log, asker, besides)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    """A plug-in that cannot go on is told, and ends nothing: an agent without it is an agent still."""
    try:
        await work
    except Exception:
        _log.exception("a plug-in ended; the agent goes on without it")


async def _all(
    identity: Identity, host: Host, inspector: Inspector, datapath: Datapath, worker: Worker, ager: Worker,
    egress: Egress, nat_log: Path | None, asker: Asker, besides: Sequence[Coroutine[Any, Any, None]],
) -> None:
    loop = asyncio.get_running_loop()

    async def set_capture(ports: frozenset[int], packet_bytes: int) -> None:
        await worker.run(datapath.capture, ports, packet_bytes)

    async def lost() -> dict[str, int]:
        return {kind: await worker.run(datapath.lost, ring) for kind, ring in _RINGS.items()}

    def tell(rows: list[dict[str, Any]], lost_events: int) -> None:    # in the worker's thread
        loop.call_soon_threadsafe(streams.drops, rows, lost_events)

    def listen() -> None:
        inspector.listener = tell if streams.follow_drops else None

    streams = Streams(inspector.programmed, set_capture, lost, listen)

    async def on_query(what: str, args: dict[str, Any]) -> Any:
        match what:
            case "follow":
                return await streams.follow(args)
            case "unfollow":
                return await streams.end(args)
            case "listeners":
                await host.look_around()
                return {"listeners": [list(each) for each in host.facts.listeners]}
        return await worker.run(inspector.answer, what, args)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Session(host, on_query, asker).keep(identity.directory))
        tasks.create_task(host.watch())
        tasks.create_task(host.listen())
        tasks.create_task(host.mend())
        tasks.create_task(host.retry())
        tasks.create_task(host.serve())
        tasks.create_task(host.follow_claims())
        tasks.create_task(_age(datapath, ager))
        tasks.create_task(_tidy(datapath, worker))
        tasks.create_task(_expire(egress, worker))
        tasks.create_task(_collect(inspector, datapath, worker))
        tasks.create_task(_copy(streams, datapath, worker))
        tasks.create_task(_record(streams, inspector, datapath, worker, nat_log))
        tasks.create_task(streams.keep())
        for beside in besides:
            tasks.create_task(beside)


async def _age(datapath: Datapath, ager: Worker) -> None:
    """Each second take out what has closed; look at every flow as often as that costs little. Never ends.

    A look at a million flows takes half a second of `ager`, a thread of its own: no change of policy waits for it.
    """
    failing = False
    next_sweep_s = 0.0
    while True:
        await asyncio.sleep(REAP_EVERY_S)
        try:
            await ager.run(datapath.reap)
            began_s = time.monotonic()
            if began_s >= next_sweep_s:
                busy_s, seen = await ager.run(_timed_sweep, datapath)
                next_sweep_s = began_s + max(busy_s / SWEEP_SHARE, 0.0 if seen else SWEEP_EMPTY_S)
            failing = False
        except DatapathError as error:
            if not failing:
                _log.error("ageing failed; flows stay longer than they should", error=str(error))
            failing = True


def _timed_sweep(datapath: Datapath) -> tuple[float, int]:
    """A look at every flow: seconds of this thread's time that it took, and how many flows and bindings there were."""
    began_s = time.thread_time()
    seen = datapath.age().seen
    return time.thread_time() - began_s, seen


async def _tidy(datapath: Datapath, worker: Worker) -> None:
    """Free what changes of policy have left behind. Never ends."""
    while True:
        await asyncio.sleep(REAP_EVERY_S)
        await worker.run(datapath.tidy)


async def _expire(egress: Egress, worker: Worker) -> None:
    """Close addresses of domain names whose time is over. Never ends."""
    while True:
        await asyncio.sleep(EXPIRE_EVERY_S)
        try:
            await worker.run(egress.expire)
        except (DatapathError, PolicyError) as error:
            _log.error("addresses of domain names stay longer than they should", error=str(error))


async def _collect(inspector: Inspector, datapath: Datapath, worker: Worker) -> None:
    """Take drop events as they come, so that the ring has room for the next. Never ends."""
    while True:
        await _readable(datapath.events_fd())
        await worker.run(inspector.collect)
        await asyncio.sleep(_DRAIN_PAUSE_S)


async def _copy(streams: Streams, datapath: Datapath, worker: Worker) -> None:
    """Take captured packets as they come. Never ends; without a capture there are none."""
    descriptor = await worker.run(datapath.captures_fd)
    while True:
        await _readable(descriptor)
        packets = await worker.run(datapath.read_captures)
        streams.captured(packets, await worker.run(datapath.lost, Ring.CAPTURES))
        await asyncio.sleep(_COPY_PAUSE_S)


async def _record(
    streams: Streams, inspector: Inspector, datapath: Datapath, worker: Worker, path: Path | None
) -> None:
    """Take records of bindings as they come, whether somebody follows or not: they are of now. Never ends."""
    descriptor = await worker.run(datapath.bindings_fd)
    file = RecordFile(path, await worker.run(datapath.lost, Ring.BINDINGS)) if path is not None else None
    while True:
        await _readable(descriptor)
        rows = await worker.run(inspector.read_bindings)
        lost = await worker.run(datapath.lost, Ring.BINDINGS)
        streams.bindings(rows, lost)
        if file is not None:
            await worker.run(file.write, rows, lost)
        await asyncio.sleep(_COPY_PAUSE_S)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


async def _until_told(work: Coroutine[Any, Any, None]) -> None:
    """Do `work` until it ends, or until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    told: list[str] = []

    def stop(which: signal.Signals) -> None:
        told.append(which.name)
        task.cancel()

    for which in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(which, stop, which)
    try:
        await task
    except asyncio.CancelledError:
        if not told:
            raise
        _log.info("agent ends; the data path stays", signal=told[0])
    except AgentError as error:
        _log.error("agent cannot go on", error=str(error))
        raise
    finally:
        for which in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(which)


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Hold the state directory; the lock goes with the process, however that ends."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"another agent uses {state_dir}; stop it first") from None
        yield
    finally:
        os.close(descriptor)


def _log_to_stderr() -> None:
    """Readable on a terminal, JSON elsewhere."""
    renderer: Any = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.dict_tracebacks,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
