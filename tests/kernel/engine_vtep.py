"""An endpoint of ours on one host, and one behind the kernel's own VXLAN device: bridge, static entries, no agent.

    a ──veth── pa host ul0 ──veth── ul0 other vx0 ── br0 ── pc ──veth── c

The host has the engine; `other` has never heard of us. The underlay is IPv4 or IPv6. With `direct` the engine makes and
takes off outer headers itself at `ul0`, as it does on every host of an agent; without, the VXLAN device does.
"""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
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
    Forward,
    Group,
    Layer,
    LocalPort,
    Location,
    Match,
    Port,
    Remote,
    Rule,
    Space,
    Underlay,
    Virtual,
)
from vswitch.links import TunnelLink
from vswitch.switch import Switch

SMALL = Limits(flows=4096, rules=1024, bindings=4096, ports=64, space_entries=256, mappings=64, sets=64,
               set_members=64, pools=64, meters=64)
TUNNEL = "slvx0"
GATEWAY_MAC = bytes.fromhex("0200000000fe")
_NUMBERS = count()
_SO_RCVBUFFORCE = 33
_PACKET_IGNORE_OUTGOING, _SOL_PACKET = 23, 263


def open_layers(space: int) -> tuple[Layer, ...]:
    """ARP and ND from the space, all else to its places."""
    rules: list[tuple[Action, dict[str, Any]]] = [
        (AnswerArp(space), {"ethertype": ETH_P_ARP}),
        (AnswerArp(space), {"ethertype": ETH_P_IPV6, "protocol": 58, "icmp_type": 135}),
        (Forward(space), {}),
    ]
    out = tuple(Rule(number, Match(**match), action, f"r{number}") for number, (action, match) in enumerate(rules))
    return (Layer("vnet", (Group("vnet", out),), (), Deny(), Allow()),)


@dataclass(frozen=True, slots=True)
class Ours:
    """What the engine's host is told: its underlay address, and who is where."""

    underlay: str
    port_mac: bytes
    vni: int
    entries: tuple[tuple[Address, Location], ...]
    port: int = 4789
    direct: bool = True


class Vtep:
    """A host with the engine, one port `pa` to namespace `a`, and an underlay link `ul0` to `other`."""

    def __init__(self, ours: Ours, mtu: int = 1500, endpoint_mtu: int = 0) -> None:
        """`mtu`: of the underlay's link. `endpoint_mtu`: of the endpoint's; 0: what fits."""
        self.ours, self.mtu = ours, mtu
        self.endpoint_mtu = endpoint_mtu or mtu - (70 if ":" in ours.underlay else 50)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def namespace(self, part: str) -> Namespace:
        """A new one, in which IPv6 addresses are usable at once and nobody asks for routers."""
        made = Namespace(f"vtep-{part}-{next(_NUMBERS)}-{os.getpid()}")
        run("ip", "netns", "add", made.name)
        self._stack.callback(run, "ip", "netns", "del", made.name)
        made.execute("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
                     "net.ipv6.conf.default.router_solicitations=0")
        made.ip("link", "set", "lo", "up")
        return made

    def wire(self, where: Namespace, link: str) -> socket.socket:
        """What comes in at a link, raw; also to send."""
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
            made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            made.bind((link, 0x0003))
            return made

        made = where.call(make)
        made.settimeout(3)
        self._stack.callback(made.close)
        return made

    def drops(self) -> dict[str, int]:
        """What the engine refused so far, by reason."""
        return {reason.name: count for reason, count in self.engine.drop_counts().items() if count}

    def apply(self) -> None:
        """Program the engine."""
        ours = self.ours
        port = Port(1, "a", self.host.link("pa")["ifindex"], ours.port_mac, GATEWAY_MAC, open_layers(ours.vni))
        direct = self.host.link("ul0")["ifindex"] if ours.direct else 0
        self.engine.apply(EngineState(
            ports=(port,), spaces=(Space(ours.vni, ours.entries),), tunnel_ifindex=self.tunnel,
            underlays=(Underlay(ip_address(ours.underlay), direct, self.mtu),), tunnel_port=ours.port,
        ))

    def _build(self) -> None:
        self.host, self.a, self.other = (self.namespace(part) for part in ("host", "a", "other"))
        for one, link, other, far, mtu in ((self.host, "pa", self.a, "eth0", self.endpoint_mtu),
                                           (self.host, "ul0", self.other, "ul0", self.mtu)):
            one.ip("link", "add", link, "mtu", str(mtu), "type", "veth", "peer", far, "mtu", str(mtu), "netns",
                   other.name)
            one.ip("link", "set", link, "up")
            other.ip("link", "set", far, "up")
        self.a.ip("link", "set", "eth0", "address", self.ours.port_mac.hex(":"))
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._switch = self._stack.enter_context(self.host.call(lambda: Switch(folder)))
        self.engine = self._stack.enter_context(Datapath.open(None, SMALL))
        port = self.host.link("pa")["ifindex"]
        self._switch.attach(port, "ingress", self.engine.program_fd(Hook.PORT_OUT), "sluice_port_out")
        self.become(self.ours)
        self._attach_underlay()

    def become(self, ours: Ours) -> None:
        """Another address, network and endpoint on the same links."""
        self.ours = ours
        length, nodad = (64, ("nodad",)) if ":" in ours.underlay else (24, ())
        self.host.ip("addr", "flush", "dev", "ul0")
        self.host.ip("addr", "add", f"{ours.underlay}/{length}", "dev", "ul0", *nodad)
        self.tunnel = self._switch.ensure_tunnel(TunnelLink(
            TUNNEL, "sluice:tunnel", ours.port, mtu_bytes=max(self.endpoint_mtu, 1280), ipv6=":" in ours.underlay))
        self._switch.attach(self.tunnel, "ingress", self.engine.program_fd(Hook.OVERLAY_IN), "sluice_overlay_in")
        self.apply()

    def _attach_underlay(self) -> None:
        """The engine's hook at the underlay's link, where the engine has one."""
        if self.ours.direct:
            self._switch.attach(self.host.link("ul0")["ifindex"], "ingress", self.engine.program_fd(Hook.UPLINK_IN),
                                "sluice_uplink_in")


