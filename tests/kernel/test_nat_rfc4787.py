"""RFC 4787, NAT behavioral requirements for unicast UDP: each one in both engines (docs/nat.md has the table)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from nat_rfc_kit import (
    EXTERNAL,
    HIGH,
    LOW,
    OTHER,
    ROUTER,
    SECOND,
    WORLD,
    A,
    B,
    Bpf,
    Host,
    Reference,
    error,
    fragments,
    mapping,
    pool,
    quoted,
    state,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Raw

from vfp.model import Filtering, PortRange
from vfp.reasons import DropReason

FILTERINGS = {
    Filtering.ENDPOINT_INDEPENDENT: (True, True, True),
    Filtering.ADDRESS: (True, True, False),
    Filtering.ADDRESS_PORT: (True, False, False),
}


@pytest.fixture(scope="module", params=[Reference, Bpf], ids=["reference", "bpf"])
def backend(request: pytest.FixtureRequest) -> Iterator[Reference | Bpf]:
    made = request.param()
    yield made
    if isinstance(made, Bpf):
        made.close()


@pytest.fixture
def host(backend: Reference | Bpf) -> Host:
    return Host(backend).load(state())


def test_req_1_one_internal_port_has_one_external_port_whomever_it_talks_to(host: Host) -> None:
    seen = [host.out(udp(A, to, dport=port)) for to in (WORLD, OTHER) for port in (53, 123)]
    assert {(each.packet[IP].src, each.port) for each in seen} == {(EXTERNAL, seen[0].port)}
    assert host.out(udp(A, WORLD, 5001)).port != seen[0].port


@pytest.mark.parametrize("count", [2, 16])
def test_req_2_an_internal_address_keeps_to_one_external_address(host: Host, count: int) -> None:
    addresses = tuple(IPv4Address(EXTERNAL) + number for number in range(count))
    host.load(state(pool(addresses=addresses)))
    for sender in (A, B):
        seen = [host.out(packet(sender, to, sport=5000 + number)).packet[IP].src for number in range(20)
                for to in (WORLD, OTHER) for packet in (udp, tcp)]
        assert len(set(seen)) == 1


def test_req_3_no_two_internal_ports_share_an_external_one(host: Host) -> None:
    held = {host.out(udp(sender, WORLD, 5000 + number)).port for sender in (A, B) for number in range(50)}
    assert held == set(range(LOW, HIGH + 1))
    refused = host.out(udp(A, OTHER, 4999))
    assert (refused.verdict, refused.reason) == ("drop", DropReason.NAT_EXHAUSTED)


def test_req_3_the_source_port_is_kept_when_it_is_free(host: Host) -> None:
    assert host.out(udp(A, WORLD, LOW + 5)).port == LOW + 5
    assert host.out(udp(B, WORLD, LOW + 5)).port != LOW + 5
    assert host.out(tcp(B, WORLD, sport=LOW + 5)).port == LOW + 5


def test_req_3a_a_port_above_1023_stays_above_1023_and_one_below_does_not_stay(host: Host) -> None:
    assert LOW <= host.out(udp(A, WORLD, 5000)).port <= HIGH
    assert LOW <= host.out(udp(A, WORLD, 500)).port <= HIGH


def test_req_3a_a_pool_of_well_known_ports_keeps_them(host: Host) -> None:
    host.load(state(pool(ports=PortRange(500, 70 + 500))))
    assert host.out(udp(A, WORLD, 500)).port == 500


@pytest.mark.parametrize(("idle_s", "lives"), [(119, True), (121, False)])
def test_req_5_a_datagram_without_an_answer_holds_its_port_for_two_minutes(
        host: Host, idle_s: float, lives: bool) -> None:
    port = host.out(udp(A, WORLD)).port
    host.idle(idle_s)
    if not lives:
        host.idle(3)                        # the binding, after the flow that used it
    answer = host.back(udp(WORLD, EXTERNAL, 53, port))
    assert (answer.verdict == "redirect_port") is lives


@pytest.mark.parametrize(("idle_s", "lives"), [(299, True), (301, False)])
def test_req_5c_an_answered_one_for_five(host: Host, idle_s: float, lives: bool) -> None:
    port = host.out(udp(A, WORLD)).port
    host.back(udp(WORLD, EXTERNAL, 53, port))
    host.idle(idle_s)
    assert bool(host.backend.flows()) is lives


def test_req_6_what_goes_out_and_what_comes_in_refreshes(host: Host) -> None:
    """In the reference, whose clock can be set."""
    if isinstance(host.backend, Bpf):
        pytest.skip("packets cannot come in the kernel engine's future")
    port = host.out(udp(A, WORLD)).port
    for _ in range(3):
        host.idle(100)
        assert host.out(udp(A, WORLD)).port == port
    for _ in range(3):
        assert host.back(udp(WORLD, EXTERNAL, 53, port)).target == 3
        host.idle(290)
    assert host.backend.flows()


@pytest.mark.parametrize(("filtering", "passes"), FILTERINGS.items(), ids=str)
def test_req_8_who_may_answer_is_as_configured(
        host: Host, filtering: Filtering, passes: tuple[bool, bool, bool]) -> None:
    host.load(state(pool(filtering=filtering)))
    port = host.out(udp(A, WORLD)).port
    answers = [host.back(udp(src, EXTERNAL, sport, port)) for src, sport in ((WORLD, 53), (WORLD, 54), (OTHER, 53))]
    assert tuple(each.verdict == "redirect_port" for each in answers) == passes
    for each in answers:
        if each.verdict == "redirect_port":
            assert (each.target, each.packet[IP].dst, each.packet[UDP].dport) == (3, A, 5000)
        else:
            assert each.reason is DropReason.NAT_FILTERED


def test_req_8_having_sent_there_opens_the_filter_for_an_address(host: Host) -> None:
    host.load(state(pool(filtering=Filtering.ADDRESS)))
    port = host.out(udp(A, WORLD)).port
    assert host.back(udp(OTHER, EXTERNAL, 99, port)).reason is DropReason.NAT_FILTERED
    host.out(udp(A, OTHER))
    assert host.back(udp(OTHER, EXTERNAL, 99, port)).target == 3


@pytest.mark.parametrize("of_self", [False, True], ids=["another", "itself"])
@pytest.mark.parametrize("packet", [udp, tcp])
def test_req_9_hairpinning_shows_the_external_source(host: Host, packet: type, of_self: bool) -> None:
    """RFC 5382 REQ-8 says the same of TCP."""
    host.load(state(hairpin=True))
    server = A if of_self else B
    door = host.out(packet(server, WORLD, sport=7000)).port
    there = host.out(packet(A, EXTERNAL, sport=5000, dport=door))
    assert (there.verdict, there.target) == ("redirect_port", 3 if of_self else 4)
    assert (there.packet[IP].src, there.packet[IP].dst, there.packet[IP].payload.dport) == (EXTERNAL, server, 7000)
    assert LOW <= there.port <= HIGH
    answer = packet(server, EXTERNAL, sport=7000, dport=there.port, **({"flags": "SA"} if packet is tcp else {}))
    back = host.out(answer)
    assert (back.verdict, back.target, back.packet[IP].src, back.port) == ("redirect_port", 3, EXTERNAL, door)
    assert back.packet[IP].payload.dport == 5000


def test_req_9_hairpinning_by_a_static_mapping(host: Host) -> None:
    host.load(state(mappings=(mapping(17, 8080, B, 80),), hairpin=True))
    there = host.out(udp(A, EXTERNAL, dport=8080))
    assert (there.target, there.packet[IP].src, there.packet[UDP].dport) == (4, EXTERNAL, 80)
    back = host.out(udp(B, EXTERNAL, 80, there.port))
    assert (back.target, back.packet[IP].src, back.port) == (3, EXTERNAL, 8080)


def test_req_10_payloads_are_not_touched(host: Host) -> None:
    packet = IP(src=A, dst=WORLD) / UDP(sport=5060, dport=5060) / Raw(f"REGISTER sip:{A}:5060".encode())
    assert bytes(host.out(packet).packet[UDP].payload) == bytes(packet[UDP].payload)


def test_req_11_the_same_whatever_happened_before(host: Host) -> None:
    """Ports are taken by others, freed, the pool is full: mapping and filtering of a binding stay."""
    port = host.out(udp(A, WORLD, 5000)).port
    for number in range(99):
        host.out(udp(B, WORLD, 6000 + number))
    assert host.out(udp(B, WORLD, 5999)).reason is DropReason.NAT_EXHAUSTED
    assert host.out(udp(A, OTHER, 5000)).port == port
    assert host.back(udp(OTHER, EXTERNAL, 53, port)).target == 3


@pytest.mark.parametrize(("kind", "code"), [(3, 0), (3, 1), (3, 2), (3, 3), (3, 13), (4, 0), (11, 0), (12, 0)])
def test_req_12_no_icmp_message_ends_a_mapping(host: Host, kind: int, code: int) -> None:
    sent = host.out(udp(A, WORLD))
    before = host.backend.flows()
    host.back(error(ROUTER, sent.packet, kind, code))
    assert host.backend.flows() == before
    assert host.out(udp(A, OTHER)).port == sent.port
    assert host.back(udp(WORLD, EXTERNAL, 53, sent.port)).target == 3


@pytest.mark.parametrize("who", [ROUTER, WORLD, "10.99.0.1"])
def test_req_12_errors_come_in_whoever_sends_them(host: Host, who: str) -> None:
    sent = host.out(udp(A, WORLD))
    told = host.back(error(who, sent.packet))
    assert (told.verdict, told.target, told.packet[IP].src, told.packet[IP].dst) == ("redirect_port", 3, who, A)
    assert (quoted(told)[IP].src, quoted(told)[UDP].sport) == (A, 5000)


def test_req_13_that_a_packet_does_not_fit_is_told_with_the_size(host: Host) -> None:
    """Of a router beyond."""
    sent = host.out(udp(A, WORLD, size=1400, flags="DF"))
    told = host.back(error(ROUTER, sent.packet, 3, 4, nexthopmtu=1280))
    assert (told.packet[ICMP].type, told.packet[ICMP].code, told.packet[ICMP].nexthopmtu) == (3, 4, 1280)
    assert quoted(told)[IP].src == A


@pytest.mark.parametrize("flags", ["", "DF"])
def test_req_13_that_a_packet_does_not_fit_the_uplink_is_told_with_the_size(host: Host, flags: str) -> None:
    """Of the host's own uplink; with real links: test_engine_town.py."""
    wanted = state()
    host.load(replace(wanted, uplinks=(replace(wanted.uplinks[0], mtu=1400),)))
    assert host.out(udp(A, WORLD, size=1372, flags=flags)).verdict == "redirect_uplink"
    told = host.out(udp(A, WORLD, size=1373, flags=flags))
    assert told.reason is DropReason.TOO_BIG
    assert (told.packet[ICMP].type, told.packet[ICMP].code, told.packet[ICMP].nexthopmtu) == (3, 4, 1400)
    assert (quoted(told)[IP].src, quoted(told)[UDP].sport) == (A, 5000)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)], ids=["in order", "out of order"])
