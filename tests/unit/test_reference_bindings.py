"""Pools of the reference: which external side a binding gets, whom it lets in, and when it ends."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_kit import EXTERNAL, GATEWAY_MAC, N_3, WORLD, frame, host, recomputed, show, tcp, udp
from scapy.layers.inet import IP, UDP
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from vfp.compile import Compiler
from vfp.errors import CompileError
from vfp.model import Filtering, Pool, PortRange
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict
from vfp.reference.bindings import BindingKey, Bindings, Exhausted, External, OverQuota, addresses, blocks, candidates

OTHER = "203.0.113.77"
MORE = tuple(IPv4Address(f"198.51.100.{n}") for n in range(1, 5))
KEY = BindingKey(3, 1, 17, IPv4Address(N_3), 5000)
POOL = Pool(1, 1, (EXTERNAL,), PortRange(20000, 20009))


def engine(**terms: object) -> Engine:
    state = host()
    return Engine(replace(state, pools=(replace(state.pools[0], **terms),)))  # type: ignore[arg-type]


def out(engine: Engine, data: bytes, now_s: float = 0.0) -> Result:
    return engine.process(Hook.PORT_OUT, 3, data, now_s=now_s)


def back(engine: Engine, data: bytes, now_s: float = 0.0) -> Result:
    return engine.process(Hook.UPLINK_IN, 1, data, now_s=now_s)


def test_an_internal_address_keeps_to_one_external_one_until_it_is_full() -> None:
    pool = replace(POOL, addresses=MORE)
    bindings = Bindings()
    given = [bindings.obtain(replace(KEY, source_port=n), pool, 0.0).address for n in range(20)]
    order = addresses(KEY, pool)
    assert given == [order[0]] * 10 + [order[1]] * 10


def test_internal_addresses_are_spread_over_the_external_ones() -> None:
    pool = replace(POOL, addresses=MORE)
    first = {addresses(replace(KEY, source=IPv4Address(f"192.168.0.{n}")), pool)[0] for n in range(1, 30)}
    assert first == set(MORE)


def test_every_port_of_a_range_is_tried_once() -> None:
    pool = replace(POOL, ports=PortRange(20000, 29999))
    assert sorted(candidates(KEY, pool)) == list(range(20000, 30000))


def test_sctp_keeps_its_port_or_has_none() -> None:
    nat = engine()
    there = out(nat, frame(N_3, WORLD, SCTP(sport=777, dport=9)))
    assert show(there.frame)[IP].src == str(EXTERNAL)
    assert show(there.frame)[SCTP].sport == 777
    other = engine(held=((132, 777),))
    assert out(other, frame(N_3, WORLD, SCTP(sport=777, dport=9))).reason is DropReason.NAT_EXHAUSTED
    answer = back(nat, frame(WORLD, str(EXTERNAL), SCTP(sport=9, dport=777)))
    assert (answer.verdict, answer.port) == (Verdict.REDIRECT_PORT, 3)


@pytest.mark.parametrize("protocol", [47, 50, 136])
def test_what_has_no_ports_has_the_address_for_itself(protocol: int) -> None:
    nat = engine()
    packet = frame(N_3, WORLD, Raw(bytes(8)), proto=protocol)
    assert show(out(nat, packet).frame)[IP].src == str(EXTERNAL)
    (binding,) = nat.bindings.live()
    assert binding.external == External(EXTERNAL, protocol, 0)
    with pytest.raises(Exhausted):
        nat.bindings.obtain(BindingKey(4, 1, protocol, IPv4Address("192.168.0.4"), 0), POOL, 0.0)


def test_held_ports_are_not_given_but_not_taken_away() -> None:
    bindings = Bindings()
    assert bindings.obtain(replace(KEY, source_port=20003), POOL, 0.0).port == 20003
    pool = replace(POOL, held=tuple((17, port) for port in range(20000, 20008)))
    assert bindings.obtain(replace(KEY, source_port=20003), pool, 0.0).port == 20003
    rest = {bindings.obtain(replace(KEY, source_port=n), pool, 0.0).port for n in (1, 2)}
    assert rest == {20008, 20009}
    with pytest.raises(Exhausted):
        bindings.obtain(replace(KEY, source_port=3), pool, 0.0)
    assert bindings.obtain(replace(KEY, protocol=6, source_port=20000), pool, 0.0).port == 20000


def test_a_quota_is_of_one_port_and_leaves_others_alone() -> None:
    bindings, pool = Bindings(), replace(POOL, quota=2)
    for number in (1, 2):
        bindings.obtain(replace(KEY, source_port=number), pool, 0.0)
    with pytest.raises(OverQuota):
        bindings.obtain(replace(KEY, source_port=3), pool, 0.0)
    assert bindings.obtain(replace(KEY, source_port=2), pool, 0.0)
    assert bindings.obtain(replace(KEY, port=4), pool, 0.0)
    assert out(engine(quota=1), udp(N_3, WORLD, 1)).verdict is Verdict.REDIRECT_UPLINK
    full = engine(quota=1)
    out(full, udp(N_3, WORLD, 1))
    assert out(full, udp(N_3, WORLD, 2)).reason is DropReason.NAT_QUOTA


def test_blocks_are_of_one_port_each_and_go_when_they_are_empty() -> None:
    bindings, pool = Bindings(), replace(POOL, block=3)
    ours = [bindings.obtain(replace(KEY, source_port=n), pool, 0.0).port for n in range(4)]
    theirs = bindings.obtain(replace(KEY, port=4), pool, 0.0).port
    first, second = (block.first for block in blocks(EXTERNAL, 3, pool)[:2])
    assert {(port - 20000) // 3 * 3 + 20000 for port in ours[:3]} == {first}
    assert (ours[3] - 20000) // 3 * 3 + 20000 == second
    assert (theirs - 20000) // 3 not in {(port - 20000) // 3 for port in ours}
    assert theirs < 20009                   # a tenth port is in no whole block
    with pytest.raises(Exhausted):
        bindings.obtain(replace(KEY, port=5), pool, 0.0)
    bindings.sweep(set(), set(), 3.0, lambda port: 2.0)
    assert bindings.blocks() == {}


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 6, 17]), st.integers(0, 30)), max_size=40))
def test_no_port_is_in_the_block_of_another(wanted: list[tuple[int, int, int]]) -> None:
    bindings, pool = Bindings(), replace(POOL, block=2, addresses=MORE[:2])
    for port, protocol, number in wanted:
        key = BindingKey(port, 1, protocol, IPv4Address(f"192.168.0.{port}"), number)
        try:
            bindings.obtain(key, pool, 0.0)
        except Exhausted:
            continue
    for binding in bindings.live():
        (block,) = [block for block in bindings.blocks() if binding.external in block]
        assert bindings.blocks()[block] == (binding.key.port, 1)


# Who comes in.


def test_anyone_reaches_a_binding_with_endpoint_independent_filtering() -> None:
    nat = engine()
    out(nat, udp(N_3, WORLD, 20003))
    stranger = back(nat, udp(OTHER, str(EXTERNAL), 9, 20003))
    assert (stranger.verdict, stranger.port) == (Verdict.REDIRECT_PORT, 3)
    assert (show(stranger.frame)[IP].dst, show(stranger.frame)[UDP].dport) == (N_3, 20003)
    assert stranger.frame == recomputed(stranger.frame)
    assert stranger.frame[6:12] == GATEWAY_MAC
    assert back(nat, udp(OTHER, str(EXTERNAL), 9, 20004)).verdict is Verdict.STACK
    assert back(nat, tcp(OTHER, str(EXTERNAL), 9, 20003)).verdict is Verdict.STACK


def test_address_dependent_filtering_knows_whom_was_sent_to() -> None:
    nat = engine(filtering=Filtering.ADDRESS)
    out(nat, udp(N_3, WORLD, 20003))
    assert back(nat, udp(WORLD, str(EXTERNAL), 9, 20003)).verdict is Verdict.REDIRECT_PORT
    assert back(nat, udp(OTHER, str(EXTERNAL), 9, 20003)).reason is DropReason.NAT_FILTERED
    out(nat, udp(N_3, OTHER, 20003))
    assert back(nat, udp(OTHER, str(EXTERNAL), 9, 20003)).verdict is Verdict.REDIRECT_PORT


def test_a_contact_ends_with_the_flows_between_the_two() -> None:
    nat = engine(filtering=Filtering.ADDRESS)
    out(nat, udp(N_3, WORLD, 20003))
    out(nat, udp(N_3, OTHER, 20003))
    nat.sweep(100.0)
    out(nat, udp(N_3, WORLD, 20003), 100.0)
    nat.sweep(121.0)                        # udp_new: 120 s
    nat.sweep(124.0)
    assert back(nat, udp(WORLD, str(EXTERNAL), 9, 20003), 124.0).verdict is Verdict.REDIRECT_PORT
    assert back(nat, udp(OTHER, str(EXTERNAL), 9, 20003), 124.0).reason is DropReason.NAT_FILTERED


def test_address_and_port_dependent_filtering_lets_answers_in_and_nothing_else() -> None:
    nat = engine(filtering=Filtering.ADDRESS_PORT)
    out(nat, udp(N_3, WORLD, 20003, 53))
    assert back(nat, udp(WORLD, str(EXTERNAL), 53, 20003)).verdict is Verdict.REDIRECT_PORT
    assert back(nat, udp(WORLD, str(EXTERNAL), 54, 20003)).reason is DropReason.NAT_FILTERED


def test_a_flow_from_outside_keeps_the_binding() -> None:
    nat = engine()
    out(nat, udp(N_3, WORLD, 20003))
    back(nat, udp(OTHER, str(EXTERNAL), 9, 20003), 119.0)
    nat.sweep(121.0)
    nat.sweep(124.0)
    assert len(nat.bindings) == 1
    assert out(nat, udp(N_3, OTHER, 20003, 9), 125.0).uplink == 1
    nat.sweep(1000.0)
    nat.sweep(1003.0)
    assert len(nat.bindings) == 0


def test_a_binding_of_another_uplink_is_not_found() -> None:
    nat = engine(uplink=2)
    out(nat, udp(N_3, WORLD, 20003))
    assert back(nat, udp(OTHER, str(EXTERNAL), 9, 20003)).verdict is Verdict.STACK


# Removal.


def test_who_gets_the_id_of_a_port_that_is_gone_inherits_nothing() -> None:
    state = host()
    nat = Engine(state)
    out(nat, udp(N_3, WORLD, 20003))
    nat.update(replace(state, ports=state.ports[:2], mappings=()))
    assert len(nat.bindings) == 0
    nat.update(state)
    assert back(nat, udp(WORLD, str(EXTERNAL), 53, 20003)).verdict is Verdict.STACK
    out(nat, udp(N_3, WORLD, 20003))
    moved = replace(state.ports[2], mac=bytes.fromhex("0200000000aa"))
    nat.update(replace(state, ports=(*state.ports[:2], moved)))
    assert len(nat.bindings) == 0
    assert back(nat, udp(WORLD, str(EXTERNAL), 53, 20003)).verdict is Verdict.STACK


def test_a_pool_takes_its_bindings_along() -> None:
    nat = engine(log=True)
    out(nat, udp(N_3, WORLD, 20003))
    nat.update(replace(nat.state, pools=()))
    assert len(nat.bindings) == 0
    assert [told.kind for told in nat.bindings.log] == ["bound", "released"]


@pytest.mark.parametrize(("terms", "says"), [
    ({"addresses": ()}, "0 addresses"),
    ({"addresses": tuple(IPv4Address(n) for n in range(1, 18))}, "17 addresses"),
    ({"addresses": (EXTERNAL, IPv6Address("2001:db8::1"))}, "both families"),
    ({"addresses": (EXTERNAL, EXTERNAL)}, "twice"),
    ({"ports": PortRange(5, 4)}, "5-4"),
    ({"ports": PortRange(5, 65536)}, "65536"),
    ({"block": 11}, "block 11"),
    ({"block": -1}, "block -1"),
    ({"quota": -1}, "quota -1"),
    ({"held": ((17, 70000),)}, "70000"),
])
def test_a_pool_that_contradicts_itself_is_refused(terms: dict[str, object], says: str) -> None:
    state = host()
    wrong = replace(state, pools=(replace(state.pools[0], **terms),))  # type: ignore[arg-type]
    with pytest.raises(CompileError, match=says):
        Compiler().compile(wrong, 64)
