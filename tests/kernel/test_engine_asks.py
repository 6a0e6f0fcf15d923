"""Rejecting, marking, metering, logging and mirroring, with the kernel's sockets at both ends."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_asks as host
import pytest

SOURCES = Path(__file__).parents[2]
NAMES = {part: f"ask-{part}-{os.getpid()}" for part in ("a", "b", "m", "host", "world")}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
LARGE = 20_000_000

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_TCP_INFO_SEGMENTS_OUT = 136                # of tcpi_segs_out in struct tcp_info
_TCP_INFO_UNACKED = 24
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _in(part: str, *words: str) -> None:
    _ip("-n", NAMES[part], *words)


def _inside(part: str, *command: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{NAMES[part]}", *command]


def socket_in(part: str, *kind: int) -> socket.socket:
    """A socket of another namespace: it stays there, whoever uses it."""
    made: list[socket.socket] = []

    def make() -> None:
        with Path(f"/run/netns/{NAMES[part]}").open() as namespace:
            assert _LIBC.setns(namespace.fileno(), _CLONE_NEWNET) == 0
        made.append(socket.socket(*kind))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    made[0].settimeout(3)
    return made[0]


class Host:
    """The process that has the engine."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, command: str) -> Any:
        """One of the commands of `engine_asks`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(command, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def _build() -> None:
    for name in NAMES.values():
        _ip("netns", "add", name)
    for part in NAMES:
        quiet = ("net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
                 "net.ipv6.conf.default.router_solicitations=0", "net.ipv6.conf.default.addr_gen_mode=1",
                 "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        subprocess.run(_inside(part, "sysctl", "-qw", *quiet), check=True)
        _in(part, "link", "set", "lo", "up")
    for interface, other in (("pa", "a"), ("pb", "b"), ("pm", "m"), ("up0", "world")):
        _in("host", "link", "add", interface, "type", "veth", "peer", "eth0", "netns", NAMES[other])
    _in("host", "link", "add", "vx0", "type", "vxlan", "external", "dstport", "4789")
    _in("world", "link", "add", "far", "type", "vxlan", "id", str(host.VNI), "remote", host.UNDERLAY["host"],
        "dstport", "4789", "nolearning")
    macs = (("a", "eth0", "a"), ("b", "eth0", "b"), ("m", "eth0", "m"), ("world", "far", "far"), ("host", "pa", "host"))
    for part, interface, mac in macs:
        _in(part, "link", "set", interface, "address", host.MACS[mac])
    for part, interface in (("host", "pa"), ("host", "pb"), ("host", "pm"), ("host", "up0"), ("host", "vx0"),
                            ("a", "eth0"), ("b", "eth0"), ("m", "eth0"), ("world", "eth0"), ("world", "far")):
        _in(part, "link", "set", interface, "up")
    for part, interface in (("host", "up0"), ("world", "eth0")):
        _in(part, "addr", "add", f"{host.UNDERLAY[part]}/24", "dev", interface)
    who = {"a": host.A, "b": host.B, "world": host.FAR, "host": host.HOST}
    mac_of = {"a": "a", "b": "b", "world": "far", "host": "host"}
    for family, length, single in ((4, 24, 32), (6, 64, 128)):
        nodad = ("nodad",) if family == 6 else ()
        for part, interface in (("a", "eth0"), ("b", "eth0"), ("world", "far")):
            _in(part, "addr", "add", f"{who[part][family]}/{length}", "dev", interface, *nodad)
            for other in who.keys() - {part}:
                _in(part, "neigh", "add", who[other][family], "lladdr", host.MACS[mac_of[other]], "dev", interface)
        _in("host", "addr", "add", f"{host.HOST[family]}/{single}", "dev", "pa", *nodad)
        _in("host", f"-{family}", "route", "add", host.A[family], "dev", "pa", "src", host.HOST[family])
        _in("host", "neigh", "add", host.A[family], "lladdr", host.MACS["a"], "dev", "pa")


@pytest.fixture(scope="module")
def engine() -> Iterator[Host]:
    """Endpoints, their host, and a world with an end of the tunnel."""
    try:
        _build()
        command = _inside("host", sys.executable, str(SOURCES / "tests/kernel/engine_asks.py"))
        environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield Host(process)
            process.communicate(timeout=20)
    finally:
        for name in NAMES.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


REJECTED = [
    pytest.param("a", host.B, host.BY_SENDER, id="by-the-senders-rule"),
    pytest.param("a", host.B, host.BY_RECEIVER, id="by-the-receivers-rule"),
    pytest.param("host", host.A, host.FROM_OUTSIDE, id="from-the-hosts-stack"),
    pytest.param("world", host.A, host.FROM_OUTSIDE, id="through-the-tunnel"),
]


def _refused(part: str, address: str, port: int, family: int) -> None:
    with socket_in(part, FAMILIES[family], socket.SOCK_STREAM) as client:
        began_s = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            client.connect((address, port))
        assert time.monotonic() - began_s < 0.9     # before the first retransmission


def _unreachable(part: str, address: str, port: int, family: int) -> None:
    with socket_in(part, FAMILIES[family], socket.SOCK_DGRAM) as client:
        client.connect((address, port))
        client.send(b"anybody?")
        wanted = errno.EHOSTUNREACH if family == 4 else errno.EACCES
        with pytest.raises(OSError, match=rf"\[Errno {wanted}\]"):
            client.recv(1)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("part", "addresses", "port"), REJECTED)
def test_a_rejected_connection_is_refused_at_once(
        engine: Host, part: str, addresses: dict[int, str], port: int, family: int) -> None:
    _refused(part, addresses[family], port, family)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("part", "addresses", "port"), REJECTED)
def test_a_rejected_datagrams_sender_learns_that_it_is_prohibited(
        engine: Host, part: str, addresses: dict[int, str], port: int, family: int) -> None:
    _unreachable(part, addresses[family], port, family)


def test_the_world_is_told_by_the_address_that_it_spoke_to(engine: Host) -> None:
    _refused("world", host.UNDERLAY["host"], host.MAPPED, 4)
    _unreachable("world", host.UNDERLAY["host"], host.MAPPED, 4)


def _connected(port: int, family: int) -> tuple[socket.socket, socket.socket]:
    """A connection from a to b: client's and server's socket."""
    with socket_in("b", FAMILIES[family], socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host.B[family], port))
        server.listen()
        client = socket_in("a", FAMILIES[family], socket.SOCK_STREAM)
        client.connect((host.B[family], port))
        accepted, _ = server.accept()
        accepted.settimeout(3)
        return client, accepted


def _drain(connection: socket.socket, size: int) -> None:
    while size > 0:
        data = connection.recv(1 << 20)
        assert data
        size -= len(data)


def _while_drained(receiver: socket.socket, sender: socket.socket, size: int) -> None:
    """`size` bytes go over a connection."""
    thread = threading.Thread(target=_drain, args=(receiver, size))
    thread.start()
    sender.sendall(bytes(size))
    thread.join()


def _exchange(connection: socket.socket, size: int) -> None:
    connection.sendall(bytes(size))
    connection.recv(1)


@pytest.mark.parametrize("family", [4, 6])
def test_a_segment_as_large_as_offloads_make_them_has_one_small_answer(engine: Host, family: int) -> None:
    client, server = _connected(host.SOMETIMES, family)
    with (client, server,
          socket_in("a", socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as wire):
        wire.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
        wire.bind(("eth0", _ETH_P_ALL))
        _while_drained(server, client, 1_000_000)       # the window is open for large segments
        wire.settimeout(0.3)
        assert max(size for size, _ in _segments(wire)) > 10_000
        before = engine.ask("drops").get("REJECTED", 0)
        engine.ask("reject")
        try:
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                _exchange(client, 1_000_000)
            answers = [size for size, reset in _segments(wire) if reset]
            assert set(answers) == {14 + (20 if family == 4 else 40) + 20}
            assert len(answers) == engine.ask("drops")["REJECTED"] - before
        finally:
            engine.ask("open")


def _segments(wire: socket.socket) -> list[tuple[int, bool]]:
    """Length of each TCP frame seen, and whether it is a reset."""
    found = []
    try:
        while True:
            frame = wire.recv(70_000)
            at = 14 + (40 if frame[12:14] == b"\x86\xdd" else 20)
            if frame[20 if at == 54 else 23] == socket.IPPROTO_TCP:
                found.append((len(frame), bool(frame[at + 13] & 4)))
    except TimeoutError:
        return found


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", [1, 200_000])
def test_an_open_connection_is_reset_when_it_becomes_rejected(engine: Host, family: int, size: int) -> None:
    """From both sides, also by the answer to a segment as large as offloads make them."""
    client, server = _connected(host.SOMETIMES, family)
    try:
        _while_drained(server, client, 1000)
        engine.ask("reject")
        for end in (client, server):
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                _exchange(end, size)
    finally:
        engine.ask("open")
        client.close()
        server.close()


@pytest.mark.parametrize("family", [4, 6])
def test_both_ends_see_the_mark_and_the_senders_ecn(engine: Host, family: int) -> None:
    ecn = 1
    if family == 4:
        level, given, told, wanted = socket.IPPROTO_IP, socket.IP_TOS, socket.IP_RECVTOS, socket.IP_TOS
    else:
        level, given, told, wanted = (
            socket.IPPROTO_IPV6, socket.IPV6_TCLASS, socket.IPV6_RECVTCLASS, socket.IPV6_TCLASS)
    with (socket_in("a", FAMILIES[family], socket.SOCK_DGRAM) as client,
          socket_in("b", FAMILIES[family], socket.SOCK_DGRAM) as server):
        for end in (client, server):
            end.setsockopt(level, told, 1)
            end.setsockopt(level, given, ecn)
        server.bind((host.B[family], host.MARKED))
        for _ in range(2):                  # the first packet, and a hit
            client.sendto(b"there", (host.B[family], host.MARKED))
            _, ((_, kind, value),), _, peer = server.recvmsg(100, 100)
            assert (kind, value[0]) == (wanted, host.DSCP << 2 | ecn)
            server.sendto(b"back", peer)
            _, ((_, kind, value),), _, _ = client.recvmsg(100, 100)
            assert (kind, value[0]) == (wanted, host.DSCP << 2 | ecn)


def _sent_segments(connection: socket.socket) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 200)
    return int(struct.unpack_from("=I", info, _TCP_INFO_SEGMENTS_OUT)[0])


def _sent_bytes(part: str) -> int:
    command = ["ip", "-n", NAMES[part], "-s", "-j", "link", "show", "eth0"]
    said = subprocess.run(command, check=True, capture_output=True)
    return int(json.loads(said.stdout)[0]["stats64"]["tx"]["bytes"])


def _settle(connection: socket.socket) -> None:
    """Until all is acknowledged, and the last acknowledgement, which may be delayed, was sent."""
    deadline_s = time.monotonic() + 3
    while struct.unpack_from("=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 200),
                             _TCP_INFO_UNACKED)[0]:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    time.sleep(0.3)


@pytest.mark.parametrize("family", [4, 6])
def test_a_meter_equals_what_the_sockets_have_sent(engine: Host, family: int) -> None:
    before = engine.ask("meters")[str(host.METER)]
    bytes_before = {part: _sent_bytes(part) for part in ("a", "b")}
    client, server = _connected(host.METERED, family)
    with client, server:
        _while_drained(server, client, LARGE)
        _while_drained(client, server, 100_000)
        _settle(client)
        _settle(server)
        after = engine.ask("meters")[str(host.METER)]
        counted = {name: after[name] - before[name] for name in after}
        assert counted["packets"] == _sent_segments(client)
        assert counted["reply_packets"] == _sent_segments(server) + 1   # SYN and ACK came before its socket
        assert counted["bytes"] == _sent_bytes("a") - bytes_before["a"]
        assert counted["reply_bytes"] == _sent_bytes("b") - bytes_before["b"]


def _copies(monitor: socket.socket, port: int) -> list[tuple[bytes, bytes, bytes]]:
    """(destination MAC, source MAC, payload) of the UDP packets that came, from or to `port`."""
    monitor.settimeout(0.3)
    found = []
    try:
        while True:
            frame = monitor.recv(2000)
            at = 14 + (40 if frame[12:14] == b"\x86\xdd" else 20)
            if port in struct.unpack_from("!HH", frame, at):
                found.append((frame[0:6], frame[6:12], frame[at + 8:]))
    except TimeoutError:
        return found


@pytest.mark.parametrize("family", [4, 6])
def test_the_mirror_shows_both_directions_as_they_came_and_once(engine: Host, family: int) -> None:
    """Past the layers of the port that has the copies, which let nothing in."""
    mac_a, mac_b = (bytes.fromhex(host.MACS[name].replace(":", "")) for name in ("a", "b"))
    with (socket_in("m", socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as monitor,
          socket_in("a", FAMILIES[family], socket.SOCK_DGRAM) as client,
          socket_in("b", FAMILIES[family], socket.SOCK_DGRAM) as server):
        monitor.bind(("eth0", _ETH_P_ALL))
        server.bind((host.B[family], host.MIRRORED))
        for number in (b"1", b"2"):
            client.sendto(b"there " + number, (host.B[family], host.MIRRORED))
            said, peer = server.recvfrom(100)
            assert said == b"there " + number
            server.sendto(b"back " + number, peer)
            assert client.recv(100) == b"back " + number
        assert _copies(monitor, host.MIRRORED) == [
            (mac_b, mac_a, b"there 1"), (mac_a, mac_b, b"back 1"),
            (mac_b, mac_a, b"there 2"), (mac_a, mac_b, b"back 2"),
        ]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("part", ["b", "host", "world"])
def test_the_mirror_shows_what_comes_from_anywhere(engine: Host, part: str, family: int) -> None:
    with (socket_in("m", socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as monitor,
          socket_in(part, FAMILIES[family], socket.SOCK_DGRAM) as client,
          socket_in("a", FAMILIES[family], socket.SOCK_DGRAM) as server):
        monitor.bind(("eth0", _ETH_P_ALL))
        server.bind((host.A[family], host.SEEN))
        for _ in range(2):
            client.sendto(b"there", (host.A[family], host.SEEN))
            _, peer = server.recvfrom(100)
            server.sendto(b"back", peer)
            assert client.recv(100) == b"back"
        assert [payload for _, _, payload in _copies(monitor, host.SEEN)] == [b"there", b"back"] * 2


def test_what_is_mirrored_still_arrives_whole(engine: Host) -> None:
    before = engine.ask("drops")
    client, server = _connected(host.MIRRORED, 4)
    with client, server:
        _while_drained(server, client, LARGE)
    assert engine.ask("drops") == before


def test_one_record_of_a_flow_and_one_of_each_nth_packet(engine: Host) -> None:
    engine.ask("logs")
    with (socket_in("a", FAMILIES[4], socket.SOCK_DGRAM) as client,
          socket_in("b", FAMILIES[4], socket.SOCK_DGRAM) as once,
          socket_in("b", FAMILIES[4], socket.SOCK_DGRAM) as sampled):
        once.bind((host.B[4], host.LOGGED))
        sampled.bind((host.B[4], host.SAMPLED))
        for _ in range(3 * host.EVERY):
            for server, port in ((once, host.LOGGED), (sampled, host.SAMPLED)):
                client.sendto(b"x", (host.B[4], port))
                server.recv(1)
    records = engine.ask("logs")
    assert [record for record in records if record[3] == host.LOGGED] == [[1, host.A[4], host.B[4], host.LOGGED]]
    assert len([record for record in records if record[3] == host.SAMPLED]) == 3
