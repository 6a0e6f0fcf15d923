"""`sluice attach` and `sluice detach` on a real host: namespaces, processes, taps; what is refused leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from local_kit import NAT, ROOT, LocalHost, ip, local_host, until
from typer.testing import CliRunner

from cli.main import command_line
from cli.problems import Problem

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")

AT_MOST_S = 10.0                            # what an operation may take, 8 s, on a machine that is busy
LISTEN = ("import socket, sys\n"
          "with socket.create_server(('', int(sys.argv[1]))) as server:\n"
          "    print('ready', flush=True)\n"
          "    while True:\n"
          "        connection, peer = server.accept()\n"
          "        connection.sendall(peer[0].encode())\n"
          "        connection.close()\n")
ASK = ("import socket, sys\n"
       "with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as connection:\n"
       "    print(connection.recv(100).decode())\n")
FREE = {"apiVersion": "sluice/v1", "kind": "Network", "metadata": {"name": "own"},
        "spec": {"mode": "private", "host": "h1", "subnets": [{"prefix": "10.77.0.0/24"}]}}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHost]:
    with local_host(tmp_path_factory.mktemp("attach"), "v1a") as made:
        made.apply(NAT, FREE)
        yield made


@pytest.fixture
def web(host: LocalHost) -> Iterator[str]:
    """An empty namespace."""
    name = host.namespace("v1a-web")
    yield name
    host.remove_namespace(name)


@pytest.fixture(autouse=True)
def nothing_left(host: LocalHost) -> Iterator[None]:
    yield
    for each in host.ask("list")["attachments"]:
        host.ask("detach", runtime=each["runtime"], id=each["id"])
    until(lambda: not host.links(), "links go")
    assert host.declared("Endpoint") == []
    assert host.declared("StaticMapping") == []


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(host: LocalHost, *words: str) -> Done:
    """The command, in this process: starting one for each takes longer than what it does."""
    done = CliRunner().invoke(command_line(), words, env={"SLUICE_API": host.api, "SLUICE_AGENT": host.socket})
    if isinstance(problem := done.exception, Problem):
        return Done(problem.status, done.stdout, "\n".join(line for fault in problem.faults for line in fault.lines()))
    return Done(done.exit_code, done.stdout, "" if done.exception is None else repr(done.exception))


def sluice(host: LocalHost, *words: str) -> str:
    done = run(host, *words)
    assert done.returncode == 0, (words, done, host.log.read_text()[-3000:])
    return done.stdout


def attach(host: LocalHost, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sluice(host, "attach", *words, "-o", "json"))
    return found


def pings(host: LocalHost, netns: str, address: str) -> bool:
    return " 0% packet loss" in host.inside(netns, "ping", "-c", "2", "-i", "0.1", "-W", "1", address)


def test_a_namespace_with_a_published_port(host: LocalHost, web: str) -> None:
    words = ("--netns", web, "--network", "web", "--name", "web", "-p", "8080:80", "-p", ":81", "--label", "app=web")
    made = attach(host, *words)
    assert (made["name"], made["netns"], made["interface"], made["existing"]) == ("web", web, "eth0", False)
    assert made["mappings"][0]["externalPort"] == 8080
    assert isinstance(made["mappings"][1]["externalPort"], int)     # the one that was free
    assert pings(host, web, "172.16.9.1")
    with subprocess.Popen(["nsenter", f"--net=/run/netns/{web}", sys.executable, "-c", LISTEN, "80"],
                          stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            assert host.inside(host.lan, sys.executable, "-c", ASK, "172.16.9.10", "8080") == "172.16.9.1\n"
        finally:
            server.kill()
    assert attach(host, *words)["existing"]
    assert "web" in sluice(host, "get", "endpoints", "-l", "app=web,sluice.io/runtime=attach")
    refused = run(host, "attach", "--netns", web, "--network", "web", "--name", "web")
    assert refused.returncode == 1
    assert "with other" in refused.stderr
    assert sluice(host, "detach", "web") == "default/web detached\n"
    assert "eth0" not in host.inside(web, "ip", "-o", "link", "show")
    assert run(host, "detach", "web").returncode == 1
    again = subprocess.run([sys.executable, "-m", "cli.main", "detach", "web", "--missing-ok"], timeout=60, check=False,
                           env={**os.environ, "SLUICE_AGENT": host.socket}, cwd=ROOT)
    assert again.returncode == 0


def test_two_interfaces_in_one_namespace_go_together(host: LocalHost, web: str) -> None:
    first = attach(host, "--netns", web, "--network", "web", "--ip", "192.168.250.77")
    second = attach(host, "--netns", f"/run/netns/{web}", "--network", "own", "--interface", "eth1", "--mac",
                    "02:00:00:00:77:01")
    assert first["addresses"] == ["192.168.250.77/24"]
    assert second["mac"] == "02:00:00:00:77:01"
    assert pings(host, web, "192.168.250.1")
    assert sluice(host, "detach", "--netns", web).count("detached") == 2
    assert host.links() == []


def test_a_process_takes_its_endpoint_along(host: LocalHost) -> None:
    with subprocess.Popen(["unshare", "--net", "sleep", "100"]) as process:
        try:
            own = Path("/proc/self/ns/net").readlink()
            until(lambda: Path(f"/proc/{process.pid}/ns/net").readlink() != own, "unshared")
            made = attach(host, "--netns", str(process.pid), "--network", "web")
            assert made["netns"] == f"/proc/{process.pid}/ns/net"
            done = subprocess.run(["nsenter", f"--net=/proc/{process.pid}/ns/net", "ping", "-c", "1", "-W", "2",
                                   "172.16.9.1"], capture_output=True, check=False)
            assert done.returncode == 0
        finally:
            process.kill()
    until(lambda: host.declared("Endpoint") == [], "the endpoint of a process that ended is released")


def test_a_namespace_that_went_is_told_and_its_heir_is_no_heir(host: LocalHost, web: str) -> None:
    attach(host, "--netns", web, "--network", "web", "--name", "web")
    host.remove_namespace(web)
    until(lambda: "no /run/netns/v1a-web" in json.dumps(host.declared("Endpoint")), "its status says so")
    host.namespace(web)
    until(lambda: "another one has its place" in json.dumps(host.declared("Endpoint")), "the new one is not it")
    assert "eth0" not in host.inside(web, "ip", "-o", "link", "show")
    made = attach(host, "--netns", web, "--network", "web", "--name", "web")
    assert not made["existing"]
    assert pings(host, web, "172.16.9.1")
    assert sluice(host, "detach", "--netns", web) == "default/web detached\n"


def test_a_tap_for_a_machine(host: LocalHost) -> None:
    made = attach(host, "--tap", "v1avm0", "--network", "web", "--queues", "2", "--egress", "10mbit")
    (link,) = json.loads(ip("-n", host.netns, "-d", "-j", "link", "show", "dev", "v1avm0"))
    assert link["ifalias"].startswith(f"sluice:port:{made['uid']}:")
    assert link["linkinfo"]["info_data"]["multi_queue"]
    (declared,) = host.declared("Endpoint")
    assert declared["spec"]["qos"]["egress"]["rate"] == "10mbit"
    assert sluice(host, "detach", "--tap", "v1avm0").count("detached") == 1
    assert "v1avm0" not in ip("-n", host.netns, "-o", "link", "show")


@pytest.mark.parametrize(("words", "texts"), [
    (("--network", "wbe"), ("--network", "wbe")),
    (("--network", "web", "--ip", "10.9.9.9"), ("--ip", "10.9.9.9")),
    (("--network", "web", "--ip", "192.168.250.1"), ("--ip", "192.168.250.1")),
    (("--network", "web", "--mac", "ff:ff:ff:ff:ff:ff"), ("--mac", "ff:ff")),
    (("--network", "web", "--name", "No Name"), ("--name", "No Name")),
    (("--network", "web", "--egress", "fast"), ("--egress", "fast")),
    (("--network", "web", "--interface", "a/b"), ("--interface", "a/b")),
    (("--network", "nobody/web"), ("nobody",)),
    (("--network", "own", "-p", "8080:80"), ("--network", "mappings are for nat networks")),
    (("--network", "web", "-p", "7443:80"), ("7443", "127.0.0.1")),
])
def test_what_is_refused_names_its_option_and_leaves_nothing(
    host: LocalHost, web: str, words: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    began = time.monotonic()
    done = run(host, "attach", "--netns", web, *words)
    assert time.monotonic() - began < AT_MOST_S
    assert done.returncode == 1, done.stdout
    for text in texts:
        assert text in done.stderr, done.stderr
    assert "do:" in done.stderr
    assert host.links() == []
    assert "eth0" not in host.inside(web, "ip", "-o", "link", "show")


def test_places_that_are_none(host: LocalHost) -> None:
    for words, text in ((("--netns", "v1a-none"), "v1a-none"), (("--netns", "4194304"), "--netns"),
                        (("--netns", host.netns), "the host's own"), (("--tap", "lan0"), "lan0")):
        done = run(host, "attach", *words, "--network", "web")
        assert done.returncode == 1, (words, done.stdout)
        assert text in done.stderr, done.stderr
        assert host.links() == []


def test_an_address_and_a_port_of_another(host: LocalHost, web: str) -> None:
    other = host.namespace("v1a-other")
    try:
        attach(host, "--netns", other, "--network", "web", "--name", "first", "--ip", "192.168.250.9", "-p", "8081:80")
        for words, text in ((("--ip", "192.168.250.9"), "192.168.250.9"), (("-p", "8081:80"), "8081"),
                            (("--name", "first"), "--name")):
            done = run(host, "attach", "--netns", web, "--network", "web", *words)
            assert done.returncode == 1
            assert text in done.stderr
            assert "first" in done.stderr
        assert len(host.links()) == 1
    finally:
        host.remove_namespace(other)


def test_the_state_folder_is_private_and_holds_nothing_of_what_went(host: LocalHost) -> None:
    assert Path(host.socket).stat().st_mode & 0o777 == 0o600
    assert host.kept("attachments") == []


def test_without_the_controller(host: LocalHost, web: str) -> None:
    """Known networks by a leased address, told later; the rest is refused at once. A detach is carried out at once."""
    first = host.namespace("v1a-first")
    try:
        attach(host, "--netns", first, "--network", "web")
        until(lambda: host.ask("network", network="web")["leased"], "a host that uses a network has addresses of it")
        host.kill("controller")
        made = attach(host, "--netns", web, "--network", "web", "--name", "away", "-p", "8090:80")
        assert made["leased"]
        assert pings(host, web, "172.16.9.1")
        for words, text in ((("--network", "web", "--label", "app=web"), "--label"), (("--network", "none"), "away")):
            began = time.monotonic()
            done = run(host, "attach", "--netns", first, "--interface", "eth1", *words)
            assert time.monotonic() - began < AT_MOST_S
            assert done.returncode == 1
            assert "controller" in done.stderr
            assert text in done.stderr
        sluice(host, "detach", "--netns", first)
        assert "eth0" not in host.inside(first, "ip", "-o", "link", "show")
    finally:
        host.start_controller()
        host.remove_namespace(first)
    until(lambda: [each["metadata"]["name"] for each in host.declared("Endpoint")] == ["away"], "both are told")
    until(lambda: host.declared("StaticMapping"), "the mapping is told")
    assert pings(host, web, "172.16.9.1")
    assert sluice(host, "detach", "away") == "default/away detached\n"
