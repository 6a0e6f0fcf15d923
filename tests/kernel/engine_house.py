"""A host whose endpoints, own sockets and neighbours reach one another by mapped ports; the engine is real.

    a  ──veth── pa ┐ 10.7.0.0/24, fd00::/64      lo   (an uplink, too)
    b  ──veth── pb ┤
    vm ══tap═══ tc ┤                             host ── up0 ──veth── world
    t  ──veth── pt ┘ another's network, of the same prefix: its one endpoint has the address of `a`

The machine behind the tap is a namespace with a tap of its own; a thread carries frames between them. The host's tap
has no offloads, so what it gives is whole: the machine's stack verifies each checksum.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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
    Address,
    Allow,
    AnswerArp,
    Deny,
    EngineState,
    Forward,
    Group,
    Hairpin,
    Layer,
    LocalPort,
    Mapping,
    Match,
    Mirror,
    Pool,
    Port,
    PortRange,
    Reject,
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

ENDPOINTS = {"a": 3, "b": 4, "vm": 5, "t": 6}           # port ids, and last digits of MACs
_LAST = {**ENDPOINTS, "t": 3, "gateway": 1}             # and of addresses
INSIDE = {4: IPv4Network("10.7.0.0/24"), 6: IPv6Network("fd00::/64")}
HOST = {4: "198.51.100.1", 6: "2001:db8:1::1"}
WHOLE = {4: "198.51.100.2", 6: "2001:db8:1::2"}         # all of it is b's
WORLD = {4: "198.51.100.7", 6: "2001:db8:1::7"}
LOCALHOST = {4: "127.0.0.1", 6: "::1"}
LENGTH = {4: 24, 6: 64}
MAPPED = {"a": 8080, "b": 8081, "vm": 8082}             # external port of each, for TCP, UDP and (4, 6) echo
SERVER = 80                                             # ... and the internal one
REFUSED = 81                                            # nobody may go there: told
WIRE, LOCAL = 1, 2                                      # uplinks
_SPACE = {"a": 100, "b": 100, "vm": 100, "t": 101}
_GATEWAY_MAC = bytes.fromhex("0200000000fe")
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_ASKS: dict[str, Any] = {"ethertype": ETH_P_IPV6, "protocol": 58, "icmp_type": 135}
_TUNSETIFF, _TAP, _NO_PI = 0x400454CA, 0x0002, 0x1000   # linux/if_tun.h


def at(part: str, version: int) -> str:
    """The address of an endpoint, or of the gateway."""
    return str(INSIDE[version][_LAST[part]])


def mac_of(part: str) -> bytes:
    """The MAC of an endpoint."""
    return bytes((2, 0, 0, 0, 0, ENDPOINTS[part]))


def _any(address: str) -> Address:
    return IPv6Address(address) if ":" in address else IPv4Address(address)


def _rule(priority: int, action: Action, **match: Any) -> Rule:
    return Rule(priority, Match(**match), action, f"r{priority}")


def _layer(name: str, out: tuple[tuple[Rule, ...], ...], in_: tuple[Rule, ...] = (), *, open_out: bool = False
           ) -> Layer:
    groups = tuple(Group(f"{name}{number}", rules) for number, rules in enumerate(out))
    return Layer(name, groups, (Group(name, in_),) if in_ else (), Allow() if open_out else Deny(), Allow())


def _port(part: str, ifindex: int) -> Port:
    own = {4: IPv4Network(at(part, 4)), 6: IPv6Network(at(part, 6))}
    space = _SPACE[part]
    guard = _layer("guard", ((
        _rule(1, Allow(), ethertype=ETH_P_ARP, arp_sender_is_source=True),
        _rule(2, Allow(), nd_sender_is_source=True, **_ASKS),
        _rule(3, Allow(), src=own[6], src_mac=mac_of(part)), _rule(4, Allow(), src=own[4], src_mac=mac_of(part)),
    ),))
    refuse = (_rule(1, Reject(), dst_ports=PortRange(REFUSED, REFUSED)),)
    acl = _layer("acl", (refuse,), refuse, open_out=True)
    host = _layer("host", (), (
        _rule(1, TranslateSource(40 + LOCAL), src=IPv4Network("127.0.0.0/8")),
        _rule(2, TranslateSource(60 + LOCAL), src=IPv6Network("::1")),
    ), open_out=True)
    nat = _layer("nat", ((
        _rule(1, Allow(), ethertype=ETH_P_ARP), _rule(2, Allow(), **_ASKS),
        _rule(3, Allow(), dst=INSIDE[4]), _rule(4, Allow(), dst=INSIDE[6]),
        _rule(5, Hairpin(60 + WIRE), ethertype=ETH_P_IPV6), _rule(6, Hairpin(40 + WIRE)),
    ), (
        _rule(1, TranslateSource(60 + WIRE), ethertype=ETH_P_IPV6), _rule(2, TranslateSource(40 + WIRE)),
    )), (_rule(1, Untranslate()),))
    vnet = _layer("vnet", ((
        _rule(1, AnswerArp(space), ethertype=ETH_P_ARP), _rule(2, AnswerArp(space), **_ASKS),
        _rule(3, Forward(space), dst=INSIDE[4]), _rule(4, Forward(space), dst=INSIDE[6]),
        _rule(5, ToUplink(WIRE)),
    ),))
    return Port(ENDPOINTS[part], part, ifindex, mac_of(part), _GATEWAY_MAC, (guard, acl, host, nat, vnet),
                tap=part == "vm")


def mappings() -> tuple[Mapping, ...]:
    """Ports of a, b and the machine, by the wire and for the host itself; and a whole address, which is b's."""
    made = []
    for version in (4, 6):
        for part, outside in MAPPED.items():
            for protocol in (_TCP, _UDP):
                for uplink, external in ((WIRE, HOST), (LOCAL, HOST), (LOCAL, LOCALHOST)):
                    made.append(Mapping(
                        uplink, protocol, _any(external[version]), outside, ENDPOINTS[part], _any(at(part, version)),
                        SERVER, f"{part}-{protocol}"))
            echo = _ICMP if version == 4 else _ICMPV6
            made.append(Mapping(WIRE, echo, _any(HOST[version]), outside, ENDPOINTS[part], _any(at(part, version)), 7))
        made.append(Mapping(WIRE, 0, _any(WHOLE[version]), 0, ENDPOINTS["b"], _any(at("b", version)), 0, "whole"))
    return tuple(made)


