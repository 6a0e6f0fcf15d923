"""NAT on a real kernel as the agent shows it, and networks that come and go beside flows that stay."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from agent_host_kit import Machine, inside, machine, sh, until

from southbound.messages import HostGoal, MappingGoal, NatGoal, NetworkGoal, PortGoal, Subnet

PREFIX = "a2n"
HOST = HostGoal("self", uplink="lan0")
LAN = "172.16.0.80"
OWN = "172.16.0.10"

FRONT = NetworkGoal(
    "n1", "front", "default", "nat", (1 << 24) + 1,
    (Subnet("192.168.50.0/24", "192.168.50.1"), Subnet("fd00:50::/64", "fd00:50::1")), "02:fe:00:00:50:01", 0,
    NatGoal(log=True),
)
BACK = NetworkGoal(
    "n2", "back", "default", "nat", (1 << 24) + 2, (Subnet("192.168.60.0/24", "192.168.60.1"),), "02:fe:00:00:60:01", 0
)


def endpoint(name: str, network: NetworkGoal, address: str, n: int, address6: str = "", **more: Any) -> PortGoal:
    fields: dict[str, Any] = {"netns": f"{PREFIX}-{name}", "interface": "eth0", "address6": address6} | more
    return PortGoal(f"uid-{name}", name, "default", network.id, f"{address}/24", f"02:00:00:00:50:{n:02x}", **fields)


WEB = endpoint("web", FRONT, "192.168.50.5", 5, "fd00:50::5/64")
APP = endpoint("app", BACK, "192.168.60.6", 6)
VM = endpoint("vm", FRONT, "192.168.50.7", 7, netns="", interface="a2n-vm")
MAP = MappingGoal("uid-map", "web", "default", "tcp", "0.0.0.0", (8080, 8080), WEB.id, "192.168.50.5", 80)

SERVE = """
import socketserver, sys
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("0.0.0.0", int(sys.argv[1])), Echo).serve_forever()
"""
# Says a line every 20 ms, at least five, and prints how many came back, and the longest wait, when its input ends.
TALK = """
import socket, sys, threading, time
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
lines, count, longest = peer.makefile("rw"), 0, 0.0
while count < 5 or not stop.is_set():
    began = time.monotonic()
    lines.write("x\\n"); lines.flush()
    assert lines.readline() == "x\\n"
    longest, count = max(longest, time.monotonic() - began), count + 1
    time.sleep(0.02)
print(count, longest)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path, PREFIX) as made:
        for name in (WEB, APP):
            made.add_namespace(name.netns)
        made.start_connected()
        yield made


