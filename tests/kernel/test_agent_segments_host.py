"""A real agent whose endpoints are on the segment of its uplink: as stations, in the host's name, by the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from agent_host_kit import Machine, inside, machine, until

from southbound.messages import (
    Ack,
    AclRule,
    AclTier,
    FloodGoal,
    Goal,
    HostGoal,
    Mode,
    NetworkGoal,
    PortGoal,
    Subnet,
)

HOST = HostGoal("self", uplink="lan0")
SUBNETS = (Subnet("172.16.0.0/24", "172.16.0.80"), Subnet("fd16::/64", "fd16::80"))
MODES: tuple[Mode, ...] = ("transparent", "l2bridge", "l2tunnel")


def network(mode: Mode) -> NetworkGoal:
    flood = FloodGoal(1000, 2000) if mode == "transparent" else None
    return NetworkGoal("n1", "seg", "default", mode, (1 << 24) + 1, SUBNETS, "02:fe:00:00:60:01", 0, flood=flood)


def endpoint(n: int, tiers: tuple[AclTier, ...] = (), **more: str) -> PortGoal:
    name = f"e{n}"
    return PortGoal(f"uid-{name}", name, "default", "n1", f"172.16.0.{n}/24", f"02:00:00:00:60:{n:02x}",
                    more.get("netns", f"ags-{name}"), "eth0", tiers, address6=f"fd16::{n}/64")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with machine(tmp_path_factory.mktemp("segments"), "ags") as made:
        for name in ("ags-e21", "ags-e22"):
            made.add_namespace(name)
        inside("ags-lan", "ip addr add fd16::80/64 dev eth0 nodad")
        inside("ags-h1", "ip addr add fd16::10/64 dev lan0 nodad")
        for setting in ("ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1", "ipv4.conf.all.send_redirects=0",
                        "ipv4.conf.eth0.send_redirects=0"):
            inside("ags-lan", f"sysctl -qw net.{setting}")
        made.start_connected()
        yield made


def errors(ack: Ack) -> dict[str, str]:
    return {status.id: status.error for status in ack.objects if status.error}


def pings(namespace: str, address: str) -> bool:
    return " 0% packet loss" in inside(namespace, f"ping -c 2 -i 0.2 -W 1 {address}", check=False)


def heard(address: str) -> str:
    """The MAC that the segment's other machine knows for an address."""
    inside("ags-lan", f"ping -c 1 -W 2 {address}", check=False)
    found = json.loads(inside("ags-lan", f"ip -j neigh show {address} dev eth0") or "[]")
    return str(found[0].get("lladdr", "")) if found else ""


def host_mac() -> str:
    return str(json.loads(inside("ags-h1", "ip -j link show lan0"))[0]["address"])


def tell(host: Machine, mode: Mode, *goals: Goal) -> None:
    assert errors(host.controller.tell(HOST, network(mode), *goals)) == {}


@pytest.mark.parametrize("mode", MODES)
def test_endpoints_are_on_the_segment_in_both_families(host: Machine, mode: Mode) -> None:
    one, two = endpoint(21), endpoint(22)
    tell(host, mode, one, two)
    for address in ("172.16.0.80", "fd16::80", "172.16.0.22", "fd16::22"):
        assert until(lambda address=address: pings("ags-e21", address), f"e21 reaches {address}")  # type: ignore[misc]
    mac = one.mac if mode == "transparent" else host_mac()
    assert heard("172.16.0.21") == heard("fd16::21") == mac
    assert pings("ags-lan", "172.16.0.22")
    assert pings("ags-lan", "fd16::22")


def test_in_a_tunnel_the_gateway_sees_also_what_goes_to_a_neighbour(host: Machine) -> None:
    tell(host, "l2tunnel", endpoint(21), endpoint(22))
    assert until(lambda: pings("ags-e21", "172.16.0.22"), "e21 reaches e22")
    inside("ags-lan", "sysctl -qw net.ipv4.ip_forward=0")
    assert not pings("ags-e21", "172.16.0.22")
    inside("ags-lan", "sysctl -qw net.ipv4.ip_forward=1")
    tell(host, "l2bridge", endpoint(21), endpoint(22))
    assert until(lambda: pings("ags-e21", "172.16.0.22"), "e21 reaches e22 without the gateway")


def test_an_address_that_comes_to_this_host_is_told_to_the_segment(host: Machine) -> None:
    tell(host, "l2bridge")
    inside("ags-lan", "sysctl -qw net.ipv4.neigh.eth0.base_reachable_time_ms=600000 net.ipv4.neigh.eth0.locktime=0")
    inside("ags-lan", "ip neigh replace 172.16.0.21 lladdr 02:00:00:00:99:99 dev eth0 nud reachable")
    tell(host, "l2bridge", endpoint(21))
    found = until(lambda: host_mac() in inside("ags-lan", "ip neigh show 172.16.0.21"), "the announcement", 3)
    assert found


def test_a_policy_for_one_nested_address_does_not_touch_its_neighbour(host: Machine) -> None:
    """The machine is namespace e21; its containers are addresses of its lo, behind its one link."""
    ping = AclTier("default/no-ping", 10, (AclRule(10, "in", "deny", protocol=1, name="no-ping"),))
    vm = endpoint(21)
    first, second = (
        PortGoal(f"uid-c{n}", f"c{n}", "default", "n1", f"172.16.0.{n}/24", vm.mac, "", "", tiers, behind=vm.id)
        for n, tiers in ((31, (ping,)), (32, ())))
    tell(host, "l2bridge", vm, endpoint(22), first, second)
    for address in ("172.16.0.31/32", "172.16.0.32/32"):
        inside("ags-e21", f"ip addr add {address} dev lo")
    for asking in ("ags-lan", "ags-e22"):
        assert until(lambda asking=asking: pings(asking, "172.16.0.32"), "c32 is reached")  # type: ignore[misc]
        assert pings(asking, "172.16.0.21")
        assert not pings(asking, "172.16.0.31")
    assert " 0% packet loss" in inside("ags-e21", "ping -c 2 -i 0.2 -W 1 -I 172.16.0.31 172.16.0.80", check=False)
