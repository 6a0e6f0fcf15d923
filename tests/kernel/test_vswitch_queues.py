"""Queues hold the rates that they are given, in any mixture of traffic, and lose nothing when rates change."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vswitch_kit import Namespace, World, compile_bpf, port, world

from vfp.datapath.object import BpfObject
from vswitch import HookedProgram, InterfaceTaken, Limit, LinkInvalid, ShaperLink, Switch

SHAPER = ShaperLink("slq0", "slq1", "sluice:shaper")
MBIT = 1_000_000


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    return w.namespace("host")


@pytest.fixture
def switch(w: World, host: Namespace) -> Switch:
    return w.switch(host)


def classes(host: Namespace, link: str) -> dict[str, tuple[int, int]]:
    """Rate and ceil by handle, in bits a second."""
    text = host.execute("tc", "class", "show", "dev", link)
    units = {"": 1, "K": 1000, "M": 10**6, "G": 10**9}
    found = re.findall(r"class htb (\S+) .*?rate (\d+)([KMG]?)bit ceil (\d+)([KMG]?)bit", text)
    return {handle: (int(rate) * units[one], int(ceil) * units[other]) for handle, rate, one, ceil, other in found}


def test_shaper_is_made_mended_and_removed(switch: Switch, host: Namespace) -> None:
    ifindex = switch.ensure_shaper(SHAPER)
    for name in ("slq0", "slq1"):
        here = host.link(name)
        assert {"UP", "NOARP"} <= set(here["flags"])
        assert (here["mtu"], here["ifalias"], host.addresses(name)) == (65535, "sluice:shaper", [])
    host.ip("link", "set", "slq1", "down")
    host.ip("link", "set", "slq0", "mtu", "1000")
    assert switch.ensure_shaper(SHAPER) == ifindex
    assert ("UP" in host.link("slq1")["flags"], host.link("slq0")["mtu"]) == (True, 65535)
    assert set(switch.owned()) == {"slq0", "slq1"}
    switch.remove("slq0")
    assert switch.owned() == {}


def test_foreign_link_with_its_name_is_left_alone(switch: Switch, host: Namespace) -> None:
    host.ip("link", "add", "slq1", "type", "bridge")
    with pytest.raises(InterfaceTaken):
        switch.ensure_shaper(SHAPER)
    assert not host.has("slq0")


def test_classes_are_mended_by_difference(switch: Switch, host: Namespace) -> None:
    ifindex = switch.ensure_shaper(SHAPER)
    switch.ensure_classes(ifindex, {5: Limit(10 * MBIT, 20 * MBIT), 6: Limit(1 * MBIT, 1 * MBIT)}, 100 * MBIT)
    switch.ensure_classes(ifindex, {5: Limit(30 * MBIT, 40_000 * MBIT)}, 50_000 * MBIT)
    assert classes(host, "slq0") == {
        "1:ffff": (50_000 * MBIT, 50_000 * MBIT), "1:fffe": (8000, 50_000 * MBIT),
        "1:5": (30 * MBIT, 40_000 * MBIT), "1:6": (1 * MBIT, 1 * MBIT)}
    host.execute("tc", "class", "change", "dev", "slq0", "parent", "1:ffff", "classid", "1:5", "htb", "rate", "1mbit")
    switch.ensure_classes(ifindex, {5: Limit(30 * MBIT, 40_000 * MBIT)})
    switch.prune_classes(ifindex, {5})
    assert classes(host, "slq0").keys() == {"1:ffff", "1:fffe", "1:5"}
    assert classes(host, "slq0")["1:5"] == (30 * MBIT, 40_000 * MBIT)


def test_a_thousand_classes_are_made_and_looked_at_quickly(switch: Switch) -> None:
    ifindex = switch.ensure_shaper(SHAPER)
    limits = {number: Limit(MBIT, MBIT) for number in range(1, 1001)}
    began_s = time.thread_time()
    switch.ensure_classes(ifindex, limits)
    switch.ensure_classes(ifindex, limits)
    switch.prune_classes(ifindex, {1})
    assert time.thread_time() - began_s < 4


@pytest.mark.parametrize("limit", [Limit(0, 1), Limit(2, 1), Limit(1, 1, -1), Limit(1, 1 << 50)])
def test_impossible_limit_is_refused(switch: Switch, limit: Limit) -> None:
    ifindex = switch.ensure_shaper(SHAPER)
    with pytest.raises(LinkInvalid):
        switch.ensure_classes(ifindex, {1: limit})
    with pytest.raises(LinkInvalid):
        switch.ensure_classes(ifindex, {0: Limit(1, 1)})


# Two endpoints, as the engine joins them: through the shaper by the class of the port, then to the other.
ENDS = """
SEC("tc") int vsw_out(struct __sk_buff *skb)
{
    skb->priority = 1 << 16 | PORT;
    skb->mark = OTHER;
    return bpf_redirect(SHAPER, 0);
}

SEC("tc") int vsw_shaped(struct __sk_buff *skb)
{
    __u32 other = skb->mark;

    skb->mark = 0;
    return bpf_redirect(other, 0);
}
"""

SERVE = """
import socket, sys, time
kind, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
udp = kind != "tcp"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
if udp:
    s.setsockopt(socket.IPPROTO_UDP, 104, 1)             # UDP_GRO
