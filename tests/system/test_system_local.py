"""The agent's local socket with a real controller, agent and kernel: traffic, kills of either daemon, what is gone."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from local_kit import NAT, LocalHost, ip, local_host, until

from runtimes.local import LocalError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHost]:
    with local_host(tmp_path_factory.mktemp("local"), "g1") as made:
        made.apply(NAT)
        yield made


@pytest.fixture(autouse=True)
def nothing_left(host: LocalHost) -> Iterator[None]:
    """Each test ends with an empty host that agrees with its controller."""
    yield
    for each in host.ask("list")["attachments"]:
        host.ask("detach", runtime=each["runtime"], id=each["id"])
    for each in host.ask("networks")["networks"]:
        host.ask("network-delete", runtime=each["runtime"], id=each["id"])
    until(lambda: not host.kept("forgotten"), "all is told")
    assert host.links() == []
    assert host.declared("Endpoint") == host.declared("StaticMapping") == []
    assert [name for folder in ("attachments", "reserved", "runtime-networks") for name in host.kept(folder)] == []


@pytest.fixture
def netns(host: LocalHost) -> Iterator[str]:
    name = host.namespace("g1-a")
    yield name
    if name in host._made:
        host.remove_namespace(name)


def error(host: LocalHost, op: str, **arguments: object) -> LocalError:
    with pytest.raises(LocalError) as refused:
        host.ask(op, **arguments)
    return refused.value


def reaches(host: LocalHost, netns: str, address: str = "192.168.250.1") -> bool:
    return "1 received" in host.inside(netns, "ping", "-c1", "-W2", address)


def test_the_socket_is_roots_and_takes_several_requests_a_connection(host: LocalHost) -> None:
    assert stat.S_IMODE(Path(host.socket).stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as lines:
        connection.settimeout(10)
        connection.connect(host.socket)
        connection.sendall(b'{"op": "hello"}\nnonsense\n{"op": "list"}\n')
        first, second, third = (json.loads(lines.readline()) for _ in range(3))
        assert first["ok"]["host"] == "h1"
        assert second["error"]["code"] == "invalid"
        assert third == {"ok": {"attachments": []}}
        connection.sendall(b" " * (1 << 21) + b"\n")
        assert json.loads(lines.readline())["error"]["message"].startswith("the request is longer")


def test_the_port_is_up_when_attach_answers_and_gone_when_detach_does(host: LocalHost, netns: str) -> None:
    made = host.ask("attach", runtime="attach", id="a", netns=netns, network="web",
                    mappings=[{"protocol": "tcp", "externalPort": "auto", "internalPort": 80}])
    assert reaches(host, netns)
    assert made["mappings"][0]["externalPort"] == 10000
    assert host.ask("check", runtime="attach", id="a")["ready"] is True
    other = error(host, "attach", runtime="cni", id="b", netns=netns, network="web")
    assert other.code == "in_use"
    assert "interface eth0" in other.text
    assert host.ask("detach", runtime="attach", id="a") == {"existed": True}
    assert "eth0" not in ip("-n", netns, "link", "show")


def test_a_namespace_that_is_gone_or_the_hosts_own_is_refused(host: LocalHost) -> None:
    assert error(host, "attach", runtime="attach", id="a", netns="g1-nowhere", network="web").code == "gone"
    assert error(host, "attach", runtime="attach", id="a", pid=4194304, network="web").code == "gone"
    own = host._daemons["agent"].pid
    refused = error(host, "attach", runtime="attach", id="a", pid=own, network="web")
    assert (refused.code, refused.field) == ("invalid", "pid")


def test_an_attachment_by_pid_goes_with_its_process(host: LocalHost, netns: str) -> None:
    import subprocess

    process = subprocess.Popen(["nsenter", f"--net=/run/netns/{netns}", "unshare", "--net", "sleep", "60"])
    try:
        others = {Path(name).stat().st_ino for name in (f"/run/netns/{netns}", "/proc/self/ns/net")}   # on its way
        until(lambda: Path(f"/proc/{process.pid}/ns/net").stat().st_ino not in others, "it has a namespace of its own")
        host.ask("attach", runtime="attach", id="p", pid=process.pid, network="web")
    finally:
        process.kill()
        process.wait()
    until(lambda: not host.declared("Endpoint"), "it is released")


def test_a_namespace_that_comes_back_by_the_same_name_is_another(host: LocalHost, netns: str) -> None:
    first = host.ask("attach", runtime="attach", id="a", netns=netns, network="web")
    host.remove_namespace(netns)
    host.namespace(netns)
    until(lambda: not host.ask("check", runtime="attach", id="a")["ready"], "the old one shows its error")
    assert "eth0" not in ip("-n", netns, "link", "show")
    again = host.ask("attach", runtime="attach", id="a", netns=netns, network="web")
    assert again["uid"] != first["uid"]
    assert reaches(host, netns)


def test_the_agent_killed_at_any_time_during_operations_leaves_no_disagreement(host: LocalHost) -> None:
    """Two askers attach, map and detach while the agent is killed again and again."""
    stop, lost = threading.Event(), []
    names = [host.namespace(f"g1-k{number}") for number in range(4)]

    def ask(number: int) -> None:
        turns = random.Random(number)
        while not stop.is_set():
            identity = f"{number}-{turns.randrange(3)}"
            netns = names[2 * number + turns.randrange(2)]
            op = turns.choice(["attach", "attach", "detach", "map"])
            arguments: dict[str, object] = {"runtime": "cni", "id": identity}
            if op == "attach":
                arguments |= {"netns": netns, "network": "web", "interface": f"e{identity}"}
            elif op == "map":
                port = 11000 + 10 * number + turns.randrange(4)
                arguments["mappings"] = [{"protocol": "tcp", "externalPort": port, "internalPort": 80}]
            try:
                host.ask(op, **arguments)
            except LocalError as refused:
                if refused.code not in ("absent", "lost", "exists", "in_use", "not_found", "unavailable"):
                    lost.append(refused.text)
                time.sleep(0.05)

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for asker in askers:
        asker.start()
    turns = random.Random(5)
    for _ in range(3):
        time.sleep(turns.uniform(0.3, 1.5))
        host.kill("agent")
        host.start_agent()
    stop.set()
    for asker in askers:
        asker.join()
    until(lambda: not host.kept("forgotten"), "all is told")
    assert not lost
    shown = {each["uid"] for each in host.ask("list")["attachments"]}
    until(lambda: {each["metadata"]["uid"] for each in host.declared("Endpoint")} == shown, "both say the same")
    for each in host.ask("list")["attachments"]:
        assert host.ask("check", runtime="cni", id=each["id"])["ready"], each
        host.ask("detach", runtime="cni", id=each["id"])
    for name in names:
        host.remove_namespace(name)


def test_without_the_controller_a_lease_helps_and_without_a_lease_the_error_is_quick(
    host: LocalHost, netns: str
) -> None:
    host.ask("network-create", runtime="docker", id="n", network="web")
    host.kill("controller")
    try:
        until(lambda: host.ask("hello")["controller"] == "away", "the agent knows")
        began = time.monotonic()
        refused = error(host, "attach", runtime="attach", id="x", netns=netns, network="other")
        assert refused.code == "unavailable"
        assert "start the controller" in refused.text
        assert time.monotonic() - began < 5
        made = host.ask("attach", runtime="attach", id="a", netns=netns, network="web",
                        mappings=[{"protocol": "tcp", "externalPort": 8080, "internalPort": 80}])
        assert made["leased"] is True
        assert reaches(host, netns)
        host.kill("agent")                              # what was made so outlives the agent
        host.start_agent(wait=False)
        until(lambda: _ready(host, "a"), "the agent is back")
        assert reaches(host, netns)
    finally:
        host.start_controller()
    until(lambda: host.ask("hello")["controller"] == "connected", "the session is back")
    until(lambda: not host.ask("check", runtime="attach", id="a")["leased"], "it is declared")
    (endpoint,) = host.declared("Endpoint")
    assert f"{endpoint['status']['address']}/24" in made["addresses"]
    assert [each["spec"]["externalPort"] for each in host.declared("StaticMapping")] == [8080]
    assert reaches(host, netns)


def _ready(host: LocalHost, identity: str) -> bool:
    with suppress(LocalError):
        return bool(host.ask("check", runtime="attach", id=identity)["ready"])
    return False


def test_a_second_agent_does_not_take_the_socket_and_a_dead_ones_is_replaced(host: LocalHost) -> None:
    host.kill("agent", signal.SIGKILL)
    assert Path(host.socket).exists()
    host.start_agent()
    host.kill("agent", signal.SIGTERM)
    assert not Path(host.socket).exists()
    host.start_agent()
