"""One site of hosts with a real dockerd for all tests of our drivers: to build it costs more than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from docker_kit import Refused
from docker_site import Host, Site


@pytest.fixture(scope="session")
def docker_site() -> Iterator[Site]:
    with Site(2, ["--live-restore"]) as site:
        yield site


@pytest.fixture
def site(docker_site: Site) -> Iterator[Site]:
    """Two hosts, h1 and h2. What a test makes by Docker is removed; that it then has left anything fails it."""
    yield docker_site
    try:
        docker_site.clean()
    except (AssertionError, Refused):
        docker_site.mend()
        raise


@pytest.fixture
def host(site: Site) -> Host:
    """The first host."""
    return site.hosts[0]