def state(ports: dict[str, int], wire: int) -> EngineState:
    """The host's state for these interfaces."""
    spaces = []
    for number in sorted(set(_SPACE.values())):
        places: list[Any] = []
        for version in (4, 6):
            places += [(_any(at(part, version)), LocalPort(ENDPOINTS[part], mac_of(part)))
                       for part in ENDPOINTS if _SPACE[part] == number]
            places.append((_any(at("gateway", version)), Virtual(_GATEWAY_MAC)))
        spaces.append(Space(number, tuple(places)))
    ports_of_wire, ports_of_lo = PortRange(20000, 20999), PortRange(21000, 21999)
    return EngineState(
        ports=tuple(_port(part, ifindex) for part, ifindex in ports.items()), spaces=tuple(spaces), mappings=mappings(),
        uplinks=(Uplink(WIRE, "up0", wire), Uplink(LOCAL, "lo", 1, loopback=True)),
        pools=(
            *(Pool(10 * version + WIRE, WIRE, (_any(HOST[version]),), ports_of_wire) for version in (4, 6)),
            *(Pool(10 * version + LOCAL, LOCAL, (_any(at("gateway", version)),), ports_of_lo) for version in (4, 6)),
        ))


def open_tap(name: str) -> int:
    """Make a tap here; it goes with the descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_PI))
    return device


class House:
    """All of it, up and running; a context manager."""

    def __init__(self) -> None:
        self.parts = {part: Namespace(f"house-{part}-{os.getpid()}") for part in (*ENDPOINTS, "host", "world")}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            for namespace in self.parts.values():
                run("ip", "netns", "add", namespace.name)
                self._stack.callback(run, "ip", "netns", "del", namespace.name)
                namespace.execute("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0",
                                  "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.router_solicitations=0")
                namespace.ip("link", "set", "lo", "up")
            for part in ("a", "b", "t"):
                self._pair(f"p{part}", part, "address", mac_of(part).hex(":"))
            self._pair("up0", "world")
            self._tap()
            self._address()
            self._program()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _pair(self, link: str, part: str, *more: str) -> None:
        there = self.parts[part].name
        self.parts["host"].ip("link", "add", link, "type", "veth", "peer", "eth0", *more, "netns", there)
        self.parts["host"].ip("link", "set", link, "up")
        self.parts[part].ip("link", "set", "eth0", "up")

    def _tap(self) -> None:
        """`tc` at the host, `eth0` at the machine, and what carries frames between."""
        ends = []
        for part, name in (("host", "tc"), ("vm", "eth0")):
            ends.append(self.parts[part].call(lambda name=name: open_tap(name)))
            self._stack.callback(os.close, ends[-1])
            if part == "vm":
                self.parts[part].ip("link", "set", name, "address", mac_of("vm").hex(":"))
            self.parts[part].ip("link", "set", name, "up")
        done = threading.Event()

        def carry() -> None:
            while not done.is_set():
                for ready in select.select(ends, (), (), 0.1)[0]:
                    with suppress(BlockingIOError):
                        os.write(ends[1 - ends.index(ready)], os.read(ready, 1 << 16))

        thread = threading.Thread(target=carry)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(done.set)

    def _address(self) -> None:
        for version, length in LENGTH.items():
            quiet = ("nodad",) if version == 6 else ()
            for part in ENDPOINTS:
                self.parts[part].ip("addr", "add", f"{at(part, version)}/{length}", "dev", "eth0", *quiet)
                self.parts[part].ip(f"-{version}", "route", "add", "default", "via", at("gateway", version))
            for part, link, address in (("host", "up0", HOST), ("host", "up0", WHOLE), ("world", "eth0", WORLD)):
                self.parts[part].ip("addr", "add", f"{address[version]}/{length}", "dev", link, *quiet)

    def _program(self) -> None:
        host = self.parts["host"]
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        switch = self._stack.enter_context(host.call(lambda: Switch(folder)))
        self.engine = self._stack.enter_context(
            Datapath.open(None, Limits(flows=4096, rules=1024, bindings=4096, ports=64, space_entries=64, mappings=64)))
        ports = {part: int(host.link("tc" if part == "vm" else f"p{part}")["ifindex"]) for part in ENDPOINTS}
        wire = int(host.link("up0")["ifindex"])
        self.state = state(ports, wire)
        self.engine.apply(self.state)
        for ifindex in ports.values():
            switch.attach(ifindex, "ingress", self.engine.program_fd(Hook.PORT_OUT), "sluice_port_out")
            switch.attach(ifindex, "egress", self.engine.program_fd(Hook.PORT_IN), "sluice_port_in")
        switch.attach(wire, "ingress", self.engine.program_fd(Hook.UPLINK_IN), "sluice_uplink_in")
        switch.open_loopback(self.engine.program_fd(Hook.UPLINK_IN), "sluice_uplink_in")

    # What tests do

    @contextmanager
    def without(self, part: str) -> Iterator[None]:
        """What is mapped to an endpoint is not, meanwhile."""
        self.engine.apply(replace(self.state, mappings=tuple(
            mapping for mapping in self.state.mappings if mapping.port != ENDPOINTS[part])))
        try:
            yield
        finally:
            self.engine.apply(self.state)

    @contextmanager
    def mirrored(self, part: str, to: str) -> Iterator[None]:
        """Copies of an endpoint's packets go to another, meanwhile."""
        mirror = Layer("mirror", (Group("m", (_rule(1, Mirror(ENDPOINTS[to])),)),), (), Allow(), Allow())
        self.engine.apply(replace(self.state, ports=tuple(
            replace(port, layers=(mirror, *port.layers)) if port.name == part else port for port in self.state.ports)))
        try:
            yield
        finally:
            self.engine.apply(self.state)

    def socket(self, part: str, version: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket in one of the namespaces, closed with the house at the latest."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made = self.parts[part].call(lambda: socket.socket(family, kind, protocol))
        made.settimeout(5)
        self._stack.callback(made.close)
        return made

    def wire(self, part: str, link: str) -> socket.socket:
        """Every frame of a link, raw."""
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            made.bind((link, 0x0003))
            return made

        made = self.parts[part].call(make)
        made.settimeout(2)
        self._stack.callback(made.close)
        return made

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
        """What the engine has dropped so far."""
        return Counter({reason: count for reason, count in self.engine.drop_counts().items() if count})
