"""`sluice-cni` as the spec says, run as a process, with an agent that answers as told."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_kit import FakeAgent, Runtime, Said, execute, installed

CONTAINER = "3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755"
NETNS = "/run/netns/k1-x"
FOUND = {"runtime": "cni", "uid": "u1", "name": "cni-1", "tenant": "default", "network": "red", "mode": "overlay",
         "addresses": ["10.1.0.5/24", "fd00:1::5/64"], "gateways": ["10.1.0.1", "fd00:1::1"],
         "mac": "02:00:00:00:00:05", "mtu": 1450, "interface": "eth0", "hostInterface": "slp7",
         "existing": False, "mappings": []}
ALL = dict.fromkeys(("portMappings", "bandwidth", "ips", "mac", "ipRanges", "dns", "aliases"), True)


class Agent:
    """What the fake agent says next."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"attach": {"ok": FOUND}, "detach": {"ok": {"existed": True}},
                                        "gc": {"ok": {"released": []}},
                                        "hello": {"ok": {"host": "h1", "controller": "connected", "version": "1"}},
                                        "network": {"ok": {"name": "red", "mode": "nat", "leased": 0, "subnets": [
                                            {"prefix": "10.1.0.0/24"}, {"prefix": "fd00:1::/64"}]}},
                                        "list": {"ok": {"attachments": []}}}

    def __call__(self, request: dict[str, Any]) -> Any:
        answer = self.answers[request["op"]]
        return answer.pop(0) if isinstance(answer, list) else answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("cni"))


@pytest.fixture
def said() -> Agent:
    return Agent()


@pytest.fixture
def agent(said: Agent, tmp_path: Path) -> Iterator[FakeAgent]:
    with FakeAgent(tmp_path / "agent.sock", said) as fake:
        yield fake


@pytest.fixture
def runtime(folder: Path, tmp_path: Path) -> Runtime:
    return Runtime([{"type": "sluice-cni", "capabilities": ALL, "socket": str(tmp_path / "agent.sock")}], [folder])


def fault(code: str, **more: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": "no good", "field": "", "found": "", "todo": "do this", **more}}


def bare(folder: Path, text: str = "", **variables: str) -> Said:
    return execute(folder / "sluice-cni", text, variables)


def test_add_asks_once_and_answers_in_the_spec_s_words(runtime: Runtime, agent: FakeAgent) -> None:
    assert runtime.add(CONTAINER, NETNS).result == {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "slp7"},
                       {"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": NETNS, "mtu": 1450}],
        "ips": [{"interface": 1, "address": "10.1.0.5/24", "gateway": "10.1.0.1"},
                {"interface": 1, "address": "fd00:1::5/64", "gateway": "fd00:1::1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00:1::1"}], "dns": {}}
    assert agent.asked == [{"op": "attach", "runtime": "cni", "id": f"red/{CONTAINER}/eth0", "scope": "red",
                            "network": "red", "netns": NETNS, "interface": "eth0"}]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_results_of_earlier_versions(runtime: Runtime, agent: FakeAgent, version: str) -> None:
    runtime.version = version
    result = runtime.add(CONTAINER, NETNS).result
    assert result["cniVersion"] == version
    assert "mtu" not in result["interfaces"][1]
    assert [each.get("version") for each in result["ips"]] == ([None, None] if version == "1.0.0" else ["4", "6"])


def test_every_capability_reaches_the_agent(runtime: Runtime, agent: FakeAgent) -> None:
    given = {
        "portMappings": [*({"hostPort": 8000 + n, "containerPort": 80 + n, "protocol": "TCP"} for n in range(3)),
                         {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
                         {"hostPort": 0, "containerPort": 9}],
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 2**31 - 1, "egressRate": 1_000_000, "egressBurst": 1},
        "ips": ["10.1.0.9/24", "fd00:1::9"], "mac": "02:00:00:00:00:09",
        "ipRanges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.8"}], [{"subnet": "fd00:1::/64"}]],
        "dns": {"servers": ["10.1.0.2"], "searches": ["example.com"], "options": ["ndots:5"]},
        "aliases": {"red": [CONTAINER[:12], "web", "www"]},
    }
    result = runtime.add(CONTAINER, NETNS, given=given).result
    assert result["dns"] == {"nameservers": ["10.1.0.2"], "search": ["example.com"], "options": ["ndots:5"]}
    assert [each["op"] for each in agent.asked] == ["network", "list", "attach"]
    asked = agent.asked[2]
    assert asked["mappings"] == [
        {"protocol": "tcp", "externalPort": "8000-8002", "internalPort": "80-82", "externalAddress": "0.0.0.0"},
        {"protocol": "tcp", "externalPort": "8000-8002", "internalPort": "80-82", "externalAddress": "::"},
        {"protocol": "udp", "externalPort": 53, "internalPort": 53, "externalAddress": "192.0.2.1"}]
    assert asked["qos"] == {"ingress": {"rate": "8000000bit", "burst": "268435456b"},
                            "egress": {"rate": "1000000bit", "burst": "2048b"}}
    assert asked["addresses"] == ["10.1.0.9", "fd00:1::9"]
    assert asked["mac"] == "02:00:00:00:00:09"
    assert asked["ranges"] == ["10.1.0.8-10.1.0.255", "fd00:1::/64"]
    assert asked["labels"] == {"alias/web": "true", "alias/www": "true"}


