"""Docker's plug-in beside a fake agent: networks made and joined, addresses, published ports, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from runtimes.docker.agent import Agent
from runtimes.docker.plugin import Plugin
from runtimes.docker.state import State
from runtimes.local import LocalError
from tests.unit.docker_kit_agent import FakeAgent

NETWORK, OTHER, ENDPOINT = "a1" * 32, "b2" * 32, "c3" * 32
PORTMAP, GENERIC = "com.docker.network.portmap", "com.docker.network.generic"
CALL_S = 1.0


class Daemon:
    """Docker, as far as the plug-in sees it. A word that names a method is a call: `await daemon.Join(...)`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agent = FakeAgent(folder / "agent.sock")
        self.driver = "nat"
        self.restart()

    def restart(self) -> None:
        """Another process of the plug-in."""
        self.plugin = Plugin(Agent(str(self.agent.path)), State(self.folder / "docker.json"), CALL_S)

    async def say(self, method: str, **request: Any) -> dict[str, Any]:
        status, answer = await self.plugin.answer(self.driver, f"/{method}", request)
        assert status == 200
        return answer

    async def ok(self, method: str, **request: Any) -> dict[str, Any]:
        answer = await self.say(method, **request)
        assert "Err" not in answer, answer
        return answer

    async def refused(self, method: str, **request: Any) -> str:
        answer = await self.say(method, **request)
        assert answer["Err"] == answer["Error"]
        return str(answer["Err"])

    async def create(self, *prefixes: str, id: str = NETWORK, space: str = "LocalDefault", internal: bool = False,
                     aux: dict[str, str] | None = None, **options: str) -> dict[str, Any]:
        data = [{"AddressSpace": space, "Pool": each, "AuxAddresses": {} if ":" in each else aux or {},
                 "Gateway": each.replace("0/", "1/") if ":" not in each else each.replace("::/", "::1/")}
                for each in prefixes]
        generic = {name.replace("__", "."): value for name, value in options.items()}
        return await self.say(
            "NetworkDriver.CreateNetwork", NetworkID=id,
            Options={GENERIC: generic, "com.docker.network.internal": internal},
            IPv4Data=[each for each in data if ":" not in each["Pool"]],
            IPv6Data=[each for each in data if ":" in each["Pool"]])

    async def endpoint(self, address: str = "", address6: str = "", endpoint: str = ENDPOINT, network: str = NETWORK,
                       mac: str = "", **options: Any) -> dict[str, Any]:
        return await self.say(
            "NetworkDriver.CreateEndpoint", NetworkID=network, EndpointID=endpoint, Options=options,
            Interface={"Address": address, "AddressIPv6": address6, "MacAddress": mac})

    async def publish(self, *ports: tuple[int, int, int, int, str], endpoint: str = ENDPOINT,
                      network: str = NETWORK) -> dict[str, Any]:
        """Ports as (protocol, inner, first outer, last outer, address)."""
        rows = [{"Proto": proto, "IP": "", "Port": inner, "HostIP": address, "HostPort": first, "HostPortEnd": last}
                for proto, inner, first, last, address in ports]
        return await self.say("NetworkDriver.ProgramExternalConnectivity", NetworkID=network, EndpointID=endpoint,
                              Options={PORTMAP: rows})

    def mapped(self, endpoint: str = ENDPOINT) -> set[tuple[str, int, int, str]]:
        return {(each["protocol"], each["externalPort"], each["internalPort"], each["externalAddress"])
                for each in self.agent.attachments["docker", endpoint]["mappings"]}


Course = Callable[[Daemon], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Course], Daemon]:
    def run(course: Course) -> Daemon:
        async def whole() -> Daemon:
            daemon = Daemon(tmp_path)
            await daemon.agent.start()
            try:
                await course(daemon)
            finally:
                await daemon.agent.stop()
            return daemon

        return asyncio.run(whole())

    return run


Play = Callable[[Course], Daemon]


