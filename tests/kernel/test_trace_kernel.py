"""A dry run of the programs says what the reference explains, and leaves no mark in any table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from engine_backends import PORT_IFINDEX, UPLINK_IFINDEX, BpfBackend, ReferenceBackend
from engine_steps import History, Join, Leave, Player, Send, Update, Wait, histories, memberships, neighbours, sends_of
from hypothesis import HealthCheck, given, note, settings

from vfp.classifier import rule_cookie
from vfp.datapath.engine import Datapath
from vfp.datapath.engine import Hook as DatapathHook
from vfp.datapath.trace import Traced
from vfp.layout import PlaceKind
from vfp.model import EngineState
from vfp.reasons import DropReason
from vfp.reference import Explanation, Hook, explain_frame
from vfp.reference.bindings import PeekedBindings
from vfp.reference.transposition import ToWire

_ROOM = {"traced", "scratches", "copies", "answers"}    # where a run works; nobody reads it later
_UNREADABLE = {"events", "bindings_log", "captures", "time_waits", "resets", "lingering"}  # reading takes out
_PLACES = {"drop": PlaceKind.NONE, "stack": PlaceKind.STACK, "reply": PlaceKind.REPLY}


@pytest.fixture(scope="module")
def bpf() -> Iterator[BpfBackend]:
    backend = BpfBackend()
    yield backend
    backend.close()


def tables(datapath: Datapath) -> dict[str, list[tuple[bytes, bytes]]]:
    """Every element of every map that has any."""
    return {name: sorted(table.items()) for name, table in datapath._object.maps.items()
            if name not in _ROOM | _UNREADABLE}


def compare(explained: Explanation, traced: Traced) -> None:
    """Verdict, reason, where it leaves, bytes, and every rule that matched."""
    answer = explained.to_dict()
    assert traced.reason == explained.decision.reason
    leaves = explained.transposition.exit
    match answer["leaves"]["to"]:
        case "port" if explained.verdict == "forward":
            assert (traced.place, traced.target) == (PlaceKind.PORT, PORT_IFINDEX + leaves.port)   # type: ignore[union-attr]
        case "uplink" if explained.verdict == "forward":
            place = PlaceKind.WIRE if isinstance(leaves, ToWire) else PlaceKind.UPLINK
            assert (traced.place, traced.target) == (place, UPLINK_IFINDEX + leaves.uplink)     # type: ignore[union-attr]
        case "many" if explained.verdict == "forward":
            assert (traced.place, traced.target) == (PlaceKind.FLOOD, leaves.number)            # type: ignore[union-attr]
        case "vtep" if explained.verdict == "forward":
            assert (traced.place, traced.target, traced.vtep) == (PlaceKind.TUNNEL, leaves.vni, leaves.vtep)  # type: ignore[union-attr]
        case _:
            assert traced.place is _PLACES[explained.verdict]
    if traced.place is not PlaceKind.NONE:
        assert traced.frame == explained.frame
    hits = tuple((ref.port, rule_cookie(ref.layer, ref.group, ref.rule)) for ref in explained.decision.hits)
    assert traced.hits == hits
    if traced.reason in (DropReason.DENIED, DropReason.REJECTED):
        assert hits[-1] == (traced.port, traced.cookie)


def look(state: EngineState, datapath: Datapath, hook: Hook, number: int, frame: bytes,
         vtep: IPv4Address | None) -> None:
    before = tables(datapath)
    traced = datapath.trace(DatapathHook(hook.value), number, frame, vtep)
    explained = explain_frame(state, hook, number, frame, time.monotonic(), vtep=vtep,
                              bindings=PeekedBindings(datapath),
                              members={given.id: datapath.members(given.id) for given in state.sets if given.dynamic})
    note(f"trace {hook} {number} {vtep} {frame.hex()}: {traced}")
    note(f"  explained: {explained.to_dict()}")
    compare(explained, traced)
    assert tables(datapath) == before
    assert datapath.read_events() == []


def replay(history: History, bpf: BpfBackend) -> None:
    """Run a history, and look at each frame before it is sent."""
    bpf.reset()
    reference = ReferenceBackend()
    for each in (reference, bpf):
        each.load(history.state)
    player = Player(reference.engine)
    state = history.state
    for step in sends_of(player, history.steps):
        match step:
            case Send(hook, number, frame, vtep, inspected):
                for outer in set() if inspected else {vtep, None}:      # None: trust the mapping
                    look(state, bpf._datapath, hook, number, frame, outer)
                now_s = time.monotonic()
                player.play(step, now_s)
                bpf.process(hook, number, frame, vtep, now_s, inspected)
                bpf._datapath.read_events()
            case Join() | Leave():
                for each in (reference, bpf):
                    each.change_set(step, time.monotonic())
            case Update(state):
                for each in (reference, bpf):
                    each.load(state)
            case Wait(seconds):
                for each in (reference, bpf):
                    each.sweep(time.monotonic() + seconds)


@given(history=histories())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_dry_run_says_what_is_explained_and_leaves_no_mark(bpf: BpfBackend, history: History) -> None:
    replay(history, bpf)


@given(history=neighbours())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_dry_run_answers_no_neighbour(bpf: BpfBackend, history: History) -> None:
    replay(history, bpf)


@given(history=memberships())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_dry_run_asks_sets(bpf: BpfBackend, history: History) -> None:
    replay(history, bpf)
