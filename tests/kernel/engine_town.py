"""Two endpoints of one host, a third on another, and a world behind a router with a small MTU; the engines are real.

    a ──veth── pa ┐
                  host ── up0 ──veth── way ──veth (MTU 1400)── world
    b ──veth── pb ┘ └─ ul0 ══VXLAN══ ul0 ─ far ── pc ──veth── c

Endpoints and `way` have links with an MTU of 9000; that of `up0` may be given. What `way` sends on to `world`
has its checksums computed by `way`, so that the world checks what the engine made of a partial one.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Self

from vswitch_kit import Namespace, run

from vfp.datapath.engine import Datapath, Hook, Limits
from vfp.model import (
    ETH_P_ARP,
    ETH_P_IPV6,
    Action,
    Allow,
    AnswerArp,
    Deny,
    EngineState,
    Forward,
    Group,
    Layer,
    LocalPort,
    Mapping,
    Match,
    Pool,
    Port,
    PortRange,
    Remote,
    Rule,
    Space,
    ToUplink,
    TranslateSource,
    Untranslate,
    Uplink,
    Virtual,
)
from vfp.reasons import DropReason
from vswitch.switch import Switch

MTU, NARROW_MTU, WIDE_MTU = 9000, 1400, 9100
PARTS = ("a", "b", "c", "host", "far", "way", "world")
ENDPOINTS = {"a": 3, "b": 4, "c": 5}        # port ids, and last digits of addresses
HOSTED = {"host": ("a", "b"), "far": ("c",)}
ADDRESS = {
    "a": {4: "10.7.0.3", 6: "fd00::3"}, "b": {4: "10.7.0.4", 6: "fd00::4"}, "c": {4: "10.7.0.5", 6: "fd00::5"},
    "gateway": {4: "10.7.0.1", 6: "fd00::1"}, "host": {4: "198.51.100.1", 6: "2001:db8:1::1"},
    "way": {4: "198.51.100.254", 6: "2001:db8:1::fe"}, "exit": {4: "203.0.113.254", 6: "2001:db8:2::fe"},
    "world": {4: "203.0.113.7", 6: "2001:db8:2::7"},
}
LENGTH = {4: 24, 6: 64}
MAPPED_PORT, SERVER_PORT = 8080, 80         # at the host, for TCP and UDP; at b

TX_CHECKSUMS, TSO, GSO, GRO = 0x17, 0x1F, 0x24, 0x2C     # ETHTOOL_S*, linux/ethtool.h
_SIOCETHTOOL = 0x8946
_VTEP = {"host": IPv4Address("172.31.0.2"), "far": IPv4Address("172.31.0.3")}
_SPACE, _UPLINK, _TCP, _UDP = 100, 1, 6, 17         # the space is a VNI
_GATEWAY_MAC = bytes.fromhex("0200000000fe")
_INSIDE = {4: IPv4Network("10.7.0.0/24"), 6: IPv6Network("fd00::/64")}
_ASKS: dict[str, Any] = {"ethertype": ETH_P_IPV6, "protocol": 58, "icmp_type": 135}


def mac_of(part: str) -> bytes:
    """The MAC of an endpoint."""
    return bytes((2, 0, 0, 0, 0, ENDPOINTS[part]))


def _rule(priority: int, action: Action, **match: Any) -> Rule:
    return Rule(priority, Match(**match), action, f"r{priority}")


def _layer(name: str, out: tuple[Rule, ...], in_: tuple[Rule, ...] = ()) -> Layer:
    return Layer(name, (Group(name, out),), (Group(name, in_),) if in_ else (), Deny(), Allow())


def _port(part: str, ifindex: int) -> Port:
    guard = _layer("guard", (
        _rule(1, Allow(), ethertype=ETH_P_ARP, arp_sender_is_source=True),
        _rule(2, Allow(), nd_sender_is_source=True, **_ASKS),
        _rule(3, Allow(), src=IPv6Network(ADDRESS[part][6]), src_mac=mac_of(part)),
        _rule(4, Allow(), src=IPv4Network(ADDRESS[part][4]), src_mac=mac_of(part)),
    ))
    nat = _layer("nat", (
        _rule(1, Allow(), ethertype=ETH_P_ARP), _rule(2, Allow(), **_ASKS),
        _rule(3, Allow(), dst=_INSIDE[4]), _rule(4, Allow(), dst=_INSIDE[6]),
        _rule(5, TranslateSource(6), ethertype=ETH_P_IPV6), _rule(6, TranslateSource(4)),
    ), (_rule(1, Untranslate()),))
    vnet = _layer("vnet", (
        _rule(1, AnswerArp(_SPACE), ethertype=ETH_P_ARP), _rule(2, AnswerArp(_SPACE), **_ASKS),
        _rule(3, Forward(_SPACE), dst=_INSIDE[4]), _rule(4, Forward(_SPACE), dst=_INSIDE[6]),
        _rule(5, ToUplink(_UPLINK)),
    ))
    return Port(ENDPOINTS[part], part, ifindex, mac_of(part), _GATEWAY_MAC, (guard, nat, vnet))


def state(host: str, ports: dict[str, int], tunnel: int, uplink: int, mtu: int = MTU) -> EngineState:
    """A host's state for these interfaces: endpoints reach each other, and (uplink not 0) the world by translation."""
    places: list[tuple[Any, Any]] = []
    mappings = []
    for version in (4, 6):
        address = IPv4Address if version == 4 else IPv6Address
        for there, parts in HOSTED.items():
            places += [
                (address(ADDRESS[part][version]), LocalPort(ENDPOINTS[part], mac_of(part)) if there == host
                 else Remote(_VTEP[there], _SPACE, mac_of(part))) for part in parts]
        places.append((address(ADDRESS["gateway"][version]), Virtual(_GATEWAY_MAC)))
        mappings += [
            Mapping(_UPLINK, protocol, address(ADDRESS["host"][version]), MAPPED_PORT, ENDPOINTS["b"],
                    address(ADDRESS["b"][version]), SERVER_PORT) for protocol in (_TCP, _UDP)]
    inside = EngineState(
        ports=tuple(_port(part, ifindex) for part, ifindex in ports.items()), spaces=(Space(_SPACE, tuple(places)),),
        tunnel_ifindex=tunnel)
    if not uplink:
        return inside
    return replace(
        inside, mappings=tuple(mappings), uplinks=(Uplink(_UPLINK, "up0", uplink, mtu=mtu),),
        pools=(Pool(4, _UPLINK, (IPv4Address(ADDRESS["host"][4]),), PortRange(20000, 20999)),
               Pool(6, _UPLINK, (IPv6Address(ADDRESS["host"][6]),), PortRange(20000, 20999))))


