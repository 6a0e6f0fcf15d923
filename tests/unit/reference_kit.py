"""A small host for tests of the reference engine, and frames to send through it.

Ports 1 and 2 are on an overlay (VNI 100), port 3 is on a NAT network behind uplink 1.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from vfp.model import (
    Action,
    Allow,
    AnswerArp,
    Deny,
    EngineState,
    Forward,
    Group,
    HostStack,
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

VNI = 100
NAT_SPACE = 1 << 24
VTEP = IPv4Address("172.31.0.2")
OTHER_VTEP = IPv4Address("172.31.0.3")
EXTERNAL = IPv4Address("198.51.100.1")

MAC_1, MAC_2, MAC_3, MAC_9 = (bytes.fromhex(f"02000000000{n}") for n in (1, 2, 3, 9))
GATEWAY_MAC = bytes.fromhex("02000000ff01")
BRIDGE_MAC = bytes.fromhex("02000000ff02")

A_1, A_2, A_9, A_GATEWAY = (f"10.1.0.{n}" for n in (1, 2, 9, 254))
N_3, N_GATEWAY = "192.168.0.3", "192.168.0.1"
WORLD = "203.0.113.7"

ETH_ARP = 0x0806
ALL = (Allow(), Allow())


def rule(priority: int, action: Action, *, stateful: bool = True, name: str = "", **match: Any) -> Rule:
    """A rule from keywords; prefixes may be text."""
    for field in ("src", "dst"):
        if isinstance(match.get(field), str):
            match[field] = IPv4Network(match[field])
    return Rule(priority, Match(**match), action, name or f"r{priority}", stateful)


def layer(name: str, out: tuple[Rule, ...] = (), in_: tuple[Rule, ...] = (), *, default: Any = ALL) -> Layer:
    """A layer of one group a direction."""
    return Layer(name, (Group("only", out),) if out else (), (Group("only", in_),) if in_ else (), *default)


def overlay_port(number: int, mac: bytes, *more: Layer) -> Port:
    vnet = layer("vnet", (rule(10, AnswerArp(VNI), ethertype=ETH_ARP), rule(20, Forward(VNI))))
    return Port(number, f"p{number}", 10 + number, mac, GATEWAY_MAC, (*more, vnet))


def nat_port(*more: Layer) -> Port:
    nat = layer(
        "nat",
        (rule(10, Allow(), dst="192.168.0.0/24"), rule(20, TranslateSource(1), protocol=None)),
        (rule(10, Untranslate()),),
    )
    vnet = layer("vnet", (rule(10, Forward(NAT_SPACE), dst="192.168.0.0/24"), rule(20, ToUplink(1))))
    return Port(3, "p3", 13, MAC_3, GATEWAY_MAC, (*more, nat, vnet))


def host(*, one: tuple[Layer, ...] = (), two: tuple[Layer, ...] = (), three: tuple[Layer, ...] = ()) -> EngineState:
    """The host; extra layers come before `nat` and `vnet`."""
    overlay = Space(VNI, (
        (IPv4Address(A_1), LocalPort(1, MAC_1)),
        (IPv4Address(A_2), LocalPort(2, MAC_2)),
        (IPv4Address(A_9), Remote(VTEP, VNI, MAC_9)),
        (IPv4Address(A_GATEWAY), Virtual(GATEWAY_MAC)),
    ))
    nat = Space(NAT_SPACE, (
        (IPv4Address(N_3), LocalPort(3, MAC_3)),
        (IPv4Address(N_GATEWAY), HostStack(BRIDGE_MAC)),
    ))
    return EngineState(
        ports=(overlay_port(1, MAC_1, *one), overlay_port(2, MAC_2, *two), nat_port(*three)),
        spaces=(overlay, nat),
        pools=(Pool(1, 1, (EXTERNAL,), PortRange(20000, 20009)),),
        mappings=(Mapping(1, 6, EXTERNAL, 8080, 3, IPv4Address(N_3), 80),),
        uplinks=(Uplink(1, "lan0", 5),),
        tunnel_ifindex=9,
    )


def with_port(state: EngineState, port: Port) -> EngineState:
    """The state with one port replaced."""
    return replace(state, ports=tuple(port if p.id == port.id else p for p in state.ports))


def deny_in(**match: Any) -> Layer:
    """An `acl` that denies what matches on its way in."""
    return layer("acl", (), (rule(10, Deny(), name="no", **match),))


MAC_OF = {A_1: MAC_1, A_2: MAC_2, N_3: MAC_3, A_9: MAC_9}


def frame(src: str, dst: str, transport: Packet, *, src_mac: bytes | None = None, dst_mac: bytes = GATEWAY_MAC,
          **ip: Any) -> bytes:
    """An IPv4 frame with right checksums."""
    ethernet = Ether(src=(src_mac or MAC_OF.get(src, bytes(6))).hex(":"), dst=dst_mac.hex(":"))
    return bytes(ethernet / IP(src=src, dst=dst, **ip) / transport)


def tcp(src: str, dst: str, sport: int = 1000, dport: int = 80, flags: str = "S", **more: Any) -> bytes:
    return frame(src, dst, TCP(sport=sport, dport=dport, flags=flags), **more)


def udp(src: str, dst: str, sport: int = 1000, dport: int = 53, payload: bytes = b"x", **more: Any) -> bytes:
    return frame(src, dst, UDP(sport=sport, dport=dport) / payload, **more)


def echo(src: str, dst: str, identifier: int = 7, *, reply: bool = False, **more: Any) -> bytes:
    return frame(src, dst, ICMP(type=0 if reply else 8, id=identifier) / b"ping", **more)


def arp(sender: str, target: str, *, mac: bytes = MAC_1, opcode: int = 1, hwsrc: bytes | None = None) -> bytes:
    body = ARP(op=opcode, psrc=sender, pdst=target, hwsrc=(hwsrc or mac).hex(":"))
    return bytes(Ether(src=mac.hex(":"), dst="ff:ff:ff:ff:ff:ff") / body)


def recomputed(data: bytes) -> bytes:
    """The frame with every checksum computed anew by scapy."""
    packet = Ether(data)
    for kind, field in ((IP, "chksum"), (TCP, "chksum"), (UDP, "chksum"), (ICMP, "chksum")):
        if kind in packet:
            delattr(packet[kind], field)
    return bytes(packet)


def show(data: bytes) -> Packet:
    """A frame decoded by scapy."""
    return Ether(data)
