"""What the engine's program itself costs when it translates, by number of live bindings: BPF_PROG_TEST_RUN.

A hit changes the packet, and the next run has the packet that the last one left. So there are two translations, each
of which makes the first packet of the other: two internal addresses that are each other's external ones. The TTL bounds
the runs of one call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from statistics import median

from bench.classifier import Run
from bench.packets import internet_checksum
from vfp.datapath.engine import Datapath, Limits
from vfp.datapath.program import Program
from vfp.layout import ZoneKind, zone
from vfp.model import (
    ETH_P_IP,
    Allow,
    EngineState,
    Group,
    Layer,
    Mapping,
    Match,
    Pool,
    Port,
    PortRange,
    Rule,
    ToUplink,
    TranslateSource,
    Untranslate,
    Uplink,
)

__all__ = ["translating"]

_SKB_SIZE, _SKB_CB = 192, 48                # struct __sk_buff: bytes, offset of cb[0]
_TTL, _RUNS, _CALLS = 255, 200, 300
_PORT, _UPLINK, _CROWD = 1, 1, 3
_CROWD_PORTS = 1000                         # of each address
_MAC, _GATEWAY = bytes.fromhex("020000000001"), bytes.fromhex("0200000000fe")
_ONE, _OTHER = IPv4Address("10.9.0.1"), IPv4Address("10.9.0.2")
_MANY = (IPv4Network("10.10.0.0/16"), IPv4Network("10.11.0.0/16"))
_EXTERNAL, _WORLD = (IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2")), IPv4Address("203.0.113.7")
_SOURCE, _MAPPED, _SERVER = 40000, 8080, 53
_FRESH, _FIRSTS = 2000, 500                 # first source port of new bindings; how many in one reading


@contextmanager
def translating(bindings: int) -> Iterator[Callable[[], dict[str, float]]]:
    """So many bindings, and who reads: nanoseconds of a hit in each direction, and of a first packet."""
    limits = Limits(flows=1 << 19, rules=1024, bindings=1 << 18, ports=64, space_entries=64, mappings=64, udp=1 << 18)
    with Datapath.open(None, limits) as datapath:
        datapath.apply(_state())
        probe, fresh = datapath.program("vfp_probe"), count(_FRESH)
        for number in range(bindings - 1):
            _first(*_crowd(number)).time(probe.fd)
        out = _packet(_ONE, _WORLD, _SOURCE, _SERVER)
        into = _packet(_WORLD, _ONE, _SOURCE, _MAPPED)
        yield lambda: {
            "nat_out_hit_ns": _hit(probe, out, zone(ZoneKind.PORT, _PORT)),
            "nat_in_hit_ns": _hit(probe, into, zone(ZoneKind.UPLINK, _UPLINK)),
            "nat_first_ns": median(_first(_ONE, next(fresh), _PORT).time(probe.fd) for _ in range(_FIRSTS)),
        }


def _state() -> EngineState:
    def layers(rules: tuple[Rule, ...]) -> tuple[Layer, ...]:
        untranslate = (Rule(0, Match(), Untranslate(), "untranslate"),)
        uplink = (Rule(0, Match(ethertype=ETH_P_IP), ToUplink(_UPLINK), "outside"),)
        return (Layer("nat", (Group("source", rules),), (Group("static", untranslate),), default_in=Allow()),
                Layer("vnet", (Group("route", uplink),), default_in=Allow()))

    swap = tuple(Rule(number, Match(src=IPv4Network(address)), TranslateSource(number), f"swap {number}")
                 for number, address in ((1, _ONE), (2, _OTHER)))
    crowd = tuple(Rule(number, Match(src=many), TranslateSource(3 + number), f"crowd {number}")
                  for number, many in enumerate(_MANY))
    ports = PortRange(1024, 65535)
    return EngineState(
        ports=(Port(_PORT, "one", 1001, _MAC, _GATEWAY, layers(swap)),
               Port(_CROWD, "crowd", 1003, _MAC, _GATEWAY, layers(crowd))),
        pools=(Pool(1, _UPLINK, (_OTHER,), ports), Pool(2, _UPLINK, (_ONE,), ports),
               *(Pool(3 + number, _UPLINK, (external,), ports) for number, external in enumerate(_EXTERNAL))),
        mappings=(Mapping(_UPLINK, 17, _ONE, _MAPPED, _PORT, _OTHER, _MAPPED),
                  Mapping(_UPLINK, 17, _OTHER, _MAPPED, _PORT, _ONE, _MAPPED)),
        uplinks=(Uplink(_UPLINK, "up0", 1002),),
    )


def _crowd(number: int) -> tuple[IPv4Address, int, int]:
    """An address, a port of it, and who sends; the two external addresses have half each."""
    index, half = divmod(number, 2)
    return _MANY[half][1 + index // _CROWD_PORTS], 1024 + index % _CROWD_PORTS, _CROWD


def _first(source: IPv4Address, port: int, sender: int) -> Run:
    return Run(_packet(source, _WORLD, port, _SERVER), sender)


def _hit(probe: Program, packet: bytes, where: int) -> float:
    context = bytearray(_SKB_SIZE)
    struct.pack_into("=I", context, _SKB_CB, where)
    probe.test_run(packet, ctx=bytes(context), repeat=4)
    return median(probe.test_run(packet, ctx=bytes(context), repeat=_RUNS).duration_ns for _ in range(_CALLS))


def _packet(source: IPv4Address, to: IPv4Address, port: int, server: int) -> bytes:
    addresses, size = source.packed + to.packed, 8 + 64
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + size, 0, 0x4000, _TTL, 17, 0) + addresses
    header = header[:10] + internet_checksum(header) + header[12:]
    udp = struct.pack(">HHHH", port, server, size, 0) + bytes(64)
    total = internet_checksum(addresses + struct.pack(">HH", 17, size) + udp)
    return _GATEWAY + _MAC + b"\x08\x00" + header + udp[:6] + total + udp[8:]
