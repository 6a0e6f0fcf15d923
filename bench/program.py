"""What the program itself costs on a flow hit: BPF_PROG_TEST_RUN, a million times on one packet."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from vfp.datapath.engine import Datapath, Limits
from vfp.layout import ZoneKind, zone
from vfp.model import Allow, Deny, EngineState, Forward, Group, Layer, LocalPort, Match, Port, PortRange, Rule, Space

REPEAT = 1_000_000
_SPACE = 1 << 24
_SKB_SIZE, _SKB_CB = 192, 48                # struct __sk_buff: bytes, offset of cb[5]


def hit_ns() -> float:
    """ns of one run of the hook's program for a packet of an established flow, with guard, acl of 20 rules and vnet."""
    macs = [bytes((2, 0, 0, 0, 0, number)) for number in (1, 2)]
    addresses = [IPv4Address(f"10.9.0.{number}") for number in (1, 2)]
    locations = tuple((a, LocalPort(n + 1, macs[n])) for n, a in enumerate(addresses))
    state = EngineState(
        ports=tuple(_port(n + 1, macs[n], addresses[n]) for n in range(2)), spaces=(Space(_SPACE, locations),)
    )
    packet = bytes(
        Ether(src=macs[0].hex(":"), dst=macs[1].hex(":")) / IP(src=str(addresses[0]), dst=str(addresses[1]))
        / TCP(sport=40000, dport=80, flags="A") / bytes(64)
    )
    context = bytearray(_SKB_SIZE)
    struct.pack_into("<I", context, _SKB_CB, zone(ZoneKind.PORT, 1))
    with Datapath.open(None, Limits(flows=1024, rules=1024)) as datapath:
        datapath.apply(state)
        probe = datapath.program("vfp_probe")
        probe.test_run(packet, ctx=bytes(context))
        return float(probe.test_run(packet, ctx=bytes(context), repeat=REPEAT).duration_ns)


def _port(number: int, mac: bytes, address: IPv4Address) -> Port:
    guard = Rule(10, Match(ethertype=0x0800, src_mac=mac, src=IPv4Network(address)), Allow(), "own")
    acl = tuple(
        Rule(n, Match(protocol=6, dst_ports=PortRange(20000 + n, 20000 + n)), Deny(), f"deny-{n}") for n in range(20)
    )
    vnet = Rule(10, Match(ethertype=0x0800), Forward(_SPACE), "forward")
    layers = (
        Layer("guard", (Group("guard", (guard,)),), (), default_in=Allow()),
        Layer("acl", (Group("acl", acl),), (Group("acl", acl),), Allow(), Allow()),
        Layer("vnet", (Group("vnet", (vnet,)),), (), default_in=Allow()),
    )
    return Port(number, f"bench-{number}", 1000 + number, mac, bytes((2, 0, 0, 0, 0, 254)), layers)
