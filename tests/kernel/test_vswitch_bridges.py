"""Bridges are made and mended; they carry traffic between their ports and the host, and neither flood nor learn."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vswitch_kit import Namespace, World, port, run, world

from vswitch import BridgeLink, InterfaceTaken, LinkInvalid, LinkMissing, Switch

MAC = "02:99:00:00:00:01"
BRIDGE = BridgeLink("slb1", "sluice:bridge:uid", MAC, ("10.99.0.1/24",), 1400)


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    return w.namespace("host")


@pytest.fixture
def switch(w: World, host: Namespace) -> Switch:
    return w.switch(host)


def neighbours(host: Namespace) -> dict[str, str]:
    shown = host.show("neighbour", "show", "dev", "slb1", "nud", "permanent")
    return {one["dst"]: one["lladdr"] for one in shown if ":" not in one["dst"]}


def forwarding(host: Namespace, name: str) -> set[str]:
    """Entries of a bridge port, static or learned, but for its own address."""
    entries: list[dict[str, Any]] = json.loads(run("bridge", "-n", host.name, "-j", "fdb", "show", "brport", name))
    return {one["mac"] for one in entries if one["state"] != "permanent" and "master" in one}


def test_new_bridge_has_all_that_was_asked_for(switch: Switch, host: Namespace) -> None:
    ifindex = switch.ensure_bridge(BRIDGE)
    here = host.link("slb1")
    assert (here["ifindex"], here["address"], here["mtu"]) == (ifindex, MAC, 1400)
    assert here["ifalias"] == "sluice:bridge:uid"
    assert "UP" in here["flags"]
    data = here["linkinfo"]["info_data"]
    assert (data["stp_state"], data["mcast_snooping"]) == (0, 0)
    assert host.addresses("slb1") == ["10.99.0.1/24"]
    assert switch.ensure_bridge(BRIDGE) == ifindex


@pytest.mark.parametrize(
    "damage",
    [
        "link set slb1 address 02:00:00:00:00:99",
        "link set slb1 mtu 1300",
        "link set slb1 down",
        "link set slb1 type bridge stp_state 1",
        "link set slb1 type bridge mcast_snooping 1",
        "address flush dev slb1",
        "address add 10.1.2.3/24 dev slb1",
    ],
)
def test_damage_is_mended_in_place(switch: Switch, host: Namespace, damage: str) -> None:
    ifindex = switch.ensure_bridge(BRIDGE)
    host.ip(*damage.split())
    assert switch.ensure_bridge(BRIDGE) == ifindex
    here = host.link("slb1")
    assert (here["address"], here["mtu"]) == (MAC, 1400)
    assert "UP" in here["flags"]
    data = here["linkinfo"]["info_data"]
    assert (data["stp_state"], data["mcast_snooping"]) == (0, 0)
    assert host.addresses("slb1") == ["10.99.0.1/24"]


def test_bridge_that_was_never_finished_is_adopted(switch: Switch, host: Namespace) -> None:
    host.ip("link", "add", "slb1", "group", "20942", "type", "bridge")
    ifindex = host.link("slb1")["ifindex"]
    assert switch.ensure_bridge(BRIDGE) == ifindex
    assert switch.owned()["slb1"].alias == "sluice:bridge:uid"


def test_foreign_bridge_is_left_alone(w: World, switch: Switch, host: Namespace) -> None:
    host.ip("link", "add", "slb1", "type", "bridge")
    before = host.link("slb1")["ifindex"]
    with pytest.raises(InterfaceTaken, match="did not make"):
        switch.ensure_bridge(BRIDGE)
    with pytest.raises(InterfaceTaken, match="did not make"):
        switch.ensure_port(port(5, w.namespace("end"), bridge="slb1"))
    with pytest.raises(InterfaceTaken, match="did not make"):
        switch.set_neighbours("slb1", {})
    switch.remove("slb1")
    assert host.link("slb1")["ifindex"] == before
    assert host.addresses("slb1") == []


def test_neighbours_are_exactly_those_given(switch: Switch, host: Namespace) -> None:
    switch.ensure_bridge(BRIDGE)
    first = {"10.99.0.5": "02:99:00:00:00:05", "10.99.0.6": "02:99:00:00:00:06"}
    switch.set_neighbours("slb1", first)
    assert neighbours(host) == first
    second = {"10.99.0.6": "02:99:00:00:00:66", "10.99.0.7": "02:99:00:00:00:07"}
    switch.set_neighbours("slb1", second)
    assert neighbours(host) == second
    switch.set_neighbours("slb1", {})
    assert neighbours(host) == {}


def test_many_neighbours(switch: Switch, host: Namespace) -> None:
    switch.ensure_bridge(BRIDGE)
    many = {f"10.99.{number >> 8}.{number & 255}": f"02:99:00:00:{number >> 8:02x}:{number & 255:02x}"
            for number in range(2, 500)}
    switch.set_neighbours("slb1", many)
    assert neighbours(host) == many


def test_neighbours_of_no_bridge_are_refused(switch: Switch) -> None:
    with pytest.raises(LinkMissing, match="slb1"):
        switch.set_neighbours("slb1", {})


def test_impossible_neighbour_is_refused(switch: Switch) -> None:
    switch.ensure_bridge(BRIDGE)
    with pytest.raises(LinkInvalid):
        switch.set_neighbours("slb1", {"10.99.0.5": "ff:ff:ff:ff:ff:ff"})
    with pytest.raises(LinkInvalid):
        switch.set_neighbours("slb1", {"10.99.0": "02:99:00:00:00:05"})


def test_port_joins_and_leaves_a_bridge(w: World, switch: Switch, host: Namespace) -> None:
    end = w.namespace("end")
    switch.ensure_bridge(BRIDGE)
    ifindex = switch.ensure_port(port(5, end, bridge="slb1"))
    slave = host.link("slp5")["linkinfo"]["info_slave_data"]
    flags = ("learning", "flood", "mcast_flood", "bcast_flood")
    assert [slave[flag] for flag in flags] == [False] * 4
    assert forwarding(host, "slp5") == {"02:99:00:00:00:05"}
    assert switch.ensure_port(port(5, end)) == ifindex
    assert "master" not in host.link("slp5")
    assert switch.ensure_port(port(5, end, bridge="slb1")) == ifindex
    assert forwarding(host, "slp5") == {"02:99:00:00:00:05"}


def test_damage_to_a_bridge_port_is_mended(w: World, switch: Switch, host: Namespace) -> None:
    end = w.namespace("end")
    switch.ensure_bridge(BRIDGE)
    switch.ensure_port(port(5, end, bridge="slb1"))
    host.ip("link", "set", "slp5", "type", "bridge_slave", "learning", "on", "flood", "on")
    run("bridge", "-n", host.name, "fdb", "add", "02:11:00:00:00:01", "dev", "slp5", "master", "static")
    run("bridge", "-n", host.name, "fdb", "del", "02:99:00:00:00:05", "dev", "slp5", "master")
    switch.ensure_port(port(5, end, bridge="slb1"))
    slave = host.link("slp5")["linkinfo"]["info_slave_data"]
    assert (slave["learning"], slave["flood"]) == (False, False)
    assert forwarding(host, "slp5") == {"02:99:00:00:00:05"}
    switch.ensure_port(port(5, end, bridge="slb1", mac="02:99:00:00:00:55"))
    assert forwarding(host, "slp5") == {"02:99:00:00:00:55"}


def test_host_and_endpoints_reach_each_other(w: World, switch: Switch, host: Namespace) -> None:
    ends = [w.namespace("one"), w.namespace("two")]
    switch.ensure_bridge(BRIDGE)
    macs = {}
    for number, end in enumerate(ends, start=5):
        link = port(number, end, bridge="slb1")
        switch.ensure_port(link)
        macs[link.addresses[0].split("/")[0]] = link.mac
    switch.set_neighbours("slb1", macs)
    # Nothing is flooded, so nobody hears an ARP request of another; in Sluice the engine answers them.
    everyone = macs | {"10.99.0.1": MAC}
    for end in ends:
        for address, mac in everyone.items():
            end.ip("neighbour", "replace", address, "lladdr", mac, "dev", "eth0", "nud", "permanent", check=False)
    assert ends[0].pings("10.99.0.6")
    assert ends[1].pings("10.99.0.5")
    assert ends[0].pings("10.99.0.1")
    assert host.pings("10.99.0.6")


def test_bridge_floods_nothing(w: World, switch: Switch, host: Namespace) -> None:
    one, two = w.namespace("one"), w.namespace("two")
    switch.ensure_bridge(BRIDGE)
    switch.ensure_port(port(5, one, bridge="slb1"))
    switch.ensure_port(port(6, two, bridge="slb1"))

    def listen() -> socket.socket:
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        heard.bind(("eth0", 0x88B5))
        heard.settimeout(0.3)
        return heard

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("eth0", 0))
            for target in ("ffffffffffff", "01005e000001", "021100000001"):
                sender.send(bytes.fromhex(target + "029900000005" + "88b5") + bytes(50))

    with two.call(listen) as heard:
        one.call(send)
        with pytest.raises(TimeoutError):
            heard.recv(100)
    assert forwarding(host, "slp5") == {"02:99:00:00:00:05"}
