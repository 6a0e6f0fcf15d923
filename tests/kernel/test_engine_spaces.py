"""Spaces of many remotes: whatever changes, the kernel's table is what was wanted, and only that is written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from unittest.mock import patch

import numpy as np
import pytest

from vfp.datapath.engine import Datapath
from vfp.datapath.limits import Limits
from vfp.datapath.map import BpfMap
from vfp.errors import CompileError, TableFull
from vfp.layout import LOCATION, SPACE_KEY, unpack_address
from vfp.model import Address, EngineState, LocalPort, Port, Remote, RemoteBlock, Route, Space
from vfp.reference.index import Index
from vfp.spaces import compile_spaces
from vfp.vteps import vtep_id

VTEPS = (IPv4Address("172.31.0.2"), IPv4Address("172.31.0.3"), IPv6Address("2001:db8::2"))
MAC = bytes.fromhex("020000000001")


@pytest.fixture(scope="module")
def loaded() -> Iterator[Datapath]:
    small = Limits(flows=1024, rules=1024, bindings=64, ports=64, space_entries=2000, mappings=64, vteps=16)
    with Datapath.open(None, small) as opened:
        yield opened


@pytest.fixture
def datapath(loaded: Datapath) -> Datapath:
    loaded.apply(EngineState())
    return loaded


def block(first: int, count: int, vtep: Address = VTEPS[0], version: int = 4, vni: int = 7) -> RemoteBlock:
    size = 4 if version == 4 else 16
    numbers = range(first, first + count)
    return RemoteBlock(vtep, vni, version, b"".join((0x0A000000 + n).to_bytes(size, "big") for n in numbers),
                       b"".join(n.to_bytes(6, "big") for n in numbers))


def held(datapath: Datapath) -> dict[tuple[int, Address], tuple[int, int, int, bytes]]:
    """What the kernel has: (space, address) to kind, port, VTEP, MAC."""
    keys, values = datapath._map("spaces").lookup_all()
    return {
        (int(key["space"]), unpack_address(key["address"].tobytes(), int(key["family"]))):
        (int(place["kind"]), int(place["port"]), int(place["vtep"]), place["mac"].tobytes())
        for key, place in zip(np.ascontiguousarray(keys).reshape(-1).view(SPACE_KEY),
                              np.ascontiguousarray(values).reshape(-1).view(LOCATION), strict=True)}


def wanted(state: EngineState) -> dict[tuple[int, Address], tuple[int, int, int, bytes]]:
    found = {}
    for where, place in Index(state).places().items():
        assert isinstance(place, LocalPort | Remote)
        remote = isinstance(place, Remote)
        found[where] = (2, 0, vtep_id(place.vtep), place.mac) if remote else (1, place.port, 0, place.mac)
    return found


def test_the_table_is_what_is_wanted_whatever_changes(datapath: Datapath) -> None:
    """Blocks come, go, change and give addresses to each other and to entries, in two spaces; also after a restart."""
    chance = random.Random(5)
    for _ in range(150):
        spaces = []
        for id in chance.sample((7, 8), chance.randrange(3)):
            free = list(range(60))
            chance.shuffle(free)
            entries = [(IPv4Address(0x0A000000 + free.pop()), chance.choice((
                LocalPort(1, MAC), Remote(chance.choice(VTEPS), id, MAC)))) for _ in range(chance.randrange(5))]
            blocks = []
            while len(free) > 20:
                some = [free.pop() for _ in range(chance.randrange(1, 12))]
                version = chance.choice((4, 4, 6))
                parts = [block(n, 1, version=version) for n in some]
                blocks.append(RemoteBlock(chance.choice(VTEPS), id, version, b"".join(p.addresses for p in parts),
                                          b"".join(p.macs for p in parts)))
            spaces.append(Space(id, tuple(entries), tuple(blocks)))
        state = EngineState(spaces=tuple(spaces))
        if chance.random() < 0.2:
            datapath._spaces._chunks = None             # as a process that adopts the table
        datapath.apply(state)
        assert held(datapath) == wanted(state)


def test_a_change_of_one_block_writes_that_block_only(datapath: Datapath) -> None:
    blocks = [block(100 * n, 100) for n in range(10)]
    state = EngineState(spaces=(Space(7, blocks=tuple(blocks)),))
    datapath.apply(state)
    moved = replace(blocks[4], vtep=VTEPS[1])
    written: list[int] = []
    update = BpfMap.update_batch

    def counted(self: BpfMap, keys: object, values: object, count: int | None = None, flags: int = 0) -> None:
        written.append(count or 0)
        update(self, keys, values, count, flags)            # type: ignore[arg-type]

    with patch.object(BpfMap, "update_batch", counted):
        datapath.apply(replace(state, spaces=(Space(7, blocks=(*blocks[:4], moved, *blocks[5:])),)))
    assert written == [100]
    one = block(437, 1, VTEPS[2])
    less = RemoteBlock(VTEPS[1], 7, 4, *(b"".join(getattr(block(n, 1), name) for n in range(400, 500) if n != 437)
                                         for name in ("addresses", "macs")))
    written.clear()
    with patch.object(BpfMap, "update_batch", counted):
        datapath.apply(replace(state, spaces=(Space(7, blocks=(*blocks[:4], less, one, *blocks[5:])),)))
    assert written == [1, 1, 1], "the ids of a new IPv6 VTEP, both ways, and the one address that moved"


def test_equal_blocks_are_compiled_once() -> None:
    first = compile_spaces((Space(7, blocks=(block(0, 5), block(5, 5))),), {})
    again = compile_spaces((Space(7, blocks=(block(5, 5), block(0, 4))),), first)
    entries, _, equal = first[7].chunks
    assert again[7].chunks[:2] == [entries, equal]
    assert len({id(chunk) for chunk in (*first[7].chunks, *again[7].chunks)}) == 4


@pytest.mark.parametrize(("space", "says"), [
    (Space(7, ((IPv4Address("10.0.0.1"), LocalPort(1, MAC)), (IPv4Address("10.0.0.1"), LocalPort(2, MAC)))),
     "address 10.0.0.1 is given twice"),
    (Space(7, ((IPv4Address("10.0.0.1"), LocalPort(1, MAC)),), (block(0, 5),)), "address 10.0.0.1 is given twice"),
    (Space(7, blocks=(block(0, 5), block(4, 5))), "address 10.0.0.4 is given twice"),
    (Space(7, blocks=(block(0, 5), block(0, 5))), r"address 10.0.0.\d is given twice"),
    (Space(7, blocks=(block(0, 5, version=6), block(4, 5, version=6))), "address ::a00:4 is given twice"),
    (Space(7, blocks=(replace(block(0, 5), macs=b"123456"),)), "20 bytes of addresses and 6 of MACs"),
    (Space(7, blocks=(replace(block(0, 5), version=5),)), "version 5 is no family"),
    (Space(7, blocks=(replace(block(0, 5), vni=1 << 24),)), "VNI 16777216 is out of range"),
    (Space(7, blocks=(block(0, 5, IPv4Address("224.0.0.1")),)), "VTEP 224.0.0.1 is no address of a host"),
    (Space(7, ((IPv4Address("10.0.0.1"), Remote(IPv6Address("ff02::1"), 7, MAC)),)), "VTEP ff02::1 is no address"),
])
def test_what_contradicts_itself_is_refused(datapath: Datapath, space: Space, says: str) -> None:
    """Also as a change of what is there, of which nothing is lost."""
    good = EngineState(spaces=(Space(7, blocks=(block(0, 5), block(5, 5))), Space(8, blocks=(block(0, 5),))))
    datapath.apply(good)
    with pytest.raises(CompileError, match=says):
        datapath.apply(EngineState(spaces=(space,)))
    assert held(datapath) == wanted(good)


ANY = IPv4Network("0.0.0.0/0")


@pytest.mark.parametrize(("routes", "says"), [
    ((Route(ANY, VTEPS[0]), Route(ANY, IPv4Address("10.0.0.1"))), "the prefix has a route already"),
    ((Route(ANY, IPv6Address("fd00::1")),), "next hop fd00::1 is of another family; give an IPv4 address"),
    ((Route(ANY, Remote(IPv4Address("240.0.0.1"), 7, MAC)),), "VTEP 240.0.0.1 is no address of a host"),
    ((Route(ANY, LocalPort(1, MAC)),), "port 1 is no exit of this space"),
])
def test_a_route_that_leads_nowhere_is_refused(datapath: Datapath, routes: tuple[Route, ...], says: str) -> None:
    with pytest.raises(CompileError, match=f"space 7, route to 0.0.0.0/0: {says}"):
        datapath.apply(EngineState(ports=(Port(1, "p1", 11, MAC, MAC),), spaces=(Space(7, routes=routes),)))


def test_two_ipv6_vteps_with_one_id_are_refused_by_name(datapath: Datapath) -> None:
    two = block(0, 5, IPv6Address("2001:db8::a")), block(5, 5, IPv6Address("2001:db8::b"))
    both = {"2001:db8::a", "2001:db8::b"}
    with patch("vfp.vteps.vtep_id", lambda vtep: 0xE0000001), pytest.raises(CompileError) as refused:
        datapath.apply(EngineState(spaces=(Space(7, blocks=two),)))
    assert both <= set(str(refused.value).replace(",", "").split())
    assert "0xe0000001" in str(refused.value)


def test_the_same_address_may_be_in_two_spaces_and_families(datapath: Datapath) -> None:
    both = block(0, 5), block(0, 5, version=6)
    state = EngineState(spaces=(Space(7, blocks=both), Space(8, blocks=(block(0, 5),))))
    datapath.apply(state)
    assert len(held(datapath)) == 15


def test_more_than_fits_is_refused_before_anything_is_written(datapath: Datapath) -> None:
    good = EngineState(spaces=(Space(7, blocks=(block(0, 5),)),))
    datapath.apply(good)
    with pytest.raises(TableFull, match=r"2001 entries wanted, 2000 fit; raise Limits.space_entries"):
        datapath.apply(EngineState(spaces=(Space(7, blocks=(block(0, 2001),)),)))
    assert held(datapath) == wanted(good)


def test_an_id_leads_to_its_address_and_back_as_long_as_it_is_named(datapath: Datapath) -> None:
    there = EngineState(spaces=(Space(7, blocks=(block(0, 5, VTEPS[2]),)),))
    datapath.apply(there)
    assert datapath._vteps() == {vtep_id(VTEPS[2]): VTEPS[2]}
    datapath.apply(EngineState())
    assert list(datapath._map("vtep_ids").items()) == list(datapath._map("vtep_addresses").items()) == []
