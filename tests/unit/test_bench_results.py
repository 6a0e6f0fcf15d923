"""Samples become medians and ratios that read the same way for every metric; promises are judged by them."""

from __future__ import annotations

from dataclasses import replace

from bench.report import CASES, Absence, Run, as_json, markdown
from bench.results import METRICS, Key, Results, Sample, Spread
from bench.targets import TARGETS, outcomes

KEY = Key("same-host", "tcp_gbps", "sluice", 20)
RAW = replace(KEY, subject="raw")


def _samples(key: Key, *values: float) -> list[Sample]:
    return [Sample(key, number, value) for number, value in enumerate(values)]


def test_a_row_has_median_spread_and_number_of_rounds() -> None:
    results = Results(_samples(KEY, 3.0, 1.0, 2.0))
    assert results.spread(KEY) == Spread(2.0, 1.0, 3.0, 3)
    assert results.values(KEY) == [3.0, 1.0, 2.0]
    assert results.spread(RAW) is None


def test_a_ratio_is_taken_round_by_round_so_that_a_slow_round_cancels_out() -> None:
    results = Results([*_samples(KEY, 10.0, 5.0, 10.0), *_samples(RAW, 20.0, 10.0, 20.0)])
    assert results.ratio(KEY, RAW) == Spread(0.5, 0.5, 0.5, 3)


def test_a_ratio_uses_the_rounds_that_both_have() -> None:
    results = Results([*_samples(KEY, 10.0, 9.0), *_samples(RAW, 20.0)])
    assert results.ratio(KEY, RAW) == Spread(0.5, 0.5, 0.5, 1)
    assert results.ratio(KEY, replace(KEY, subject="docker")) is None


def test_a_ratio_above_one_is_better_also_where_less_is_more() -> None:
    own, raw = replace(KEY, metric="tcp_p50_us"), replace(RAW, metric="tcp_p50_us")
    ratio = Results([*_samples(own, 5.0), *_samples(raw, 10.0)]).ratio(own, raw)
    assert ratio is not None
    assert ratio.median == 2.0


def _outcome(text: str, *samples: Sample) -> tuple[float | None, bool | None]:
    (found,) = [each for each in outcomes(Results(samples)) if each.target.text == text]
    return (found.reached.median if found.reached else None), found.is_met


def test_a_promise_against_a_peer_is_met_missed_or_not_measured() -> None:
    text = "same host, TCP throughput ÷ raw veth"
    assert _outcome(text, *_samples(KEY, 9.7), *_samples(RAW, 10.0)) == (0.97, True)
    assert _outcome(text, *_samples(KEY, 9.6), *_samples(RAW, 10.0)) == (0.96, False)
    assert _outcome(text, *_samples(KEY, 9.6)) == (None, None)


def test_a_promise_to_be_flat_compares_most_rules_with_fewest() -> None:
    few = Key("scale", "crr_per_s", "sluice", 20)
    text = "new connections, 100k rules ÷ 20 rules"
    assert _outcome(text, *_samples(few, 100.0), *_samples(replace(few, rules=100_000), 96.0)) == (0.96, True)


def test_a_promised_cost_is_judged_by_the_worst_policy() -> None:
    key = Key("engine", "hit_ns", "sluice", 20, 1)
    text = "flow hit, worst of all rules and layers"
    worst = replace(key, rules=100_000, layers=10)
    assert _outcome(text, *_samples(key, 60.0), *_samples(worst, 119.0)) == (119.0, True)
    assert _outcome(text, *_samples(key, 60.0), *_samples(worst, 121.0)) == (121.0, False)


def test_every_promise_against_a_peer_names_a_case_and_a_metric_that_exist() -> None:
    named = [target.beside for target in TARGETS if target.beside]
    assert len(named) == 11
    assert all(case in CASES and metric in METRICS for case, metric, _ in named)


def _run(*samples: Sample) -> Run:
    return Run({"kernel": "Linux"}, 1, 1.0, Results(samples), [Absence("same-host", "ovs", "", "no\nroom")])


def test_json_has_every_reading_ratio_promise_and_absence() -> None:
    told = as_json(_run(*_samples(KEY, 5.0, 6.0), *_samples(RAW, 10.0, 10.0)))
    row = told["rows"][0]
    assert (row["case"], row["subject"], row["rules"], row["values"]) == ("same-host", "sluice", 20, [5.0, 6.0])
    assert row["ratio_to_raw"] == {"median": 0.55, "low": 0.5, "high": 0.6, "rounds": 2}
    assert told["targets"][0]["met"] is False
    assert told["absent"] == [{"case": "same-host", "subject": "ovs", "reading": "", "reason": "no\nroom"}]


def test_the_page_shows_values_ratios_promises_and_what_is_absent() -> None:
    page = markdown(_run(*_samples(RAW, 10.0), *_samples(KEY, 9.9)), "latest.png")
    assert "| TCP throughput [Gbit/s] | 10.00 | 9.90 |" in page
    assert "| TCP throughput | 0.99 |" in page
    assert "| same host, TCP throughput ÷ raw veth | ≥ 0.97 | 0.99 | met |" in page
    assert "| same-host | Open vSwitch | all | no room |" in page
    assert "latest.png" in page


def test_the_page_has_a_row_for_each_number_of_rules_and_layers() -> None:
    page = markdown(_run(*_samples(Key("engine", "hit_ns", "sluice", 100_000, 10), 51.0, 50.0, 53.0)))
    assert "| Sluice | 100,000 | 10 | 51 (50 to 53) |" in page
