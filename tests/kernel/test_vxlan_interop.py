"""A plain kernel VXLAN device and the engine exchange traffic, both ways, over an underlay of either family."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from engine_vtep import GATEWAY_MAC, INNER, MACS, Foreign

BULK = 4 << 20

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


@pytest.fixture(scope="module", params=[(4, True), (4, False), (6, True), (6, False)], ids=str)
def foreign(request: pytest.FixtureRequest) -> Iterator[Foreign]:
    family, direct = request.param
    with Foreign(family, direct) as made:
        for version in (4, 6):
            made.c.ip("neigh", "add", INNER["a"][version], "lladdr", MACS["a"].hex(":"), "dev", "eth0")
        yield made


def _socket(foreign: Foreign, who: str, version: int, kind: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    made = (foreign.a if who == "a" else foreign.c).call(lambda: socket.socket(family, kind))
    made.settimeout(5)
    return made


@pytest.mark.parametrize("version", [4, 6])
def test_either_pings_the_other_up_to_the_mtu(foreign: Foreign, version: int) -> None:
    whole = foreign.endpoint_mtu - (28 if version == 4 else 48)
    for who, peer in ((foreign.a, "c"), (foreign.c, "a")):
        for size in (8, whole):
            out = who.execute("ping", "-n", "-c", "2", "-i", "0.05", "-W", "1", "-M", "do", "-s", str(size),
                              INNER[peer][version], check=False)
            assert " 2 received" in out, (out, foreign.drops())


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("whom", ["a", "gateway"])
def test_what_it_asks_by_multicast_is_answered_over_the_tunnel(foreign: Foreign, version: int, whom: str) -> None:
    """ARP requests and neighbour solicitations come by its static entry for all that it does not know."""
    address = INNER[whom][version]
    mac = (MACS["a"] if whom == "a" else GATEWAY_MAC).hex(":")
    foreign.c.ip("neigh", "del", address, "dev", "eth0", check=False)
    try:
        assert foreign.c.pings(address), foreign.drops()
        (known,) = foreign.c.show("neigh", "show", address)
        assert known["lladdr"] == mac
    finally:
        foreign.c.ip("neigh", "replace", address, "lladdr", mac, "dev", "eth0")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("client", "server"), [("a", "c"), ("c", "a")])
def test_a_stream_arrives_whole(foreign: Foreign, version: int, client: str, server: str) -> None:
    """With segmentation offload: large segments in, packets of the link's size on the wire."""
    data = os.urandom(1 << 16) * (BULK >> 16)
    digest = hashlib.sha256()
    with _socket(foreign, server, version, socket.SOCK_STREAM) as listener:
        listener.bind((INNER[server][version], 5001))
        listener.listen()

        def take() -> None:
            taken, _ = listener.accept()
            taken.settimeout(5)
            with taken:
                while piece := taken.recv(1 << 18):
                    digest.update(piece)

        taker = threading.Thread(target=take)
        taker.start()
        with _socket(foreign, client, version, socket.SOCK_STREAM) as sender:
            sender.connect((INNER[server][version], 5001))
            sender.sendall(data)
        taker.join(10)
    assert digest.digest() == hashlib.sha256(data).digest(), foreign.drops()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("client", "server"), [("a", "c"), ("c", "a")])
@pytest.mark.parametrize("size", [1, 1200, 20_000])
def test_datagrams_arrive_whole_or_in_fragments(
    foreign: Foreign, version: int, client: str, server: str, size: int
) -> None:
    sent = os.urandom(size)
    with (_socket(foreign, server, version, socket.SOCK_DGRAM) as listener,
          _socket(foreign, client, version, socket.SOCK_DGRAM) as sender):
        listener.bind((INNER[server][version], 5002))
        sender.sendto(sent, (INNER[server][version], 5002))
        got, whence = listener.recvfrom(1 << 16)
        assert got == sent
        listener.sendto(got[::-1], whence)
        assert sender.recv(1 << 16) == sent[::-1]
