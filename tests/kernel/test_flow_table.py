"""The kernel's flow table: TCP state, strictness, ageing, budgets and the rate of re-decisions."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from flow_kit import Wire, frame, state

from vfp.datapath.engine import Limits
from vfp.datapath.limits import FLOWS_PER_GIB, MAX_FLOWS, MIN_FLOWS, flows_for
from vfp.reasons import DropReason
from vfp.timeouts import Timeouts

NONE, OUT = DropReason.NONE, DropReason.OUT_OF_STATE
LIMITS = Limits(flows=16384, rules=1024, bindings=64, ports=16, space_entries=64, mappings=64, half_open=10_000)


@pytest.fixture(scope="module")
def engine() -> Iterator[Wire]:
    with Wire(LIMITS) as made:
        yield made


@pytest.fixture
def wire(engine: Wire) -> Wire:
    """No flows, and the usual bounds."""
    engine.begin()
    return engine


# Strict ports: what fits, and what does not. `!` marks the segments that are dropped.

OPEN = "S> SA< A>"
CASES = {
    "a connection's whole life": (f"{OPEN} A< A> FA> A< FA< A>", "time-wait"),
    "lost and sent again": ("S> S> SA< S> SA< A> SA< A> FA> FA> FA< FA< A>", "time-wait"),
    "both close at once": (f"{OPEN} FA> FA< A> A<", "time-wait"),
    "simultaneous open": ("S> S< SA> SA< A> A<", "established"),
    "simultaneous open, the other order": ("S> S< SA< SA> A< A>", "established"),
    "refused": ("S> RA<", "reset"),
    "reset later": (f"{OPEN} R> !SA< A<", "reset"),
    "opened again after both FINs": (f"{OPEN} FA> FA< S> SA<", "syn-received"),
    "opened again after a reset": (f"{OPEN} RA< S>", "opening"),
    "picked up": ("!A> !FA> !SA> !A<", ""),
    "data before the SYN-ACK": ("S> !A> !FA> SA< A>", "established"),
    "a SYN-ACK from who opened": ("S> !SA> SA< !SA>", "syn-received"),
    "a SYN in a connection": (f"{OPEN} !S> !S< A>", "established"),
    "a SYN-ACK in a closed one": (f"{OPEN} FA> FA< !SA<", "time-wait"),
    "the other side knows an older connection": ("S> A< !FA< !A> R>", "reset"),
    "odd flags": (f"!SF> {OPEN} !SF> !> !F>", "established"),
}


@pytest.mark.parametrize(("steps", "end"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("strict", [(True, False), (False, True)], ids=["sender", "receiver"])
def test_a_strict_port_takes_what_fits(wire: Wire, strict: tuple[bool, bool], steps: str, end: str) -> None:
    wire.datapath.apply(state(strict=strict))
    for step in steps.split():
        wanted = OUT if step[0] == "!" else NONE
        assert wire.segment(step.removeprefix("!")) is wanted, step
    assert wire.states() == ([end] if end else [])


def test_a_port_that_is_not_strict_picks_up_what_it_did_not_see_begin(wire: Wire) -> None:
    assert wire.segment("A>") is NONE
    assert wire.states() == ["opening"]
    assert wire.segment("A<") is NONE
    assert wire.states() == ["established"]
    wire.datapath.apply(state(strict=(True, True)))
    assert wire.segment("A>") is NONE, "an established connection goes on when the port becomes strict"
    assert wire.segment("S>") is OUT


def test_closed_pairs_leave_when_their_time_is_over_and_used_ones_stay(wire: Wire) -> None:
    wire.begin(Timeouts(tcp_time_wait_s=0.4, tcp_reset_s=0.8))
    for port, steps in ((1, "S> SA< A> FA> FA<"), (2, "S> RA<"), (3, "S> SA< A>"), (4, "S> SA< A> FA> FA<")):
        for step in steps.split():
            wire.segment(step, port=port)
    assert wire.datapath.reap().removed == 0
    time.sleep(0.45)
    wire.segment("A>", port=4)
    assert wire.datapath.reap().removed == 1
    assert sorted(wire.states()) == ["established", "reset", "time-wait"]
    time.sleep(0.45)
    assert wire.datapath.reap().removed == 2
    assert wire.states() == ["established"]


def test_the_sweep_finds_closed_pairs_that_the_queues_had_no_room_for(wire: Wire) -> None:
    wire.begin(Timeouts(tcp_reset_s=0.05))
    room = LIMITS.by_map()["resets"]
    for port in range(room + 100):
        wire.segment("S>", port=port)
        wire.segment("RA<", port=port)
    time.sleep(0.1)
    assert wire.datapath.reap().removed == room
    assert wire.datapath.sweep() == 100
    assert wire.states() == []


def test_each_state_has_its_own_time(wire: Wire) -> None:
    paths = {
        "tcp_opening_s": "S>", "tcp_syn_received_s": "S> SA<", "tcp_established_s": "S> SA< A>",
        "tcp_fin_wait_s": "S> SA< A> FA>", "tcp_time_wait_s": "S> SA< A> FA> FA<", "tcp_reset_s": "S> SA< R>",
    }
    for short, steps in paths.items():
        wire.begin(Timeouts(**{short: 0.02}))
        for port, others in enumerate(paths.values()):
            for step in others.split():
                wire.segment(step, port=port)
        time.sleep(0.05)
        assert wire.datapath.sweep() == 1, steps
        assert len(wire.states()) == len(paths) - 1


# Budgets.


def test_budgets_count_what_they_bound(wire: Wire) -> None:
    assert wire.segment("S>") is NONE
    assert wire.segment("S>", port=2) is NONE
    assert wire.datagram() is NONE
    assert wire.taken() == (2, 1)
    wire.segment("SA<")
    wire.datagram("<")
    assert wire.taken() == (1, 1), "a reply ends the half-open time of TCP, and UDP stays UDP"
    wire.segment("RA<", port=2)
    wire.segment("S>", port=2)
    assert wire.taken() == (1, 1), "one that is opened again gives its place to itself"
    wire.datapath.apply(state(name="other"))
    wire.segment("A>")
    wire.datagram()
    assert wire.taken() == (1, 1), "what is decided again has its place already"


def test_the_sweep_puts_a_wrong_count_right(wire: Wire) -> None:
    wire.segment("S>")
    budgets = wire.datapath._object.map("budgets")
    budgets.update(bytes(4), (77).to_bytes(8, "little") * 2)
    wire.datapath.sweep()
    assert wire.taken() == (1, 0)
    budgets.update(bytes(4), (-5).to_bytes(8, "little", signed=True) * 2)
    wire.datapath.sweep()
    assert wire.taken() == (1, 0)


@pytest.mark.parametrize(("raw", "full", "room"), [
    (frame(1, flags=0x02), DropReason.HALF_OPEN_FULL, 1000),
    (frame(1, protocol=17), DropReason.UDP_FULL, 2000),
], ids=["SYN", "UDP"])
def test_a_flood_of_a_million_evicts_nobody_and_is_counted(wire: Wire, raw: bytes, full: DropReason, room: int) -> None:
    flood = 1_000_000
    wire.begin(half_open=1000, udp=2000)
    before = wire.datapath.drop_counts()[full]
    for port in range(500):
        for step in ("S>", "SA<", "A>"):
            assert wire.segment(step, port=port) is NONE
    seen = wire.send(raw, sources=range(1 << 16, (1 << 16) + flood))
    assert seen == {NONE: room, full: flood - room}
    assert wire.datapath.drop_counts()[full] - before == flood - room
    assert wire.states().count("established") == 500
    assert all(wire.segment("A<", port=port) is NONE for port in range(500))
    other = wire.datagram() if full is DropReason.HALF_OPEN_FULL else wire.segment("S>", port=7777)
    assert other is NONE, "the flood of one kind is nothing to the other"
    assert wire.datapath.sweep() == 0
    assert wire.taken() in ((room, 1), (1, room))


def test_a_full_table_refuses_and_gives_the_place_back(wire: Wire) -> None:
    seen = wire.send(frame(1, flags=0x02), sources=range(9000))
    assert seen == {NONE: 8192, DropReason.FLOW_TABLE_FULL: 808}
    assert wire.taken() == (8192, 0)
    assert len(wire.datapath.flows()) == LIMITS.flows


def test_closed_pairs_make_room_in_a_full_table_without_any_sweep(wire: Wire) -> None:
    wire.begin(Timeouts(tcp_reset_s=60, tcp_time_wait_s=60), udp=LIMITS.flows)
    for steps, port in (("S> SA< A>", 1), ("S> RA<", 2), ("S> SA< FA> FA<", 3)):
        for step in steps.split():
            wire.segment(step, port=port)
    full = LIMITS.flows // 2 - 3
    assert wire.send(frame(1, protocol=17), sources=range(full)) == {NONE: full}
    assert wire.segment("S>", port=4) is DropReason.FLOW_TABLE_FULL, "their time is not over"
    wire.change(Timeouts(tcp_reset_s=0.01, tcp_time_wait_s=0.01), udp=LIMITS.flows)
    time.sleep(0.05)
    assert [wire.segment("S>", port=port) for port in (4, 5, 6)] == [NONE, NONE, DropReason.FLOW_TABLE_FULL]
    assert sorted(state for state in wire.states() if state != "new") == ["established", "opening", "opening"]
    assert wire.taken() == (2, full)


# Re-decisions.


def test_re_decisions_have_a_rate_and_new_flows_do_not_wait_for_them(wire: Wire) -> None:
    wire.begin(redecide_per_s=1000)
    raw = frame(1, protocol=17)
    assert wire.send(raw, sources=range(1000)) == {NONE: 1000}
    wire.datapath.apply(state(name="other"))
    seen = wire.send(raw, sources=range(1000))
    assert set(seen) == {NONE, DropReason.REDECIDE_LATER}
    assert 100 <= seen[NONE] < 900, seen
    assert wire.send(raw, sources=range(2000, 2100)) == {NONE: 100}
    deadline = time.monotonic() + 10
    while DropReason.REDECIDE_LATER in wire.send(raw, sources=range(1000)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# Sizes.


def test_the_table_is_sized_by_the_hosts_memory() -> None:
    gibibyte = 1 << 30
    assert flows_for(16 * gibibyte) == flows_for(15 * gibibyte + 1) == flows_for(1000 * gibibyte) == MAX_FLOWS
    assert flows_for(4 * gibibyte) == 4 * FLOWS_PER_GIB == MAX_FLOWS // 4
    assert flows_for(gibibyte // 4) == FLOWS_PER_GIB
    assert flows_for(0) == MIN_FLOWS
