"""Frames to headers, and the first reason why not."""

import pytest
from reference_kit import A_1, A_9, MAC_1, arp, echo, frame, tcp, udp
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from vfp.reasons import DropReason
from vfp.reference.extensions import Malformed
from vfp.reference.fragments import KEEP_S, FragmentTable
from vfp.reference.packet import Part, parse
from vfp.reference.zones import Zone, ZoneKind

ZONE = Zone(ZoneKind.PORT, 1)
IP_AT = 14
L4_AT = 34


def patched(data: bytes, at: int, *values: int) -> bytes:
    return data[:at] + bytes(values) + data[at + len(values):]


def reason_of(data: bytes) -> DropReason:
    with pytest.raises(Malformed) as caught:
        parse(data)
    return caught.value.reason


def ports_of(data: bytes) -> tuple[int, int]:
    what = parse(data).tuple
    return what.src_port, what.dst_port


@pytest.mark.parametrize("length", [0, 1, 13])
def test_a_frame_shorter_than_its_header_is_malformed(length: int) -> None:
    assert reason_of(bytes(length)) is DropReason.MALFORMED_ETHERNET


@pytest.mark.parametrize("kind", [0x8100, 0x88A8])
def test_a_vlan_tag_is_refused_before_anything_behind_it(kind: int) -> None:
    assert reason_of(bytes(Ether(type=kind) / Dot1Q(vlan=5) / IP())) is DropReason.VLAN_TAGGED


@pytest.mark.parametrize(("at", "value"), [(14, 9), (16, 9), (18, 5), (19, 16)])
def test_arp_of_another_kind_is_malformed(at: int, value: int) -> None:
    assert reason_of(patched(arp(A_1, A_9), at, value)) is DropReason.MALFORMED_ARP


def test_truncated_arp_is_malformed() -> None:
    assert reason_of(arp(A_1, A_9)[:41]) is DropReason.MALFORMED_ARP


def test_arp_addresses_and_opcode_are_the_tuple() -> None:
    packet = parse(patched(arp(A_1, A_9), 20, 1, 2))
    assert (str(packet.tuple.src), str(packet.tuple.dst), packet.tuple.protocol) == (A_1, A_9, 2)
    assert packet.headers.arp_sender_mac == MAC_1
    assert not packet.is_flow


@pytest.mark.parametrize(
    ("at", "values"),
    [(IP_AT, (0x65,)), (IP_AT, (0x44,)), (IP_AT + 2, (0, 19)), (IP_AT + 2, (4, 0)), (IP_AT, (0x4F,))],
    ids=["version 6", "IHL 4", "total below header", "total above frame", "options beyond total"],
)
def test_ipv4_that_contradicts_itself_is_malformed(at: int, values: tuple[int, ...]) -> None:
    assert reason_of(patched(tcp(A_1, A_9), at, *values)) is DropReason.MALFORMED_IPV4


def test_ipv4_shorter_than_a_header_is_malformed() -> None:
    assert reason_of(tcp(A_1, A_9)[:33]) is DropReason.MALFORMED_IPV4


def test_padding_behind_the_packet_and_a_wrong_header_checksum_are_allowed() -> None:
    assert ports_of(patched(tcp(A_1, A_9) + bytes(18), IP_AT + 10, 1, 2)) == (1000, 80)


def test_options_are_skipped() -> None:
    packet = parse(tcp(A_1, A_9, options=[IPOption_NOP()] * 8))
    assert packet.transport == 14 + 28
    assert packet.tuple.dst_port == 80


@pytest.mark.parametrize(
    "data",
    [
        frame(A_1, A_9, Raw(bytes(19)), proto=6),
        patched(tcp(A_1, A_9), L4_AT + 12, 0x40),
        patched(tcp(A_1, A_9), L4_AT + 12, 0x60),
        frame(A_1, A_9, Raw(bytes(7)), proto=17),
        patched(udp(A_1, A_9), L4_AT + 4, 0, 7),
        patched(udp(A_1, A_9), L4_AT + 4, 0, 10),
        frame(A_1, A_9, Raw(bytes(11)), proto=132),
        frame(A_1, A_9, Raw(bytes(7)), proto=1),
    ],
    ids=["TCP short", "TCP offset 4", "TCP offset beyond", "UDP short", "UDP length 7", "UDP length beyond",
         "SCTP short", "ICMP short"],
)
def test_a_transport_header_that_does_not_fit_is_malformed(data: bytes) -> None:
    assert reason_of(data) is DropReason.MALFORMED_TRANSPORT


