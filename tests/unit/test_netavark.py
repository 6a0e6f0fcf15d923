"""`sluice-netavark` as Podman and netavark call it: the launcher, JSON both ways, errors as the protocol has them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from local_fake_kit import LocalAgent, Refuses, attachment, local_agent

from runtimes.local import LocalError
from runtimes.netavark.install import install
from runtimes.netavark.networks import DRIVERS

NETWORK_ID = "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9"
CONTAINER_ID = "752947ff91f961eb3cb47ffe9315016979f3ffbec09e4d96a4fae3fb03391697"
OTHER_ID = "0" * 64
Json = dict[str, Any]


class Said(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Netavark:
    """What the two programs do with a plug-in: its file's name is the driver, its words are the subcommand."""

    def __init__(self, folder: Path, answer: Callable[[str, Json], Json]) -> None:
        self.folder = folder / "plugins"
        self.folder.mkdir()
        install(self.folder)
        self.answers: dict[str, Callable[[Json], Json]] = {}
        self.stack = ExitStack()
        self.agent: LocalAgent = self.stack.enter_context(local_agent(folder / "s", self._answer))
        self._default = answer

    def _answer(self, op: str, asked: Json) -> Json:
        own = self.answers.get(op)
        return own(asked) if own is not None else self._default(op, asked)

    def call(self, *words: str, driver: str = "sluice", given: Any = None) -> Said:
        text = given if isinstance(given, str) else json.dumps(given)
        done = subprocess.run([self.folder / driver, *words], input=text, capture_output=True, text=True, timeout=30,
                              check=False, env={"PATH": "/usr/bin", "SLUICE_AGENT": str(self.agent.path)})
        return Said(done.returncode, done.stdout, done.stderr)

    def create(self, driver: str = "sluice", **fields: Any) -> Json:
        said = self.call("create", driver=driver, given=network(driver, **fields))
        assert said.status == 0, said
        return as_network(said.json)

    def refused(self, *words: str, given: Any, driver: str = "sluice") -> str:
        """What Podman shows."""
        said = self.call(*words, given=given, driver=driver)
        assert said.status == 1, said
        assert list(said.json) == ["error"]
        text: str = said.json["error"]
        assert "\n" not in text
        return text

    def asked(self, op: str) -> list[Json]:
        return [asked for name, asked in self.agent.asked if name == op]


THERE = {"red": {"mode": "overlay", "subnets": [{"prefix": "10.1.0.0/24", "gateway": "10.1.0.1"},
                                                {"prefix": "fd00:1::/64", "gateway": "fd00:1::1"}]}}


def world(op: str, asked: Json) -> Json:
    """An agent with one network that was declared before."""
    match op:
        case "hello":
            return {"host": "h1", "controller": "connected", "version": "1"}
        case "network":
            if asked["network"] not in THERE:
                raise Refuses("not_found", "there is no such network", "network", asked["network"], "declare it")
            return view(asked["network"], THERE[asked["network"]])
        case "network-create":
            there = THERE.get(asked["network"])
            return view(asked["network"], there or asked["spec"]) | {"created": there is None}
        case "networks":
            return {"networks": [{"runtime": "netavark", "id": NETWORK_ID, "name": "podman-2f259bab93aa",
                                  "tenant": "default"}]}
        case "network-delete" | "detach":
            return {"existed": True, "deleted": True}
        case "list":
            return {"attachments": []}
    return attachment(op, asked)


def view(name: str, spec: Any) -> Json:
    rows = []
    for each in spec["subnets"]:
        prefix = "192.168.77.0/24" if each["prefix"] == "auto" else each["prefix"]
        rows.append({"prefix": prefix, "gateway": each.get("gateway") or str(ip_network(prefix)[1])})
    return {"uid": "u1", "name": name, "tenant": "default", "mode": spec["mode"], "mtu": 1500, "subnets": rows,
            "host": "h1", "leased": 0}


@pytest.fixture
def netavark(tmp_path: Path) -> Iterator[Netavark]:
    made = Netavark(tmp_path, world)
    with made.stack:
        yield made