class Town:
    """All of it, up and running; a context manager. `engines` are those of the two hosts."""

    def __init__(self, uplink_mtu: int = MTU) -> None:
        self._uplink_mtu = uplink_mtu
        self.engines: dict[str, Datapath] = {}
        self.parts = {part: Namespace(f"town-{part}-{uplink_mtu}-{os.getpid()}") for part in PARTS}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            for part in PARTS:
                self._add(part)
            self._wire()
            self._address()
            self._program("host")
            self._program("far")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _add(self, part: str) -> None:
        name = self.parts[part].name
        run("ip", "netns", "add", name)
        self._stack.callback(run, "ip", "netns", "del", name)
        quiet = ["net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
                 "net.ipv6.conf.default.router_solicitations=0"]
        if part == "way":
            quiet += ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.icmp_ratelimit=0",
                      "net.ipv6.icmp.ratelimit=0"]
        self.parts[part].execute("sysctl", "-qw", *quiet)

    def _wire(self) -> None:
        for part, link, other, far_end, mtu in (
            ("host", "pa", "a", "eth0", MTU), ("host", "pb", "b", "eth0", MTU), ("far", "pc", "c", "eth0", MTU),
            ("host", "ul0", "far", "ul0", WIDE_MTU), ("host", "up0", "way", "in0", self._uplink_mtu),
            ("way", "out0", "world", "eth0", NARROW_MTU),
        ):
            self.parts[part].ip("link", "add", link, "mtu", str(mtu), "type", "veth", "peer", far_end, "mtu", str(mtu),
                                "netns", self.parts[other].name)
            if other in ENDPOINTS:
                self.parts[other].ip("link", "set", far_end, "address", mac_of(other).hex(":"))
            for each, its in ((part, link), (other, far_end)):
                self.parts[each].ip("link", "set", its, "up")
                self.parts[each].ip("link", "set", "lo", "up")
        self.offload("way", "out0", TX_CHECKSUMS, on=False)

    def _address(self) -> None:
        for part, address in _VTEP.items():
            self.parts[part].ip("addr", "add", f"{address}/24", "dev", "ul0")
        where = (("a", "eth0", "a"), ("b", "eth0", "b"), ("c", "eth0", "c"), ("host", "up0", "host"),
                 ("way", "in0", "way"), ("way", "out0", "exit"), ("world", "eth0", "world"))
        routes = (("a", "gateway"), ("b", "gateway"), ("c", "gateway"), ("host", "way"), ("world", "exit"))
        for version, length in LENGTH.items():
            for part, link, name in where:
                self.parts[part].ip("addr", "add", f"{ADDRESS[name][version]}/{length}", "dev", link,
                                    *(("nodad",) if version == 6 else ()))
            for part, via in routes:
                self.parts[part].ip(f"-{version}", "route", "add", "default", "via", ADDRESS[via][version])

    def _program(self, name: str) -> None:
        host = self.parts[name]
        host.ip("link", "add", "vx0", "mtu", str(MTU), "type", "vxlan", "external", "dstport", "4789")
        host.ip("link", "set", "vx0", "up")
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        switch = self._stack.enter_context(host.call(lambda: Switch(folder)))
        engine = self._stack.enter_context(
            Datapath.open(None, Limits(flows=4096, rules=1024, bindings=4096, ports=64, space_entries=64, mappings=64)))
        ports = {part: host.link(f"p{part}")["ifindex"] for part in HOSTED[name]}
        tunnel = host.link("vx0")["ifindex"]
        uplink = host.link("up0")["ifindex"] if name == "host" else 0
        engine.apply(state(name, ports, tunnel, uplink, self._uplink_mtu))
        for ifindex in ports.values():
            switch.attach(ifindex, "ingress", engine.program_fd(Hook.PORT_OUT), "sluice_port_out")
        switch.attach(tunnel, "ingress", engine.program_fd(Hook.OVERLAY_IN), "sluice_overlay_in")
        if uplink:
            switch.attach(uplink, "ingress", engine.program_fd(Hook.UPLINK_IN), "sluice_uplink_in")
        self.engines[name] = engine

    # What tests do

    def socket(self, part: str, version: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket in one of the namespaces, closed with the town at the latest."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made = self.parts[part].call(lambda: socket.socket(family, kind, protocol))
        made.settimeout(5)
        self._stack.callback(made.close)
        return made

    def wire(self, part: str, link: str) -> socket.socket:
        """Every frame of a link, raw: to send and to receive."""
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            made.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)         # SO_RCVBUFFORCE
            made.bind((link, 0x0003))
            return made

        made = self.parts[part].call(make)
        made.settimeout(5)
        self._stack.callback(made.close)
        return made

    def offload(self, part: str, link: str, what: int, *, on: bool) -> bool:
        """Turn an offload of a link on or off, as `ethtool -K` does; how it was before."""
        def ask(command: int, data: int = 0) -> int:
            value = array.array("I", (command, data))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                request = struct.pack("16sP16x", link.encode(), value.buffer_info()[0])
                fcntl.ioctl(control, _SIOCETHTOOL, request)
            return value[1]

        def change() -> bool:
            was = ask(what - 1)             # ETHTOOL_G* is always one less
            ask(what, int(on))
            return bool(was)

        return self.parts[part].call(change)

    @contextmanager
    def without(self, *offloads: int, links: Iterable[tuple[str, str]]) -> Iterator[None]:
        """Some offloads are off meanwhile."""
        were = [(part, link, what, self.offload(part, link, what, on=False))
                for part, link in links for what in offloads]
        try:
            yield
        finally:
            for part, link, what, was in reversed(were):
                self.offload(part, link, what, on=was)

    def bad_checksums(self) -> dict[str, int]:
        """What the stacks of all parts have refused for its checksum, by part and counter; those above zero."""
        found = {}
        for part, namespace in self.parts.items():
            for line in namespace.execute("nstat", "-asz").splitlines():
                words = line.split()
                if len(words) > 1 and (words[0].endswith("CsumErrors") or words[0] == "IpInHdrErrors"):
                    found[f"{part} {words[0]}"] = int(words[1])
        return {name: count for name, count in found.items() if count}

    def drops(self) -> Counter[DropReason]:
        """What the host's engine has dropped so far."""
        return Counter({reason: count for reason, count in self.engines["host"].drop_counts().items() if count})
