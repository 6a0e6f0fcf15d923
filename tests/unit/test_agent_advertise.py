"""Router advertisements say what RFC 4861 wants, when it wants it."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether

from agent.advertise import Advertiser, Router, advertisement

GATEWAY = "02:00:00:00:00:01"
ROUTER = Router("slp1", bytes.fromhex(GATEWAY.replace(":", "")), IPv6Address("fe80::ff:fe00:1"), 1450,
                (IPv6Network("fd00:1::/64"), IPv6Network("fd00:2::/48")), True)


class Bench:
    """An advertiser, its clock, and what it sent."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.sent: list[Ether] = []
        self.one = Advertiser(lambda link, frame: self.sent.append(Ether(frame)), lambda: self.now_s,
                              lambda low, high: high)

    def run_for(self, seconds: float) -> list[float]:
        """When something was sent, from now on."""
        times, start_s = [], self.now_s
        while (due_s := self.one.due_in_s()) is not None and self.now_s + due_s <= start_s + seconds:
            self.now_s += due_s
            before = len(self.sent)
            self.one.run()
            times += [self.now_s - start_s] * (len(self.sent) - before)
        self.now_s = start_s + seconds
        return times


def solicitation(source: str = "fe80::9", hop_limit: int = 255) -> bytes:
    return bytes(Ether(src="02:00:00:00:00:09", dst="33:33:00:00:00:02")
                 / IPv6(src=source, dst="ff02::2", hlim=hop_limit) / ICMPv6ND_RS())


def test_the_frame_says_all() -> None:
    raw = advertisement(ROUTER)
    frame = Ether(raw)
    told, outer = frame[ICMPv6ND_RA], frame[IPv6]
    assert (frame.src, frame.dst, outer.src, outer.dst, outer.hlim) == (
        GATEWAY, "33:33:00:00:00:01", "fe80::ff:fe00:1", "ff02::1", 255)
    assert (told.routerlifetime, told.M, told.O, told.chlim) == (1800, 0, 0, 64)
    assert (frame[ICMPv6NDOptSrcLLAddr].lladdr, frame[ICMPv6NDOptMTU].mtu) == (GATEWAY, 1450)
    first = frame[ICMPv6NDOptPrefixInfo]
    second = first.payload
    assert [(one.prefix, one.prefixlen, one.L, one.A) for one in (first, second)] == [
        ("fd00:1::", 64, 1, 1), ("fd00:2::", 48, 1, 0)]      # only /64 can be autonomous (RFC 4862 5.5.3)
    del told.cksum
    assert bytes(frame) == raw


def test_three_soon_then_seldom() -> None:
    bench = Bench()
    bench.one.follow({"a": ROUTER}, {"a": "slp1"})
    assert bench.run_for(1300) == [0, 16, 32, 632, 1232]


def test_who_asks_is_answered_at_once_and_not_too_often() -> None:
    bench = Bench()
    bench.one.follow({"a": ROUTER}, {"a": "slp1"})
    bench.run_for(100)
    bench.sent.clear()
    for _ in range(5):
        bench.one.solicited("a", solicitation())
    assert [(one.dst, one[IPv6].dst) for one in bench.sent] == [("02:00:00:00:00:09", "fe80::9")]
    bench.one.solicited("a", solicitation("::"))
    bench.one.solicited("a", solicitation("::"))
    assert bench.run_for(2) == [0.5]
    bench.one.solicited("a", solicitation("::"))
    assert bench.run_for(10)[0] == 1.5                      # three seconds after the one before


def test_strange_solicitations_are_not_heard() -> None:
    bench = Bench()
    bench.one.follow({"a": ROUTER}, {"a": "slp1"})
    bench.run_for(100)
    bench.sent.clear()
    for frame in (solicitation(hop_limit=64), solicitation("fd00:1::9"), solicitation()[:60]):
        bench.one.solicited("a", frame)
    bench.one.solicited("b", solicitation())
    assert bench.sent == []


def test_a_change_is_told_at_once_and_an_end_too() -> None:
    bench = Bench()
    bench.one.follow({"a": ROUTER}, {"a": "slp1"})
    bench.run_for(100)
    bench.sent.clear()
    changed = Router("slp1", ROUTER.mac, ROUTER.address, 1300, ROUTER.prefixes, False)
    bench.one.follow({"a": changed}, {"a": "slp1"})
    assert bench.run_for(1) == [0]
    assert bench.sent[0][ICMPv6NDOptMTU].mtu == 1300
    bench.one.follow({}, {"a": "slp1"})
    assert bench.sent[-1][ICMPv6ND_RA].routerlifetime == 0
    assert bench.one.due_in_s() is None
