"""Both families through the engine's translation with the kernel's sockets: checksums, offloads, fragments, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import engine_gateway as gateway
import pytest

SOURCES = Path(__file__).parents[2]
NAMES = {part: f"eng-{part}-{os.getpid()}" for part in ("end", "host", "world")}
QUIET = ("net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")

_SERVE = """
import socket, sys
with socket.create_server(("::", {port}), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("ready", flush=True)
    connection, peer = server.accept()
    size = 0
    while data := connection.recv(65536):
        size += len(data)
    print(peer[0].removeprefix("::ffff:"), size)
"""
_SEND = """
import socket
with socket.create_connection(("{host}", {port}), timeout=5) as connection:
    connection.sendall(bytes({size}))
"""
_ASK_CLOSED_PORT = """
import socket
with socket.socket(socket.AF_INET6 if ":" in "{host}" else socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.settimeout(3)
    asking.connect(("{host}", 9))
    asking.send(b"x")
    try:
        asking.recv(1)
    except ConnectionRefusedError:
        print("refused")
"""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _inside(part: str, *command: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{NAMES[part]}", *command]


def _said(part: str, *command: str) -> str:
    return subprocess.run(_inside(part, *command), capture_output=True, text=True, timeout=20, check=False).stdout


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    """The world, the host with its engine, and the endpoint."""
    try:
        for name in NAMES.values():
            _ip("netns", "add", name)
        for part in NAMES:
            subprocess.run(_inside(part, "sysctl", "-qw", *QUIET), check=True)
            _ip("-n", NAMES[part], "link", "set", "lo", "up")
        for interface, other in (("p0", "end"), ("up0", "world")):
            _ip("-n", NAMES["host"], "link", "add", interface, "type", "veth", "peer", "eth0", "netns", NAMES[other])
        _ip("-n", NAMES["end"], "link", "set", "eth0", "address", gateway.ENDPOINT_MAC)
        for part, interface in (("host", "p0"), ("host", "up0"), ("end", "eth0"), ("world", "eth0")):
            _ip("-n", NAMES[part], "link", "set", interface, "up")
        for family, length in ((4, 24), (6, 64)):
            for part, interface, address in (
                ("end", "eth0", gateway.ENDPOINT), ("host", "up0", gateway.HOST), ("world", "eth0", gateway.WORLD),
            ):
                _ip("-n", NAMES[part], "addr", "add", f"{address[family]}/{length}", "dev", interface,
                    *(("nodad",) if family == 6 else ()))
            _ip("-n", NAMES["end"], f"-{family}", "route", "add", "default", "via", gateway.GATEWAY[family])
        command = _inside("host", sys.executable, str(SOURCES / "tests/kernel/engine_gateway.py"))
        environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as host:
            assert host.stdout is not None
            assert host.stdout.readline() == "ready\n"
            yield
            host.communicate(timeout=20)
    finally:
        for name in NAMES.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _transfer(server: str, client: str, host: str, port: int, listen: int, size: int) -> list[str]:
    command = _inside(server, sys.executable, "-c", _SERVE.format(port=listen))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            assert serving.stdout.readline() == "ready\n"
            _said(client, sys.executable, "-c", _SEND.format(host=host, port=port, size=size))
            return serving.communicate(timeout=10)[0].split()
        finally:
            serving.kill()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", [56, 4000])
def test_echo_comes_back_through_the_translation_also_in_fragments(hosts: None, family: int, size: int) -> None:
    said = _said("end", "ping", f"-{family}", "-c", "2", "-i", "0.1", "-W", "2", "-s", str(size), gateway.WORLD[family])
    assert " 2 received" in said


@pytest.mark.parametrize("family", [4, 6])
def test_a_large_transfer_arrives_whole_from_the_hosts_address(hosts: None, family: int) -> None:
    size = 5_000_000
    seen = _transfer("world", "end", gateway.WORLD[family], 80, 80, size)
    assert seen == [gateway.HOST[family], str(size)]


@pytest.mark.parametrize("family", [4, 6])
def test_a_mapped_port_shows_the_clients_own_address(hosts: None, family: int) -> None:
    seen = _transfer("end", "world", gateway.HOST[family], gateway.MAPPED_PORT, gateway.SERVER_PORT, 1000)
    assert seen == [gateway.WORLD[family], "1000"]


@pytest.mark.parametrize("family", [4, 6])
def test_an_icmp_error_finds_the_socket_behind_the_translation(hosts: None, family: int) -> None:
    assert _said("end", sys.executable, "-c", _ASK_CLOSED_PORT.format(host=gateway.WORLD[family])) == "refused\n"
