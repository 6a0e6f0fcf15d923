"""What many mappings of an overlay cost: an agent's time for them, and the engine's for a packet among them.

An agent's time is taken in a process of its own (`bench.remotes`), on a host with an underlay and one endpoint. A
packet's is that of the engine's program alone (BPF_PROG_TEST_RUN): a hit, and the first packets of flows to ten places
out of all, or to places drawn from all, which the processor's caches do not hold; with tables of equal size that hold
few or many.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from random import Random
from statistics import median

import numpy as np

from bench.classifier import Run
from bench.packets import internet_checksum
from bench.processes import inside, run
from bench.site import UNDERLAY, Site, veth
from vfp.datapath.engine import Datapath, Limits
from vfp.layout import ZoneKind, zone
from vfp.model import (
    Allow,
    EngineState,
    Forward,
    Group,
    Layer,
    Match,
    Port,
    RemoteBlock,
    Rule,
    Space,
)

__all__ = ["FEW", "MANY", "PLACES", "REMOTES", "among", "receive"]

REMOTES = 100_000
PLACES = (10, 1_000, 100_000, 1_000_000)
FEW, MANY = PLACES[0], PLACES[-1]
_ROOM = 1 << 21
_BLOCK = 1_000
_REPEAT = 100_000
_FIRST = 500                                # flows of one reading of first packets
_PORT, _SPACE, _TUNNEL = 1, 950, 77
_MAC, _GATEWAY = bytes((2, 0, 0, 0, 0, 1)), bytes((2, 0, 0, 0, 0, 254))
_OWN, _FIRST_REMOTE = IPv4Address("10.0.0.1"), int(IPv4Address("10.64.0.0"))
_SKB_SIZE, _SKB_CB = 192, 48                # struct __sk_buff: bytes, offset of cb[0]
_LIMIT_S = 120.0


def receive(count: int = REMOTES) -> dict[str, float]:
    """One reading of an agent with so many remote endpoints, with IPv4 and with both families."""
    found: dict[str, float] = {}
    for families, suffix in ((1, ""), (2, "_dual")):
        site = Site(f"remotes{families}")
        try:
            host, endpoint = site.namespace("h1"), site.namespace("a")
            run(*inside(host, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0"))
            veth(host, "under0", site.namespace("peer"), "under0")
            run("ip", "-n", host, "addr", "add", f"{UNDERLAY[0]}/16", "dev", "under0")
            told = json.loads(run(*inside(
                host, sys.executable, "-m", "bench.remotes", str(site.pins(host)), endpoint, str(count),
                str(families)), limit_s=_LIMIT_S))
        finally:
            site.close()
        found |= {f"remotes_{name}{suffix}": float(value) for name, value in told.items()}
    return found


@contextmanager
def among(places: tuple[int, ...] = PLACES) -> Iterator[dict[int, Callable[[], dict[str, float]]]]:
    """An engine for each number of places, all at the same time: what reads it once, by number."""
    with ExitStack() as stack:
        yield {count: _Among(stack.enter_context(_engine(count)), count).read for count in places}


class _Among:
    """One engine whose space has so many places."""

    def __init__(self, datapath: Datapath, places: int) -> None:
        self._datapath, self._places = datapath, places
        self._probe = datapath.program("vfp_probe")
        self._rng = Random(places)

    def read(self) -> dict[str, float]:
        """Nanoseconds of a hit, and of the first packet of a flow (medians over many)."""
        flows = self._datapath._object.map("flows")
        keys, _ = flows.lookup_all()
        flows.delete_batch(np.ascontiguousarray(keys), len(keys))
        context = bytearray(_SKB_SIZE)
        struct.pack_into("=I", context, _SKB_CB, zone(ZoneKind.PORT, _PORT))
        packet = _packet(self._rng.randrange(self._places), 40000)
        self._probe.test_run(packet, ctx=bytes(context), repeat=2)
        hit = self._probe.test_run(packet, ctx=bytes(context), repeat=_REPEAT).duration_ns
        few = [self._rng.randrange(self._places) for _ in range(FEW)]
        return {
            "mapped_hit_ns": float(hit), "mapped_first_ns": self._first(few * (_FIRST // FEW), 10_000),
            "mapped_spread_ns": self._first([self._rng.randrange(self._places) for _ in range(_FIRST)], 20_000),
        }

    def _first(self, places: Sequence[int], port: int) -> float:
        """The first packets of flows to these. To a port each: no decision is remembered (`vfp/bpf/memory.h`)."""
        tests = [Run(_packet(place, 40001, port + number), _PORT) for number, place in enumerate(places)]
        return median(test.time(self._probe.fd) for test in tests)


@contextmanager
def _engine(places: int) -> Iterator[Datapath]:
    limits = Limits(flows=65536, udp=65536, rules=1024, bindings=64, ports=64, space_entries=_ROOM, mappings=64)
    layer = Layer("vnet", (Group("vnet", (Rule(1, Match(), Forward(_SPACE), "forward"),)),), default_in=Allow())
    with Datapath.open(None, limits) as datapath:
        datapath.apply(EngineState(
            ports=(Port(_PORT, "sender", 1001, _MAC, _GATEWAY, (layer,)),),
            spaces=(Space(_SPACE, blocks=tuple(_blocks(places))),), tunnel_ifindex=_TUNNEL,
        ))
        yield datapath


def _blocks(places: int) -> Iterator[RemoteBlock]:
    for number, start in enumerate(range(0, places, _BLOCK)):
        members = np.arange(start, min(places, start + _BLOCK), dtype=np.uint32)
        macs = np.zeros((len(members), 6), np.uint8)
        macs[:, 0] = 2
        macs[:, 2:] = members.astype(">u4").view(np.uint8).reshape(-1, 4)
        yield RemoteBlock(
            IPv4Address("172.31.0.1") + number % 250, _SPACE, 4, (members + _FIRST_REMOTE).astype(">u4").tobytes(),
            macs.tobytes(),
        )


def _packet(place: int, source_port: int, port: int = 9) -> bytes:
    """A UDP datagram from the endpoint to a place."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 50, 0, 0x4000, 64, 17, 0, _OWN.packed,
                       (_FIRST_REMOTE + place).to_bytes(4, "big"))
    head = head[:10] + internet_checksum(head) + head[12:]
    return b"".join((_GATEWAY, _MAC, b"\x08\x00", head, struct.pack("!HHHH", source_port, port, 30, 0), bytes(22)))
