"""A token bucket, as the time until which it is spent."""

from __future__ import annotations

from dataclasses import dataclass

from vfp.model import Rate
from vfp.switching import bucket_ns

_NS = 1_000_000_000


@dataclass(slots=True)
class Bucket:
    """What of a rate was used."""

    until_ns: float = 0

    def take(self, rate: Rate, now_s: float) -> bool:
        """Whether there is one more; if so, it is gone."""
        cost, burst = bucket_ns(rate)
        now = now_s * _NS
        if self.until_ns > now + burst:
            return False
        self.until_ns = max(self.until_ns, now) + cost
        return True
