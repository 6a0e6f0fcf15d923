"""Real packets through user space and back: accepted, dropped, rewritten, released, in order; and nobody there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from inspect_kit import ADDRESS, CLOSED, MAC, OPEN, OTHER, ByFirstWord, Inspected, inspected
from structlog.testing import capture_logs
from vswitch_kit import run

from inspection.packet import Packet
from inspection.queue import Accept, Verdict
from vfp.reasons import DropReason


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Inspected]:
    with inspected(tmp_path) as made:
        made.ensure()
        made.apply()
        yield made


def silent(receiver: socket.socket) -> bool:
    receiver.settimeout(0.3)
    try:
        receiver.recv(100)
    except TimeoutError:
        return True
    finally:
        receiver.settimeout(2)
    return False


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_what_user_space_says_becomes_of_packets_both_ways(host: Inspected, family: int) -> None:
    inspector = ByFirstWord()
    queue = host.queue(inspector)
    client, server = host.asking(CLOSED, family=family)
    client.send(b"hello")
    data, peer = server.recvfrom(100)
    assert data == b"hello"
    server.sendto(b"swap answer", peer)
    assert client.recv(100) == b"swapped: answer"           # longer, and the kernel took its checksum
    client.send(b"drop me")
    assert silent(server)
    with capture_logs() as logs:
        client.send(b"boom")                                # an inspector that fails lets nothing pass
        assert silent(server)
    assert [entry["error"] for entry in logs] == ["RuntimeError: no verdict"]
    client.send(b"swap odd")
    assert server.recv(100) == b"swapped: odd"
    assert inspector.seen == [b"hello", b"swap answer", b"drop me", b"boom", b"swap odd"]
    assert (queue.counts.accepted, queue.counts.dropped, queue.counts.rewritten, queue.counts.failed) == (1, 1, 2, 1)


def test_a_released_flow_goes_on_unseen_both_ways(host: Inspected) -> None:
    inspector = ByFirstWord()
    host.queue(inspector)
    client, server = host.asking(CLOSED)
    client.send(b"one")
    client.send(b"free")
    client.send(b"unseen?")
    _, peer = server.recvfrom(100)
    assert [server.recv(100) for _ in range(2)] == [b"free", b"unseen?"]
    client.send(b"unseen")
    assert server.recv(100) == b"unseen"
    server.sendto(b"drop not", peer)
    assert client.recv(100) == b"drop not"
    assert b"unseen" not in inspector.seen
    assert b"drop not" not in inspector.seen
    forward, reply = sorted(host.datapath.flows(), key=lambda flow: flow.reply)
    assert (forward.packets, reply.packets) == (4, 1)       # each counted once, inspected or not


def test_the_hosts_own_stack_is_reached_and_answers(host: Inspected) -> None:
    inspector = ByFirstWord()
    host.queue(inspector)
    client, server = host.asking(CLOSED, "host")
    client.send(b"question")
    data, peer = server.recvfrom(100)
    server.sendto(b"swap answer", peer)
    assert (data, client.recv(100)) == (b"question", b"swapped: answer")
    assert inspector.seen == [b"question", b"swap answer"]
    assert sorted(flow.packets for flow in host.datapath.flows()) == [1, 1]


def test_frames_keep_macs_and_ttl(host: Inspected) -> None:
    host.queue(ByFirstWord())
    client, server = host.asking(CLOSED)
    sniffer = host.ends["b"].call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)))
    with sniffer:
        sniffer.bind(("eth0", 0))
        sniffer.settimeout(2)
        for ttl in (1, 2, 64, 254, 255):
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            client.send(b"x%d" % ttl)
            frame = sniffer.recv(200)
            assert (frame[:6].hex(":"), frame[6:12].hex(":")) == (MAC["b"], MAC["a"])
            assert frame[22] == ttl
            assert server.recv(10) == b"x%d" % ttl          # and the header's checksum is right


def test_nobody_listens_closed_drops_and_open_passes(host: Inspected) -> None:
    closed, server = host.asking(CLOSED)
    closed.send(b"x")
    assert silent(server)
    bypass, open_server = host.asking(OPEN)
    bypass.send(b"y")
    assert open_server.recv(10) == b"y"
    counts = host.datapath.inspect_counts()
    assert (counts.sent, counts.returned) == (2, 1)


def test_no_detour_closed_is_counted_and_open_passes(host: Inspected) -> None:
    host.apply(with_device=False)
    before = host.datapath.drop_counts()[DropReason.INSPECT_UNAVAILABLE]
    closed, server = host.asking(CLOSED)
    closed.send(b"x")
    assert silent(server)
    assert host.datapath.drop_counts()[DropReason.INSPECT_UNAVAILABLE] == before + 1
    bypass, open_server = host.asking(OPEN)
    bypass.send(b"y")
    assert open_server.recv(10) == b"y"


def test_a_thousand_packets_keep_their_order_through_two_queues(host: Inspected) -> None:
    first, second = ByFirstWord(), ByFirstWord()
    host.queue(first, 0)
    host.queue(second, 2)
    pairs = [host.asking(CLOSED), host.asking(OTHER)]
    got: dict[int, list[bytes]] = {0: [], 1: []}

    def receive(which: int) -> None:
        got[which] = [pairs[which][1].recv(10) for _ in range(1000)]

    threads = [threading.Thread(target=receive, args=(which,)) for which in got]
    for _, server in pairs:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for thread in threads:
        thread.start()
    wanted = [b"%d" % number for number in range(1000)]
    for word in wanted:
        for client, _ in pairs:
            client.send(word)
    for thread in threads:
        thread.join()
    assert got == {0: wanted, 1: wanted}
    assert first.seen == second.seen == wanted


class OfTcp:
    """Accepts all; keeps how long the packets were."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def inspect(self, packet: Packet) -> Verdict:
        self.sizes.append(len(packet.data))
        return Accept()


