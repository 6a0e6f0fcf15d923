"""Mapped ports by every road, with the kernel's own sockets: by a wire, from the host, by a hairpin, into a tap."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

import pytest
from engine_frames import UDP, IpFrame, checksum
from engine_house import HOST, LOCALHOST, MAPPED, REFUSED, SERVER, WHOLE, WORLD, House, at, mac_of

from vfp.reasons import DropReason

VERSIONS = pytest.mark.parametrize("version", [4, 6])
BULK = 3_000_000
UDPLITE = 136

# Who asks, at which address, whom; and whom the server sees.
ROADS = {
    "localhost to a": ("host", LOCALHOST, "a", {4: at("gateway", 4), 6: at("gateway", 6)}),
    "localhost to the machine": ("host", LOCALHOST, "vm", {4: at("gateway", 4), 6: at("gateway", 6)}),
    "host to a": ("host", HOST, "a", HOST),
    "host to the machine": ("host", HOST, "vm", HOST),
    "world to a": ("world", HOST, "a", WORLD),
    "world to the machine": ("world", HOST, "vm", WORLD),
    "a to b, by the host": ("a", HOST, "b", HOST),
    "a to itself, by the host": ("a", HOST, "a", HOST),
    "a to the machine, by the host": ("a", HOST, "vm", HOST),
    "the machine to a, by the host": ("vm", HOST, "a", HOST),
    "the machine to itself, by the host": ("vm", HOST, "vm", HOST),
    "another's to a, of the same address, by the host": ("t", HOST, "a", HOST),
}
EVERY_ROAD = pytest.mark.parametrize("road", ROADS)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as house:
        yield house


@pytest.fixture(autouse=True)
def checksums_are_right(house: House) -> Iterator[None]:
    yield
    assert house.bad_checksums() == {}


def _receive(connection: socket.socket, size: int) -> int:
    got = 0
    while got < size and (data := connection.recv(1 << 16)):
        got += len(data)
    return got


@contextmanager
def _connected(house: House, client: str, to: tuple[str, int], server: str, version: int, port: int = SERVER
               ) -> Iterator[tuple[socket.socket, socket.socket, str]]:
    """A connection: the client's end, the server's, and whom the server sees."""
    with house.socket(server, version, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("", port))
        listening.listen()
        with house.socket(client, version, socket.SOCK_STREAM) as asking:
            asking.connect(to)
            answering, peer = listening.accept()
            with answering:
                answering.settimeout(5)
                yield asking, answering, peer[0]


@VERSIONS
@EVERY_ROAD
def test_a_connection_carries_bulk_both_ways(house: House, road: str, version: int) -> None:
    client, address, server, seen = ROADS[road]
    with _connected(house, client, (address[version], MAPPED[server]), server, version) as (asking, answering, peer):
        assert peer == seen[version]
        for one, other in ((asking, answering), (answering, asking)):
            sender = threading.Thread(target=one.sendall, args=(bytes(BULK),))
            sender.start()
            assert _receive(other, BULK) == BULK
            sender.join()


@VERSIONS
@pytest.mark.parametrize("size", [1, 1400, 9000])
@EVERY_ROAD
def test_a_datagram_is_answered(house: House, road: str, size: int, version: int) -> None:
    client, address, server, seen = ROADS[road]
    with house.socket(server, version, socket.SOCK_DGRAM) as answering, \
            house.socket(client, version, socket.SOCK_DGRAM) as asking:
        answering.bind(("", SERVER))
        asking.connect((address[version], MAPPED[server]))
        asking.send(bytes(size))
        data, peer = answering.recvfrom(1 << 16)
        assert (len(data), peer[0]) == (size, seen[version])
        answering.sendto(data, peer)
        assert len(asking.recv(1 << 16)) == size


@VERSIONS
@EVERY_ROAD
def test_a_connection_ends_at_once_when_the_mapping_goes(house: House, road: str, version: int) -> None:
    client, address, server, _ = ROADS[road]
    with _connected(house, client, (address[version], MAPPED[server]), server, version) as (asking, answering, _):
        asking.sendall(b"x")
        assert answering.recv(1) == b"x"
        with house.without(server):
            answering.settimeout(0.4)
            asking.settimeout(0.4)
            with suppress(OSError):         # a reset, if it was told
                asking.sendall(b"y")
            with suppress(ConnectionError), pytest.raises(TimeoutError):
                answering.recv(1)
            with suppress(OSError):
                answering.sendall(b"z")
            with suppress(ConnectionError), pytest.raises(TimeoutError):
                asking.recv(1)


@VERSIONS
@EVERY_ROAD
def test_an_icmp_error_finds_who_asked(house: House, road: str, version: int) -> None:
    client, address, server, _ = ROADS[road]
    with house.socket(client, version, socket.SOCK_DGRAM) as asking:        # nobody listens
        asking.connect((address[version], MAPPED[server]))
        asking.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            asking.recv(1)


@VERSIONS
def test_the_hosts_own_services_are_left_alone(house: House, version: int) -> None:
    for address in (LOCALHOST, HOST):
        with _connected(house, "host", (address[version], 9090), "host", version, 9090) as (asking, answering, peer):
            assert peer == address[version]
            asking.sendall(b"x")
            assert answering.recv(1) == b"x"


@VERSIONS
def test_what_a_wire_brings_in_the_hosts_name_is_not_mapped(house: House, version: int) -> None:
    """127.0.0.1 from a neighbour: left to the stack, which refuses it."""
    hits = house.engine.mapping_hits()
    wire = house.wire("world", "eth0")
    mac = bytes.fromhex(house.parts["host"].link("up0")["address"].replace(":", ""))
    frame = IpFrame(
        src_mac=b"\2" * 6, dst_mac=mac, src=ip_address(LOCALHOST[version]), dst=ip_address(HOST[version]), protocol=UDP,
        src_port=9, dst_port=MAPPED["a"]).build()
    wire.send(frame)
    time.sleep(0.1)
    assert house.engine.mapping_hits() == hits


def _echo_request(version: int, identifier: int) -> bytes:
    head = struct.pack("!BBHHH", 8 if version == 4 else 128, 0, 0, identifier, 1)
    return head[:2] + (checksum(head) if version == 4 else b"\0\0") + head[4:]     # ICMPv6: the kernel's


@VERSIONS
@pytest.mark.parametrize("client", ["world", "b", "vm", "t"])
@pytest.mark.parametrize("server", ["a", "vm"])
def test_an_echo_finds_who_has_its_identifier(house: House, client: str, server: str, version: int) -> None:
    wire = house.wire("host", "tc" if server == "vm" else f"p{server}")
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    with house.socket(client, version, socket.SOCK_RAW, protocol) as asking:
        asking.sendto(_echo_request(version, MAPPED[server]), (HOST[version], 0))
        while True:
            answer, peer = asking.recvfrom(2048)
            answer = answer[20:] if version == 4 else answer
            if answer[0] == (0 if version == 4 else 129):
                break
    assert (int.from_bytes(answer[4:6], "big"), peer[0]) == (MAPPED[server], HOST[version])
    start, reply = (34, b"\x08\x00\x45") if version == 4 else (54, b"\x86\xdd\x60")
    while True:                             # the server answered by its own identifier
        frame = wire.recv(2048)
        if frame[6:12] == mac_of(server) and frame[12:15] == reply and frame[start] == (0 if version == 4 else 129):
            assert int.from_bytes(frame[start + 4:start + 6], "big") == 7
            break


@VERSIONS
@pytest.mark.parametrize("client", ["world", "a"])
def test_a_whole_address_takes_every_protocol(house: House, client: str, version: int) -> None:
    """From inside, one at a time: what has no port takes the host's address for itself."""
    with house.socket("b", version, socket.SOCK_RAW, 47) as answering, \
            house.socket(client, version, socket.SOCK_RAW, 47) as asking:
        asking.sendto(b"generic", (WHOLE[version], 0))
        data, peer = answering.recvfrom(2048)
        assert data[20 if version == 4 else 0:] == b"generic"
        assert peer[0] == (WORLD if client == "world" else HOST)[version]
        answering.sendto(b"encapsulation", peer)
        data, peer = asking.recvfrom(2048)
        assert (data[20 if version == 4 else 0:], peer[0]) == (b"encapsulation", WHOLE[version])


