"""A host with two endpoints, `a` and `b`, whose flows to chosen ports go through user space."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any

from vswitch_kit import Namespace, world

from inspection.packet import Packet
from inspection.queue import Accept, Drop, Queue, Release, Rewrite, Verdict
from vfp.datapath.engine import Datapath, Hook, Limits
from vfp.model import (
    ETH_P_ARP,
    Action,
    Allow,
    AnswerArp,
    Deny,
    EngineState,
    Forward,
    Group,
    HostStack,
    Inspect,
    Layer,
    LocalPort,
    Match,
    Port,
    PortRange,
    Rule,
    Space,
)
from vswitch.links import Detour, InspectPrograms
from vswitch.switch import Switch

ADDRESS = {"a": "10.9.0.2", "b": "10.9.0.3", "host": "10.9.0.1"}
ADDRESS_6 = {"a": "fd09::2", "b": "fd09::3"}
CLOSED, OPEN, OTHER = 5000, 5001, 5002      # ports that are inspected: queue 0, queue 1 or else pass, queue 2
PLAIN = 6000
SPACE = 1 << 24
MAC = {"a": "02:09:00:00:00:02", "b": "02:09:00:00:00:03"}
HOST_MAC = "02:09:00:00:00:01"


class ByFirstWord:
    """Does what the first word of a payload says, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def inspect(self, packet: Packet) -> Verdict:
        self.seen.append(packet.payload)
        match packet.payload[:4]:
            case b"drop":
                return Drop()
            case b"swap":
                return Rewrite(b"swapped:" + packet.payload[4:])
            case b"free":
                return Release()
            case b"boom":
                raise RuntimeError("no verdict")
        return Accept()


class Inspected:
    """The host: its engine, its detour, and sockets in its endpoints."""

    def __init__(self, stack: ExitStack, host: Namespace, ends: dict[str, Namespace], switch: Switch) -> None:
        self.host, self.ends, self.switch = host, ends, switch
        self._stack = stack
        self.datapath = stack.enter_context(Datapath.open(None, Limits(flows=4096, rules=1024)))
        self.links: dict[str, int] = {}
        for name, end in ends.items():
            host.ip("link", "add", f"p-{name}", "address", HOST_MAC, "type", "veth", "peer", "eth0", "address",
                    MAC[name], "netns", end.name)
            end.execute("sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
            end.ip("address", "add", f"{ADDRESS[name]}/24", "dev", "eth0")
            end.ip("address", "add", f"{ADDRESS_6[name]}/64", "dev", "eth0", "nodad")
            end.ip("link", "set", "lo", "up")
            end.ip("link", "set", "eth0", "up")
            host.ip("link", "set", f"p-{name}", "up")
            self.links[name] = host.link(f"p-{name}")["ifindex"]
            for where, hook in (("ingress", Hook.PORT_OUT), ("egress", Hook.PORT_IN)):
                switch.attach(self.links[name], where, self.datapath.program_fd(hook), f"sluice_{hook}")
        host.ip("address", "add", f"{ADDRESS['host']}/32", "dev", "p-a")
        host.ip("route", "add", f"{ADDRESS['a']}/32", "dev", "p-a")
        host.ip("neighbour", "add", ADDRESS["a"], "lladdr", MAC["a"], "dev", "p-a")
        host.ip("link", "set", "lo", "up")
        self.detour: Detour | None = None
        stack.callback(switch.remove_inspection)

    def ensure(self) -> Detour:
        """Make or mend the detour."""
        fd = self.datapath.program_fd
        programs = InspectPrograms(fd(Hook.INSPECT_IN), fd(Hook.INSPECT_OUT), fd(Hook.INSPECTED))
        self.detour = self.switch.ensure_inspection(programs, (0, 1, 2))
        return self.detour

    def apply(self, with_device: bool = True) -> None:
        """Program the engine."""
        ifindex = self.detour.ifindex if self.detour and with_device else 0
        self.datapath.apply(state(self.links, ifindex))

    def queue(self, inspector: Any, number: int = 0) -> Queue:
        """Listen."""
        assert self.detour is not None
        return self._stack.enter_context(Queue(self.detour.namespace, number, inspector))

    def open(self, name: str, kind: int = socket.SOCK_DGRAM, family: int = socket.AF_INET) -> socket.socket:
        """A socket of an endpoint, or of the host."""
        where = self.host if name == "host" else self.ends[name]
        made = self._stack.enter_context(where.call(lambda: socket.socket(family, kind)))
        made.settimeout(2)
        return made

    def asking(self, port: int, name: str = "b", family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
        """A UDP socket of `a` that talks to one of `b` or the host, and that one."""
        addresses = ADDRESS if family == socket.AF_INET else ADDRESS_6
        server, client = self.open(name, family=family), self.open("a", family=family)
        server.bind((addresses[name], port))
        client.connect((addresses[name], port))
        return client, server


def state(links: dict[str, int], inspect_ifindex: int) -> EngineState:
    """Everybody may talk to everybody; what goes to some ports is inspected."""
    host_mac = _mac(HOST_MAC)
    numbers = {"a": 1, "b": 2}
    entries = [(address, LocalPort(numbers[name], _mac(MAC[name])))
               for name in numbers for address in (IPv4Address(ADDRESS[name]), IPv6Address(ADDRESS_6[name]))]

    def inspects(priority: int, port: int, action: Action) -> Rule:
        return Rule(priority, Match(dst_ports=PortRange(port, port)), action, f"to-{port}")

    acl = Layer("acl", (Group("acl", (
        inspects(1, CLOSED, Inspect(0)), inspects(2, OPEN, Inspect(1, fail_open=True)), inspects(3, OTHER, Inspect(2)),
        Rule(9, Match(), Allow(), "rest"),
    )),), (), Deny(), Allow())
    nd: dict[str, Any] = {"protocol": 58, "icmp_type": 135}
    vnet = Layer("vnet", (Group("vnet", (
        Rule(1, Match(ethertype=ETH_P_ARP), AnswerArp(SPACE), "arp"), Rule(2, Match(**nd), AnswerArp(SPACE), "nd"),
        Rule(3, Match(dst=IPv4Network("0.0.0.0/0")), Forward(SPACE), "four"), Rule(4, Match(), Forward(SPACE), "six"),
    )),), (), Deny(), Allow())
    ports = tuple(Port(numbers[name], name, ifindex, _mac(MAC[name]), host_mac, (acl, vnet))
                  for name, ifindex in links.items())
    space = Space(SPACE, (*entries, (IPv4Address(ADDRESS["host"]), HostStack(host_mac))))
    return EngineState(ports=ports, spaces=(space,), inspect_ifindex=inspect_ifindex)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@contextmanager
def inspected(scratch: Path) -> Iterator[Inspected]:
    """The host for one test; nothing is left of it."""
    with world(scratch) as made, ExitStack() as stack:
        host = made.namespace("ih")
        ends = {name: made.namespace(f"i{name}") for name in ("a", "b")}
        yield Inspected(stack, host, ends, made.switch(host))
