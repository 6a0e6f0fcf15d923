"""Containers come and go, eight at a time, while the agent is killed again and again: nothing of them stays anywhere.

Short by default; `SLUICE_CONTAINERS=200` (`make container-churn`) starts and removes as many. The network has room for
hardly more than run at once, and each hand has one port to publish, so that a leaked address or port soon stops it all.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from docker_agree import agree
from docker_kit import Refused, httpd
from docker_site import Host, Site, eventually

from tests.figures import FIGURES
from vfp.datapath.object import BpfObject

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")

CONTAINERS = int(os.environ.get("SLUICE_CONTAINERS", "32"))
HANDS = 8
ATTEMPTS = 10                               # Docker gives up when the agent is killed too often under one request
APART_S = (2.0, 8.0)                        # from a new agent to its end
MAPS = ("links", "spaces", "mappings", "routes", "translations", "vtep_addresses", "stations", "externals")
NETWORK = "churn"
FIRST_PORT = 9000


def test_containers_come_and_go_while_the_agent_is_killed(
        site: Site, host: Host, pytestconfig: pytest.Config) -> None:
    docker, told = host.docker, Counter[str]()
    docker("network", "create", "-d", "nat", "--subnet", "192.168.251.0/28", NETWORK)
    docker.run("first", "--network", NETWORK)           # what the first one makes for the network stays with it
    before = in_kernel(host)
    began = time.monotonic()
    with killing(host, told), ThreadPoolExecutor(HANDS) as pool:
        list(pool.map(lambda hand: work(site, host, hand, told), range(HANDS)))
    seconds = time.monotonic() - began
    eventually(lambda: docker.names(all=True) == {"first"}, "no container is left")
    agree(host)
    eventually(lambda: in_kernel(host) == before, f"the kernel's tables are as before: {before}, {in_kernel(host)}")
    assert told["answered"] >= CONTAINERS
    assert told["killed"] > 0
    for address in range(2, 15):            # .1 is the gateway, and one the first container's
        assert docker.names() == {"first"}
        try:
            docker("run", "--rm", "--network", NETWORK, "--ip", f"192.168.251.{address}", "busybox:local", "true")
        except Refused:
            assert docker.address("first", NETWORK) == f"192.168.251.{address}"
    pytestconfig.stash.setdefault(FIGURES, []).append(
        f"containers: {CONTAINERS} in {seconds:.0f} s, {HANDS} at a time, {told['killed']} kills of the agent, "
        f"{told['again']} starts that Docker gave up and were tried again")


def work(site: Site, host: Host, hand: int, told: Counter[str]) -> None:
    """One hand's share, one after the other: start, ask from the world, remove."""
    for number in range(hand, CONTAINERS, HANDS):
        name = f"churn-{number}"
        patiently(lambda name=name: host.docker.run(    # type: ignore[misc]
            name, "--network", NETWORK, "-p", f"{FIRST_PORT + hand}:80", command=httpd(name)),
            lambda name=name: host.docker("rm", "--force", name), told)
        eventually(lambda name=name: answers(site, host, hand) == name, f"{name} answers")
        told["answered"] += 1
        patiently(lambda name=name: host.docker("rm", "--force", name), lambda: "", told)


def patiently(do: Callable[[], str], undo: Callable[[], str], told: Counter[str]) -> None:
    """Again, if an agent that was just killed made it fail."""
    for attempt in range(ATTEMPTS):
        try:
            do()
            return
        except Refused:
            if attempt == ATTEMPTS - 1:
                raise
            told["again"] += 1
            try:
                undo()
            except Refused:
                continue


def answers(site: Site, host: Host, hand: int) -> str:
    try:
        return site.world("curl", "-sS", "-m", "2", f"http://{host.lan}:{FIRST_PORT + hand}/")
    except Refused:
        return ""


@contextmanager
def killing(host: Host, told: Counter[str]) -> Iterator[None]:
    """kill -9 of the agent at random moments; at the end it runs."""
    over = threading.Event()
    moments = random.Random(6)
    problems: list[BaseException] = []

    def kill() -> None:
        try:
            while not over.wait(moments.uniform(*APART_S)):
                host.kill_agent()
                told["killed"] += 1
                host.start_agent()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not problems, problems


def in_kernel(host: Host) -> dict[str, int]:
    """Entries of the tables that endpoints and mappings have a place in."""
    with BpfObject.adopt(host.pins) as engine:
        return {name: sum(1 for _ in engine.map(name).items()) for name in MAPS if name in engine.maps}