def test_a_nat_network_is_made_of_what_docker_says(play: Play) -> None:
    async def course(daemon: Daemon) -> None:
        assert await daemon.create("192.168.250.0/24", "fd00:250::/64", aux={"printer": "192.168.250.9/24"},
                                   mtu="1400", label__tier="web", qos__egress="100mbit") == {}
        assert await daemon.create("192.168.250.0/24") == {}     # an answer that was lost

    daemon = play(course)
    (network,) = daemon.agent.networks.values()
    assert (network.name, network.labels) == (f"docker-{NETWORK[:12]}", {"tier": "web"})
    assert network.spec == {
        "mode": "nat", "host": "h1", "mtu": 1400, "qos": {"egress": {"rate": "100mbit"}}, "nat": {"ipv6": "masquerade"},
        "subnets": [{"prefix": "192.168.250.0/24", "gateway": "192.168.250.1", "exclude": ["192.168.250.9"]},
                    {"prefix": "fd00:250::/64", "gateway": "fd00:250::1"}]}
    assert daemon.agent.ops().count("network-create") == 1


@pytest.mark.parametrize(("driver", "options", "internal", "words"), [
    ("nat", {"foo": "bar"}, False, ("foo: no such option", "there are mode, network")),
    ("nat", {"uplnk": "lan0"}, False, ("did you mean uplink?",)),
    ("nat", {"mode": "overlay"}, False, ("mode", "-d sluice -o mode=overlay")),
    ("sluice", {}, False, ("mode", "-o mode=overlay")),
    ("sluice", {"mode": "bridge"}, False, ("mode: no such mode (found: bridge)", "l2bridge")),
    ("sluice", {"network": "blue"}, False, ("blue is not there", "-o network=NAME")),
    ("sluice", {"network": "red", "mode": "nat"}, False, ("mode overlay", "found: nat")),
    ("sluice", {"network": "red"}, False, ("subnet: network red has 10.1.0.0/24", "--subnet 10.1.0.0/24",
                                           "--ipam-driver sluice --ipam-opt network=red")),
    ("sluice", {"mode": "overlay", "network": "blue", "egress": "nat"}, True, ("egress", "--internal")),
    ("nat", {"vni": "many"}, False, ("vni: not a number (found: many)",)),
    ("nat", {"isolation": "maybe"}, False, ("isolation: not true or false",)),
    ("nat", {"com__docker__network__driver__mtu": "1400", "mtu": "1500"}, False, ("mtu is given twice",)),
    ("nat", {"com__docker__network__bridge__name": "br0"}, False, ("no such option",)),
])
def test_networks_that_are_refused(play: Play, driver: str, options: dict[str, str], internal: bool,
                                   words: tuple[str, ...]) -> None:
    async def course(daemon: Daemon) -> None:
        daemon.agent.declare("red", "overlay", "10.1.0.0/24")
        daemon.driver = driver
        told = (await daemon.create("172.18.0.0/16", internal=internal, **options))["Err"]
        assert all(word in told for word in words), told

    daemon = play(course)
    assert set(daemon.agent.networks) == {("default", "red")}
    assert not list(State(daemon.folder / "docker.json"))


def test_a_network_is_joined_and_left(play: Play) -> None:
    async def course(daemon: Daemon) -> None:
        red = daemon.agent.declare("red", "overlay", "10.1.0.0/24", "fd00:1::/64")
        daemon.driver = "sluice"
        assert await daemon.create("10.1.0.0/24", aux={"vip": "10.1.0.9/24"}, network="red", mode="overlay") == {}
        assert red.joined == {NETWORK}
        assert ("default", "red", "10.1.0.9") in daemon.agent.reserved
        assert (await daemon.endpoint("10.1.0.2/24"))["Interface"].keys() == {"MacAddress"}
        await daemon.ok("NetworkDriver.DeleteNetwork", NetworkID=NETWORK)
        await daemon.ok("NetworkDriver.DeleteNetwork", NetworkID=NETWORK)

    daemon = play(course)
    assert set(daemon.agent.networks) == {("default", "red")}       # somebody else's
    assert not daemon.agent.reserved
    assert not daemon.agent.attachments                             # what Docker had forgotten went with it


