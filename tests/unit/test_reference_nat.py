"""Source translation, mappings, uplinks."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_kit import (
    EXTERNAL,
    GATEWAY_MAC,
    MAC_3,
    N_3,
    WORLD,
    arp,
    deny_in,
    echo,
    frame,
    host,
    recomputed,
    show,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from vfp.model import Pool, PortRange
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict
from vfp.reference.bindings import BindingKey, Bindings, Exhausted, binding_hash, candidates
from vfp.reference.transposition import ToPort

ROUTER_MAC = bytes.fromhex("02000000aaaa")


def out(engine: Engine, data: bytes, now_s: float = 0.0) -> Result:
    return engine.process(Hook.PORT_OUT, 3, data, now_s=now_s)


def back(engine: Engine, data: bytes, now_s: float = 0.0) -> Result:
    return engine.process(Hook.UPLINK_IN, 1, data, now_s=now_s)


def test_the_hash_is_fnv_1a_over_the_key() -> None:
    """Computed by hand from the definition, so that both engines can be held against it."""
    key = BindingKey(3, 1, 6, IPv4Address("192.168.0.3"), 1000)
    value = 2166136261
    for byte in bytes([3, 0, 0, 0, 6, 192, 168, 0, 3, 0x03, 0xE8]):
        value = (value ^ byte) * 16777619 % 2**32
    assert binding_hash(key) == value
    tries = list(candidates(key, Pool(1, 1, (EXTERNAL,), PortRange(20000, 20009))))
    assert tries == [20000 + (value + n) % 10 for n in range(10)]


def test_out_and_back_is_the_identity_but_for_ttl_and_macs() -> None:
    engine = Engine(host(three=(deny_in(),)))
    there = out(engine, udp(N_3, WORLD, 5000, 53))
    assert (there.verdict, there.uplink) == (Verdict.REDIRECT_UPLINK, 1)
    seen = show(there.frame)
    assert (seen[IP].src, seen[IP].dst, seen[IP].ttl) == (str(EXTERNAL), WORLD, 63)
    assert 20000 <= seen[UDP].sport <= 20009
    assert there.frame == recomputed(there.frame)
    answer = back(engine, udp(WORLD, str(EXTERNAL), 53, seen[UDP].sport))
    assert (answer.verdict, answer.port) == (Verdict.REDIRECT_PORT, 3)
    wanted = udp(WORLD, N_3, 53, 5000, ttl=63, src_mac=GATEWAY_MAC, dst_mac=MAC_3)
    assert answer.frame == wanted


def test_an_echo_keeps_its_meaning_behind_another_identifier() -> None:
    engine = Engine(host())
    there = out(engine, echo(N_3, WORLD, 7))
    identifier = show(there.frame)[ICMP].id
    assert 20000 <= identifier <= 20009
    answer = back(engine, echo(WORLD, str(EXTERNAL), identifier, reply=True))
    assert show(answer.frame)[ICMP].id == 7
    assert answer.frame == recomputed(answer.frame)


def test_one_binding_serves_all_remotes_and_prefers_the_source_port() -> None:
    engine = Engine(host())
    ports = {show(out(engine, udp(N_3, remote, 20007)).frame)[UDP].sport for remote in (WORLD, "203.0.113.8")}
    assert ports == {20007}
    assert len(engine.bindings) == 1


@pytest.mark.parametrize("data", [
    frame(N_3, WORLD, ICMP(type=3) / bytes(28)),
    arp(N_3, WORLD, mac=MAC_3),
], ids=["icmp error", "arp"])
def test_what_nobody_answers_cannot_be_translated(data: bytes) -> None:
    assert out(Engine(host()), data).reason is DropReason.NAT_UNSUPPORTED


def test_a_pool_runs_out_and_recovers_when_bindings_age() -> None:
    engine = Engine(host())
    for port in range(10):
        assert out(engine, udp(N_3, WORLD, 100 + port)).verdict is Verdict.REDIRECT_UPLINK
    assert out(engine, udp(N_3, WORLD, 99)).reason is DropReason.NAT_EXHAUSTED
    assert out(engine, tcp(N_3, WORLD, 99)).verdict is Verdict.REDIRECT_UPLINK
    engine.sweep(241.0)
    assert not engine.flows(0.0)
    assert len(engine.bindings) == 0
    assert out(engine, udp(N_3, WORLD, 99), 241.0).verdict is Verdict.REDIRECT_UPLINK


def test_a_binding_lives_as_long_as_a_flow_that_uses_it() -> None:
    engine = Engine(host())
    out(engine, tcp(N_3, WORLD, 20003))
    back(engine, tcp(WORLD, str(EXTERNAL), 80, 20003, "SA"))
    out(engine, tcp(N_3, WORLD, 20003, flags="A"))
    engine.sweep(7440.0)
    assert len(engine.bindings) == 1
    engine.sweep(7441.0)
    assert (len(engine.flows(0.0)), len(engine.bindings)) == (0, 1)
    engine.sweep(7443.0)
    assert (len(engine.flows(0.0)), len(engine.bindings)) == (0, 0)


def test_a_changed_pool_gives_new_bindings_and_ends_the_old_replies() -> None:
    state = host()
    engine = Engine(state)
    out(engine, udp(N_3, WORLD, 20003))
    other = IPv4Address("198.51.100.2")
    engine.update(replace(state, pools=(replace(state.pools[0], addresses=(other,)),)))
    assert back(engine, udp(WORLD, str(EXTERNAL), 53, 20003)).reason is DropReason.FLOW_CHANGED
    assert show(out(engine, udp(N_3, WORLD, 20003)).frame)[IP].src == str(other)
    engine.update(replace(state, pools=(replace(state.pools[0], addresses=(other,), ports=PortRange(30000, 30001)),)))
    assert show(out(engine, udp(N_3, WORLD, 20003)).frame)[UDP].sport in (30000, 30001)
    assert len(engine.bindings) == 1


keys = st.builds(BindingKey, st.integers(1, 2), st.integers(1, 2), st.sampled_from([1, 6, 17]),
                 st.sampled_from([IPv4Address(N_3), IPv4Address("192.168.0.4")]), st.integers(20000, 20015))


@given(st.lists(st.tuples(keys, st.booleans())))
def test_no_two_live_bindings_share_an_external_tuple(steps: list[tuple[BindingKey, bool]]) -> None:
    """Two pools on one address, one of them overlapping; the pools change under way."""
    bindings = Bindings()
    for key, moved in steps:
        pool = Pool(key.pool, 1, (EXTERNAL,), PortRange(20000 + 4 * moved, 20006 + key.pool))
        try:
            external = bindings.obtain(key, pool, 0.0)
        except Exhausted:
            continue
        assert external.protocol == key.protocol
        assert pool.ports.low <= external.port <= pool.ports.high
        assert bindings.obtain(key, pool, 0.0) == external
        live = [binding.external for binding in bindings.live()]
        assert len(live) == len(set(live))


# Mappings and the uplink.


def test_a_mapping_reaches_its_port_and_the_answer_leaves_as_the_host() -> None:
    engine = Engine(host())
    there = back(engine, tcp(WORLD, str(EXTERNAL), 4000, 8080, src_mac=ROUTER_MAC))
    assert (there.verdict, there.port) == (Verdict.REDIRECT_PORT, 3)
    assert there.frame == tcp(WORLD, N_3, 4000, 80, ttl=63, src_mac=GATEWAY_MAC, dst_mac=MAC_3)
    answer = out(engine, tcp(N_3, WORLD, 80, 4000, "SA", src_mac=MAC_3))
    assert (answer.verdict, answer.uplink) == (Verdict.REDIRECT_UPLINK, 1)
    assert (show(answer.frame)[IP].src, show(answer.frame)[TCP].sport) == (str(EXTERNAL), 8080)
    assert answer.frame == recomputed(answer.frame)
    assert len(engine.bindings) == 0


def test_the_policy_of_the_port_sees_the_internal_side_of_a_mapping() -> None:
    engine = Engine(host(three=(deny_in(dst_ports=PortRange(80, 80)),)))
    assert back(engine, tcp(WORLD, str(EXTERNAL), 4000, 8080)).reason is DropReason.DENIED


@pytest.mark.parametrize("data", [
    b"short",
    tcp(WORLD, str(EXTERNAL), 1, 8081),
    udp(WORLD, str(EXTERNAL), 1, 8080),
    arp(WORLD, str(EXTERNAL)),
    tcp(WORLD, str(EXTERNAL), 1, 8080)[:50],
    tcp(WORLD, str(EXTERNAL), 1, 8080, frag=3),
    frame(WORLD, str(EXTERNAL), ICMP(type=3) / bytes(28)),
])
def test_what_is_not_ours_is_left_to_the_host_untouched_and_uncounted(data: bytes) -> None:
    engine = Engine(host())
    result = back(engine, data)
    assert (result.verdict, result.frame) == (Verdict.STACK, data)
    assert not engine.flows(0.0)
    assert not engine.drop_counts


def test_a_removed_mapping_ends_its_connections() -> None:
    state = host()
    engine = Engine(state)
    back(engine, tcp(WORLD, str(EXTERNAL), 4000, 8080))
    engine.update(replace(state, mappings=()))
    assert out(engine, tcp(N_3, WORLD, 80, 4000, "SA")).reason is DropReason.NO_MAPPING
    assert back(engine, tcp(WORLD, str(EXTERNAL), 4000, 8080, "A")).reason is DropReason.NO_MAPPING
    assert back(engine, tcp(WORLD, str(EXTERNAL), 4001, 8080)).verdict is Verdict.STACK


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_packet_out_of_time_is_dropped_where_it_would_be_routed(ttl: int) -> None:
    engine = Engine(host())
    assert out(engine, udp(N_3, WORLD, ttl=ttl)).reason is DropReason.TTL_EXCEEDED
    assert back(engine, tcp(WORLD, str(EXTERNAL), 1, 8080, ttl=ttl)).reason is DropReason.TTL_EXCEEDED
    assert out(engine, udp(N_3, "192.168.0.1", ttl=ttl)).verdict is Verdict.STACK


def test_fragments_are_translated_like_their_first() -> None:
    engine = Engine(host())
    first = frame(N_3, WORLD, UDP(sport=5000, dport=53, len=60) / bytes(24), flags="MF", id=9)
    there = out(engine, first)
    later = out(engine, frame(N_3, WORLD, Raw(bytes(24)), proto=17, frag=4, id=9))
    assert (later.verdict, later.uplink) == (Verdict.REDIRECT_UPLINK, 1)
    assert show(later.frame)[IP].src == str(EXTERNAL)
    assert later.frame[34:] == bytes(24)
    assert there.flows == later.flows


def test_an_uplink_that_does_not_exist_and_frames_that_cannot_be_routed_have_no_route() -> None:
    state = host()
    assert out(Engine(replace(state, uplinks=())), udp(N_3, WORLD)).reason is DropReason.NO_ROUTE
    nat, vnet = state.ports[2].layers
    plain = replace(state, ports=(replace(state.ports[2], layers=(vnet,)),))
    assert nat.name == "nat"
    assert out(Engine(plain), arp(N_3, WORLD, mac=MAC_3)).reason is DropReason.NO_ROUTE


def test_what_is_too_big_for_the_uplink_is_dropped_and_its_sender_told() -> None:
    """RFC 4787 REQ-13, RFC 1191 section 4. The endpoint is told of the packet that it sent, not of its translation."""
    state = host()
    engine = Engine(replace(state, uplinks=(replace(state.uplinks[0], mtu=1400),)))
    assert out(engine, udp(N_3, WORLD, 5000, payload=bytes(1372))).verdict is Verdict.REDIRECT_UPLINK
    for data in (udp(N_3, WORLD, 5000, payload=bytes(1373)), frame(N_3, WORLD, TCP(sport=1, dport=2) / bytes(1361)),
                 udp(N_3, WORLD, 5000, payload=bytes(1373), flags="DF")):
        seen = out(engine, data)
        assert (seen.verdict, seen.reason, seen.drop_port) == (Verdict.DROP, DropReason.TOO_BIG, 3)
        assert seen.answer is not None
        assert seen.answer.exit == ToPort(3)
        told = show(seen.answer.frame)
        assert (told[IP].src, told[IP].dst) == (WORLD, N_3)
        assert (told[ICMP].type, told[ICMP].code, told[ICMP].nexthopmtu) == (3, 4, 1400)
        assert seen.answer.frame[42:] == data[14:14 + 548]
    assert engine.drop_counts == {DropReason.TOO_BIG: 3}


@pytest.mark.parametrize(("mtu", "size"), [(0, 9000), (400, 576), (1280, 1280)])
def test_an_uplink_of_unknown_mtu_and_small_packets_are_not_checked(mtu: int, size: int) -> None:
    state = host()
    engine = Engine(replace(state, uplinks=(replace(state.uplinks[0], mtu=mtu),)))
    assert out(engine, udp(N_3, WORLD, payload=bytes(size - 28))).verdict is Verdict.REDIRECT_UPLINK


def test_what_goes_to_the_hosts_own_sockets_is_never_too_big() -> None:
    state = host()
    engine = Engine(replace(state, uplinks=(replace(state.uplinks[0], mtu=1400, loopback=True),)))
    assert out(engine, udp(N_3, WORLD, payload=bytes(1400))).verdict is Verdict.REDIRECT_UPLINK


def test_another_mtu_is_in_force_at_once() -> None:
    state = host()
    engine = Engine(replace(state, uplinks=(replace(state.uplinks[0], mtu=1500),)))
    data = udp(N_3, WORLD, payload=bytes(1400))
    assert out(engine, data).verdict is Verdict.REDIRECT_UPLINK
    assert 3 in engine.update(replace(state, uplinks=(replace(state.uplinks[0], mtu=1400),)))
    assert out(engine, data).reason is DropReason.TOO_BIG