@VERSIONS
@pytest.mark.parametrize(("client", "server"), [("a", "b"), ("b", "vm"), ("vm", "a"), ("a", "a"), ("t", "a")])
def test_a_binding_is_reached_from_inside_by_its_outside(house: House, client: str, server: str, version: int) -> None:
    """RFC 4787 REQ-9: hairpinning, the source being the external one."""
    with house.socket(server, version, socket.SOCK_DGRAM) as answering, \
            house.socket(client, version, socket.SOCK_DGRAM) as asking, \
            house.socket("world", version, socket.SOCK_DGRAM) as observer:
        observer.bind(("", 7000))
        answering.sendto(b"who am I?", (WORLD[version], 7000))
        outside = observer.recvfrom(100)[1][:2]
        assert outside[0] == HOST[version]
        asking.sendto(b"hello", outside)
        data, peer = answering.recvfrom(100)
        assert (data, peer[0]) == (b"hello", HOST[version])
        answering.sendto(b"welcome", peer)
        data, peer = asking.recvfrom(100)
        assert (data, peer[:2]) == (b"welcome", outside)


@VERSIONS
def test_udp_lite_has_its_checksum(house: House, version: int) -> None:
    try:
        answering = house.socket("b", version, socket.SOCK_DGRAM, UDPLITE)
    except OSError as error:
        pytest.skip(f"this kernel has no UDP-Lite: {error}")
    with answering, house.socket("world", version, socket.SOCK_DGRAM, UDPLITE) as asking:
        answering.bind(("", 700))
        asking.connect((WHOLE[version], 700))
        asking.send(b"lite")
        data, peer = answering.recvfrom(100)
        assert (data, peer[0]) == (b"lite", WORLD[version])
        answering.sendto(b"light", peer)
        assert asking.recv(100) == b"light"