def network(driver: str = "sluice", **fields: Any) -> Json:
    """As Podman 4.9 and 5 send it to `create`."""
    return {"name": "web", "id": NETWORK_ID, "driver": driver, "created": "2026-01-01T00:00:00Z", "ipv6_enabled": False,
            "internal": False, "dns_enabled": True, "ipam_options": {}} | fields


def container(**fields: Any) -> Json:
    """As netavark sends it to `setup` and `teardown`; keys with a point are fields of parts."""
    own = {"aliases": ["752947ff91f9"], "interface_name": "eth0", "static_ips": None, "static_mac": None,
           "options": None}
    of = network(options={"network": "front", "tenant": "acme", "mode": "nat"}, dns_enabled=False, routes=None,
                 subnets=[{"subnet": "10.1.0.0/24", "gateway": "10.1.0.1", "lease_range": None}],
                 ipam_options={"driver": "none"}, network_dns_servers=None)
    given: Json = {"container_id": CONTAINER_ID, "container_name": "web", "port_mappings": None, "network": of,
                   "network_options": own}
    for name, value in fields.items():
        part, _, field = name.partition("__")
        given[part] = given[part] | {field: value} if field else value
    return given


def as_network(found: Json) -> Json:
    """Checked as netavark's types read it (src/network/types.rs): what is no Option must be there."""
    for field, kind in (("dns_enabled", bool), ("driver", str), ("id", str), ("internal", bool), ("ipv6_enabled", bool),
                        ("name", str)):
        assert type(found[field]) is kind, field
    for field in ("options", "ipam_options"):
        assert all(isinstance(text, str) for pair in found[field].items() for text in pair)
    for subnet in found["subnets"]:
        assert ip_address(subnet["gateway"]) in ip_network(subnet["subnet"])
    return found


def as_status(found: Json) -> Json:
    """A StatusBlock, checked likewise; its one interface."""
    assert set(found) <= {"dns_search_domains", "dns_server_ips", "interfaces"}
    ((name, interface),) = found["interfaces"].items()
    assert isinstance(interface["mac_address"], str)
    for subnet in interface["subnets"]:
        whole = ip_interface(subnet["ipnet"]).network
        assert "gateway" not in subnet or ip_address(subnet["gateway"]) in whole
    return {"name": name, **interface}


def test_info(netavark: Netavark) -> None:
    for words in (("info",), ()):
        assert netavark.call(*words).json.keys() == {"version", "api_version"}
        assert netavark.call(*words).json["api_version"] == "1.0.0"
    assert "teardown NETNS" in netavark.call("--help").out