@pytest.mark.parametrize(("options", "words"), [
    ({"vni": "5001", "isolation": "false", "egress": "none", "mtu": "auto", "qos__egress": "1gbit"}, ""),
    ({"vni": "5002"}, "vni: network red is there, and has 5001 here (found: 5002)"),
    ({"mtu": "1400"}, "mtu: network red is there, and has auto here"),
    ({"qos__egress": "2gbit"}, "qos.egress.rate"), ({"isolation": "true"}, "isolation"), ({"egress": "nat"}, "egress"),
])
def test_who_joins_says_the_same_or_nothing(play: Play, options: dict[str, str], words: str) -> None:
    """The second daemon is given the same command as the first."""
    async def course(daemon: Daemon) -> None:
        red = daemon.agent.declare("red", "overlay", "10.1.0.0/24")
        red.spec = {"vni": 5001, "qos": {"egress": {"rate": "1gbit", "burst": "64kb"}}}
        daemon.driver = "sluice"
        answer = await daemon.create("10.1.0.0/24", network="red", mode="overlay", **options)
        assert (words in answer["Err"]) if words else answer == {}, answer
        assert red.joined == (set() if words else {NETWORK})

    play(course)


def test_a_daemon_that_is_late_joins(play: Play) -> None:
    """Two hosts make the overlay at the same time: the second is told that it exists, and joins."""
    async def course(daemon: Daemon) -> None:
        real = daemon.agent.op_network_create

        def late(**given: Any) -> dict[str, Any]:
            daemon.agent.declare("red", "overlay", "10.1.0.0/24")
            daemon.agent.op_network_create = real       # type: ignore[method-assign]
            raise LocalError("exists", "network red is there")

        daemon.agent.op_network_create = late           # type: ignore[method-assign, assignment]
        daemon.driver = "sluice"
        assert await daemon.create("10.1.0.0/24", mode="overlay", network="red") == {}
        assert daemon.agent.networks["default", "red"].joined == {NETWORK}

    play(course)


def test_a_container_without_a_way_out_gets_routes_and_no_gateway(play: Play) -> None:
    async def course(daemon: Daemon) -> None:
        daemon.driver = "sluice"
        await daemon.create("10.1.0.0/24", "10.2.0.0/24", mode="overlay", network="red")
        await daemon.endpoint("10.1.0.2/24")
        answer = await daemon.ok("NetworkDriver.Join", NetworkID=NETWORK, EndpointID=ENDPOINT, SandboxKey="/x")
        assert "Gateway" not in answer
        assert answer["StaticRoutes"] == [{"Destination": "10.2.0.0/24", "RouteType": 0, "NextHop": "10.1.0.1"}]
        assert answer["DisableGatewayService"]

    play(course)


@pytest.mark.parametrize(("mode", "options", "internal", "gateway"), [
    ("nat", {}, False, True), ("nat", {}, True, False), ("nat", {"gateway": "no"}, False, False),
    ("overlay", {"egress": "nat"}, False, True), ("overlay", {}, False, False),
    ("overlay", {"gateway": "yes"}, False, True), ("private", {}, False, False), ("transparent", {}, False, True),
])
def test_which_networks_take_the_default_route(play: Play, mode: str, options: dict[str, str], internal: bool,
                                               gateway: bool) -> None:
    async def course(daemon: Daemon) -> None:
        daemon.driver = "sluice"
        await daemon.create("10.1.0.0/24", "fd00:1::/64", internal=internal, mode=mode, **options)
        daemon.restart()
        await daemon.endpoint("10.1.0.2/24", "fd00:1::2/64")
        daemon.restart()
        answer = await daemon.ok("NetworkDriver.Join", NetworkID=NETWORK, EndpointID=ENDPOINT, SandboxKey="/x")
        assert answer.get("Gateway") == ("10.1.0.1" if gateway else None)
        assert answer.get("GatewayIPv6") == ("fd00:1::1" if gateway else None)
        assert answer["DisableGatewayService"] is not gateway

    play(course)


