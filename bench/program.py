"""What the engine's program itself costs, by number of rules and layers: BPF_PROG_TEST_RUN, without any link.

A policy is `guard`, a number of layers that refuse things (the rules of `bench.rules`, spread evenly over them, none of
which matches), in the translated case `nat`, and `vnet`. Three readings of each:

- `hit_ns`: a packet of an established flow, the mean of many runs on one packet;
- `hit_rewrite_ns`: the same with a new destination address and port. Two flows rewrite to each other's destination, so
  that every run is a hit although it changes the packet;
- `first_packet_ns`: parse, all layers, classifier, and flow insert, the median over fresh connections; a clock is read
  twice within it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from itertools import product
from statistics import median

import numpy as np
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bench.classifier import Run
from bench.rules import refused
from vfp.datapath.engine import Datapath, Limits
from vfp.layout import ZoneKind, zone
from vfp.model import (
    Allow,
    Deny,
    EngineState,
    Forward,
    Group,
    Layer,
    LocalPort,
    Match,
    Port,
    PortRange,
    Rewrite,
    Rule,
    Space,
)

__all__ = ["LAYERS", "Engine", "engines"]

LAYERS = (1, 5, 10)
REPEAT = 200_000
_FRESH = range(10_000, 10_500)              # source ports of one reading of the first packet
_SPACE = 1 << 24
_SKB_SIZE, _SKB_CB = 192, 48                # struct __sk_buff: bytes, offset of cb[0]
_PLAIN, _ONE, _OTHER = (IPv4Address(f"10.9.0.{number}") for number in (2, 3, 4))
_SENDERS = IPv4Address("10.9.1.0")          # the first is one more
_RECEIVER = 1
_MAC, _GATEWAY = bytes((2, 0, 0, 0, 0, _RECEIVER)), bytes((2, 0, 0, 0, 0, 254))
_SWAPPED = ((_ONE, 8001), (_OTHER, 8002))


class Engine:
    """One policy, on a port of its own."""

    def __init__(self, datapath: Datapath, port: int) -> None:
        """`port`: whose policy it is."""
        self._datapath = datapath
        self._probe = datapath.program("vfp_probe")
        self._port = port

    def read(self) -> dict[str, float]:
        """One reading of each."""
        return {
            "hit_ns": self._hit(_PLAIN, 8000), "hit_rewrite_ns": self._hit(*_SWAPPED[0]),
            "first_packet_ns": self._first(),
        }

    def _hit(self, to: IPv4Address, port: int) -> float:
        context = bytearray(_SKB_SIZE)
        struct.pack_into("=I", context, _SKB_CB, zone(ZoneKind.PORT, self._port))
        packet = _packet(self._port, to, port)
        self._probe.test_run(packet, ctx=bytes(context), repeat=2)
        return float(self._probe.test_run(packet, ctx=bytes(context), repeat=REPEAT).duration_ns)

    def _first(self) -> float:
        flows = self._datapath._object.map("flows")
        keys, _ = flows.lookup_all()
        flows.delete_batch(np.ascontiguousarray(keys), len(keys))
        tests = [Run(_packet(self._port, _PLAIN, 8000, source), self._port) for source in _FRESH]
        return median(test.time(self._probe.fd) for test in tests)


@contextmanager
def engines(rules: tuple[int, ...], layers: tuple[int, ...]) -> Iterator[dict[tuple[int, int], Engine]]:
    """Every combination, at the same time, in one data path."""
    policies = {(count, depth): number for number, (count, depth) in enumerate(product(rules, layers), _RECEIVER + 1)}
    limits = Limits(
        flows=16384, rules=sum(rules) * len(layers) * 9 // 8 + 1024, bindings=1024, ports=64, space_entries=64,
        mappings=64,
    )
    with Datapath.open(None, limits) as datapath:
        locations = tuple((address, LocalPort(_RECEIVER, _MAC)) for address in (_PLAIN, _ONE, _OTHER))
        receiver = tuple(Layer(name, (), (), default_in=Allow()) for name in ("guard", "vnet"))
        datapath.apply(EngineState(
            ports=(
                Port(_RECEIVER, "receiver", 1000 + _RECEIVER, _MAC, _GATEWAY, receiver),
                *(Port(number, f"sender {number}", 1000 + number, _mac(number), _GATEWAY, _layers(number, *policy))
                  for policy, number in policies.items()),
            ), spaces=(Space(_SPACE, locations),),
        ))
        yield {policy: Engine(datapath, number) for policy, number in policies.items()}


def _layers(sender: int, rules: int, layers: int) -> tuple[Layer, ...]:
    refusing = [
        Rule(number % 65536, Match(src=IPv4Network(each.prefix), protocol=6, dst_ports=PortRange(each.port, each.port)),
             Deny(), f"rule {number}")
        for number, each in enumerate(refused(rules))
    ]
    guard = Rule(10, Match(ethertype=0x0800, src_mac=_mac(sender), src=IPv4Network(_SENDERS + sender)), Allow(), "own")
    swap = tuple(
        Rule(number, Match(protocol=6, dst=IPv4Network(at[0]), dst_ports=PortRange(at[1], at[1])),
             Rewrite(dst=to[0], dst_port=to[1]), f"swap {number}")
        for number, (at, to) in enumerate((_SWAPPED, _SWAPPED[::-1]))
    )
    vnet = Rule(10, Match(ethertype=0x0800), Forward(_SPACE), "forward")
    return (
        Layer("guard", (Group("guard", (guard,)),)),
        *(Layer(f"acl{number}", (Group(f"acl{number}", tuple(refusing[number::layers])),), default_out=Allow())
          for number in range(layers)),
        Layer("nat", (Group("nat", swap),), default_out=Allow()),
        Layer("vnet", (Group("vnet", (vnet,)),)),
    )


def _mac(port: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, port))


def _packet(sender: int, to: IPv4Address, port: int, source: int = 0) -> bytes:
    """A segment of an established connection; with a source port, the first of a new one."""
    return bytes(
        Ether(src=_mac(sender).hex(":"), dst=_MAC.hex(":")) / IP(src=str(_SENDERS + sender), dst=str(to))
        / TCP(sport=source or 40000, dport=port, flags="S" if source else "A") / bytes(64)
    )
