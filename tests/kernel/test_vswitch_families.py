"""Bridges and ports with addresses of both families, several of them, or none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from vswitch_kit import Namespace, Notices, World, port, world

from vswitch import BridgeLink, LinkInvalid, Switch

MAC = "02:99:00:00:00:01"
BOTH = BridgeLink("slb1", "sluice:bridge:uid", MAC, ("10.99.0.1/24", "10.98.0.1/24", "fd00:99::1/64"), 1400)
DUAL = {"addresses": ("10.99.0.5/24", "fd00:99::5/64"), "gateways": ("10.99.0.1", "fd00:99::1")}


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


def setting(where: Namespace, path: str) -> str:
    return where.execute("cat", f"/proc/sys/net/{path}").strip()


def own_addresses(where: Namespace, link: str) -> set[str]:
    """Without the link-local IPv6 one."""
    return {address for address in where.addresses(link) if not address.startswith("fe80")}


def default_routes(where: Namespace) -> list[tuple[str, str]]:
    shown = [*where.show("route", "show", "default"), *where.show("-6", "route", "show", "default")]
    return [(route["gateway"], route["dev"]) for route in shown]


def neighbours(host: Namespace) -> dict[str, str]:
    return {one["dst"]: one["lladdr"] for one in host.show("neighbour", "show", "dev", "slb1", "nud", "permanent")}


def test_bridge_has_several_addresses_of_both_families_at_once(switch: Switch, host: Namespace) -> None:
    ifindex = switch.ensure_bridge(BOTH)
    assert set(host.addresses("slb1")) == set(BOTH.addresses)          # and no link-local one
    (shown,) = host.show("-6", "address", "show", "dev", "slb1")
    (six,) = shown["addr_info"]
    assert six.get("nodad") is True
    assert "tentative" not in six
    assert [setting(host, f"ipv6/conf/slb1/{name}") for name in ("accept_ra", "autoconf")] == ["0", "0"]
    told = host.call(Notices)
    told.settle()
    assert switch.ensure_bridge(BOTH) == ifindex
    assert told.count() == 0
    told.close()


def test_a_bridge_changes_nothing_about_forwarding(switch: Switch, host: Namespace) -> None:
    paths = ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding")
    before = [setting(host, path) for path in paths]
    switch.ensure_bridge(BOTH)
    assert [setting(host, path) for path in paths] == before
    assert setting(host, "ipv6/conf/slb1/forwarding") == before[2]


@pytest.mark.parametrize(
    "damage",
    [
        "address flush dev slb1",
        "address del fd00:99::1/64 dev slb1",
        "address add fd00:98::1/64 dev slb1",
        "address add 10.99.0.9/24 dev slb1",
        "address del 10.98.0.1/24 dev slb1",
    ],
)
def test_damage_to_addresses_is_mended(switch: Switch, host: Namespace, damage: str) -> None:
    ifindex = switch.ensure_bridge(BOTH)
    host.ip(*damage.split())
    assert switch.ensure_bridge(BOTH) == ifindex
    assert set(host.addresses("slb1")) == set(BOTH.addresses)


def test_addresses_come_and_go_with_the_wish(switch: Switch, host: Namespace) -> None:
    ifindex = switch.ensure_bridge(BOTH)
    for wish in ((), ("fd00:99::1/64",), ("10.97.0.1/24", "fd00:97::1/64"), ("10.97.0.2/24",), BOTH.addresses):
        assert switch.ensure_bridge(replace(BOTH, addresses=wish)) == ifindex
        assert set(host.addresses("slb1")) == set(wish)
        assert "UP" in host.link("slb1")["flags"]


def test_bridge_without_an_address_joins_its_ports_only(switch: Switch, host: Namespace, endpoint: Namespace) -> None:
    switch.ensure_bridge(replace(BOTH, addresses=()))
    switch.ensure_port(port(5, endpoint, bridge="slb1", **DUAL))
    assert host.addresses("slb1") == []
    assert setting(host, "ipv6/conf/slb1/disable_ipv6") == "1"
    assert host.link("slp5")["master"] == "slb1"
    switch.set_neighbours("slb1", {"10.99.0.5": "02:99:00:00:00:05", "fd00:99::5": "02:99:00:00:00:05"})
    assert neighbours(host) == {"10.99.0.5": "02:99:00:00:00:05"}


def test_neighbours_of_both_families_are_exactly_those_given(switch: Switch, host: Namespace) -> None:
    switch.ensure_bridge(BOTH)
    first = {"10.99.0.5": "02:99:00:00:00:05", "fd00:99::5": "02:99:00:00:00:05"}
    switch.set_neighbours("slb1", first)
    assert neighbours(host) == first
    second = {"fd00:99::5": "02:99:00:00:00:55", "fd00:99::6": "02:99:00:00:00:06"}
    switch.set_neighbours("slb1", second | {"FD00:99:0::6": "02:99:00:00:00:06"})   # the same, spelt otherwise
    assert neighbours(host) == second
    switch.set_neighbours("slb1", {})
    assert neighbours(host) == {}


def test_port_has_addresses_and_routes_of_both_families(switch: Switch, endpoint: Namespace) -> None:
    ifindex = switch.ensure_port(port(5, endpoint, **DUAL))
    assert own_addresses(endpoint, "eth0") == set(DUAL["addresses"])
    assert default_routes(endpoint) == [("10.99.0.1", "eth0"), ("fd00:99::1", "eth0")]
    names = ("accept_ra", "autoconf", "accept_dad", "dad_transmits", "router_solicitations")
    assert [setting(endpoint, f"ipv6/conf/eth0/{name}") for name in names] == ["0"] * 5
    local = next(address for address in endpoint.addresses("eth0") if address.startswith("fe80"))
    assert local == "fe80::99:ff:fe00:5/64"                            # of the MAC
    told = endpoint.call(Notices)
    told.settle()
    assert switch.ensure_port(port(5, endpoint, **DUAL)) == ifindex
    assert told.count() == 0
    told.close()


def test_port_of_ipv6_alone(switch: Switch, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint, addresses=("fd00:99::5/64",), gateways=("fd00:99::1",)))
    assert own_addresses(endpoint, "eth0") == {"fd00:99::5/64"}
    assert default_routes(endpoint) == [("fd00:99::1", "eth0")]


def test_gateway_outside_the_ipv6_prefix_works(switch: Switch, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint, addresses=("fd00:99::5/128",), gateways=("fe80::1",)))
    assert default_routes(endpoint) == [("fe80::1", "eth0")]


@pytest.mark.parametrize(
    "damage",
    [
        "address flush dev eth0",
        "address add fd00:98::5/64 dev eth0",
        "-6 route del default",
        "-6 route replace default via fd00:99::9 dev eth0",
        "link set eth0 down",
    ],
)
def test_damage_inside_is_mended_in_both_families(switch: Switch, endpoint: Namespace, damage: str) -> None:
    switch.ensure_port(port(5, endpoint, **DUAL))
    endpoint.ip(*damage.split())
    switch.ensure_port(port(5, endpoint, **DUAL))
    assert own_addresses(endpoint, "eth0") == set(DUAL["addresses"])
    assert default_routes(endpoint) == [("10.99.0.1", "eth0"), ("fd00:99::1", "eth0")]


def test_ipv6_leaves_with_its_address(switch: Switch, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint, **DUAL))
    switch.ensure_port(port(5, endpoint))
    assert endpoint.addresses("eth0") == ["10.99.0.5/24"]
    assert default_routes(endpoint) == [("10.99.0.1", "eth0")]
    switch.ensure_port(port(5, endpoint, **DUAL))
    assert own_addresses(endpoint, "eth0") == set(DUAL["addresses"])


def test_link_local_address_follows_the_mac(switch: Switch, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint, **DUAL))
    switch.ensure_port(port(5, endpoint, mac="02:99:00:00:01:05", **DUAL))
    assert set(endpoint.addresses("eth0")) == {*DUAL["addresses"], "fe80::99:ff:fe00:105/64"}


@pytest.mark.parametrize(
    ("addresses", "gateways"),
    [
        (("10.97.0.5/24", "fd00:97::5/64"), ("10.97.0.1", "fd00:97::1")),      # other prefixes
        (("10.99.0.77/24", "fd00:99::77/64"), ("10.99.0.1", "fd00:99::1")),    # within them
        (("10.99.0.5/25", "fd00:99::5/80"), ("10.99.0.1", "fd00:99::1")),      # same addresses, other lengths
    ],
)
def test_renumbered_endpoint_is_never_down(
    switch: Switch, endpoint: Namespace, addresses: tuple[str, ...], gateways: tuple[str, ...]
) -> None:
    ifindex = switch.ensure_port(port(5, endpoint, **DUAL))
    far = endpoint.link("eth0")["ifindex"]
    told = endpoint.call(LinkNotices)
    assert switch.ensure_port(port(5, endpoint, addresses=addresses, gateways=gateways)) == ifindex
    assert told.count() == 0
    told.close()
    assert endpoint.link("eth0")["ifindex"] == far
    assert own_addresses(endpoint, "eth0") == set(addresses)
    assert default_routes(endpoint) == [(gateway, "eth0") for gateway in gateways]


class LinkNotices(Notices):
    """Of links alone: up, down, come, gone."""

    def __init__(self) -> None:
        super().__init__()
        self._socket.close()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        self._socket.bind((0, 0x1))


def test_default_route_of_another_link_stays_first(switch: Switch, endpoint: Namespace) -> None:
    switch.ensure_port(port(5, endpoint, **DUAL))
    second = {"addresses": ("fd00:98::6/64",), "gateways": ("fd00:98::1",), "interface": "eth1"}
    for _ in range(2):
        switch.ensure_port(port(6, endpoint, **second))
    routes = endpoint.show("-6", "route", "show", "default")
    assert [route["dev"] for route in sorted(routes, key=lambda route: route["metric"])] == ["eth0", "eth1"]


def test_host_and_endpoint_reach_each_other_by_ipv6(w: World, switch: Switch, host: Namespace) -> None:
    end = w.namespace("six")
    switch.ensure_bridge(BOTH)
    switch.ensure_port(port(5, end, bridge="slb1", **DUAL))
    switch.set_neighbours("slb1", {"fd00:99::5": "02:99:00:00:00:05"})
    # Nothing is flooded, so nobody hears a solicitation; in Sluice the engine answers it.
    end.ip("neighbour", "replace", "fd00:99::1", "lladdr", MAC, "dev", "eth0", "nud", "permanent")
    assert host.pings("fd00:99::5")
    assert end.pings("fd00:99::1")


@pytest.mark.parametrize(
    "changes",
    [
        {"addresses": ("fd00:99::5/64",), "gateways": (), "mtu_bytes": 1279},
        {"addresses": ("10.99.0.5/24", "10.99.0.5/25")},
        {"addresses": ("ff02::1/64",)},
        {"addresses": ("0.0.0.0/0",)},
        {"gateways": ("10.99.0.1", "10.99.0.2")},
        {"gateways": ("fd00::1", "fd00::2")},
    ],
)
def test_impossible_addresses_are_refused_before_anything_is_done(
    switch: Switch, endpoint: Namespace, changes: dict[str, object]
) -> None:
    with pytest.raises(LinkInvalid):
        switch.ensure_port(port(5, endpoint, **changes))
    assert switch.owned() == {}


def test_uplink_tells_its_ipv6_addresses(switch: Switch, host: Namespace) -> None:
    host.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    for command in ("link set lan0 up", "link set lan1 up", "address add 192.0.2.7/24 dev lan0",
                    "address add 2001:db8::7/64 dev lan0 nodad", "address add fd00::7/64 dev lan0 nodad",
                    "address add 2001:db8::8/64 dev lan0 nodad preferred_lft 0",
                    "-6 route add default via 2001:db8::1 dev lan0"):
        host.ip(*command.split())
    found = switch.uplink()                                            # by the IPv6 default route: the only one
    assert (found.name, found.addresses) == ("lan0", ("192.0.2.7/24",))
    assert set(found.addresses6) == {"2001:db8::7/64", "fd00::7/64"}
