"""`python -m bench.classifier RULES [HEADERS]`: a ClassBench filter set in one group of the real BPF engine.

Every header is a frame through BPF_PROG_TEST_RUN of the whole slow path: parse, the layers guard, acl (the set) and
vnet, flow insert. By default one line a header is printed: the index of the rule that matched, or -1. With `--json`
figures:

- `build_s`: compile and load, from the model's rules to a policy in force;
- `map_bytes`, `map_bytes_a_rule`: kernel memory of the maps `groups`, `buckets`, `filter` and `rules` (memlock), sized
  for the set and an eighth more;
- `decision_ns`: median and p99 over the distinct headers of the time of a first packet; of each header the median of
  ROUNDS runs, with the flow table emptied before each round. A clock is read twice within it;
- `update_ms`: one rule more, or one less, at random places: `Datapath.apply` from call to return.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random
from statistics import median

import numpy as np

from bench.classbench import FormatError, Header, frame, perturbed, read_headers, read_rules
from vfp.classifier import rule_cookie
from vfp.datapath.engine import Datapath, Limits
from vfp.datapath.libbpf import TestRunOpts, check, library
from vfp.layout import ZoneKind, zone
from vfp.model import Action, Allow, Deny, EngineState, Group, Layer, Match, Port, Rule, ToUplink, Uplink

__all__ = ["Figures", "Run", "Setup", "answers", "figures", "main"]

ROUNDS = 5
UPDATES = 21
_PORT, _UPLINK = 1, 1
_GROUP = "classbench"
_MAPS = ("groups", "buckets", "filter", "rules")
_SKB_BYTES, _SKB_MARK, _SKB_CB = 192, 8, 48  # struct __sk_buff: its size, and where mark and cb[0] are
_PROBE_WALKS = 1                            # vfp/bpf/drop.h: layers are asked each time
_MAC, _GATEWAY = bytes((2, 0, 0, 0, 0, 1)), bytes((2, 0, 0, 0, 0, 2))


@dataclass(frozen=True, slots=True)
class Figures:
    """What one set costs; see the module."""

    rules: int
    headers: int
    build_s: float
    map_bytes: int
    map_bytes_a_rule: float
    masks: int
    decision_ns_median: float
    decision_ns_p99: float
    update_ms_median: float
    update_ms_max: float


class Setup:
    """A data path with one port, whose `acl` layer is one group. A context manager."""

    def __init__(self, rules: int) -> None:
        """Tables for `rules` and an eighth more."""
        self.datapath = Datapath.open(
            None,
            Limits(flows=1 << 17, rules=rules + rules // 8 + 1024, bindings=1024, ports=16, space_entries=64,
                   mappings=64),
        )
        self._probe = self.datapath.program("vfp_probe").fd

    def __enter__(self) -> Setup:
        return self

    def __exit__(self, *_: object) -> None:
        self.datapath.close()

    def load(self, rules: tuple[Rule, ...]) -> None:
        """Make `rules` the group; what none matches is allowed."""
        guard = Rule(0, Match(src_mac=_MAC), Allow(), "own")
        vnet = Rule(0, Match(), ToUplink(_UPLINK), "uplink")
        layers = (
            Layer("guard", (Group("guard", (guard,)),)),
            Layer("acl", (Group(_GROUP, rules),), default_out=Allow()),
            Layer("vnet", (Group("vnet", (vnet,)),)),
        )
        self.datapath.apply(EngineState(
            ports=(Port(_PORT, "p1", 1001, _MAC, _GATEWAY, layers),), uplinks=(Uplink(_UPLINK, "up", 1002),),
        ))

    def run(self, test: Run) -> int:
        """One frame through the engine; nanoseconds."""
        test.reset()
        check(library().bpf_prog_test_run_opts(self._probe, test.reference), "test-run vfp_probe")
        return int(test.opts.duration)

    def forget_flows(self) -> None:
        """Empty the flow table, and tell the budgets."""
        flows = self.datapath._object.map("flows")
        keys, _ = flows.lookup_all()
        flows.delete_batch(np.ascontiguousarray(keys), len(keys))
        self.datapath.age()

    def map_bytes(self) -> int:
        """Kernel memory of the maps that hold groups."""
        total = 0
        for name in _MAPS:
            text = Path(f"/proc/self/fdinfo/{self.datapath._object.map(name).fd}").read_text()
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("memlock:"))
        return total

    def masks(self) -> int:
        """Masks of the group."""
        return max(int(record["count"]) for record in self.datapath._groups._records.values())


class Run:
    """The arguments of a test-run of one frame, made once."""

    def __init__(self, raw: bytes) -> None:
        self._context = ctypes.create_string_buffer(_SKB_BYTES)
        self._fresh = bytearray(_SKB_BYTES)
        struct.pack_into("=I", self._fresh, _SKB_CB, zone(ZoneKind.PORT, _PORT))
        struct.pack_into("=I", self._fresh, _SKB_MARK, _PROBE_WALKS)
        self._fresh_raw = bytes(self._fresh)
        self._data = ctypes.create_string_buffer(raw, len(raw))
        self._out = ctypes.create_string_buffer(len(raw) + 256)
        self.opts = TestRunOpts(sz=ctypes.sizeof(TestRunOpts))
        self.opts.data_in, self.opts.data_size_in = ctypes.addressof(self._data), len(raw)
        self.opts.data_out = ctypes.addressof(self._out)
        self.opts.ctx_in, self.opts.ctx_size_in = ctypes.addressof(self._context), _SKB_BYTES
        self.opts.ctx_out, self.opts.repeat = self.opts.ctx_in, 1
        self.reference = ctypes.byref(self.opts)

    def reset(self) -> None:
        """Ready for another run: the last one wrote its answer over the arguments."""
        ctypes.memmove(self._context, self._fresh_raw, _SKB_BYTES)
        self.opts.data_size_out, self.opts.ctx_size_out = len(self._out), _SKB_BYTES

    def was_dropped(self) -> bool:
        """The verdict, in cb[2], is PLACE_NONE."""
        return bool(struct.unpack_from("=I", self._context, _SKB_CB + 8)[0] == 0)


def answers(setup: Setup, rules: tuple[Rule, ...], headers: Sequence[Header]) -> Iterator[int]:
    """The index of the rule that decides each header, or -1. Asked by denying: a drop record names the rule."""
    denying = _with_action(rules, Deny())
    setup.load(denying)
    by_cookie = {rule_cookie("acl", _GROUP, rule): index for index, rule in enumerate(denying)}
    setup.datapath.read_events()
    for header in headers:
        test = Run(frame(header))
        setup.run(test)
        if not test.was_dropped():
            yield -1
            continue
        (event,) = setup.datapath.read_events()
        yield by_cookie[event.cookie]


def figures(setup: Setup, rules: tuple[Rule, ...], headers: Sequence[Header]) -> Figures:
    """Measure one set."""
    began = time.perf_counter()
    setup.load(rules)
    build_s = time.perf_counter() - began
    map_bytes, masks = setup.map_bytes(), setup.masks()
    times = _decisions(setup, headers) if headers else np.zeros(1)
    updates = _updates(setup, rules)
    return Figures(
        rules=len(rules), headers=len(headers), build_s=round(build_s, 4), map_bytes=map_bytes,
        map_bytes_a_rule=round(map_bytes / max(1, len(rules)), 1), masks=masks,
        decision_ns_median=float(np.median(times)), decision_ns_p99=float(np.percentile(times, 99)),
        update_ms_median=round(median(updates), 2), update_ms_max=round(max(updates), 2),
    )


def _decisions(setup: Setup, headers: Sequence[Header]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Nanoseconds of each distinct frame as the first of its flow."""
    tests = [Run(raw) for raw in dict.fromkeys(map(frame, headers))]
    rounds = []
    for _ in range(ROUNDS + 1):
        setup.forget_flows()
        rounds.append([setup.run(test) for test in tests])
    result: np.ndarray[tuple[int], np.dtype[np.float64]] = np.median(np.array(rounds[1:], float), axis=0)
    return result


