"""Captures: frames of a kind are told once, whatever their family; and what iperf3 says is made bits of frames."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.config import conf
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from labs import capture
from labs.rate import summary
from labs.reach import _spread


@pytest.fixture(autouse=True)
def _scapy_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures turn scapy's IPv6 off, and with it the checksums that other tests of this process ask it for."""
    monkeypatch.setattr(conf, "ipv6_enabled", conf.ipv6_enabled)

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
ETHER = {"src": A, "dst": B}


def _vxlan(inner: Packet, port: int, outer: Packet) -> Packet:
    return Ether(**ETHER) / outer / UDP(sport=port, dport=4789) / VXLAN(vni=7) / inner


@pytest.mark.parametrize("outer", [IP(src="1.1.1.1", dst="1.1.1.2", tos=184),
                                   IPv6(src="fd31::1", dst="fd31::2", tc=184)])
@pytest.mark.parametrize(("inner", "protocol", "source"), [
    (IPv6(src="fd00::1", dst="fd00::2", fl=3, tc=40) / TCP(), "tcp", "fd00::1"),
    (IPv6(src="fd00::1", dst="fd00::2", tc=40) / ICMPv6EchoRequest(), "icmp", "fd00::1"),
    (IP(src="10.0.0.1", dst="10.0.0.2", tos=40) / ICMP(), "icmp", "10.0.0.1"),
])
def test_frames_in_a_tunnel_are_one_kind_whatever_their_length_and_port(
        tmp_path: Path, outer: Packet, inner: Packet, protocol: str, source: str) -> None:
    frames = [_vxlan(Ether(**ETHER) / inner / Raw(b"x" * (100 + n)), 50000 + n, outer) for n in range(5)]
    wrpcap(str(tmp_path / "x.pcap"), frames)
    counts = capture.read(tmp_path / "x.pcap")
    assert list(counts.values()) == [5]
    kind = capture.decode(next(iter(counts)))
    assert (kind.vni, kind.vxlan_port, kind.protocol, kind.source) == (7, 4789, protocol, source)
    assert (kind.dscp, kind.outer_dscp, kind.macs) == (10, 46, (B, A))


def test_arp_and_others_have_no_mark() -> None:
    kind = capture.decode(bytes(Ether(src=A, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="10.0.0.1")))
    assert (kind.arp, kind.broadcast, kind.source, kind.dscp) == (True, True, "10.0.0.1", None)
    assert capture.decode(bytes(Ether(**ETHER, type=0x88B5) / Raw(b"x" * 60))).source == ""


def test_ranges_of_addresses_are_spread() -> None:
    assert list(_spread("10.0.0.9-10.0.0.11,fd00::1f-fd00::21 1.1.1.1")) == [
        "10.0.0.9", "10.0.0.10", "10.0.0.11", "fd00::1f", "fd00::20", "fd00::21", "1.1.1.1"]


def test_rate_is_that_of_frames() -> None:
    told = {"start": {"tcp_mss_default": 1398}, "end": {"sum_received": {"bits_per_second": 13.86e6}},
            "intervals": [{"sum": {"bits_per_second": 1e6, "omitted": True}},
                          {"sum": {"bits_per_second": 1386e4, "omitted": False}}]}
    found = summary(told, udp=False, ipv6=False)
    assert found["mbit"] == pytest.approx(13.86 * 1452 / 1386, abs=0.01)
    assert found["intervals"] == [found["mbit"]]
