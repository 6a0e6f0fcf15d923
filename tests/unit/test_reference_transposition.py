"""Header transposition: laws of composition, and bytes against scapy."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_kit import A_1, A_9, GATEWAY_MAC, MAC_2, frame, recomputed, show
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from vfp.reasons import DropReason
from vfp.reference.packet import ICMP as ICMP_PROTOCOL
from vfp.reference.packet import FlowTuple, parse
from vfp.reference.transposition import (
    Change,
    Incomposable,
    ToVtep,
    Transposition,
    Undeliverable,
    apply,
    between,
    compose,
    inverse,
    rewrite_tuple,
    update_checksum,
)

ports = st.integers(0, 65535)
addresses = st.builds(IPv4Address, st.integers(0, 2**32 - 1))
tuples = st.builds(FlowTuple, st.just(4), st.just(6), addresses, addresses, ports, ports)


@given(tuples, tuples, tuples, tuples)
def test_composition_is_associative_and_does_both(a: FlowTuple, b: FlowTuple, c: FlowTuple, d: FlowTuple) -> None:
    first, second, third = between(a, b), between(b, c), between(c, d)
    assert compose(compose(first, second), third) == compose(first, compose(second, third)) == between(a, d)
    assert rewrite_tuple(a, compose(first, second)) == c


@given(tuples, tuples)
def test_identity_and_inverse(a: FlowTuple, b: FlowTuple) -> None:
    there = between(a, b)
    assert compose(there, Transposition()) == compose(Transposition(), there) == there
    assert inverse(inverse(there)) == there
    assert rewrite_tuple(b.reversed(), inverse(there)) == a.reversed()


@given(tuples, tuples, tuples)
def test_the_inverse_of_both_is_the_inverses_the_other_way_round(a: FlowTuple, b: FlowTuple, c: FlowTuple) -> None:
    first, second = between(a, b), between(b, c)
    assert inverse(compose(first, second)) == compose(inverse(second), inverse(first))


def test_nothing_inside_a_tunnel_is_rewritten() -> None:
    wrapped = Transposition(exit=ToVtep(IPv4Address("172.31.0.2"), 5))
    for later in (Transposition(src_port=Change(1, 2)), Transposition(dst_mac=MAC_2), Transposition(routed=True)):
        with pytest.raises(Incomposable):
            compose(wrapped, later)


def test_a_change_must_start_where_the_one_before_ends() -> None:
    with pytest.raises(Incomposable):
        compose(Transposition(src_port=Change(1, 2)), Transposition(src_port=Change(3, 4)))


@given(st.binary(min_size=20, max_size=60).filter(lambda data: len(data) % 2 == 0), st.binary(min_size=4, max_size=4))
def test_incremental_checksum_equals_a_full_one(data: bytes, new: bytes) -> None:
    def full(content: bytes) -> int:
        total = sum(int.from_bytes(content[i:i + 2], "big") for i in range(0, len(content), 2))
        while total > 0xFFFF:
            total = (total & 0xFFFF) + (total >> 16)
        return ~total & 0xFFFF

    changed = data[:8] + new + data[12:]
    updated = update_checksum(full(data), data[8:12], new)
    # 0 and 0xFFFF are the same number in ones' complement.
    assert updated % 0xFFFF == full(changed) % 0xFFFF


TRANSPORTS = {
    "tcp": lambda a, b: TCP(sport=a, dport=b) / b"odd",
    "udp": lambda a, b: UDP(sport=a, dport=b) / b"even",
    "sctp": lambda a, b: SCTP(sport=7, dport=8),
    "gre": lambda a, b: Raw(bytes(9)),
}


@given(st.sampled_from(sorted(TRANSPORTS)), tuples, tuples, st.integers(2, 255), st.booleans())
def test_rewritten_packets_have_right_checksums(kind: str, old: FlowTuple, new: FlowTuple, ttl: int,
                                                routed: bool) -> None:
    proto = {"proto": 47} if kind == "gre" else {}
    data = frame(str(old.src), str(old.dst), TRANSPORTS[kind](old.src_port, old.dst_port), src_mac=MAC_2,
                 ttl=ttl, **proto)
    packet = parse(data)
    wanted = new if kind in ("tcp", "udp") else FlowTuple(
        4, packet.tuple.protocol, new.src, new.dst, packet.tuple.src_port, packet.tuple.dst_port)
    how = between(packet.tuple, wanted)
    out = apply(data, packet, compose(how, Transposition(routed=routed, src_mac=GATEWAY_MAC)))
    assert out == recomputed(out)
    shown = show(out)
    assert (shown[IP].src, shown[IP].dst, shown[IP].ttl) == (str(new.src), str(new.dst), ttl - routed)
    assert shown.src == GATEWAY_MAC.hex(":")
    if kind in ("tcp", "udp"):
        layer = shown[TCP] if kind == "tcp" else shown[UDP]
        assert (layer.sport, layer.dport) == (new.src_port, new.dst_port)


@given(tuples, tuples)
def test_translating_there_and_the_answer_back_is_the_identity(old: FlowTuple, new: FlowTuple) -> None:
    there = between(old, new)
    answer = frame(str(new.dst), str(new.src), TCP(sport=new.dst_port, dport=new.src_port), src_mac=MAC_2)
    out = parse(apply(answer, parse(answer), inverse(there))).tuple
    assert out == old.reversed()


def test_the_identifier_of_an_echo_is_rewritten_with_its_checksum() -> None:
    data = frame(A_1, A_9, ICMP(id=7, seq=3) / b"payload")
    old = parse(data).tuple
    assert old.protocol == ICMP_PROTOCOL
    out = apply(data, parse(data), between(old, FlowTuple(4, 1, old.src, old.dst, 20001, 20001)))
    assert show(out)[ICMP].id == 20001
    assert out == recomputed(out)


def test_udp_without_a_checksum_stays_without() -> None:
    data = frame(A_1, A_9, UDP(sport=1, dport=2, chksum=0) / b"x")
    out = apply(data, parse(data), Transposition(src_port=Change(1, 9), src=Change(
        IPv4Address(A_1), IPv4Address("192.0.2.1"))))
    assert show(out)[UDP].chksum == 0
    assert show(out)[UDP].sport == 9


def test_a_udp_checksum_that_becomes_zero_is_sent_as_all_ones() -> None:
    data = frame(A_1, A_9, UDP(sport=0, dport=2) / b"x")
    check = show(data)[UDP].chksum
    out = apply(data, parse(data), Transposition(src_port=Change(0, check)))
    assert show(out)[UDP].chksum == 0xFFFF


def test_a_later_fragment_has_only_its_ip_header_rewritten() -> None:
    data = frame(A_1, A_9, Raw(b"\0\1\0\2" + bytes(20)), proto=6, frag=3)
    out = apply(data, parse(data), Transposition(
        src=Change(IPv4Address(A_1), IPv4Address("192.0.2.1")), src_port=Change(1, 9)))
    assert out[34:] == data[34:]
    assert out[:34] == recomputed(out)[:34]


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_routed_packet_with_no_time_left_is_undeliverable(ttl: int) -> None:
    data = frame(A_1, A_9, TCP(), ttl=ttl)
    with pytest.raises(Undeliverable) as caught:
        apply(data, parse(data), Transposition(routed=True))
    assert caught.value.reason is DropReason.TTL_EXCEEDED
    assert apply(data, parse(data), Transposition()) == data


def test_a_wrong_header_checksum_stays_wrong() -> None:
    data = bytes(Ether(src=MAC_2.hex(":")) / IP(src=A_1, dst=A_9, chksum=1) / TCP())
    out = apply(data, parse(data), Transposition(routed=True))
    assert out != recomputed(out)