def test_endpoint_options_and_what_is_refused(play: Play) -> None:
    async def course(daemon: Daemon) -> None:
        await daemon.create("10.1.0.0/24")
        told = (await daemon.endpoint("10.1.0.2/24", colour="red"))["Err"]
        assert "colour: no such endpoint option" in told
        assert "label.KEY" in told
        assert "CreateNetwork" not in (await daemon.endpoint("10.1.0.2/24", network=OTHER))["Err"]
        daemon.agent.networks["default", f"docker-{NETWORK[:12]}"].elsewhere["10.1.0.3"] = "h2"
        told = (await daemon.endpoint("10.1.0.3/24"))["Err"]
        assert "--ipam-driver sluice --ipam-opt network=" in told
        assert not daemon.agent.attachments
        await daemon.endpoint("10.1.0.2/24", mac="02:00:00:00:00:07", **{
            "label.app": "web", "qos.ingress": "1gbit", "name": "front", "com.docker.network.endpoint.dnsservers": []})

    daemon = play(course)
    row = daemon.agent.attachments["docker", ENDPOINT]
    assert (row["name"], row["labels"], row["qos"], row["mac"], row["scope"]) == (
        "front", {"app": "web"}, {"ingress": {"rate": "1gbit"}}, "02:00:00:00:00:07", NETWORK)


def test_the_port_has_what_docker_left_open(play: Play) -> None:
    """IPAM driver `null`: addresses are the network's to choose."""
    async def course(daemon: Daemon) -> None:
        daemon.agent.declare("red", "overlay", "10.1.0.0/24")
        daemon.driver = "sluice"
        assert await daemon.create("0.0.0.0/0", network="red") == {}
        answer = await daemon.endpoint()
        assert answer["Interface"]["Address"] == "10.1.0.2/24"
        assert answer["Interface"]["MacAddress"].startswith("02:")

    play(course)


def test_published_ports_in_all_forms(play: Play) -> None:
    async def course(daemon: Daemon) -> None:
        await daemon.create("10.1.0.0/24")
        await daemon.endpoint("10.1.0.2/24")
        daemon.agent.busy_ports |= {9000, 9001}
        assert await daemon.publish((6, 80, 8080, 8080, ""), (17, 53, 53, 53, "127.0.0.1"), (6, 90, 9000, 9005, ""),
                                    (6, 77, 0, 0, ""), (132, 5, 5, 5, "0.0.0.0"), (6, 80, 8080, 8080, "")) == {}
        assert daemon.mapped() == {
            ("tcp", 8080, 80, "0.0.0.0"), ("udp", 53, 53, "127.0.0.1"), ("tcp", 9002, 90, "0.0.0.0"),
            ("tcp", 10000, 77, "0.0.0.0"), ("sctp", 5, 5, "0.0.0.0")}
        daemon.restart()                    # who revokes need not be who published
        await daemon.ok("NetworkDriver.RevokeExternalConnectivity", NetworkID=NETWORK, EndpointID=ENDPOINT)
        assert not daemon.mapped()

    play(course)


def test_ports_of_a_container_with_both_families(play: Play) -> None:
    async def course(daemon: Daemon) -> None:
        await daemon.create("10.1.0.0/24", "fd00:1::/64")
        await daemon.endpoint("10.1.0.2/24", "fd00:1::2/64")
        assert await daemon.publish((6, 80, 8080, 8080, ""), (6, 77, 0, 0, ""), (6, 78, 78, 78, "0.0.0.0")) == {}
        assert daemon.mapped() == {
            ("tcp", 8080, 80, "0.0.0.0"), ("tcp", 8080, 80, "::"), ("tcp", 10000, 77, "0.0.0.0"),
            ("tcp", 10000, 77, "::"), ("tcp", 78, 78, "0.0.0.0")}

    play(course)


