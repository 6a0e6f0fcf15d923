"""Bindings in the kernel: nothing is inherited, what ends is told, counts come right, a pool is full when it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest
from engine_backends import LIMITS, BpfBackend
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from vfp.datapath.engine import Datapath
from vfp.layout import BLOCK, SHARE, TALLY
from vfp.model import (
    Allow,
    EngineState,
    Filtering,
    Group,
    Layer,
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
from vfp.reasons import DropReason
from vfp.reference import Hook
from vfp.reference.bindings import Block, External

MACS = {number: bytes.fromhex(f"02000000000{number}") for number in (1, 2)}
GATEWAY = bytes.fromhex("0200000000fe")
EXTERNAL, WORLD = IPv4Address("198.51.100.1"), "203.0.113.1"
NAT = Layer("nat", (Group("nat", (Rule(0, Match(ethertype=0x0800), TranslateSource(1), "snat"),)),),
            (Group("nat", (Rule(0, Match(), Untranslate(), "back"),)),), Allow(), Allow())
VNET = Layer("vnet", (Group("vnet", (Rule(0, Match(), ToUplink(1), "out"),)),), default_in=Allow())
POOL = Pool(1, 1, (EXTERNAL,), PortRange(20000, 20009), log=True)


def port(number: int, ifindex: int = 0, mac: bytes = b"") -> Port:
    return Port(number, f"p{number}", ifindex or 10 + number, mac or MACS[number], GATEWAY, (NAT, VNET))


def host(*ports: Port, pools: tuple[Pool, ...] = (POOL,)) -> EngineState:
    return EngineState(ports=ports, uplinks=(Uplink(1, "up", 51),), pools=pools)


def udp(sport: int, number: int = 1, mac: bytes = b"") -> bytes:
    ethernet = Ether(src=(mac or MACS[number]).hex(":"), dst=GATEWAY.hex(":"))
    return bytes(ethernet / IP(src=f"10.1.0.{number}", dst=WORLD) / UDP(sport=sport, dport=53))


def from_world(dport: int, sport: int = 53, source: str = WORLD) -> bytes:
    ethernet = Ether(src=GATEWAY.hex(":"), dst=GATEWAY.hex(":"))
    return bytes(ethernet / IP(src=source, dst=str(EXTERNAL)) / UDP(sport=sport, dport=dport))


@pytest.fixture(scope="module")
def loaded() -> Iterator[BpfBackend]:
    backend = BpfBackend(replace(LIMITS, half_open=0, udp=0))
    yield backend
    backend.close()


@pytest.fixture
def engine(loaded: BpfBackend) -> BpfBackend:
    loaded.reset()
    return loaded


def send(engine: BpfBackend, frame: bytes, hook: Hook = Hook.PORT_OUT, number: int = 1) -> tuple[str, DropReason]:
    outcome = engine.process(hook, number, frame, None, 0.0)
    return outcome.verdict, outcome.reason


def tables(engine: BpfBackend) -> dict[str, int]:
    return {name: len(list(engine._datapath._object.map(name).items()))
            for name in ("bindings", "externals", "contacts", "blocks", "shares")}


def kinds(engine: BpfBackend) -> list[str]:
    return [event.kind for event in engine._datapath.read_binding_events()]


def test_a_port_that_is_gone_leaves_nothing_and_its_records_say_so(engine: BpfBackend) -> None:
    pool = replace(POOL, filtering=Filtering.ADDRESS)
    engine.load(host(port(1), port(2), pools=(pool,)))
    send(engine, udp(20001))
    send(engine, udp(20002, 2), number=2)
    assert kinds(engine) == ["bound", "bound"]
    engine.load(host(port(2), pools=(pool,)))
    assert tables(engine) == {"bindings": 1, "externals": 1, "contacts": 1, "blocks": 0, "shares": 1}
    (event,) = engine._datapath.read_binding_events()
    assert (event.kind, event.port, event.external_port, event.internal) == (
        "released", 1, 20001, IPv4Address("10.1.0.1"))
    assert [bound.port for bound in engine.bindings()] == [2]


def test_blocks_go_with_their_port_and_with_their_pool(engine: BpfBackend) -> None:
    pool = replace(POOL, block=2)
    engine.load(host(port(1), port(2), pools=(pool,)))
    for sport in (1, 2, 3):
        send(engine, udp(sport))
    send(engine, udp(4, 2), number=2)
    assert kinds(engine) == ["block-taken"] * 3
    (first, *_) = [bound for bound in engine.bindings() if bound.port == 2]
    block = Block(EXTERNAL, 20000 + (first.external_port - 20000) // 2 * 2, 2)
    assert engine._datapath.block_holder(block) == (2, 1)
    engine.load(host(port(2), pools=(pool,)))
    assert kinds(engine) == ["block-released"] * 2
    assert engine._datapath.block_holder(block) == (2, 1)
    engine.load(host(pools=()))
    assert kinds(engine) == ["block-released"]
    assert tables(engine) == {"bindings": 0, "externals": 0, "contacts": 0, "blocks": 0, "shares": 0}


@pytest.mark.parametrize("again", [{"ifindex": 31}, {"mac": bytes.fromhex("02000000000a")}])
@pytest.mark.parametrize("between", [True, False])
def test_a_port_with_the_id_of_another_inherits_neither_bindings_nor_flows(
        engine: BpfBackend, again: dict[str, int | bytes], between: bool) -> None:
    """Removed before or in the same change: what the world still sends to the old one does not reach the new one."""
    engine.load(host(port(1)))
    send(engine, udp(20001))
    assert send(engine, from_world(20001), Hook.UPLINK_IN)[0] == "redirect_port"
    if between:
        engine.load(host())
    new = port(1, **again)  # type: ignore[arg-type]
    engine.load(host(new))
    assert engine.bindings() == []
    assert kinds(engine) == ["bound", "released"]
    assert send(engine, from_world(20001), Hook.UPLINK_IN) == ("stack", DropReason.NONE)
    assert send(engine, udp(20001, mac=new.mac))[0] == "redirect_uplink"
    assert send(engine, from_world(20001), Hook.UPLINK_IN)[0] == "redirect_port"


def test_the_same_port_keeps_its_bindings_through_changes_of_policy(engine: BpfBackend) -> None:
    engine.load(host(port(1)))
    send(engine, udp(20001))
    before = engine.bindings()
    engine.load(host(port(1), port(2)))
    engine.load(host(replace(port(1), strict_tcp=True)))
    assert engine.bindings() == before
    assert send(engine, from_world(20001), Hook.UPLINK_IN)[0] == "redirect_port"


def test_a_purge_that_a_crash_cut_off_is_made_up_for(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The agent dies before the purge; the next one has no old state to compare with, but the mark."""
    pins = Path("/sys/fs/bpf") / f"e1-{tmp_path_factory.getbasetemp().name}-purge"
    limits = replace(LIMITS, half_open=0, udp=0)
    try:
        with Datapath.open(pins, limits) as datapath:
            backend = BpfBackend.__new__(BpfBackend)
            backend._datapath = datapath
            backend._probe = datapath.program("vfp_probe")
            datapath.apply(host(port(1)))
            assert send(backend, udp(20001))[0] == "redirect_uplink"
            datapath._run_sweep = lambda program: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                datapath.apply(host())
        with Datapath.open(pins, limits) as datapath:
            assert len(datapath.bindings()) == 1
            datapath.apply(host())
            assert datapath.bindings() == []
    finally:
        Datapath.unpin(pins)