@pytest.mark.parametrize("way", ["out", "back"])
def test_req_14_fragments_follow_their_first(host: Host, order: tuple[int, ...], way: str) -> None:
    port = host.out(udp(A, WORLD)).port
    whole = udp(A, WORLD, size=2000, id=77) if way == "out" else udp(WORLD, EXTERNAL, 53, port, size=2000, id=77)
    pieces = fragments(whole, 720)
    for number in order:
        seen = host.out(pieces[number]) if way == "out" else host.back(pieces[number])
        assert seen.verdict == ("redirect_uplink" if way == "out" else "redirect_port")
        assert (seen.packet[IP].src, seen.packet[IP].dst) == ((EXTERNAL, WORLD) if way == "out" else (WORLD, A))


def test_req_14_a_later_fragment_before_its_first_is_not_held(host: Host) -> None:
    """What REQ-14 wants received out of order we do not store: see docs/nat.md."""
    piece = IP(src=A, dst=WORLD, id=78, frag=90, proto=17) / Raw(bytes(80))
    assert host.out(piece).reason is DropReason.FRAGMENT_UNKNOWN


def test_a_pool_that_moves_does_not_keep_old_ports_open(host: Host) -> None:
    port = host.out(udp(A, WORLD)).port
    host.load(state(replace(pool(), addresses=(IPv4Address(SECOND),))))
    assert host.back(udp(WORLD, EXTERNAL, 53, port)).verdict != "redirect_port"
    assert host.out(udp(A, WORLD)).packet[IP].src == SECOND
