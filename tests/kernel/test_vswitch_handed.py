"""Pairs whose far end a container runtime takes: they are this port's wherever that end went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vswitch_kit import Namespace, Notices, World, port, run, world

from vswitch import InterfaceTaken, LinkInvalid, NamespaceGone, NamespaceMissing, PortLink, Switch


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    return w.namespace("host")


@pytest.fixture
def container(w: World) -> Namespace:
    return w.namespace("end")


@pytest.fixture
def switch(w: World, host: Namespace) -> Switch:
    return w.switch(host)


def handed(number: int, **changes: object) -> PortLink:
    return port(number, Namespace(""), **{"interface": f"slc{number}", "handed": True} | changes)


def take(host: Namespace, container: Namespace, name: str = "slc5") -> None:
    """As Docker does it."""
    host.ip("link", "set", name, "netns", container.name)
    container.ip("link", "set", name, "name", "eth0")
    container.ip("address", "add", "10.99.0.5/24", "dev", "eth0")
    container.ip("link", "set", "eth0", "up")


def test_both_ends_are_here_the_far_one_down_and_bare(switch: Switch, host: Namespace) -> None:
    ifindex = switch.ensure_port(handed(5))
    here, far = host.link("slp5"), host.link("slc5")
    assert here["ifindex"] == ifindex
    assert (here["ifalias"], here["mtu"], "UP" in here["flags"]) == ("sluice:port:uid-5:5", 1400, True)
    assert (far["address"], far["mtu"], "UP" in far["flags"]) == ("02:99:00:00:00:05", 1400, False)
    assert host.addresses("slc5") == []


def test_what_waits_is_no_link_of_the_hosts(switch: Switch, host: Namespace) -> None:
    host.ip("link", "add", "lan0", "type", "bridge")
    switch.ensure_port(handed(5))
    host.ip("address", "add", "10.99.0.5/24", "dev", "slc5")
    host.ip("link", "set", "slc5", "up")
    found = switch.facts()
    assert "slc5" not in found.links
    assert "lan0" in found.links
    assert (found.addresses, found.routes) == ((), ())
    assert switch.addresses() == ()
    assert list(switch.owned()) == ["slp5"]


def test_a_second_call_changes_nothing_before_or_after_it_was_taken(
    w: World, switch: Switch, host: Namespace, container: Namespace
) -> None:
    first = switch.ensure_port(handed(5))
    told = host.call(Notices)
    told.settle()
    assert switch.ensure_port(handed(5)) == first
    assert told.count() == 0
    take(host, container)
    told.settle()
    assert switch.ensure_port(handed(5)) == first
    assert w.switch(host).ensure_port(handed(5)) == first
    assert told.count() == 0
    told.close()
    assert container.addresses("eth0")[:1] == ["10.99.0.5/24"]


def test_what_the_runtime_made_of_it_is_left(switch: Switch, host: Namespace, container: Namespace) -> None:
    switch.ensure_port(handed(5))
    take(host, container)
    container.ip("link", "set", "eth0", "mtu", "1300", "address", "02:99:00:00:00:77")
    switch.ensure_port(handed(5))
    far = container.link("eth0")
    assert (far["mtu"], far["address"]) == (1300, "02:99:00:00:00:77")


def test_a_new_mtu_reaches_an_end_that_waits_and_never_narrows_the_way_of_one_that_does_not(
    switch: Switch, host: Namespace, container: Namespace
) -> None:
    switch.ensure_port(handed(5))
    switch.ensure_port(handed(5, mtu_bytes=1300))
    assert (host.link("slp5")["mtu"], host.link("slc5")["mtu"]) == (1300, 1300)
    host.ip("link", "set", "slc5", "address", "02:99:00:00:00:77")
    switch.ensure_port(handed(5))
    assert (host.link("slp5")["mtu"], host.link("slc5")["mtu"]) == (1400, 1400)
    assert host.link("slc5")["address"] == "02:99:00:00:00:05"
    take(host, container)
    switch.ensure_port(handed(5, mtu_bytes=1300))
    assert (host.link("slp5")["mtu"], container.link("eth0")["mtu"]) == (1400, 1400)
    switch.ensure_port(handed(5, mtu_bytes=1450))
    assert (host.link("slp5")["mtu"], container.link("eth0")["mtu"]) == (1450, 1400)


def test_it_may_come_back_and_be_taken_again(switch: Switch, host: Namespace, container: Namespace) -> None:
    first = switch.ensure_port(handed(5))
    take(host, container)
    container.ip("link", "set", "eth0", "down")
    container.ip("link", "set", "eth0", "name", "slc5")
    run("nsenter", f"--net=/run/netns/{container.name}", "ip", "link", "set", "slc5", "netns", host.name)
    assert switch.owned()["slp5"].far_here
    assert switch.ensure_port(handed(5)) == first
    take(host, container)
    assert not switch.owned()["slp5"].far_here
    assert switch.ensure_port(handed(5)) == first


def test_with_its_container_the_pair_goes_and_with_the_pair_the_far_end(
    w: World, switch: Switch, host: Namespace, container: Namespace
) -> None:
    other = w.namespace("other")
    for number, end in ((5, container), (6, other)):
        switch.ensure_port(handed(number))
        take(host, end, f"slc{number}")
    switch.remove("slp6")
    assert not other.has("eth0")
    run("ip", "netns", "del", container.name)
    deadline = time.monotonic() + 10
    while host.has("slp5"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_another_endpoints_pair_of_the_same_number_goes(switch: Switch, host: Namespace) -> None:
    first = switch.ensure_port(handed(5))
    assert switch.ensure_port(handed(5, alias="sluice:port:uid-new:5")) != first
    assert host.link("slp5")["ifalias"] == "sluice:port:uid-new:5"


def test_a_name_that_is_anothers_is_left_and_nothing_is_made(switch: Switch, host: Namespace) -> None:
    host.ip("link", "add", "slc5", "type", "bridge")
    with pytest.raises(InterfaceTaken, match="slc5"):
        switch.ensure_port(handed(5))
    assert not host.has("slp5")
    assert host.link("slc5")["linkinfo"]["info_kind"] == "bridge"


def test_a_far_end_without_a_good_name_is_refused(switch: Switch) -> None:
    with pytest.raises(LinkInvalid, match="interface"):
        switch.ensure_port(handed(5, interface="much-too-long-a-name"))


def test_a_namespace_is_known_again_and_no_other_is_taken_for_it(
    w: World, switch: Switch, host: Namespace, container: Namespace
) -> None:
    identity = switch.identify(container.name)
    assert w.switch(host).identify(f"/run/netns/{container.name}") == identity
    meant = port(5, container, namespace=identity)
    first = switch.ensure_port(meant)
    assert switch.ensure_port(meant) == first
    for _ in range(3):                                          # inodes are given again at once
        run("ip", "netns", "del", container.name)
        with pytest.raises(NamespaceGone, match="no /run/netns"):
            switch.ensure_port(meant)
        run("ip", "netns", "add", container.name)
        with pytest.raises(NamespaceGone, match="another one has its place"):
            switch.ensure_port(meant)
        assert not container.has("eth0")
    assert switch.identify(container.name) != identity


def test_what_cannot_be_identified(switch: Switch, host: Namespace) -> None:
    with pytest.raises(NamespaceMissing, match="no /run/netns/nowhere"):
        switch.identify("nowhere")
    with pytest.raises(LinkInvalid, match="the host's own"):
        switch.identify(host.name)
    with pytest.raises(LinkInvalid):
        switch.identify("../x")
