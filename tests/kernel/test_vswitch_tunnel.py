"""The tunnel device is made and mended, and carries frames between two hosts by metadata alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from vswitch_kit import Namespace, World, compile_bpf, port, world

from vfp.datapath.object import BpfObject
from vswitch import AddressTaken, InterfaceTaken, LinkInvalid, Switch, TunnelLink

TUNNEL = TunnelLink("slvx0", "sluice:tunnel", mtu_bytes=1450)


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    return w.namespace("host")


@pytest.fixture
def switch(w: World, host: Namespace) -> Switch:
    return w.switch(host)


def test_new_tunnel_has_all_that_was_asked_for(switch: Switch, host: Namespace) -> None:
    ifindex = switch.ensure_tunnel(TUNNEL)
    here = host.link("slvx0")
    assert (here["ifindex"], here["mtu"], here["ifalias"]) == (ifindex, 1450, "sluice:tunnel")
    assert "UP" in here["flags"]
    data = here["linkinfo"]["info_data"]
    assert (data["external"], data["learning"], data["port"]) == (True, False, 4789)
    assert host.addresses("slvx0") == []                       # no link-local IPv6
    assert switch.ensure_tunnel(TUNNEL) == ifindex


@pytest.mark.parametrize("damage", ["mtu 1300", "down", "alias sluice:", "group 0"])
def test_damage_is_mended_in_place(switch: Switch, host: Namespace, damage: str) -> None:
    ifindex = switch.ensure_tunnel(TUNNEL)
    host.ip("link", "set", "slvx0", *damage.split())
    assert switch.ensure_tunnel(TUNNEL) == ifindex
    here = host.link("slvx0")
    assert (here["mtu"], here["ifalias"], here["group"]) == (1450, "sluice:tunnel", "20942")
    assert "UP" in here["flags"]


def test_other_udp_port_makes_it_anew(switch: Switch, host: Namespace) -> None:
    switch.ensure_tunnel(TUNNEL)
    switch.ensure_tunnel(replace(TUNNEL, udp_port=8472))
    assert host.link("slvx0")["linkinfo"]["info_data"]["port"] == 8472


def test_ipv6_underlay_takes_packets_without_a_checksum(switch: Switch, host: Namespace) -> None:
    plain = switch.ensure_tunnel(TUNNEL)
    ifindex = switch.ensure_tunnel(replace(TUNNEL, ipv6=True))
    data = host.link("slvx0")["linkinfo"]["info_data"]
    assert (data["udp_zero_csum6_tx"], data["udp_zero_csum6_rx"]) == (True, True)
    assert ifindex != plain
    assert switch.ensure_tunnel(TUNNEL) == switch.ensure_tunnel(replace(TUNNEL, ipv6=True)) == ifindex


def test_foreign_link_is_left_alone(switch: Switch, host: Namespace) -> None:
    host.ip("link", "add", "slvx0", "type", "bridge")
    with pytest.raises(InterfaceTaken):
        switch.ensure_tunnel(TUNNEL)
    assert host.link("slvx0")["linkinfo"]["info_kind"] == "bridge"


def test_udp_port_of_another_device_is_named(switch: Switch, host: Namespace) -> None:
    host.ip("link", "add", "theirs", "type", "vxlan", "external", "dstport", "4789")
    host.ip("link", "set", "theirs", "up")
    with pytest.raises(AddressTaken, match="4789"):
        switch.ensure_tunnel(TUNNEL)
    host.ip("link", "del", "theirs")
    switch.ensure_tunnel(TUNNEL)


def test_udp_port_of_a_program_is_named(switch: Switch, host: Namespace) -> None:
    def take() -> socket.socket:
        taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        taken.bind(("0.0.0.0", 4789))
        return taken

    with host.call(take), pytest.raises(AddressTaken, match="4789"):
        switch.ensure_tunnel(TUNNEL)
    switch.ensure_tunnel(TUNNEL)
    assert "UP" in host.link("slvx0")["flags"]


@pytest.mark.parametrize(
    ("field", "value"), [("udp_port", 0), ("udp_port", 65536), ("mtu_bytes", 1), ("alias", "x"), ("name", "")]
)
def test_impossible_tunnel_is_refused(switch: Switch, field: str, value: object) -> None:
    with pytest.raises(LinkInvalid):
        switch.ensure_tunnel(replace(TUNNEL, **{field: value}))


def test_listeners_do_not_show_our_own_socket(switch: Switch, host: Namespace) -> None:
    switch.ensure_tunnel(TUNNEL)
    assert [one for one in switch.facts().listeners if one[2] == 4789] == []


ENDS = """
SEC("tc") int vsw_out(struct __sk_buff *skb)
{
    struct bpf_tunnel_key key = { .tunnel_id = VNI, .remote_ipv4 = REMOTE, .tunnel_ttl = 64 };

    if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX))
        return TC_ACT_SHOT;
    return bpf_redirect(TUNNEL, 0);
}

SEC("tc") int vsw_in(struct __sk_buff *skb)
{
    struct bpf_tunnel_key key = {};

    if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
        return TC_ACT_SHOT;
    if (key.tunnel_id != VNI || key.remote_ipv4 != REMOTE)
        return TC_ACT_SHOT;
    return bpf_redirect(PORT, 0);
}
"""


def test_endpoints_of_two_hosts_reach_each_other(w: World, tmp_path: Path) -> None:
    hosts = [w.namespace("h1"), w.namespace("h2")]
    ends = [w.namespace("e1"), w.namespace("e2")]
    hosts[0].ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan0", "netns", hosts[1].name)
    underlay = ["172.31.9.1", "172.31.9.2"]
    for number, (host, end) in enumerate(zip(hosts, ends, strict=True)):
        host.ip("address", "add", f"{underlay[number]}/24", "dev", "lan0")
        host.ip("link", "set", "lan0", "up")
        switch = w.switch(host)
        assert switch.underlays(underlay)[underlay[number]].name == "lan0"
        tunnel = switch.ensure_tunnel(TUNNEL)
        here = switch.ensure_port(port(5 + number, end, gateways=(), mtu_bytes=1450))
        constants = {"VNI": 77, "REMOTE": int(IPv4Address(underlay[1 - number])), "TUNNEL": tunnel, "PORT": here}
        with BpfObject.load(compile_bpf(ENDS, tmp_path / f"ends{number}.o", **constants)) as loaded:
            switch.attach(here, "ingress", loaded.programs["vsw_out"].fd, "sluice_out")
            switch.attach(tunnel, "ingress", loaded.programs["vsw_in"].fd, "sluice_in")
        other = 6 - number
        end.ip("neighbour", "add", f"10.99.0.{other}", "lladdr", f"02:99:00:00:00:{other:02x}", "dev", "eth0")
    assert ends[0].pings("10.99.0.6")
    assert ends[1].pings("10.99.0.5")
    full = ends[0].execute("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", str(1450 - 28), "10.99.0.6")
    assert " 1 received" in full
