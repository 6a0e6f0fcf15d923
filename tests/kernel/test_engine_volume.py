"""The kernel's engine does what the reference does, in volume: verdict, reason, bytes, flow entries, ageing."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest
from engine_fuzz import workers

from tests.figures import FIGURES

PAIRS = 104_000
SEEDS = (20_000, 40_000)                    # one process each; the same cases every time
LEAST = PAIRS // 10_000                     # times that each outcome must come
UNHURRIED_S = 900                           # on a machine with other things to do


def test_a_hundred_thousand_packets_are_judged_alike(
        record_property: pytest.RecordProperty, pytestconfig: pytest.Config) -> None:
    begun_s = time.monotonic()
    running = workers(list(SEEDS), "--pairs", str(PAIRS // len(SEEDS)))
    try:
        answers = [process.communicate(timeout=UNHURRIED_S)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    for process, answer in zip(running, answers, strict=True):
        assert process.returncode == 0, f"exit status {process.returncode}: {answer}"
    told = [json.loads(answer) for answer in answers]
    pairs, seconds = sum(each["pairs"] for each in told), time.monotonic() - begun_s
    outcomes = Counter[str]()
    for each in told:
        outcomes.update(each["outcomes"])
    record_property("pairs", pairs)
    record_property("seconds", round(seconds, 1))
    pytestconfig.stash.setdefault(FIGURES, []).append(
        f"{pairs} (policy, packet) pairs compared in {seconds:.0f} s, {pairs / seconds:.0f} pairs/s")
    assert pairs >= 100_000
    _check_variety(outcomes)


def _check_variety(outcomes: Counter[str]) -> None:
    """Guards the generator: what it sends is judged in every way, and much of it gets through."""
    wanted = {
        "redirect_port", "redirect_uplink", "redirect_wire", "flood",
        "tunnel", "stack", "reply", "DENIED", "LAYER_DEFAULT", "WRONG_VTEP",
        "UNKNOWN_SOURCE", "FLOW_CHANGED", "TTL_EXCEEDED", "FRAGMENT_UNKNOWN", "ARP_UNANSWERED", "MALFORMED_IPV4",
        "MALFORMED_IPV6", "MALFORMED_ARP", "MALFORMED_ND", "MALFORMED_TRANSPORT", "FRAGMENT_TINY", "FRAGMENT_OVERLAP",
        "VLAN_TAGGED", "NAT_EXHAUSTED", "NAT_FILTERED", "NAT_QUOTA", "TOO_BIG", "NO_ROUTE", "NO_MAPPING",
        "UNKNOWN_PORT", "MOVED"}
    rare = {name: outcomes[name] for name in wanted if outcomes[name] < LEAST}
    assert not rare, (rare, outcomes)
    through = sum(outcomes[name] for name in ("redirect_port", "redirect_uplink", "redirect_wire", "flood", "tunnel",
                                                  "stack", "reply"))
    assert through > 0.4 * outcomes.total(), outcomes