@pytest.fixture
def programs() -> Iterator[list[subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []
    yield running
    for program in running:
        program.kill()
        program.communicate(timeout=10)


def start(programs: list[subprocess.Popen[str]], namespace: str, code: str, *arguments: str) -> subprocess.Popen[str]:
    command = ["nsenter", f"--net=/run/netns/{namespace}", "python3", "-c", code, *arguments]
    programs.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    return programs[-1]


def listens(namespace: str, port: int) -> bool:
    return f":{port} " in inside(namespace, f"ss -Hltn sport = :{port}")


def ifindex(namespace: str, link: str) -> int:
    """Its number in the namespace."""
    return int(json.loads(inside(namespace, f"ip -j link show dev {link}"))[0]["ifindex"])


def udp(namespace: str, source_port: int) -> None:
    """One datagram to the LAN."""
    code = (f"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', {source_port}));"
            f" s.sendto(b'x', ('{LAN}', 9))")
    inside(namespace, f"python3 -c \"{code}\"")


def test_nat_is_shown_and_its_records_are_told(host: Machine, programs: list[subprocess.Popen[str]]) -> None:
    ack = host.controller.tell(HOST, FRONT, WEB, MAP)
    assert not any(one.error for one in ack.objects), ack
    follow = {"stream": "s", "kind": "bindings", "network": "default/front"}
    assert host.controller.ask("follow", after=None, **follow)["records"] == []

    udp(WEB.netns, 20777)                   # a port of the range: it is kept
    (bound,) = [one for one in host.controller.ask("nat", section="bindings")["bindings"] if one["protocol"] == 17]
    assert {name: bound[name] for name in bound if name != "idle_s"} == {
        "endpoint": "default/web", "network": "default/front", "protocol": 17, "source": "192.168.50.5",
        "source_port": 20777, "external": OWN, "external_port": 20777}
    told = host.controller.ask("follow", after=0, **follow)
    record = next(one for one in told["records"] if one.get("protocol") == "udp")
    assert abs(datetime.fromisoformat(record.pop("time")).timestamp() - time.time()) < 30
    assert (told["lost"], record["event"], record["internal_port"], record["external"]) == (0, "bound", 20777, OWN)

    start(programs, WEB.netns, SERVE, "80")
    until(lambda: listens(WEB.netns, 80), "web serves")
    talk = start(programs, f"{PREFIX}-lan", TALK, OWN, "8080")
    assert int(talk.communicate("", timeout=20)[0].split()[0]) >= 5
    shown = host.controller.ask("nat")
    assert set(shown) == {"prefixes", "pools", "mappings", "bindings", "total"}
    assert [(one["prefix"], one["status"]) for one in shown["prefixes"]] == [
        ("192.168.50.0/24", "ready"), ("fd00:50::/64", "ready")]
    (mapping,) = shown["mappings"]
    assert (mapping["mapping"], mapping["hits"], mapping["addresses"], mapping["status"]) == (
        "default/web", 1, [OWN], "open")
    (pool,) = [one for one in shown["pools"] if one["network"] == "default/front" and one["udp"]]
    assert (pool["uplink"], pool["address"], pool["udp"], pool["log"]) == ("lan0", OWN, 1, True)
    assert host.controller.ask("nat", network="default/back")["total"] == 0

    host.controller.change(remove=(("port", WEB.id), ("mapping", MAP.id)))
    told = until(lambda: host.controller.ask("follow", after=told["last"], **follow)["records"], "the end is told")
    assert {(one["event"], one["endpoint"]) for one in told} == {("released", "default/web")}
    assert host.controller.ask("nat", section="bindings")["bindings"] == []


def test_blocks_are_shown_and_told(host: Machine) -> None:
    host.controller.tell(HOST, replace(BACK, nat=NatGoal(block=64, quota=100, log=True)), APP)
    follow = {"stream": "s", "kind": "bindings"}
    host.controller.ask("follow", after=None, **follow)
    for port in (40001, 40002):
        udp(APP.netns, port)
    (pool,) = [one for one in host.controller.ask("nat", section="pools")["pools"] if one["udp"]]
    assert (pool["udp"], pool["block"], pool["blocks"], pool["quota"]) == (2, 64, 1, 100)
    assert pool["percent"] == 0.5           # of 199 blocks
    (record,) = host.controller.ask("follow", after=0, **follow)["records"]
    first, last = map(int, record["external_ports"].split("-"))
    assert (record["event"], record["endpoint"], last - first) == ("block-taken", "default/app", 63)
    found = host.controller.ask("nat", section="bindings")["bindings"]
    assert len(found) == 2
    assert all(first <= one["external_port"] <= last for one in found)


def test_networks_come_and_go_and_flows_of_others_do_not_notice(
    host: Machine, programs: list[subprocess.Popen[str]]
) -> None:
    host.controller.tell(HOST, FRONT, WEB)
    start(programs, f"{PREFIX}-lan", SERVE, "7")
    until(lambda: listens(f"{PREFIX}-lan", 7), "the LAN serves")
    talk = start(programs, WEB.netns, TALK, LAN, "7")
    until(lambda: host.controller.ask("nat", section="bindings")["bindings"], "web talks")
    (before,) = host.controller.ask("nat", section="bindings")["bindings"]
    for _ in range(3):
        ack = host.controller.change(BACK, APP, replace(MAP, port=APP.id, internal_address="192.168.60.6"))
        assert not any(one.error for one in ack.objects), ack
        udp(APP.netns, 20888)
        assert "slb" in "".join(host.links())
        host.controller.change(remove=(("network", BACK.id), ("port", APP.id), ("mapping", MAP.id)))
    assert talk.poll() is None
    (after,) = host.controller.ask("nat", section="bindings")["bindings"]
    assert (after["external_port"], after["source_port"]) == (before["external_port"], before["source_port"])
    count, longest = talk.communicate("", timeout=10)[0].split()
    assert int(count) > 10
    assert float(longest) < 1.0
    assert len([name for name in host.links() if name.startswith("slb")]) == 1


def test_a_renumbered_network_takes_its_endpoint_along(host: Machine) -> None:
    host.controller.tell(HOST, FRONT, WEB)
    far = ifindex(WEB.netns, "eth0")
    moved = replace(FRONT, subnets=(Subnet("10.77.0.0/24", "10.77.0.1"), Subnet("fd00:77::/64", "fd00:77::1")))
    ack = host.controller.change(moved, replace(WEB, address="10.77.0.5/24", address6="fd00:77::5/64"))
    assert not any(one.error for one in ack.objects), ack
    assert ifindex(WEB.netns, "eth0") == far
    shown = "".join(inside(WEB.netns, f"ip {words}") for words in ("addr show dev eth0", "route", "-6 route"))
    assert all(text in shown for text in ("10.77.0.5/24", "fd00:77::5/64", "via 10.77.0.1", "via fd00:77::1"))
    assert not any(text in shown for text in ("192.168.50", "fd00:50"))
    assert " 0% packet loss" in inside(WEB.netns, "ping -c 2 -i 0.2 -W 1 10.77.0.1", check=False)
    assert " 0% packet loss" in inside(WEB.netns, f"ping -c 2 -i 0.2 -W 1 {LAN}", check=False)


def test_a_tap_port_is_made_hooked_and_removed(host: Machine) -> None:
    ack = host.controller.tell(HOST, FRONT, WEB, VM)
    assert not any(one.error for one in ack.objects), ack
    shown = inside(host.name, "ip -d link show dev a2n-vm")
    words = ("tun type tap", "persist on", "vnet_hdr on", "sluice:port:uid-vm:", "master slb")
    assert all(text in shown for text in words)
    assert [len(host.filters("a2n-vm", where)) for where in ("ingress", "egress")] == [1, 1]
    details = {one.id: one.details for one in ack.objects}
    assert details[VM.id]["host_interface"] == "a2n-vm"
    before = ifindex(host.name, "a2n-vm")
    host.kill()
    host.start_connected()
    assert ifindex(host.name, "a2n-vm") == before
    # Another endpoint gets the name: nobody who had the old device open is it.
    host.controller.change(replace(VM, id="uid-other", name="other"), remove=(("port", VM.id),))
    until(lambda: "sluice:port:uid-other:" in inside(host.name, "ip -d link show dev a2n-vm", check=False), "a new tap")
    assert ifindex(host.name, "a2n-vm") != before
    host.controller.change(remove=(("port", "uid-other"),))
    assert "a2n-vm" not in inside(host.name, "ip link")

    sh(f"ip -n {host.name} tuntap add dev a2n-vm mode tap")
    ack = host.controller.change(VM)
    assert "a2n-vm" in next(one.error for one in ack.objects if one.id == VM.id)
    assert "alias" not in inside(host.name, "ip -d link show dev a2n-vm")


def test_lo_is_opened_for_mappings_and_given_back(host: Machine, programs: list[subprocess.Popen[str]]) -> None:
    def settings() -> list[str]:
        names = ("route_localnet", "accept_local")
        return [inside(host.name, f"cat /proc/sys/net/ipv4/conf/lo/{name}").strip() for name in names]

    host.controller.tell(HOST, FRONT, WEB, MAP)
    assert (settings(), len(host.filters("lo", "ingress"))) == (["1", "1"], 1)
    start(programs, WEB.netns, SERVE, "80")
    until(lambda: listens(WEB.netns, 80), "web serves")
    for address in ("127.0.0.1", OWN, "192.168.50.5"):
        port = "80" if address == "192.168.50.5" else "8080"
        talk = start(programs, host.name, TALK, address, port)
        assert int(talk.communicate("", timeout=20)[0].split()[0]) >= 5, address
    assert {one["network"] for one in host.controller.ask("nat")["pools"]} == {"default/front", "lo"}
    assert host.controller.ask("nat", section="mappings")["mappings"][0]["hits"] == 2

    host.controller.change(remove=(("mapping", MAP.id),))
    assert (settings(), host.filters("lo", "ingress")) == (["0", "0"], [])
    host.controller.change(MAP)
    assert settings() == ["1", "1"]
    host.kill()
    host.purge()
    assert (settings(), host.filters("lo", "ingress")) == (["0", "0"], [])
    assert "clsact" not in inside(host.name, "tc qdisc show dev lo")
