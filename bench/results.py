"""Samples to medians, medians to JSON and tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.table import Table

UNITS = {"tcp_gbps": "Gbit/s", "rr_us": "µs", "crr_per_s": "1/s", "ns_per_packet": "ns"}
LOWER_IS_BETTER = frozenset({"rr_us", "ns_per_packet"})
SUBJECTS = ("raw", "bridge", "iptables", "sluice")


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of one round."""

    case: str
    metric: str
    subject: str
    value: float


@dataclass(frozen=True, slots=True)
class Row:
    """All rounds of one reading: the shape of `--json`."""

    case: str
    metric: str
    unit: str
    subject: str
    median: float
    low: float
    high: float
    rounds: int


def summarise(samples: Iterable[Sample]) -> list[Row]:
    """One row for each case, metric and subject, in the order they first came."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for sample in samples:
        values[sample.case, sample.metric, sample.subject].append(sample.value)
    return [
        Row(case, metric, UNITS[metric], subject, median(read), min(read), max(read), len(read))
        for (case, metric, subject), read in values.items()
    ]


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Plain values."""
    return [asdict(row) for row in rows]


def ratio(rows: Iterable[Row], case: str, metric: str, subject: str, peer: str) -> float | None:
    """How much better `subject` is than `peer`: above 1 is better, whichever way the metric counts."""
    medians = {(row.case, row.metric, row.subject): row.median for row in rows}
    own, other = medians.get((case, metric, subject)), medians.get((case, metric, peer))
    if not own or not other:
        return None
    return other / own if metric in LOWER_IS_BETTER else own / other


def table(rows: list[Row]) -> Table:
    """Subjects side by side: median, spread, and Sluice's ratio to raw and to bridge with iptables."""
    found = {(row.case, row.metric, row.subject): row for row in rows}
    out = Table(title="median (low to high); ratios above 1 mean Sluice is better")
    out.add_column("case")
    out.add_column("metric")
    for subject in SUBJECTS:
        out.add_column(subject, justify="right")
    out.add_column("÷ raw", justify="right")
    out.add_column("÷ iptables", justify="right")
    for case, metric in dict.fromkeys((row.case, row.metric) for row in rows):
        cells = [_cell(found.get((case, metric, subject))) for subject in SUBJECTS]
        ratios = [ratio(rows, case, metric, "sluice", peer) for peer in ("raw", "iptables")]
        out.add_row(
            case, f"{metric} [{UNITS[metric]}]", *cells, *("" if value is None else f"{value:.2f}" for value in ratios)
        )
    return out


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    digits = 1 if row.median < 1000 else 0
    return f"{row.median:.{digits}f}\n({row.low:.{digits}f} to {row.high:.{digits}f})"
