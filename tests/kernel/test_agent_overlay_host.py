"""Ways out of overlay networks by a real agent: by its own host, by an exit for others, by none; peers; the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from agent_host_kit import Machine, inside, machine, until

from southbound.messages import (
    Ack,
    Goal,
    HostGoal,
    NetworkGoal,
    PortGoal,
    RemotesGoal,
    RouteGoal,
    Subnet,
)

HOST = HostGoal("self", underlay="172.31.0.1", uplink="lan0", underlays=("172.31.0.1",))
SUBNETS = (Subnet("10.1.0.0/24", "10.1.0.1"), Subnet("fd01::/64", "fd01::1"))
RED = NetworkGoal("n1", "red", "red", "overlay", 5001, SUBNETS, "02:fe:00:00:61:01", 0)
BLUE = NetworkGoal("n2", "blue", "red", "overlay", 5002, (Subnet("10.2.0.0/24", "10.2.0.1"),), "02:fe:00:00:62:01", 0)
FAR_MAC = "02:00:00:00:61:09"
FAR = RemotesGoal("n1/h2/0", "n1", "h2", ("172.31.0.2",), ("far",), bytes.fromhex(FAR_MAC.replace(":", "")),
                  bytes((10, 1, 0, 9)), b"\xfd\x01" + bytes(13) + b"\x09")


def endpoint(name: str, network: NetworkGoal, address: str, n: int, address6: str = "") -> PortGoal:
    return PortGoal(f"uid-{name}", name, "red", network.id, f"{address}/24", f"02:00:00:00:61:{n:02x}", f"ago-{name}",
                    "eth0", address6=address6)


A, B = endpoint("a", RED, "10.1.0.2", 2, "fd01::2/64"), endpoint("b", RED, "10.1.0.3", 3, "fd01::3/64")
C = endpoint("c", BLUE, "10.2.0.2", 4)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with machine(tmp_path_factory.mktemp("overlay"), "ago") as made:
        for name in ("ago-a", "ago-b", "ago-c"):
            made.add_namespace(name)
        inside("ago-h1", "ip addr add fd16::10/64 dev lan0 nodad")
        inside("ago-lan", "ip addr add fd16::80/64 dev eth0 nodad")
        for command in (    # h2 is a plain VXLAN endpoint with one address, which knows us by static entries
            f"ip link add vx0 address {FAR_MAC} mtu 1450 type vxlan id 5001 dstport 4789 local 172.31.0.2 nolearning",
            "ip addr add 10.1.0.9/24 dev vx0",
            "ip addr add fd01::9/64 dev vx0 nodad",
            "ip link set vx0 up",
            *(f"bridge fdb append {mac} dev vx0 dst 172.31.0.1" for mac in (A.mac, RED.gateway_mac)),
            f"ip neigh replace 10.1.0.2 lladdr {A.mac} dev vx0",
            f"ip neigh replace fd01::2 lladdr {A.mac} dev vx0",
            f"ip neigh replace 10.1.0.1 lladdr {RED.gateway_mac} dev vx0",
            "ip route add 172.16.0.80/32 via 10.1.0.1 dev vx0",
        ):
            inside("ago-h2", command)
        made.start_connected()
        yield made


def errors(ack: Ack) -> dict[str, str]:
    return {status.id: status.error for status in ack.objects if status.error}


def tell(host: Machine, *goals: Goal) -> None:
    assert errors(host.controller.tell(HOST, *goals)) == {}


def pings(namespace: str, address: str) -> bool:
    return " 0% packet loss" in inside(namespace, f"ping -c 2 -i 0.2 -W 1 {address}", check=False)


def reaches(namespace: str, address: str) -> None:
    until(lambda: pings(namespace, address), f"{namespace} reaches {address}")


def test_neighbours_another_host_and_the_gateway_are_reached_and_the_world_is_not(host: Machine) -> None:
    tell(host, RED, A, B, FAR)
    for address in ("10.1.0.3", "fd01::3", "10.1.0.9", "fd01::9", "10.1.0.1", "fd01::1"):
        reaches("ago-a", address)
    assert not pings("ago-a", "172.16.0.80")
    assert not pings("ago-a", "172.16.0.10")


def test_egress_by_nat_reaches_the_world_and_the_host_in_both_families(host: Machine) -> None:
    tell(host, replace(RED, egress=True), A, B, FAR)
    for address in ("172.16.0.80", "fd16::80", "172.16.0.10", "10.1.0.9"):
        reaches("ago-a", address)
    tell(host, RED, A, B, FAR)
    assert not pings("ago-a", "172.16.0.80")


def test_another_host_leaves_by_the_exit_that_is_here(host: Machine) -> None:
    network = replace(RED, routes=(RouteGoal("0.0.0.0/0", vteps=("172.31.0.1",), here=True),))
    tell(host, network, A, FAR)
    reaches("ago-h2", "172.16.0.80")
    reaches("ago-a", "172.16.0.80")                     # one of this host goes by the same route
    tell(host, network, FAR)                            # and with no endpoint here at all
    reaches("ago-h2", "172.16.0.80")
    tell(host, RED, A, FAR)
    assert not pings("ago-h2", "172.16.0.80")


def test_peers_reach_each_other_until_they_are_none(host: Machine) -> None:
    tell(host, replace(RED, peers=("n2",)), replace(BLUE, peers=("n1",)), A, C)
    reaches("ago-a", "10.2.0.2")
    reaches("ago-c", "10.1.0.2")
    tell(host, RED, BLUE, A, C)
    assert not pings("ago-a", "10.2.0.2")


def test_isolated_endpoints_reach_the_gateway_and_the_world_alone(host: Machine) -> None:
    tell(host, replace(RED, isolated=True, egress=True), A, B)
    for address in ("172.16.0.80", "10.1.0.1", "fd01::1"):
        reaches("ago-a", address)
    assert not pings("ago-a", "10.1.0.3")
    assert not pings("ago-a", "fd01::3")


def test_a_private_network_has_its_endpoints_and_a_gateway_that_leads_nowhere(host: Machine) -> None:
    tell(host, replace(RED, mode="private", space=(1 << 24) + 5), A, B)
    for address in ("10.1.0.3", "fd01::3", "10.1.0.1"):
        reaches("ago-a", address)
    assert not pings("ago-a", "172.16.0.10")