def test_who_the_world_may_reach_is_known_after_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    pins = Path("/sys/fs/bpf") / f"e1-{tmp_path_factory.getbasetemp().name}-kept"
    limits = replace(LIMITS, half_open=0, udp=0)
    state = host(port(1), pools=(replace(POOL, filtering=Filtering.ADDRESS, block=2),))
    try:
        for first in (True, False):
            with Datapath.open(pins, limits) as datapath:
                backend = BpfBackend.__new__(BpfBackend)
                backend._datapath = datapath
                backend._probe = datapath.program("vfp_probe")
                datapath.apply(state)
                if first:
                    assert send(backend, udp(20001))[0] == "redirect_uplink"
                (bound,) = datapath.bindings()
                assert send(backend, from_world(bound.external_port, 99), Hook.UPLINK_IN)[0] == "redirect_port"
                strange = from_world(bound.external_port, source="203.0.113.9")
                assert send(backend, strange, Hook.UPLINK_IN) == ("drop", DropReason.NAT_FILTERED)
                assert datapath.pool_use() == {1: [(EXTERNAL, 17, 1)]}
    finally:
        Datapath.unpin(pins)


def test_listings_and_look_ups_agree(engine: BpfBackend) -> None:
    engine.load(host(port(1), port(2)))
    send(engine, udp(20001))
    send(engine, udp(20001, 2), number=2)
    ethernet = Ether(src=MACS[1].hex(":"), dst=GATEWAY.hex(":"))
    send(engine, bytes(ethernet / IP(src="10.1.0.1", dst=WORLD) / TCP(sport=5, dport=80, flags="S")))
    send(engine, bytes(ethernet / IP(src="10.1.0.1", dst=WORLD, proto=47) / bytes(8)))
    records = engine._datapath.bindings()
    assert len(records) == 4
    for record in records:
        external = External(record.external, record.protocol, record.external_port)
        key = engine._datapath.binding_at(external)
        assert key is not None
        assert (key.port, key.source, key.source_port) == (record.port, record.source, record.source_port)
        assert engine._datapath.binding(key) == external
        assert record.idle_s < 5
    assert engine._datapath.binding_count(1, 1) == 3
    assert engine._datapath.pool_use() == {1: [(EXTERNAL, 6, 1), (EXTERNAL, 17, 2), (EXTERNAL, 47, 1)]}


