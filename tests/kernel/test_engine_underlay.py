"""Tunnels between two engines that make and take off outer headers themselves, with real sockets.

What goes by the VXLAN device and what does not; sizes, MTU, segments, offloads, checksums, DSCP and ECN; queues, rates
and connections of the ports; over both families of underlay.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Self

import pytest
from engine_vtep import GATEWAY_MAC, INNER, MACS, OUTER, TUNNEL, VNI, Ours, Vtep, open_layers

from vfp.datapath.engine import Hook
from vfp.model import Address, EngineState, LocalPort, Location, Port, Rate, Remote, Space, Underlay, Virtual
from vfp.reasons import DropReason

MTU = 1500
OVERHEAD = {4: 50, 6: 70}
IP_MTU_DISCOVER, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU = 10, 14, 23, 24
PMTUDISC_DONT, PMTUDISC_DO = 0, 2
VERSIONS = pytest.mark.parametrize("version", [4, 6])
SHAPER = ("e3q0", "e3q1")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


class End(Vtep):
    """One host with an engine and an endpoint; its state may be changed."""

    name = "a"

    def apply(self) -> None:
        self.become_so()

    def become_so(self, *, paths: tuple[tuple[Address, int], ...] = (), shaper: int = 0, **port: Any) -> None:
        """The host's state; `port`: fields of the port that are not as usual."""
        ours = self.ours
        gateways = tuple(ip_address(INNER["gateway"][version]) for version in (4, 6))
        own = Port(1, self.name, self.host.link("pa")["ifindex"], ours.port_mac, GATEWAY_MAC, open_layers(ours.vni),
                   gateways=gateways)
        self.engine.apply(EngineState(
            ports=(replace(own, **port),), spaces=(Space(ours.vni, ours.entries),), tunnel_ifindex=self.tunnel,
            underlays=(Underlay(ip_address(ours.underlay), self.host.link("ul0")["ifindex"], self.mtu),),
            tunnel_port=ours.port, paths=paths, shaper=shaper))

    def _attach_underlay(self) -> None:
        self._switch.attach(self.host.link("ul0")["ifindex"], "ingress", self.engine.program_fd(Hook.UNDERLAY_IN),
                            "sluice_underlay_in")

    def by_device(self) -> tuple[int, int]:
        """Packets that the VXLAN device has received and sent so far."""
        counts = json.loads(self.host.ip("-s", "-j", "link", "show", "dev", TUNNEL))[0]["stats64"]
        return counts["rx"]["packets"], counts["tx"]["packets"]

    def address_endpoint(self) -> None:
        """Addresses of the endpoint, and of the gateway."""
        self.a.ip("link", "set", "eth0", "address", MACS[self.name].hex(":"))
        for version, length in ((4, 24), (6, 64)):
            self.a.ip("addr", "add", f"{INNER[self.name][version]}/{length}", "dev", "eth0",
                      *(("nodad",) if version == 6 else ()))


class Far(End):
    """The other one: its underlay's link is the peer of the first one's."""

    name = "c"

    def __init__(self, ours: Ours, near: End) -> None:
        super().__init__(ours, near.mtu, near.endpoint_mtu)
        self._near = near

    def _build(self) -> None:
        super()._build()
        self.host.ip("link", "del", "ul0")
        self._near.other.ip("link", "set", "ul0", "netns", self.host.name)
        self.host.ip("link", "set", "ul0", "up")
        self.become(self.ours)
        self._attach_underlay()


