"""ICMP errors about a flow go where its packets go, with what they quote translated back; echo answers open nothing."""

from __future__ import annotations

import pytest
from reference_kit import (
    A_1,
    A_2,
    A_9,
    EXTERNAL,
    MAC_1,
    MAC_3,
    N_3,
    VNI,
    VTEP,
    WORLD,
    deny_in,
    echo,
    frame,
    host,
    recomputed,
    show,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror, TCPerror, UDPerror
from scapy.packet import Packet, Raw

from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict

ROUTER = "203.0.113.99"


def out(engine: Engine, data: bytes, port: int = 3) -> Result:
    return engine.process(Hook.PORT_OUT, port, data, now_s=0.0)


def back(engine: Engine, data: bytes) -> Result:
    return engine.process(Hook.UPLINK_IN, 1, data, now_s=0.0)


def about(left: bytes, src: str, *, kind: int = 3, code: int = 4, quoted: int = 28, **more: object) -> bytes:
    """An error from `src` to who sent the frame `left`."""
    head = bytes(show(left)[IP])[:quoted]
    return frame(src, show(left)[IP].src, ICMP(type=kind, code=code, nexthopmtu=1300 * (code == 4)) / Raw(head), **more)


def quoted(data: bytes) -> Packet:
    packet = show(data)
    assert data == recomputed(data), "the checksums of the error itself"
    inner = packet[IPerror]
    assert bytes(IP(bytes(inner)[:20]))[10:12] == inner.chksum.to_bytes(2, "big")
    return inner


@pytest.mark.parametrize("length", [28, 40, 200])
@pytest.mark.parametrize(("kind", "code"), [(3, 4), (3, 3), (11, 0), (12, 0)])
def test_an_error_from_outside_reaches_who_is_behind_a_translation(kind: int, code: int, length: int) -> None:
    engine = Engine(host())
    sent = tcp(N_3, WORLD, 5000, 80)
    there = out(engine, sent)
    result = back(engine, about(there.frame, ROUTER, kind=kind, code=code, quoted=length))
    assert (result.verdict, result.port) == (Verdict.REDIRECT_PORT, 3)
    packet = show(result.frame)
    assert (packet[IP].src, packet[IP].dst, packet[ICMP].type) == (ROUTER, N_3, kind)
    assert packet.dst == MAC_3.hex(":")
    inner = quoted(result.frame)
    assert (inner.src, inner.dst, inner[TCPerror].sport, inner[TCPerror].dport) == (N_3, WORLD, 5000, 80)
    if length >= 40:
        assert inner[TCPerror].chksum == show(sent)[TCP].chksum


def test_a_quoted_udp_checksum_and_echo_identifier_are_translated_back() -> None:
    engine = Engine(host())
    sent = udp(N_3, WORLD, 5000, 53)
    inner = quoted(back(engine, about(out(engine, sent).frame, WORLD, code=3)).frame)
    assert (inner[UDPerror].sport, inner[UDPerror].chksum) == (5000, show(sent)[UDP].chksum)
    asked = echo(N_3, WORLD, 7)
    inner = quoted(back(engine, about(out(engine, asked).frame, ROUTER, kind=11, code=0)).frame)
    assert (inner[ICMPerror].id, inner[ICMPerror].chksum) == (7, show(asked)[ICMP].chksum)


def test_an_error_from_an_endpoint_about_mapped_traffic_shows_the_mapped_address() -> None:
    engine = Engine(host())
    asked = tcp(WORLD, str(EXTERNAL), 4000, 8080)
    there = back(engine, asked)
    result = out(engine, about(there.frame, N_3, code=3, src_mac=MAC_3))
    assert (result.verdict, result.uplink) == (Verdict.REDIRECT_UPLINK, 1)
    assert (show(result.frame)[IP].src, show(result.frame)[IP].dst) == (str(EXTERNAL), WORLD)
    inner = quoted(result.frame)
    assert (inner.src, inner.dst, inner[TCPerror].dport) == (WORLD, str(EXTERNAL), 8080)


def test_an_endpoint_complains_only_as_itself_and_only_to_the_sender() -> None:
    engine = Engine(host(one=(deny_in(),)))
    there = out(engine, udp(A_1, A_2), 1)
    assert there.verdict is Verdict.REDIRECT_PORT
    honest = about(there.frame, A_2, code=3)
    assert out(engine, honest, 2).verdict is Verdict.REDIRECT_PORT
    assert out(engine, about(there.frame, A_9, code=3), 2).reason is DropReason.DENIED
    head = bytes(show(there.frame)[IP])[:28]
    aside = frame(A_2, A_1, ICMP(type=3, code=3) / Raw(head[:12] + bytes([10, 1, 0, 77]) + head[16:]))
    assert out(engine, aside, 2).reason is DropReason.DENIED


def test_an_error_about_no_flow_is_judged_and_one_from_the_world_is_the_hosts() -> None:
    engine = Engine(host(two=(deny_in(),)))
    error = about(tcp(A_2, A_1), A_1)
    assert out(engine, error, 1).reason is DropReason.DENIED
    assert back(engine, about(tcp(str(EXTERNAL), WORLD, 20001), ROUTER)).verdict is Verdict.STACK


def test_an_error_about_a_flow_that_is_now_forbidden_is_dropped() -> None:
    engine = Engine(host())
    there = out(engine, udp(A_1, A_2), 1)
    engine.update(host(two=(deny_in(),)))
    assert out(engine, about(there.frame, A_2, code=3), 2).reason is DropReason.DENIED


def test_an_error_over_the_overlay_comes_from_the_right_host() -> None:
    engine = Engine(host())
    there = out(engine, udp(A_1, A_9), 1)
    error = about(there.frame, A_9, code=3)
    other = engine.process(Hook.OVERLAY_IN, VNI, error, vtep=VTEP + 1, now_s=0.0)
    assert other.reason is DropReason.WRONG_VTEP
    right = engine.process(Hook.OVERLAY_IN, VNI, error, vtep=VTEP, now_s=0.0)
    assert (right.verdict, right.port, show(right.frame).dst) == (Verdict.REDIRECT_PORT, 1, MAC_1.hex(":"))


def test_errors_neither_count_nor_keep_a_flow_alive() -> None:
    engine = Engine(host())
    there = out(engine, udp(A_1, A_2), 1)
    before = engine.flows(0.0)
    engine.process(Hook.PORT_OUT, 2, about(there.frame, A_2, code=3), now_s=20.0)
    assert engine.flows(0.0) == before


def test_a_routed_error_has_a_time_to_live() -> None:
    engine = Engine(host())
    there = out(engine, udp(N_3, WORLD))
    assert back(engine, about(there.frame, ROUTER, ttl=1)).reason is DropReason.TTL_EXCEEDED


def test_an_allowed_echo_reply_opens_no_requests() -> None:
    engine = Engine(host(one=(deny_in(icmp_type=8),)))
    assert out(engine, echo(A_1, A_2, reply=True), 1).verdict is Verdict.REDIRECT_PORT
    assert engine.flows(0.0) == []
    assert out(engine, echo(A_2, A_1), 2).reason is DropReason.DENIED
    assert out(engine, echo(A_1, A_2), 1).verdict is Verdict.REDIRECT_PORT
    assert out(engine, echo(A_2, A_1), 2).reason is DropReason.DENIED, "a request the other way is no answer"
    assert out(engine, echo(A_2, A_1, reply=True), 2).verdict is Verdict.REDIRECT_PORT


def test_an_echo_reply_without_a_flow_cannot_be_translated() -> None:
    assert out(Engine(host()), echo(N_3, WORLD, reply=True)).reason is DropReason.NAT_UNSUPPORTED


def test_a_fragmented_error_is_judged_by_the_layers() -> None:
    engine = Engine(host(one=(deny_in(),)))
    there = out(engine, udp(A_1, A_2), 1)
    error = about(there.frame, A_2, code=3, quoted=32)
    cut = show(error)
    cut[IP].flags = "MF"
    assert out(engine, recomputed(bytes(cut)), 2).reason in (DropReason.DENIED, DropReason.MALFORMED_IPV4)
