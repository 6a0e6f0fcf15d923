"""Across two hosts, frames to groups come to every endpoint of an overlay once, and to none that may not have them."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from engine_town import ADDRESS, ENDPOINTS, HOSTED, Town, mac_of
from engine_town import state as state_of

from vfp.model import EngineState, Flooding, Group, Match, Rate, Rule, Switch
from vfp.reasons import DropReason

VNI, PORT = 100, 7353
GROUPS = {4: "239.1.2.3", 6: "ff05::1:3"}
_NOT_TO_ITSELF = {4: (socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP),
                  6: (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP)}
VTEPS = {"host": IPv4Address("172.31.0.2"), "far": IPv4Address("172.31.0.3")}
RULES = (Rule(0, Match(dst=IPv4Network("224.0.0.0/4")), Switch(VNI), "groups"),
         Rule(1, Match(dst=IPv6Network("ff00::/8")), Switch(VNI), "groups 6"))


def _flooding(state: EngineState, host: str, rate: Rate) -> EngineState:
    """A host's state, in which groups are switched, too, and hosts tell each other."""
    def with_groups(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        return (*(replace(rule, priority=rule.priority + len(RULES)) for rule in rules), *RULES)

    ports = tuple(replace(port, layers=(*port.layers[:-1], replace(
        port.layers[-1], groups_out=tuple(
            Group(group.name, with_groups(group.rules)) for group in port.layers[-1].groups_out))))
        for port in state.ports)
    others = tuple(vtep for name, vtep in VTEPS.items() if name != host)
    spaces = tuple(replace(
        space, stations=tuple((mac_of(part), ENDPOINTS[part]) for part in HOSTED[host]),
        flooding=Flooding(rate, VNI, others)) for space in state.spaces)
    # Translation is none of a group's business: only what is for the world has any.
    ports = tuple(replace(port, layers=(port.layers[0], port.layers[-1])) for port in ports)
    return replace(state, ports=ports, spaces=spaces)


def _apply(town: Town, rate: Rate) -> None:
    for host, engine in town.engines.items():
        links = {part: town.parts[host].link(f"p{part}")["ifindex"] for part in HOSTED[host]}
        engine.apply(_flooding(state_of(host, links, town.parts[host].link("vx0")["ifindex"], 0), host, rate))


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with Town() as built:
        yield built


def _member(town: Town, part: str, version: int) -> socket.socket:
    made = town.socket(part, version, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", PORT))
    index = int(town.parts[part].link("eth0")["ifindex"])
    if version == 4:
        group = socket.inet_aton(GROUPS[4]) + bytes(4) + struct.pack("=i", index)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    else:
        group = socket.inet_pton(socket.AF_INET6, GROUPS[6]) + struct.pack("=i", index)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    return made


def _got(member: socket.socket) -> list[bytes]:
    member.setblocking(False)
    found = []
    while True:
        try:
            found.append(member.recv(2048))
        except BlockingIOError:
            return found


@pytest.mark.parametrize("version", [4, 6])
def test_each_endpoint_of_both_hosts_gets_one_copy(town: Town, version: int) -> None:
    _apply(town, Rate(1000, 100))
    members = {part: _member(town, part, version) for part in ENDPOINTS}
    for sender in ENDPOINTS:
        source = town.socket(sender, version, socket.SOCK_DGRAM)
        source.bind((ADDRESS[sender][version], 0))
        source.setsockopt(*_NOT_TO_ITSELF[version], 0)
        source.sendto(sender.encode(), (GROUPS[version], PORT))
        time.sleep(0.3)
        got = {part: _got(member) for part, member in members.items()}
        assert got == {part: [] if part == sender else [sender.encode()] for part in ENDPOINTS}, town.drops()
    assert not [flow for flow in town.engines["far"].flows() if str(flow.dst) == GROUPS[version]]


def test_another_host_may_not_speak_for_who_is_not_there(town: Town) -> None:
    """An inner source that is no endpoint of the host that the frame came from: nobody hears it."""
    _apply(town, Rate(1000, 100))
    member = _member(town, "a", 4)
    far = town.engines["far"]
    before = town.drops()[DropReason.UNKNOWN_SOURCE]
    links = {"c": town.parts["far"].link("pc")["ifindex"]}
    state = state_of("far", links, town.parts["far"].link("vx0")["ifindex"], 0)
    unguarded = _flooding(state, "far", Rate(1000, 100))
    far.apply(replace(unguarded, ports=tuple(
        replace(port, layers=port.layers[1:]) for port in unguarded.ports)))
    town.parts["c"].ip("addr", "add", "10.7.0.99/24", "dev", "eth0")
    try:
        source = town.socket("c", 4, socket.SOCK_DGRAM)
        source.bind(("10.7.0.99", 0))
        source.sendto(b"lie", (GROUPS[4], PORT))
        time.sleep(0.3)
        assert _got(member) == []
        assert town.drops()[DropReason.UNKNOWN_SOURCE] == before + 1
    finally:
        town.parts["c"].ip("addr", "del", "10.7.0.99/24", "dev", "eth0")
