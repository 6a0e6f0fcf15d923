"""The real command against a real controller process: what is declared, listed, refused and removed, and how."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SLUICE = [sys.executable, "-m", "cli.main"]

NET = """\
apiVersion: sluice/v1
kind: Endpoint
metadata: {name: a, labels: {app: web}}
spec: {network: red, host: h1, netns: a}
---
apiVersion: sluice/v1
kind: Network
metadata: {name: red}
spec:
  mode: overlay
  subnets:
  - prefix: 10.1.0.0/24
---
apiVersion: sluice/v1
kind: Host
metadata: {name: h1}
spec: {underlay: 172.31.0.1}
"""

Sluice = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def running(tmp_path: Path) -> Iterator[str]:
    """The API address of a controller."""
    api = f"unix:{tmp_path}/api.sock"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*SLUICE, "controller", "run", "--state", str(tmp_path / "state"), "--api", api,
                                    "--southbound", "127.0.0.1:0"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while "controller ready" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        yield api
    finally:
        process.terminate()
        assert process.wait(20) == 0, (tmp_path / "log").read_text()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[str]:
    """A controller of its own."""
    with running(tmp_path) as api:
        yield api


@pytest.fixture(scope="module")
def bare_controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A controller in which nobody gets to store anything."""
    with running(tmp_path_factory.mktemp("bare")) as api:
        yield api


@pytest.fixture
def sluice(controller: str) -> Sluice:
    return command(controller)


def command(controller: str) -> Sluice:
    """Runs `sluice` against a controller; `text` is its standard input."""
    def run(*arguments: str, text: str | None = None, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*SLUICE, *arguments], input=text, capture_output=True, text=True, timeout=60,
                              env={**os.environ, "SLUICE_API": controller}, check=False)
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    return run


def test_what_is_declared_is_listed_and_goes_again(sluice: Sluice) -> None:
    assert sluice("apply", "-f", "-", text=NET).stdout.splitlines() == [
        "host h1 created", "network default/red created", "endpoint default/a created"]
    assert all(line.endswith(" unchanged") for line in sluice("apply", "-f", "-", text=NET).stdout.splitlines())

    table = sluice("get", "endpoints").stdout.splitlines()
    assert table[0].split()[:5] == ["TENANT", "NAME", "NETWORK", "HOST", "ADDRESS"]
    assert table[1].split()[:5] == ["default", "a", "red", "h1", "10.1.0.2"]
    assert json.loads(sluice("get", "net", "red", "-o", "json").stdout)["spec"]["mode"] == "overlay"
    assert [each["kind"] for each in yaml.safe_load_all(sluice("get", "all", "-o", "yaml").stdout)] == [
        "Tenant", "Host", "Network", "Endpoint"]
    assert len(json.loads(sluice("get", "ep", "-l", "app=web", "-o", "json").stdout)) == 1
    assert json.loads(sluice("get", "ep", "-l", "app=db", "-o", "json").stdout) == []
    (host,) = json.loads(sluice("get", "hosts", "-o", "json").stdout)
    assert host["status"]["declaredRevision"] >= host["status"]["appliedRevision"]

    text = sluice("describe", "network", "red").stdout
    assert "network default/red" in text
    assert "endpoints\n" in text

    assert "in use" in sluice("delete", "network", "red", status=1).stderr
    assert sluice("delete", "-f", "-", text=NET).stdout.count(" deleted") == 3
    assert sluice("get", "networks").stderr == "no networks\n"
    assert "there is no" in sluice("delete", "network", "red", status=1).stderr
    sluice("delete", "network", "red", "--missing-ok")


def test_what_get_prints_can_be_applied(sluice: Sluice) -> None:
    sluice("apply", "-f", "-", text=NET)
    printed = sluice("get", "all", "-o", "yaml").stdout
    assert all(line.endswith(" unchanged") for line in sluice("apply", "-f", "-", text=printed).stdout.splitlines())
    printed = sluice("get", "networks", "-o", "json").stdout
    assert sluice("apply", "-f", "-", text=printed).stdout == "network default/red unchanged\n"


