"""Samples to rows, rows to ratios. A ratio is taken round by round, so that what slows a whole round cancels out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

__all__ = ["BASES", "METRICS", "Key", "Metric", "Results", "Sample", "Spread"]


@dataclass(frozen=True, slots=True)
class Metric:
    """How a reading is called and counted."""

    title: str
    unit: str
    less_is_better: bool = False
    digits: int = 0


METRICS: Mapping[str, Metric] = {
    "tcp_gbps": Metric("TCP throughput", "Gbit/s", digits=2),
    "tcp_rr_per_s": Metric("TCP round trips", "1/s"),
    "tcp_p50_us": Metric("TCP round trip, median", "µs", True, 1),
    "tcp_p99_us": Metric("TCP round trip, 99 %", "µs", True, 1),
    "udp_rr_per_s": Metric("UDP round trips", "1/s"),
    "udp_p50_us": Metric("UDP round trip, median", "µs", True, 1),
    "udp_p99_us": Metric("UDP round trip, 99 %", "µs", True, 1),
    "packets_per_s": Metric("64-byte packets", "1/s"),
    "packet_cpu_ns": Metric("processor time a packet", "ns", True),
    "packet_bpf_ns": Metric("of that in BPF programs", "ns", True),
    "crr_per_s": Metric("new connections", "1/s"),
    "crr_cpu_us": Metric("processor time a connection", "µs", True, 1),
    "docker_run_ms": Metric("docker run --rm", "ms", True, 1),
    "cni_add_ms": Metric("ADD with a mapped port", "ms", True, 1),
    "cni_del_ms": Metric("DEL", "ms", True, 1),
    "hit_ns": Metric("flow hit", "ns", True),
    "hit_rewrite_ns": Metric("flow hit, rewrite", "ns", True),
    "nat_out_hit_ns": Metric("hit, outbound", "ns", True),
    "nat_in_hit_ns": Metric("hit, by a mapping", "ns", True),
    "nat_first_ns": Metric("first packet, outbound", "ns", True),
    "first_packet_ns": Metric("first packet", "ns", True),
    "mapped_hit_ns": Metric("flow hit", "ns", True),
    "mapped_first_ns": Metric("first packet, to ten of them", "ns", True),
    "mapped_spread_ns": Metric("first packet, to all of them", "ns", True),
    "remotes_receipt_s": Metric("from receipt to the kernel", "s", True, 2),
    "remotes_receipt_cpu_s": Metric("processor time of that", "s", True, 2),
    "remotes_change_ms": Metric("one moves", "ms", True, 1),
    "remotes_change_cpu_ms": Metric("processor time of that", "ms", True, 1),
    "remotes_kernel_bytes": Metric("kernel memory of an address", "bytes", True),
    "remotes_receipt_s_dual": Metric("with IPv6: from receipt to the kernel", "s", True, 2),
    "remotes_receipt_cpu_s_dual": Metric("processor time of that", "s", True, 2),
    "remotes_change_ms_dual": Metric("one moves", "ms", True, 1),
    "remotes_change_cpu_ms_dual": Metric("processor time of that", "ms", True, 1),
    "remotes_kernel_bytes_dual": Metric("kernel memory of an address", "bytes", True),
}


BASES: Mapping[str, str] = {"same-host": "raw", "cross-host": "vxlan", "containers": "docker", "cni": "reference"}
"""Whose ratio to others is shown, by case: what costs nothing but the links, and VXLAN."""


@dataclass(frozen=True, slots=True)
class Key:
    """What is measured. `layers` 0: those of a usual endpoint."""

    case: str
    metric: str
    subject: str
    rules: int
    layers: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of one round."""

    key: Key
    round: int
    value: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of the rounds."""

    median: float
    low: float
    high: float
    rounds: int


class Results:
    """All samples of a run."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._values: dict[Key, dict[int, float]] = defaultdict(dict)
        for sample in samples:
            self._values[sample.key][sample.round] = sample.value

    def keys(self, case: str | None = None) -> list[Key]:
        """In the order they first came; of one case, or all."""
        return [key for key in self._values if case in (None, key.case)]

    def spread(self, key: Key) -> Spread | None:
        """None: never read."""
        return _spread(list(self._values[key].values())) if key in self._values else None

    def values(self, key: Key) -> list[float]:
        """The readings, by round."""
        return [value for _, value in sorted(self._values[key].items())]

    def ratio(self, key: Key, to: Key) -> Spread | None:
        """How much better `key` did than `to`: above 1 is better, whichever way the metric counts.

        None: they have no round in common.
        """
        if key not in self._values or to not in self._values:
            return None
        own, other = self._values[key], self._values[to]
        if METRICS[key.metric].less_is_better:
            own, other = other, own
        shared = [number for number in own if other.get(number)]
        return _spread([own[number] / other[number] for number in shared]) if shared else None


def _spread(values: list[float]) -> Spread | None:
    return Spread(median(values), min(values), max(values), len(values)) if values else None
