"""Ports with timeouts of their own: which ones a flow has, and when reap and sweep take it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from flow_kit import Wire, state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfp.datapath.engine import Datapath, Limits
from vfp.errors import CompileError, TableFull
from vfp.layout import PORT, SWEEP, pack
from vfp.timeouts import Timeouts

LIMITS = Limits(flows=16384, rules=1024, bindings=64, ports=16, space_entries=64, mappings=64, half_open=10_000,
                timeouts=4)
PATHS = {
    "tcp_opening_s": "S>", "tcp_syn_received_s": "S> SA<", "tcp_established_s": "S> SA< A>",
    "tcp_fin_wait_s": "S> SA< A> FA>", "tcp_time_wait_s": "S> SA< A> FA> FA<", "tcp_reset_s": "S> SA< R>",
}
CLOSING = {"time_wait": "S> SA< FA> FA<", "reset": "S> RA<"}


@pytest.fixture(scope="module")
def engine() -> Iterator[Wire]:
    with Wire(LIMITS) as made:
        yield made


@pytest.fixture
def wire(engine: Wire) -> Wire:
    """No flows, and the usual times."""
    engine.begin()
    return engine


@pytest.mark.parametrize("short", PATHS)
def test_a_port_has_its_own_time_for_each_state(wire: Wire, short: str) -> None:
    wire.datapath.apply(state(timeouts=(Timeouts(**{short: 0.02}), None)))
    for port, steps in enumerate(PATHS.values()):
        for step in steps.split():
            wire.segment(step, port=port)
    time.sleep(0.05)
    assert wire.datapath.sweep() == 1
    assert len(wire.states()) == len(PATHS) - 1


@pytest.mark.parametrize(("sender", "receiver", "stays"), [
    (None, None, True), (0.02, None, False), (None, 0.02, False), (0.02, 100, False), (100, 0.02, True),
], ids=["neither", "sender", "receiver", "both, the sender's is short", "both, the sender's is long"])
def test_the_senders_times_come_before_the_receivers(
    wire: Wire, sender: float | None, receiver: float | None, stays: bool
) -> None:
    first, second = (None if value is None else Timeouts(udp_new_s=value, udp_s=value) for value in (sender, receiver))
    wire.datapath.apply(state(timeouts=(first, second)))
    wire.datagram()
    wire.datagram("<")
    time.sleep(0.05)
    assert wire.datapath.sweep() == (not stays)
    assert wire.states() == ["established"] * stays


def test_flows_that_exist_get_the_new_times(wire: Wire) -> None:
    wire.datagram()
    time.sleep(0.05)
    assert wire.datapath.sweep() == 0
    wire.datapath.apply(state(timeouts=(Timeouts(udp_new_s=0.02), None)))
    assert wire.datapath.sweep() == 1


@dataclass(frozen=True, slots=True)
class Closing:
    """A connection that closes: how, and who began it."""

    how: str
    by: int                                 # port 1, which may have its own times, or 2


TIMES_S = (2.0, 5.0, 20.0, 60.0)
time_s = st.sampled_from(TIMES_S)
times = st.builds(lambda wait, reset: Timeouts(tcp_time_wait_s=wait, tcp_reset_s=reset), time_s, time_s)


@given(own=times, ports=st.tuples(*[st.none() | times] * 2),
       closings=st.lists(st.builds(Closing, st.sampled_from(sorted(CLOSING)), st.sampled_from((1, 2))), max_size=12),
       looks=st.lists(st.sampled_from((0.5, 1.0, 3.0, 7.0, 9.0, 30.0, 61.0)), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_reap_takes_each_closed_pair_when_its_own_time_is_over(
    engine: Wire, own: Timeouts, ports: tuple[Timeouts | None, Timeouts | None], closings: list[Closing],
    looks: list[float],
) -> None:
    """Whatever comes before it in its queue, with shorter or longer times. Nothing but reap looks."""
    engine.begin(own)
    engine.datapath.apply(state(timeouts=ports))
    limits = {}
    for port, closing in enumerate(closings, 1):
        for step in CLOSING[closing.how].split():
            engine.segment(step if closing.by == 1 else step.translate(str.maketrans("<>", "><")), port=port)
        of_flow = ports[closing.by - 1] or ports[2 - closing.by] or own
        limits[port] = getattr(of_flow, f"tcp_{closing.how}_s")
    closed_s, elapsed_s = time.monotonic(), 0.0
    for look in looks:
        elapsed_s += look
        due = {port for port, limit in limits.items() if limit <= elapsed_s}
        assert _reap(engine.datapath, closed_s + elapsed_s + 0.2) == len(due)
        for port in due:
            del limits[port]
        left = [{flow.src_port, flow.dst_port} for flow in engine.datapath.flows() if not flow.reply]
        assert {port for (port,) in (ports - {80} for ports in left)} == set(limits)


def test_a_shorter_time_is_known_to_reap_soon(wire: Wire) -> None:
    wire.datapath.apply(state(timeouts=(Timeouts(tcp_reset_s=1000), None)))
    for step in CLOSING["reset"].split():
        wire.segment(step)
    now_s = time.monotonic()
    assert _reap(wire.datapath, now_s + 10) == 0
    wire.datapath.apply(state())
    assert _reap(wire.datapath, now_s + 19) == 1


def _reap(datapath: Datapath, now_s: float) -> int:
    run = datapath.program("vfp_reap").test_run(ctx=pack(SWEEP, now_ns=int(now_s * 1e9)))
    return int(np.frombuffer(run.ctx, SWEEP)[0]["flows_removed"])


# Rows of the table.


def numbers(datapath: Datapath) -> list[int]:
    """Of the two ports' timeouts."""
    return [int(np.frombuffer(datapath._map("ports").lookup(id.to_bytes(4, "little")) or b"", PORT)[0]["timeouts"])
            for id in (1, 2)]


