"""What the kernel's engine answers to packets that are rejected or too big: the same bytes as the reference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from engine_backends import BpfBackend, Outcome, ReferenceBackend
from engine_frames import ACK, FIN, ICMP, RST, SCTP, SYN, TCP, UDP, ArpFrame, IpFrame, icmp_error
from engine_states import GATEWAY_MAC, MACS, TUNNEL_IFINDEX, VTEPS, six, uplink
from scapy.layers.inet import ICMP as ScapyIcmp
from scapy.layers.inet import IP as ScapyIp
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig
from scapy.layers.inet6 import IPv6 as ScapyIpv6
from scapy.layers.l2 import Ether

from vfp.model import (
    Allow,
    Deny,
    EngineState,
    Group,
    Layer,
    LocalPort,
    Mapping,
    Match,
    Port,
    Reject,
    Remote,
    Rule,
    Space,
    ToUplink,
)
from vfp.reasons import DropReason
from vfp.reference import Hook

OWN, OTHER, FAR, WORLD = (IPv4Address(text) for text in ("10.1.0.1", "10.1.0.2", "10.1.0.5", "203.0.113.1"))
EXTERNAL = IPv4Address("198.51.100.1")
VNI = 100

_REJECTING = Layer("no", (Group("no", (Rule(0, Match(), Reject(), "out"),)),),
                   (Group("no", (Rule(0, Match(), Reject(), "in"),)),), Deny(), Deny())
STATE = EngineState(
    ports=(Port(1, "p1", 11, MACS[1], GATEWAY_MAC, (_REJECTING,)),),
    spaces=(Space(VNI, tuple((kind(address), place) for address, place in (
        (OWN, LocalPort(1, MACS[1])), (FAR, Remote(VTEPS[0], VNI, MACS[5]))) for kind in (IPv4Address, six))),),
    mappings=tuple(Mapping(1, protocol, external, 80, 1, internal, 80)
                   for protocol in (6, 17) for external, internal in ((EXTERNAL, OWN), (six(EXTERNAL), six(OWN)))),
    uplinks=(uplink(1),),
    tunnel_ifindex=TUNNEL_IFINDEX,
)
WAYS = {
    "port": (Hook.PORT_OUT, 1, OWN, OTHER, None),
    "stack": (Hook.PORT_IN, 1, OTHER, OWN, None),
    "tunnel": (Hook.OVERLAY_IN, VNI, FAR, OWN, VTEPS[0]),
    "uplink": (Hook.UPLINK_IN, 1, WORLD, EXTERNAL, None),
}
TARGETS = {"port": 1, "stack": 0, "tunnel": VNI, "uplink": 1}


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[ReferenceBackend, BpfBackend]]:
    backend = BpfBackend()
    backend.reset()
    reference = ReferenceBackend()
    for each in (reference, backend):
        each.load(STATE)
    yield reference, backend
    backend.close()


Engines = tuple[ReferenceBackend, BpfBackend]


def send(engines: Engines, way: str, frame: bytes) -> Outcome:
    """What both engines do with it."""
    hook, number, _, _, vtep = WAYS[way]
    one, other = (each.process(hook, number, frame, vtep, time.monotonic()) for each in engines)
    assert one == other
    assert one.reason is DropReason.REJECTED
    return one


def packet(way: str, family: int, protocol: int, **more: Any) -> IpFrame:
    _, _, src, dst, _ = WAYS[way]
    mac = MACS[1] if way == "port" else GATEWAY_MAC
    frame = IpFrame(src_mac=mac, dst_mac=MACS[2], src=src, dst=dst, protocol=protocol, src_port=1000, dst_port=80,
                    **more)
    return replace(frame, src=six(src), dst=six(dst)) if family == 6 else frame


def recomputed(frame: bytes) -> bytes:
    """With checksums as scapy has them."""
    parsed = Ether(frame)
    layer = parsed
    while layer:
        for field in ("chksum", "cksum"):
            if field in layer.fields and not layer.underlayer.__class__.__name__.endswith("error"):
                delattr(layer, field)
        layer = layer.payload
    return bytes(parsed)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("flags", [SYN, ACK, SYN | ACK, FIN | ACK, FIN, 0])
def test_tcp_is_answered_by_a_reset_to_where_it_came_from(engines: Engines, way: str, family: int, flags: int) -> None:
    came = packet(way, family, TCP, tcp_flags=flags, payload=b"seven b")
    outcome = send(engines, way, came.build())
    assert (outcome.told, outcome.target) == (way, TARGETS[way])
    answer = Ether(outcome.frame)
    assert (answer.dst, answer.src) == (came.src_mac.hex(":"), came.dst_mac.hex(":"))
    ip, tcp = answer.payload, answer["TCP"]
    assert (ip.src, ip.dst, tcp.sport, tcp.dport) == (str(came.dst), str(came.src), 80, 1000)
    if flags & ACK:                         # RFC 9293 3.5.2: the frame's numbers are 1 and 2
        assert (tcp.flags, tcp.seq, tcp.ack) == ("R", 2, 0)
    else:
        assert (tcp.flags, tcp.seq, tcp.ack) == ("RA", 0, 1 + 7 + bool(flags & SYN) + bool(flags & FIN))
    assert recomputed(outcome.frame) == outcome.frame


SIZES = [0, 1, 2, 3, 511, 512, 519, 520, 521, 1203, 1204, 1205, 1400, 3000]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_the_rest_is_answered_by_an_error_that_quotes_it(engines: Engines, way: str, size: int) -> None:
    came = packet(way, 4, UDP, payload=bytes(range(256)) * 32)
    came = replace(came, payload=came.payload[:size])
    outcome = send(engines, way, came.build())
    assert (outcome.told, outcome.target) == (way, TARGETS[way])
    ip = Ether(outcome.frame)[ScapyIp]
    error = ip[ScapyIcmp]
    assert (error.type, error.code, ip.src, ip.dst) == (3, 13, str(came.dst), str(came.src))
    assert ip.len == min(576, 28 + 28 + size) == len(outcome.frame) - 14
    assert outcome.frame[42:] == came.build()[14:][:548]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_the_rest_of_ipv6_likewise(engines: Engines, way: str, size: int) -> None:
    came = packet(way, 6, UDP, payload=bytes(range(256)) * 32)
    came = replace(came, payload=came.payload[:size])
    outcome = send(engines, way, came.build())
    assert (outcome.told, outcome.target) == (way, TARGETS[way])
    ip = Ether(outcome.frame)[ScapyIpv6]
    error = ip[ICMPv6DestUnreach]
    assert (error.type, error.code, ip.src, ip.dst) == (1, 1, str(came.dst), str(came.src))
    assert 40 + ip.plen == min(1280, 48 + 48 + size) == len(outcome.frame) - 14
    assert outcome.frame[62:] == came.build()[14:][:1232]


SHAPES = {
    "options": packet("port", 4, TCP, options_words=10),
    "options-udp": packet("port", 4, UDP, options_words=10),
    "extensions": packet("port", 6, TCP, extensions=((0, bytes(7)), (60, bytes(7)), (43, bytes(7)))),
    "long-extension": packet("port", 6, TCP, extensions=((60, b"\xff" + bytes(2046)),)),
    "extensions-udp": packet("port", 6, UDP, extensions=((60, b"\xff" + bytes(2046)),)),
    "padding": packet("port", 4, TCP, payload=b"", padding=bytes(6)),
    "sctp": packet("port", 4, SCTP),
    "echo": packet("port", 4, ICMP),
    "echo-6": packet("port", 6, ICMP),
    "timestamp": packet("port", 4, ICMP, icmp_type=13),
    "protocol-47": packet("port", 4, 47),
    "first-fragment": packet("port", 4, UDP, more_fragments=True, identification=1, payload=bytes(24)),
    "first-fragment-6": packet("port", 6, UDP, more_fragments=True, identification=1, payload=bytes(24)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_packets_of_any_shape_are_answered(engines: Engines, shape: str) -> None:
    assert send(engines, "port", SHAPES[shape].build()).told == "port"


def _quiet() -> dict[str, bytes]:
    plain = packet("port", 4, UDP)
    plain_6 = packet("port", 6, UDP)
    ends = {"src": ("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"),
            "dst": ("0.0.0.0", "127.0.0.1", "239.1.2.3", "255.255.255.255")}
    ends_6 = ("::", "::1", "ff02::1")
    quiet = {f"{end}-{text}": replace(plain, **{end: IPv4Address(text)}) for end in ends for text in ends[end]}
    quiet |= {f"{end}-{text}": replace(plain_6, **{end: IPv6Address(text)}) for end in ends for text in ends_6}
    quiet |= {
        "broadcast": replace(plain, dst_mac=b"\xff" * 6), "multicast": replace(plain_6, dst_mac=b"\x33\x33" + bytes(4)),
        "from-multicast": replace(plain, src_mac=b"\x01" + bytes(5)),
        "reset": packet("port", 4, TCP, tcp_flags=RST), "reset-6": packet("port", 6, TCP, tcp_flags=RST | ACK),
        **{f"icmp-{kind}": packet("port", 4, ICMP, icmp_type=kind) for kind in (3, 4, 5, 11, 12, 19, 255)},
        **{f"icmpv6-{kind}": packet("port", 6, ICMP, icmp_type=kind) for kind in (100, 127, 133, 134, 137)},
    }
    frames = {name: frame.build() for name, frame in quiet.items()}
    frames["error"] = icmp_error(plain.build(), WORLD, 3, 3, 28, OWN)
    frames["arp"] = ArpFrame(MACS[1], MACS[2], 1, MACS[1], OWN, OTHER).build()
    frames["other"] = MACS[2] + MACS[1] + b"\x88\xcc" + bytes(46)
    return frames


QUIET = _quiet()


@pytest.mark.parametrize("name", QUIET)
def test_who_may_not_be_answered_is_not(engines: Engines, name: str) -> None:
    assert send(engines, "port", QUIET[name]) == Outcome("drop", DropReason.REJECTED, 0, b"")


def test_a_later_fragment_is_not_answered(engines: Engines) -> None:
    first = packet("port", 4, UDP, more_fragments=True, identification=7, payload=bytes(24))
    assert send(engines, "port", first.build()).told
    later = replace(first, fragment_offset=4, more_fragments=False, payload=bytes(8))
    assert not send(engines, "port", later.build()).told



MTU = 1400
_LEAVING = Layer("out", (Group("out", (Rule(0, Match(), ToUplink(1), "out"),)),), (), Allow(), Allow())


@pytest.fixture
def leaving(engines: Engines) -> Iterator[Engines]:
    """The port sends everything by an uplink with an MTU."""
    port = replace(STATE.ports[0], layers=(_LEAVING,))
    for each in engines:
        each.reset()
        each.load(replace(STATE, ports=(port,), uplinks=(uplink(1, mtu=MTU),)))
    yield engines
    for each in engines:
        each.reset()
        each.load(STATE)


def leave(engines: Engines, frame: bytes) -> Outcome:
    """What both engines do with what the port sends."""
    one, other = (each.process(Hook.PORT_OUT, 1, frame, None, time.monotonic()) for each in engines)
    assert one == other
    return one


def sized(family: int, protocol: int, size: int, **more: Any) -> IpFrame:
    """A packet of the port of so many bytes."""
    plain = packet("port", family, protocol, payload=b"", **more)
    return replace(plain, payload=bytes(size + 14 - len(plain.build())))


@pytest.mark.parametrize("protocol", [TCP, UDP, SCTP, ICMP])
@pytest.mark.parametrize("family", [4, 6])
def test_what_is_too_big_for_the_uplink_is_told_its_mtu(leaving: Engines, family: int, protocol: int) -> None:
    """RFC 1191 section 4, RFC 4443 section 3.2; the first packet of a flow and a later one."""
    assert leave(leaving, sized(family, protocol, MTU).build()).verdict == "redirect_uplink"
    for size in (MTU + 1, 3000):
        came = sized(family, protocol, size)
        outcome = leave(leaving, came.build())
        assert (outcome.reason, outcome.told, outcome.target) == (DropReason.TOO_BIG, "port", 1)
        frame = Ether(outcome.frame)
        ip = frame.payload
        assert (frame.dst, ip.src, ip.dst) == (came.src_mac.hex(":"), str(came.dst), str(came.src))
        if family == 4:
            error = frame[ScapyIcmp]
            assert (error.type, error.code, error.reserved, error.nexthopmtu) == (3, 4, 0, MTU)
            del error.chksum, frame[ScapyIp].chksum
        else:
            error = frame[ICMPv6PacketTooBig]
            assert (error.code, error.mtu) == (0, MTU)
            del error.cksum
        start = 14 + (28 if family == 4 else 48)
        assert outcome.frame[start:] == came.build()[14:][:548 if family == 4 else 1232]
        assert bytes(frame) == outcome.frame


def test_no_packet_of_576_bytes_is_too_big(leaving: Engines) -> None:
    for each in leaving:
        each.load(replace(STATE, ports=(replace(STATE.ports[0], layers=(_LEAVING,)),), uplinks=(uplink(1, mtu=300),)))
    assert leave(leaving, sized(4, UDP, 576).build()).verdict == "redirect_uplink"
    assert leave(leaving, sized(4, UDP, 577).build()).reason is DropReason.TOO_BIG


def test_too_big_and_nobody_to_tell(leaving: Engines) -> None:
    """A reset and an error are not answered, nor is a later fragment; they are dropped all the same."""
    first = sized(4, UDP, 1380, more_fragments=True, identification=7)
    later = replace(first, fragment_offset=170, more_fragments=False, payload=bytes(1480))
    assert leave(leaving, first.build()).verdict == "redirect_uplink"
    for frame in (sized(4, TCP, 1500, tcp_flags=RST), sized(4, ICMP, 1500, icmp_type=3), later):
        assert leave(leaving, frame.build()) == Outcome("drop", DropReason.TOO_BIG, 0, b"")


def test_a_packet_with_little_time_left_dies_of_that(leaving: Engines) -> None:
    assert leave(leaving, replace(sized(4, UDP, 1500), ttl=1).build()).reason is DropReason.TTL_EXCEEDED


def test_errors_are_limited_and_resets_are_not(engines: Engines) -> None:
    backend = engines[1]
    settings = dict(backend._datapath._settings)
    # 5 at once, and then none within this test.
    backend._datapath._settings |= {"answer_ns": 10**12, "answer_burst_ns": 4 * 10**12}
    hook, number, _, _, vtep = WAYS["port"]

    def told(frame: bytes) -> bool:
        return bool(backend.process(hook, number, frame, vtep, 0.0).told)

    try:
        backend._datapath._write_settings(dirty=False)
        udp, tcp = packet("port", 4, UDP).build(), packet("port", 4, TCP).build()
        answered = sum(told(udp) for _ in range(40))
        assert answered in range(5, 5 * backend._datapath._map("drops").cpus + 1)   # the bucket is each CPU's own
        assert all(told(tcp) for _ in range(10))
    finally:
        backend._datapath._settings = settings
        backend._datapath._write_settings(dirty=False)