def test_a_network_is_made_and_its_addresses_are_nobodys_but_ours(netavark: Netavark) -> None:
    kept = netavark.create("nat", subnets=[{"subnet": "10.9.0.0/16", "gateway": "10.9.0.9", "lease_range": {
        "start_ip": "10.9.1.0", "end_ip": ""}}], labels={"a": "b"})
    (made,) = netavark.asked("network-create")
    assert made == {
        "runtime": "netavark", "id": NETWORK_ID, "network": "podman-2f259bab93aa", "tenant": "default",
        "spec": {"mode": "nat", "host": "h1", "subnets": [
            {"prefix": "10.9.0.0/16", "gateway": "10.9.0.9", "allocate": ["10.9.1.0-10.9.255.254"]}]},
        "labels": {"io.podman.network": "web"}}
    assert kept["ipam_options"] == {"driver": "none"}           # Podman hands out none
    assert kept["options"] == {"network": "podman-2f259bab93aa", "tenant": "default", "mode": "nat"}
    assert kept["dns_enabled"] is False
    assert kept["subnets"] == [{"subnet": "10.9.0.0/16", "gateway": "10.9.0.9",
                                "lease_range": {"start_ip": "10.9.1.0", "end_ip": ""}}]
    assert {name: kept[name] for name in ("name", "id", "driver", "labels", "created")} == {
        "name": "web", "id": NETWORK_ID, "driver": "nat", "labels": {"a": "b"}, "created": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(("driver", "fields", "spec"), [
    ("sluice", {"options": {"mode": "nat"}}, {"mode": "nat", "host": "h1", "subnets": [{"prefix": "auto"}]}),
    ("nat", {"options": {"mtu": "1400", "qos.egress": "1gbit"}},
     {"mode": "nat", "host": "h1", "subnets": [{"prefix": "auto"}], "mtu": 1400, "qos": {"egress": {"rate": "1gbit"}}}),
    ("nat", {"internal": True}, {"mode": "private", "host": "h1", "subnets": [{"prefix": "auto"}]}),
    ("overlay", {"options": {"network": "blue", "vni": "7001"}, "subnets": [{"subnet": "10.3.0.0/24"}]},
     {"mode": "overlay", "subnets": [{"prefix": "10.3.0.0/24"}], "vni": 7001}),
    ("transparent", {"network_interface": "eth9", "subnets": [{"subnet": "10.3.0.5/24"}]},
     {"mode": "transparent", "host": "h1", "subnets": [{"prefix": "10.3.0.0/24"}], "uplink": "eth9"}),
    ("l2bridge", {"options": {"network": "lan", "parent": "eth9"}, "subnets": [{"subnet": "10.3.0.0/24"}]},
     {"mode": "l2bridge", "subnets": [{"prefix": "10.3.0.0/24"}], "uplink": "eth9"}),
    ("nat", {"ipv6_enabled": True}, {"mode": "nat", "host": "h1", "nat": {"ipv6": "masquerade"}, "subnets": [
        {"prefix": "auto"}, {"prefix": "fd00:51::/64"}]}),
    ("nat", {"ipv6_enabled": True, "subnets": [{"subnet": "fd00:9::/64"}]}, {
        "mode": "nat", "host": "h1", "nat": {"ipv6": "masquerade"}, "subnets": [{"prefix": "fd00:9::/64"}]}),
])
def test_what_people_say_makes_the_network(netavark: Netavark, driver: str, fields: Json, spec: Json) -> None:
    kept = netavark.create(driver, **fields)
    assert netavark.asked("network-create")[0]["spec"] == spec
    assert kept["ipv6_enabled"] == any(":" in each["prefix"] for each in spec["subnets"])


def test_a_network_that_is_there_is_joined(netavark: Netavark) -> None:
    kept = netavark.create(options={"network": "red", "tenant": "acme"})
    assert netavark.asked("network")[0] == {"network": "red", "tenant": "acme"}
    assert netavark.asked("network-create")[0] == {
        "runtime": "netavark", "id": NETWORK_ID, "network": "red", "tenant": "acme"}
    assert [each["subnet"] for each in kept["subnets"]] == ["10.1.0.0/24", "fd00:1::/64"]
    assert kept["options"] == {"network": "red", "tenant": "acme", "mode": "overlay"}
    assert kept["ipv6_enabled"] is True
    netavark.create("overlay", options={"network": "red", "vni": "5001"}, subnets=[{"subnet": "10.1.0.0/24"}])
    assert netavark.asked("network-create")[1]["spec"] == {
        "mode": "overlay", "vni": 5001, "subnets": [{"prefix": "10.1.0.0/24"}]}


@pytest.mark.parametrize(("driver", "fields", "texts"), [
    ("sluice", {}, ("mode", "-o mode=nat")),
    ("sluice", {"options": {"network": "blue"}}, ("network blue is not there", "-o mode=nat")),
    ("sluice", {"options": {"mode": "bridge"}}, ("mode", "bridge", "overlay")),
    ("sluice", {"options": {"mdoe": "nat"}}, ("mdoe", "did you mean mode")),
    ("nat", {"options": {"mode": "overlay"}}, ("mode", "-d overlay")),
    ("nat", {"options": {"network": "red"}}, ("mode", "with mode overlay")),
    ("sluice", {"options": {"network": "red"}, "subnets": [{"subnet": "10.2.0.0/24"}]}, ("--subnet", "10.2.0.0/24")),
    ("sluice", {"options": {"network": "red"}, "subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.9"}]},
     ("--gateway", "10.1.0.9")),
    ("nat", {"ipam_options": {"driver": "dhcp"}}, ("--ipam-driver", "dhcp")),
    ("nat", {"routes": [{"destination": "10.0.0.0/8", "gateway": "10.1.0.9"}]}, ("--route", "sluice apply")),
    ("nat", {"network_dns_servers": ["1.1.1.1"]}, ("--dns", "podman run")),
    ("nat", {"network_interface": "eth9"}, ("--interface-name", "eth9")),
    ("transparent", {"network_interface": "eth9", "options": {"uplink": "eth8"}}, ("--interface-name", "eth8")),
    ("overlay", {"internal": True, "options": {"egress": "nat"}}, ("egress", "--internal")),
    ("nat", {"subnets": [{"subnet": "10.1.0"}]}, ("subnet", "10.1.0")),
    ("nat", {"subnets": [{"subnet": "10.1.0.0/24", "gateway": "x"}]}, ("gateway", "'x'")),
    ("nat", {"subnets": [{"subnet": "10.1.0.0/24", "lease_range": {"start_ip": "y"}}]}, ("lease_range", "'y'")),
    ("nat", {"subnets": "10.1.0.0/24"}, ("subnets", "list")),
    ("nat", {"options": {"mtu": 1400}}, ("mtu", "1400")),
    ("nat", {"id": 7}, ("id", "7")),
    ("nat", {"name": None}, ("name", "nothing")),
])
def test_networks_that_are_refused(netavark: Netavark, driver: str, fields: Json, texts: tuple[str, ...]) -> None:
    said = netavark.refused("create", given=network(driver, **fields), driver=driver)
    for text in texts:
        assert text in said
    assert netavark.asked("network-create") == []