@VERSIONS
def test_the_machine_behind_a_tap_talks_to_everybody(house: House, version: int) -> None:
    """ARP, neighbour discovery, and its own connections."""
    for server, address, port in (("a", at("a", version), 7000), ("world", WORLD[version], 7000)):
        with _connected(house, "vm", (address, port), server, version, port) as (asking, answering, peer):
            assert peer == (at("vm", version) if server == "a" else HOST[version])
            sender = threading.Thread(target=answering.sendall, args=(bytes(BULK),))
            sender.start()
            assert _receive(asking, BULK) == BULK
            sender.join()
    with _connected(house, "a", (at("vm", version), 7001), "vm", version, 7001) as (asking, answering, peer):
        assert peer == at("a", version)
        sender = threading.Thread(target=asking.sendall, args=(bytes(BULK),))
        sender.start()
        assert _receive(answering, BULK) == BULK
        sender.join()


@VERSIONS
@pytest.mark.parametrize("client", ["a", "vm"])
def test_who_is_rejected_is_told_also_behind_a_tap(house: House, client: str, version: int) -> None:
    before = house.drops()[DropReason.REJECTED]
    with house.socket(client, version, socket.SOCK_STREAM) as asking, pytest.raises(ConnectionRefusedError):
        asking.connect((at("b", version), REFUSED))
    with house.socket(client, version, socket.SOCK_DGRAM) as asking:
        asking.connect((at("b", version), REFUSED))
        asking.send(b"x")
        with pytest.raises(OSError, match=r"ermission|route|reach"):
            asking.recv(1)
    assert house.drops()[DropReason.REJECTED] >= before + 2


def test_a_tap_gets_copies(house: House) -> None:
    wire = house.wire("vm", "eth0")
    with house.mirrored("a", "vm"), house.socket("a", 4, socket.SOCK_DGRAM) as asking:
        asking.sendto(b"copied", (at("b", 4), 7000))
        while b"copied" not in (frame := wire.recv(2048)):
            pass
    assert frame[6:12] == mac_of("a")


def test_hits_are_counted_by_name(house: House) -> None:
    house.engine.tidy()
    before = house.engine.mapping_hits()["a-17"]
    for client, address in (("world", HOST), ("host", LOCALHOST), ("b", HOST)):
        for _ in range(5):
            with house.socket(client, 4, socket.SOCK_DGRAM) as asking:
                asking.sendto(b"x", (address[4], MAPPED["a"]))
    time.sleep(0.1)
    assert house.engine.mapping_hits()["a-17"] == before + 15
