"""RFC 5508, NAT behavioral requirements for ICMP: each requirement in both engines (docs/nat.md has the table)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nat_rfc_kit import (
    EXTERNAL,
    HIGH,
    LOW,
    OTHER,
    ROUTER,
    WORLD,
    A,
    B,
    Bpf,
    Host,
    Reference,
    echo,
    error,
    mapping,
    pool,
    quoted,
    state,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.packet import Packet, Raw

from vfp.model import PortRange
from vfp.reasons import DropReason


@pytest.fixture(scope="module", params=[Reference, Bpf], ids=["reference", "bpf"])
def backend(request: pytest.FixtureRequest) -> Iterator[Reference | Bpf]:
    made = request.param()
    yield made
    if isinstance(made, Bpf):
        made.close()


@pytest.fixture
def host(backend: Reference | Bpf) -> Host:
    return Host(backend).load(state())


def test_req_1_queries_and_their_answers_pass(host: Host) -> None:
    sent = host.out(echo(A, WORLD))
    assert LOW <= sent.port <= HIGH
    answer = host.back(echo(WORLD, EXTERNAL, sent.port, reply=True))
    assert (answer.target, answer.packet[IP].dst, answer.packet[ICMP].id) == (3, A, 7)
    assert bytes(answer.packet[ICMP].payload) == b"ping"


def test_req_1b_one_identifier_has_one_external_one_whomever_it_asks(host: Host) -> None:
    assert host.out(echo(A, WORLD)).port == host.out(echo(A, OTHER)).port
    assert host.out(echo(A, WORLD)).port != host.out(echo(B, WORLD)).port


@pytest.mark.parametrize(("idle_s", "lives"), [(59, True), (61, False)])
def test_req_2_a_query_is_kept_for_60_seconds(host: Host, idle_s: float, lives: bool) -> None:
    sent = host.out(echo(A, WORLD))
    host.back(echo(WORLD, EXTERNAL, sent.port, reply=True))
    host.idle(idle_s)
    assert bool(host.backend.flows()) is lives


@pytest.mark.parametrize("packet", [udp(A, WORLD), tcp(A, WORLD), echo(A, WORLD)], ids=["udp", "tcp", "echo"])
@pytest.mark.parametrize(("kind", "code"), [(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (11, 1), (12, 0)])
def test_req_4_an_error_from_outside_is_about_what_was_sent_inside(
        host: Host, packet: Packet, kind: int, code: int) -> None:
    sent = host.out(packet)
    told = host.back(error(ROUTER, sent.packet, kind, code))
    assert (told.target, told.packet[IP].src, told.packet[IP].dst) == (3, ROUTER, A)
    assert (told.packet[ICMP].type, told.packet[ICMP].code) == (kind, code)
    about = quoted(told)
    assert (about.src, about.dst) == (A, WORLD)
    assert bytes(about.payload)[:8] == bytes(packet.payload)[:8]
    assert about.chksum == IP(bytes(IP(bytes(about)[:20], chksum=None))).chksum


def test_req_3_what_it_cannot_verify_it_does_not_believe_more_than_that(host: Host) -> None:
    """A quotation of which only the header and 8 bytes are left (RFC 792), with a wrong transport checksum (REQ-3c)."""
    sent = host.out(udp(A, WORLD, size=100))
    about = bytes(sent.packet[IP])[:28]
    told = host.back(IP(src=ROUTER, dst=EXTERNAL) / ICMP(type=3, code=3) / Raw(about))
    assert (told.target, quoted(told)[UDP].sport) == (3, 5000)


def test_req_3b_options_in_the_quotation_are_passed_over(host: Host) -> None:
    packet = IP(src=A, dst=WORLD, options=[IPOption_NOP()] * 4) / UDP(sport=5000, dport=53) / Raw(b"12345678")
    sent = host.out(packet)
    told = host.back(error(ROUTER, sent.packet))
    assert (told.target, quoted(told).src, quoted(told)[UDP].sport) == (3, A, 5000)


def test_req_4_an_error_about_nothing_of_ours_is_not_let_in(host: Host) -> None:
    host.out(udp(A, WORLD))
    stray = udp(EXTERNAL, WORLD, 9999)
    assert host.back(error(ROUTER, stray)).verdict == "stack"       # it may be about the host's own
    assert host.out(error(A, udp(WORLD, A, 53, 9)), A).verdict == "drop"


@pytest.mark.parametrize(("kind", "code"), [(3, 2), (3, 3), (3, 4), (11, 1)])
def test_req_5_an_error_from_inside_is_from_the_outside_about_what_came(host: Host, kind: int, code: int) -> None:
    port = host.out(udp(A, WORLD)).port
    came = host.back(udp(WORLD, EXTERNAL, 53, port, size=40))
    told = host.out(error(A, came.packet, kind, code))
    assert (told.verdict, told.packet[IP].src, told.packet[IP].dst) == ("redirect_uplink", EXTERNAL, WORLD)
    assert (told.packet[ICMP].type, told.packet[ICMP].code) == (kind, code)
    assert (quoted(told).src, quoted(told).dst, quoted(told)[UDP].dport) == (WORLD, EXTERNAL, port)


def test_req_5_an_error_about_a_mapped_connection(host: Host) -> None:
    host.load(state(mappings=(mapping(6, 8080, B, 80),)))
    came = host.back(tcp(WORLD, EXTERNAL, sport=4000, dport=8080))
    told = host.out(error(B, came.packet, 3, 13))
    assert (told.packet[IP].src, quoted(told).dst, quoted(told)[TCP].dport) == (EXTERNAL, EXTERNAL, 8080)


@pytest.mark.parametrize("idle_s", [59, 61])
def test_req_6_an_error_neither_refreshes_nor_ends_a_query(host: Host, idle_s: float) -> None:
    sent = host.out(echo(A, WORLD))
    before = host.backend.flows()
    host.idle(30)
    host.back(error(ROUTER, sent.packet))
    assert host.backend.flows() == before
    host.idle(idle_s - 30)
    assert bool(host.backend.flows()) is (idle_s < 60)


def test_req_7_queries_and_errors_turn_around_at_the_host(host: Host) -> None:
    host.load(state(mappings=(mapping(17, 8080, B, 80),), hairpin=True))
    there = host.out(udp(A, EXTERNAL, dport=8080))
    assert there.target == 4
    told = host.out(error(B, there.packet))
    assert (told.verdict, told.target, told.packet[IP].src, told.packet[IP].dst) == ("redirect_port", 3, EXTERNAL, A)
    about = quoted(told)
    assert (about.src, about.dst, about[UDP].sport, about[UDP].dport) == (A, EXTERNAL, 5000, 8080)


def test_req_7_an_echo_through_a_mapping(host: Host) -> None:
    host.load(state(mappings=(mapping(1, 77, B, 9),), hairpin=True))
    there = host.out(echo(A, EXTERNAL, 77))
    assert (there.target, there.packet[IP].src, there.packet[IP].dst) == (4, EXTERNAL, B)
    back = host.out(echo(B, EXTERNAL, there.port, reply=True))
    assert (back.target, back.packet[IP].src, back.packet[ICMP].id) == (3, EXTERNAL, 77)


def test_req_8_a_flow_that_cannot_be_translated_is_dropped_and_counted(host: Host) -> None:
    """Without the ICMP message that REQ-8 would like: docs/nat.md."""
    host.load(state(pool(ports=PortRange(LOW, LOW))))
    host.out(udp(A, WORLD))
    refused = host.out(udp(B, WORLD))
    assert (refused.verdict, refused.reason) == ("drop", DropReason.NAT_EXHAUSTED)
    assert host.backend.drop_counts()[DropReason.NAT_EXHAUSTED] == 1


@pytest.mark.parametrize("kind", [4, 13, 15, 17, 18, 30])
def test_req_10_11_other_messages_are_not_translated(host: Host, kind: int) -> None:
    """Timestamp, information, address mask, traceroute: no flow, no binding; inwards they are the host's."""
    assert host.out(IP(src=A, dst=WORLD) / ICMP(type=kind) / Raw(bytes(20)), A).reason is DropReason.NAT_UNSUPPORTED
    assert host.back(IP(src=WORLD, dst=EXTERNAL) / ICMP(type=kind) / Raw(bytes(20))).verdict == "stack"
