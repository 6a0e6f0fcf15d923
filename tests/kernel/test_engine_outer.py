"""Outer headers, made and taken off by the engine, as the reference has them; what is odd is left to the kernel."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address

import pytest
from engine_vtep import INNER, MACS, OUTER, VNI, Ours, Vtep
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from vfp.datapath.engine import Hook
from vfp.model import LocalPort, Remote
from vfp.reasons import DropReason
from vfp.reference.vxlan import SOURCE_PORTS, Tunnel, arrived, encapsulate

MTU = 9000
SIZES = (0, 1, 21, 512, 513, 1400, 8000)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


class Host(Vtep):
    """A host whose underlay leads to a wire."""

    def _attach_underlay(self) -> None:
        self._switch.attach(self.host.link("ul0")["ifindex"], "ingress", self.engine.program_fd(Hook.UNDERLAY_IN),
                            "sluice_underlay_in")


class Wired:
    """The host, and both its wires."""

    def __init__(self, family: int, host: Host) -> None:
        self.family, self.host = family, host
        self.endpoint, self.far = host.wire(host.a, "eth0"), host.wire(host.other, "ul0")
        self.mac = bytes.fromhex(host.host.link("ul0")["address"].replace(":", ""))
        here, there = (ip_address(address) for address in OUTER[family])
        self.out, self.back = Tunnel(here, there, VNI), Tunnel(there, here, VNI)

    def take_off(self, outer: bytes, outer_class: int = 0) -> bytes | None:
        """What the endpoint gets of an outer packet."""
        if self.family == 4:
            outer = bytes([outer[0], outer_class]) + outer[2:10] + b"\0\0" + outer[12:]
            total = sum(int.from_bytes(outer[n:n + 2], "big") for n in range(0, 20, 2))
            while total > 0xFFFF:
                total = (total & 0xFFFF) + (total >> 16)
            outer = outer[:10] + (~total & 0xFFFF).to_bytes(2, "big") + outer[12:]
        else:
            outer = (6 << 28 | outer_class << 20).to_bytes(4, "big") + outer[4:]
        self.far.send(self.mac + bytes.fromhex("0200000000aa") + (b"\x08\x00" if self.family == 4 else b"\x86\xdd")
                      + outer)
        return _next(self.endpoint, lambda frame: frame[6:12] == MACS["c"])


def _next(wire: socket.socket, wanted: object) -> bytes | None:
    assert callable(wanted)
    wire.settimeout(0.3)
    with suppress(TimeoutError):
        while frame := wire.recv(1 << 16):
            if wanted(frame):
                return frame
    return None


@pytest.fixture(scope="module", params=[4, 6], ids=["over IPv4", "over IPv6"])
def wired(request: pytest.FixtureRequest) -> Iterator[Wired]:
    here, there = OUTER[request.param]
    entries = tuple(entry for version in (4, 6) for entry in (
        (ip_address(INNER["a"][version]), LocalPort(1, MACS["a"])),
        (ip_address(INNER["c"][version]), Remote(ip_address(there), VNI, MACS["c"]))))
    with Host(Ours(here, MACS["a"], VNI, entries), MTU) as host:
        host.host.ip("neigh", "add", there, "lladdr", "02:00:00:00:00:aa", "dev", "ul0", "nud", "permanent")
        yield Wired(request.param, host)


def _packet(version: int, source: str, to: str, size: int, what: int = 0, port: int = 7) -> bytes:
    ip = (IP(src=INNER[source][4], dst=INNER[to][4], tos=what) if version == 4
          else IPv6(src=INNER[source][6], dst=INNER[to][6], tc=what))
    return bytes(Ether(src=MACS[source].hex(":"), dst=MACS[to].hex(":")) / ip / UDP(sport=1000, dport=port)
                 / (b"x" * size))


@pytest.mark.parametrize("version", [4, 6])
def test_outer_headers_are_those_of_the_reference(wired: Wired, version: int) -> None:
    ports = set()
    for number, size in enumerate(SIZES):
        for what in (0, 1, 2, 3, 0xB8, 0xFF):
            frame = _packet(version, "a", "c", size, what, 100 + number)
            wired.endpoint.send(frame)
            outer = _next(wired.far, lambda caught, frame=frame: caught.endswith(frame))
            assert outer is not None, (size, what, wired.host.drops())
            at = 14 + (20 if wired.family == 4 else 40)
            port = int.from_bytes(outer[at:at + 2], "big")
            ports.add(port)
            assert outer[14:] == encapsulate(frame, wired.out, port)
    assert all(port in SOURCE_PORTS for port in ports)
    assert len(ports) > len(SIZES) // 2, "flows differ"


@pytest.mark.parametrize("version", [4, 6])
def test_all_of_ecn_comes_out_as_in_rfc_6040(wired: Wired, version: int) -> None:
    for outer in range(4):
        for inner in range(4):
            frame = _packet(version, "c", "a", 30, 0xB8 | inner)
            before = wired.host.drops().get(DropReason.ECN_INVALID.name, 0)
            got = wired.take_off(encapsulate(frame, wired.back, 50000), outer)
            wanted = arrived(frame, outer)
            if isinstance(wanted, DropReason):
                assert got is None
                assert wired.host.drops()[wanted.name] == before + 1
            else:
                assert got == wanted, (outer, inner)


@pytest.mark.parametrize("version", [4, 6])
def test_packets_of_all_sizes_come_out(wired: Wired, version: int) -> None:
    for size in SIZES:
        frame = _packet(version, "c", "a", size)
        assert wired.take_off(encapsulate(frame, wired.back, 50001)) == frame, (size, wired.host.drops())


def test_what_is_odd_is_for_the_kernel_to_judge(wired: Wired) -> None:
    """Nothing of it reaches the endpoint but what the VXLAN device lets through, and that is judged as ever."""
    frame = _packet(4, "c", "a", 30)
    good = encapsulate(frame, wired.back, 50002)
    at = 20 if wired.family == 4 else 40
    for what, changed in (
        ("VXLAN flags", good[:at + 8] + b"\0" + good[at + 9:]),
        ("a reserved byte", good[:at + 15] + b"\1" + good[at + 16:]),
        ("UDP length", good[:at + 4] + (len(good) - at + 4).to_bytes(2, "big") + good[at + 6:]),
        ("an UDP checksum that is wrong", good[:at + 6] + b"\x12\x34" + good[at + 8:]),
        ("cut", good[:-5]),
        ("another port", good[:at + 2] + b"\x12\xb6" + good[at + 4:]),
        ("no inner frame", encapsulate(frame[:20], wired.back, 50002)),
    ):
        assert wired.take_off(changed) is None, what
    stranger = Tunnel(ip_address("172.31.7.9" if wired.family == 4 else "fd31::9"), wired.back.vtep, VNI)
    assert wired.take_off(encapsulate(frame, stranger, 50002)) is None
    assert wired.host.drops()[DropReason.WRONG_VTEP.name]
    assert wired.take_off(encapsulate(frame, Tunnel(wired.back.source, wired.back.vtep, VNI + 1), 50002)) is None
    assert wired.host.drops()[DropReason.UNKNOWN_SOURCE.name]
    assert wired.take_off(good) == frame
