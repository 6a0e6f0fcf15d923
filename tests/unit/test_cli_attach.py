"""`sluice attach` and `sluice detach`: what is asked of the agent, what is shown, how refusals read."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from local_fake_kit import HangsUp, LocalAgent, Refuses, attachment, local_agent
from typer.testing import CliRunner

from cli.main import command_line
from cli.problems import Problem
from cli.publish import mapping
from runtimes.local import LocalError
from runtimes.patient import ask


@pytest.mark.parametrize(("text", "outer", "inner", "protocol", "address"), [
    ("8080:80", 8080, 80, "tcp", None),
    ("80", "auto", 80, "tcp", None),
    (":80", "auto", 80, "tcp", None),
    ("53:53/udp", 53, 53, "udp", None),
    ("53:53/UDP", 53, 53, "udp", None),
    ("127.0.0.1:8080:80", 8080, 80, "tcp", "127.0.0.1"),
    ("127.0.0.1::80", "auto", 80, "tcp", "127.0.0.1"),
    ("[::1]:8080:80/sctp", 8080, 80, "sctp", "::1"),
    ("[2001:DB8::1]::80", "auto", 80, "tcp", "2001:db8::1"),
    ("8000-8010:80-90", "8000-8010", "80-90", "tcp", None),
    ("8000-8000:80", 8000, 80, "tcp", None),
    ("80-90", "auto", "80-90", "tcp", None),
])
def test_ports_as_docker_writes_them(
    text: str, outer: int | str, inner: int | str, protocol: str, address: str | None
) -> None:
    found = mapping(text)
    assert (found["externalPort"], found["internalPort"], found["protocol"]) == (outer, inner, protocol)
    assert found.get("externalAddress") == address


@pytest.mark.parametrize(("text", "words"), [
    ("", "8080:80"), ("x:80", "8080:80"), ("8080:", "8080:80"), ("8080:80/icmp", "tcp, udp, sctp"),
    ("0:80", "1 to 65535"), ("8080:65536", "1 to 65535"), ("90-80:10-20", "lower one first"),
    ("8000-8010:80", "11 outer ports and 1 inner"), ("localhost:1:80", "no address"), ("::1:8080:80", "8080:80"),
    ("1.2.3.4:1:2:3", "8080:80"), ("80/tcp/udp", "8080:80"), ("-80", "8080:80"), ("٨٠:٨٠", "8080:80"),
])
def test_ports_that_are_none(text: str, words: str) -> None:
    with pytest.raises(Problem) as caught:
        mapping(text)
    (fault,) = caught.value.faults
    assert caught.value.status == 2
    assert fault.where == "-p"
    assert words in f"{fault.message} {fault.todo}"


def sluice(agent: LocalAgent | Path, *words: str) -> tuple[int, str, Problem | None]:
    """Status, standard output, and the problem that ends the command."""
    path = agent.path if isinstance(agent, LocalAgent) else agent
    done = CliRunner().invoke(command_line(), [*words, "--socket", str(path)])
    problem = done.exception if isinstance(done.exception, Problem) else None
    return problem.status if problem else done.exit_code, done.output, problem


def test_what_is_said_reaches_the_agent(tmp_path: Path) -> None:
    with local_agent(tmp_path / "s", attachment) as agent:
        status, said, _ = sluice(
            agent, "attach", "--netns", "web", "--network", "red/front", "--name", "web", "--ip", "10.1.0.9",
            "--mac", "02:00:00:00:00:77", "--interface", "net1", "-p", "8080:80", "-p", "[::1]::53/udp", "--label",
            "app=web", "--label", "tier=", "--egress", "100mbit", "--ingress", "1gbit")
    assert status == 0
    ((op, asked),) = agent.asked
    assert op == "attach"
    assert asked == {
        "runtime": "attach", "id": "netns:web:net1", "netns": "web", "network": "front", "tenant": "red",
        "name": "web", "addresses": ["10.1.0.9"], "mac": "02:00:00:00:00:77", "interface": "net1",
        "labels": {"app": "web", "tier": ""},
        "qos": {"egress": {"rate": "100mbit"}, "ingress": {"rate": "1gbit"}},
        "mappings": [{"protocol": "tcp", "externalPort": 8080, "internalPort": 80},
                     {"protocol": "udp", "externalPort": "auto", "internalPort": 53, "externalAddress": "::1"}]}
    heads, row = said.splitlines()
    assert heads.split() == ["ENDPOINT", "NETWORK", "ADDRESS", "MAC", "INTERFACE", "PORTS"]
    assert row.split()[:4] == ["red/web", "front", "10.1.0.9/24", "02:00:00:00:00:77"]
    assert "net1 in web" in row
    assert "8080->80/tcp, [::1]:auto->53/udp" in row


@pytest.mark.parametrize(("words", "place", "identity"), [
    (("--netns", "web"), {"netns": "web"}, "netns:web:eth0"),
    (("--netns", "/run/netns/web"), {"netns": "web"}, "netns:web:eth0"),
    (("--netns", "/var/run/netns/web"), {"netns": "web"}, "netns:web:eth0"),
    (("--netns", "/proc/1/ns/net"), {"netns": "/proc/1/ns/net"}, "netns:/proc/1/ns/net:eth0"),
    (("--netns", "4711"), {"pid": 4711}, "pid:4711:eth0"),
    (("--netns", "4711", "--interface", "eth1"), {"pid": 4711}, "pid:4711:eth1"),
    (("--tap", "vm0"), {"tap": "vm0"}, "tap:vm0"),
    (("--tap", "vm0", "--queues", "4"), {"tap": "vm0"}, "tap:vm0"),
])
def test_places(tmp_path: Path, words: tuple[str, ...], place: dict[str, Any], identity: str) -> None:
    with local_agent(tmp_path / "s", attachment) as agent:
        status, said, _ = sluice(agent, "attach", *words, "--network", "front", "-o", "json")
    assert status == 0
    asked = agent.asked[0][1]
    assert {name: asked[name] for name in ("netns", "pid", "tap") if name in asked} == place
    assert asked["id"] == identity
    assert ("queues" in asked) == ("tap" in place)
    assert ("interface" in asked) == ("tap" not in place)
    assert json.loads(said)["id"] == identity


@pytest.mark.parametrize(("words", "where", "text"), [
    (("--network", "front"), "--netns", "exactly one"),
    (("--netns", "a", "--tap", "b", "--network", "front"), "--netns", "exactly one"),
    (("--netns", "a", "--network", "x/y/z"), "NAME", "x/y/z"),
    (("--tap", "a", "--network", "front", "--interface", "eth0"), "--interface", "names its interface itself"),
    (("--netns", "a", "--network", "front", "--queues", "2"), "--queues", "tap"),
    (("--netns", "a", "--network", "front", "--label", "app"), "--label", "KEY=VALUE"),
    (("--netns", "a", "--network", "front", "--label", "app=1", "--label", "app=2"), "--label", "twice"),
    (("--netns", "a", "--network", "front", "-p", "x"), "-p", "8080:80"),
])
def test_command_lines_that_are_not_understood(tmp_path: Path, words: tuple[str, ...], where: str, text: str) -> None:
    status, _, problem = sluice(tmp_path / "s", "attach", *words)
    assert status == 2
    assert problem is not None
    assert where in problem.faults[0].where
    assert text in "".join(problem.faults[0].lines())


@pytest.mark.parametrize(("field", "where"), [
    ("network", "--network"), ("addresses[0]", "--ip"), ("spec.address6", "--ip"), ("mappings[1]", "-p 9090:90"),
    ("mappings[1].externalPort", "-p 9090:90"), ("mappings[7]", "-p"), ("spec.externalPort", "-p"), ("pid", "--netns"),
    ("metadata.name", "--name"), ("spec.uplink", "spec.uplink"), ("", ""),
])
def test_a_refusal_names_the_option(tmp_path: Path, field: str, where: str) -> None:
    def refuse(op: str, asked: dict[str, Any]) -> dict[str, Any]:
        raise Refuses("taken", "it is another's", field, "10.1.0.9", "choose another")

    with local_agent(tmp_path / "s", refuse) as agent:
        status, _, problem = sluice(agent, "attach", "--netns", "a", "--network", "front", "-p", "8080:80", "-p",
                                    "9090:90")
    assert status == 1
    assert problem is not None
    (fault,) = problem.faults
    assert (fault.where, fault.message, fault.found, fault.todo) == (where, "it is another's", "10.1.0.9",
                                                                    "choose another")


def test_no_agent_is_told_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    status, _, problem = sluice(tmp_path / "none", "attach", "--netns", "a", "--network", "front")
    assert time.monotonic() - began < 2
    assert status == 1
    assert problem is not None
    assert problem.faults[0].where == "--socket"
    assert "sluice agent run" in problem.faults[0].todo


def test_an_agent_that_restarts_is_waited_for(tmp_path: Path) -> None:
    cut: list[str] = []

    def cut_once(op: str, asked: dict[str, Any]) -> dict[str, Any]:
        if not cut:
            cut.append(op)
            raise HangsUp
        return attachment(op, asked)

    with local_agent(tmp_path / "s", cut_once) as agent:
        assert ask("attach", str(agent.path), runtime="attach", id="x", network="n")["uid"] == "uid-1"
    assert [op for op, _ in agent.asked] == ["attach", "attach"]
    assert (tmp_path / "s").exists()                            # nobody listens there: it was killed

    def later() -> None:
        time.sleep(0.3)
        with local_agent(tmp_path / "s", attachment):
            answered.wait(5)

    answered = threading.Event()
    thread = threading.Thread(target=later)
    thread.start()
    try:
        assert ask("attach", str(tmp_path / "s"), runtime="attach", id="x", network="n")["uid"] == "uid-1"
    finally:
        answered.set()
        thread.join()
    began = time.monotonic()
    with pytest.raises(LocalError, match="no agent answers"):
        ask("hello", str(tmp_path / "s"), restart_s=0.2)
    assert time.monotonic() - began < 2


ATTACHED = [
    {"runtime": "attach", "id": "netns:a:eth0", "tenant": "default", "name": "one", "netns": "a", "interface": "eth0"},
    {"runtime": "attach", "id": "netns:a:eth1", "tenant": "red", "name": "two", "netns": "a", "interface": "eth1"},
    {"runtime": "attach", "id": "pid:9:eth0", "tenant": "default", "name": "three", "netns": "/proc/9/ns/net",
     "interface": "eth0"},
    {"runtime": "attach", "id": "tap:vm0", "tenant": "default", "name": "vm", "netns": "", "interface": "vm0"},
    {"runtime": "docker", "id": "e1", "tenant": "default", "name": "docker-1", "netns": "", "interface": "eth0"},
    {"runtime": "cni", "id": "e2", "tenant": "default", "name": "cni-1", "netns": "a", "interface": "eth0"},
]


@pytest.mark.parametrize(("words", "gone"), [
    (("one",), ["netns:a:eth0"]), (("red/two",), ["netns:a:eth1"]), (("two", "-t", "red"), ["netns:a:eth1"]),
    (("--netns", "a"), ["netns:a:eth0", "netns:a:eth1"]),
    (("--netns", "/run/netns/a"), ["netns:a:eth0", "netns:a:eth1"]),
    (("--netns", "a", "--interface", "eth1"), ["netns:a:eth1"]), (("--netns", "9"), ["pid:9:eth0"]),
    (("--netns", "/proc/9/ns/net"), ["pid:9:eth0"]), (("--tap", "vm0"), ["tap:vm0"]),
    (("none", "--missing-ok"), []), (("--tap", "eth0", "--missing-ok"), []),
])
def test_detach_finds_what_is_meant(tmp_path: Path, words: tuple[str, ...], gone: list[str]) -> None:
    def answer(op: str, asked: dict[str, Any]) -> dict[str, Any]:
        return {"attachments": ATTACHED} if op == "list" else {"existed": True}

    with local_agent(tmp_path / "s", answer) as agent:
        status, said, _ = sluice(agent, "detach", *words)
    assert status == 0
    assert [asked for op, asked in agent.asked if op == "detach"] == [
        {"runtime": "attach", "id": identity} for identity in gone]
    assert len(said.splitlines()) == len(gone)


@pytest.mark.parametrize(("words", "status", "text"), [
    (("none",), 1, "no such endpoint is attached here"), (("--netns", "b"), 1, "nothing is attached there"),
    (("docker-1",), 1, "attached by docker"), ((), 2, "give one of"), (("one", "--netns", "a"), 2, "give one of"),
])
def test_detach_of_what_is_not_there_or_not_its_own(
    tmp_path: Path, words: tuple[str, ...], status: int, text: str
) -> None:
    with local_agent(tmp_path / "s", lambda op, asked: {"attachments": ATTACHED}) as agent:
        ended, _, problem = sluice(agent, "detach", *words)
    assert ended == status
    assert problem is not None
    assert text in "".join(problem.faults[0].lines())
    assert "detach" not in [op for op, _ in agent.asked]