MACS = {"a": bytes.fromhex("02000000000a"), "c": bytes.fromhex("02000000000c")}
INNER = {"a": {4: "10.7.0.10", 6: "fd07::10"}, "c": {4: "10.7.0.12", 6: "fd07::12"},
         "gateway": {4: "10.7.0.1", 6: "fd07::1"}}
OUTER = {4: ("172.31.7.1", "172.31.7.2"), 6: ("fd31::1", "fd31::2")}
VNI = 700


class Foreign(Vtep):
    """`other` has a bridge, a VXLAN device with static entries, and endpoint `c` behind it."""

    def __init__(self, family: int, direct: bool, mtu: int = 1500) -> None:
        here, self.there = OUTER[family]
        super().__init__(Ours(here, MACS["a"], VNI, self._entries(self.there), direct=direct), mtu)

    @staticmethod
    def _entries(there: str) -> tuple[tuple[Address, Location], ...]:
        found: list[tuple[Address, Location]] = []
        for version in (4, 6):
            found += [(ip_address(INNER["a"][version]), LocalPort(1, MACS["a"])),
                      (ip_address(INNER["c"][version]), Remote(ip_address(there), VNI, MACS["c"])),
                      (ip_address(INNER["gateway"][version]), Virtual(GATEWAY_MAC))]
        return tuple(found)

    def _build(self) -> None:
        super()._build()
        self.c = self.namespace("c")
        other, six = self.other, ":" in self.there
        other.ip("addr", "add", f"{self.there}/{64 if six else 24}", "dev", "ul0", *(("nodad",) if six else ()))
        checksums = ("udp6zerocsumtx", "udp6zerocsumrx") if six else ()
        other.ip("link", "add", "br0", "mtu", str(self.endpoint_mtu), "up", "type", "bridge")
        other.ip("link", "add", "vx0", "mtu", str(self.endpoint_mtu), "type", "vxlan", "id", str(VNI), "dstport",
                 "4789", "local", self.there, "nolearning", "tos", "inherit", *checksums)
        other.ip("link", "set", "vx0", "master", "br0", "up")
        other.ip("link", "add", "pc", "mtu", str(self.endpoint_mtu), "type", "veth", "peer", "eth0", "mtu",
                 str(self.endpoint_mtu), "netns", self.c.name)
        other.ip("link", "set", "pc", "master", "br0", "up")
        for mac in (MACS["a"], GATEWAY_MAC, bytes(6)):      # the last: where what has no entry of its own goes
            other.execute("bridge", "fdb", "append", mac.hex(":"), "dev", "vx0", "dst", self.ours.underlay)
        self.c.ip("link", "set", "eth0", "address", MACS["c"].hex(":"))
        for name, space in (("a", self.a), ("c", self.c)):
            space.ip("link", "set", "eth0", "up")
            for version, length in ((4, 24), (6, 64)):
                space.ip("addr", "add", f"{INNER[name][version]}/{length}", "dev", "eth0",
                         *(("nodad",) if version == 6 else ()))