def test_of_several_networks_of_a_container_the_first_has_the_ports(runtime: Runtime, agent: FakeAgent,
                                                                   said: Agent) -> None:
    given = {"portMappings": [{"hostPort": 80, "containerPort": 80}]}
    row = {"id": f"blue/{CONTAINER}/eth1", "mappings": [{}]}
    for other, left in ((row, False), ({**row, "id": "blue/another/eth1"}, True), ({**row, "mappings": []}, True),
                        ({**row, "id": f"red/{CONTAINER}/eth0"}, True)):
        said.answers["list"] = {"ok": {"attachments": [other]}}
        assert runtime.add(CONTAINER, NETNS, given=given).status == 0
        assert ("mappings" in agent.asked[-1]) == left
    said.answers["network"]["ok"]["mode"] = "private"
    asked = len(agent.asked)
    error = runtime.add(CONTAINER, NETNS, given=given).error
    assert error["code"] == 7
    assert "private" in error["msg"]
    assert "leave portMappings out" in error["details"]
    assert "attach" not in [each["op"] for each in agent.asked[asked:]]


def test_arguments_of_the_environment_and_of_the_configuration(runtime: Runtime, agent: FakeAgent) -> None:
    runtime.plugins = [{**runtime.plugins[0], "network": "blue", "tenant": "acme", "podLabels": True,
                        "labels": {"tier": "front"}, "qos": {"dscp": 10}, "interface": "net1",
                        "args": {"cni": {"ips": ["10.1.0.7"], "labels": [{"key": "app", "value": "web"}]}, "other": 1}}]
    agent_said = "K8S_POD_NAME=Web.One;K8S_POD_NAMESPACE=shop;IP=10.1.0.6;MAC=02:00:00:00:00:07;IgnoreUnknown=1;X=Y"
    runtime.add(CONTAINER, NETNS, arguments=agent_said)
    asked = agent.asked[0]
    assert asked == {"op": "attach", "runtime": "cni", "id": f"red/{CONTAINER}/eth0/net1", "scope": "red/net1",
                     "network": "blue", "tenant": "acme", "netns": NETNS, "interface": "net1",
                     "name": "web-one-3f6940ab5ab4-net1", "addresses": ["10.1.0.7"], "mac": "02:00:00:00:00:07",
                     "qos": {"dscp": 10}, "labels": {"tier": "front", "app": "web", "io.kubernetes.pod.name": "Web.One",
                                                     "io.kubernetes.pod.namespace": "shop"}}
    runtime.add(CONTAINER, NETNS, arguments="SLUICE_NAME=mine;SLUICE_NETWORK=green;SLUICE_TENANT=t2")
    assert {key: agent.asked[1][key] for key in ("name", "network", "tenant")} == {
        "name": "mine", "network": "green", "tenant": "t2"}


def test_the_result_before_stays_and_ours_comes_after(runtime: Runtime, agent: FakeAgent) -> None:
    before = {"cniVersion": "1.1.0", "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": NETNS}],
              "ips": [{"address": "192.168.0.2/24", "interface": 1}], "dns": {"nameservers": ["192.168.0.1"]}}
    plugin = runtime.plugins[0]
    refused = runtime.call("ADD", plugin, CONTAINER, NETNS, "eth0", before).error
    assert refused["code"] == 101
    assert '"interface": "net1"' in refused["details"]
    assert not agent.asked
    merged = runtime.call("ADD", {**plugin, "interface": "net1"}, CONTAINER, NETNS, "eth0", before).result
    assert [each["name"] for each in merged["interfaces"]] == ["br0", "eth0", "slp7", "eth0"]  # as the agent said
    assert [each["interface"] for each in merged["ips"]] == [1, 3, 3]
    assert merged["dns"] == {"nameservers": ["192.168.0.1"]}