def test_equal_timeouts_share_a_row_and_others_leave_it_alone(wire: Wire) -> None:
    a, b, c = (Timeouts(udp_s=value) for value in (1, 2, 3))
    wire.datapath.apply(state(timeouts=(a, Timeouts(udp_s=1))))
    first, again = numbers(wire.datapath)
    assert first == again != 0
    wire.datapath.apply(state(timeouts=(b, a)))
    second, kept = numbers(wire.datapath)
    assert kept == first
    assert second not in (0, first)
    wire.datapath.apply(state(timeouts=(None, c)))
    none, third = numbers(wire.datapath)
    assert none == 0
    assert third not in (0, first, second), "a row that was just left may still be read"


def test_more_timeouts_than_rows_are_refused_and_nothing_is_written(wire: Wire) -> None:
    a, b, c, d = (Timeouts(udp_s=value) for value in (1, 2, 3, 4))
    wire.datapath.apply(state(timeouts=(a, b)))
    before = numbers(wire.datapath)
    with pytest.raises(TableFull, match=r"timeouts: 2 different ones .* of 3 rows 1 are free .* Limits\.timeouts"):
        wire.datapath.apply(state(timeouts=(c, d)))
    assert numbers(wire.datapath) == before
    wire.datapath.apply(state(timeouts=(a, c)))


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1 << 40])
def test_a_time_that_is_none_is_refused(wire: Wire, value: float) -> None:
    with pytest.raises(CompileError, match=r"port p1: timeouts\.icmp_s is .*; give seconds, more than 0"):
        wire.datapath.apply(state(timeouts=(Timeouts(icmp_s=value), None)))


def test_the_next_process_knows_which_rows_are_taken() -> None:
    pins = Path(f"/sys/fs/bpf/sluice-timeouts-{os.getpid()}")
    try:
        with Datapath.open(pins, LIMITS) as datapath:
            datapath.apply(state(timeouts=(Timeouts(udp_s=1, tcp_reset_s=1), Timeouts(udp_s=2))))
            before = numbers(datapath)
        with Datapath.open(pins, LIMITS, Timeouts(tcp_reset_s=7)) as datapath:
            assert datapath._settings["reap_reset_ns"] == 1_000_000_000
            datapath.apply(state(timeouts=(Timeouts(udp_s=3), Timeouts(udp_s=2))))
            first, second = numbers(datapath)
            assert first not in (0, *before)
            assert second == before[1]
            assert datapath._settings["reap_reset_ns"] == 2_000_000_000, "nobody has the engine's own"
            datapath.apply(state(timeouts=(None, Timeouts(udp_s=2, tcp_reset_s=9))))
            assert datapath._settings["reap_reset_ns"] == 7_000_000_000
    finally:
        Datapath.unpin(pins)
