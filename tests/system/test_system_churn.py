"""A short form of the churn proof (`make churn`): a few hosts, some courses; and that it would see what is wrong.

`SLUICE_CHURN_SEED`: another course of events.
"""

from __future__ import annotations

import os
import random

import pytest
from churn import Churn, many_files
from churn_world import World

from tests.figures import FIGURES

SEED = int(os.environ.get("SLUICE_CHURN_SEED", "5"))
HOSTS, ENDPOINTS, NETWORKS, COURSES = 6, 6, 4, 2

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


def test_the_oracle_keeps_what_it_says() -> None:
    """No two endpoints in one slot or on one address of a network; every step changes what it says; the seed is all."""
    one, other = (World(8, 6, 4, random.Random(3)) for _ in range(2))
    for _ in range(300):
        before = dict(one.endpoints)
        change, same = one.step(), other.step()
        assert change == same
        assert {endpoint.name for endpoint in change.remove} == before.keys() - one.endpoints.keys()
        assert all(before.get(endpoint.name) != endpoint for endpoint in change.put)
        slots = [endpoint.slot for endpoint in one.endpoints.values()]
        places = [(endpoint.network, endpoint.offset) for endpoint in one.endpoints.values()]
        assert len(slots) == len(set(slots))
        assert len(places) == len(set(places))
        assert len(one.reached()) == sum(2 * len(one.joined(endpoint.network)) for endpoint in one.endpoints.values())
        assert not {(network, offset) for network, gone in one.gone.items() for offset in gone} & set(places)
    assert one.endpoints == other.endpoints


def test_after_each_course_of_changes_and_failures_all_is_as_declared(request: pytest.FixtureRequest) -> None:
    told: list[str] = []
    with many_files(), Churn(HOSTS, ENDPOINTS, NETWORKS, SEED, told.append) as churn:
        tally = churn.run(COURSES)
    request.config.stash.setdefault(FIGURES, []).append(str(tally))
    assert tally.courses == COURSES + 1
    assert tally.changes > 0