s.bind(("", port))
if not udp:
    s.listen()
print("ready", flush=True)
c = s if udp else s.accept()[0]
c.settimeout(5)
if udp:
    c.recv(1 << 16)
began, got = None, 0
start = time.monotonic()
last = start
while time.monotonic() - start < seconds:
    data = c.recv(1 << 20)
    if not data:
        break
    now = time.monotonic()
    if now - start < 0.5:        # what the burst lets through at once, and TCP's first round trips
        began = now
        continue
    got += len(data) + (len(data) + 1199) // 1200 * 42 if udp else len(data)
    last = now
print(got * 8 / (last - began))
"""

SEND = """
import socket, sys, time
kind, address, port, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
end = time.monotonic() + seconds
size = 1 << 16
if kind == "tcp":
    s = socket.create_connection((address, port))
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect((address, port))
    size = 1200
    if kind == "udp-gso":
        s.setsockopt(socket.IPPROTO_UDP, 103, 1200)     # UDP_SEGMENT
        size = 40 * 1200
try:
    while time.monotonic() < end:
        s.sendall(bytes(size))
except OSError:     # who receives has seen enough
    pass
"""


def joined(w: World, host: Namespace, switch: Switch, pairs: int, tmp_path: Path) -> list[tuple[Namespace, Namespace]]:
    """Pairs of endpoints whose frames pass the shaper; port numbers 2i+1 and 2i+2."""
    shaper = switch.ensure_shaper(SHAPER)
    made = []
    for number in range(pairs):
        ends = w.namespace(f"a{number}"), w.namespace(f"b{number}")
        numbers = 2 * number + 1, 2 * number + 2
        here = [switch.ensure_port(port(n, end, gateways=(), mtu_bytes=1500))
                for n, end in zip(numbers, ends, strict=True)]
        for at in (0, 1):
            constants = {"PORT": numbers[at], "OTHER": here[1 - at], "SHAPER": shaper}
            with BpfObject.load(compile_bpf(ENDS, tmp_path / f"q{number}{at}.o", **constants)) as loaded:
                switch.attach(here[at], "ingress", loaded.programs["vsw_out"].fd, "sluice_out")
                if number == at == 0:
                    program = HookedProgram("ingress", loaded.programs["vsw_shaped"].fd, "sluice_shaped_in")
                    assert switch.ensure_shaper(SHAPER, [program]) == shaper
            other = numbers[1 - at]
            ends[at].ip("neighbour", "add", f"10.99.0.{other}", "lladdr", f"02:99:00:00:00:{other:02x}", "dev", "eth0")
        made.append(ends)
    return made


class Stream:
    """A sender and a receiver; the rate that arrived, in bits a second."""

    def __init__(self, kind: str, source: Namespace, target: Namespace, address: str, seconds: float) -> None:
        self._serve = self._start(target, SERVE, kind, "5201", str(seconds - 0.2))
        assert self._serve.stdout is not None
        self._serve.stdout.readline()
        self._send = self._start(source, SEND, kind, address, "5201", str(seconds))

    @staticmethod
    def _start(where: Namespace, script: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(["nsenter", f"--net=/run/netns/{where.name}", sys.executable, "-c", script, *arguments],
                                stdout=subprocess.PIPE, text=True)

    def bps(self) -> float:
        told = self._serve.communicate(timeout=30)[0]
        self._send.communicate(timeout=30)
        return float(told)


@pytest.mark.parametrize(("kind", "mbit"), [("tcp", 20), ("udp", 5), ("tcp", 300), ("udp-gso", 300)])
def test_a_cap_holds(w: World, host: Namespace, switch: Switch, tmp_path: Path, kind: str, mbit: int) -> None:
    (near, far), = joined(w, host, switch, 1, tmp_path)
    shaper = switch.ensure_shaper(SHAPER)
    switch.ensure_classes(shaper, {1: Limit(mbit * MBIT, mbit * MBIT)})
    got = Stream(kind, near, far, "10.99.0.2", 3.9).bps()
    frames = 1514 / 1448 if kind == "tcp" else 1
    assert got * frames / MBIT == pytest.approx(mbit, rel=0.05)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_queue_at_the_port_holds(w: World, host: Namespace, switch: Switch, tmp_path: Path, kind: str) -> None:
    (near, far), = joined(w, host, switch, 1, tmp_path)
    shaper = switch.ensure_shaper(SHAPER)
    switch.ensure_classes(shaper, {})
    ifindex = host.link("slp2")["ifindex"]
    switch.ensure_queue(ifindex, Limit(50 * MBIT, 50 * MBIT))
    got = Stream(kind, near, far, "10.99.0.2", 1.9).bps()
    assert got * (1514 / 1448 if kind == "tcp" else 1) / MBIT == pytest.approx(50, rel=0.05)
    switch.remove_queue(ifindex)
    switch.remove_queue(ifindex)
    assert "noqueue" in host.execute("tc", "qdisc", "show", "dev", "slp2")


CROWD = """
SEC("tc") int vsw_out(struct __sk_buff *skb)
{
    __u16 port = 0;

    bpf_skb_load_bytes(skb, 36, &port, sizeof(port));       /* of UDP over IPv4 without options */
    skb->priority = 1 << 16 | (__builtin_bswap16(port) - 6000 + 100);
    skb->mark = OTHER;
    return bpf_redirect(SHAPER, 0);
}
"""
CROWD_SERVE = """
import selectors, socket, sys, time
who, got = selectors.DefaultSelector(), [0] * 50
for number in range(50):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", 6000 + number))
    s.setblocking(False)
    who.register(s, selectors.EVENT_READ, number)
