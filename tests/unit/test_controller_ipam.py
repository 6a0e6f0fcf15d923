"""Allocation: exact, deterministic, never the value that was just freed."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import ipam


@given(st.integers(0, 30), st.integers(1, 20), st.integers(-5, 60), st.sets(st.integers(0, 60)))
def test_next_free_finds_a_free_value_in_range_exactly_when_there_is_one(
        low: int, size: int, after: int, taken: set[int]) -> None:
    high = low + size - 1
    found = ipam.next_free(low, high, after, taken.__contains__)
    free = set(range(low, high + 1)) - taken
    assert (found in free) if free else (found is None)


def test_next_free_goes_round() -> None:
    assert [ipam.next_free(10, 12, after, lambda _: False) for after in (9, 10, 11, 12)] == [10, 11, 12, 10]


@given(st.integers(2, 8), st.data())
def test_a_freed_address_comes_back_only_when_nothing_else_is_free(bits: int, data: st.DataObject) -> None:
    prefix = IPv4Network((int(IPv4Address("10.1.0.0")), 32 - bits))
    low, high = ipam.usable(prefix)
    gateway = ipam.default_gateway(prefix)
    taken: set[str] = set()
    cursor = 0
    for _ in range(data.draw(st.integers(1, 30))):
        if taken and data.draw(st.booleans()):
            freed = data.draw(st.sampled_from(sorted(taken)))
            taken.discard(freed)
            cursor = ipam.cursor_past(low, high, cursor, int(IPv4Address(freed)),
                                      lambda n: str(IPv4Address(n)) in taken or str(IPv4Address(n)) == gateway)
            free = [n for n in range(low, high + 1) if str(IPv4Address(n)) not in taken | {gateway}]
            following = ipam.next_address(prefix, gateway, cursor, taken.__contains__)
            assert str(IPv4Address(following)) != freed or len(free) == 1
        else:
            try:
                cursor = ipam.next_address(prefix, gateway, cursor, taken.__contains__)
            except ipam.Exhausted:
                assert len(taken) == high - low
                continue
            address = str(IPv4Address(cursor))
            assert address not in taken
            assert address != gateway
            assert low <= cursor <= high
            taken.add(address)


def test_exhaustion_names_the_prefix() -> None:
    with pytest.raises(ipam.Exhausted, match=r"all 1 addresses of 10\.1\.0\.0/30"):
        ipam.next_address(IPv4Network("10.1.0.0/30"), "10.1.0.1", 0, {"10.1.0.2"}.__contains__)


def test_vnis_spaces_and_ports_come_from_their_ranges() -> None:
    assert ipam.next_vni(0, ()) == 4096
    assert ipam.next_vni(4096, {4097}) == 4098
    assert ipam.next_nat_space(0, ()) == 2**24
    assert ipam.next_port(0, {10000}.__contains__) == 10001
    assert ipam.next_port(19999, lambda _: False) == 10000


def test_macs_are_local_unicast_stable_and_unique() -> None:
    first = ipam.hashed_mac("net/a", lambda _: False)
    assert first.startswith("02:")
    assert first == ipam.hashed_mac("net/a", lambda _: False)
    assert ipam.hashed_mac("net/a", {first}.__contains__) not in (first, ipam.hashed_mac("net/b", lambda _: False))
