"""Static mappings of the benchmark: as many as asked, no port twice, the measured ones in the middle."""

from __future__ import annotations

import pytest

from bench.nat import ENDPOINT, MAPPINGS, NAT_PORTS, static_mappings


@pytest.mark.parametrize("count", MAPPINGS)
def test_mappings_are_as_many_as_asked_and_distinct(count: int) -> None:
    made = static_mappings(count)
    assert len(made) == len({(each.protocol, each.external_port) for each in made}) == count
    assert all(each.external_port < NAT_PORTS[0] and 0 < each.port < 65536 for each in made)


@pytest.mark.parametrize("count", MAPPINGS)
def test_measured_mappings_are_in_the_middle(count: int) -> None:
    places = [place for place, each in enumerate(static_mappings(count)) if each.address == ENDPOINT]
    assert len(places) == 5
    assert abs(sum(places) / 5 - (count - 1) / 2) <= 1