print("ready", flush=True)
who.select()
time.sleep(0.5)
start = time.monotonic()
while time.monotonic() < start + 2.5:
    for key, _ in who.select(0.1):
        try:
            while True:
                size = len(key.fileobj.recv(2048))
                if time.monotonic() > start + 0.3:
                    got[key.data] += size + 42
        except BlockingIOError:
            pass
print(*(size * 8 / 2.2 for size in got))
"""
CROWD_SEND = """
import socket, time
ends = []
for number in range(50):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setblocking(False)
    s.connect(("10.99.0.2", 6000 + number))
    ends.append(s)
end = time.monotonic() + 3.6
while time.monotonic() < end:
    for s in ends:
        try:
            s.send(bytes(1200))
            s.send(bytes(1200))
        except OSError:
            pass
    time.sleep(0.002)
"""


def test_fifty_caps_hold_beside_each_other(w: World, host: Namespace, switch: Switch, tmp_path: Path) -> None:
    (near, far), = joined(w, host, switch, 1, tmp_path)
    shaper = switch.ensure_shaper(SHAPER)
    switch.ensure_classes(shaper, {100 + number: Limit(MBIT, MBIT) for number in range(50)})
    constants = {"OTHER": host.link("slp2")["ifindex"], "SHAPER": shaper}
    with BpfObject.load(compile_bpf(CROWD, tmp_path / "crowd.o", **constants)) as loaded:
        switch.attach(host.link("slp1")["ifindex"], "ingress", loaded.programs["vsw_out"].fd, "sluice_out")
    with started(far, CROWD_SERVE) as serve:
        assert serve.stdout is not None
        serve.stdout.readline()
        with started(near, CROWD_SEND):
            rates = [float(text) / MBIT for text in serve.communicate(timeout=30)[0].split()]
    assert len(rates) == 50
    assert [rate for rate in rates if rate != pytest.approx(1, rel=0.05)] == []


@contextmanager
def started(where: Namespace, script: str) -> Iterator[subprocess.Popen[str]]:
    """A program inside that ends by itself."""
    command = ["nsenter", f"--net=/run/netns/{where.name}", sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process


def test_guarantees_share_the_rate_of_all(w: World, host: Namespace, switch: Switch, tmp_path: Path) -> None:
    """30 of 40 for one that is guaranteed it, the rest for the other; alone, each gets all."""
    pairs = joined(w, host, switch, 2, tmp_path)
    shaper = switch.ensure_shaper(SHAPER)
    switch.ensure_classes(shaper, {1: Limit(30 * MBIT, 40 * MBIT), 3: Limit(MBIT, 40 * MBIT)}, 40 * MBIT)
    streams = [Stream("tcp", *pair, f"10.99.0.{2 * number + 2}", 2.2) for number, pair in enumerate(pairs)]
    rates = [stream.bps() * 1514 / 1448 / MBIT for stream in streams]
    assert rates[0] >= 30 * 0.95
    assert sum(rates) == pytest.approx(40, rel=0.07)
    assert Stream("tcp", *pairs[1], "10.99.0.4", 1.7).bps() * 1514 / 1448 / MBIT == pytest.approx(40, rel=0.07)


def test_changes_lose_no_packet(w: World, host: Namespace, switch: Switch, tmp_path: Path) -> None:
    """Every datagram that the sender's socket took arrives, in order, while caps rise, fall, go and come."""
    (near, far), = joined(w, host, switch, 1, tmp_path)
    shaper = switch.ensure_shaper(SHAPER)
    ifindex = host.link("slp2")["ifindex"]
    switch.ensure_classes(shaper, {})

    def receiver() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)
        made.bind(("", 7))
        made.settimeout(0.5)
        return made

    receiving = far.call(receiver)
    sending = near.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with receiving, sending:
        sent = 0
        for turn in range(12):
            rate = (1000, 20, 300)[turn % 3] * MBIT
            if turn % 4 == 3:
                switch.prune_classes(shaper, ())
            else:
                switch.ensure_classes(shaper, {1: Limit(rate, rate)})
            switch.ensure_queue(ifindex, Limit(rate, rate))
            for _ in range(60):
                sending.sendto(struct.pack("!I", sent) + bytes(1000), ("10.99.0.2", 7))
                sent += 1
        got = []
        try:
            while True:
                got.append(struct.unpack("!I", receiving.recv(2000)[:4])[0])
        except TimeoutError:
            pass
    assert got == list(range(sent))