def test_a_second_add_is_refused_unless_the_first_answer_was_lost(runtime: Runtime, agent: FakeAgent,
                                                                 said: Agent) -> None:
    again = {"ok": {**FOUND, "existing": True}}
    said.answers["attach"] = again
    refused = runtime.add(CONTAINER, NETNS).error
    assert refused["code"] == 101
    assert "CNI_IFNAME" in refused["msg"]
    assert "DEL" in refused["details"]
    said.answers["attach"] = [None, again]
    assert runtime.add(CONTAINER, NETNS).status == 0


def test_an_unknown_network_is_made_if_the_configuration_says_how(runtime: Runtime, agent: FakeAgent,
                                                                  said: Agent) -> None:
    missing = fault("not_found", field="network", message="there is no network red", todo="declare it")
    said.answers["attach"] = [missing, missing, {"ok": FOUND}]
    refused = runtime.add(CONTAINER, NETNS).error
    assert refused == {"cniVersion": "1.1.0", "code": 7, "msg": "network: there is no network red",
                       "details": "declare it"}
    spec = {"mode": "nat", "subnets": [{"prefix": "10.1.0.0/24"}]}
    runtime.plugins = [{**runtime.plugins[0], "spec": spec}]
    said.answers["network-create"] = {"ok": {"name": "red", "created": True}}
    assert runtime.add(CONTAINER, NETNS).status == 0
    assert agent.asked[2] == {"op": "network-create", "runtime": "cni", "id": "red", "network": "red", "spec": spec}


@pytest.mark.parametrize(("code", "number"), [
    ("invalid", 7), ("outside", 7), ("exists", 101), ("taken", 102), ("in_use", 103), ("forbidden", 104),
    ("exhausted", 105), ("gone", 3), ("failed", 100), ("unavailable", 11), ("timeout", 11), ("something", 100)])
def test_what_the_agent_refuses_has_a_code_and_says_what_to_do(runtime: Runtime, agent: FakeAgent, said: Agent,
                                                              code: str, number: int) -> None:
    said.answers["attach"] = fault(code, field="addresses", found="10.9.9.9")
    error = runtime.add(CONTAINER, NETNS).error
    assert error["code"] == number
    assert error["details"] == "found: 10.9.9.9; do this"
    assert ("CNI_NETNS" in error["msg"]) == (code == "gone")


def test_del_needs_neither_namespace_nor_result_nor_a_good_configuration(runtime: Runtime, agent: FakeAgent,
                                                                       said: Agent) -> None:
    said.answers["detach"] = {"ok": {"existed": False}}
    for _ in range(2):
        assert runtime.delete(CONTAINER, known=False) == Said(0, "", "")
    runtime.plugins = [{**runtime.plugins[0], "ipam": {}, "tenant": 7, "runtimeConfig": {"ips": 3}}]
    assert runtime.delete(CONTAINER, "/run/netns/none").status == 0
    assert agent.asked[-1] == {"op": "detach", "runtime": "cni", "id": f"red/{CONTAINER}/eth0"}


def test_gc_names_those_that_stay(runtime: Runtime, agent: FakeAgent) -> None:
    assert runtime.gc([("c1", "eth0"), ("c2", "net0")]) == Said(0, "", "")
    assert agent.asked == [{"op": "gc", "runtime": "cni", "scope": "red", "valid": ["red/c1/eth0", "red/c2/net0"]}]


@pytest.mark.parametrize("valid", [None, "c1", ["c1"], [{"containerID": "c1"}], [{"containerID": 1, "ifname": "e"}]])
def test_a_gc_that_cannot_be_read_releases_nothing(runtime: Runtime, agent: FakeAgent, valid: Any) -> None:
    error = runtime.call("GC", {**runtime.plugins[0], "cni.dev/valid-attachments": valid}).error
    assert error["code"] == 7
    assert "cni.dev/valid-attachments" in error["msg"]
    assert not agent.asked