def test_the_sweep_puts_counts_right(engine: BpfBackend) -> None:
    """A count that a race made too high would refuse what there is room for."""
    engine.load(host(port(1), pools=(replace(POOL, block=2, quota=5),)))
    for sport in (1, 2, 3):
        send(engine, udp(sport))
    right = counts(engine)
    for name, dtype in (("uses", TALLY), ("shares", SHARE), ("blocks", BLOCK)):
        table = engine._datapath._object.map(name)
        for key, value in list(table.items()):
            row = np.frombuffer(value, dtype).copy()
            for tally in ([row] if name == "uses" else [row["bindings"], row["blocks"]] if name == "shares" else
                          [row["used"][:, kind] for kind in range(3)]):
                tally["now"] += 7
            table.update(key, row.tobytes())
    assert counts(engine) != right
    engine._datapath.age()
    assert counts(engine) == right


def counts(engine: BpfBackend) -> list[tuple[str, bytes, tuple[int, ...]]]:
    found = []
    for name, dtype in (("uses", TALLY), ("shares", SHARE), ("blocks", BLOCK)):
        for key, value in engine._datapath._object.map(name).items():
            row = np.frombuffer(value, dtype)[0]
            tallies = [row] if name == "uses" else [row["bindings"], row["blocks"]] if name == "shares" else row["used"]
            found.append((name, key, tuple(int(tally["now"]) for tally in tallies)))
    return sorted(found)


def test_a_pool_is_exhausted_when_it_is_and_not_before(engine: BpfBackend) -> None:
    """200 ports, of which 3 are somebody else's; all of the rest can be had, by whoever comes."""
    held = ((17, 20005), (17, 20150), (17, 20199))
    engine.load(host(port(1), pools=(replace(POOL, ports=PortRange(20000, 20199), held=held),)))
    for sport in range(1000, 1197):
        assert send(engine, udp(sport)) == ("redirect_uplink", DropReason.NONE)
    assert send(engine, udp(1)) == ("drop", DropReason.NAT_EXHAUSTED)
    given = {bound.external_port for bound in engine.bindings()}
    assert given == set(range(20000, 20200)) - {port for _, port in held}
    assert send(engine, udp(1000)) == ("redirect_uplink", DropReason.NONE)


