"""Tap ports: made, adopted, mended and removed; a program that opens one is the machine behind it."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vswitch_kit import Namespace, World, world

from vswitch import BridgeLink, InterfaceTaken, LinkInvalid, PortLink, Switch
from vswitch.taps import IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, REQUEST, TUNSETIFF

BRIDGE = BridgeLink("slb1", "sluice:bridge:uid", "02:99:00:00:00:01", ("10.99.0.1/24",), 1400)


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    if not Path("/dev/net/tun").exists():
        pytest.fail("no /dev/net/tun: modprobe tun")
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    return w.namespace("host")


@pytest.fixture
def switch(w: World, host: Namespace) -> Switch:
    return w.switch(host)


def tap(number: int = 5, name: str = "vm5", **changes: object) -> PortLink:
    fields: dict[str, object] = {
        "host_interface": name, "alias": f"sluice:port:uid-{number}:{number}", "netns": "", "interface": "",
        "mac": f"02:99:00:00:00:{number:02x}", "addresses": (f"10.99.0.{number}/24",), "gateways": ("10.99.0.1",),
        "mtu_bytes": 1400, "tap": True,
    }
    return PortLink(**(fields | changes))  # type: ignore[arg-type]


@contextmanager
def machine(host: Namespace, name: str, flags: int = 0) -> Iterator[int]:
    """Opens the tap as a hypervisor does; the descriptor carries frames behind a virtio_net_hdr of 10 bytes."""

    def plug() -> int:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.ioctl(device, TUNSETIFF, REQUEST.pack(name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags))
        except OSError:
            os.close(device)
            raise
        return device

    device = host.call(plug)
    try:
        yield device
    finally:
        os.close(device)


def test_new_tap_has_all_that_was_asked_for(switch: Switch, host: Namespace) -> None:
    switch.ensure_bridge(BRIDGE)
    ifindex = switch.ensure_port(tap(bridge="slb1"))
    here = host.link("vm5")
    assert (here["ifindex"], here["ifalias"], here["mtu"]) == (ifindex, "sluice:port:uid-5:5", 1400)
    assert here["master"] == "slb1"
    assert "UP" in here["flags"]
    data = here["linkinfo"]["info_data"]
    assert (data["type"], data["persist"], data["vnet_hdr"], data["pi"]) == ("tap", True, True, False)
    assert data["user"] in (0, "root")
    assert host.addresses("vm5") == []
    assert here["address"] != "02:99:00:00:00:05"      # that is the machine's
    assert switch.owned()["vm5"].kind == "tun"
    assert switch.ensure_port(tap(bridge="slb1")) == ifindex


def test_second_process_adopts_it_and_the_machine_keeps_it(w: World, switch: Switch, host: Namespace) -> None:
    ifindex = switch.ensure_port(tap())
    with machine(host, "vm5") as device:
        assert w.switch(host).ensure_port(tap()) == ifindex
        assert switch.ensure_port(tap(mtu_bytes=1300)) == ifindex
        frame = bytes.fromhex("ffffffffffff" "029900000005" "88b5") + bytes(50)

        def listen() -> socket.socket:
            heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
            heard.bind(("vm5", 0x88B5))
            heard.settimeout(2)
            return heard

        with host.call(listen) as heard:
            os.write(device, bytes(10) + frame)
            assert heard.recv(200) == frame
    assert host.link("vm5")["ifindex"] == ifindex      # persistent
    assert host.link("vm5")["mtu"] == 1300


def test_segmentation_is_left_to_the_machine(switch: Switch, host: Namespace) -> None:
    tun_f_csum, tun_f_tso4, tunsetoffload = 1, 2, 0x400454D0
    switch.ensure_port(tap())
    with machine(host, "vm5") as device:
        assert not host.call(segments)
        fcntl.ioctl(device, tunsetoffload, tun_f_csum | tun_f_tso4)
        assert host.call(segments)
        switch.ensure_port(tap(mtu_bytes=1300))
        assert host.call(segments)


def test_each_queue_carries_offloaded_segments(switch: Switch, host: Namespace) -> None:
    """A machine with two queues sends a segment of 8,000 bytes by each; it arrives in one piece."""
    ifindex = switch.ensure_port(tap(queues=2))
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 0, 0, 5 << 4, 0x10, 100, 0, 0) + bytes(8000)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0, bytes(4), bytes(4))
    frame = bytes.fromhex("ffffffffffff" "029900000005" "0800") + ip + tcp
    needs_checksum, tcp4 = 1, 1
    header = struct.pack("=BBHHHH", needs_checksum, tcp4, 54, 1300, 34, 16)

    def listen() -> socket.socket:
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        heard.bind(("vm5", 0x0800))
        heard.settimeout(2)
        return heard

    with machine(host, "vm5", IFF_MULTI_QUEUE) as first, machine(host, "vm5", IFF_MULTI_QUEUE) as second:
        assert switch.ensure_port(tap(queues=2)) == ifindex
        assert switch.ensure_port(tap(queues=4)) == ifindex      # how many is the machine's choice
        with host.call(listen) as heard:
            for device in (first, second):
                os.write(device, header + frame)
                assert len(heard.recv(20000)) == len(frame)
        with pytest.raises(InterfaceTaken, match="stop the machine"):
            switch.ensure_port(tap())
    assert switch.ensure_port(tap()) != ifindex
    with machine(host, "vm5"), pytest.raises(OSError, match="Invalid argument"), machine(host, "vm5", IFF_MULTI_QUEUE):
        pass


def segments() -> bool:
    """Whether the device takes TCP segments larger than its MTU (ETHTOOL_GTSO of linux/ethtool.h)."""
    siocethtool, ethtool_gtso = 0x8946, 0x1E
    asked = array("I", [ethtool_gtso, 0])
    address, _length = asked.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, siocethtool, struct.pack("16sQ16x", b"vm5", address))
    return bool(asked[1])


@pytest.mark.parametrize("damage", ["mtu 1300", "down", "group 0", "nomaster"])
def test_damage_is_mended_in_place(switch: Switch, host: Namespace, damage: str) -> None:
    switch.ensure_bridge(BRIDGE)
    ifindex = switch.ensure_port(tap(bridge="slb1"))
    host.ip("link", "set", "vm5", *damage.split())
    assert switch.ensure_port(tap(bridge="slb1")) == ifindex
    here = host.link("vm5")
    assert (here["mtu"], here["master"]) == (1400, "slb1")
    assert "UP" in here["flags"]


@pytest.mark.parametrize("kind", ["tap", "tun", "bridge"])
def test_foreign_device_is_named_and_left_alone(switch: Switch, host: Namespace, kind: str) -> None:
    if kind == "bridge":
        host.ip("link", "add", "vm5", "type", "bridge")
    else:
        host.ip("tuntap", "add", "dev", "vm5", "mode", kind)
    before = host.link("vm5")
    with pytest.raises(InterfaceTaken, match="vm5"):
        switch.ensure_port(tap())
    switch.remove("vm5")
    assert host.link("vm5") == before


def test_two_ports_cannot_have_one_tap(switch: Switch, host: Namespace) -> None:
    ifindex = switch.ensure_port(tap())
    with pytest.raises(InterfaceTaken, match="uid-5:5"):
        switch.ensure_port(tap(6))
    assert host.link("vm5")["ifindex"] == ifindex


def test_a_link_of_ours_is_no_tap(switch: Switch) -> None:
    switch.ensure_bridge(BRIDGE)
    with pytest.raises(InterfaceTaken, match="bridge of ours"):
        switch.ensure_port(tap(name="slb1"))


def test_tap_that_was_never_finished_goes_with_its_maker(switch: Switch, host: Namespace) -> None:
    with machine(host, "vm5"):                          # not persistent, not marked
        host.ip("link", "set", "vm5", "group", "20942")
        assert switch.owned()["vm5"].alias == ""
    assert not host.has("vm5")
    switch.ensure_port(tap())
    assert switch.owned()["vm5"].alias == "sluice:port:uid-5:5"


def test_removal_takes_it_and_may_be_repeated(switch: Switch, host: Namespace) -> None:
    switch.ensure_port(tap())
    switch.remove("vm5")
    switch.remove("vm5")
    assert not host.has("vm5")


@pytest.mark.parametrize("changes", [{"name": ""}, {"name": "much-too-long-a-name"}, {"alias": "theirs"}, {"mac": "x"}])
def test_impossible_tap_is_refused(switch: Switch, host: Namespace, changes: dict[str, object]) -> None:
    with pytest.raises(LinkInvalid):
        switch.ensure_port(tap(**changes))  # type: ignore[arg-type]
    assert switch.owned() == {}
