"""One agent on a real kernel: made from nothing, adopted after a kill, mended, recovered, purged."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_host_kit import Machine, inside, machine, sh, until

from southbound.messages import (
    Ack,
    AclRule,
    AclTier,
    Goal,
    HostGoal,
    MappingGoal,
    NetworkGoal,
    PortGoal,
    RemotesGoal,
    Subnet,
)

HOST = HostGoal("self", underlay="172.31.0.1", uplink="lan0")
NAT = NetworkGoal(
    "n1", "front", "default", "nat", (1 << 24) + 1, (Subnet("192.168.50.0/24", "192.168.50.1"),), "02:fe:00:00:50:01", 0
)
RED = NetworkGoal("n2", "red", "red", "overlay", 5001, (Subnet("10.1.0.0/24", "10.1.0.1"),), "02:fe:00:00:51:01", 0)


def endpoint(name: str, network: NetworkGoal, address: str, n: int, tiers: tuple[AclTier, ...] = ()) -> PortGoal:
    mac = f"02:00:00:00:50:{n:02x}"
    return PortGoal(f"uid-{name}", name, network.tenant, network.id, f"{address}/24", mac, f"agt-{name}", "eth0", tiers)


WEB = endpoint("web", NAT, "192.168.50.5", 5)
APP = endpoint("app", NAT, "192.168.50.6", 6)
RED_A = endpoint("ra", RED, "10.1.0.2", 0x12)
FAR = RemotesGoal("n2/h2/1", "n2", "h2", ("172.31.0.2",), ("far",), bytes.fromhex("020000005099"),
                  bytes((10, 1, 0, 9)), b"")
MAP = MappingGoal("uid-map", "web", "default", "tcp", "0.0.0.0", (8080, 8080), "uid-web", "192.168.50.5", 80)
ALL: tuple[Goal, ...] = (HOST, NAT, RED, WEB, APP, RED_A, FAR, MAP)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        for name in ("agt-web", "agt-app", "agt-ra"):
            made.add_namespace(name)
        yield made


def errors(ack: Ack) -> dict[str, str]:
    return {status.id: status.error for status in ack.objects if status.error}


def pings(namespace: str, address: str) -> bool:
    return " 0% packet loss" in inside(namespace, f"ping -c 2 -i 0.2 -W 1 {address}", check=False)


def test_from_nothing_traffic_flows_and_the_inside_shows_it(host: Machine) -> None:
    host.start_connected()
    assert errors(host.controller.tell(*ALL)) == {}
    assert pings("agt-web", "192.168.50.6")
    assert pings("agt-web", "192.168.50.1")
    assert pings("agt-web", "172.16.0.80")
    assert not pings("agt-ra", "192.168.50.5")
    flows = host.controller.ask("flows", port=WEB.id)["flows"]
    assert {flow["place"] for flow in flows} >= {"port default/app", "uplink lan0"}
    trace = host.controller.ask(
        "trace", port=RED_A.id, direction="out", source="10.1.0.2", destination="10.1.0.9", protocol=6,
        source_port=0, destination_port=80,
    )
    assert (trace["host"], trace["verdict"], trace["leaves"]["vtep"]) == ("h1", "forward", "172.31.0.2")
    rules = host.controller.ask("rules", port=WEB.id)["rules"]
    assert next(rule["hits"] for rule in rules if rule["rule"] == "own-ipv4") > 0


def test_a_denied_packet_is_counted_by_its_rule_and_told(host: Machine) -> None:
    tier = AclTier("default/no-ping", 10, (AclRule(0, "out", "deny", ("192.168.50.6/32",), 1),))
    host.start_connected()
    host.controller.tell(*ALL)
    assert pings("agt-web", "192.168.50.6")
    host.controller.change(endpoint("web", NAT, "192.168.50.5", 5, (tier,)))
    assert not pings("agt-web", "192.168.50.6")
    drops = host.controller.ask("drops")
    (row,) = [row for row in drops["rules"] if row["rule"] == "default/no-ping[0]"]
    assert row["packets"] > 0
    assert row["endpoint"] == "default/web"
    latest = next(event for event in drops["recent"] if event["reason"] == "DENIED")
    assert latest["rule"] == "default/no-ping[0]"
    assert latest["packet"].startswith("icmp 192.168.50.5")
    assert abs(latest["time"] - time.time()) < 60


def test_killed_and_started_again_adopts_and_loses_no_flow(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(*ALL)
    assert pings("agt-web", "172.16.0.80")
    maps, links, before = host.map_ids(), host.links(), time.monotonic()
    filters = {link: host.filters(link, "ingress") for link in [*links, "lan0"]}
    assert len(maps) > 5
    with host.spawn("agt-web", "ping -i 0.1 -c 40 -W 1 172.16.0.80") as running:
        _survive_kill(host)
        heard = running.communicate(timeout=20)[0]
    assert "40 received" in heard
    assert (host.map_ids(), host.links()) == (maps, links)
    assert {link: [f.split()[0] for f in host.filters(link, "ingress")] for link in filters} == {
        link: [f.split()[0] for f in found] for link, found in filters.items()
    }
    assert any(flow["age_s"] > time.monotonic() - before for flow in host.controller.ask("flows")["flows"])


def _survive_kill(host: Machine) -> None:
    host.kill()
    assert pings("agt-web", "192.168.50.6")             # policy and paths hold while it is down
    host.start_connected()
    assert host.controller.hellos[-1].applied_revision == 1


def test_sigterm_ends_the_agent_and_nothing_else(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(*ALL)
    links = host.links()
    assert host.kill(signal.SIGTERM) == 0
    assert host.links() == links
    assert pings("agt-web", "192.168.50.6")


def test_without_a_controller_the_disk_is_enough(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(*ALL)
    host.kill()
    web = host.links()
    for name in web:
        inside("agt-h1", f"ip link del {name}")
    host.start_connected()
    assert set(host.links()) == set(web)
    assert pings("agt-web", "192.168.50.6")


def test_missing_namespace_is_one_error_and_mends_when_it_appears(host: Machine) -> None:
    late = endpoint("late", NAT, "192.168.50.7", 7)
    host.start_connected()
    ack = host.controller.tell(*ALL, late)
    assert set(errors(ack)) == {late.id}
    assert "agt-late" in errors(ack)[late.id]
    assert pings("agt-web", "192.168.50.6")
    host.add_namespace("agt-late")
    until(lambda: errors(host.controller.acks[-1]) == {}, "the endpoint is mended")
    assert pings("agt-late", "192.168.50.5")


def test_a_foreign_eth0_is_left_alone(host: Machine) -> None:
    host.add_namespace("agt-taken")
    sh("ip -n agt-taken link add eth0 type bridge")
    taken = endpoint("taken", NAT, "192.168.50.8", 8)
    host.start_connected()
    ack = host.controller.tell(*ALL, taken)
    assert set(errors(ack)) == {taken.id}
    assert "eth0" in errors(ack)[taken.id]
    assert "bridge" in sh("ip -n agt-taken -d link show eth0")
    sh("ip -n agt-taken link del eth0")
    until(lambda: errors(host.controller.acks[-1]) == {}, "the endpoint is mended", 40)


def test_an_endpoint_whose_namespace_was_made_anew_is_mended(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(*ALL)
    host.remove_namespace("agt-app")
    until(lambda: errors(host.controller.acks[-1]), "the loss is reported")
    host.add_namespace("agt-app")
    until(lambda: not errors(host.controller.acks[-1]), "the endpoint is mended")
    assert pings("agt-web", "192.168.50.6")


def test_removal_leaves_nothing_but_pins(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(*ALL)
    keys = tuple((goal.kind, goal.id) for goal in ALL if goal is not HOST)
    assert errors(host.controller.change(remove=keys)) == {}
    assert set(host.links()) == {"slvx0"}               # as long as the host has an underlay
    assert errors(host.controller.change(remove=((HOST.kind, HOST.id),))) == {}
    assert host.links() == {}
    assert host.filters("lan0", "ingress") == []
    assert "clsact" not in inside("agt-h1", "tc qdisc show dev lan0")
    assert inside("agt-h1", "cat /proc/sys/net/ipv4/ip_local_reserved_ports").strip() == ""
    assert "eth0" not in sh("ip -n agt-web link show")


def test_lost_state_recovers_ids_and_flows(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(HOST, NAT, APP)
    host.controller.tell(*ALL)                          # ids are not in the order of uids now
    assert pings("agt-web", "192.168.50.6")
    links, before = host.links(), time.monotonic()
    host.kill()
    for name in ("goal.msgpack", "agent.json"):
        (host.state / name).unlink()
    host.start_connected()
    assert host.controller.hellos[-1].applied_revision == 0
    assert host.links() == links                        # nothing was torn down for want of a goal state
    assert pings("agt-web", "192.168.50.6")
    assert errors(host.controller.tell(*ALL)) == {}
    assert host.links() == links
    assert any(flow["age_s"] > time.monotonic() - before for flow in host.controller.ask("flows")["flows"])


def test_a_delta_from_elsewhere_asks_for_a_full_sync(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(HOST, NAT, WEB)
    host.controller.send_delta(77, APP)
    until(lambda: host.controller.resyncs, "a full sync is asked for")
    until(lambda: host.controller.acks[-1].revision == host.controller.revision, "it is acknowledged")
    assert pings("agt-web", "192.168.50.6")


def test_another_database_is_not_believed(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(*ALL)
    host.kill()
    host.controller.store = "store-2"
    host.controller.revision = 1
    host.start_connected()
    until(lambda: host.controller.resyncs, "a resync is asked for")
    until(lambda: host.controller.acks[-1].revision == 2, "the full sync is acknowledged")
    host.kill()
    host.start_connected()
    assert len(host.controller.resyncs) == 1            # the new one is known now


def test_facts_follow_the_host(host: Machine) -> None:
    host.start_connected()
    assert ("lan0", "172.16.0.10/24") in host.controller.hellos[-1].facts.addresses
    sh("ip -n agt-h1 addr add 172.20.0.1/24 dev lan0")
    until(
        lambda: any(("lan0", "172.20.0.1/24") in told.facts.addresses for told in host.controller.facts),
        "the new address is told",
    )


def test_a_lan_that_overlaps_degrades_the_network_and_cuts_nothing_inside(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(*ALL)
    assert pings("agt-web", "192.168.50.6")

    def told() -> str:
        return next((one.details.get("overlap", "") for one in host.controller.acks[-1].objects if one.id == "n1"), "")

    sh("ip -n agt-h1 addr add 192.168.77.100/16 dev lan0")          # wider: the network is a hole in it
    until(lambda: told() == "overlap with lan0 192.168.0.0/16", "the overlap is told")
    assert errors(host.controller.acks[-1]) == {}
    assert "network degraded" in host.log.read_text()
    assert pings("agt-web", "192.168.50.6")
    assert pings("agt-web", "192.168.50.1")
    assert pings("agt-h1", "192.168.50.5")

    sh("ip -n agt-h1 addr add 192.168.50.100/25 dev lan0")          # within: the host keeps its LAN
    until(lambda: "192.168.50.1/24" not in inside("agt-h1", "ip addr show dev slb1"), "the network is hidden from it")
    assert "192.168.50.0/24" not in inside("agt-h1", "ip route")
    assert pings("agt-web", "192.168.50.6")

    for address in ("192.168.50.100/25", "192.168.77.100/16"):
        sh(f"ip -n agt-h1 addr del {address} dev lan0")
    until(lambda: told() == "", "the LAN is left")
    until(lambda: pings("agt-h1", "192.168.50.5"), "the host reaches it again")


def test_purge_leaves_nothing_twice(host: Machine) -> None:
    host.start_connected()
    host.controller.tell(*ALL)
    host.kill()
    first = host.purge()
    assert "link slb1" in first
    assert host.links() == {}
    assert not host.pins.exists()
    for where in ("ingress", "egress"):
        assert host.filters("lan0", where) == []
    assert "clsact" not in inside("agt-h1", "tc qdisc show dev lan0")
    assert inside("agt-h1", "cat /proc/sys/net/ipv4/ip_local_reserved_ports").strip() == ""
    host.purge()


def test_two_agents_do_not_share_a_state_directory(host: Machine) -> None:
    host.start_connected()
    first, host.process = host.process, None
    host.start()
    assert host.process is not None
    assert host.process.wait(20) != 0
    assert "another agent uses" in host.log.read_text()
    host.process = first
