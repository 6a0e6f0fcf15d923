"""An independent judge: coturn's STUN server and its `turnutils_natdiscovery` (RFC 5780) say what the NAT does."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from agent_host_kit import Machine, inside, machine, sh, until

from southbound.messages import Goal, HostGoal, NatGoal, NetworkGoal, PortGoal, Subnet

PREFIX = "jdg"
FIRST, SECOND = "172.16.0.80", "172.16.0.81"        # of the STUN server, in the LAN
MAPPING = "NAT with Endpoint Independent Mapping!"
Words = Literal["endpoint-independent", "address-dependent", "address-and-port-dependent"]
FILTERING: dict[Words, str] = {
    "endpoint-independent": "NAT with Endpoint Independent Filtering!",
    "address-dependent": "NAT with Address Dependent Filtering!",
    "address-and-port-dependent": "NAT with Address and Port Dependent Filtering!",
}


@contextmanager
def _stun(namespace: str, folder: Path) -> Iterator[None]:
    sh(f"ip -n {namespace} addr add {SECOND}/24 dev eth0")
    log = folder / "turnserver.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{namespace}", "turnserver", "-n", "--stun-only", "--no-cli", "--no-tls",
             "--no-dtls", "--no-auth", "-L", FIRST, "-L", SECOND, "-m", "1", "--log-file", "stdout", "--simple-log",
             "--pidfile", str(folder / "turnserver.pid"), "--userdb", str(folder / "turndb")],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        for address in (FIRST, SECOND):
            until(lambda address=address: f"{address}:3479" in inside(namespace, "ss -Hlnu"), log.read_text())
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("judge")
    with machine(folder, PREFIX) as host:
        host.add_namespace(f"{PREFIX}-a")
        host.start_connected()
        with _stun(f"{PREFIX}-lan", folder):
            yield host


def _verdict(host: Machine, filtering: Words, *what: str) -> str:
    """What the judge says of an endpoint behind a network with this filtering."""
    goals: tuple[Goal, ...] = (
        HostGoal("self", uplink="lan0"),
        NetworkGoal("n1", "front", "default", "nat", (1 << 24) + 1, (Subnet("192.168.50.0/24", "192.168.50.1"),),
                    "02:fe:00:00:50:01", 0, NatGoal(filtering=filtering)),
        PortGoal("uid-a", "a", "default", "n1", "192.168.50.5/24", "02:00:00:00:50:05", f"{PREFIX}-a", "eth0"),
    )
    ack = host.controller.tell(*goals)
    assert not [status for status in ack.objects if status.error]
    return inside(f"{PREFIX}-a", f"turnutils_natdiscovery {' '.join(what)} {FIRST}", check=False)


@pytest.mark.parametrize(("filtering", "words"), FILTERING.items(), ids=list(FILTERING))
def test_mapping_and_filtering_are_those_configured(judged: Machine, filtering: Words, words: str) -> None:
    said = _verdict(judged, filtering, "-m", "-f")
    assert MAPPING in said, said
    assert words in said, said
    assert "UDP reflexive addr: 172.16.0.10:" in said


def test_an_endpoint_reaches_itself_by_its_external_address(judged: Machine) -> None:
    said = _verdict(judged, "endpoint-independent", "-H")
    assert "successful hairpinning" in said, said