def test_tcp_with_segmentation_offload_passes_whole(host: Inspected) -> None:
    inspector = OfTcp()
    host.queue(inspector)
    listener = host.open("b", socket.SOCK_STREAM)
    listener.bind((ADDRESS["b"], CLOSED))
    listener.listen()
    client = host.open("a", socket.SOCK_STREAM)
    content = bytes(range(256)) * 4096
    received = bytearray()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            while data := connection.recv(65536):
                received.extend(data)

    thread = threading.Thread(target=serve)
    thread.start()
    client.settimeout(10)
    client.connect((ADDRESS["b"], CLOSED))
    client.sendall(content)
    client.close()
    thread.join()
    assert bytes(received) == content
    assert len(inspector.sizes) > 100                       # and each segment was shown by itself
    assert max(inspector.sizes) <= 1500


@pytest.mark.parametrize("damage", [
    "ip link set out0 down", "iptables-legacy -t raw -F", "ip route del default", "ip link del in0",
    "ip link set out0 name other", "tc qdisc del dev in0 clsact", "sysctl -qw net.ipv4.ip_forward=0",
])
def test_whatever_is_wrong_in_the_namespace_is_mended(host: Inspected, damage: str) -> None:
    assert host.detour is not None
    run("nsenter", f"--net={host.detour.namespace}", *damage.split())
    host.ensure()
    host.apply()
    host.queue(ByFirstWord())
    client, server = host.asking(CLOSED)
    client.send(b"mended")
    assert server.recv(10) == b"mended"


def test_a_name_without_a_namespace_is_what_a_crash_left(host: Inspected) -> None:
    assert host.detour is not None
    name = host.detour.namespace
    assert host.switch.remove_inspection()
    name.touch()
    assert host.ensure().namespace == name
    assert host.switch.remove_inspection()
    assert not name.exists()


def test_it_is_found_again_mended_and_removed(host: Inspected) -> None:
    first = host.detour
    assert host.ensure() == first
    name = first.namespace.name if first else ""
    host.host.ip("link", "del", "sl-ins0")
    assert host.ensure().inode == (first.inode if first else 0)
    host.apply()
    host.queue(ByFirstWord())
    client, server = host.asking(CLOSED)
    client.send(b"again")
    assert server.recv(10) == b"again"
    assert host.switch.remove_inspection()
    assert not Path("/run/netns", name).exists()
    assert not host.host.has("sl-ins0")
    assert not host.host.has("sl-ins1")
    assert not host.switch.remove_inspection()
