"""Flows: pairs, replies past the layers, policy changes, TCP state, ageing."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from reference_kit import (
    A_1,
    A_2,
    A_9,
    MAC_1,
    MAC_2,
    MAC_9,
    N_3,
    OTHER_VTEP,
    VNI,
    VTEP,
    WORLD,
    deny_in,
    echo,
    frame,
    host,
    layer,
    overlay_port,
    rule,
    tcp,
    udp,
    with_port,
)
from scapy.layers.inet import ICMP
from scapy.packet import Raw

from vfp.model import Allow, Deny, EngineState, LocalPort, Remote, Rewrite, Space
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict
from vfp.reference.tcp import FlowState

OUT = Hook.PORT_OUT
CLOSED_IN = deny_in()


def go(engine: Engine, number: int, data: bytes, now_s: float = 0.0) -> Result:
    return engine.process(OUT, number, data, now_s=now_s)


def states(engine: Engine) -> set[FlowState]:
    return {view.state for view in engine.flows(0.0)}


def test_a_reply_passes_layers_that_would_deny_it() -> None:
    engine = Engine(host(one=(CLOSED_IN,)))
    assert go(engine, 2, tcp(A_2, A_1, 80, 1000, "SA")).reason is DropReason.DENIED
    first = go(engine, 1, tcp(A_1, A_2))
    assert (first.verdict, first.port, len(first.flows)) == (Verdict.REDIRECT_PORT, 2, 2)
    answer = go(engine, 2, tcp(A_2, A_1, 80, 1000, "SA"))
    assert (answer.verdict, answer.port) == (Verdict.REDIRECT_PORT, 1)
    assert [(v.reply, v.packets, v.bytes) for v in engine.flows(0.0)] == [(False, 1, 54), (True, 1, 54)]


def test_a_stateless_allow_makes_no_reply_entry() -> None:
    acl = layer("acl", (rule(10, Allow(), stateful=False),), (rule(10, Deny()),))
    engine = Engine(host(one=(acl,)))
    assert len(go(engine, 1, udp(A_1, A_2)).flows) == 1
    assert go(engine, 2, udp(A_2, A_1, 53, 1000)).reason is DropReason.DENIED


def test_a_rewritten_flow_is_stateful_whatever_the_rules_say() -> None:
    acl = layer("acl", (rule(10, Allow(), stateful=False),), (rule(10, Deny()),))
    lb = layer("lb", (rule(10, Rewrite(dst=IPv4Address(A_2), dst_port=8080), dst=f"{WORLD}/32"),))
    engine = Engine(host(one=(acl, lb)))
    assert len(go(engine, 1, tcp(A_1, WORLD)).flows) == 2
    answer = go(engine, 2, tcp(A_2, A_1, 8080, 1000, "SA"))
    assert answer.verdict is Verdict.REDIRECT_PORT
    assert answer.frame[26:30] == IPv4Address(WORLD).packed


@pytest.mark.parametrize("data", [
    frame(A_1, A_2, ICMP(type=3) / bytes(28)),
    tcp(A_1, A_2, flags="R"),
], ids=["other ICMP", "RST"])
def test_what_makes_no_flow(data: bytes) -> None:
    engine = Engine(host())
    assert go(engine, 1, data).verdict is Verdict.REDIRECT_PORT
    assert not engine.flows(0.0)


def test_denied_packets_make_no_flow() -> None:
    engine = Engine(host(two=(CLOSED_IN,)))
    assert go(engine, 1, tcp(A_1, A_2)).reason is DropReason.DENIED
    assert not engine.flows(0.0)


def test_a_packet_to_itself_has_one_entry() -> None:
    engine = Engine(host())
    assert len(go(engine, 1, udp(A_1, A_1, 5, 5)).flows) == 1


def test_a_full_table_drops_and_stores_nothing() -> None:
    engine = Engine(host(), flow_entries=3, udp=9)
    assert go(engine, 1, udp(A_1, A_2, 1)).verdict is Verdict.REDIRECT_PORT
    assert go(engine, 1, udp(A_1, A_2, 2)).reason is DropReason.FLOW_TABLE_FULL
    assert go(engine, 1, udp(A_1, A_2, 1)).verdict is Verdict.REDIRECT_PORT
    assert len(engine.flows(0.0)) == 2


# Policy changes.


def denying(state: EngineState, number: int = 2) -> EngineState:
    return with_port(state, overlay_port(number, MAC_2, CLOSED_IN))


@pytest.mark.parametrize("side", ["forward", "reply"])
def test_an_open_connection_that_the_new_policy_forbids_stops_from_either_side(side: str) -> None:
    state = host()
    engine = Engine(state)
    go(engine, 1, tcp(A_1, A_2))
    go(engine, 2, tcp(A_2, A_1, 80, 1000, "SA"))
    assert engine.update(denying(state)) == {2}
    packet = (1, tcp(A_1, A_2, flags="A")) if side == "forward" else (2, tcp(A_2, A_1, 80, 1000, "A"))
    result = go(engine, *packet)
    assert (result.reason, result.drop_port, result.layer) == (DropReason.DENIED, 2, "acl")
    assert sum(engine.rule_drops.values()) == 1


def test_a_forbidden_connection_is_not_reopened_by_the_other_sides_next_packet() -> None:
    state = host()
    engine = Engine(state)
    go(engine, 1, tcp(A_1, A_2))
    go(engine, 2, tcp(A_2, A_1, 80, 1000, "SA"))
    engine.update(denying(state))
    for number, packet in ((1, tcp(A_1, A_2, flags="A")), (2, tcp(A_2, A_1, 80, 1000, "A"))) * 2:
        assert go(engine, number, packet).reason is DropReason.DENIED
    assert engine.update(state) == {2}
    assert go(engine, 2, tcp(A_2, A_1, 80, 1000, "A")).verdict is Verdict.REDIRECT_PORT


def test_a_flow_is_not_used_under_another_source_mac() -> None:
    engine = Engine(host(one=(layer("guard", (rule(10, Allow(), src_mac=MAC_1),), default=(Deny(), Allow())),)))
    go(engine, 1, tcp(A_1, A_2))
    go(engine, 2, tcp(A_2, A_1, 80, 1000, "SA"))
    assert go(engine, 1, tcp(A_1, A_2, flags="A", src_mac=MAC_9)).reason is DropReason.LAYER_DEFAULT
    assert go(engine, 1, tcp(A_1, A_2, flags="A")).verdict is Verdict.REDIRECT_PORT


@pytest.mark.parametrize("side", ["forward", "reply"])
def test_an_allowed_connection_goes_on_with_its_counters_and_state(side: str) -> None:
    engine = Engine(host())
    go(engine, 1, tcp(A_1, A_2))
    go(engine, 2, tcp(A_2, A_1, 80, 1000, "SA"))
    go(engine, 1, tcp(A_1, A_2, flags="A"))
    assert engine.update(host(one=(layer("new"),))) == {1}
    packet = (1, tcp(A_1, A_2, flags="A")) if side == "forward" else (2, tcp(A_2, A_1, 80, 1000, "A"))
    assert go(engine, *packet).verdict is Verdict.REDIRECT_PORT
    assert states(engine) == {FlowState.ESTABLISHED}
    assert sum(view.packets for view in engine.flows(0.0)) == 4


def test_a_decision_again_sees_the_flags_of_the_packet_that_made_the_flow() -> None:
    only_syn = layer("acl", (), (rule(10, Allow(), tcp_flags=(0x12, 0x02)), rule(20, Deny())))
    engine = Engine(host())
    go(engine, 1, tcp(A_1, A_2))
    engine.update(host(two=(only_syn,)))
    assert go(engine, 1, tcp(A_1, A_2, flags="A")).verdict is Verdict.REDIRECT_PORT


def lb(target: str) -> EngineState:
    return host(one=(layer("lb", (rule(10, Rewrite(dst=IPv4Address(target)), dst=f"{WORLD}/32"),)),))


def test_a_reply_to_a_flow_that_now_goes_elsewhere_is_dropped_and_its_entry_goes() -> None:
    engine = Engine(lb(A_2))
    go(engine, 1, tcp(A_1, WORLD))
    engine.update(lb(A_9))
    assert go(engine, 2, tcp(A_2, A_1, 80, 1000, "A")).reason is DropReason.FLOW_CHANGED
    assert {view.key.zone.number for view in engine.flows(0.0)} == {1, VNI}


def test_a_forward_packet_of_a_flow_that_now_goes_elsewhere_takes_the_reply_entry_along() -> None:
    engine = Engine(lb(A_2))
    go(engine, 1, tcp(A_1, WORLD))
    engine.update(lb(A_9))
    assert go(engine, 1, tcp(A_1, WORLD, flags="A")).verdict is Verdict.TUNNEL
    assert {view.key.zone.number for view in engine.flows(0.0)} == {1, VNI}


def test_a_flow_that_becomes_stateless_loses_its_reply_entry() -> None:
    engine = Engine(host())
    go(engine, 1, udp(A_1, A_2))
    engine.update(host(one=(layer("acl", (rule(10, Allow(), stateful=False),)),)))
    assert go(engine, 2, udp(A_2, A_1, 53, 1000)).reason is DropReason.FLOW_CHANGED
    assert [view.reply for view in engine.flows(0.0)] == [False]


def test_a_removed_port_ends_its_flows() -> None:
    state = host()
    engine = Engine(state)
    go(engine, 1, tcp(A_1, A_2))
    assert engine.update(replace(state, ports=state.ports[1:])) == {1}
    assert go(engine, 2, tcp(A_2, A_1, 80, 1000, "SA")).reason is DropReason.UNKNOWN_PORT
    engine.sweep(0.0)
    assert not engine.flows(0.0)


def test_a_reply_entry_taken_by_another_pair_leaves_no_half_behind() -> None:
    both = host(one=(layer("lb", (rule(10, Rewrite(dst=IPv4Address(A_2)), dst=f"{WORLD}/32"),)),))
    engine = Engine(both)
    go(engine, 1, tcp(A_1, WORLD))
    go(engine, 1, tcp(A_1, A_2))
    assert {str(view.key.tuple.dst) for view in engine.flows(0.0) if not view.reply} == {A_2}
    assert len(engine.flows(0.0)) == 2


# Which ports a change concerns.


def test_additions_concern_no_flow_and_changes_only_those_who_refer_to_them() -> None:
    state = host()
    overlay, nat = state.spaces
    engine = Engine(state)

    def with_spaces(*spaces: Space) -> EngineState:
        return replace(state, spaces=spaces)

    more = Space(VNI, (*overlay.entries, (IPv4Address("10.1.0.77"), LocalPort(1, MAC_9))))
    assert engine.update(with_spaces(more, nat)) == set()
    assert engine.update(with_spaces(overlay, nat)) == {1, 2}
    moved = Space(VNI, tuple(
        (address, Remote(OTHER_VTEP, VNI, MAC_9) if isinstance(place, Remote) else place)
        for address, place in overlay.entries))
    assert engine.update(with_spaces(moved, nat)) == {1, 2}
    assert engine.update(state) == {1, 2}
    assert engine.update(replace(state, pools=(replace(state.pools[0], addresses=(VTEP,)),))) == {3}
    assert engine.update(state) == {3}
    assert engine.update(replace(state, mappings=())) == {3}
    assert engine.update(state) == set()
    assert engine.update(replace(state, ports=tuple(replace(p, name="x") for p in state.ports))) == set()
    assert engine.generation(3) == 3


# Overlay.


def over(engine: Engine, data: bytes, vtep: IPv4Address = VTEP) -> Result:
    return engine.process(Hook.OVERLAY_IN, VNI, data, vtep=vtep, now_s=0.0)


def test_an_overlay_flow_and_its_reply() -> None:
    engine = Engine(host())
    first = over(engine, tcp(A_9, A_1))
    assert (first.verdict, first.port) == (Verdict.REDIRECT_PORT, 1)
    answer = go(engine, 1, tcp(A_1, A_9, 80, 1000, "SA"))
    assert (answer.verdict, answer.vni, answer.vtep) == (Verdict.TUNNEL, VNI, VTEP)
    assert answer.frame[0:6] == MAC_9


@pytest.mark.parametrize(("data", "vtep", "reason"), [
    (tcp("10.1.0.50", A_1), VTEP, DropReason.UNKNOWN_SOURCE),
    (tcp(A_2, A_1), VTEP, DropReason.UNKNOWN_SOURCE),
    (tcp(A_9, A_1), OTHER_VTEP, DropReason.WRONG_VTEP),
    (tcp(A_9, "10.1.0.50"), VTEP, DropReason.NO_MAPPING),
    (tcp(A_9, A_9), VTEP, DropReason.MOVED),
])
def test_no_host_is_trusted_beyond_its_endpoints(data: bytes, vtep: IPv4Address, reason: DropReason) -> None:
    assert over(Engine(host()), data, vtep).reason is reason


def test_a_flow_is_open_only_to_the_host_it_is_with() -> None:
    engine = Engine(host())
    go(engine, 1, tcp(A_1, A_9))
    assert over(engine, tcp(A_9, A_1, 80, 1000, "SA"), OTHER_VTEP).reason is DropReason.WRONG_VTEP
    assert over(engine, tcp(A_9, A_1, 80, 1000, "SA")).verdict is Verdict.REDIRECT_PORT


def test_a_remote_that_moved_is_followed_from_the_reply_side() -> None:
    state = host()
    engine = Engine(state)
    go(engine, 1, tcp(A_1, A_9))
    overlay, nat = state.spaces
    moved = Space(VNI, tuple(
        (address, Remote(OTHER_VTEP, VNI, MAC_9) if isinstance(place, Remote) else place)
        for address, place in overlay.entries))
    engine.update(replace(state, spaces=(moved, nat)))
    answer = tcp(A_9, A_1, 80, 1000, "SA")
    assert over(engine, answer, VTEP).reason is DropReason.WRONG_VTEP
    assert over(engine, answer, OTHER_VTEP).verdict is Verdict.REDIRECT_PORT
    assert go(engine, 1, tcp(A_1, A_9, flags="A")).vtep == OTHER_VTEP


# TCP state.


@pytest.mark.parametrize(("steps", "state"), [
    (["S>"], FlowState.OPENING),
    (["S>", "S>"], FlowState.OPENING),
    (["S>", "SA<"], FlowState.SYN_RECEIVED),
    (["S>", "SA<", "A>"], FlowState.ESTABLISHED),
    (["S>", "S<"], FlowState.SYN_RECEIVED),
    (["S>", "S<", "SA>", "SA<"], FlowState.ESTABLISHED),
    (["S>", "SA<", "FA>"], FlowState.FIN_WAIT),
    (["S>", "SA<", "A>", "FA<"], FlowState.FIN_WAIT),
    (["S>", "SA<", "FA>", "FA<"], FlowState.TIME_WAIT),
    (["S>", "SA<", "FA>", "FA<", "A>"], FlowState.TIME_WAIT),
    (["S>", "SA<", "FA>", "FA>"], FlowState.FIN_WAIT),
    (["S>", "RA<"], FlowState.RESET),
    (["S>", "SA<", "R>"], FlowState.RESET),
    (["A>"], FlowState.OPENING),
    (["A>", "A<"], FlowState.ESTABLISHED),
])
def test_tcp_state(steps: list[str], state: FlowState) -> None:
    engine = Engine(host())
    for step in steps:
        flags, way = step[:-1], step[-1]
        packet = (1, tcp(A_1, A_2, flags=flags)) if way == ">" else (2, tcp(A_2, A_1, 80, 1000, flags))
        assert go(engine, *packet).verdict is Verdict.REDIRECT_PORT
    assert states(engine) == {state}


def closed(engine: Engine) -> Engine:
    go(engine, 1, tcp(A_1, A_2))
    go(engine, 2, tcp(A_2, A_1, 80, 1000, "RA"))
    return engine


def test_a_syn_reopens_a_closed_flow_as_a_new_one() -> None:
    engine = closed(Engine(host()))
    go(engine, 1, tcp(A_1, A_2, flags="A"))
    assert states(engine) == {FlowState.RESET}
    go(engine, 1, tcp(A_1, A_2))
    assert states(engine) == {FlowState.OPENING}
    assert sum(view.packets for view in engine.flows(0.0)) == 1


def test_a_syn_from_the_other_side_of_a_closed_flow_is_decided_on_its_own() -> None:
    engine = closed(Engine(host(one=(CLOSED_IN,))))
    assert go(engine, 2, tcp(A_2, A_1, 80, 1000, "S")).reason is DropReason.DENIED
    assert states(engine) == {FlowState.RESET}


# Ageing.


@pytest.mark.parametrize(("packets", "limit_s"), [
    ([(1, tcp(A_1, A_2))], 240),
    ([(1, tcp(A_1, A_2)), (2, tcp(A_2, A_1, 80, 1000, "SA"))], 240),
    ([(1, tcp(A_1, A_2)), (2, tcp(A_2, A_1, 80, 1000, "SA")), (1, tcp(A_1, A_2, flags="A"))], 7440),
    ([(1, tcp(A_1, A_2)), (2, tcp(A_2, A_1, 80, 1000, "FA"))], 240),
    ([(1, tcp(A_1, A_2)), (2, tcp(A_2, A_1, 80, 1000, "FA")), (1, tcp(A_1, A_2, flags="FA"))], 2),
    ([(1, tcp(A_1, A_2)), (2, tcp(A_2, A_1, 80, 1000, "R"))], 2),
    ([(1, udp(A_1, A_2))], 120),
    ([(1, udp(A_1, A_2)), (2, udp(A_2, A_1, 53, 1000))], 300),
    ([(1, echo(A_1, A_2))], 60),
    ([(1, frame(A_1, A_2, Raw(bytes(8)), proto=47))], 300),
], ids=["opening", "syn-received", "established", "fin-wait", "time-wait", "reset", "udp new", "udp", "icmp", "other"])
def test_idle_pairs_leave_after_their_time(packets: list[tuple[int, bytes]], limit_s: float) -> None:
    engine = Engine(host())
    for number, data in packets:
        go(engine, number, data)
    assert engine.sweep(limit_s) == 0
    assert engine.sweep(limit_s + 0.5) == 2
    assert not engine.flows(0.0)


def test_a_pair_is_as_idle_as_its_younger_half() -> None:
    engine = Engine(host())
    go(engine, 1, udp(A_1, A_2), 0.0)
    go(engine, 2, udp(A_2, A_1, 53, 1000), 200.0)
    assert engine.sweep(499.0) == 0
    assert engine.sweep(501.0) == 2


def test_the_stack_has_flows_with_ports_both_ways() -> None:
    engine = Engine(host(three=(CLOSED_IN,)))
    assert engine.process(Hook.PORT_IN, 3, tcp("192.168.0.1", N_3, 5, 6), now_s=0.0).reason is DropReason.DENIED
    assert go(engine, 3, tcp(N_3, "192.168.0.1", 6, 5)).verdict is Verdict.STACK
    answer = engine.process(Hook.PORT_IN, 3, tcp("192.168.0.1", N_3, 5, 6, "SA"), now_s=0.0)
    assert answer.verdict is Verdict.STACK
    assert answer.frame == tcp("192.168.0.1", N_3, 5, 6, "SA")


def test_what_the_stack_begins_is_answered_to_the_stack() -> None:
    engine = Engine(host())
    assert engine.process(Hook.PORT_IN, 3, tcp("192.168.0.1", N_3, 5, 6), now_s=0.0).verdict is Verdict.STACK
    assert go(engine, 3, tcp(N_3, "192.168.0.1", 6, 5, "SA")).verdict is Verdict.STACK
    assert states(engine) == {FlowState.SYN_RECEIVED}
