"""Samples become medians and ratios that read the same way for every metric."""

from __future__ import annotations

from bench.results import Row, Sample, as_json, ratio, summarise


def _samples(metric: str, **subjects: list[float]) -> list[Sample]:
    return [Sample("same-host", metric, subject, value) for subject, values in subjects.items() for value in values]


def test_a_row_has_median_spread_and_number_of_rounds() -> None:
    rows = summarise(_samples("tcp_gbps", sluice=[3.0, 1.0, 2.0]))
    assert rows == [Row("same-host", "tcp_gbps", "Gbit/s", "sluice", 2.0, 1.0, 3.0, 3)]
    assert as_json(rows)[0] == {
        "case": "same-host", "metric": "tcp_gbps", "unit": "Gbit/s", "subject": "sluice", "median": 2.0, "low": 1.0,
        "high": 3.0, "rounds": 3,
    }


def test_a_ratio_above_one_is_better_also_where_less_is_more() -> None:
    rows = summarise([*_samples("tcp_gbps", raw=[10.0], sluice=[20.0]), *_samples("rr_us", raw=[10.0], sluice=[5.0])])
    assert ratio(rows, "same-host", "tcp_gbps", "sluice", "raw") == 2.0
    assert ratio(rows, "same-host", "rr_us", "sluice", "raw") == 2.0
    assert ratio(rows, "same-host", "crr_per_s", "sluice", "raw") is None
