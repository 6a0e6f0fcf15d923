"""A real agent: endpoints hear their router, leases are learned on the wire, paths are as routers say, caps hold."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from agent_host_kit import Machine, inside, machine, sh, until

from southbound.messages import (
    Ack,
    Goal,
    HostGoal,
    NetworkGoal,
    PortGoal,
    QosGoal,
    RemotesGoal,
    Subnet,
)

HOST = HostGoal("self", underlay="172.31.0.1", uplink="lan0")
RED = NetworkGoal(
    "n2", "red", "red", "overlay", 5001, (Subnet("10.1.0.0/24", "10.1.0.1"), Subnet("fd00:51::/64", "fd00:51::1")),
    "02:fe:00:00:51:01", 0, advertise=True, slaac=True)
ONE = PortGoal("uid-one", "one", "red", "n2", "10.1.0.2/24", "02:00:00:00:50:12", "a2s-one", "eth0",
               address6="fd00:51::2/64")
TWO = replace(ONE, id="uid-two", name="two", address="10.1.0.3/24", mac="02:00:00:00:50:13", netns="a2s-two",
              address6="fd00:51::3/64")
FAR = RemotesGoal("n2/h2/0", "n2", "h2", ("172.31.0.2",), ("far",), bytes.fromhex("020000005099"),
                  socket.inet_aton("10.1.0.9"), b"")
ALL: tuple[Goal, ...] = (HOST, RED, ONE, TWO, FAR)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path, "a2s") as made:
        for name in ("a2s-one", "a2s-two"):
            made.add_namespace(name)
        yield made


def errors(ack: Ack) -> dict[str, str]:
    return {status.id: status.error for status in ack.objects if status.error}


def learned(namespace: str) -> list[str]:
    """Default routes by an advertisement."""
    routes = json.loads(inside(namespace, "ip -j -6 route show default"))
    return [route["gateway"] for route in routes if route["protocol"] == "ra"]


def made(namespace: str) -> list[str]:
    """Addresses by an advertisement."""
    text = inside(namespace, "ip -6 address show dev eth0 mngtmpaddr", check=False)
    return [line.split()[1] for line in text.splitlines() if "inet6" in line]


def test_endpoints_hear_their_router_across_restarts(host: Machine) -> None:
    host.start_connected()
    assert errors(host.controller.tell(*ALL)) == {}
    until(lambda: learned("a2s-one") == ["fe80::fe:ff:fe00:5101"], "the endpoint has a route by an advertisement")
    until(lambda: made("a2s-one") == ["fd00:51::ff:fe00:5012/64"], "and an address")
    until(lambda: " 0% packet loss" in inside("a2s-two", "ping -6 -c 1 -W 1 fd00:51::ff:fe00:5012", check=False),
          "which others reach")
    host.kill()
    host.start_connected()
    inside("a2s-one", "ip -6 route flush proto ra")
    inside("a2s-one", "ip link set eth0 down")
    inside("a2s-one", "ip link set eth0 up")                # it solicits
    until(lambda: learned("a2s-one") == ["fe80::fe:ff:fe00:5101"], "the endpoint is answered")
    host.controller.change(replace(RED, advertise=False, slaac=False))
    until(lambda: learned("a2s-one") == [], "the router says that it is none any more")


def test_a_narrow_path_is_noticed_without_polling(host: Machine) -> None:
    """The host behind which an endpoint lives is itself behind a narrow router: its "too big" reaches the sender."""
    host.start_connected()
    assert errors(host.controller.tell(*ALL)) == {}
    assert _largest("10.1.0.9") == 1450
    quoted = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 1400, 1, 0x4000, 64, 17, 0, socket.inet_aton("172.31.0.1"),
                         socket.inet_aton("172.31.0.2")) + struct.pack("!HHHH", 50000, 4789, 1380, 0)
    quoted += struct.pack("!II", 0x08000000, 5001 << 8)
    _complain(quoted)
    until(lambda: _largest("10.1.0.9") == 1250, "the endpoint is told of 1,300 less 50")


def _largest(address: str) -> int:
    """The path MTU that the endpoint is told of, or else its link's."""
    inside("a2s-one", f"ping -M do -c 1 -W 1 -s 1422 {address}", check=False)
    (route,) = json.loads(inside("a2s-one", f"ip -j route get {address}"))
    for metrics in route.get("metrics", []):
        if "mtu" in metrics:
            return int(metrics["mtu"])
    return int(json.loads(inside("a2s-one", "ip -j link show eth0"))[0]["mtu"])


def _complain(quoted: bytes) -> None:
    """ICMP "fragmentation needed", next hop's MTU 1,300, from the other host."""
    body = struct.pack("!BBHHH", 3, 4, 0, 0, 1300) + quoted
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]
    script = ("import socket,sys; s=socket.socket(socket.AF_INET,socket.SOCK_RAW,1);"
              "s.sendto(bytes.fromhex(sys.argv[1]),('172.31.0.1',0))")
    inside("a2s-h2", f"python3 -c \"{script}\" {body.hex()}")


def test_caps_come_change_and_go_under_a_running_flow(host: Machine) -> None:
    host.start_connected()
    capped = replace(ONE, qos=QosGoal(egress_bps=40_000_000, egress_burst_bytes=65536))
    assert errors(host.controller.tell(HOST, RED, capped, TWO, FAR)) == {}
    assert "1:1 " in sh("ip netns exec a2s-h1 tc class show dev slq0")
    with host.spawn("a2s-two", "iperf3 -s -1 -J -p 5300"):
        time.sleep(0.3)
        with host.spawn("a2s-one", "iperf3 -c 10.1.0.3 -p 5300 -t 9 -i 1 -J --get-server-output") as running:
            time.sleep(2.2)
            assert errors(host.controller.change(replace(capped, qos=replace(capped.qos, egress_bps=10_000_000)))) == {}
            time.sleep(2)
            assert errors(host.controller.change(replace(capped, qos=QosGoal()))) == {}
            told = json.loads(running.communicate(timeout=30)[0])
    # Of the receiver: the sender counts what is in its buffers.
    rates = [one["sum"]["bits_per_second"] / 1e6 for one in told["server_output_json"]["intervals"]]
    # On a busy machine iperf3 begins late, and a second may be shared by two caps.
    assert any(rate == pytest.approx(40 * 1448 / 1514, rel=0.1) for rate in rates[:3]), rates
    assert min(rates[2:7]) == pytest.approx(10 * 1448 / 1514, rel=0.2)
    assert max(rates[5:]) > 100
    until(lambda: "slq0" not in sh("ip -n a2s-h1 link"), "the shaper goes")
