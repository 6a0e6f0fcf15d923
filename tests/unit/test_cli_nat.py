"""`sluice nat`: tables of what hosts answer, and the log as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

import cli.nat
from cli.main import command_line
from cli.problems import Problem

ANSWER = {
    "host": "h1", "error": "", "total": 3,
    "prefixes": [
        {"network": "default/front", "prefix": "192.168.250.0/24", "gateway": "192.168.250.1", "endpoints": 2,
         "translation": "as the uplink", "status": "ready"},
        {"network": "default/front", "prefix": "fd00:250::/64", "gateway": "fd00:250::1", "endpoints": 0,
         "translation": "routed", "status": "overlap with wlan0 fd00::/16"},
    ],
    "pools": [
        {"network": "default/front", "uplink": "lan0", "address": "172.16.0.10", "ports": "20000-32767", "tcp": 12000,
         "udp": 3, "icmp": 0, "other": 1, "percent": 94.0, "filtering": "endpoint-independent", "block": 256,
         "blocks": 3, "quota": 64},
    ],
    "mappings": [
        {"mapping": "default/web", "network": "default/front", "protocol": "tcp", "external_ports": "82",
         "addresses": ["172.16.0.10", "fd01::1"], "endpoint": "default/web",
         "internal": "192.168.250.10", "internal_ports": "80", "hits": 41, "status": "open"},
        {"mapping": "default/whole", "network": "default/front", "protocol": "any", "addresses": [],
         "external_ports": "", "endpoint": "default/vm", "internal": "192.168.250.11", "internal_ports": "", "hits": 0,
         "status": "closed"},
    ],
    "bindings": [
        {"endpoint": "default/web", "network": "default/front", "protocol": 6, "source": "192.168.250.10",
         "source_port": 40000, "external": "172.16.0.10", "external_port": 20001, "idle_s": 1.6},
        {"endpoint": "default/web", "network": "default/front", "protocol": 47, "source": "fd00:250::5",
         "source_port": 0, "external": "2001:db8::1", "external_port": 0, "idle_s": 0},
    ],
}


class FakeClient:
    """Answers as the controller would."""

    def __init__(self, answer: dict[str, Any], *messages: dict[str, Any]) -> None:
        self.answer, self.messages = answer, messages
        self.asked: dict[str, Any] = {}

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def nat(self, **wanted: Any) -> dict[str, Any]:
        self.asked = wanted
        return self.answer

    def nat_log(self, host: str, network: str) -> Iterator[dict[str, Any]]:
        self.asked = {"host": host, "network": network}
        yield from self.messages


def run(monkeypatch: pytest.MonkeyPatch, client: FakeClient, *arguments: str) -> Any:
    monkeypatch.setattr(cli.nat, "controller", lambda api: client)
    return CliRunner().invoke(command_line(), ["nat", *arguments])


def test_without_a_word_all_four_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient({"hosts": [ANSWER]})
    done = run(monkeypatch, client, "--network", "front")
    assert done.exit_code == 0
    assert client.asked == {"host": "", "network": "default/front", "section": "", "limit": 50}
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines if len(line) == 1] == ["Prefixes", "Pools", "Mappings", "Bindings"]
    text = [" ".join(line) for line in lines]
    assert "h1 default/front 192.168.250.0/24 192.168.250.1 2 as the uplink ready" in text
    pool = "h1 default/front lan0 172.16.0.10 20000-32767 12000 3 0 1 94.0% endpoint-independent 3 of 256 ports 64"
    assert pool in text
    assert "h1 default/web tcp 172.16.0.10:82, [fd01::1]:82 default/web 192.168.250.10:80 41 open" in text
    assert "h1 default/whole any - default/vm 192.168.250.11 0 closed" in text
    assert "h1 default/web default/front tcp 192.168.250.10:40000 172.16.0.10:20001 2s" in text
    assert "h1 default/web default/front gre fd00:250::5 2001:db8::1 0s" in text
    assert "2 of 3 bindings of host h1 are shown; --limit shows more" in done.stderr


def test_one_section_as_json_and_hosts_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient({"hosts": [ANSWER, {"host": "h2", "error": "host h2 is not connected"}]})
    done = run(monkeypatch, client, "pools", "-o", "json")
    assert json.loads(done.stdout) == client.answer
    assert client.asked["section"] == "pools"
    assert done.exit_code == 1
    assert "h2 is not connected" in done.stderr
    table = run(monkeypatch, client, "pools")
    assert table.stdout.splitlines()[0].split()[:4] == ["HOST", "NETWORK", "UPLINK", "ADDRESS"]


def test_nothing_to_show_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {"host": "h1", "error": "", "bindings": [], "total": 0}
    done = run(monkeypatch, FakeClient({"hosts": [empty]}), "bindings")
    assert (done.exit_code, done.stdout, done.stderr.strip()) == (0, "", "no bindings")


def test_the_log_is_lines_of_json_and_tells_what_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"time": "2026-11-21T17:14:07.978992Z", "event": "bound", "network": "default/front",
              "endpoint": "default/web", "protocol": "tcp", "internal": "192.168.250.10",
              "internal_port": 40000, "external": "172.16.0.10",
              "external_port": 20001}
    block = {"time": "2026-11-21T17:14:08.552533Z", "event": "block-taken", "endpoint": "default/web",
             "external": "172.16.0.10", "external_ports": "20016-20031"}
    client = FakeClient({}, {}, {"type": "records", "host": "h1", "records": [record], "lost": 0},
                        {"type": "error", "host": "h2", "message": "host h2 is not connected"},
                        {"type": "records", "host": "h1", "records": [block], "lost": 12})
    monkeypatch.setattr(cli.nat, "controller", lambda api: client)
    with pytest.raises(Problem, match="closed the connection"):
        cli.nat._follow("", "", "")
    told = capsys.readouterr()
    first, interrupted, lost, last = map(json.loads, told.out.splitlines())
    assert first == {"host": "h1", **record}
    assert list(first)[:2] == ["time", "host"]
    assert (interrupted["host"], interrupted["event"]) == ("h2", "interrupted")
    assert (lost["host"], lost["event"], lost["records"]) == ("h1", "lost", 12)
    assert last["external_ports"] == "20016-20031"
    assert "h2 is not connected" in told.err


def test_a_log_of_one_host_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient({}, {"type": "error", "host": "h1", "message": "host h1 is not connected"})
    monkeypatch.setattr(cli.nat, "controller", lambda api: client)
    with pytest.raises(Problem, match="the log ended"):
        cli.nat._follow("h1", "", "")


def test_the_log_is_no_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, FakeClient({}), "log", "-o", "yaml")
    assert isinstance(done.exception, Problem)
    assert "JSON lines" in str(done.exception)
