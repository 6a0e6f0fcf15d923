"""At its real hooks, on real links, the kernel's engine does to each frame what the reference does."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from engine_hostile import mishap
from engine_states import PORT_IDS, UPLINKS, changes, states
from engine_steps import Player, Rehome, Send, Update, Wait
from engine_storms import Storm
from engine_traffic import Traffic
from engine_wires import MTU, UNDERLAY_MTU, WireBpf, WireDuel
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from vfp.model import Action, Allow, Deny, EngineState, Group, Inspect, Layer, Log, Mirror, Reject
from vfp.reference import Hook

FRAMES = 80
_TAME: dict[type, Action] = {Mirror: Log(), Reject: Deny(), Inspect: Allow()}


@pytest.fixture(scope="module")
def wires() -> Iterator[WireBpf]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # in order: each frame is through before the next enters
    try:
        with WireBpf() as backend:
            yield backend
    finally:
        os.sched_setaffinity(0, before)


@st.composite
def wired_storms(draw: st.DrawFn) -> Storm:
    """Hosts whose links are all there."""
    turns = [draw(states(plain=draw(st.booleans())))]
    for _ in range(draw(st.integers(0, 2))):
        turns.append(draw(changes(turns[-1])))
    return Storm(tuple(map(_without_more_frames, turns)), draw(st.integers(0, 2**32 - 1)), FRAMES)


def _without_more_frames(state: EngineState) -> EngineState:
    """One frame in, at most one out: copies, answers and the detour by user space have tests of their own."""
    def tame(group: Group) -> Group:
        return replace(group, rules=tuple(
            replace(rule, action=_TAME.get(type(rule.action), rule.action)) for rule in group.rules))

    def tamed(layer: Layer) -> Layer:
        out, in_ = (tuple(map(tame, groups)) for groups in (layer.groups_out, layer.groups_in))
        return replace(layer, groups_out=out, groups_in=in_)

    return replace(
        state, ports=tuple(replace(port, layers=tuple(map(tamed, port.layers)), mtu=0) for port in state.ports),
        # The kernel has the frames of uplinks by their MACs, and those to groups leave more than once.
        spaces=tuple(replace(space, stations=(), wire=None, flooding=None) for space in state.spaces),
        # Real sockets see a loopback, and an answer looks like any frame there.
        uplinks=tuple(replace(uplink, loopback=False, mtu=0) for uplink in state.uplinks),
        underlays=tuple(replace(each, mtu=UNDERLAY_MTU if each.mtu else 0) for each in state.underlays), paths=())


def _can_enter(send: Send, state: EngineState) -> bool:
    """Whether there is a link for it, and the kernel lets the frame come as far as the engine."""
    numbers = {Hook.PORT_OUT: PORT_IDS, Hook.PORT_IN: PORT_IDS, Hook.UPLINK_IN: UPLINKS}.get(send.hook, (send.number,))
    there = {port.id for port in state.ports} if send.hook in (Hook.PORT_OUT, Hook.PORT_IN) else {send.number}
    listed = {uplink.id for uplink in state.uplinks}
    if send.number not in numbers or send.number not in there:
        return False
    if send.hook is Hook.UPLINK_IN and send.number not in listed:
        return False                        # no link of ours: left alone
    if send.hook is Hook.OVERLAY_IN and len(send.frame) < 54:
        return False                        # the VXLAN device wants to see an IP header
    # The kernel takes a VLAN tag off first, and drops what has no room for one.
    return len(send.frame) >= 20 or send.frame[12:14] not in (b"\x81\x00", b"\x88\xa8")


def _larger(chance: random.Random, frame: bytes) -> bytes:
    """The same packet with a payload up to the link's MTU; its checksum is wrong, which no engine looks at."""
    room = MTU + 14 - len(frame)
    extra = chance.randrange(room // 2, room) if room > 8 else 0
    extra -= extra % 8
    at = 18 if frame[12:14] == b"\x86\xdd" else 16
    if frame[12:14] not in (b"\x86\xdd", b"\x08\x00") or len(frame) < 54:
        return frame + bytes(extra)
    length = int.from_bytes(frame[at:at + 2], "big")
    if length + extra > 65535:
        return frame
    return frame[:at] + (length + extra).to_bytes(2, "big") + frame[at + 2:] + bytes(extra)


def _go(storm: Storm, wires: WireBpf) -> Counter[str]:
    duel = WireDuel(wires, storm.states[0])
    wires.quiet()
    traffic, chance = Traffic(storm.seed, storm.states), random.Random(storm.seed)
    attempts = 6 * FRAMES
    while duel.frames < FRAMES and (attempts := attempts - 1):
        if chance.random() < 1 / 30:
            duel.take(Update(chance.choice(storm.states)))
        send = _next(traffic, duel.player, duel.state, duel.frames)
        if send is None:
            continue
        if chance.random() < 0.2:
            send = replace(send, frame=_larger(chance, send.frame))
        if chance.random() < 0.1:
            send = replace(send, frame=mishap(chance, send.frame))
        if chance.random() < 0.03:
            send = replace(send, frame=send.frame[:chance.randrange(14, 54)])
        send = replace(send, frame=send.frame[:MTU + 14])
        if _can_enter(send, duel.state):
            duel.take(send)
            wires.settle()
            duel.seen["jumbo"] += len(send.frame) > 4096
            duel.seen["runt"] += len(send.frame) < 34
    duel.compare_all()
    return duel.seen


def _next(traffic: Traffic, player: Player, state: EngineState, sent: int) -> Send | None:
    step = traffic.step(state, sent)
    return None if isinstance(step, Update | Wait | Rehome) else player.frame_of(step)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_what_comes_out_of_the_links_is_what_the_reference_says(wires: WireBpf) -> None:
    seen: Counter[str] = Counter()

    @given(storm=wired_storms())
    @settings(max_examples=60, deadline=None, database=None, derandomize=True, phases=(Phase.generate,),
              suppress_health_check=list(HealthCheck))
    def look(storm: Storm) -> None:
        seen.update(_go(storm, wires))

    look()
    wanted = ("redirect_port", "redirect_uplink", "tunnel", "stack", "VLAN_TAGGED", "jumbo", "runt", "MALFORMED_IPV4",
              "MALFORMED_IPV6", "FRAGMENT_UNKNOWN")
    rare = {name: seen[name] for name in wanted if seen[name] < 5}
    assert not rare, seen
