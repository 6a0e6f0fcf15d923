"""Handed ports under a real agent: a runtime takes the far end, and policy, traffic and restarts go on around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from agent_host_kit import Machine, inside, machine, sh, until

from southbound.messages import Ack, AclRule, AclTier, HostGoal, MappingGoal, NetworkGoal, PortGoal, Subnet

HOST = HostGoal("self", uplink="lan0")
NAT = NetworkGoal(
    "n1", "front", "default", "nat", (1 << 24) + 1, (Subnet("192.168.50.0/24", "192.168.50.1"),), "02:fe:00:00:50:01", 0
)


def handed(number: int) -> PortGoal:
    mac = f"02:00:00:00:50:{number:02x}"
    return PortGoal(f"uid-{number}", f"c{number}", "default", "n1", f"192.168.50.{number}/24", mac, "", f"slc{number}",
                    handed=True)


WEB, APP = handed(5), handed(6)
MAP = MappingGoal("uid-map", "web", "default", "tcp", "0.0.0.0", (8080, 8080), WEB.id, "192.168.50.5", 80)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path, "agv") as made:
        yield made


def errors(ack: Ack) -> dict[str, str]:
    return {status.id: status.error for status in ack.objects if status.error}


def take(host: Machine, number: int) -> str:
    """As Docker does it; the container's namespace."""
    namespace = f"agv-c{number}"
    host.add_namespace(namespace)
    inside(host.name, f"ip link set slc{number} netns {namespace}")
    for words in (f"link set slc{number} name eth0", f"address add 192.168.50.{number}/24 dev eth0", "link set eth0 up",
                  "route add default via 192.168.50.1"):
        sh(f"ip -n {namespace} {words}")
    return namespace


def pings(namespace: str, address: str) -> bool:
    return " 0% packet loss" in inside(namespace, f"ping -c 2 -i 0.1 -W 1 {address}", check=False)


def test_taken_ports_reach_each_other_and_the_world_through_a_kill_and_a_change(host: Machine) -> None:
    host.start_connected()
    assert errors(host.controller.tell(HOST, NAT, WEB, APP, MAP)) == {}
    web, app = take(host, 5), take(host, 6)
    assert pings(web, "192.168.50.6")
    assert pings(app, "172.16.0.80")
    links = host.links()
    host.kill()
    assert pings(web, "172.16.0.80")
    host.start_connected()
    assert pings(web, "192.168.50.6")
    assert host.links() == links
    deny = AclTier("default/no-ping", 10, (AclRule(0, "out", "deny", ("192.168.50.6/32",), 1),))
    assert errors(host.controller.change(replace(WEB, tiers=(deny,)))) == {}
    assert not pings(web, "192.168.50.6")
    assert host.links() == links
    ack = host.controller.change(remove=(("mapping", MAP.id), ("port", WEB.id)))
    assert errors(ack) == {}
    assert "eth0" not in inside(web, "ip -o link show")
    assert pings(app, "172.16.0.80")


def test_an_unused_pair_is_made_again_and_no_runtimes_interface_is_told_of_the_host(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(HOST, NAT, WEB)
    assert not any("slc5" in facts.facts.links for facts in host.controller.facts)
    before = host.links()
    inside(host.name, "ip link del slc5")
    until(lambda: "slc5" in inside(host.name, "ip -o link show"), "the pair is made again")
    assert host.links().keys() == before.keys()
    assert pings(take(host, 5), "172.16.0.80")


def test_purge_takes_the_far_end_out_of_the_container(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(HOST, NAT, WEB)
    web = take(host, 5)
    host.kill()
    host.purge()
    assert host.links() == {}
    assert "eth0" not in inside(web, "ip -o link show")
