"""Ports are made, adopted, mended and removed; what is another's is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from vswitch_kit import Namespace, Notices, World, port, run, world

from vswitch import InterfaceTaken, LinkInvalid, LinkMissing, NamespaceMissing, Switch


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    return w.namespace("host")


@pytest.fixture
def endpoint(w: World) -> Namespace:
    return w.namespace("end")


@pytest.fixture
def switch(w: World, host: Namespace) -> Switch:
    return w.switch(host)


def test_new_port_has_all_that_was_asked_for(switch: Switch, host: Namespace, endpoint: Namespace) -> None:
    ifindex = switch.ensure_port(port(5, endpoint))
    here = host.link("slp5")
    assert here["ifindex"] == ifindex
    assert here["ifalias"] == "sluice:port:uid-5:5"
    assert here["mtu"] == 1400
    assert "UP" in here["flags"]
    there = endpoint.link("eth0")
    assert there["address"] == "02:99:00:00:00:05"
    assert there["mtu"] == 1400
    assert "UP" in there["flags"]
    assert "UP" in endpoint.link("lo")["flags"]
    assert endpoint.addresses("eth0") == ["10.99.0.5/24"]      # and no IPv6
    (default,) = endpoint.show("route", "show", "default")
    assert (default["gateway"], default["dev"]) == ("10.99.0.1", "eth0")
    assert host.addresses("slp5") == []


def test_far_end_appears_in_its_namespace_directly(switch: Switch, host: Namespace, endpoint: Namespace) -> None:
    host.ip("link", "add", "eth0", "type", "bridge")            # the name is taken here, and that is no matter
    switch.ensure_port(port(5, endpoint))
    assert endpoint.link("eth0")["linkinfo"]["info_kind"] == "veth"


def test_segmentation_offload_stays_on(switch: Switch, host: Namespace, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint))
    assert host.link("slp5")["gso_max_size"] >= 65536
    assert endpoint.link("eth0")["gso_max_size"] >= 65536


def test_second_call_and_second_process_change_nothing(
    w: World, switch: Switch, host: Namespace, endpoint: Namespace
) -> None:
    first = switch.ensure_port(port(5, endpoint))
    far = endpoint.link("eth0")["ifindex"]
    told = host.call(Notices)
    told.settle()                           # a new link's carrier is told a while later
    assert switch.ensure_port(port(5, endpoint)) == first
    assert w.switch(host).ensure_port(port(5, endpoint)) == first
    assert endpoint.link("eth0")["ifindex"] == far
    assert told.count() == 0
    told.close()


@pytest.mark.parametrize(
    "damage",
    [
        "link set eth0 address 02:00:00:00:00:99",
        "link set eth0 mtu 1300",
        "link set eth0 down",
        "link set lo down",
        "address flush dev eth0",
        "address add 10.99.0.66/24 dev eth0",
        "address add fd00::1/64 dev eth0",
        "route del default",
        "route replace default via 10.99.0.9 dev eth0",
    ],
)
def test_damage_inside_is_mended_in_place(switch: Switch, endpoint: Namespace, damage: str) -> None:
    ifindex = switch.ensure_port(port(5, endpoint))
    far = endpoint.link("eth0")["ifindex"]
    endpoint.ip(*damage.split(), check="fd00" not in damage)   # IPv6 is off: the kernel refuses
    assert switch.ensure_port(port(5, endpoint)) == ifindex
    there = endpoint.link("eth0")
    assert (there["ifindex"], there["address"], there["mtu"]) == (far, "02:99:00:00:00:05", 1400)
    assert "UP" in there["flags"]
    assert "UP" in endpoint.link("lo")["flags"]
    assert endpoint.addresses("eth0") == ["10.99.0.5/24"]
    assert [route["gateway"] for route in endpoint.show("route", "show", "default")] == ["10.99.0.1"]


@pytest.mark.parametrize("damage", ["set slp5 mtu 1300", "set slp5 down", "set slp5 alias sluice:", "set slp5 group 0"])
def test_damage_here_is_mended(switch: Switch, host: Namespace, endpoint: Namespace, damage: str) -> None:
    switch.ensure_port(port(5, endpoint))
    host.ip("link", *damage.split())
    switch.ensure_port(port(5, endpoint))
    here = host.link("slp5")
    assert (here["mtu"], here["ifalias"]) == (1400, "sluice:port:uid-5:5")
    assert "UP" in here["flags"]


def test_changed_wishes_are_followed_in_place(switch: Switch, host: Namespace, endpoint: Namespace) -> None:
    ifindex = switch.ensure_port(port(5, endpoint))
    wish = port(5, endpoint, mac="02:99:00:00:01:05", addresses=("10.99.0.77/24",), gateways=(), mtu_bytes=9000)
    assert switch.ensure_port(wish) == ifindex
    there = endpoint.link("eth0")
    assert (there["address"], there["mtu"]) == ("02:99:00:00:01:05", 9000)
    assert host.link("slp5")["mtu"] == 9000
    assert endpoint.addresses("eth0") == ["10.99.0.77/24"]
    assert endpoint.show("route", "show", "default") == []


def test_address_that_was_secondary_becomes_the_only_one(switch: Switch, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint))
    endpoint.ip("address", "add", "10.99.0.6/24", "dev", "eth0")
    switch.ensure_port(port(5, endpoint, addresses=("10.99.0.6/24",)))
    assert endpoint.addresses("eth0") == ["10.99.0.6/24"]
    assert len(endpoint.show("route", "show", "default")) == 1


def test_gateway_outside_the_prefix_works(switch: Switch, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint, addresses=("10.99.0.5/32",), gateways=("169.254.1.1",)))
    (default,) = endpoint.show("route", "show", "default")
    assert (default["gateway"], default["flags"]) == ("169.254.1.1", ["onlink"])


def test_default_route_of_another_link_stays_first(w: World, switch: Switch, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint))
    for _ in range(2):
        switch.ensure_port(port(6, endpoint, interface="eth1", addresses=("10.98.0.6/24",), gateways=("10.98.0.1",)))
    routes = endpoint.show("route", "show", "default")
    assert [(route["dev"], route.get("metric", 0) > 0) for route in routes] == [("eth0", False), ("eth1", True)]


def test_default_route_of_a_dead_end_comes_after_one_that_is_made_later(
    w: World, switch: Switch, endpoint: Namespace
) -> None:
    switch.ensure_port(port(5, endpoint, dead_end=True))
    for _ in range(2):
        switch.ensure_port(port(6, endpoint, interface="eth1", addresses=("10.98.0.6/24",), gateways=("10.98.0.1",)))
        switch.ensure_port(port(5, endpoint, dead_end=True))
    routes = endpoint.show("route", "show", "default")
    assert [(route["dev"], route.get("metric", 0) > 0) for route in routes] == [("eth1", False), ("eth0", True)]


@pytest.mark.parametrize("damage", ["link set eth0 down name other", "link del eth0"])
def test_port_whose_far_end_is_gone_is_made_anew(
    switch: Switch, host: Namespace, endpoint: Namespace, damage: str
) -> None:
    switch.ensure_port(port(5, endpoint))
    endpoint.ip(*damage.split())
    switch.ensure_port(port(5, endpoint))
    assert endpoint.addresses("eth0") == ["10.99.0.5/24"]
    assert not endpoint.has("other")
    assert host.has("slp5")


def test_port_whose_far_end_was_taken_elsewhere_is_made_anew(
    w: World, switch: Switch, host: Namespace, endpoint: Namespace
) -> None:
    other = w.namespace("other")
    switch.ensure_port(port(5, endpoint))
    endpoint.ip("link", "set", "eth0", "netns", other.name)
    switch.ensure_port(port(5, endpoint))
    assert endpoint.addresses("eth0") == ["10.99.0.5/24"]
    assert not other.has("eth0")


def test_port_moves_to_another_namespace(w: World, switch: Switch, endpoint: Namespace) -> None:
    other = w.namespace("other")
    switch.ensure_port(port(5, endpoint))
    switch.ensure_port(port(5, other))
    assert other.addresses("eth0") == ["10.99.0.5/24"]
    assert not endpoint.has("eth0")


def test_port_comes_back_with_its_namespace(w: World, switch: Switch, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint))
    run("ip", "netns", "del", endpoint.name)
    with pytest.raises(NamespaceMissing, match=endpoint.name):
        switch.ensure_port(port(5, endpoint))
    run("ip", "netns", "add", endpoint.name)
    switch.ensure_port(port(5, endpoint))
    assert endpoint.addresses("eth0") == ["10.99.0.5/24"]


def test_number_of_another_endpoint_is_made_anew(switch: Switch, host: Namespace, endpoint: Namespace) -> None:
    first = switch.ensure_port(port(5, endpoint))
    second = switch.ensure_port(port(5, endpoint, alias="sluice:port:uid-new:5"))
    assert second != first
    assert host.link("slp5")["ifalias"] == "sluice:port:uid-new:5"


def test_port_that_was_never_finished_is_adopted(switch: Switch, host: Namespace, endpoint: Namespace) -> None:
    # Made, and the process died before the alias was set.
    host.ip("link", "add", "slp5", "group", "20942", "type", "veth", "peer", "name", "eth0", "netns", endpoint.name)
    ifindex = host.link("slp5")["ifindex"]
    assert switch.owned()["slp5"].alias == ""
    assert switch.ensure_port(port(5, endpoint)) == ifindex
    assert switch.owned()["slp5"].alias == "sluice:port:uid-5:5"
    assert endpoint.link("eth0")["address"] == "02:99:00:00:00:05"


def test_foreign_link_with_our_name_is_left_alone(switch: Switch, host: Namespace, endpoint: Namespace) -> None:
    host.ip("link", "add", "slp5", "type", "veth", "peer", "name", "theirs")
    before = host.link("slp5")
    with pytest.raises(InterfaceTaken, match="slp5"):
        switch.ensure_port(port(5, endpoint))
    switch.remove("slp5")
    assert host.link("slp5") == before
    assert switch.owned() == {}
    assert not endpoint.has("eth0")


def test_foreign_interface_of_the_endpoint_is_left_alone(
    switch: Switch, host: Namespace, endpoint: Namespace
) -> None:
    endpoint.ip("link", "add", "eth0", "type", "bridge")
    with pytest.raises(InterfaceTaken, match="eth0"):
        switch.ensure_port(port(5, endpoint))
    assert endpoint.link("eth0")["linkinfo"]["info_kind"] == "bridge"
    assert not host.has("slp5")


def test_two_ports_cannot_have_one_interface(switch: Switch, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint))
    with pytest.raises(InterfaceTaken, match="another port of Sluice"):
        switch.ensure_port(port(6, endpoint))
    assert endpoint.addresses("eth0") == ["10.99.0.5/24"]


def test_namespace_whose_file_is_not_mounted_yet_is_missing(switch: Switch, endpoint: Namespace) -> None:
    path = Path(f"/run/netns/{endpoint.name}.young")
    path.touch()
    try:
        with pytest.raises(NamespaceMissing, match="not a network namespace"):
            switch.ensure_port(port(5, endpoint, netns=path.name))
    finally:
        path.unlink()


def test_namespace_may_be_a_path(switch: Switch, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint, netns=f"/run/netns/{endpoint.name}"))
    assert endpoint.addresses("eth0") == ["10.99.0.5/24"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host_interface", "a-name-much-too-long"),
        ("interface", "eth/0"),
        ("interface", ""),
        ("alias", "theirs"),
        ("netns", "../etc"),
        ("netns", ""),
        ("mac", "01:00:00:00:00:05"),
        ("mac", "00:00:00:00:00:00"),
        ("mac", "nonsense"),
        ("addresses", ("10.99.0.5",)),
        ("addresses", ("10.99.0.500/24",)),
        ("gateways", ("10.99.0",)),
        ("mtu_bytes", 40),
    ],
)
def test_impossible_port_is_refused_before_anything_is_done(
    switch: Switch, host: Namespace, endpoint: Namespace, field: str, value: object
) -> None:
    with pytest.raises(LinkInvalid):
        switch.ensure_port(replace(port(5, endpoint), **{field: value}))
    assert not endpoint.has("eth0")
    assert switch.owned() == {}


def test_own_namespace_of_the_host_is_refused(switch: Switch, host: Namespace) -> None:
    with pytest.raises(LinkInvalid, match="host's own"):
        switch.ensure_port(port(5, host))


def test_missing_bridge_is_named(switch: Switch, endpoint: Namespace) -> None:
    with pytest.raises(LinkMissing, match="slb1"):
        switch.ensure_port(port(5, endpoint, bridge="slb1"))
    assert not endpoint.has("eth0")


def test_removal_takes_both_ends_and_may_be_repeated(switch: Switch, host: Namespace, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint))
    assert set(switch.owned()) == {"slp5"}
    switch.remove("slp5")
    switch.remove("slp5")
    assert not host.has("slp5")
    assert not endpoint.has("eth0")
    assert switch.owned() == {}


def test_switch_keeps_no_namespace_alive(switch: Switch, host: Namespace, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint))
    run("ip", "netns", "del", endpoint.name)
    for _ in range(100):
        if not host.has("slp5"):
            break
    assert not host.has("slp5")


def test_switch_works_where_an_event_loop_runs_and_from_threads(switch: Switch, endpoint: Namespace) -> None:
    async def both() -> tuple[int, int]:
        return switch.ensure_port(port(5, endpoint)), await asyncio.to_thread(switch.ensure_port, port(5, endpoint))

    first, second = asyncio.run(both())
    assert first == second
