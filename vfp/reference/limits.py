"""Packets a second that ports may send and get: a token bucket, kept as the time until when it is empty."""

from __future__ import annotations

from vfp.limits import RATE_SHIFT, bucket
from vfp.model import Rate


class Buckets:
    """Those of all ports, each way."""

    def __init__(self) -> None:
        self._until: dict[tuple[int, str], int] = {}

    def forget(self, port: int) -> None:
        """The id is another port's."""
        self._until = {key: until for key, until in self._until.items() if key[0] != port}

    def take(self, port: int, way: str, rate: Rate | None, now_s: float) -> bool:
        """Whether a packet may pass; if so, what it costs is taken."""
        if rate is None:
            return True
        now = int(now_s * 1e9) << RATE_SHIFT
        cost, burst = bucket(rate)
        ahead = max(self._until.get((port, way), now) - now, 0)
        if ahead > burst:
            return False
        self._until[port, way] = now + ahead + cost
        return True
