"""Underlay addresses and the paths behind them are found as the kernel has them."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from vswitch_kit import Namespace, World, world

from vswitch import LinkInvalid, Switch, TunnelLink, UnderlayState

NEAR = {4: "172.31.9.1", 6: "fd31:9::1"}
ROUTER = {4: "172.31.9.254", 6: "fd31:9::fe"}
FAR = {4: "172.31.8.1", 6: "fd31:8::1"}


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    """A host whose far VTEP is behind a router that takes 1,300 bytes."""
    made, router = w.namespace("host"), w.namespace("router")
    made.ip("link", "add", "lan0", "mtu", "1500", "type", "veth", "peer", "name", "in0", "netns", router.name)
    router.ip("link", "add", "out0", "mtu", "1300", "type", "bridge")
    for where, link, addresses in ((made, "lan0", NEAR), (router, "in0", ROUTER)):
        for version, address in addresses.items():
            where.ip("address", "add", f"{address}/{24 if version == 4 else 64}", "dev", link, "nodad")
        where.ip("link", "set", link, "up")
    router.ip("link", "set", "out0", "up")
    router.execute("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    for version, prefix in ((4, "172.31.8.0/24"), (6, "fd31:8::/64")):
        made.ip("route", "add", prefix, "via", ROUTER[version])
        router.ip("route", "add", prefix, "dev", "out0")
    for address in FAR.values():
        router.ip("neigh", "add", address, "lladdr", "02:00:00:00:00:08", "dev", "out0")
    return made


@pytest.fixture
def switch(w: World, host: Namespace) -> Switch:
    return w.switch(host)


def test_addresses_of_both_families_and_of_no_link(switch: Switch, host: Namespace) -> None:
    host.ip("link", "set", "lo", "up")
    host.ip("address", "add", "192.0.2.7/32", "dev", "lo")
    ifindex = host.link("lan0")["ifindex"]
    found = switch.underlays((NEAR[6], "192.0.2.9", NEAR[4], "192.0.2.7"))
    assert list(found.values()) == [
        UnderlayState(NEAR[6], ifindex, "lan0", 1500), UnderlayState(NEAR[4], ifindex, "lan0", 1500),
        UnderlayState("192.0.2.7", 0, "lo", 1500)]
    with pytest.raises(LinkInvalid):
        switch.underlays(("nobody",))
    assert switch.underlays(()) == {}


@pytest.mark.parametrize("version", [4, 6])
def test_a_router_that_says_too_big_narrows_the_path(switch: Switch, host: Namespace, version: int) -> None:
    far = FAR[version]
    switch.ensure_tunnel(TunnelLink("slvx0", "sluice:tunnel", ipv6=True))
    assert switch.paths((far,))[far].mtu_bytes == 1500
    host.call(lambda: _send_vxlan(version))
    until_s = time.monotonic() + 3
    while switch.paths((far,))[far].mtu_bytes == 1500 and time.monotonic() < until_s:
        time.sleep(0.02)
    path = switch.paths((far,))[far]
    assert path.mtu_bytes == 1300
    assert 0 < path.expires_s <= 600


def test_routes_and_links_say_how_large(switch: Switch, host: Namespace) -> None:
    host.ip("route", "add", "172.31.7.0/24", "via", ROUTER[4], "mtu", "1400")
    host.ip("link", "set", "lan0", "mtu", "1450")
    found = switch.paths((FAR[4], "172.31.7.1", "198.51.100.1"))
    assert {address: path.mtu_bytes for address, path in found.items()} == {FAR[4]: 1450, "172.31.7.1": 1400}
    assert all(path.expires_s == 0 for path in found.values())


def test_a_thousand_paths_are_asked_for_quickly(switch: Switch) -> None:
    wanted = [f"172.31.8.{number}" for number in range(1, 251)] * 4
    began_s = time.thread_time()
    assert len(switch.paths(wanted)) == 250
    assert time.thread_time() - began_s < 0.5


def _send_vxlan(version: int) -> None:
    """A VXLAN packet of 1,400 bytes that no socket of this host has sent, as those of the engine."""
    udp = struct.pack("!HHHH", 50000, 4789, 1360, 0) + struct.pack("!II", 0x08000000, 77 << 8) + bytes(1344)
    if version == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0x4000, 64, 17, 0)
        header += ip_address(NEAR[4]).packed + ip_address(FAR[4]).packed
    else:
        header = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64)
        header += ip_address(NEAR[6]).packed + ip_address(FAR[6]).packed
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(header + udp, (FAR[version], 0))
