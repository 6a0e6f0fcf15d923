"""Fragments, ICMP errors, checksums, offloads, tags, jumbo frames: through the engine with the kernel's own sockets."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from engine_captures import Capture
from engine_town import (
    ADDRESS,
    GRO,
    GSO,
    MAPPED_PORT,
    MTU,
    NARROW_MTU,
    SERVER_PORT,
    TSO,
    TX_CHECKSUMS,
    Town,
    mac_of,
)

from vfp.reasons import DropReason

UDP_SEGMENT = 103                           # linux/udp.h
IP_MTU_DISCOVER, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU = 10, 14, 23, 24
PMTUDISC_DONT, PMTUDISC_DO = 0, 2
VERSIONS = pytest.mark.parametrize("version", [4, 6])
# (who asks, whom, at which address and port; where the server listens)
ROADS = pytest.mark.parametrize("road", ["same host", "across", "translated", "mapped"])
LINKS = (
    ("a", "eth0"), ("b", "eth0"), ("c", "eth0"), ("host", "pa"), ("host", "pb"), ("host", "up0"), ("host", "ul0"),
    ("far", "ul0"), ("far", "pc"), ("way", "in0"))
BULK = 3_000_000
UPLINK_MTU = 1340                           # less than NARROW_MTU


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with Town() as town:
        yield town


def _road(road: str, version: int) -> tuple[str, tuple[str, int], str, int]:
    """Client, the address it asks, server, and the port that the server listens on."""
    return {
        "same host": ("a", (ADDRESS["b"][version], 7000), "b", 7000),
        "across": ("a", (ADDRESS["c"][version], 7000), "c", 7000),
        "translated": ("a", (ADDRESS["world"][version], 7000), "world", 7000),
        "mapped": ("world", (ADDRESS["host"][version], MAPPED_PORT), "b", SERVER_PORT),
    }[road]


@contextmanager
def _echo(town: Town, part: str, version: int, port: int) -> Iterator[list[int]]:
    """A UDP server that answers each datagram with itself, in fragments if need be; the sizes it has seen."""
    seen: list[int] = []
    server = town.socket(part, version, socket.SOCK_DGRAM)
    _may_fragment(server, version)
    server.bind(("", port))
    server.settimeout(0.2)
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            with suppress(OSError):
                data, peer = server.recvfrom(1 << 16)
                seen.append(len(data))
                server.sendto(data, peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        server.close()


def _may_fragment(udp: socket.socket, version: int) -> None:
    if version == 4:
        udp.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
    else:
        udp.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DONT)


def _asked(town: Town, part: str, version: int, to: tuple[str, int], data: bytes) -> bytes:
    """The answer to a datagram. Asked three times: IPv6 must learn of the narrow link from an error, each way."""
    with town.socket(part, version, socket.SOCK_DGRAM) as asking:
        _may_fragment(asking, version)
        asking.settimeout(0.5)
        asking.connect(to)
        for _ in range(4):
            with suppress(TimeoutError, OSError):
                asking.send(data)
                return asking.recv(1 << 16)
    return b""


@contextmanager
def _sound(town: Town) -> Iterator[None]:
    """No stack finds a wrong checksum meanwhile."""
    before = town.bad_checksums()
    yield
    assert town.bad_checksums() == before


def _transfer(town: Town, version: int, road: str, size: int, *, backwards: bool = False) -> bytes:
    """Bulk over TCP, from the client or (backwards) to it; returns what arrived."""
    client, to, server, port = _road(road, version)
    data = bytes(range(256)) * (size // 256)
    arrived = bytearray()
    with town.socket(server, version, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("", port))
        listening.listen()
        with town.socket(client, version, socket.SOCK_STREAM) as asking:
            asking.connect(to)
            accepted, _ = listening.accept()
            with accepted:
                accepted.settimeout(10)
                asking.settimeout(10)
                sending, receiving = (accepted, asking) if backwards else (asking, accepted)

                def send() -> None:
                    with suppress(OSError):
                        sending.sendall(data)
                        sending.shutdown(socket.SHUT_WR)

                thread = threading.Thread(target=send)
                thread.start()
                with suppress(TimeoutError):
                    while chunk := receiving.recv(1 << 18):
                        arrived += chunk
                sending.settimeout(0.1)
                thread.join()
    assert arrived == data
    return bytes(arrived)


# Fragments

@VERSIONS
@ROADS
def test_a_datagram_of_20_kilobytes_comes_and_goes_in_fragments(town: Town, version: int, road: str) -> None:
    client, to, server, port = _road(road, version)
    data = bytes(range(250)) * 80
    with _sound(town), _echo(town, server, version, port) as seen:
        assert _asked(town, client, version, to, data) == data
    assert 20000 in seen


# ICMP errors

@VERSIONS
@pytest.mark.parametrize("road", ["same host", "across", "translated"])
def test_a_closed_port_is_told_to_the_socket_that_asked(town: Town, version: int, road: str) -> None:
    client, (host, _), _, _ = _road(road, version)
    with _sound(town), town.socket(client, version, socket.SOCK_DGRAM) as asking:
        asking.connect((host, 9))
        asking.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            asking.recv(1)


@VERSIONS
def test_a_closed_port_behind_a_mapping_is_told_to_the_world(town: Town, version: int) -> None:
    with _sound(town), town.socket("world", version, socket.SOCK_DGRAM) as asking:
        asking.connect((ADDRESS["host"][version], MAPPED_PORT))
        asking.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            asking.recv(1)


@pytest.fixture(scope="module")
def narrow_town() -> Iterator[Town]:
    """The host's uplink carries less than the endpoints' links, and than what comes after it."""
    with Town(UPLINK_MTU) as town:
        yield town


@VERSIONS
def test_the_sockets_path_mtu_is_found_through_the_translation(town: Town, version: int) -> None:
    with _sound(town):
        _find_mtu(town, version, NARROW_MTU)


@VERSIONS
def test_the_sockets_path_mtu_is_that_of_the_uplink(narrow_town: Town, version: int) -> None:
    """Told by the engine: no stack sees the packet."""
    before = narrow_town.drops()[DropReason.TOO_BIG]
    _find_mtu(narrow_town, version, UPLINK_MTU)
    assert narrow_town.drops()[DropReason.TOO_BIG] > before


@VERSIONS
def test_a_datagram_larger_than_the_uplink_comes_in_fragments(narrow_town: Town, version: int) -> None:
    """Without DF, too: the engine does not fragment, but the sender does as soon as it is told."""
    with (_echo(narrow_town, "world", version, 7000) as seen,
          narrow_town.socket("b", version, socket.SOCK_DGRAM) as asking):
        if version == 4:
            asking.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
        else:
            asking.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DONT)
        asking.settimeout(0.2)
        asking.connect((ADDRESS["world"][version], 7000))
        data = bytes(range(200)) * 20
        for _ in range(10):
            asking.send(data)
            with suppress(TimeoutError):
                assert asking.recv(1 << 16) == data
                break
    assert len(data) in seen


@VERSIONS
@pytest.mark.parametrize("off", ["nothing", "segmentation"])
@pytest.mark.parametrize("road", ["translated", "mapped"])
def test_bulk_arrives_over_an_uplink_that_is_narrower(narrow_town: Town, version: int, road: str, off: str) -> None:
    """Offloaded packets are judged by their segments: once the MTU is known, few are told again."""
    with narrow_town.without(*((TSO, GSO, GRO) if off == "segmentation" else ()), links=LINKS):
        _transfer(narrow_town, version, road, BULK // 4, backwards=road == "mapped")
        before = narrow_town.drops()[DropReason.TOO_BIG]
        _transfer(narrow_town, version, road, BULK, backwards=road == "mapped")
        assert narrow_town.drops()[DropReason.TOO_BIG] <= before + 3


def _find_mtu(town: Town, version: int, wanted: int) -> None:
    level, discover, mtu = (
        (socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_MTU) if version == 4
        else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_MTU))
    with town.socket("a", version, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(level, discover, PMTUDISC_DO)
        asking.connect((ADDRESS["world"][version], 9))
        deadline = time.monotonic() + 5
        while asking.getsockopt(level, mtu) != wanted and time.monotonic() < deadline:
            with suppress(OSError):         # EMSGSIZE, ECONNREFUSED
                asking.send(bytes(3000))
            time.sleep(0.02)
        assert asking.getsockopt(level, mtu) == wanted
        assert _refusal(asking, wanted) == errno.EMSGSIZE


def _refusal(asking: socket.socket, size: int) -> int:
    """With what error a datagram cannot be sent; an earlier one may have met a closed port, which is told first."""
    for _ in range(3):
        try:
            asking.send(bytes(size))
        except ConnectionRefusedError:
            continue
        except OSError as error:
            return error.errno or 0
    return 0


@VERSIONS
@pytest.mark.parametrize("backwards", [False, True])
def test_a_server_behind_a_mapping_finds_the_path_mtu(town: Town, version: int, backwards: bool) -> None:
    with _sound(town):
        _transfer(town, version, "mapped", BULK // 4, backwards=backwards)


# Checksums and offloads

@VERSIONS
@ROADS
@pytest.mark.parametrize("off", ["nothing", "segmentation", "checksums"])
def test_bulk_arrives_whole_whatever_is_offloaded(town: Town, version: int, road: str, off: str) -> None:
    switched = {"nothing": (), "segmentation": (TSO, GSO, GRO), "checksums": (TSO, TX_CHECKSUMS)}[off]
    with town.without(*switched, links=LINKS), _sound(town):
        _transfer(town, version, road, BULK)
        _transfer(town, version, road, BULK // 4, backwards=True)


@VERSIONS
@pytest.mark.parametrize("road", ["same host", "across", "translated"])
def test_segmented_udp_arrives_datagram_by_datagram(town: Town, version: int, road: str) -> None:
    client, to, server, port = _road(road, version)
    data = bytes(range(250)) * 48           # 12 datagrams of 1000 bytes
    with _sound(town), town.socket(server, version, socket.SOCK_DGRAM) as receiving:
        receiving.bind(("", port))
        with town.socket(client, version, socket.SOCK_DGRAM) as sending:
            sending.connect(to)
            sending.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            sending.send(data)
            assert [receiving.recv(1 << 16) for _ in range(12)] == [data[n:n + 1000] for n in range(0, 12000, 1000)]


@VERSIONS
@pytest.mark.parametrize(("road", "where"), [
    ("same host", ("b", "eth0")), ("across", ("c", "eth0")), ("translated", ("way", "in0")), ("mapped", ("b", "eth0"))])
@pytest.mark.parametrize("checksums", [True, False])
def test_every_frame_that_leaves_has_a_right_checksum_partial_or_whole(
        town: Town, version: int, road: str, where: tuple[str, str], checksums: bool) -> None:
    """What a capture on the receiver's side sees: whole checksums verify, partial ones are those of the new header."""
    client, to, server, port = _road(road, version)
    switched = () if checksums else (TSO, TX_CHECKSUMS)
    with town.without(*switched, links=[(client, "eth0")]), Capture(town, *where) as capture:
        _transfer(town, version, road, BULK // 4)
        with _echo(town, server, version, port):
            for size in (1, 100, 1001, 20000):
                _asked(town, client, version, to, bytes(range(1, 251)) * (size // 250 + 1))
    seen = capture.verdicts()
    assert not capture.wrong, capture.wrong[:3]
    assert seen["whole"] + seen["partial"] > 20, seen
    if checksums and road != "mapped":
        assert seen["partial"] > 10, seen
        assert seen["segments to come"] > 1, seen


# Tags

@pytest.mark.parametrize("tags", [(0x8100,), (0x88A8,), (0x88A8, 0x8100)], ids=["802.1Q", "802.1ad", "both"])
def test_a_tagged_frame_is_dropped_and_counted(town: Town, tags: tuple[int, ...]) -> None:
    """The kernel has taken the outer tag off into the packet's metadata before the engine sees it."""
    before = town.drops()[DropReason.VLAN_TAGGED]
    wire, there = town.wire("a", "eth0"), town.wire("b", "eth0")
    head = mac_of("b") + mac_of("a") + b"".join(struct.pack("!HH", kind, 5) for kind in tags)
    ip = bytes.fromhex("450000240000400040110000") + bytes(map(int, ADDRESS["a"][4].split("."))) + bytes(
        map(int, ADDRESS["b"][4].split(".")))
    udp = struct.pack("!HHHH", 7, 9, 16, 0) + b"tagged.."
    wire.send(head + b"\x08\x00" + ip + udp)
    deadline = time.monotonic() + 3
    while town.drops()[DropReason.VLAN_TAGGED] == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert town.drops()[DropReason.VLAN_TAGGED] == before + 1
    wire.send(head[:12] + b"\x08\x00" + ip + udp)
    frames = _until(there, b"tagged..")
    assert len(frames) == 1, "the frame without tags, and no other"
    assert frames[0][12:14] == b"\x08\x00"


def _until(wire: socket.socket, what: bytes) -> list[bytes]:
    """The frames with these bytes that come within a moment."""
    wire.settimeout(0.5)
    found = []
    with suppress(TimeoutError):
        while True:
            frame, address = wire.recvfrom(1 << 16)
            if what in frame and address[2] != socket.PACKET_OUTGOING:
                found.append(frame)
    return found


# Jumbo frames

@VERSIONS
def test_a_jumbo_datagram_goes_in_one_frame(town: Town, version: int) -> None:
    data = bytes(range(250)) * 35           # 8750 bytes
    for client, server, host in (("a", "b", "b"), ("a", "c", "c"), ("a", "way", "way")):
        with _sound(town), _echo(town, server, version, 7000):
            there = town.wire(server, "in0" if server == "way" else "eth0")
            assert _asked(town, client, version, (ADDRESS[host][version], 7000), data) == data
            assert [len(frame) > 8750 for frame in _until(there, data)] == [True]


@VERSIONS
def test_tcp_segments_are_as_large_as_the_link(town: Town, version: int) -> None:
    links = [(part, link) for part, link in LINKS if link in ("eth0", "pa", "pb")]
    with town.without(TSO, GSO, GRO, links=links), _sound(town), Capture(town, "b", "eth0") as capture:
        _transfer(town, version, "same host", BULK)
    assert max(capture.sizes) == MTU + 14


# SCTP

@VERSIONS
def test_an_sctp_association_works_where_addresses_stay(town: Town, version: int) -> None:
    """Translation refuses SCTP: its checksum covers the ports."""
    try:
        town.socket("a", version, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError as error:
        pytest.skip(f"this kernel has no SCTP (CONFIG_IP_SCTP): {error.strerror}")
    for road in ("same host", "across", "translated"):
        client, to, server, port = _road(road, version)
        with (
            town.socket(server, version, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as listening,
            town.socket(client, version, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as asking,
        ):
            listening.bind(("", port))
            listening.listen()
            if road == "translated":
                asking.settimeout(1)
                assert asking.connect_ex(to) != 0
                continue
            asking.connect(to)
            accepted, _ = listening.accept()
            with accepted:
                asking.send(b"association")
                assert accepted.recv(100) == b"association"
