"""The agent's hold on user space inspection: one queue, served by the DNS inspector, in whichever detour stands now."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self

import structlog

from inspection.dns import Clamp, DnsEngine, DnsInspector, DomainRule
from inspection.names import NameInvalid
from inspection.queue import Queue, QueueError
from policy.contribution import DomainRule as Wanted
from policy.domains import DNS_QUEUE
from vswitch.links import Detour

__all__ = ["Egress", "EgressSeam", "NameInvalid", "QueueError"]

_log = structlog.get_logger("agent")


class EgressSeam(Protocol):
    """What reconciling needs of `Egress`."""

    def follow(self, detour: Detour) -> None: ...  # noqa: D102
    def configure(self, rules: Iterable[Wanted]) -> None: ...  # noqa: D102
    def stop(self) -> None: ...  # noqa: D102


class Egress:
    """Serves the DNS queue. Methods block for milliseconds; one thread calls them."""

    def __init__(self, engine: DnsEngine, clamp: Clamp | None = None) -> None:
        self._inspector = DnsInspector(engine, clamp)
        self._queue: Queue | None = None
        self._detour: Detour | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def follow(self, detour: Detour) -> None:
        """Listen there, if we do not yet.

        Raises:
            QueueError: another process does, or we may not.
        """
        if self._queue is not None and self._queue.listening and self._detour == detour:
            return
        self.stop()
        self._queue = Queue(detour.namespace, DNS_QUEUE, self._inspector)
        self._detour = detour
        _log.info("DNS is inspected", queue=DNS_QUEUE, namespace=detour.namespace.name)

    def configure(self, rules: Iterable[Wanted]) -> None:
        """The rules in force.

        Raises:
            NameInvalid: one has a name that is none.
        """
        by_port: dict[int, tuple[DomainRule, ...]] = {}
        for rule in rules:
            by_port[rule.port] = (*by_port.get(rule.port, ()), DomainRule(rule.set_id, rule.names))
        self._inspector.configure(by_port)

    def expire(self) -> int:
        """Close what was opened for addresses whose time is over; how many went."""
        return self._inspector.expire()

    def stop(self) -> None:
        """Listen no more. Idempotent."""
        if self._queue is not None:
            self._queue.close()
        self._queue = self._detour = None
