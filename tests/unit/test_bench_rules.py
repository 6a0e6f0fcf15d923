"""Every subject gets the same rules, each in its own words; what a killed benchmark left is known by its process."""

from __future__ import annotations

import os
import struct
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from bench import site
from bench.packets import FRAME_BYTES, frame
from bench.rules import acl, docker_chains, docker_user, nftables_ruleset, openflow, refused
from bench.site import ENDPOINTS


@pytest.mark.parametrize("count", [0, 1, 20, 100_000])
def test_no_two_rules_are_alike_and_none_matches_the_traffic(count: int) -> None:
    rules = list(refused(count))
    assert len(set(rules)) == count
    shared = IPv4Network("100.64.0.0/10")
    assert all(IPv4Network(rule.prefix).subnet_of(shared) and 20000 <= rule.port < 65536 for rule in rules[:2000])
    assert not any(IPv4Address(address) in shared for address in ENDPOINTS)


def test_every_subject_refuses_the_same() -> None:
    wanted = {(rule.prefix, str(rule.port)) for rule in refused(20)}
    for direction in ("in", "out"):
        rules = [rule for rule in acl(20) if rule.direction == direction]
        assert {(rule.peers[0], str(rule.ports[0][0])) for rule in rules} == wanted
    for text in (docker_chains(20), docker_user(20)):
        words = [line.split() for line in text.splitlines() if line.endswith("-j DROP") and "--dport" in line]
        assert {(line[line.index("-s") + 1], line[line.index("--dport") + 1]) for line in words} == wanted
    elements = nftables_ruleset(20).partition("elements = {\n")[2].partition(" }")[0].split(",\n")
    assert {tuple(element.split(" . ")) for element in elements} == wanted
    flows = [line for line in openflow(20).splitlines() if line.endswith("drop")]
    assert {tuple(part.split("=")[1] for part in line.split(",")[4:6]) for line in flows} == wanted


def test_a_small_packet_is_a_valid_datagram() -> None:
    raw = frame((bytes(6), IPv4Address("10.9.0.1")), (bytes(6), IPv4Address("10.9.0.2")))
    assert len(raw) == FRAME_BYTES - 4          # the frame check sequence is the wire's
    total = sum(struct.unpack(">10H", raw[14:34]))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert struct.unpack(">H", raw[16:18])[0] == len(raw) - 14
    assert struct.unpack(">H", raw[38:40])[0] == len(raw) - 34


def test_what_is_left_is_what_no_benchmark_owns(tmp_path: Path) -> None:
    nobody = 1 << 30                            # above any process id
    for name in (f"bench-{os.getpid()}-raw0-a", f"bench-{nobody}-raw0-a", "bench-raw-a", "else"):
        (tmp_path / name).touch()
    assert [path.name for path in site._left(tmp_path, "bench-*")] == [f"bench-{nobody}-raw0-a"]