class Two:
    """Both, up and running."""

    def __init__(self, family: int) -> None:
        self.family = family
        here, there = OUTER[family]
        endpoint_mtu = 9000                 # larger than what fits: the engine tells
        entries = {name: self._entries(name, other) for name, other in (("a", there), ("c", here))}
        self.near = End(Ours(here, MACS["a"], VNI, entries["a"]), MTU, endpoint_mtu)
        self.far = Far(Ours(there, MACS["c"], VNI, entries["c"]), self.near)
        self.ends = {"a": self.near, "c": self.far}
        self._stack = ExitStack()

    @staticmethod
    def _entries(own: str, other_vtep: str) -> tuple[tuple[Address, Location], ...]:
        other = "c" if own == "a" else "a"
        return tuple(
            entry for version in (4, 6) for entry in (
                (ip_address(INNER[own][version]), LocalPort(1, MACS[own])),
                (ip_address(INNER[other][version]), Remote(ip_address(other_vtep), VNI, MACS[other])),
                (ip_address(INNER["gateway"][version]), Virtual(GATEWAY_MAC))))

    def __enter__(self) -> Self:
        try:
            for end in (self.near, self.far):
                self._stack.enter_context(end)
                end.address_endpoint()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def inner_mtu(self) -> int:
        """What fits into the tunnel."""
        return MTU - OVERHEAD[self.family]

    def socket(self, who: str, version: int, kind: int) -> socket.socket:
        """A socket of an endpoint."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made = self.ends[who].a.call(lambda: socket.socket(family, kind))
        made.settimeout(5)
        return made

    def bad_checksums(self) -> dict[str, int]:
        """What any stack has refused for its checksum."""
        found = {}
        for name, end in self.ends.items():
            for part in (end.host, end.a):
                for line in part.execute("nstat", "-asz").splitlines():
                    words = line.split()
                    if len(words) > 1 and words[0].endswith("CsumErrors") and int(words[1]):
                        found[f"{name} {part.name} {words[0]}"] = int(words[1])
        return found


@pytest.fixture(scope="module", params=[4, 6], ids=["over IPv4", "over IPv6"])
def two(request: pytest.FixtureRequest) -> Iterator[Two]:
    with Two(request.param) as made:
        for end, peer in (("a", "c"), ("c", "a")):
            for version in (4, 6):
                made.ends[end].a.execute("ping", "-c", "1", "-W", "1", INNER[peer][version], check=False)
        yield made
        assert made.bad_checksums() == {}


@pytest.fixture
def usual(two: Two) -> Iterator[Two]:
    """The states are as before afterwards."""
    yield two
    for end in (two.near, two.far):
        end.become_so()


def _answered(two: Two, who: str, version: int, size: int, *, fragment: bool = True) -> bool:
    """Whether a ping of that many bytes of IP is answered."""
    peer = "c" if who == "a" else "a"
    payload = size - (28 if version == 4 else 48)
    out = two.ends[who].a.execute("ping", "-n", "-c", "1", "-W", "1", "-M", "dont" if fragment else "do", "-s",
                                  str(payload), INNER[peer][version], check=False)
    return " 1 received" in out


def _stream(two: Two, version: int, client: str, data: bytes) -> str:
    """Bulk over TCP; digest of what arrived."""
    server = "c" if client == "a" else "a"
    digest = hashlib.sha256()
    with two.socket(server, version, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((INNER[server][version], 5001))
        listening.listen()

        def take() -> None:
            taken, _ = listening.accept()
            with taken, suppress(TimeoutError):
                taken.settimeout(5)
                while piece := taken.recv(1 << 18):
                    digest.update(piece)

        taker = threading.Thread(target=take)
        taker.start()
        with two.socket(client, version, socket.SOCK_STREAM) as sending:
            sending.connect((INNER[server][version], 5001))
            sending.sendall(data)
        taker.join(10)
    return digest.hexdigest()


@VERSIONS
def test_single_packets_do_not_see_the_device(two: Two, version: int) -> None:
    time.sleep(0.03)                        # what went by the device is through
    before = [end.by_device() for end in (two.near, two.far)]
    for who in ("a", "c"):
        for size in (60, 577, two.inner_mtu):
            assert _answered(two, who, version, size), (who, size, two.near.drops(), two.far.drops())
    assert [end.by_device() for end in (two.near, two.far)] == before


@VERSIONS
@pytest.mark.parametrize("client", ["a", "c"])
def test_bulk_arrives_whole_and_is_not_cut_small(two: Two, version: int, client: str) -> None:
    """Large segments stay whole: the device gets fewer packets than there are on the wire."""
    data = os.urandom(1 << 16) * 128
    sender = two.ends[client]
    _, before = sender.by_device()
    assert _stream(two, version, client, data) == hashlib.sha256(data).hexdigest(), (two.near.drops(), two.far.drops())
    by_device = sender.by_device()[1] - before
    assert 0 < by_device < len(data) // (4 * MTU), "packets of several segments"


@VERSIONS
def test_all_packets_of_a_connection_have_one_outer_port(two: Two, version: int) -> None:
    """Whether the engine makes the outer header or the device: else the two would take different paths."""
    wire = two.far.wire(two.far.host, "ul0")
    data = os.urandom(1 << 16) * 16
    assert _stream(two, version, "a", data)
    at, source = (34, slice(26, 30)) if two.family == 4 else (54, slice(22, 38))
    sender, ports = ip_address(OUTER[two.family][0]).packed, set()
    wire.settimeout(0.2)
    with suppress(TimeoutError):
        while frame := wire.recv(1 << 17):
            inner = frame[at + 16:]
            if frame[source] == sender and inner[23 if version == 4 else 20] == socket.IPPROTO_TCP:
                ports.add(frame[at:at + 2])
    assert len(ports) == 1


@VERSIONS
def test_datagrams_of_all_sizes_arrive(two: Two, version: int) -> None:
    with (two.socket("c", version, socket.SOCK_DGRAM) as listening,
          two.socket("a", version, socket.SOCK_DGRAM) as sending):
        listening.bind((INNER["c"][version], 5002))
        if version == 4:
            sending.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
        largest = two.inner_mtu - (28 if version == 4 else 48)
        for size in (0, 1, 2, 31, 500, 501, 549, 550, 1200, largest - 1, largest):
            data = os.urandom(size)
            sending.sendto(data, (INNER["c"][version], 5002))
            assert listening.recv(1 << 16) == data, size


@VERSIONS
def test_a_socket_is_told_what_fits_by_its_gateway(two: Two, version: int) -> None:
    level, discover, asked = (
        (socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_MTU) if version == 4
        else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_MTU))
    wire = two.near.wire(two.near.a, "eth0")
    with two.socket("a", version, socket.SOCK_DGRAM) as sending:
        sending.setsockopt(level, discover, PMTUDISC_DO)
        sending.connect((INNER["c"][version], 9))
        deadline = time.monotonic() + 5
        while sending.getsockopt(level, asked) != two.inner_mtu and time.monotonic() < deadline:
            with suppress(OSError):         # EMSGSIZE, ECONNREFUSED
                sending.send(bytes(3000))
            time.sleep(0.02)
        assert sending.getsockopt(level, asked) == two.inner_mtu
    wanted = ip_address(INNER["gateway"][version]).packed
    at = 26 if version == 4 else 22
    wire.settimeout(0.2)
    sources = set()
    with suppress(TimeoutError):
        while frame := wire.recv(1 << 16):
            sources.add(frame[at:at + len(wanted)])
    assert wanted in sources


def test_ipv4_that_may_be_fragmented_is_so_outside(two: Two) -> None:
    """A packet larger than the tunnel, without DF: the device fragments the outer one, if that is IPv4."""
    if two.family == 6:
        pytest.skip("the kernel does not fragment what it tunnels over IPv6 (ip6tunnel_xmit): the sender is told")
    with (two.socket("c", 4, socket.SOCK_DGRAM) as listening, two.socket("a", 4, socket.SOCK_DGRAM) as sending):
        listening.bind((INNER["c"][4], 5003))
        sending.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
        two.near.a.ip("route", "flush", "cache")
        data = os.urandom(3000)
        sending.sendto(data, (INNER["c"][4], 5003))
        assert listening.recv(1 << 16) == data


@VERSIONS
def test_a_narrower_path_holds_at_once_and_for_segments(usual: Two, version: int) -> None:
    two = usual
    assert _answered(two, "a", version, 1400, fragment=False)
    two.near.become_so(paths=((ip_address(OUTER[two.family][1]), 1400),))
    fits = 1400 - OVERHEAD[two.family]
    assert not _answered(two, "a", version, fits + 1, fragment=False)
    assert two.near.drops()[DropReason.TOO_BIG.name]
    assert _answered(two, "a", version, fits, fragment=False)


@VERSIONS
@pytest.mark.parametrize("client", ["a", "c"])
def test_both_sides_of_a_connection_offer_segments_that_fit(two: Two, version: int, client: str) -> None:
    server = "c" if client == "a" else "a"
    with (two.socket(server, version, socket.SOCK_STREAM) as listening,
          two.socket(client, version, socket.SOCK_STREAM) as asking):
        listening.bind((INNER[server][version], 0))
        listening.listen()
        asking.connect(listening.getsockname()[:2])
        accepted, _ = listening.accept()
        with accepted:
            headers = 40 if version == 4 else 60
            for each in (asking, accepted):
                offered = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
                assert offered <= two.inner_mtu - headers


# Ports with queues and limits

@VERSIONS
def test_what_a_shaped_port_sends_passes_the_shaper(usual: Two, version: int) -> None:
    two, host = usual, usual.near.host
    host.ip("link", "add", SHAPER[0], "type", "veth", "peer", SHAPER[1])
    try:
        for name in SHAPER:
            host.execute("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1")
            host.ip("link", "set", name, "up")
        host.execute("tc", "qdisc", "add", "dev", SHAPER[0], "root", "handle", "1:", "htb", "default", "0")
        host.execute("tc", "class", "add", "dev", SHAPER[0], "parent", "1:", "classid", "1:1", "htb", "rate", "1gbit")
        two.near._switch.attach(host.link(SHAPER[1])["ifindex"], "ingress",
                                two.near.engine.program_fd(Hook.SHAPED_IN), "sluice_shaped_in")
        two.near.become_so(shaped=True, queued=True, shaper=host.link(SHAPER[0])["ifindex"])
        data = os.urandom(1 << 16) * 32
        assert _answered(two, "a", version, 577)
        assert _stream(two, version, "a", data) == hashlib.sha256(data).hexdigest(), two.near.drops()
        assert _stream(two, version, "c", data) == hashlib.sha256(data).hexdigest(), two.near.drops()
        sent = int(host.execute("tc", "-s", "class", "show", "dev", SHAPER[0]).split("Sent ")[1].split()[0])
        assert sent > len(data), "by its class"
    finally:
        two.near.become_so()
        host.ip("link", "del", SHAPER[0])


@pytest.mark.parametrize("way", ["rate_out", "rate_in"])
def test_a_rate_holds(usual: Two, way: str) -> None:
    """200 packets a second with a burst of 20: in a second of flood, about 220 get through."""
    two = usual
    two.near.become_so(**{way: Rate(200, 20)})
    who, to = ("a", "c") if way == "rate_out" else ("c", "a")
    with two.socket(to, 4, socket.SOCK_DGRAM) as listening, two.socket(who, 4, socket.SOCK_DGRAM) as sending:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        listening.bind((INNER[to][4], 5004))
        sending.connect((INNER[to][4], 5004))
        begun = time.monotonic()
        while (passed_s := time.monotonic() - begun) < 1.0:
            sending.send(b"x" * 20)
            time.sleep(0.0005)
        got = 0
        listening.settimeout(0.2)
        with suppress(TimeoutError):
            while listening.recv(100):
                got += 1
    assert 200 * passed_s * 0.93 < got < (200 * passed_s + 20) * 1.07
    assert two.near.drops()[DropReason.RATE_LIMITED.name] > 100


def test_connections_are_limited_and_come_back_when_they_end(usual: Two) -> None:
    two = usual
    two.near.become_so(connections=3)
    with ExitStack() as stack, two.socket("c", 4, socket.SOCK_STREAM) as listening:
        listening.bind((INNER["c"][4], 5005))
        listening.listen()
        two.near.engine.sweep()             # what other tests left

        def connects() -> bool:
            asking = stack.enter_context(two.socket("a", 4, socket.SOCK_STREAM))
            asking.settimeout(0.3)
            return asking.connect_ex((INNER["c"][4], 5005)) == 0

        flows = two.near.engine.flows()
        live = len([flow for flow in flows if not flow.reply])
        two.near.become_so(connections=live + 3)
        assert [connects() for _ in range(5)] == [True, True, True, False, False]
        assert two.near.drops()[DropReason.CONNECTION_LIMIT.name] >= 2
        two.near.become_so(connections=live + 4)
        assert connects()
