"""`sluice-cni` on a real host, driven as the spec says, alone and in chains with the reference plug-ins."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cni_stage import PROGRAMS, REFERENCE, Stage, eventually, need, plugin, world

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from cni_kit import Runtime, Said, execute

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    need("/usr/lib/cni/bridge", "/bin/busybox")
    with Stage() as made:
        made.network("red", "nat", "10.71.0.0/24", "fd71::/64")
        yield made


@pytest.fixture
def runtime(stage: Stage) -> Iterator[Runtime]:
    yield Machine(stage, [plugin()])
    for name in stage("ip", "netns", "list").split():
        if name.startswith("c"):
            stage("ip", "netns", "delete", name)
    stage.run("sh", "-c", "ip link delete k1br 2>/dev/null")
    # What went while the controller was away is told to it when it is back.
    eventually(lambda: not stage.list("Endpoint") and not stage.list("StaticMapping"),
               lambda: f"still there: {[*stage.list('Endpoint'), *stage.list('StaticMapping')]}")


class Machine(Runtime):
    """A runtime on the stage: its programs are run there."""

    def __init__(self, stage: Stage, plugins: list[dict[str, object]], name: str = "red") -> None:
        super().__init__(plugins, [PROGRAMS, REFERENCE], name, prefix=stage.enter())
        self.stage = stage

    def program(self, kind: str) -> Path:
        """As the machine has it."""
        return (PROGRAMS if kind == "sluice-cni" else REFERENCE) / kind


def container(stage: Stage, name: str) -> str:
    stage("ip", "netns", "add", name)
    return f"/run/netns/{name}"


def pings(stage: Stage, name: str, address: str) -> bool:
    return stage.run("ip", "netns", "exec", name, "ping", "-c", "1", "-W", "2", address).returncode == 0


def addresses(said: Said) -> list[str]:
    return [each["address"].partition("/")[0] for each in said.result["ips"]]


def test_from_add_to_del(stage: Stage, runtime: Runtime) -> None:
    one, two = container(stage, "c1"), container(stage, "c2")
    first, second = runtime.add("one", one), runtime.add("two", two, arguments="K8S_POD_NAME=web;IgnoreUnknown=1")
    assert len(addresses(first)) == 2
    assert first.result["interfaces"][1]["sandbox"] == one
    for address in addresses(second):
        assert pings(stage, "c1", address)
    assert pings(stage, "c1", "172.16.7.1")
    assert runtime.check("one", one) == Said(0, "", "")
    assert runtime.status() == Said(0, "", "")

    again = runtime.add("one", one).error
    assert again["code"] == 101
    assert "DEL" in again["details"]
    assert pings(stage, "c1", addresses(second)[0])                 # the first ADD stands

    stage("ip", "-n", "c1", "address", "flush", "dev", "eth0")
    assert "lacks address" in runtime.check("one", one).error["msg"]
    for _ in range(2):
        assert runtime.delete("one", one) == Said(0, "", "")
    assert "eth0" not in stage("ip", "-n", "c1", "link", "show")
    stage("ip", "netns", "delete", "c2")
    assert runtime.delete("two", two).status == 0                   # its namespace is gone
    assert not stage.links()


def test_capabilities_in_the_kernel(stage: Stage, runtime: Runtime) -> None:
    netns = container(stage, "c1")
    server = stage.daemon("ip", "netns", "exec", "c1", "busybox", "httpd", "-f", "-p", "80", "-h", "/etc")
    said = runtime.add("one", netns, given={
        "ips": ["10.71.0.77"], "mac": "02:00:00:00:77:77", "dns": {"servers": ["10.71.0.1"]},
        "portMappings": [{"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"egressRate": 50_000_000, "egressBurst": 8_000_000}, "aliases": {"red": ["web"]}})
    assert addresses(said)[0] == "10.71.0.77"
    assert said.result["interfaces"][1]["mac"] == "02:00:00:00:77:77"
    assert said.result["dns"] == {"nameservers": ["10.71.0.1"]}
    assert "root" in world(stage.lan, "curl", "-sS", "--max-time", "5", "http://172.16.7.10:8081/passwd")
    (endpoint,) = stage.list("Endpoint").values()
    assert endpoint["spec"]["qos"]["egress"]["rate"] == "50000000bit"
    assert endpoint["metadata"]["labels"]["alias/web"] == "true"
    assert runtime.check("one", netns).status == 0
    server.kill()
    stage.run("sh", "-c", "kill $(pidof busybox)")
    assert runtime.delete("one").status == 0                        # neither namespace nor result


@pytest.mark.parametrize(("given", "code", "word"), [
    ({"ips": ["10.71.0.50"]}, 102, "10.71.0.50"), ({"ips": ["10.99.0.5"]}, 7, "10.99.0.5"),
    ({"ips": ["nonsense"]}, 7, "nonsense"), ({"mac": "ff:ff:ff:ff:ff:ff"}, 7, "ff:ff"),
    ({"portMappings": [{"hostPort": 8500, "containerPort": 80}]}, 103, "8500")])
def test_what_is_refused_leaves_nothing(stage: Stage, runtime: Runtime, given: dict[str, object], code: int,
                                        word: str) -> None:
    runtime.add("holder", container(stage, "c1"), given={
        "ips": ["10.71.0.50"], "portMappings": [{"hostPort": 8500, "containerPort": 80}]})
    before = stage.links()
    error = runtime.add("one", container(stage, "c2"), given=given).error
    assert (error["code"], word in error["msg"] + error["details"]) == (code, True), error
    assert stage.links() == before
    assert len(stage.list("Endpoint")) == 1
    assert "eth0" not in stage("ip", "-n", "c2", "link", "show")
    assert runtime.delete("one").status == 0
    runtime.delete("holder")


def test_unknown_network_and_lost_namespace(stage: Stage, runtime: Runtime) -> None:
    gone = runtime.add("one", "/run/netns/c-none").error
    assert gone["code"] == 3, gone
    assert "CNI_NETNS" in gone["msg"]
    runtime.name = "green"
    error = runtime.add("one", container(stage, "c1")).error
    assert error["code"] == 7
    assert "green" in error["msg"]
    assert runtime.status().error["code"] == 50
    runtime.plugins = [plugin(spec={"mode": "nat", "subnets": [{"prefix": "10.72.0.0/24"}]})]
    assert addresses(runtime.add("one", "/run/netns/c1"))[0].startswith("10.72.0.")
    runtime.delete("one")


def test_gc_releases_all_but_the_valid(stage: Stage, runtime: Runtime) -> None:
    for name in ("c1", "c2", "c3"):
        runtime.add(name, container(stage, name))
    other = Machine(stage, [plugin(network="red")], "blue")
    other.add("c9", container(stage, "c9"))
    assert runtime.gc([("c2", "eth0")]).status == 0
    assert len(stage.list("Endpoint")) == 2                         # c2, and that of another configuration
    assert runtime.check("c2", "/run/netns/c2").status == 0
    assert runtime.gc([]).status == 0
    assert other.gc([]).status == 0


def test_before_and_after_others_in_a_chain(stage: Stage, runtime: Runtime) -> None:
    netns = container(stage, "c1")
    runtime.version = "1.0.0"                                       # Debian's plug-ins
    runtime.plugins = [{"type": "bridge", "bridge": "k1br", "isGateway": True, "isDefaultGateway": True,
                        "ipam": {"type": "host-local", "dataDir": "/run/k1-ipam",
                                 "ranges": [[{"subnet": "10.79.0.0/24"}]]}},
                       plugin(interface="red0"),
                       {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.rp_filter": "2"}}]
    result = runtime.add("one", netns).result
    assert [each["name"] for each in result["interfaces"] if each.get("sandbox")] == ["eth0", "red0"]
    for each in result["ips"]:                                      # every address at the interface that it says
        shown = stage("ip", "-n", "c1", "address", "show", "dev", result["interfaces"][each["interface"]]["name"])
        assert each["address"] in shown
    ours = runtime.call("CHECK", runtime.plugins[1], "one", netns, "eth0", runtime.previous["one", "eth0"])
    assert ours == Said(0, "", "")          # that of `bridge` looks for every address at its own interface
    runtime.delete("one", netns)
    refused = Machine(stage, [runtime.plugins[0], plugin()])        # both would be eth0
    refused.version = "1.0.0"
    assert refused.add("two", netns).error["code"] == 101
    assert refused.delete("two", netns, known=False).status == 0


def test_many_at_once_have_addresses_of_their_own(stage: Stage, runtime: Runtime) -> None:
    names = [f"c{number}" for number in range(8)]
    for name in names:
        container(stage, name)
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda name: runtime.add(name, f"/run/netns/{name}"), names))
        assert len({address for each in said for address in addresses(each)}) == 16
        assert all(each.status == 0 for each in pool.map(runtime.delete, names))


def test_with_the_controller_away(stage: Stage, runtime: Runtime) -> None:
    runtime.add("one", container(stage, "c1"))
    stage.kill("controller")
    try:
        assert runtime.status() == Said(0, "", "")                  # a lease does
        assert pings(stage, "c1", addresses(runtime.add("two", container(stage, "c2")))[0])
        assert runtime.check("two", "/run/netns/c2").status == 0
        for more, word in (({"labels": {"app": "web"}}, "label"), ({"network": "never-seen"}, "never-seen")):
            runtime.plugins = [plugin(**more)]
            start = time.monotonic()
            error = runtime.add("three", container(stage, f"c{3 + len(word)}")).error
            assert time.monotonic() - start < 10                    # 5 s, and what a busy machine adds
            assert error["code"] == 11
            assert "controller" in error["msg"] + error["details"]
        assert runtime.status().error["code"] == 50
        runtime.plugins = [plugin()]
        assert runtime.delete("one").status == 0
    finally:
        stage.start_controller()
    eventually(lambda: len(stage.list("Endpoint")) == 1, stage.told, 30)
    runtime.delete("two")


def test_version_needs_no_agent(stage: Stage) -> None:
    said = execute(PROGRAMS / "sluice-cni", '{"cniVersion": "1.0.0"}', {"CNI_COMMAND": "VERSION"}, stage.enter())
    assert "1.1.0" in said.result["supportedVersions"]

