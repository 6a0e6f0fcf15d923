"""10,000 concurrent TCP connections of 50 endpoints through one external address: none mixed up, none lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent_host_kit import machine

from southbound.messages import HostGoal, NetworkGoal, PortGoal, Subnet

ENDPOINTS, EACH, PORT = 50, 200, 8000
SERVER = "172.16.0.80"
PREFIX = "crw"
LIMITS = {"flows": 131072, "bindings": 32768, "ports": 128}
_SCRIPT = Path(__file__).with_name("nat_crowd.py")


@contextmanager
def _program(namespace: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The other end's standard input is open until it may go."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{namespace}", sys.executable, str(_SCRIPT), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_ten_thousand_connections_keep_apart(tmp_path: Path) -> None:
    network = NetworkGoal(
        "n1", "front", "default", "nat", (1 << 24) + 1, (Subnet("192.168.50.0/24", "192.168.50.1"),),
        "02:fe:00:00:50:01", 0)
    names = [f"{PREFIX}-e{number}" for number in range(ENDPOINTS)]
    ports = [
        PortGoal(f"uid-{number}", f"e{number}", "default", "n1", f"192.168.50.{number + 10}/24",
                 f"02:00:00:00:51:{number:02x}", name, "eth0") for number, name in enumerate(names)]
    with machine(tmp_path, PREFIX, **LIMITS) as host:
        for name in names:
            host.add_namespace(name)
        host.start_connected()
        ack = host.controller.tell(HostGoal("self", uplink="lan0", nat_ports=(20000, 60000)), network, *ports)
        assert not [status for status in ack.objects if status.error]
        with _program(f"{PREFIX}-lan", "serve", SERVER, str(PORT)) as server:
            assert _line(server) == "ready\n"
            with _program(names[0], "call", SERVER, str(PORT), str(EACH), *names) as callers:
                told = json.loads(_line(callers))
                drops = host.controller.ask("drops")
            assert server.stdin is not None
            server.stdin.close()
            seen = json.loads(_line(server))
    assert (told["connections"], told["mixed"][:5], told["lost"][:5]) == (ENDPOINTS * EACH, [], []), drops
    assert seen == {"connections": ENDPOINTS * EACH, "identities": ENDPOINTS * EACH, "addresses": ["172.16.0.10"]}
