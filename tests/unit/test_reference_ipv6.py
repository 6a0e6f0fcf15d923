"""IPv6 as a peer of IPv4: parse, neighbour discovery, translation, errors; checksums as scapy computes them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest
from reference_kit import GATEWAY_MAC, MAC_1, MAC_3, NAT_SPACE, host, layer, rule, with_port
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from vfp.model import (
    Allow,
    AnswerArp,
    Deny,
    EngineState,
    Forward,
    HostStack,
    LocalPort,
    Mapping,
    Pool,
    Port,
    PortRange,
    Space,
    ToUplink,
    TranslateSource,
    Untranslate,
)
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict
from vfp.reference.extensions import Malformed
from vfp.reference.packet import parse

A_3, A_GATEWAY, WORLD, ROUTER = "fd00::3", "fd00::1", "2001:db8:1::7", "2001:db8:1::99"
EXTERNAL = IPv6Address("2001:db8::1")
INSIDE = IPv6Network("fd00::/64")
ND = {"ethertype": 0x86DD, "protocol": 58}


def six() -> EngineState:
    """Port 3 behind uplink 1, with a guard, all in IPv6."""
    own = IPv6Network(A_3)
    guard = layer("guard", (
        rule(10, Allow(), name="asks", src=own, icmp_type=135, nd_sender_is_source=True, **ND),
        rule(11, Allow(), name="probes", src=IPv6Network("::/128"), icmp_type=135, nd_sender_is_source=True, **ND),
        rule(12, Allow(), name="tells", src=own, icmp_type=136, nd_sender_is_source=True, **ND),
        rule(13, Deny(), name="others", icmp_type=135, **ND),
        rule(14, Deny(), name="lies", icmp_type=136, **ND),
        rule(20, Allow(), name="own", src=own, src_mac=MAC_3),
    ), default=(Deny(), Allow()))
    nat = layer("nat", (rule(5, Allow(), icmp_type=135), rule(10, Allow(), dst=INSIDE), rule(20, TranslateSource(6))),
                (rule(10, Untranslate()),))
    vnet = layer("vnet", (rule(5, AnswerArp(NAT_SPACE), icmp_type=135), rule(10, Forward(NAT_SPACE), dst=INSIDE),
                          rule(20, ToUplink(1))))
    state = with_port(host(), Port(3, "p3", 13, MAC_3, GATEWAY_MAC, (guard, nat, vnet)))
    space = Space(NAT_SPACE, (
        (IPv6Address(A_3), LocalPort(3, MAC_3)), (IPv6Address(A_GATEWAY), HostStack(GATEWAY_MAC)),
        (IPv6Address("fd00::2"), LocalPort(2, MAC_1)),
    ))
    return replace(
        state, spaces=(*state.spaces[:1], space),
        pools=(*state.pools, Pool(6, 1, (EXTERNAL,), PortRange(20000, 20009))),
        mappings=(Mapping(1, 6, EXTERNAL, 8080, 3, IPv6Address(A_3), 80),),
    )


def frame(src: str, dst: str, body: Packet, *, mac: bytes = MAC_3, **ip: object) -> bytes:
    return bytes(Ether(src=mac.hex(":"), dst=GATEWAY_MAC.hex(":")) / IPv6(src=src, dst=dst, **ip) / body)


def out(engine: Engine, data: bytes) -> Result:
    return engine.process(Hook.PORT_OUT, 3, data, now_s=0.0)


def back(engine: Engine, data: bytes) -> Result:
    return engine.process(Hook.UPLINK_IN, 1, data, now_s=0.0)


def show(data: bytes) -> Packet:
    """The frame by scapy, whose own checksums it must have."""
    packet = Ether(data)
    again = Ether(data)
    for kind, name in ((TCP, "chksum"), (UDP, "chksum"), (ICMPv6EchoRequest, "cksum"), (ICMPv6EchoReply, "cksum"),
                       (ICMPv6PacketTooBig, "cksum"), (ICMPv6DestUnreach, "cksum"), (ICMPv6ND_NA, "cksum")):
        if kind in again:
            delattr(again[kind], name)
            break
    assert bytes(again) == data
    return packet


def reason_of(data: bytes) -> DropReason:
    try:
        parse(data)
    except Malformed as malformed:
        return malformed.reason
    return DropReason.NONE


def asks(target: str, src: str = A_3, *, mac: bytes = MAC_3, option: bytes | None = MAC_3, hlim: int = 255) -> bytes:
    body = ICMPv6ND_NS(tgt=target)
    if option is not None:
        body /= ICMPv6NDOptSrcLLAddr(lladdr=option.hex(":"))
    group = IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(IPv6Address(target)) & 0xFFFFFF)
    return frame(src, str(group), body, mac=mac, hlim=hlim)


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_a_connection_to_the_world_is_translated_and_comes_back(kind: type[Packet]) -> None:
    engine = Engine(six())
    there = out(engine, frame(A_3, WORLD, kind(sport=5000, dport=80) / b"odd"))
    assert (there.verdict, there.uplink) == (Verdict.REDIRECT_UPLINK, 1)
    seen = show(there.frame)
    assert (seen[IPv6].src, seen[IPv6].hlim) == (str(EXTERNAL), 63)
    assert 20000 <= seen[kind].sport <= 20009
    answer = back(engine, frame(WORLD, str(EXTERNAL), kind(sport=80, dport=seen[kind].sport)))
    assert (answer.verdict, answer.port) == (Verdict.REDIRECT_PORT, 3)
    assert (show(answer.frame)[IPv6].dst, show(answer.frame)[kind].dport) == (A_3, 5000)


def test_an_echo_is_translated_by_its_identifier() -> None:
    engine = Engine(six())
    seen = show(out(engine, frame(A_3, WORLD, ICMPv6EchoRequest(id=7))).frame)
    assert 20000 <= seen[ICMPv6EchoRequest].id <= 20009
    answer = back(engine, frame(WORLD, str(EXTERNAL), ICMPv6EchoReply(id=seen[ICMPv6EchoRequest].id)))
    assert (answer.port, show(answer.frame)[ICMPv6EchoReply].id) == (3, 7)
    assert out(engine, frame(A_3, WORLD, ICMPv6EchoReply(id=8))).reason is DropReason.NAT_UNSUPPORTED


def test_a_mapping_and_an_error_about_it_show_the_mapped_address() -> None:
    engine = Engine(six())
    there = back(engine, frame(WORLD, str(EXTERNAL), TCP(sport=4000, dport=8080)))
    assert (there.port, show(there.frame)[IPv6].dst, show(there.frame)[TCP].dport) == (3, A_3, 80)
    quoted = bytes(Ether(there.frame)[IPv6])
    error = out(engine, frame(A_3, WORLD, ICMPv6DestUnreach(code=4) / Raw(quoted)))
    packet = show(error.frame)
    assert (packet[IPv6].src, packet[IPv6].dst) == (str(EXTERNAL), WORLD)
    inner = IPv6(bytes(packet[ICMPv6DestUnreach].payload))
    assert (inner.dst, inner[TCP].dport) == (str(EXTERNAL), 8080)


def test_too_big_reaches_who_sent_what_was_too_big() -> None:
    engine = Engine(six())
    sent = frame(A_3, WORLD, UDP(sport=5000, dport=53) / bytes(33))
    there = out(engine, sent)
    quoted = bytes(Ether(there.frame)[IPv6])
    result = back(engine, frame(ROUTER, str(EXTERNAL), ICMPv6PacketTooBig(mtu=1280) / Raw(quoted)))
    packet = show(result.frame)
    assert (result.port, packet[IPv6].src, packet[IPv6].dst) == (3, ROUTER, A_3)
    inner = IPv6(bytes(packet[ICMPv6PacketTooBig].payload))
    assert (inner.src, inner[UDP].sport, inner[UDP].chksum) == (A_3, 5000, Ether(sent)[UDP].chksum)


def test_a_solicitation_is_answered_from_the_space() -> None:
    result = out(Engine(six()), asks(A_GATEWAY))
    assert (result.verdict, result.port) == (Verdict.REPLY, 3)
    packet = show(result.frame)
    assert (packet.src, packet.dst) == (GATEWAY_MAC.hex(":"), MAC_3.hex(":"))
    assert (packet[IPv6].src, packet[IPv6].dst, packet[IPv6].hlim) == (A_GATEWAY, A_3, 255)
    told = packet[ICMPv6ND_NA]
    assert (told.tgt, told.R, told.S, told.O) == (A_GATEWAY, 0, 1, 1)
    assert packet[ICMPv6NDOptDstLLAddr].lladdr == GATEWAY_MAC.hex(":")


def test_a_probe_is_told_of_others_only() -> None:
    engine = Engine(six())
    packet = show(out(engine, asks("fd00::2", "::", option=None)).frame)
    assert (packet.dst, packet[IPv6].dst, packet[ICMPv6ND_NA].S) == ("33:33:00:00:00:01", "ff02::1", 0)
    assert out(engine, asks(A_3, "::", option=None)).reason is DropReason.ARP_UNANSWERED
    assert out(engine, asks("fd00::77")).reason is DropReason.ARP_UNANSWERED


def test_nobody_speaks_for_another() -> None:
    engine = Engine(six())
    assert out(engine, asks(A_GATEWAY, option=MAC_1)).reason is DropReason.DENIED
    assert out(engine, asks(A_GATEWAY, "fd00::2")).reason is DropReason.DENIED
    lie = ICMPv6ND_NA(tgt="fd00::2", S=0) / ICMPv6NDOptDstLLAddr(lladdr=MAC_3.hex(":"))
    assert out(engine, frame(A_3, "ff02::1", lie, hlim=255)).reason is DropReason.DENIED


@pytest.mark.parametrize("data", [
    asks(A_GATEWAY, hlim=64), asks(A_GATEWAY, "::"), asks("ff02::5"), asks(A_GATEWAY)[:-8] + bytes(8),
    frame(A_3, "fd00::1", IPv6ExtHdrFragment() / ICMPv6ND_NS(tgt=A_GATEWAY), hlim=255),
    frame(A_3, "ff02::1", ICMPv6ND_NA(tgt=A_3, S=1), hlim=255),
    frame(A_3, A_GATEWAY, ICMPv6ND_NS(tgt=A_GATEWAY, code=1), hlim=255),
])
def test_neighbour_discovery_that_must_be_discarded_is(data: bytes) -> None:
    assert reason_of(data) is DropReason.MALFORMED_ND


def test_extension_headers_are_followed() -> None:
    chain = IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(type=4, addresses=[]) / IPv6ExtHdrDestOpt() / TCP(sport=5, dport=6)
    packet = parse(frame(A_3, WORLD, chain))
    assert (packet.tuple.protocol, packet.tuple.src_port, packet.tuple.dst_port) == (6, 5, 6)
    assert packet.transport == 14 + 40 + 24
    atomic = parse(frame(A_3, WORLD, IPv6ExtHdrFragment(id=1) / UDP(sport=5, dport=6)))
    assert (atomic.tuple.src_port, atomic.fragment) == (5, None)
    assert parse(frame(A_3, WORLD, Raw(bytes(16)), nh=50)).tuple.protocol == 50


@pytest.mark.parametrize("body", [
    IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / UDP(),
    IPv6ExtHdrRouting(type=0, segleft=1, addresses=[WORLD]) / UDP(),
    IPv6ExtHdrDestOpt(len=9) / Raw(bytes(8)),
    IPv6ExtHdrFragment() / IPv6ExtHdrFragment() / UDP(),
    IPv6ExtHdrFragment(m=1) / UDP() / b"1234567",
])
def test_wrong_chains_are_malformed(body: Packet) -> None:
    assert reason_of(frame(A_3, WORLD, body)) is DropReason.MALFORMED_IPV6


def test_there_are_not_more_than_eight_extension_headers() -> None:
    body: Packet = UDP(sport=5)
    for _ in range(8):
        body = IPv6ExtHdrDestOpt() / body
    assert parse(frame(A_3, WORLD, body)).tuple.src_port == 5
    assert reason_of(frame(A_3, WORLD, IPv6ExtHdrDestOpt() / body)) is DropReason.MALFORMED_IPV6


def test_fragments_follow_their_first_and_have_whole_headers() -> None:
    engine = Engine(six())
    first = IPv6ExtHdrFragment(id=9, m=1) / UDP(sport=5000, dport=53, len=32) / bytes(8)
    there = out(engine, frame(A_3, WORLD, first))
    assert there.verdict is Verdict.REDIRECT_UPLINK
    later = out(engine, frame(A_3, WORLD, IPv6ExtHdrFragment(id=9, nh=17, offset=2) / Raw(bytes(16))))
    assert (later.verdict, later.flows) == (Verdict.REDIRECT_UPLINK, there.flows)
    assert Ether(later.frame)[IPv6].src == str(EXTERNAL)
    assert out(engine, frame(A_3, WORLD, IPv6ExtHdrFragment(id=9, nh=17, offset=1) / Raw(bytes(16)))).reason is \
        DropReason.FRAGMENT_UNKNOWN, "all was seen"
    cut = IPv6ExtHdrFragment(id=9, m=1, nh=60) / Raw(b"\x06\x02" + bytes(6))
    assert reason_of(frame(A_3, WORLD, cut)) is DropReason.FRAGMENT_TINY


def test_ipv4_pools_do_not_translate_ipv6() -> None:
    state = six()
    only_four = replace(state, pools=(replace(state.pools[0], id=6),))
    assert out(Engine(only_four), frame(A_3, WORLD, UDP())).reason is DropReason.NAT_UNSUPPORTED


@pytest.mark.parametrize("hops", [0, 1])
def test_a_packet_out_of_hops_is_not_routed(hops: int) -> None:
    assert out(Engine(six()), frame(A_3, WORLD, UDP(), hlim=hops)).reason is DropReason.TTL_EXCEEDED