def test_a_udp_length_beyond_the_frame_is_right_in_a_first_fragment() -> None:
    assert ports_of(patched(udp(A_1, A_9, payload=bytes(8), flags="MF"), L4_AT + 4, 8, 0)) == (1000, 53)


def test_ports_by_protocol() -> None:
    assert ports_of(frame(A_1, A_9, SCTP(sport=5, dport=6))) == (5, 6)
    assert ports_of(echo(A_1, A_9, 77)) == (77, 0)
    assert ports_of(echo(A_1, A_9, 77, reply=True)) == (0, 77)
    assert ports_of(frame(A_1, A_9, Raw(b"\1\2\3\4"), proto=47)) == (0, 0)


def test_only_echo_of_icmp_is_a_flow() -> None:
    assert parse(echo(A_1, A_9)).is_flow
    assert parse(echo(A_1, A_9, reply=True)).is_flow
    unreachable = parse(frame(A_1, A_9, ICMP(type=3, code=1) / bytes(28)))
    assert not unreachable.is_flow
    assert (unreachable.headers.icmp_type, unreachable.headers.icmp_code) == (3, 1)


def test_dscp_and_tcp_flags() -> None:
    packet = parse(tcp(A_1, A_9, flags="SAEC", tos=0xB9))
    assert (packet.headers.dscp, packet.headers.tcp_flags) == (46, 0xD2)


def test_any_other_ethertype_has_an_empty_tuple() -> None:
    packet = parse(bytes(Ether(type=0x88CC)) + bytes(40))
    assert (int(packet.tuple.src), packet.tuple.protocol, packet.is_flow) == (0, 0, False)


def first(protocol: int = 17, payload: int = 24, identification: int = 9) -> bytes:
    """A first fragment with `payload` bytes after its header."""
    head = {1: ICMP(type=13, code=0), 6: TCP(sport=1000, dport=80, flags="S"), 17: UDP(sport=1000, dport=53, len=900)}
    return frame(A_1, A_9, head[protocol] / bytes(payload), proto=protocol, flags="MF", id=identification)


def later(protocol: int, identification: int = 9, *, at: int = 4, units: int = 2, more: bool = False) -> bytes:
    """A later fragment: `units` of 8 bytes from unit `at` on."""
    flags = "MF" if more else ""
    return frame(A_1, A_9, Raw(bytes(8 * units)), proto=protocol, frag=at, id=identification, flags=flags)


def refused(table: FragmentTable, data: bytes, now_s: float = 0.0) -> DropReason:
    """Why the table does not take a fragment."""
    with pytest.raises(Malformed) as caught:
        table.resolve(ZONE, parse(data), now_s)
    return caught.value.reason


def test_a_later_fragment_has_ports_and_flags_of_the_first() -> None:
    table = FragmentTable()
    table.resolve(ZONE, parse(first(6, 4)), 0.0)
    packet = table.resolve(ZONE, parse(later(6)), 0.0)
    assert packet.part is Part.LATER
    assert (packet.tuple.src_port, packet.tuple.dst_port, packet.headers.tcp_flags) == (1000, 80, 2)


def test_no_part_of_a_datagram_comes_twice() -> None:
    table = FragmentTable()
    table.resolve(ZONE, parse(first()), 0.0)
    assert refused(table, first()) is DropReason.FRAGMENT_OVERLAP
    assert refused(table, later(17, at=3)) is DropReason.FRAGMENT_OVERLAP
    table.resolve(ZONE, parse(later(17, at=8, more=True)), 0.0)
    assert refused(table, later(17, at=7, more=True)) is DropReason.FRAGMENT_OVERLAP
    assert refused(table, later(17, at=4)) is DropReason.FRAGMENT_OVERLAP, "the last one ends before another"
    table.resolve(ZONE, parse(later(17, at=10)), 0.0)
    assert refused(table, later(17, at=12)) is DropReason.FRAGMENT_OVERLAP, "after the end"
    table.resolve(ZONE, parse(later(17, at=4, units=4, more=True)), 0.0)
    assert refused(table, later(17)) is DropReason.FRAGMENT_UNKNOWN, "all was seen: the identification is free again"
    table.resolve(ZONE, parse(first()), 0.0)