def test_status(runtime: Runtime, agent: FakeAgent, said: Agent) -> None:
    assert runtime.status() == Said(0, "", "")
    said.answers["hello"]["ok"]["controller"] = "away"
    error = runtime.status().error
    assert error["code"] == 50
    assert "no leased address" in error["msg"]
    said.answers["network"]["ok"]["leased"] = 16
    assert runtime.status().status == 0
    said.answers["network"] = fault("not_found", field="network", message="there is no network red")
    assert runtime.status().error["code"] == 50


def test_no_agent(runtime: Runtime, said: Agent, tmp_path: Path) -> None:
    add = runtime.add(CONTAINER, NETNS).error
    assert add["code"] == 11
    assert "sluice agent run" in add["details"]
    assert str(tmp_path) in add["details"]
    assert runtime.status().error["code"] == 50
    assert runtime.delete(CONTAINER, NETNS).error["code"] == 11


def test_an_agent_that_was_killed_is_waited_for(runtime: Runtime, said: Agent, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    FakeAgent(path, said).close()

    started: list[FakeAgent] = []

    def restart() -> None:
        path.unlink()
        started.append(FakeAgent(path, said))

    timer = threading.Timer(0.5, restart)
    timer.start()
    try:
        assert runtime.add(CONTAINER, NETNS).status == 0
    finally:
        timer.join()
        started[0].close()


@pytest.mark.parametrize("missing", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_a_missing_variable_is_named(folder: Path, command: str, missing: str) -> None:
    variables = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c", "CNI_NETNS": NETNS, "CNI_IFNAME": "eth0"}
    del variables[missing]
    said = bare(folder, json.dumps({"cniVersion": "1.0.0", "name": "red", "type": "sluice-cni",
                                    "socket": "/nowhere/agent.sock"}), **variables)
    if (command, missing) == ("DEL", "CNI_NETNS"):
        assert said.error["code"] == 11                 # no agent; the variable is not needed
    else:
        assert said.error["code"] == 4
        assert missing in said.error["msg"]
    assert said.error["cniVersion"] == "1.0.0"


@pytest.mark.parametrize(("name", "value"), [
    ("CNI_COMMAND", "REMOVE"), ("CNI_CONTAINERID", "-x"), ("CNI_CONTAINERID", "a/b"), ("CNI_NETNS", "web"),
    ("CNI_IFNAME", "sixteen-letters-"), ("CNI_IFNAME", ".."), ("CNI_IFNAME", "a b"), ("CNI_IFNAME", "a/b"),
    ("CNI_IFNAME", "a:b"), ("CNI_ARGS", "IP"), ("CNI_ARGS", "COLOUR=red")])
def test_a_wrong_variable_is_named(folder: Path, name: str, value: str) -> None:
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": NETNS, "CNI_IFNAME": "eth0", name: value}
    error = bare(folder, json.dumps({"cniVersion": "1.0.0", "name": "red", "type": "sluice-cni"}), **variables).error
    assert error["code"] == 4
    assert name in error["msg"]
    assert value in error["msg"]


@pytest.mark.parametrize(("text", "code", "word"), [
    ("", 6, "network configuration"), ("{", 6, "network configuration"), ("[]", 6, "object"), ("NaN", 6, "JSON"),
    ("[" * 60_000, 6, "JSON"), ("\udcff", 6, "utf-8"), ("x" * 1_100_000, 5, "standard input"),
    ('{"name": "red"}', 1, "cniVersion"), ('{"cniVersion": "9.0.0", "name": "red"}', 1, "9.0.0"),
    ('{"cniVersion": [1], "name": "red"}', 1, "[1]"), ('{"cniVersion": "1.1.0"}', 7, "name"),
    ('{"cniVersion": "1.1.0", "name": "a b"}', 7, "a b")])
def test_a_configuration_that_is_none(folder: Path, text: str, code: int, word: str) -> None:

    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": NETNS, "CNI_IFNAME": "eth0"}
    done = subprocess.run([str(folder / "sluice-cni")], input=text.encode(errors="surrogateescape"),
                          capture_output=True, check=False, env=variables)
    error = Said(done.returncode, done.stdout.decode(), done.stderr.decode()).error
    assert error["code"] == code
    assert word in error["msg"]


@pytest.mark.parametrize(("field", "value", "code"), [
    ("ipam", {"type": "host-local"}, 2), ("ipMasq", True, 2), ("tenant", 7, 7), ("labels", [], 7),
    ("labels", {"a": 1}, 7), ("interface", "a/b", 7), ("interface", "", 7), ("args", [], 7), ("args", {"cni": []}, 7),
    ("prevResult", [], 7), ("prevResult", {"interfaces": {}}, 7), ("runtimeConfig", {"deviceID": "x"}, 2),
    ("runtimeConfig", {"portMappings": {}}, 7), ("runtimeConfig", {"portMappings": [1]}, 7),
    ("runtimeConfig", {"portMappings": [{"hostPort": 70000, "containerPort": 1}]}, 7),
    ("runtimeConfig", {"portMappings": [{"hostPort": 7, "containerPort": 1, "protocol": "gre"}]}, 7),
    ("runtimeConfig", {"ips": "10.1.0.5"}, 7), ("runtimeConfig", {"mac": 5}, 7),
    ("runtimeConfig", {"bandwidth": {"egressRate": -1}}, 7), ("runtimeConfig", {"bandwidth": []}, 7),
    ("runtimeConfig", {"ipRanges": [{}]}, 7), ("runtimeConfig", {"ipRanges": [[{"subnet": "x"}]]}, 7),
    ("runtimeConfig", {"ipRanges": [[{"subnet": "10.1.0.0/24", "gateway": "10.1.0.9"}]]}, 2),
    ("runtimeConfig", {"dns": []}, 7), ("runtimeConfig", {"aliases": ["web"]}, 7),
    ("args", {"cni": {"labels": ["a"]}}, 7), ("args", {"cni": {"ips": 4}}, 7)])
def test_a_field_that_cannot_be_done_is_named_with_what_was_found(runtime: Runtime, agent: FakeAgent, field: str,
                                                                 value: Any, code: int) -> None:
    error = runtime.call("ADD", {**runtime.plugins[0], field: value}, CONTAINER, NETNS, "eth0").error
    assert error["code"] == code
    assert field.split(".")[0] in error["msg"]
    assert "found: " in error["msg"]
    assert error["details"]
    assert not agent.asked


def test_version(folder: Path) -> None:
    for text, version in (('{"cniVersion": "1.0.0"}', "1.0.0"), ("", "1.1.0"), ('{"cniVersion": "0.2.0"}', "0.2.0")):
        assert bare(folder, text, CNI_COMMAND="VERSION").result == {
            "cniVersion": version, "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}
    assert bare(folder, "{", CNI_COMMAND="VERSION").error["code"] == 6


def test_check_without_result_or_ready_port(runtime: Runtime, agent: FakeAgent, said: Agent) -> None:
    assert runtime.check(CONTAINER, NETNS).error["code"] == 7
    runtime.add(CONTAINER, NETNS)
    said.answers["check"] = {"ok": {**FOUND, "ready": False, "error": "its namespace is gone"}}
    error = runtime.check(CONTAINER, NETNS).error
    assert error["code"] == 106
    assert "its namespace is gone" in error["msg"]
    said.answers["check"] = {"ok": {**FOUND, "ready": True, "error": ""}}
    error = runtime.check(CONTAINER, NETNS).error                   # the agent is wrong: there is no such namespace
    assert error["code"] == 106
    assert "No such file" in error["msg"]


def test_install(tmp_path: Path) -> None:
    def said(*words: str) -> Said:
        done = subprocess.run([sys.executable, "-m", "runtimes.cni", *words], capture_output=True, text=True,
                              check=False, stdin=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
        return Said(done.returncode, done.stdout, done.stderr)

    program = tmp_path / "sluice-cni"
    for _ in range(2):
        assert said("install", str(tmp_path)).out == f"{program}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["sluice-cni"]
    refused = said("install", str(tmp_path / "none"))
    assert refused.status == 1
    assert "give a folder that is there" in refused.err
    assert said("remove").status == 2
    alone = said()                          # nobody's runtime: the spec's own error says what it is for
    assert alone.error["code"] == 4
    assert "sluice-cni install DIR" in alone.error["details"]


def test_it_starts_without_what_makes_python_slow(folder: Path, runtime: Runtime, agent: FakeAgent) -> None:


    config = {**runtime.plugins[0], "cniVersion": "1.1.0", "name": "red"}
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": NETNS, "CNI_IFNAME": "eth0"}
    done = subprocess.run([sys.executable, "-ISX", "importtime", str(folder / "sluice-cni")], input=json.dumps(config),
                          capture_output=True, text=True, check=True, env=variables)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "runtimes.cni.commands" in imported
    assert not imported & {"re", "json", "enum", "typing", "dataclasses", "socket", "pathlib", "ipaddress", "site"}
