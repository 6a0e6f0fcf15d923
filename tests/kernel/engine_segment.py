"""A host with two endpoints on a segment that two machines are on, too; the engine is real.

    a ──veth── pa ┐                      ┌── m1 (and behind it, `far`)
                  host ── up0 ──── lan ──┤
    b ──veth── pb ┘                      └── m2

`mode` says what the endpoints are on the segment: machines of their own ("transparent"), in the host's name ("bridge"),
or in its name and all by way of m1 ("tunnel").
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections import Counter
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import count
from pathlib import Path
from typing import Any, Self

from vswitch_kit import Namespace, run

from vfp.datapath.engine import Datapath, Hook, Limits
from vfp.model import (
    ETH_P_ARP,
    ETH_P_IPV6,
    Action,
    Address,
    Allow,
    AnswerArp,
    Deny,
    EngineState,
    Flooding,
    Forward,
    Group,
    Layer,
    LocalPort,
    Match,
    Port,
    Rate,
    Rule,
    Space,
    Switch,
    ToUplink,
    Uplink,
    Wire,
)
from vfp.reasons import DropReason
from vswitch.switch import Switch as TcSwitch

PARTS = ("host", "a", "b", "m1", "m2", "lan")
PORTS = {"a": 3, "b": 4}
ADDRESS = {
    "host": {4: "192.0.2.1", 6: "2001:db8::1"}, "m1": {4: "192.0.2.11", 6: "2001:db8::11"},
    "m2": {4: "192.0.2.12", 6: "2001:db8::12"}, "a": {4: "192.0.2.21", 6: "2001:db8::21"},
    "b": {4: "192.0.2.22", 6: "2001:db8::22"}, "far": {4: "203.0.113.7", 6: "2001:db8:9::7"},
}
LENGTH = {4: 24, 6: 64}
BROADCAST = "192.0.2.255"
GATEWAY_MAC = bytes.fromhex("0200000000fe")
LINK = {"host": "up0", "m1": "eth0", "m2": "eth0", "a": "eth0", "b": "eth0"}
PLENTY = Rate(1000, 2000)
_SPACE, _UPLINK = 1 << 24, 1
_NUMBERS = count()
_ASKS: dict[str, Any] = {"ethertype": ETH_P_IPV6, "protocol": 58, "icmp_type": 135}


def mac_of(part: str) -> bytes:
    """The MAC of an endpoint."""
    return bytes((2, 0, 0, 0, 0, PORTS[part]))


def address_of(part: str, version: int) -> Address:
    """An address as a value."""
    return (IPv4Address if version == 4 else IPv6Address)(ADDRESS[part][version])


def _rule(priority: int, action: Action, **match: Any) -> Rule:
    return Rule(priority, Match(**match), action, f"r{priority}")


def _vnet(mode: str) -> Layer:
    if mode == "transparent":
        return _layer("vnet", (_rule(0, Switch(_SPACE)),))
    via: dict[int, Address | None] = {4: None, 6: None}
    inside: tuple[Rule, ...] = ()
    if mode == "tunnel":
        via = {version: address_of("m1", version) for version in (4, 6)}
    else:
        inside = tuple(
            _rule(2 + number, Forward(_SPACE), dst=network) for number, network in enumerate((
                *(IPv4Network(ADDRESS[part][4]) for part in PORTS),
                *(IPv6Network(ADDRESS[part][6]) for part in PORTS))))
    return _layer("vnet", (
        _rule(0, AnswerArp(_SPACE, proxy=True), ethertype=ETH_P_ARP), _rule(1, AnswerArp(_SPACE, proxy=True), **_ASKS),
        *inside,
        _rule(8, ToUplink(_UPLINK, bridged=True, via=via[6]), ethertype=ETH_P_IPV6),
        _rule(9, ToUplink(_UPLINK, bridged=True, via=via[4]))))


def _layer(name: str, out: tuple[Rule, ...], in_: tuple[Rule, ...] = ()) -> Layer:
    return Layer(name, (Group(name, out),), (Group(name, in_),) if in_ else (), Deny(), Allow())


class Segment:
    """All of it, up and running; a context manager."""

    def __init__(self, mode: str, *, rate: Rate = PLENTY, vlans: tuple[int, ...] = ()) -> None:
        self.mode, self._rate, self._vlans = mode, rate, vlans
        self.parts = {part: Namespace(f"e2-{part}-{next(_NUMBERS)}-{os.getpid()}") for part in PARTS}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            for part in PARTS:
                self._add(part)
            self._wire()
            self._address()
            self._program()
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
                 "net.ipv6.conf.default.router_solicitations=0", "net.ipv4.conf.all.send_redirects=0",
                 "net.ipv4.conf.default.send_redirects=0", "net.ipv4.icmp_echo_ignore_broadcasts=0"]
        if part == "m1":
            quiet += ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
        self.parts[part].execute("sysctl", "-qw", *quiet)

    def _wire(self) -> None:
        self.parts["lan"].ip("link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        self.parts["lan"].ip("link", "set", "br0", "up")
        for part, link, other, far_end in (
            ("host", "pa", "a", "eth0"), ("host", "pb", "b", "eth0"), ("lan", "p0", "host", "up0"),
            ("lan", "p1", "m1", "eth0"), ("lan", "p2", "m2", "eth0"),
        ):
            self.parts[part].ip("link", "add", link, "type", "veth", "peer", far_end, "netns", self.parts[other].name)
            if other in PORTS:
                self.parts[other].ip("link", "set", far_end, "address", mac_of(other).hex(":"))
            if part == "lan":
                self.parts[part].ip("link", "set", link, "master", "br0")
            for each, its in ((part, link), (other, far_end)):
                self.parts[each].ip("link", "set", its, "up")
                self.parts[each].ip("link", "set", "lo", "up")

    def _address(self) -> None:
        for version, length in LENGTH.items():
            for part, link in LINK.items():
                self.parts[part].ip("addr", "add", f"{ADDRESS[part][version]}/{length}", "dev", link,
                                    *(("brd", "+") if version == 4 else ("nodad",)))
                if part != "m1":
                    self.parts[part].ip(f"-{version}", "route", "add", "default", "via", ADDRESS["m1"][version])
            self.parts["m1"].ip("addr", "add", f"{ADDRESS['far'][version]}/{32 if version == 4 else 128}", "dev", "lo")

    def _program(self) -> None:
        host = self.parts["host"]
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        switch = self._stack.enter_context(host.call(lambda: TcSwitch(folder)))
        self.engine = self._stack.enter_context(
            Datapath.open(None, Limits(flows=4096, rules=1024, bindings=4096, ports=64, space_entries=64, mappings=64)))
        ports = {part: int(host.link(f"p{part}")["ifindex"]) for part in PORTS}
        up = host.link("up0")
        self.uplink_mac = bytes.fromhex(up["address"].replace(":", ""))
        self._links = ports, int(up["ifindex"])
        self.engine.apply(self.state())
        for ifindex in ports.values():
            switch.attach(ifindex, "ingress", self.engine.program_fd(Hook.PORT_OUT), "sluice_port_out")
            switch.attach(ifindex, "egress", self.engine.program_fd(Hook.PORT_IN), "sluice_port_in")
        switch.attach(int(up["ifindex"]), "ingress", self.engine.program_fd(Hook.UPLINK_IN), "sluice_uplink_in")

    def state(self, *acl: Rule) -> EngineState:
        """What the engine is told; `acl` judges what comes to b."""
        ports, uplink = self._links
        guards = {part: _layer("guard", (
            _rule(0, Allow(), src_mac=mac_of(part)),), acl if part == "b" else ()) for part in PORTS}
        stations: dict[str, Any] = {"wire": Wire(_UPLINK, proxy=True)}
        if self.mode == "transparent":
            stations = {"wire": Wire(_UPLINK), "stations": tuple((mac_of(part), id) for part, id in PORTS.items()),
                        "flooding": Flooding(self._rate)}
        return EngineState(
            ports=tuple(
                Port(id, part, ports[part], mac_of(part), GATEWAY_MAC, (guards[part], _vnet(self.mode)),
                     vlans=self._vlans)
                for part, id in PORTS.items()),
            spaces=(Space(_SPACE, tuple(
                (address_of(part, version), LocalPort(id, mac_of(part)))
                for part, id in PORTS.items() for version in LENGTH), **stations),),
            uplinks=(Uplink(_UPLINK, "up0", uplink, mac=self.uplink_mac),))

    # What tests do

    def pings(self, source: str, target: str, version: int) -> str:
        """What `ping` says; empty if there is no answer."""
        return self.parts[source].execute("ping", f"-{version}", "-c", "1", "-W", "2", ADDRESS[target][version])

    def udp(self, part: str, *, port: int = 0) -> socket.socket:
        """An IPv4 socket that may send to all."""
        made = self.parts[part].call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._stack.callback(made.close)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        made.settimeout(2)
        if port:
            made.bind(("", port))
        return made

    def wire(self, part: str, link: str) -> socket.socket:
        """Every frame of a link, raw."""
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            made.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)         # SO_RCVBUFFORCE
            made.bind((link, 0x0003))
            return made

        made = self.parts[part].call(make)
        made.settimeout(2)
        self._stack.callback(made.close)
        return made

    def neighbour(self, part: str, whom: str, version: int) -> str:
        """The MAC that a part knows of another."""
        found = self.parts[part].show(f"-{version}", "neigh", "show", ADDRESS[whom][version], "dev", LINK[part])
        return str(found[0].get("lladdr", "")) if found else ""

    def drops(self) -> Counter[DropReason]:
        """What the engine has dropped so far."""
        return Counter({reason: count for reason, count in self.engine.drop_counts().items() if count})


def waiting(wire: socket.socket) -> list[bytes]:
    """The frames that a link has for us."""
    wire.setblocking(False)
    frames = []
    while True:
        try:
            frames.append(wire.recv(1 << 16))
        except BlockingIOError:
            return frames