def _updates(setup: Setup, rules: tuple[Rule, ...]) -> list[float]:
    """Milliseconds of each of UPDATES changes: a rule more, the same one less, in turn."""
    random = Random(1)
    times = []
    for number in range(UPDATES):
        place = random.randrange(len(rules))
        match = replace(rules[place].match, src=IPv4Network(IPv4Address(random.getrandbits(32))))
        extra = replace(rules[place], match=match, name=f"extra {number}")
        for changed in ((*rules[:place], extra, *rules[place:]), rules[:place] + rules[place + 1 :], rules):
            began = time.perf_counter()
            setup.load(changed)
            times.append((time.perf_counter() - began) * 1e3)
        setup.datapath.sweep()
    return times


def _with_action(rules: tuple[Rule, ...], action: Action) -> tuple[Rule, ...]:
    return tuple(replace(rule, action=action) for rule in rules)


def main() -> int:
    """Parse, load, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.classifier", description=__doc__.splitlines()[0])
    parser.add_argument("rules", type=Path, metavar="RULES", help="ClassBench filter set; may be gzipped")
    parser.add_argument("headers", type=Path, metavar="HEADERS", nargs="?",
                        help="lines of `src dst sport dport proto`; may be gzipped (default: made from the rules)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--answers", action="store_true", help="print the matching rule's index, or -1 (the default)")
    what.add_argument("--json", action="store_true", help="print figures instead")
    parser.add_argument("--count", type=int, metavar="N",
                        help="make a set of N rules of this one: its first N, or copies with moved prefixes")
    options = parser.parse_args()
    try:
        rules = read_rules(options.rules)
        if options.count:
            rules = perturbed(rules, options.count)
        headers = read_headers(options.headers) if options.headers else _headers_of(rules)
    except (OSError, FormatError) as error:
        print(f"bench.classifier: {error}", file=sys.stderr)
        return 1
    with Setup(len(rules)) as setup:
        if options.json:
            print(json.dumps(asdict(figures(setup, rules, headers))))
        else:
            for answer in answers(setup, rules, headers):
                print(answer)
    return 0


def _headers_of(rules: Sequence[Rule], count: int = 5000) -> list[Header]:
    """A header in each of `count` rules, at random, for sets that come without."""
    random = Random(2)
    out = []
    for rule in (rules[random.randrange(len(rules))] for _ in range(count if rules else 0)):
        match = rule.match
        src, dst = (
            int(p[random.randrange(p.num_addresses)]) if isinstance(p, IPv4Network) else random.getrandbits(32)
            for p in (match.src, match.dst)
        )
        sport, dport = (
            random.randint(r.low, r.high) if r else random.getrandbits(16) for r in (match.src_ports, match.dst_ports)
        )
        out.append(Header(src, dst, sport, dport, match.protocol if match.protocol is not None else 6))
    return out


if __name__ == "__main__":
    sys.exit(main())
