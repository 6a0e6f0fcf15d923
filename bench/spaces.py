"""What spaces of many remote endpoints cost the engine: compiled, compared and programmed; and a first packet to them.

`python -m bench.spaces [REMOTES]`: milliseconds of the processor for a host of 20 ports (median of five), bytes in the
kernel for each mapping, and nanoseconds of a whole decision to the same 1,000 destinations, whatever else there is.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median

from bench.classbench import Header, frame
from vfp.datapath.engine import Datapath, Limits
from vfp.layout import ZoneKind, zone
from vfp.model import (
    Allow,
    EngineState,
    Forward,
    Group,
    Layer,
    LocalPort,
    Match,
    Port,
    RemoteBlock,
    Rule,
    Space,
)

__all__ = ["blocks_of", "first_packet_ns", "main", "state_of"]

VNI, PORTS, BLOCK, DESTINATIONS = 7, 20, 256, 1000
SIZES = (1_000, 10_000, 100_000, 1_000_000)
REPEAT, ROUNDS, TIMES = 20, 5, 5
_FIRST = int(IPv4Address("10.0.0.0"))
_OWN = IPv4Address("11.0.0.1")
_SKB_BYTES, _SKB_MARK, _SKB_CB, _PROBE_WALKS = 192, 8, 48, 1


def blocks_of(count: int, version: int = 4) -> tuple[RemoteBlock, ...]:
    """Remote endpoints in blocks, each of a host of its own."""
    size, made = (4 if version == 4 else 16), []
    for number, first in enumerate(range(0, count, BLOCK)):
        those = range(first, min(first + BLOCK, count))
        made.append(RemoteBlock(
            IPv4Address("172.16.0.1") + number, VNI, version, b"".join((_FIRST + n).to_bytes(size) for n in those),
            b"".join((0x020000000000 + n).to_bytes(6) for n in those)))
    return tuple(made)


def state_of(blocks: tuple[RemoteBlock, ...]) -> EngineState:
    """A host with some ports of the network."""
    vnet = Layer("vnet", (Group("vnet", (Rule(0, Match(), Forward(VNI)),)),), default_in=Allow())
    ports = tuple(Port(n, f"p{n}", 1000 + n, n.to_bytes(6), bytes(6), (vnet,)) for n in range(1, PORTS + 1))
    places = tuple((_OWN - 1 + port.id, LocalPort(port.id, port.mac)) for port in ports)
    return EngineState(ports=ports, spaces=(Space(VNI, places, blocks),), tunnel_ifindex=999)


def first_packet_ns(datapath: Datapath) -> float:
    """Of one whole decision, to each of the destinations in turn, past what is remembered and without a flow."""
    context = bytearray(_SKB_BYTES)
    struct.pack_into("=I", context, _SKB_MARK, _PROBE_WALKS)
    struct.pack_into("=I", context, _SKB_CB, zone(ZoneKind.PORT, 1))
    trace, taken = datapath.program("vfp_trace"), []
    for _ in range(ROUNDS):
        for number in range(DESTINATIONS):
            raw = frame(Header(int(_OWN), _FIRST + number, 1000, 80, 17))
            taken.append(trace.test_run(raw, ctx=bytes(context), repeat=REPEAT).duration_ns)
    return median(taken)


def _cpu_ms(what: Callable[[], None]) -> float:
    begun = time.process_time()
    what()
    return (time.process_time() - begun) * 1e3


def _table_bytes(datapath: Datapath) -> int:
    lines = Path(f"/proc/self/fdinfo/{datapath._map('spaces').fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("memlock"))


def _programming(datapath: Datapath, count: int, version: int) -> str:
    blocks, taken = blocks_of(count, version), []
    moved = replace(blocks[1], vtep=IPv4Address("172.31.255.1"))
    wanted, empty = state_of(blocks), state_of(())
    other = state_of((blocks[0], moved, *blocks[2:]))
    for _ in range(TIMES):
        datapath.apply(empty)
        before = _table_bytes(datapath)
        whole = _cpu_ms(lambda: datapath.apply(wanted))
        each = (_table_bytes(datapath) - before) / count
        taken.append((whole, _cpu_ms(lambda: datapath.apply(other)), _cpu_ms(lambda: datapath.apply(other)), each))
    all_ms, one_ms, none_ms, size = (median(row[column] for row in taken) for column in range(4))
    return (f"IPv{version}: {count:,} remotes in blocks of {BLOCK}: {all_ms:.0f} ms; one block of them moves: "
            f"{one_ms:.1f} ms; nothing changes: {none_ms:.1f} ms; {size:.0f} bytes each")


def main() -> int:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    limits = Limits(flows=65536, rules=1024, bindings=64, ports=64, mappings=64)
    with Datapath.open(None, limits) as datapath:
        for version in (4, 6):
            print(_programming(datapath, count, version), flush=True)
        for size in SIZES:
            datapath.apply(state_of(blocks_of(size)))
            print(f"first packet, {size:>9,} remotes: {first_packet_ns(datapath):6.0f} ns", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
