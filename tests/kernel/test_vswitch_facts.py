"""What a switch sees of its host: uplinks, the underlay, addresses, routes and sockets that Sluice did not make."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from vswitch_kit import Namespace, World, port, world

from vswitch import BridgeLink, Switch, UplinkMissing, ears


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    """A host on two segments."""
    made, router = w.namespace("host"), w.namespace("router")
    for name, address in (("lan0", "192.0.2.7/24"), ("lan1", "198.51.100.7/24")):
        made.ip("link", "add", name, "mtu", "1480", "type", "veth", "peer", "name", name, "netns", router.name)
        made.ip("address", "add", address, "dev", name)
        made.ip("link", "set", name, "up")
        router.ip("link", "set", name, "up")
    made.ip("link", "set", "lo", "up")
    return made


@pytest.fixture
def switch(w: World, host: Namespace) -> Switch:
    return w.switch(host)


def test_uplink_by_name(switch: Switch, host: Namespace) -> None:
    found = switch.uplink("lan1")
    assert (found.name, found.addresses, found.mtu_bytes) == ("lan1", ("198.51.100.7/24",), 1480)
    assert found.ifindex == host.link("lan1")["ifindex"]
    assert found.mac == host.link("lan1")["address"]


def test_uplink_by_the_best_default_route(switch: Switch, host: Namespace) -> None:
    host.ip("route", "add", "default", "via", "192.0.2.1", "metric", "200")
    assert switch.uplink().name == "lan0"
    host.ip("route", "add", "default", "via", "198.51.100.1", "metric", "100")
    assert switch.uplink().name == "lan1"
    host.ip("route", "add", "10.0.0.0/8", "via", "192.0.2.1")
    host.ip("route", "add", "default", "via", "192.0.2.1", "table", "100")
    assert switch.uplink().name == "lan1"
    host.ip("link", "set", "lan1", "down")
    assert switch.uplink().name == "lan0"


def test_uplink_of_a_multipath_default_route(switch: Switch, host: Namespace) -> None:
    host.ip("route", "add", "default", "nexthop", "via", "198.51.100.1", "nexthop", "via", "192.0.2.1")
    assert switch.uplink().name == "lan1"


def test_missing_uplink_is_named(switch: Switch) -> None:
    with pytest.raises(UplinkMissing, match="lan9"):
        switch.uplink("lan9")
    with pytest.raises(UplinkMissing, match="default route"):
        switch.uplink()


def test_facts_are_those_of_others(w: World, switch: Switch, host: Namespace) -> None:
    before = switch.facts()
    switch.ensure_bridge(BridgeLink("slb1", "sluice:bridge:uid", "02:99:00:00:00:01", ("10.99.0.1/24",), 1400))
    switch.ensure_port(port(5, w.namespace("end"), bridge="slb1"))
    assert switch.facts() == before
    assert ("lan0", "192.0.2.7/24") in before.addresses
    assert ("lo", "127.0.0.1/8") in before.addresses
    assert ("lan0", "192.0.2.0/24") in before.routes
    assert ("lo", "127.0.0.0/8") in before.routes


def test_routes_of_all_tables_are_facts(switch: Switch, host: Namespace) -> None:
    host.ip("route", "add", "10.8.0.0/16", "via", "192.0.2.1")
    host.ip("route", "add", "10.9.0.0/16", "via", "198.51.100.1", "table", "1234")
    host.ip("route", "add", "blackhole", "10.10.0.0/16")
    host.ip("route", "add", "default", "via", "192.0.2.1")
    host.ip("route", "add", "10.11.0.0/16", "nexthop", "via", "198.51.100.1", "nexthop", "via", "192.0.2.1")
    host.ip("address", "add", "2001:db8::7/64", "dev", "lan0", "nodad")
    facts = switch.facts()
    expected = {
        ("lan0", "10.8.0.0/16"), ("lan1", "10.9.0.0/16"), ("", "10.10.0.0/16"), ("lan1", "10.11.0.0/16"),
        ("lan0", "2001:db8::/64"),
    }  # fmt: skip
    assert expected <= set(facts.routes)
    assert ("lan0", "2001:db8::7/64") in facts.addresses
    prefixes = {prefix for _interface, prefix in facts.routes}
    assert not {"0.0.0.0/0", "fe80::/64", "ff00::/8", "192.0.2.7/32", "192.0.2.255/32"} & prefixes
    assert not [address for _interface, address in facts.addresses if address.startswith("fe80")]


def test_vpns_are_facts_whatever_table_their_routes_are_in(switch: Switch, host: Namespace) -> None:
    host.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    for command in (
        "link set tun0 up", "address add 10.8.0.6 peer 10.8.0.5 dev tun0", "address add fd00:8::6/64 dev tun0 nodad",
        "route add 10.64.0.0/10 dev tun0 table 51820", "rule add not fwmark 51820 table 51820",
        "route add 0.0.0.0/1 dev tun0", "route add 128.0.0.0/1 dev tun0",      # OpenVPN's way to say default
        "route add default dev tun0 table 51820", "-6 route add 2000::/3 dev tun0", "-6 route add fd00:9::/48 dev tun0",
        "route add 10.50.0.0/16 dev tun0 table 220 src 10.8.0.6", "route add unreachable 10.51.0.0/16 table 220",
        "route add throw 10.52.0.0/16 table 220",
    ):  # fmt: skip
        host.ip(*command.split())
    facts = switch.facts()
    expected = {
        ("tun0", "10.8.0.5/32"), ("tun0", "10.64.0.0/10"), ("tun0", "10.50.0.0/16"), ("", "10.51.0.0/16"),
        ("tun0", "fd00:8::/64"), ("tun0", "fd00:9::/48"),
    }  # fmt: skip
    assert expected <= set(facts.routes)
    assert {("tun0", "10.8.0.6/32"), ("tun0", "fd00:8::6/64")} <= set(facts.addresses)
    prefixes = {prefix for _interface, prefix in facts.routes}
    assert not {"0.0.0.0/1", "128.0.0.0/1", "2000::/3", "10.52.0.0/16"} & prefixes


def test_wireguard_is_a_fact(switch: Switch, host: Namespace) -> None:
    if "Unknown device type" in host.execute("sh", "-c", "ip link add wg0 type wireguard 2>&1", check=False):
        pytest.skip("this kernel has no wireguard")
    for command in ("address add 10.9.0.2/24 dev wg0", "link set wg0 up", "route add 10.70.0.0/16 dev wg0 table 51820"):
        host.ip(*command.split())
    facts = switch.facts()
    assert ("wg0", "10.9.0.2/24") in facts.addresses
    assert {("wg0", "10.9.0.0/24"), ("wg0", "10.70.0.0/16")} <= set(facts.routes)


def test_sctp_listeners_are_read(tmp_path: Path) -> None:
    # As net/sctp/proc.c writes it; not every kernel has the protocol.
    (tmp_path / "sctp").mkdir()
    (tmp_path / "sctp" / "eps").write_text(
        " ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS\n"
        "ffff8881 ffff8882 2   10  29   5000      0 41 192.0.2.7 0000:0000:0000:0000:0000:ffff:c000:0208 \n"
        "ffff8883 ffff8884 0   7   30   5001      0 42 192.0.2.7 \n"
    )
    found = list(ears._sctp(tmp_path))
    assert found == [("sctp", "192.0.2.7", 5000), ("sctp", "192.0.2.8", 5000)]


def test_listening_sockets_are_facts(switch: Switch, host: Namespace) -> None:
    def open_sockets() -> ExitStack:
        stack = ExitStack()
        for family, address, tcp_port, udp_port in (
            (socket.AF_INET, "127.0.0.1", 8080, 5353), (socket.AF_INET6, "::", 8443, 5354),
            (socket.AF_INET6, "::ffff:127.0.0.1", 8444, 5355),
        ):  # fmt: skip
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.bind((address, tcp_port))
            listener.listen()
            datagrams = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            datagrams.bind((address, udp_port))
        client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        client.bind(("127.0.0.1", 41000))
        client.connect(("127.0.0.1", 8080))
        return stack

    with host.call(open_sockets):
        listeners = switch.facts().listeners
        diag, switch._ears._diag = switch._ears._diag, None     # a kernel without sock_diag
        assert diag is not None
        assert switch.facts().listeners == listeners
        switch._ears._diag = diag
    assert set(listeners) == {
        ("tcp", "127.0.0.1", 8080), ("tcp", "::", 8443), ("udp", "127.0.0.1", 5353), ("udp", "::", 5354),
        ("tcp", "127.0.0.1", 8444), ("udp", "127.0.0.1", 5355),
    }  # fmt: skip
    assert switch.facts().listeners == ()