def test_ports_are_told_once_and_used_later(play: Play) -> None:
    """Whichever of the three calls brings the port map, it is in force after ProgramExternalConnectivity."""
    async def course(daemon: Daemon) -> None:
        rows = [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}]
        await daemon.create("10.1.0.0/24")
        for number, (first, second) in enumerate((({PORTMAP: rows}, {}), ({}, {PORTMAP: rows}))):
            where = {"NetworkID": NETWORK, "EndpointID": str(number) * 64}
            await daemon.endpoint(f"10.1.0.{10 + number}/24", endpoint=where["EndpointID"], **first)
            await daemon.ok("NetworkDriver.Join", **where, SandboxKey="/x", Options=second)
            await daemon.ok("NetworkDriver.ProgramExternalConnectivity", **where, Options={})
            assert daemon.mapped(where["EndpointID"]) == {("tcp", 8080, 80, "0.0.0.0")}
            # As Docker 29 does after a crash: without Revoke.
            await daemon.ok("NetworkDriver.Leave", **where)
            await daemon.ok("NetworkDriver.DeleteEndpoint", **where)
            await daemon.ok("NetworkDriver.DeleteEndpoint", **where)
            await daemon.ok("NetworkDriver.RevokeExternalConnectivity", **where)

    assert not play(course).agent.attachments


def test_ports_that_cannot_be_published_leave_nothing(play: Play) -> None:
    async def course(daemon: Daemon) -> None:
        await daemon.create("10.1.0.0/24")
        await daemon.endpoint("10.1.0.2/24")
        daemon.agent.busy_ports |= {8080, *range(9000, 9003)}
        assert "8080" in (await daemon.publish((6, 80, 8080, 8080, "")))["Err"]
        told = (await daemon.publish((6, 81, 8081, 8081, ""), (6, 90, 9000, 9002, "")))["Err"]
        assert "no port from 9000 to 9002 is free" in told
        assert "protocol cannot be published" in (await daemon.publish((1, 80, 80, 80, "")))["Err"]
        assert "not an address" in (await daemon.publish((6, 80, 80, 80, "lan")))["Err"]
        assert not daemon.mapped()
        daemon.driver = "transparent"
        await daemon.create("10.2.0.0/24", id=OTHER)
        await daemon.endpoint("10.2.0.2/24", network=OTHER, endpoint="d" * 64)
        told = (await daemon.publish((6, 80, 80, 80, ""), network=OTHER, endpoint="d" * 64))["Err"]
        assert "mode transparent" in told
        assert "leave -p out" in told

    play(course)


def test_what_the_agent_knows_better(play: Play) -> None:
    """The plug-in's file is lost: the agent knows which network is which."""
    async def course(daemon: Daemon) -> None:
        await daemon.create("10.1.0.0/24")
        (daemon.folder / "docker.json").write_text("{damaged")
        daemon.restart()
        assert (daemon.folder / "docker.damaged").exists()
        assert "Err" not in await daemon.endpoint("10.1.0.2/24")
        told = await daemon.refused("NetworkDriver.CreateEndpoint", NetworkID=OTHER, EndpointID=ENDPOINT)
        assert "docker network rm" in told

    play(course)


@pytest.mark.parametrize("failing", ["network-create", "hello"])
def test_an_agent_that_fails_leaves_no_network(play: Play, failing: str) -> None:
    async def course(daemon: Daemon) -> None:
        daemon.agent.fail[failing] = LocalError("unavailable", "the controller is away", todo="start it")
        told = (await daemon.create("10.1.0.0/24"))["Err"]
        assert told == "the controller is away; start it"

    daemon = play(course)
    assert not list(State(daemon.folder / "docker.json"))


def test_a_hung_agent_does_not_hang_docker(play: Play) -> None:
    async def course(daemon: Daemon) -> None:
        daemon.agent.hang.add("hello")
        told = (await daemon.create("10.1.0.0/24"))["Err"]
        assert f"more than {CALL_S:g} s" in told
        assert not list(State(daemon.folder / "docker.json"))

    play(course)
