"""What a condition on a set costs: whole decisions through the engine's BPF program, with and without one.

`python -m bench.sets`: one line a case, nanoseconds a decision (median over rounds in which the cases alternate) and
the difference to the same rule with a prefix in place of the set. No packet makes a flow: each is decided in full, and
then dropped by its layer's default.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from statistics import median

from bench.classbench import Header, frame
from vfp.datapath.engine import Datapath, Limits
from vfp.layout import ZoneKind, zone
from vfp.model import AddressSet, EngineState, Group, Layer, Match, Pass, Port, Rule

__all__ = ["CASES", "LIMITS", "Case", "bench_frame", "bench_state", "main", "measure"]

LIMITS = Limits(flows=1024, rules=1024, bindings=64, ports=64, space_entries=64, mappings=64)
ROUNDS = 41
REPEAT = 20_000
_SKB_BYTES, _SKB_CB = 192, 48               # struct __sk_buff: its size, and where cb[0] is
_SOURCE = IPv4Address("10.1.0.1")
_MAC = bytes((2, 0, 0, 0, 0, 1))


@dataclass(frozen=True, slots=True)
class Case:
    """One rule to decide by. `members` None: a prefix in place of a set. `holds`: it matches the packet."""

    name: str
    members: tuple[IPv4Network, ...] | None
    holds: bool


def _members(count: int, lengths: tuple[int, ...], holds: bool) -> tuple[IPv4Network, ...]:
    """`count` prefixes, of each length as many; the packet's source is in the longest only, which is tried last."""
    made: list[IPv4Network] = []
    for number in range(count - holds):
        length = lengths[number % len(lengths)]
        made.append(IPv4Network(((20 << 24) + (number << (32 - length)) & 0xFFFFFFFF, length)))
    if holds:
        made.append(IPv4Network((int(_SOURCE) >> 32 - lengths[-1] << 32 - lengths[-1], lengths[-1])))
    return tuple(made)


def _cases() -> Iterator[Case]:
    for holds in (False, True):
        what = "holds" if holds else "does not hold"
        yield Case(f"prefix, {what}", None, holds)
        for count, lengths in ((1, (32,)), (10, (32,)), (9, (24, 28, 32)), (10_000, (32,)), (9_999, (24, 28, 32))):
            words = f"{len(lengths)} length{'s' if len(lengths) > 1 else ''}"
            yield Case(f"set of {count}, {words}, {what}", _members(count, lengths, holds), holds)


CASES: tuple[Case, ...] = tuple(_cases())


def bench_frame() -> bytes:
    """The packet."""
    return frame(Header(int(_SOURCE), int(IPv4Address("10.2.0.1")), 1000, 80, 17))


def bench_state() -> EngineState:
    """A port for each of `CASES`, by number from 1."""
    ports, sets = [], []
    for number, case in enumerate(CASES, 1):
        if case.members is None:
            match = Match(src=IPv4Network(_SOURCE if case.holds else "10.9.0.0/16"))
        else:
            match = Match(src_set=number)
            sets.append(AddressSet(number, case.name, case.members))
        group = Group("g", (Rule(1, match, Pass(), "r"),))
        ports.append(Port(number, f"p{number}", 1000 + number, _MAC, _MAC, (Layer("acl", (group,)),)))
    return EngineState(ports=tuple(ports), sets=tuple(sets))


def measure(rounds: int = ROUNDS, repeat: int = REPEAT) -> list[float]:
    """Nanoseconds a decision for each of `CASES`."""
    raw = bench_frame()
    with Datapath.open(None, LIMITS) as one:
        one.apply(bench_state())
        probe = one.program("vfp_probe")
        times: list[list[int]] = [[] for _ in CASES]
        for _ in range(rounds):
            for number, taken in enumerate(times, 1):
                context = bytearray(_SKB_BYTES)
                struct.pack_into("=I", context, _SKB_CB, zone(ZoneKind.PORT, number))
                taken.append(probe.test_run(raw, ctx=bytes(context), repeat=repeat).duration_ns)
        return [median(taken) for taken in times]


def main() -> int:
    """Print the table."""
    plain: dict[bool, float] = {}
    for case, taken in zip(CASES, measure(), strict=True):
        plain.setdefault(case.holds, taken)
        print(f"{case.name:45} {taken:6.0f} ns  {taken - plain[case.holds]:+5.0f} ns")
    return 0


if __name__ == "__main__":
    sys.exit(main())
