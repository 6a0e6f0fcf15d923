"""Sets in the kernel: what a change costs, what it does to flows, what time does, and what a restart finds."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from engine_frames import ACK, SYN, TCP, IpFrame

from bench.sets import CASES, bench_frame, bench_state, measure
from bench.sets import LIMITS as BENCH_LIMITS
from vfp.datapath.engine import Datapath, Limits
from vfp.datapath.errors import KernelRefused
from vfp.datapath.map import BpfMap
from vfp.errors import PolicyError, TableFull
from vfp.layout import SET_LENGTHS, SETTINGS, PlaceKind, ZoneKind, zone
from vfp.model import (
    AddressSet,
    Allow,
    Deny,
    EngineState,
    Forward,
    Group,
    HostStack,
    Layer,
    LocalPort,
    Match,
    Port,
    Prefix,
    Remote,
    Rule,
    Space,
)
from vfp.reasons import DropReason

LIMITS = Limits(flows=1024, rules=1024, bindings=64, ports=32, space_entries=64, mappings=64, sets=8, set_members=10100)
MANY = tuple(IPv4Network((20 << 24) + n) for n in range(10_000))
FRIEND, STRANGER, GATEWAY = IPv4Address("10.1.0.1"), IPv4Address("10.1.0.9"), IPv4Address("10.1.0.254")
WEB = AddressSet(5, "web", dynamic=True)
_MAC, _GATEWAY_MAC = bytes((2, 0, 0, 0, 0, 1)), bytes((2, 0, 0, 0, 0, 2))
_SPACE = Space(1 << 24, ((GATEWAY, HostStack(_GATEWAY_MAC)),))


def port(number: int, *rules: Rule) -> Port:
    """Forwards to the host's stack what `rules` let out."""
    acl = Layer("acl", (Group("acl", rules),), default_out=Deny())
    vnet = Layer("vnet", (Group("vnet", (Rule(0, Match(), Forward(_SPACE.id), "gateway"),)),))
    return Port(number, f"p{number}", 1000 + number, _MAC, _GATEWAY_MAC, (acl, vnet))


def allow(id: int = WEB.id) -> Rule:
    return Rule(10, Match(src_set=id), Allow(), "allow")


def state(*sets: AddressSet, ports: tuple[Port, ...] = (port(1, allow()),)) -> EngineState:
    return EngineState(ports=ports, spaces=(_SPACE,), sets=sets)


