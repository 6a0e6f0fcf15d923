"""What the engine puts on the underlay is VXLAN as tshark reads it, and as captures of other stacks have it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Self

import pytest
from engine_vtep import INNER, MACS, VNI, Foreign, Ours, Vtep
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from vxlan_judge import Read, captured, judged, outer_bytes

from vfp.model import LocalPort, Remote

DSCP_ECN = [(dscp, ecn) for dscp in (0, 10, 46, 63) for ecn in (0, 1, 2)]
GENERAL = ("tcpdump_vxlan.pcap", "tcpdump_vxlan_port_8472.pcap")
SEGMENTED = tuple(f"tcpdump_gso-ipv{outer}-vxlan-ipv{inner}.pcap" for outer in (4, 6) for inner in (4, 6))
MTU = 9000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


def _drain(wire: socket.socket, wait_s: float = 0.3) -> list[bytes]:
    """All frames that carry UDP with a VXLAN header's first byte, until none comes for a while."""
    found = []
    wire.settimeout(wait_s)
    while True:
        try:
            frame = wire.recv(1 << 17)
        except TimeoutError:
            return found
        at = outer_bytes(frame) - 8
        if frame[12:14] in (b"\x08\x00", b"\x86\xdd") and frame[at:at + 1] == b"\x08":
            found.append(frame)


@pytest.fixture(scope="module", params=[(4, True), (4, False), (6, True), (6, False)], ids=str)
def foreign(request: pytest.FixtureRequest) -> Iterator[Foreign]:
    family, direct = request.param
    with Foreign(family, direct) as made:
        yield made


def _inner(version: int, dscp: int, ecn: int, source_port: int) -> bytes:
    field = dscp << 2 | ecn
    ip = IP(src=INNER["a"][4], dst=INNER["c"][4], tos=field) if version == 4 else IPv6(
        src=INNER["a"][6], dst=INNER["c"][6], tc=field)
    ether = Ether(src=MACS["a"].hex(":"), dst=MACS["c"].hex(":"))
    return bytes(ether / ip / UDP(sport=source_port, dport=9) / bytes(64))


def _sent(foreign: Foreign, version: int, scratch: Path) -> list[Read]:
    """One packet for each codepoint, as tshark reads them; each carries what was sent."""
    sender, far = foreign.wire(foreign.a, "eth0"), foreign.wire(foreign.other, "ul0")
    foreign.host.execute("ping", "-c", "1", "-W", "1", foreign.there)       # the next hop is known
    _drain(far, 0.05)
    sent = [_inner(version, dscp, ecn, 61000 + number) for number, (dscp, ecn) in enumerate(DSCP_ECN)]
    for frame in sent:
        sender.send(frame)
    frames = _drain(far)
    frames = [frame for frame in frames if frame[outer_bytes(frame):] in sent]
    assert [frame[outer_bytes(frame):] for frame in frames] == sent, foreign.drops()
    return judged(frames, scratch)


@pytest.mark.parametrize("version", [4, 6])
def test_dscp_and_ecn_of_the_outer_header_are_the_inner_ones(foreign: Foreign, version: int, tmp_path: Path) -> None:
    """RFC 6040 4.1, normal mode."""
    outer = 6 if ":" in foreign.there else 4
    names = {4: ("ip.dsfield.dscp", "ip.dsfield.ecn"), 6: ("ipv6.tclass.dscp", "ipv6.tclass.ecn")}[outer]
    found = [tuple(int(each[name][0]) for name in names) for each in _sent(foreign, version, tmp_path)]
    assert found == DSCP_ECN


@pytest.mark.parametrize("version", [4, 6])
def test_tshark_reads_vni_addresses_ports_and_the_inner_frame(foreign: Foreign, version: int, tmp_path: Path) -> None:
    outer = 6 if ":" in foreign.there else 4
    ports = set()
    for found in _sent(foreign, version, tmp_path):
        assert found["vxlan.vni"] == (str(VNI),)
        assert found["vxlan.flags"] == ("0x0800",)
        assert found["udp.dstport"] == ("4789", "9")
        assert found["_ws.malformed"] == ()
        assert found["frame.protocols"] == (
            f"eth:ethertype:{'ip' if outer == 4 else 'ipv6'}:udp:vxlan:eth:ethertype:"
            f"{'ip' if version == 4 else 'ipv6'}:udp:data",)
        addresses = ("ip.src", "ip.dst") if outer == 4 else ("ipv6.src", "ipv6.dst")
        assert tuple(found[name][0] for name in addresses) == (foreign.ours.underlay, foreign.there)
        # Good, or none; which tshark calls illegal over IPv6, RFC 6935 not.
        assert found["udp.checksum.status"][0] in ("1", "3" if outer == 4 else "4")
        assert set(found["ip.checksum.status"]) <= {"1"}
        ports.add(int(found["udp.srcport"][0]))
    assert len(ports) > len(DSCP_ECN) // 2                                  # flows spread over paths
    assert min(ports) >= 32768