def test_a_datagram_has_few_holes_and_little_time() -> None:
    table = FragmentTable()
    table.resolve(ZONE, parse(first()), 0.0)
    for at in (6, 10, 14):
        table.resolve(ZONE, parse(later(17, at=at, more=True)), 0.0)
    assert refused(table, later(17, at=18, more=True)) is DropReason.FRAGMENT_OVERLAP
    table.resolve(ZONE, parse(later(17, at=16, more=True)), 0.0)
    assert refused(table, later(17, at=30), KEEP_S) is DropReason.FRAGMENT_UNKNOWN
    table.resolve(ZONE, parse(first()), KEEP_S)


def test_headers_are_whole_in_the_first_fragment() -> None:
    assert parse_error(frame(A_1, A_9, Raw(bytes(16)), proto=6, flags="MF")) is DropReason.FRAGMENT_TINY
    options = bytes(12) + b"\x60" + bytes(11)
    assert parse_error(frame(A_1, A_9, Raw(options[:24]), proto=6, flags="MF")) is DropReason.NONE
    assert parse_error(frame(A_1, A_9, Raw(bytes(12) + b"\x70" + bytes(11)), proto=6, flags="MF")) is \
        DropReason.FRAGMENT_TINY
    table = FragmentTable()
    table.resolve(ZONE, parse(first(6, 4)), 0.0)
    assert refused(table, later(6, at=1)) is DropReason.FRAGMENT_TINY


def parse_error(data: bytes) -> DropReason:
    """Why a frame does not parse; NONE if it does."""
    try:
        parse(data)
    except Malformed as malformed:
        return malformed.reason
    return DropReason.NONE


def test_fragments_have_lengths_that_fit_together() -> None:
    past_the_end, empty = later(17, at=8191), later(17, units=0)
    for data in (first(17, 23), past_the_end, empty):
        assert parse_error(data) is DropReason.MALFORMED_IPV4


@pytest.mark.parametrize("what", ["zone", "identification", "protocol", "whole"])
def test_a_later_fragment_of_an_unseen_packet_is_unknown(what: str) -> None:
    table = FragmentTable()
    flags = "" if what == "whole" else "MF"
    table.resolve(ZONE, parse(frame(A_1, A_9, TCP() / bytes(4), flags=flags, id=9)), 0.0)
    zone = Zone(ZoneKind.PORT, 2) if what == "zone" else ZONE
    data = later(17 if what == "protocol" else 6, 8 if what == "identification" else 9)
    with pytest.raises(Malformed) as caught:
        table.resolve(zone, parse(data), 0.0)
    assert caught.value.reason is DropReason.FRAGMENT_UNKNOWN


def test_a_later_fragment_of_icmp_is_of_the_type_of_the_first() -> None:
    table = FragmentTable()
    table.resolve(ZONE, parse(first(1, 4)), 0.0)
    packet = table.resolve(ZONE, parse(later(1)), 0.0)
    assert (packet.headers.icmp_type, packet.is_flow) == (13, False)


def test_the_fragment_table_forgets_the_least_recently_used() -> None:
    table = FragmentTable(entries=2)
    for identification in (1, 2):
        table.resolve(ZONE, parse(first(identification=identification)), 0.0)
    table.resolve(ZONE, parse(later(17, 1, more=True)), 0.0)
    table.resolve(ZONE, parse(first(identification=3)), 0.0)
    table.resolve(ZONE, parse(later(17, 1, at=6, more=True)), 0.0)
    assert refused(table, later(17, 2)) is DropReason.FRAGMENT_UNKNOWN
