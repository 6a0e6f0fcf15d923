"""RFC 5382, NAT behavioral requirements for TCP: each requirement in both engines (docs/nat.md has the table)."""

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
    error,
    mapping,
    pool,
    quoted,
    state,
    tcp,
)
from scapy.layers.inet import IP, TCP

from vfp.model import Filtering
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


def _talk(host: Host, port: int, *segments: str) -> None:
    """Segments of the connection from A's port 5000 to the world's 80: `S>` goes out, `SA<` comes back."""
    for text in segments:
        flags = text[:-1]
        seen = host.out(tcp(A, WORLD, flags)) if text[-1] == ">" else host.back(tcp(WORLD, EXTERNAL, flags, 80, port))
        assert seen.reason is DropReason.NONE, text
        if text[-1] == ">":
            assert (seen.packet[IP].src, seen.port) == (EXTERNAL, port), text
        else:
            assert (seen.target, seen.packet[IP].dst, seen.packet[TCP].dport) == (3, A, 5000), text


def _open(host: Host) -> int:
    """An established connection; its external port."""
    port = host.out(tcp(A, WORLD)).port
    _talk(host, port, "SA<", "A>", "PA>", "A<")
    return port


def _states(host: Host) -> set[str]:
    return {flow.state for flow in host.backend.flows()}


def test_req_1_one_internal_port_has_one_external_port_whomever_it_talks_to(host: Host) -> None:
    assert len({host.out(tcp(A, to, dport=port)).port for to in (WORLD, OTHER) for port in (80, 443)}) == 1


@pytest.mark.parametrize("segments", [
    ("SA<", "A>", "PA>", "A<", "FA>", "A<", "FA<", "A>"),
    ("SA<", "A>", "FA<", "A>", "PA>", "A<", "FA>", "A<"),
    ("SA<", "A>", "FA>", "FA<", "A<", "A>"),
    ("S>", "SA<", "SA<", "A>", "RA<"),
    ("RA<",),
    ("SA<", "A>", "RA>"),
], ids=["close by A", "close by the world", "simultaneous close", "retransmissions and reset", "refused", "abort"])
def test_req_2_all_valid_sequences_pass(host: Host, segments: tuple[str, ...]) -> None:
    _talk(host, host.out(tcp(A, WORLD)).port, *segments)


@pytest.mark.parametrize("filtering", Filtering, ids=str)
def test_req_2a_simultaneous_open(host: Host, filtering: Filtering) -> None:
    host.load(state(pool(filtering=filtering)))
    _talk(host, host.out(tcp(A, WORLD)).port, "S<", "SA>", "SA<", "A>", "A<", "PA>")
    assert _states(host) == {"established"}


@pytest.mark.parametrize(("filtering", "passes"), [
    (Filtering.ENDPOINT_INDEPENDENT, (True, True)), (Filtering.ADDRESS, (True, False)),
    (Filtering.ADDRESS_PORT, (False, False)),
], ids=str)
def test_req_3_who_may_open_a_connection_to_a_port_in_use_is_as_configured(
        host: Host, filtering: Filtering, passes: tuple[bool, bool]) -> None:
    host.load(state(pool(filtering=filtering)))
    port = _open(host)
    asked = [host.back(tcp(src, EXTERNAL, "S", 4000, port)) for src in (WORLD, OTHER)]
    assert tuple(each.verdict == "redirect_port" for each in asked) == passes
    assert all(each.reason is DropReason.NAT_FILTERED for each in asked if each.verdict != "redirect_port")


def test_req_4_an_unasked_syn_has_no_answer_of_ours(host: Host) -> None:
    """Filtered: silence, which REQ-4 allows as security policy. To a port of no binding: the host's own stack."""
    host.load(state(pool(filtering=Filtering.ADDRESS_PORT)))
    port = _open(host)
    refused = host.back(tcp(OTHER, EXTERNAL, "S", 4000, port))
    assert (refused.verdict, refused.reason, refused.frame) == ("drop", DropReason.NAT_FILTERED, b"")
    unused = next(each for each in range(LOW, HIGH) if each != port)
    assert host.back(tcp(OTHER, EXTERNAL, "S", 4000, unused)).verdict == "stack"


@pytest.mark.parametrize(("segments", "idle_s"), [
    ((), 240), (("SA<",), 240), (("SA<", "A>", "PA>", "A<"), 7440), (("SA<", "A>", "FA>", "A<"), 240),
], ids=["SYN sent", "SYN answered", "established", "half closed"])
def test_req_5_an_idle_connection_is_kept_so_long_and_no_longer(
        host: Host, segments: tuple[str, ...], idle_s: int) -> None:
    _talk(host, host.out(tcp(A, WORLD)).port, *segments)
    host.idle(idle_s - 1)
    assert len(host.backend.flows()) == 2
    host.idle(2)
    assert not host.backend.flows()


def test_req_6_nothing_in_a_stream_is_read_or_changed(host: Host) -> None:
    packet = tcp(A, WORLD, "PA", dport=21) / f"PORT {A.replace('.', ',')},19,136\r\n".encode()
    assert bytes(host.out(packet).packet[TCP].payload) == bytes(packet[TCP].payload)


def test_req_7_no_two_internal_ports_share_an_external_one(host: Host) -> None:
    held = {host.out(tcp(sender, to, sport=5000 + number)).port
            for sender, to in ((A, WORLD), (B, OTHER)) for number in range(50)}
    assert len(held) == 100
    assert host.out(tcp(A, OTHER, sport=4999)).reason is DropReason.NAT_EXHAUSTED


def test_req_8_a_server_of_ours_is_reached_by_its_mapping_from_inside(host: Host) -> None:
    """By bindings, and as itself: test_nat_rfc4787.py, REQ-9."""
    host.load(state(mappings=(mapping(6, 8080, B, 80),), hairpin=True))
    there = host.out(tcp(A, EXTERNAL, dport=8080))
    assert (there.target, there.packet[IP].src, there.packet[TCP].dport) == (4, EXTERNAL, 80)
    answer = host.out(tcp(B, EXTERNAL, "SA", 80, there.port))
    assert (answer.target, answer.packet[IP].src, answer.port) == (3, EXTERNAL, 8080)
    assert host.out(tcp(A, EXTERNAL, "A", dport=8080)).target == 4
    assert _states(host) == {"syn-received"} or _states(host) == {"established"}


@pytest.mark.parametrize("code", range(16))
def test_req_9_destination_unreachable_is_translated(host: Host, code: int) -> None:
    sent = host.out(tcp(A, WORLD))
    told = host.back(error(ROUTER, sent.packet, 3, code))
    assert (told.target, told.packet[IP].dst) == (3, A)
    assert (quoted(told)[IP].src, quoted(told)[TCP].sport, quoted(told)[TCP].dport) == (A, 5000, 80)


@pytest.mark.parametrize(("kind", "code"), [(3, 1), (3, 3), (3, 4), (4, 0), (5, 0), (11, 0), (12, 0)])
def test_req_10_no_icmp_message_ends_a_connection(host: Host, kind: int, code: int) -> None:
    port = _open(host)
    sent = host.out(tcp(A, WORLD, "PA"))
    before = host.backend.flows()
    host.back(error(ROUTER, sent.packet, kind, code))
    assert host.backend.flows() == before
    _talk(host, port, "PA>", "A<")
