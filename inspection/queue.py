"""One NFQUEUE, served by a thread of its own in the inspect namespace: packets to an inspector, its verdicts back.

The order of packets is kept: one at a time is inspected, and the thread stays on one CPU, for a packet that it lets go
waits on that CPU's backlog. An inspector that raises has not let the packet pass: it is dropped, and the error logged.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, cast

import structlog
from netfilterqueue import NetfilterQueue
from netfilterqueue import Packet as QueuedPacket

from inspection.packet import Packet, Unparsable, parse

__all__ = ["Accept", "Drop", "Inspector", "Queue", "QueueCounts", "QueueError", "Release", "Rewrite", "Verdict"]

_log = structlog.get_logger("inspection")

RELEASE_MARK = 1 << 31                      # twin of INSPECT_RELEASE in vfp/bpf/inspect.h
DEPTH = 4096                                # packets that wait; more are dropped by the kernel, and counted
SOCKET_BYTES = 8 << 20
START_WITHIN_S = 5.0
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class QueueError(Exception):
    """The queue cannot be served; the text says which, what was found and what to do."""


@dataclass(frozen=True, slots=True)
class Accept:
    """The packet goes on as it is."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The packet ends here."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The packet goes on with another payload. That of TCP must keep its length."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Release:
    """The packet goes on, and so does the rest of its flow, without being shown: those already queued still are."""


Verdict = Accept | Drop | Rewrite | Release


class Inspector(Protocol):
    """Decides about packets, one at a time, in the queue's thread. What takes long holds up all that is queued."""

    def inspect(self, packet: Packet) -> Verdict:
        """What becomes of a packet. Raising drops it."""


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """Verdicts since the queue was opened. `failed`: drops for want of one."""

    accepted: int = 0
    dropped: int = 0
    rewritten: int = 0
    released: int = 0
    failed: int = 0


class Queue(AbstractContextManager["Queue"]):
    """Serves queue `number` of a namespace until closed."""

    def __init__(self, namespace: Path, number: int, inspector: Inspector) -> None:
        """Start to listen; packets are served when this returns.

        Raises:
            QueueError: no such namespace, no right to enter it, or another process has the queue.
        """
        self.number = number
        self._namespace = namespace
        self._inspector = inspector
        self._counts = QueueCounts()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopping = False
        self._ready = threading.Event()
        self._error: Exception | None = None
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._serve, name=f"sluice-queue-{number}", daemon=True)
        self._thread.start()
        self._ready.wait(START_WITHIN_S)
        if self._error is not None or not self._ready.is_set():
            error = self._error or TimeoutError(f"no answer in {START_WITHIN_S:g} s")
            self.close()
            raise QueueError(f"queue {number} in {namespace}: {error}") from error

    @property
    def counts(self) -> QueueCounts:
        """Verdicts so far."""
        return self._counts

    @property
    def listening(self) -> bool:
        """Whether packets are served."""
        return self._ready.is_set() and self._thread.is_alive() and self._error is None

    def close(self) -> None:
        """Stop listening; what is queued is dropped by the kernel. Idempotent."""
        self._stopping = True
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            os.close(self._wake)
            self._wake = -1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # In the thread

    def _serve(self) -> None:
        try:
            _enter(self._namespace)
            _stay_on_one_cpu(self.number)
            with _bound(self.number, self._take) as queue:
                self._ready.set()
                self._loop(queue)
        except Exception as error:
            self._error = error
            if self._ready.is_set():
                _log.exception("queue is no longer served", queue=self.number)
            self._ready.set()

    def _loop(self, queue: NetfilterQueue) -> None:
        source = _Source(queue.get_fd(), self)
        poll = select.poll()
        poll.register(source.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        with source:
            while not self._stopping:
                poll.poll()
                queue.run_socket(cast("socket.socket", source))     # it calls `recv` only

    def _take(self, queued: QueuedPacket) -> None:
        try:
            packet = parse(queued.get_mark(), queued.get_payload())
            verdict = self._inspector.inspect(packet)
            if isinstance(verdict, Rewrite):
                queued.set_payload(packet.with_payload(verdict.payload))
        except Unparsable as error:
            self._fail(queued, str(error))
        except Exception as error:
            self._fail(queued, f"{type(error).__name__}: {error}", trace=True)
        else:
            self._let(queued, verdict)

    def _fail(self, queued: QueuedPacket, why: str, trace: bool = False) -> None:
        queued.drop()
        self._counts = replace(self._counts, failed=self._counts.failed + 1)
        if why not in self._told:           # a flood of one error is told once
            self._told = {*self._told, why} if len(self._told) < 100 else {why}
            _log.error("packet dropped: the inspector failed", queue=self.number, error=why, exc_info=trace)

    def _let(self, queued: QueuedPacket, verdict: Verdict) -> None:
        counts = self._counts
        match verdict:
            case Drop():
                self._counts = replace(counts, dropped=counts.dropped + 1)
                queued.drop()
                return
            case Accept():
                self._counts = replace(counts, accepted=counts.accepted + 1)
            case Rewrite():
                self._counts = replace(counts, rewritten=counts.rewritten + 1)
            case Release():
                self._counts = replace(counts, released=counts.released + 1)
                queued.set_mark(queued.get_mark() | RELEASE_MARK)
        queued.accept()


class _Source:
    """What `NetfilterQueue.run_socket` reads from: until nothing is there, or the queue is to stop."""

    def __init__(self, descriptor: int, queue: Queue) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._socket.setblocking(False)
        self._queue = queue

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv(self, size: int) -> bytes:
        if self._queue._stopping:
            raise BlockingIOError(errno.EAGAIN, "stopping")
        return self._socket.recv(size)

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@contextmanager
def _bound(number: int, take: Callable[[QueuedPacket], None]) -> Iterator[NetfilterQueue]:
    queue = NetfilterQueue()
    try:
        try:
            queue.bind(number, take, max_len=DEPTH, sock_len=SOCKET_BYTES)
        except OSError as error:
            raise OSError(f"{error} Another process serves it, or the right to do so lacks.") from None
        yield queue
    finally:
        queue.unbind()


def _enter(namespace: Path) -> None:
    with namespace.open() as file:
        if _libc.setns(file.fileno(), _CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(namespace))


def _stay_on_one_cpu(number: int) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[number % len(cpus)]})     # of this thread
