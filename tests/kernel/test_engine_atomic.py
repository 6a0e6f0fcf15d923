"""A change is whole at every moment of its writing: after each map write, and after a crash at each of them.

Every write of `Datapath.apply` to a map is followed by probes of all flows, of old ones and new ones. What passes must
pass by the old state or by the new one as a whole, however many ports changed; what both allow must pass.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from vfp.datapath.engine import Datapath, Limits
from vfp.datapath.map import BpfMap
from vfp.layout import PlaceKind
from vfp.model import (
    ETH_P_IP,
    AddressSet,
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
    Rule,
    Space,
)
from vfp.reasons import DropReason

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loads BPF programs, which needs root")

PORTS = (1, 2, 3)
SERVICES = (80, 81)
FLOWS = [(s, d, service) for s, d in permutations(PORTS, 2) for service in SERVICES]
# More flows than all courses of a test make, as nothing ages in it.
LIMITS = Limits(flows=262144, rules=4096, bindings=64, ports=64, space_entries=64, mappings=64)
SPACES = (7, 8)
_WRITES = ("update", "update_batch", "delete", "delete_batch")


@dataclass(frozen=True)
class Policy:
    """Which (port, direction, peer, service) are allowed; which ports exist; the space that they are in.

    `by_sets`: a rule a service, and its peers are the members of a set: so all of those policies have the same rules.
    """

    allowed: frozenset[tuple[int, str, int, int]]
    ports: frozenset[int] = frozenset(PORTS)
    space: int = SPACES[0]
    by_sets: bool = False

    def allows(self, flow: tuple[int, int, int]) -> bool:
        source, destination, service = flow
        return (
            {source, destination} <= self.ports and (source, "out", destination, service) in self.allowed
            and (destination, "in", source, service) in self.allowed
        )

    def state(self) -> EngineState:
        ports = tuple(
            Port(id=n, name=f"p{n}", ifindex=100 + n, mac=mac(n), gateway_mac=mac(99), layers=(
                Layer("acl", groups_out=(self._group(n, "out"),), groups_in=(self._group(n, "in"),),
                      default_out=Deny(), default_in=Deny()),
                Layer("vnet", groups_out=(Group("route", (Rule(0, Match(), Forward(self.space), "all"),)),),
                      default_out=Deny(), default_in=Allow()),
            ))
            for n in sorted(self.ports)
        )
        entries = tuple((address(n), LocalPort(n, mac(n))) for n in sorted(self.ports))
        sets = (tuple(self._set(n, way, service) for n in sorted(self.ports) for way in _WAYS for service in SERVICES)
                if self.by_sets else ())
        return EngineState(ports=ports, spaces=(Space(self.space, entries),), sets=sets)

    def _set(self, port: int, direction: str, service: int) -> AddressSet:
        peers = sorted(peer for its, way, peer, of in self.allowed if (its, way, of) == (port, direction, service))
        return AddressSet(_set_id(port, direction, service), f"{port} {direction} {service}",
                          tuple(IPv4Network(address(peer)) for peer in peers))

    def _group(self, port: int, direction: str) -> Group:
        if self.by_sets:
            return Group("policy", tuple(
                Rule(service, Match(
                    ethertype=ETH_P_IP, protocol=17, dst_ports=PortRange(service, service),
                    **{"src_set" if direction == "in" else "dst_set": _set_id(port, direction, service)},
                ), Allow(), f"set {service}")
                for service in SERVICES))
        mine = sorted((peer, service) for its, way, peer, service in self.allowed if (its, way) == (port, direction))
        return Group("policy", tuple(
            Rule(n, Match(
                ethertype=ETH_P_IP, protocol=17, dst_ports=PortRange(service, service),
                src=IPv4Network(address(peer)) if direction == "in" else None,
                dst=IPv4Network(address(peer)) if direction == "out" else None,
            ), Allow(), f"{peer}:{service}")
            for n, (peer, service) in enumerate(mine)
        ))


_WAYS = ("in", "out")


def _set_id(port: int, direction: str, service: int) -> int:
    return 100 * port + 10 * _WAYS.index(direction) + SERVICES.index(service) + 1


def mac(n: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, n))


def address(n: int) -> IPv4Address:
    return IPv4Address(f"10.0.0.{n}")


ALL = frozenset((p, way, peer, s) for p, peer in permutations(PORTS, 2) for way in ("in", "out") for s in SERVICES)


def policies(rng: random.Random) -> Policy:
    ports = frozenset(PORTS) if rng.random() < 0.7 else frozenset(rng.sample(PORTS, 2))
    allowed = frozenset(one for one in sorted(ALL) if rng.random() < 0.65)
    return Policy(allowed, ports, rng.choice(SPACES) if rng.random() < 0.3 else SPACES[0])


def test_a_program_whose_group_is_not_there_passes_nothing() -> None:
    with Datapath.open(None, LIMITS) as datapath:
        datapath.apply(Policy(ALL).state())
        for key, _ in list(datapath._map("groups").items()):
            datapath._map("groups").delete(key)
        Probe(datapath).check("without groups", Policy(frozenset()))
        assert datapath.drop_counts()[DropReason.ENGINE_ERROR] == 2 * len(FLOWS)


def test_counters_of_a_port_leave_with_it() -> None:
    with Datapath.open(None, LIMITS) as datapath:
        datapath.apply(Policy(ALL).state())
        Probe(datapath).check("all", Policy(ALL))
        datapath.apply(Policy(ALL, frozenset({1, 2})).state())
        datapath.sweep()
        assert {port for port, _ in datapath.rule_hits()} == {1, 2}


class Crash(Exception):
    """The process ends here."""


class Probe:
    """Sends every flow, on a port of its own and on the same port all the time, and judges what passes."""

    def __init__(self, datapath: Datapath) -> None:
        self._program = datapath.program("vfp_probe")
        self.sport = 20000

    def check(self, when: str, *possible: Policy) -> None:
        self.sport += 1
        for flow in FLOWS:
            verdicts = {policy.allows(flow) for policy in possible}
            for kind, sport in (("old", 10000), ("new", self.sport)):
                assert self._passes(flow, sport) in verdicts, f"{when}: {kind} flow {flow}, allowed by {verdicts}"

    def _passes(self, flow: tuple[int, int, int], sport: int) -> bool:
        source, destination, service = flow
        frame = _frame(source, destination, service).replace(_MARK, struct.pack("!H", sport), 1)
        context = bytearray(192)
        struct.pack_into("=I", context, 48, source)
        run = self._program.test_run(frame, ctx=bytes(context))
        place = PlaceKind(struct.unpack_from("=I", run.ctx, 56)[0])
        return place is not PlaceKind.NONE


_MARK = b"\xab\xcd"


def _frame(source: int, destination: int, service: int, made: dict[Any, bytes] = {}) -> bytes:  # noqa: B006
    if (source, destination, service) not in made:
        head = IP(src=str(address(source)), dst=str(address(destination)))
        body = UDP(sport=0xABCD, dport=service, chksum=0) / b"...."
        made[source, destination, service] = bytes(Ether(src=mac(source), dst=mac(destination)) / head / body)
    return made[source, destination, service]


@contextmanager
def written(after: Callable[[int], None]) -> Iterator[None]:
    """Call `after(number)` when each write to a map is done."""
    count = 0

    def watched(write: Callable[..., Any]) -> Callable[..., Any]:
        def do(self: BpfMap, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            result = write(self, *args, **kwargs)
            count += 1
            after(count)
            return result
        return do

    with patch.multiple(BpfMap, **{name: watched(getattr(BpfMap, name)) for name in _WRITES}):
        yield


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    path = Path(f"/sys/fs/bpf/sluice-atomic-{os.getpid()}")
    yield path
    Datapath.unpin(path)


TURNS = (
    Policy(ALL - {(1, "out", 2, 80)}),      # the sender denies ...
    Policy(ALL - {(2, "in", 1, 80)}),       # ... then the receiver
)


def test_after_each_write_a_packet_meets_one_policy_whole() -> None:
    rng = random.Random(1)
    course = [*TURNS, TURNS[0], *(policies(rng) for _ in range(40))]
    with Datapath.open(None, LIMITS) as datapath:
        datapath.apply(course[0].state())
        probe = Probe(datapath)
        probe.check("before", course[0])
        for number, (old, new) in enumerate(pairwise(course)):
            with written(_checking(probe, f"change {number}", old, new)):
                datapath.apply(new.state())
            probe.check(f"after change {number}", new)


SETS = tuple(replace(turn, by_sets=True) for turn in TURNS)
SWAPS = (                                   # sets change, by one member or by some, and the rules do not
    Policy(ALL - {(1, "out", 2, 80)}, by_sets=True), Policy(ALL - {(2, "in", 1, 80)}, by_sets=True),
    Policy(ALL, by_sets=True), Policy(ALL - {(2, "in", 1, 80)}, by_sets=True), Policy(frozenset(), by_sets=True),
)


def test_after_each_write_a_packet_meets_one_policy_whole_when_sets_change_with_rules() -> None:
    rng = random.Random(3)
    some = [replace(policies(rng), by_sets=rng.random() < 0.7) for _ in range(30)]
    course = [*SWAPS, TURNS[0], SETS[1], TURNS[0], SETS[0], TURNS[1], *some]
    with Datapath.open(None, LIMITS) as datapath:
        datapath.apply(course[0].state())
        probe = Probe(datapath)
        probe.check("before", course[0])
        for number, (old, new) in enumerate(pairwise(course)):
            with written(_checking(probe, f"change {number}", old, new)):
                datapath.apply(new.state())
                if number % 3 == 0:
                    datapath.tidy()
            probe.check(f"after change {number}", new)


def test_what_is_pinned_is_adopted_and_not_loaded_again(pin_dir: Path) -> None:
    """It is not if the compiler makes a map of constants, which has no pin: see that C initializers leave none."""
    loaded = []
    for _ in range(2):
        with Datapath.open(pin_dir, LIMITS) as datapath:
            loaded.append({name: program.id for name, program in datapath._object.programs.items()})
    assert loaded[0] == loaded[1]


def test_a_crash_at_any_write_leaves_the_old_policy_or_the_new_when_sets_change_with_rules(pin_dir: Path) -> None:
    rng = random.Random(4)
    drawn = [replace(policies(rng), by_sets=True) for _ in range(3)]
    for number, (old, new, then) in enumerate([(SWAPS[0], SWAPS[1], SWAPS[0]), (TURNS[0], SETS[1], SETS[0]),
                                               (drawn[0], drawn[1], drawn[2])]):
        _crash_everywhere(pin_dir, f"course {number}", old, new, then)


def _checking(probe: Probe, when: str, *possible: Policy) -> Callable[[int], None]:
    return lambda number: probe.check(f"{when}, write {number}", *possible)


def test_a_crash_at_any_write_leaves_the_old_policy_or_the_new(pin_dir: Path) -> None:
    rng = random.Random(2)
    for number, (old, new, then) in enumerate([
        (TURNS[0], TURNS[1], TURNS[0]), (policies(rng), policies(rng), policies(rng)),
        (policies(rng), policies(rng), policies(rng)), (Policy(ALL), Policy(ALL, space=8), Policy(ALL)),
    ]):
        _crash_everywhere(pin_dir, f"course {number}", old, new, then)


def _crash_everywhere(pin_dir: Path, when: str, old: Policy, new: Policy, then: Policy) -> None:
    """`old` in force, a crash at the nth write of `new`; the next process goes on with `new`, or with another."""
    sport = 20000
    for at in range(1, 200):
        with Datapath.open(pin_dir, LIMITS) as datapath:
            datapath.apply(old.state())
            probe = Probe(datapath)
            probe.sport = sport
            probe.check(f"{when} before {at}", old)
            crashed = False
            try:
                with written(_crashing(at)):
                    datapath.apply(new.state())
            except Crash:
                crashed = True
            probe.check(f"{when}, crash at {at}", old, new)
            sport = probe.sport
        if not crashed:
            return
        with Datapath.open(pin_dir, LIMITS) as datapath:
            probe = Probe(datapath)
            probe.sport = sport
            probe.check(f"{when}, adopted after {at}", old, new)
            goal = new if at % 2 else then
            with written(_checking(probe, f"{when}, mended after {at}", old, new, goal)):
                datapath.apply(goal.state())
            probe.check(f"{when}, in force after {at}", goal)
            sport = probe.sport
    raise AssertionError("the change never ends")


def _crashing(at: int) -> Callable[[int], None]:
    def after(number: int) -> None:
        if number >= at:
            raise Crash
    return after