def send(
    datapath: Datapath, src: IPv4Address, sport: int = 1000, number: int = 1, flags: int = SYN
) -> DropReason:
    """One segment from a port to the gateway: NONE if it was left to the stack."""
    frame = IpFrame(_MAC, _GATEWAY_MAC, src, GATEWAY, TCP, sport, 80, tcp_flags=flags).build()
    context = bytearray(192)
    struct.pack_into("=I", context, 48, zone(ZoneKind.PORT, number))
    run = datapath.program("vfp_probe").test_run(frame, ctx=bytes(context))
    place, reason = struct.unpack_from("=II", run.ctx, 56)
    assert (place == PlaceKind.STACK) == (reason == 0)
    return DropReason(reason)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Every write to a map, by its name; of a batch, each element."""
    writes: Counter[str] = Counter()
    with patch.multiple(
        BpfMap, update=_counting(BpfMap.update, writes), delete=_counting(BpfMap.delete, writes),
        update_batch=_counting(BpfMap.update_batch, writes, batch=True),
        delete_batch=_counting(BpfMap.delete_batch, writes, batch=True),
    ):
        yield writes


def _counting(function: Any, writes: Counter[str], batch: bool = False) -> Any:
    def call(table: BpfMap, keys: Any, *args: Any, **more: Any) -> Any:
        writes[table.name] += len(bytes(keys)) // table.key_size if batch else 1
        return function(table, keys, *args, **more)

    return call


@pytest.fixture
def datapath() -> Iterator[Datapath]:
    with Datapath.open(None, LIMITS) as opened:
        yield opened


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    path = Path(f"/sys/fs/bpf/sets-test-{os.getpid()}")
    yield path
    Datapath.unpin(path)


def settled(datapath: Datapath, state: EngineState) -> None:
    """Apply a state, and let the time go by after which nothing of the one before is left."""
    datapath.apply(state)
    with patch("vfp.datapath.groups.GRACE_S", 0.0):
        datapath.tidy()


def generation(datapath: Datapath) -> int:
    return int(settings(datapath)["sets_generation"])


def settings(datapath: Datapath) -> Any:
    raw = datapath._object.map("config").lookup(bytes(4))
    assert raw is not None
    return np.frombuffer(raw, SETTINGS)[0]


def lengths(datapath: Datapath) -> dict[tuple[int, int], int]:
    """(set, family) to the bitmap of its prefix lengths."""
    return {
        (int.from_bytes(key[:4], "little"), key[4]): int.from_bytes(value[: SET_LENGTHS.itemsize], "little")
        for key, value in datapath._object.map("set_lengths").items()
    }


# Costs


def test_a_member_of_ten_thousand_comes_and_goes_in_three_map_writes(datapath: Datapath) -> None:
    datapath.apply(state(WEB))
    datapath.add_members(WEB.id, MANY)
    with counted() as writes:
        datapath.add_members(WEB.id, [IPv4Network(FRIEND)])
    assert writes == {"config": 2, "sets": 1}
    assert send(datapath, FRIEND) is DropReason.NONE
    with counted() as writes:
        datapath.remove_members(WEB.id, [IPv4Network(FRIEND)])
    assert writes == {"config": 2, "sets": 1}
    with counted() as writes:
        datapath.add_members(WEB.id, [IPv4Network(FRIEND)], redecide=False)
    assert writes == {"sets": 1}
    with counted() as writes:
        datapath.add_members(WEB.id, [IPv4Network("30.0.0.0/8")], redecide=False)
    assert writes == {"sets": 1, "set_lengths": 1}


def test_a_static_set_changes_by_difference(datapath: Datapath) -> None:
    big = AddressSet(WEB.id, "web", MANY)
    settled(datapath, state(big))
    with counted() as writes:
        datapath.apply(state(replace(big, members=(*MANY, IPv4Network(FRIEND)))))
    assert writes["sets"] == 1
    assert writes["set_lengths"] == writes["rules"] == writes["programs"] == writes["ports"] == 0
    assert send(datapath, FRIEND) is DropReason.NONE
    with counted() as writes:
        datapath.apply(state(replace(big, members=(*MANY, IPv4Network(FRIEND)))))
    assert not writes


def test_several_members_change_with_the_turn_and_by_difference_too(datapath: Datapath) -> None:
    big = AddressSet(WEB.id, "web", MANY)
    settled(datapath, state(big))
    other = state(replace(big, members=(*MANY[2:], IPv4Network(FRIEND))))
    with counted() as writes:
        datapath.apply(other)
    assert writes["sets"] == 3
    assert writes["rules"] == writes["ports"] == writes["groups"] == 0
    assert send(datapath, FRIEND) is DropReason.NONE
    assert send(datapath, IPv4Address(int(MANY[0].network_address))) is DropReason.LAYER_DEFAULT
    with counted() as writes, patch("vfp.datapath.groups.GRACE_S", 0.0):
        datapath.tidy()
    assert writes["sets"] == 3, "those of one turn become members of both, and the others leave"
    assert send(datapath, FRIEND, sport=2000) is DropReason.NONE
    with counted() as writes, patch("vfp.datapath.groups.GRACE_S", 0.0):
        datapath.apply(other)
        datapath.tidy()
    assert not writes


def test_a_change_has_the_room_of_what_left_with_the_one_before(datapath: Datapath) -> None:
    settled(datapath, state(AddressSet(WEB.id, "web", MANY)))
    datapath.apply(state(AddressSet(WEB.id, "web", MANY[:1])))
    more = state(AddressSet(WEB.id, "web", (*MANY[:1], *(IPv4Network((50 << 24) + n) for n in range(200)))))
    datapath.apply(more)
    assert len(datapath.members(WEB.id)) == 201


def test_a_port_more_that_names_a_large_set_costs_what_any_port_costs(datapath: Datapath) -> None:
    def cost(rule: Rule) -> Counter[str]:
        datapath.apply(state(big, ports=(port(1, rule),)))
        with counted() as writes:
            datapath.apply(state(big, ports=(port(1, rule), port(2, rule))))
        return writes

    big = AddressSet(WEB.id, "web", MANY)
    with_set, without = cost(allow()), cost(Rule(10, Match(src=IPv4Network("20.0.0.0/8")), Allow(), "allow"))
    assert with_set == without
    assert with_set["sets"] == with_set["rules"] == with_set["groups"] == 0


def test_the_bench_measures_decisions_that_go_the_way_their_names_say() -> None:
    with Datapath.open(None, BENCH_LIMITS) as opened:
        opened.apply(bench_state())
        raw = bench_frame()
        for number, case in enumerate(CASES, 1):
            context = bytearray(192)
            struct.pack_into("=I", context, 48, zone(ZoneKind.PORT, number))
            opened.program("vfp_probe").test_run(raw, ctx=bytes(context))
            matched = sum(hits.hits for (where, _), hits in opened.rule_hits().items() if where == number)
            assert matched == case.holds, case.name
        assert opened.drop_counts()[DropReason.LAYER_DEFAULT] == len(CASES)
    assert all(taken > 0 for taken in measure(rounds=1, repeat=10))


# What is in a set


@pytest.mark.parametrize("prefix", ["10.1.0.1/32", "10.1.0.0/30", "10.0.0.0/7", "0.0.0.0/0"])
def test_a_prefix_of_any_length_is_found_among_many(datapath: Datapath, prefix: str) -> None:
    datapath.apply(state(WEB))
    others = (IPv6Network("::/0"), IPv4Network("10.1.0.2/31"), IPv4Network("99.0.0.0/9"))
    datapath.add_members(WEB.id, [*MANY[:50], *others])
    assert send(datapath, FRIEND) is DropReason.LAYER_DEFAULT
    datapath.add_members(WEB.id, [IPv4Network(prefix)])
    assert send(datapath, FRIEND) is DropReason.NONE
    datapath.remove_members(WEB.id, [IPv4Network(prefix), IPv4Network("77.0.0.0/8")])
    assert send(datapath, FRIEND) is DropReason.LAYER_DEFAULT


def test_members_say_who_is_there_and_until_when(datapath: Datapath) -> None:
    datapath.apply(state(WEB))
    now = time.monotonic()
    members: list[Prefix] = [IPv4Network("10.0.0.0/8"), IPv6Network("2001:db8::/128")]
    datapath.add_members(WEB.id, members[:1])
    datapath.add_members(WEB.id, members[1:], ttl_s=50)
    found = datapath.members(WEB.id)
    assert list(found) == members
    assert found[members[0]] is None
    assert found[members[1]] == pytest.approx(now + 50, abs=5)


def test_lengths_are_those_that_members_have(datapath: Datapath) -> None:
    datapath.apply(state(WEB))
    datapath.add_members(WEB.id, [IPv4Network("10.0.0.0/8"), IPv4Network("11.0.0.0/8"), IPv6Network("::/0"),
                                  IPv6Network("2001:db8::/64"), IPv6Network("::1/128")])
    assert lengths(datapath) == {(5, 4): 1 << 8, (5, 6): 1 | 1 << 64 | 1 << 128}
    datapath.remove_members(WEB.id, [IPv4Network("10.0.0.0/8"), IPv6Network("::1/128")])
    assert lengths(datapath) == {(5, 4): 1 << 8, (5, 6): 1 | 1 << 64}
    datapath.remove_members(WEB.id, [IPv4Network("11.0.0.0/8")])
    assert lengths(datapath) == {(5, 6): 1 | 1 << 64}
    settled(datapath, EngineState())
    assert lengths(datapath) == {}
    assert datapath.members(WEB.id) == {}


@pytest.mark.parametrize(("vni", "reason"), [(100, DropReason.DENIED), (101, DropReason.NONE)])
def test_a_vni_is_that_of_the_overlay_a_packet_came_by(datapath: Datapath, vni: int, reason: DropReason) -> None:
    vtep = IPv4Address("172.31.0.2")
    deny = Layer("acl", (), (Group("acl", (Rule(1, Match(vni=vni), Deny(), "no"),)),), Allow(), Allow())
    space = Space(100, ((FRIEND, LocalPort(1, _MAC)), (STRANGER, Remote(vtep, 100, _MAC))))
    datapath.apply(EngineState(ports=(Port(1, "p1", 1001, _MAC, _GATEWAY_MAC, (deny,)),), spaces=(space,),
                               tunnel_ifindex=99))
    frame = IpFrame(_MAC, _MAC, STRANGER, FRIEND, TCP, 1000, 80).build()
    context = bytearray(192)
    struct.pack_into("=II", context, 48, zone(ZoneKind.OVERLAY, 100), int(vtep))
    run = datapath.program("vfp_probe").test_run(frame, ctx=bytes(context))
    assert DropReason(struct.unpack_from("=I", run.ctx, 60)[0]) is reason


# Flows that exist


def test_members_that_come_and_go_decide_flows_again(datapath: Datapath) -> None:
    datapath.apply(state(WEB))
    datapath.add_members(WEB.id, [IPv4Network(FRIEND)])
    assert send(datapath, FRIEND) is DropReason.NONE
    datapath.remove_members(WEB.id, [IPv4Network(FRIEND)])
    assert send(datapath, FRIEND, flags=ACK) is DropReason.LAYER_DEFAULT
    datapath.add_members(WEB.id, [IPv4Network(FRIEND)])
    assert send(datapath, FRIEND, flags=ACK) is DropReason.NONE


def test_a_change_leaves_flows_alone_that_no_set_could_turn(datapath: Datapath) -> None:
    first = Rule(5, Match(src=IPv4Network(STRANGER)), Allow(), "first")
    datapath.apply(state(WEB, ports=(port(1, first, allow()),)))
    datapath.add_members(WEB.id, [IPv4Network(FRIEND)])
    for src in (STRANGER, FRIEND):
        assert send(datapath, src) is DropReason.NONE
    before = {key: hits.hits for key, hits in datapath.rule_hits().items()}
    datapath.add_members(WEB.id, [IPv4Network("99.0.0.0/8")])
    for src in (STRANGER, FRIEND):
        assert send(datapath, src, flags=ACK) is DropReason.NONE
    more = {key: hits.hits - before[key] for key, hits in datapath.rule_hits().items()}
    assert sorted(more.values()) == [0, 1, 1], "one flow was decided again: by `allow` and by `gateway`"


def test_a_set_that_no_rule_names_decides_nothing_again(datapath: Datapath) -> None:
    other = AddressSet(6, "other", dynamic=True)
    datapath.apply(state(WEB, other))
    before = generation(datapath)
    datapath.add_members(other.id, [IPv4Network(FRIEND)])
    datapath.add_members(WEB.id, [IPv4Network(FRIEND)], redecide=False)
    assert generation(datapath) == before
    datapath.remove_members(WEB.id, [IPv4Network(FRIEND)])
    assert generation(datapath) == before + 1


def test_a_member_whose_time_is_over_keeps_what_it_let_in(datapath: Datapath) -> None:
    datapath.apply(state(WEB))
    datapath.add_members(WEB.id, [IPv4Network(FRIEND)], ttl_s=0.3)
    assert send(datapath, FRIEND, sport=1000) is DropReason.NONE
    time.sleep(0.35)
    assert send(datapath, FRIEND, sport=1000, flags=ACK) is DropReason.NONE
    assert send(datapath, FRIEND, sport=2000) is DropReason.LAYER_DEFAULT
    datapath.add_members(WEB.id, [IPv4Network("99.0.0.0/8")])
    assert send(datapath, FRIEND, sport=1000, flags=ACK) is DropReason.NONE, "decided again, and kept"
    datapath.remove_members(WEB.id, [IPv4Network(FRIEND)])
    assert send(datapath, FRIEND, sport=1000, flags=ACK) is DropReason.LAYER_DEFAULT


# Restarts and faults


def test_a_restart_finds_members_and_keeps_those_of_dynamic_sets(pin_dir: Path) -> None:
    static = AddressSet(6, "static", (IPv4Network("30.0.0.0/8"),))
    with Datapath.open(pin_dir, LIMITS) as first:
        first.apply(state(WEB, static))
        first.add_members(WEB.id, [IPv4Network(FRIEND)])
        first.add_members(WEB.id, [IPv4Network("40.0.0.0/8")], ttl_s=1000)
        members = first.members(WEB.id)
    with Datapath.open(pin_dir, LIMITS) as second:
        assert second.members(WEB.id) == members
        with counted() as writes:
            second.apply(state(WEB, static))
        assert not writes
        assert second.members(static.id) == {IPv4Network("30.0.0.0/8"): None}
        assert send(second, FRIEND) is DropReason.NONE
        second.remove_members(WEB.id, [IPv4Network(FRIEND)])
        assert send(second, FRIEND, flags=ACK) is DropReason.LAYER_DEFAULT
        settled(second, EngineState())
        assert second.members(WEB.id) == {}
        assert not list(second._object.map("sets").items())


@pytest.mark.parametrize("dies_at", ["before the member", "after it"])
def test_a_change_that_was_cut_short_is_finished_by_the_next_apply(pin_dir: Path, dies_at: str) -> None:
    """A flow that the member lets in is decided again whatever came of it."""
    with Datapath.open(pin_dir, LIMITS) as first:
        first.apply(state(WEB))
        first.add_members(WEB.id, [IPv4Network(FRIEND)])
        assert send(first, FRIEND) is DropReason.NONE
        (row,) = first._object.map("sets").keys()
        with patch.object(first._sets, "remove", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            first.remove_members(WEB.id, [IPv4Network(FRIEND)])
        if dies_at == "after it":
            first._object.map("sets").delete(row)
        assert settings(first)["dirty"]
    with Datapath.open(pin_dir, LIMITS) as second:
        second.apply(state(WEB))
        assert not settings(second)["dirty"]
        gone = dies_at == "after it"
        assert send(second, FRIEND, flags=ACK) is (DropReason.LAYER_DEFAULT if gone else DropReason.NONE)
        assert lengths(second) == ({} if gone else {(5, 4): 1 << 32})
        hits = sum(hits.hits for hits in second.rule_hits().values())
        assert hits == (2 if gone else 4), "the flow was decided again"


def test_a_write_that_the_kernel_refuses_is_mended_by_the_next_apply(datapath: Datapath) -> None:
    datapath.apply(state(WEB))
    real = BpfMap.update

    def refuse(table: BpfMap, *args: Any) -> None:
        if table.name == "sets":
            raise KernelRefused(errno.ENOMEM, "write to map sets")
        real(table, *args)

    with patch.object(BpfMap, "update", refuse), pytest.raises(KernelRefused):
        datapath.add_members(WEB.id, [IPv4Network(FRIEND)])
    assert settings(datapath)["dirty"]
    assert datapath.members(WEB.id) == {}
    assert lengths(datapath) == {}
    datapath.add_members(WEB.id, [IPv4Network(FRIEND)])
    assert settings(datapath)["dirty"], "one change does not mend another"
    datapath.apply(state(WEB))
    assert not settings(datapath)["dirty"]
    assert send(datapath, FRIEND) is DropReason.NONE


# What is refused


def test_only_dynamic_sets_of_the_state_take_members(datapath: Datapath) -> None:
    datapath.apply(state(AddressSet(5, "web", (IPv4Network(FRIEND),))))
    for id in (5, 6):
        with pytest.raises(PolicyError, match=f"set {id} is no dynamic set"):
            datapath.add_members(id, [IPv4Network(FRIEND)])
        with pytest.raises(PolicyError, match=f"set {id} is no dynamic set"):
            datapath.remove_members(id, [IPv4Network(FRIEND)])
    datapath.apply(state(WEB))
    with pytest.raises(PolicyError, match="give a positive one"):
        datapath.add_members(5, [IPv4Network(FRIEND)], ttl_s=0)


def test_what_does_not_fit_changes_nothing(datapath: Datapath) -> None:
    datapath.apply(state(WEB))
    datapath.add_members(WEB.id, MANY)
    with counted() as writes:
        with pytest.raises(TableFull, match=r"101 members more wanted, 100 of 10100 are free"):
            datapath.add_members(WEB.id, [IPv4Network((30 << 24) + n) for n in range(101)])
        with pytest.raises(TableFull, match=r"raise Limits\.set_members"):
            datapath.apply(state(WEB, AddressSet(6, "more", MANY)))
        with pytest.raises(TableFull, match=r"9 sets wanted, 8 fit; raise Limits\.sets"):
            datapath.apply(state(WEB, *(AddressSet(10 + n, f"s{n}") for n in range(8))))
    assert not writes
