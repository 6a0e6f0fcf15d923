"""Our IPAM driver for Docker: pools that survive everybody, addresses of networks, and no loop of Docker's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from runtimes import free
from runtimes.docker.agent import Agent
from runtimes.docker.plugin import Plugin
from runtimes.docker.pools import OFFERS
from runtimes.docker.state import State
from tests.unit.docker_kit_agent import FakeAgent

GATEWAY = "com.docker.network.gateway"
ENDPOINT = "c3" * 32


class Ipam:
    def __init__(self, folder: Path) -> None:
        self.agent = FakeAgent(folder / "agent.sock")
        self.file = folder / "docker.json"
        self.restart()

    def restart(self) -> None:
        self.plugin = Plugin(Agent(str(self.agent.path)), State(self.file))

    async def say(self, method: str, **request: Any) -> dict[str, Any]:
        status, answer = await self.plugin.answer("sluice", f"/{method}", request)
        assert status == 200
        return answer

    async def pool(self, prefix: str = "", part: str = "", v6: bool = False, **options: str) -> dict[str, Any]:
        return await self.say("IpamDriver.RequestPool", AddressSpace="sluice", Pool=prefix, SubPool=part, V6=v6,
                              Options=options)

    async def address(self, pool: str, address: str = "", gateway: bool = False) -> dict[str, Any]:
        return await self.say("IpamDriver.RequestAddress", PoolID=pool, Address=address,
                              Options={"RequestAddressType": GATEWAY} if gateway else None)

    async def create(self, prefix: str, **options: str) -> dict[str, Any]:
        return await self.say(
            "NetworkDriver.CreateNetwork", NetworkID=f"{prefix}{options}".encode().hex(),
            Options={"com.docker.network.generic": {"mode": "overlay", **options}},
            IPv4Data=[{"AddressSpace": "sluice", "Pool": prefix, "Gateway": prefix.replace("0/", "1/")}], IPv6Data=[])


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Callable[[Ipam], Coroutine[Any, Any, None]]], Ipam]:
    def run(course: Callable[[Ipam], Coroutine[Any, Any, None]]) -> Ipam:
        async def whole() -> Ipam:
            ipam = Ipam(tmp_path)
            await ipam.agent.start()
            try:
                await course(ipam)
            finally:
                await ipam.agent.stop()
            return ipam

        return asyncio.run(whole())

    return run


Play = Callable[[Callable[[Ipam], Coroutine[Any, Any, None]]], Ipam]


def test_a_pool_of_a_declared_network(play: Play) -> None:
    async def course(ipam: Ipam) -> None:
        red = ipam.agent.declare("red", "overlay", "10.1.0.0/24", "fd00:1::/64")
        red.elsewhere["10.1.0.2"] = "another host's"
        found = await ipam.pool(network="red")
        assert (found["Pool"], found["Data"]) == ("10.1.0.0/24", {GATEWAY: "10.1.0.1/24"})
        six = await ipam.pool(v6=True, network="red")
        assert (six["Pool"], six["Data"]) == ("fd00:1::/64", {GATEWAY: "fd00:1::1/64"})
        ipam.restart()
        assert (await ipam.address(found["PoolID"]))["Address"] == "10.1.0.3/24"
        assert (await ipam.address(six["PoolID"]))["Address"] == "fd00:1::2/64"
        assert "taken" not in (await ipam.address(found["PoolID"], "10.1.0.3"))     # ours: a daemon that starts again
        assert "another endpoint's" in (await ipam.address(found["PoolID"], "10.1.0.2"))["Err"]
        assert "not of 10.1.0.0/24" in (await ipam.address(found["PoolID"], "10.2.0.2"))["Err"]
        assert "not an address" in (await ipam.address(found["PoolID"], "somewhere"))["Err"]
        four = found["PoolID"]
        for pool, address in ((four, "10.1.0.3"), (six["PoolID"], "fd00:1::2"), (four, "10.1.0.3")):
            assert await ipam.say("IpamDriver.ReleaseAddress", PoolID=pool, Address=address) == {}
        assert await ipam.say("IpamDriver.ReleasePool", PoolID=found["PoolID"]) == {}

    assert not play(course).agent.reserved


def test_a_pool_comes_before_its_network(play: Play) -> None:
    async def course(ipam: Ipam) -> None:
        pool = await ipam.pool("10.5.0.0/24", "10.5.0.128/25")
        again = await ipam.pool("10.5.0.0/24", "10.5.0.128/25")
        assert pool == again                # Docker asks again after a restart
        assert (await ipam.address(pool["PoolID"], gateway=True))["Address"] == "10.5.0.1/24"
        assert (await ipam.address(pool["PoolID"], "10.5.0.254", gateway=True))["Address"] == "10.5.0.254/24"
        assert (await ipam.address(pool["PoolID"], "10.5.0.9"))["Address"] == "10.5.0.9/24"      # --aux-address
        assert "no network here has the prefix" in (await ipam.address(pool["PoolID"]))["Err"]
        assert await ipam.create("10.5.0.0/24", network="blue") == {}
        ipam.restart()
        first = (await ipam.address(pool["PoolID"]))["Address"]
        assert first == "10.5.0.129/24"
        (network,) = ipam.agent.networks.values()
        answer = await ipam.say("NetworkDriver.CreateEndpoint", NetworkID=network.made_for, EndpointID=ENDPOINT,
                                Interface={"Address": first})
        assert "Err" not in answer
        ipam.restart()
        assert (await ipam.address(pool["PoolID"], "10.5.0.129"))["Address"] == first     # replayed: it is its own

    play(course)


def test_one_prefix_in_two_tenants(play: Play) -> None:
    async def course(ipam: Ipam) -> None:
        plain, acme = await ipam.pool("10.5.0.0/24"), await ipam.pool("10.5.0.0/24", tenant="acme")
        assert await ipam.create("10.5.0.0/24", network="blue") == {}
        assert await ipam.create("10.5.0.0/24", network="blue", tenant="acme") == {}
        assert (await ipam.address(plain["PoolID"]))["Address"] == (await ipam.address(acme["PoolID"]))["Address"]
        assert {tenant for tenant, _, _ in ipam.agent.reserved} == {"default", "acme"}
        assert await ipam.create("10.5.0.0/24", network="green") == {}
        told = (await ipam.address(plain["PoolID"]))["Err"]
        assert "default/blue, default/green" in told
        assert "--ipam-opt network=NAME" in told

    play(course)


@pytest.mark.parametrize(("request_", "words"), [
    ({"prefix": "10.1.0.0"}, None), ({"prefix": "ten"}, "not a prefix (found: ten)"),
    ({"prefix": "10.1.0.0/24", "part": "10.2.0.0/25"}, "--ip-range: the range is not within 10.1.0.0/24"),
    ({"prefix": "10.1.0.0/24", "part": "fd00::/64"}, "--ip-range"),
    ({"colour": "red"}, "colour: no such IPAM option; there are network, tenant"),
    ({"network": "blue"}, "network blue is not there"),
    ({"network": "red", "prefix": "10.9.0.0/24"}, "network red has 10.1.0.0/24"),
    ({"network": "red", "v6": True}, "one of IPv6"),
])
def test_pools_that_are_refused(play: Play, request_: dict[str, Any], words: str | None) -> None:
    async def course(ipam: Ipam) -> None:
        ipam.agent.declare("red", "overlay", "10.1.0.0/24")
        answer = await ipam.pool(**request_)
        assert (words in answer["Error"]) if words else "Err" not in answer, answer
        assert "no such pool" in (await ipam.address("p1"))["Err"]

    play(course)


def test_docker_is_not_led_in_a_circle(play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Docker asks for another pool for as long as it does not like the one that is offered."""
    routes = tmp_path / "route"
    routes.write_text("Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
                      "eth0\t00000000\t0101A8C0\t3\t0\t0\t0\t00000000\n"
                      "eth0\t0000A8C0\t00000000\t1\t0\t0\t0\t00FFFFFF\n", encoding="ascii")
    monkeypatch.setattr(free.routed, "__defaults__", (routes,))

    async def course(ipam: Ipam) -> None:
        ipam.agent.declare("office", "nat", "192.168.0.0/24")
        ipam.agent.declare("red", "overlay", "10.1.0.0/24")
        told = (await ipam.pool(network="office"))["Error"]
        assert "route to 192.168.0.0/24" in told
        assert "add --subnet 192.168.0.0/24" in told
        assert "Err" not in await ipam.pool("192.168.0.0/24", network="office")
        for _ in range(OFFERS):
            assert (await ipam.pool(network="red"))["Pool"] == "10.1.0.0/24"
        assert "Docker does not take it" in (await ipam.pool(network="red"))["Error"]
        free_ones = [(await ipam.pool())["Pool"] for _ in range(3)]
        assert free_ones == ["192.168.1.0/24", "192.168.2.0/24", "192.168.3.0/24"]
        assert (await ipam.pool(v6=True))["Pool"] == "fd00:51::/64"

    play(course)
