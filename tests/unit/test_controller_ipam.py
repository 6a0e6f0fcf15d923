"""Allocation: exact, deterministic, never the value that was just freed, never one that collides."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import ipam
from controller.network_specs import SubnetSpec
from controller.subnets import InUse, declared, kept, meant

RANGES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 5)).map(lambda pair: (pair[0], sum(pair))), max_size=6)


@given(RANGES, st.integers(-5, 70), st.sets(st.integers(0, 70)))
def test_next_free_finds_a_free_value_of_the_ring_exactly_when_there_is_one(
        ranges: list[tuple[int, int]], after: int, taken: set[int]) -> None:
    ring = ipam.within(ranges, (0, 100))
    found = ipam.next_free(ring, after, taken.__contains__)
    free = {n for low, high in ring for n in range(low, high + 1)} - taken
    assert (found in free) if free else (found is None)


@given(RANGES.filter(bool))
def test_next_free_goes_round_the_whole_ring_before_it_comes_back(ranges: list[tuple[int, int]]) -> None:
    ring = ipam.within(ranges, (0, 100))[::-1]
    everything = [n for low, high in ring for n in range(low, high + 1)]
    value, seen = ring[0][0], []
    for _ in everything:
        found = ipam.next_free(ring, value, lambda _: False)
        assert found is not None
        value = found
        seen.append(value)
    assert seen == [*everything[1:], everything[0]]


@given(RANGES, RANGES, st.tuples(st.integers(0, 30), st.integers(31, 70)))
def test_ranges_are_cut_and_holed_as_sets_are(
        ranges: list[tuple[int, int]], holes: list[tuple[int, int]], bounds: tuple[int, int]) -> None:
    def members(of: list[tuple[int, int]]) -> set[int]:
        return {n for low, high in of for n in range(low, high + 1)}

    cut = ipam.within(ranges, bounds)
    assert members(cut) == members(ranges) & members([bounds])
    left = ipam.without(cut, holes)
    assert members(left) == members(cut) - members(holes)
    for each in (cut, left):
        assert sum(high - low + 1 for low, high in each) == len(members(each)), "each value is in one range"


@given(st.sampled_from(["10.1.0.0/29", "10.1.0.0/28", "fd00::/124", "fd00::/64"]), st.data())
def test_a_freed_address_comes_back_only_when_nothing_else_is_free(text: str, data: st.DataObject) -> None:
    spec = SubnetSpec(prefix=text)
    ring = InUse(spec, ip_network(text), declared(spec).gateway).ring()
    size = sum(high - low + 1 for low, high in ring)
    taken: set[int] = set()
    cursor = 0
    for _ in range(data.draw(st.integers(1, 30))):
        if taken and data.draw(st.booleans()):
            freed = data.draw(st.sampled_from(sorted(taken)))
            taken.discard(freed)
            cursor = ipam.cursor_past(ring, cursor, freed, taken.__contains__)
            following = ipam.next_free(ring, cursor, taken.__contains__)
            assert following != freed or size - len(taken) == 1
        else:
            found = ipam.next_free(ring, cursor, taken.__contains__)
            if found is None:
                assert len(taken) == size
                continue
            assert found not in taken
            assert ip_address(declared(spec).gateway) != ip_address(found.to_bytes(4 if "." in text else 16, "big"))
            taken.add(found)
            cursor = found


def test_a_subnet_gives_out_what_it_may() -> None:
    spec = SubnetSpec(prefix="192.168.250.0/24", allocate=("192.168.250.0/29", "192.168.250.10-192.168.250.12"),
                      exclude=("192.168.250.5", "192.168.250.11"))
    subnet = InUse(spec, ip_network(spec.prefix), declared(spec).gateway)

    def given_out(of: InUse) -> list[str]:
        return [ipam.text_of(n, 4) for low, high in of.ring() for n in range(low, high + 1)]

    assert given_out(subnet) == [f"192.168.250.{n}" for n in (2, 3, 4, 6, 7, 10, 12)]
    moved = subnet.moved(IPv4Network("10.0.7.0/24"))        # what was declared holds there by offset
    assert given_out(moved) == [f"10.0.7.{n}" for n in (2, 3, 4, 6, 7, 10, 12)]
    assert (moved.gateway, moved.excludes("10.0.7.5"), moved.excludes("192.168.250.5")) == ("10.0.7.1", True, False)
    assert meant([moved], "192.168.250.9") == (moved, "10.0.7.9")
    assert meant([moved], "10.0.7.9") == (moved, "10.0.7.9")
    assert meant([moved], "172.16.0.9") is None
    assert meant([moved], "fd00::9") is None


PREFIXES = st.builds(lambda number, length: IPv4Network((number & -(1 << (32 - length)), length)),
                     st.integers(int(IPv4Address("10.0.0.0")), int(IPv4Address("10.0.255.255"))), st.integers(12, 32))


@given(st.lists(PREFIXES, max_size=12), st.integers(16, 28))
def test_a_free_prefix_is_the_first_that_overlaps_nothing(obstacles: list[IPv4Network], length: int) -> None:
    sources = [IPv4Network("10.0.128.0/17"), IPv4Network("10.0.0.0/18")]
    free = [prefix for source in sources if source.prefixlen <= length for prefix in source.subnets(new_prefix=length)
            if not any(prefix.overlaps(each) for each in obstacles)]
    if free:
        assert ipam.free_prefix(sources, length, obstacles) == free[0]
    else:
        with pytest.raises(ipam.Exhausted, match=f"/{length}"):
            ipam.free_prefix(sources, length, obstacles)


def test_free_prefixes_of_ipv6_are_local_ones_by_name() -> None:
    local = ipam.local_prefix("office")
    assert local.prefixlen == 48
    assert local == ipam.local_prefix("office") != ipam.local_prefix("lab")
    assert local.subnet_of(IPv6Network("fd00::/8"))
    first = ipam.free_prefix([local], 64, [IPv4Network("10.0.0.0/8")])
    assert first == next(local.subnets(new_prefix=64))
    assert ipam.free_prefix([local], 64, [first]) == list(local.subnets(new_prefix=64))[1]


def test_subnets_are_known_again_by_what_was_declared() -> None:
    a, b, c = SubnetSpec(prefix="10.1.0.0/24"), SubnetSpec(prefix="10.2.0.0/24"), SubnetSpec(prefix="fd00::/64")
    auto, small = SubnetSpec(prefix="auto"), SubnetSpec(prefix="auto", prefixLength=28)
    assert kept([a, b], [b, c, a]) == [1, None, 0]
    assert kept([a, auto, small, auto], [auto, auto, auto, small]) == [1, 3, None, 2]


def test_vnis_spaces_and_ports_come_from_their_ranges() -> None:
    assert ipam.next_vni(0, ()) == 4096
    assert ipam.next_vni(4096, {4097}) == 4098
    assert ipam.next_space(0, ()) == 2**24
    assert ipam.next_ports((10000, 19999), 1, 0, {10000}.__contains__) == 10001
    assert ipam.next_ports((10000, 19999), 1, 19999, lambda _: False) == 10000


@given(st.integers(1, 6), st.integers(90, 130), st.sets(st.integers(100, 120)))
def test_ports_in_a_row_are_all_free_and_found_if_there_are_any(size: int, after: int, taken: set[int]) -> None:
    fits = [n for n in range(100, 122 - size) if not taken & set(range(n, n + size))]
    if fits:
        assert ipam.next_ports((100, 120), size, after, taken.__contains__) in fits
    else:
        with pytest.raises(ipam.Exhausted, match="100 to 120"):
            ipam.next_ports((100, 120), size, after, taken.__contains__)


def test_macs_are_local_unicast_stable_and_unique() -> None:
    first = ipam.hashed_mac("net/a", lambda _: False)
    assert first.startswith("02:")
    assert first == ipam.hashed_mac("net/a", lambda _: False)
    assert ipam.hashed_mac("net/a", {first}.__contains__) not in (first, ipam.hashed_mac("net/b", lambda _: False))
