"""`sluice-netavark` on a real host: what Podman and netavark would do, with real namespaces and packets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_kit import LocalHost, local_host, until

from runtimes.netavark.install import install

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")

Json = dict[str, Any]
NEEDED = (1, 6)                             # the first netavark with plug-ins
IDS = {"web": "a" * 64, "two": "b" * 64}
LISTEN = ("import socket, sys\n"
          "with socket.create_server(('', 80)) as server:\n"
          "    print('ready', flush=True)\n"
          "    while True:\n"
          "        server.accept()[0].close()\n")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHost]:
    folder = tmp_path_factory.mktemp("netavark")
    (folder / "plugins").mkdir()
    install(folder / "plugins")
    with local_host(folder, "v1n") as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(host: LocalHost) -> Iterator[None]:
    yield
    for each in host.ask("list")["attachments"]:
        host.ask("detach", runtime=each["runtime"], id=each["id"])
    for identity in IDS.values():
        host.ask("network-delete", runtime="netavark", id=identity)
    until(lambda: not host.links(), "links go")
    assert host.declared("Endpoint") == []
    assert host.declared("StaticMapping") == []
    until(lambda: host.declared("Network") == [], "networks go")


def plugin(host: LocalHost, driver: str, *words: str, given: Json) -> tuple[int, Any]:
    done = subprocess.run([host.folder / "plugins" / driver, *words], input=json.dumps(given), capture_output=True,
                          text=True, timeout=30, check=False, env={"PATH": "/usr/bin", "SLUICE_AGENT": host.socket})
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def create(host: LocalHost, driver: str, name: str, **fields: Any) -> Json:
    status, kept = plugin(host, driver, "create", given={
        "name": name, "id": IDS[name], "driver": driver, "ipv6_enabled": False, "internal": False, "dns_enabled": False,
        "ipam_options": {}} | fields)
    assert status == 0, kept
    found: Json = kept
    return found


def container(name: str, network: Json, interface: str = "eth0", **own: Any) -> Json:
    ports = own.pop("ports", None)
    return {"container_id": (name * 64)[:64], "container_name": name, "port_mappings": ports, "network": network,
            "network_options": {"interface_name": interface, "aliases": [name]} | own}


def setup(host: LocalHost, netns: str, given: Json) -> Json:
    status, block = plugin(host, given["network"]["driver"], "setup", f"/run/netns/{netns}", given=given)
    assert status == 0, block
    found: Json = block["interfaces"][given["network_options"]["interface_name"]]
    return found


def teardown(host: LocalHost, netns: str, given: Json) -> None:
    assert plugin(host, given["network"]["driver"], "teardown", f"/run/netns/{netns}", given=given) == (0, None)


def pings(host: LocalHost, netns: str, address: str) -> bool:
    return " 0% packet loss" in host.inside(netns, "ping", "-c", "2", "-i", "0.1", "-W", "1", address)


def test_containers_of_a_network(host: LocalHost) -> None:
    network = create(host, "nat", "web", subnets=[{"subnet": "192.168.240.0/24"}])
    assert network["subnets"] == [{"subnet": "192.168.240.0/24", "gateway": "192.168.240.1"}]
    ports = [{"container_port": 80, "host_ip": "", "host_port": 8090, "protocol": "tcp", "range": 1}]
    first = container("c1", network, static_ips=["192.168.240.20"], static_mac="02:00:00:00:aa:20", ports=ports)
    second = container("c2", network)
    one, two = host.namespace("v1n-c1"), host.namespace("v1n-c2")
    try:
        assert setup(host, one, first) == {"mac_address": "02:00:00:00:aa:20", "subnets": [
            {"ipnet": "192.168.240.20/24", "gateway": "192.168.240.1"}]}
        other = setup(host, two, second)["subnets"][0]["ipnet"].partition("/")[0]
        assert pings(host, one, other)
        assert pings(host, two, "172.16.9.1")
        with subprocess.Popen(["nsenter", f"--net=/run/netns/{one}", sys.executable, "-c", LISTEN],
                              stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "ready\n"
                asking = "import socket; socket.create_connection(('172.16.9.10', 8090), 2).close(); print('in')"
                assert host.inside(host.lan, sys.executable, "-c", asking) == "in\n"
            finally:
                server.kill()
        status, answer = plugin(host, "nat", "setup", f"/run/netns/{two}", given=container(
            "c3", network, "eth1", static_ips=["192.168.240.20"]))
        assert status == 1
        assert "192.168.240.20" in answer["error"]
        teardown(host, one, first)
        teardown(host, one, first)
        assert "eth0" not in host.inside(one, "ip", "-o", "link", "show")
    finally:
        host.remove_namespace(one)
        host.remove_namespace(two)
    teardown(host, two, second)                                 # its namespace is gone already


def test_two_networks_of_one_container_and_a_new_namespace(host: LocalHost) -> None:
    nat = create(host, "nat", "web", subnets=[{"subnet": "192.168.240.0/24"}, {"subnet": "fd00:240::/64"}],
                 ipv6_enabled=True)
    private = create(host, "sluice", "two", options={"mode": "private"})
    ports = [{"container_port": 80, "host_ip": "", "host_port": 8091, "protocol": "tcp", "range": 1}]
    givens = [container("c1", nat, ports=ports), container("c1", private, "eth1", ports=ports)]
    name = host.namespace("v1n-c1")
    try:
        blocks = [setup(host, name, given) for given in givens]
        assert len(blocks[0]["subnets"]) == 2
        assert pings(host, name, "172.16.9.1")
        addresses = [each["spec"]["externalAddress"] for each in host.declared("StaticMapping")]
        assert sorted(addresses) == ["0.0.0.0", "::"]           # once, in each family
        host.remove_namespace(name)                             # as after a boot, or podman killed
        host.namespace(name)
        other = host.namespace("v1n-c1b")
        try:
            setup(host, name, givens[0])                        # another namespace by the same name
            setup(host, other, givens[1])                       # and by another one
            assert pings(host, name, "172.16.9.1")
            assert len(host.declared("Endpoint")) == 2
            for netns, given in zip((name, other), givens, strict=True):
                teardown(host, netns, given)
        finally:
            host.remove_namespace(other)
    finally:
        host.remove_namespace(name)


def test_a_container_whose_namespace_went_is_released(host: LocalHost) -> None:
    network = create(host, "nat", "web")                        # a prefix that is free here
    name = host.namespace("v1n-c1")
    setup(host, name, container("c1", network))
    host.remove_namespace(name)
    until(lambda: host.declared("Endpoint") == [], "nobody tears it down, and it goes")


def test_a_network_is_forgotten(host: LocalHost) -> None:
    create(host, "private", "two")
    done = subprocess.run(
        [host.folder / "plugins" / "sluice", "forget", IDS["two"][:12]], capture_output=True, text=True, timeout=30,
        check=False, env={"PATH": "/usr/bin", "SLUICE_AGENT": host.socket})
    assert done.stdout == "network default/podman-bbbbbbbbbbbb deleted\n", done
    assert host.declared("Network") == []


def _netavark() -> Path | None:
    places = (shutil.which("netavark"), "/usr/lib/podman/netavark", "/usr/libexec/podman/netavark")
    return next((Path(each) for each in places if each and Path(each).exists()), None)


def _version(program: Path) -> tuple[int, ...]:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else (0, 0)


def test_the_real_netavark(host: LocalHost, tmp_path: Path) -> None:
    """It runs the plug-in, reads what that says, and undoes it."""
    program = _netavark()
    if program is None or _version(program) < NEEDED:
        pytest.skip("no netavark of 1.6 or later here (Debian 12 has 1.4.0, which knows no plug-ins)")
    network = create(host, "nat", "web", subnets=[{"subnet": "192.168.240.0/24"}])
    given = {"container_id": "c" * 64, "container_name": "real", "networks": {"web": {"interface_name": "eth0"}},
             "network_info": {"web": network}, "port_mappings": None}
    name = host.namespace("v1n-real")
    try:
        for word in ("setup", "teardown"):
            done = subprocess.run(
                ["nsenter", f"--net=/run/netns/{host.netns}", program, "--config", str(tmp_path), "--plugin-directory",
                 str(host.folder / "plugins"), word, f"/run/netns/{name}"], input=json.dumps(given), text=True,
                capture_output=True, timeout=30, check=False, env={**os.environ, "SLUICE_AGENT": host.socket,
                                                                   "NETAVARK_FW": "none"})
            assert done.returncode == 0, done.stdout + done.stderr
            if word == "setup":
                assert json.loads(done.stdout)["web"]["interfaces"]["eth0"]["subnets"]
                assert pings(host, name, "172.16.9.1")
    finally:
        host.remove_namespace(name)