def test_a_folder_is_one_declaration(sluice: Sluice, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    for number, part in enumerate(NET.split("---\n")):
        (folder / f"{number}.yaml").write_text(part)
    assert sluice("apply", "-f", str(folder)).stdout.count(" created") == 3


def test_diff_and_dry_run_store_nothing(sluice: Sluice) -> None:
    assert "+kind: Network" in sluice("diff", "-f", "-", text=NET).stdout
    assert sluice("apply", "-f", "-", "--dry-run", text=NET).stdout.count("created (dry run)") == 3
    assert json.loads(sluice("get", "networks", "-o", "json").stdout) == []
    sluice("apply", "-f", "-", text=NET)
    changed = NET.replace("netns: a", "netns: b")
    difference = sluice("diff", "-f", "-", "--exit-code", text=changed, status=1).stdout
    assert "-  netns: a" in difference
    assert "+  netns: b" in difference
    assert sluice("diff", "-f", "-", "--exit-code", text=NET).stdout == ""


@pytest.mark.parametrize(("find", "put", "where", "todo"), [
    ("mode: overlay", "mode: bridge", ":10 (document 2): Network default/red: spec.mode", "l2bridge"),
    ("10.1.0.0/24", "10.1.0.1/24", ":12 (document 2): Network default/red: spec.subnets[0].prefix", "10.1.0.0/24"),
    ("netns: a", "netsn: a", ":4 (document 1): Endpoint default/a: spec.netsn", "netns"),
    ("host: h1", "host: h9", ":4 (document 1): Endpoint default/a: spec.host", "h1"),
    ("kind: Network", "kind: Netwrk", ":7 (document 2): ", "Network"),
    ("netns: a", "netns: a, address: 10.9.0.4", ":4 (document 1): Endpoint default/a: spec.address", "10.1.0.0/24"),
    ("underlay: 172.31.0.1", "underlay: [", "not YAML", "indent"),
])
def test_bad_input_is_refused_whole_with_file_line_field_and_advice(
        bare_controller: str, tmp_path: Path, find: str, put: str, where: str, todo: str) -> None:
    sluice = command(bare_controller)
    file = tmp_path / "net.yaml"
    file.write_text(NET.replace(find, put))
    done = sluice("apply", "-f", str(file), status=1)
    assert str(file) in done.stderr
    assert where in done.stderr
    assert todo in done.stderr
    assert done.stdout == ""
    assert json.loads(sluice("get", "all", "-o", "json").stdout)[1:] == []      # but the default tenant


def test_looking_inside_says_when_a_host_is_away(sluice: Sluice) -> None:
    sluice("apply", "-f", "-", text=NET)
    for command in (["flows"], ["rules", "a"], ["drops"], ["trace", "a", "10.1.0.9", "--port", "80"]):
        assert "not connected" in sluice(*command, status=1).stderr


def test_watch_tells_what_happens(controller: str, sluice: Sluice, tmp_path: Path) -> None:
    with (tmp_path / "events").open("wb") as events:
        process = subprocess.Popen([*SLUICE, "watch", "--since", "0", "-o", "json", "--api", controller],
                                   stdout=events)
    try:
        sluice("apply", "-f", "-", text=NET)
        deadline = time.monotonic() + 10
        while "Endpoint" not in (tmp_path / "events").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.terminate()
        process.wait(10)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "events").read_text().splitlines()]
    assert kinds[:4] == ["Tenant", "Host", "Network", "Endpoint"]


def test_tokens_are_for_hosts_and_a_second_controller_is_refused(controller: str, sluice: Sluice) -> None:
    sluice("apply", "-f", "-", text=NET)
    assert sluice("token", "create", "h1").stdout.startswith("sluice1.")
    state = Path(controller.removeprefix("unix:")).parent / "state"
    done = subprocess.run([*SLUICE, "controller", "run", "--state", str(state), "--api", controller,
                           "--southbound", "127.0.0.1:0"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "another controller uses" in done.stderr
    assert "Traceback" not in done.stderr


def test_join_with_a_bad_token_or_to_nobody_is_told_in_one_message(sluice: Sluice, tmp_path: Path) -> None:
    arguments = ["join", "--controller", "127.0.0.1:1", "--name", "h1", "--state", str(tmp_path / "agent")]
    assert "--token" in sluice(*arguments, "--token", "nonsense", status=1).stderr
    sluice("apply", "-f", "-", text=NET)
    token = sluice("token", "create", "h1").stdout.strip()
    assert "--controller" in sluice(*arguments, "--token", token, status=1).stderr