def test_a_container_is_attached(netavark: Netavark) -> None:
    said = netavark.call("setup", "/run/netns/netns-1", given=container(
        port_mappings=[
            {"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 1},
            {"container_port": 53, "host_ip": "127.0.0.1", "host_port": 53, "protocol": "udp,tcp", "range": 2},
            {"container_port": 90, "host_ip": "", "host_port": 0, "protocol": "", "range": 0}],
        network_options__static_ips=["10.1.0.50"], network_options__static_mac="02:bb:cc:dd:aa:00",
        network_options__options={"label.app": "web", "qos.ingress": "10mbit"}))
    assert said.status == 0, said
    (asked,) = netavark.asked("attach")
    assert asked == {
        "runtime": "netavark", "id": f"{CONTAINER_ID}/{NETWORK_ID}/eth0", "scope": NETWORK_ID, "network": "front",
        "tenant": "acme", "netns": "/run/netns/netns-1", "interface": "eth0", "name": "web-752947ff91f9",
        "addresses": ["10.1.0.50"], "mac": "02:bb:cc:dd:aa:00", "labels": {"app": "web"},
        "qos": {"ingress": {"rate": "10mbit"}}, "mappings": [
            {"protocol": "tcp", "externalPort": 8080, "internalPort": 80},
            {"protocol": "udp", "externalPort": "53-54", "internalPort": "53-54", "externalAddress": "127.0.0.1"},
            {"protocol": "tcp", "externalPort": "53-54", "internalPort": "53-54", "externalAddress": "127.0.0.1"},
            {"protocol": "tcp", "externalPort": "auto", "internalPort": 90}]}
    assert as_status(said.json) == {"name": "eth0", "mac_address": "02:bb:cc:dd:aa:00", "subnets": [
        {"ipnet": "10.1.0.50/24", "gateway": "10.1.0.1"}]}


def test_little_is_enough(netavark: Netavark) -> None:
    """A network file that somebody wrote by hand; the rest is left to the agent."""
    given = container(network__options=None, container_name="My_App.1", network_options__interface_name="net1")
    del given["port_mappings"], given["network_options"]["options"]
    said = netavark.call("setup", "/run/netns/n", given=given)
    assert as_status(said.json)["name"] == "net1"
    (asked,) = netavark.asked("attach")
    assert (asked["network"], asked["tenant"], asked["name"]) == ("web", "default", "my-app-1-752947ff91f9-net1")
    assert asked.keys() == {"runtime", "id", "scope", "network", "tenant", "netns", "interface", "name"}
    assert netavark.asked("list") == []


def test_teardown_repeats_and_says_nothing(netavark: Netavark) -> None:
    for _ in range(2):
        assert netavark.call("teardown", "/run/netns/gone", given=container()) == (0, "", "")
    assert netavark.asked("detach") == [{"runtime": "netavark", "id": f"{CONTAINER_ID}/{NETWORK_ID}/eth0"}] * 2


PORTS = [{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 1}]


def test_ports_are_published_once_whatever_networks_a_container_has(netavark: Netavark) -> None:
    first = {"id": f"{CONTAINER_ID}/{OTHER_ID}/eth0", "netns": "/run/netns/n", "mappings": [{"externalPort": 8080}]}
    stranger = {"id": f"{OTHER_ID}/{NETWORK_ID}/eth0", "netns": "/run/netns/m", "mappings": [{"externalPort": 8081}]}
    netavark.answers["list"] = lambda asked: {"attachments": [stranger]}
    netavark.call("setup", "/run/netns/n", given=container(port_mappings=PORTS))
    netavark.answers["list"] = lambda asked: {"attachments": [stranger, first]}
    netavark.call("setup", "/run/netns/n", given=container(port_mappings=PORTS))
    said = netavark.call("setup", "/run/netns/n", given=container(
        port_mappings=PORTS, network__options={"network": "red", "mode": "overlay"}))
    assert "no ports are published for network web" in said.err
    assert ["mappings" in asked for asked in netavark.asked("attach")] == [True, False, False]


@pytest.mark.parametrize(("subnets", "host_ip", "outside"), [
    (["10.1.0.0/24"], "", [None]), (["10.1.0.0/24", "fd00::/64"], "", [None, "::"]), (["fd00::/64"], "", ["::"]),
    (["10.1.0.0/24", "fd00::/64"], "127.0.0.1", ["127.0.0.1"]), (["10.1.0.0/24", "fd00::/64"], "::1", ["::1"]),
    (["10.1.0.0/24", "fd00::/64"], "0.0.0.0", [None]), ([], "", [None]),
])
def test_ports_are_published_in_each_family(
    netavark: Netavark, subnets: list[str], host_ip: str, outside: list[str | None]
) -> None:
    given = container(port_mappings=[PORTS[0] | {"host_ip": host_ip}],
                      network__subnets=[{"subnet": each} for each in subnets])
    assert netavark.call("setup", "/run/netns/n", given=given).status == 0
    mappings = netavark.asked("attach")[0]["mappings"]
    assert [each.get("externalAddress") for each in mappings] == outside


def test_what_was_left_of_an_earlier_namespace_makes_room(netavark: Netavark) -> None:
    """Podman was killed, or the host booted: nobody tore the old one down, and the container comes with a new one."""
    left = [{"id": f"{CONTAINER_ID}/{NETWORK_ID}/eth0", "netns": "/run/netns/old", "mappings": []}]

    def attach(asked: Json) -> Json:
        if left:
            raise Refuses("exists", "attached already, with other netns", "netns", left[0]["netns"], "detach it first")
        return attachment("attach", asked)

    def detach(asked: Json) -> Json:
        left.clear()
        return {"existed": True}

    netavark.answers |= {"attach": attach, "detach": detach, "list": lambda asked: {"attachments": list(left)}}
    assert netavark.call("setup", "/run/netns/new", given=container()).status == 0
    left.append({"id": f"{CONTAINER_ID}/{NETWORK_ID}/eth0", "netns": "/run/netns/new", "mappings": []})
    said = netavark.refused("setup", "/run/netns/new", given=container())
    assert "attached already" in said                           # a second one into the same namespace
    assert left


@pytest.mark.parametrize(("fields", "texts"), [
    ({"container_id": ""}, ("container_id",)),
    ({"network": None}, ("network",)),
    ({"network_options": []}, ("network_options",)),
    ({"network_options__interface_name": None}, ("interface_name",)),
    ({"network_options__static_ips": ["10.1.0"]}, ("static_ips", "10.1.0")),
    ({"network_options__options": {"lable.app": "web"}}, ("lable.app", "label.KEY")),
    ({"port_mappings": [{"container_port": 80, "host_port": 8080, "protocol": "icmp"}]}, ("port_mappings", "icmp")),
    ({"port_mappings": [{"host_port": 8080}]}, ("container_port", "nothing")),
    ({"port_mappings": [{"container_port": 70000, "host_port": 1}]}, ("container_port", "70000")),
    ({"port_mappings": [{"container_port": 80, "host_port": 1, "host_ip": "x"}]}, ("host_ip", "'x'")),
    ({"port_mappings": {}}, ("port_mappings", "list")),
])
def test_containers_that_are_refused(netavark: Netavark, fields: Json, texts: tuple[str, ...]) -> None:
    said = netavark.refused("setup", "/run/netns/n", given=container(**fields))
    for text in texts:
        assert text in said
    assert netavark.asked("attach") == []


def test_the_agents_refusal_is_podmans_to_show(netavark: Netavark) -> None:
    def taken(asked: Json) -> Json:
        raise Refuses("taken", "it is that of acme/db", "addresses[0]", "10.1.0.50", "choose another, or none")

    netavark.answers["attach"] = taken
    said = netavark.refused("setup", "/run/netns/n", given=container())
    assert said == "addresses[0]: it is that of acme/db (found: 10.1.0.50); choose another, or none"


@pytest.mark.parametrize("given", ["", "{", "[]", "null", "7", "\x00", "[" * 100_000, " " * (1 << 20) + "{}"])
@pytest.mark.parametrize("words", [("create",), ("setup", "/run/netns/n"), ("teardown", "/run/netns/n")])
def test_what_is_no_object(netavark: Netavark, words: tuple[str, ...], given: str) -> None:
    assert "standard input" in netavark.refused(*words, given=given)
    assert netavark.agent.asked == []


@pytest.mark.parametrize(("words", "text"), [
    (("setup",), "path of the namespace"), (("teardown",), "path of the namespace"),
    (("update",), "unknown subcommand"),
    (("create", "x"), "unknown subcommand"), (("forget",), "unknown subcommand"),
])
def test_command_lines_that_are_none(netavark: Netavark, words: tuple[str, ...], text: str) -> None:
    assert text in netavark.refused(*words, given={})


def test_without_an_agent(netavark: Netavark) -> None:
    netavark.stack.close()
    netavark.agent.path.unlink(missing_ok=True)
    for words, given in ((("create",), network("nat")), (("setup", "/run/netns/n"), container()),
                         (("teardown", "/run/netns/n"), container())):
        said = netavark.refused(*words, given=given, driver="nat")
        assert "no agent answers" in said
        assert "sluice agent run" in said


def test_forgetting_a_network_that_podman_removed(netavark: Netavark) -> None:
    for name in (NETWORK_ID, NETWORK_ID[:12], "podman-2f259bab93aa", "default/podman-2f259bab93aa"):
        assert netavark.call("forget", name).out == "network default/podman-2f259bab93aa deleted\n"
    assert netavark.asked("network-delete") == [{"runtime": "netavark", "id": NETWORK_ID}] * 4
    for name in ("web", ""):
        assert "2f259bab93aa (default/podman-2f259bab93aa)" in netavark.refused("forget", name, given={})


def test_launchers_leave_others_alone(tmp_path: Path) -> None:
    assert [path.name for path in install(tmp_path)] == list(DRIVERS)
    assert [path.name for path in install(tmp_path)] == list(DRIVERS)
    (tmp_path / "overlay").write_text("#!/bin/sh\n")
    (tmp_path / "nat").unlink()
    with pytest.raises(LocalError, match="another plug-in has the name"):
        install(tmp_path)
    assert (tmp_path / "overlay").read_text() == "#!/bin/sh\n"
    assert not (tmp_path / "nat").exists()
    with pytest.raises(LocalError, match="give a folder that is there"):
        install(tmp_path / "none")


def test_only_the_standard_library_is_needed() -> None:
    """The launcher runs without site-packages."""
    code = "import sys; sys.path.insert(0, '.'); import runtimes.netavark.main"
    done = subprocess.run([sys.executable, "-IS", "-c", code], cwd=Path(__file__).parents[2], capture_output=True,
                          text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