@dataclass(frozen=True, slots=True)
class Case:
    """A captured packet of another implementation, taken apart."""

    name: str
    outer: bytes
    inner: bytes
    port: int
    vni: int
    outer_from: str
    outer_to: str
    inner_from: str
    inner_to: str

    @classmethod
    def of(cls, name: str, frame: bytes) -> Self:
        at = outer_bytes(frame)
        outer, inner = frame[:at], frame[at:]
        if "gso" in name:                       # taken before its UDP checksum was computed: none is as good
            outer = outer[:-10] + bytes(2) + outer[-8:]
        return cls(name, outer, inner, 8472 if "8472" in name else 4789, int.from_bytes(outer[-4:-1], "big"),
                   *_addresses(outer), *_addresses(inner))

    def received(self, direct: bool) -> Ours:
        """Our side, if this packet comes to us."""
        return Ours(self.outer_to, self.inner[:6], self.vni, (
            (ip_address(self.inner_to), LocalPort(1, self.inner[:6])),
            (ip_address(self.inner_from), Remote(ip_address(self.outer_from), self.vni, self.inner[6:12])),
        ), self.port, direct)

    def sent(self, direct: bool) -> Ours:
        """Our side, if this packet is ours."""
        return Ours(self.outer_from, self.inner[6:12], self.vni, (
            (ip_address(self.inner_from), LocalPort(1, self.inner[6:12])),
            (ip_address(self.inner_to), Remote(ip_address(self.outer_to), self.vni, self.inner[:6])),
        ), self.port, direct)


def _addresses(frame: bytes) -> tuple[str, str]:
    """Source and destination of an IP packet in Ethernet."""
    at, size = (26, 4) if frame[12:14] == b"\x08\x00" else (22, 16)
    return str(ip_address(frame[at:at + size])), str(ip_address(frame[at + size:at + 2 * size]))


def _cases(*names: str) -> list[Case]:
    """The first packet of each direction that carries IP."""
    found: dict[tuple[str, str], Case] = {}
    for name in names:
        for frame in captured(name):
            if frame[outer_bytes(frame) + 12:outer_bytes(frame) + 14] in (b"\x08\x00", b"\x86\xdd"):
                case = Case.of(name, frame)
                found.setdefault((name, case.outer_from), case)
    return list(found.values())


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "device"])
def vtep(request: pytest.FixtureRequest) -> Iterator[Vtep]:
    ours = Ours("172.31.7.1", MACS["a"], VNI, (), direct=request.param)
    with Vtep(ours, MTU, MTU) as made:
        yield made


@pytest.mark.parametrize("case", _cases(*GENERAL, *SEGMENTED), ids=lambda case: f"{case.name} {case.outer_from}")
def test_a_captured_packet_is_decoded_to_its_inner_frame(vtep: Vtep, case: Case) -> None:
    """From the wire of another implementation to our endpoint, byte by byte."""
    vtep.become(case.received(vtep.ours.direct))
    with vtep.wire(vtep.a, "eth0") as endpoint, vtep.wire(vtep.other, "ul0") as wire:
        mac = bytes.fromhex(vtep.host.link("ul0")["address"].replace(":", ""))
        outer = mac + case.outer[6:]
        wire.send(outer + case.inner)
        assert _next(endpoint, case.inner) == case.inner, vtep.drops()
        # Another VNI, or none valid (RFC 7348 5), is nobody's.
        wire.send(outer[:-2] + bytes((outer[-2] ^ 1,)) + outer[-1:] + case.inner)
        wire.send(outer[:-8] + b"\0" + outer[-7:] + case.inner)
        endpoint.settimeout(0.1)
        assert _next(endpoint, case.inner) == b""


@pytest.mark.parametrize("case", _cases(*GENERAL, *SEGMENTED), ids=lambda case: f"{case.name} {case.outer_from}")
def test_a_captured_inner_frame_is_encoded_as_it_was(vtep: Vtep, case: Case, tmp_path: Path) -> None:
    """Outer addresses, UDP port and length, VXLAN header and inner frame are the captured ones."""
    vtep.become(case.sent(vtep.ours.direct))
    whole = "128" if ":" in case.outer_to else "32"
    vtep.host.ip("route", "replace", f"{case.outer_to}/{whole}", "dev", "ul0")
    vtep.host.ip("neigh", "replace", case.outer_to, "lladdr", "02:00:00:00:00:99", "dev", "ul0", "nud", "permanent")
    with vtep.wire(vtep.a, "eth0") as endpoint, vtep.wire(vtep.other, "ul0") as wire:
        endpoint.send(case.inner)
        sent = [frame for frame in _drain(wire) if frame[outer_bytes(frame):] == case.inner]
    assert len(sent) == 1, vtep.drops()
    outer = sent[0][:len(case.outer)]
    assert outer[-8:] == case.outer[-8:]                                    # VXLAN
    assert outer[-14:-10] == case.outer[-14:-10]                            # UDP destination port and length
    assert _addresses(sent[0]) == (case.outer_from, case.outer_to)
    found, asked = (judged([frame], tmp_path, case.port)[0] for frame in (sent[0], case.outer + case.inner))
    same = ("frame.protocols", "vxlan.flags", "vxlan.vni", "eth.src", "eth.dst")
    assert [found[each][-1] for each in same] == [asked[each][-1] for each in same]


def _next(wire: socket.socket, like: bytes) -> bytes:
    """The next frame between the MACs of this one, whatever else the stacks say; empty: none came in time."""
    while True:
        try:
            frame = wire.recv(1 << 17)
        except TimeoutError:
            return b""
        if frame[:14] == like[:14]:
            return frame


def test_vxlan_gpe_on_its_own_port_is_left_alone(vtep: Vtep) -> None:
    """UDP port 4790 is not ours: the host's stack has it, and no endpoint, and no drop is counted."""
    (frame,) = captured("tcpdump_nsh-over-vxlan-gpe.pcap")
    before = vtep.drops()
    with vtep.wire(vtep.a, "eth0") as endpoint, vtep.wire(vtep.other, "ul0") as wire:
        wire.send(bytes.fromhex(vtep.host.link("ul0")["address"].replace(":", "")) + frame[6:])
        endpoint.settimeout(0.1)
        assert _next(endpoint, frame[42 + 16:]) == b""
    assert vtep.drops() == before

