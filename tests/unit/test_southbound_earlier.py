"""What an earlier version kept on a host's disk is in force after an upgrade; what is no goal state stays unread."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from southbound.codec import decode, encode
from southbound.earlier import decode_kept
from southbound.errors import ProtocolError
from southbound.messages import (
    AclRule,
    AclTier,
    FullSync,
    HostGoal,
    MappingGoal,
    NatGoal,
    NetworkGoal,
    PortGoal,
    RemotesGoal,
    Subnet,
)

NETWORK = NetworkGoal("n", "office", "default", "nat", 2**24, (Subnet("10.1.0.0/24", "10.1.0.1"),), "02:00:00:00:00:01",
                      0)
FAR = RemotesGoal("n/172.31.0.2/0", "n", "172.31.0.2", ("172.31.0.2",), ("far", "six"),
                  bytes.fromhex("020000000006020000000007"), bytes((10, 1, 0, 6, 0, 0, 0, 0)),
                  bytes(16) + IPv6Address("fd00::7").packed)
PORT = PortGoal("p", "web", "default", "n", "10.1.0.5/24", "02:00:00:00:00:05", "ns-web", "eth0",
                (AclTier("default/p", 5, (AclRule(1, "in", "allow"), AclRule(2, "out", "deny", protocol=6))),))
SYNC = FullSync(7, (HostGoal("self", "172.31.0.1", underlays=("172.31.0.1",)), NETWORK, PORT,
                    MappingGoal("m", "www", "default", "tcp", "0.0.0.0", (8080, 8080), "p", "10.1.0.5", 80), FAR))
ADDED = {"network": ("uplink", "peers", "routes", "egress", "isolated", "flood", "advertise", "slaac"),
         "port": ("qos", "dhcp", "forwards", "vlans", "behind", "queues", "handed"),
         "host": ("underlays", "vxlan_port", "uplink_bps", "mapping_ports")}


def version_2(sync: FullSync) -> dict[str, Any]:
    """As version 2 said it."""
    raw: dict[str, Any] = msgpack.unpackb(encode(sync))
    for goal in raw["goals"]:
        for name in ADDED.get(goal["kind"], ()):
            del goal[name]
    raw["goals"] = [goal for goal in raw["goals"] if goal["kind"] != "remotes"]
    for name, mac, address, address6 in (("far", 6, "10.1.0.6", ""), ("six", 7, "", "fd00::7")):
        raw["goals"].append({"kind": "remote", "id": name, "name": name, "network": "n", "address": address,
                             "mac": f"02:00:00:00:00:{mac:02x}", "vtep": "172.31.0.2", "address6": address6})
    return raw


def version_1(sync: FullSync) -> bytes:
    """As version 1 wrote it; it had no IPv6."""
    raw = version_2(sync)
    for goal in raw["goals"]:
        goal.pop("nat", None)
        goal.pop("address6", None)
        for tier in goal.get("tiers", ()):
            for rule in tier["rules"]:
                del rule["mapped"]
        if goal["kind"] == "mapping":
            goal["external_port"] = goal.pop("external_ports")[0]
    return bytes(msgpack.packb(raw))


def test_a_goal_state_of_an_earlier_version_is_read_and_one_of_now_is_as_it_is() -> None:
    second = bytes(msgpack.packb(version_2(SYNC)))
    for payload in (version_1(SYNC), second):
        with pytest.raises(ProtocolError):
            decode(payload)                 # never on the wire
    assert decode_kept(second) == SYNC
    assert decode_kept(version_1(SYNC)) == FullSync(7, (*SYNC.goals[:-1], replace(FAR, addresses6=bytes(32))))
    now = FullSync(8, (NetworkGoal("n", "o", "d", "nat", 1, (), "", 0, NatGoal(log=True)), *SYNC.goals[2:]))
    assert decode_kept(encode(now)) == now


def test_a_goal_state_of_version_3_is_read() -> None:
    raw = msgpack.unpackb(encode(SYNC))
    for goal in raw["goals"]:
        goal.pop("handed", None)
    assert decode_kept(bytes(msgpack.packb(raw))) == SYNC


def test_many_remote_endpoints_of_version_2_become_blocks() -> None:
    raw = version_2(SYNC)
    raw["goals"] += [{"kind": "remote", "id": f"r{i}", "name": f"r{i}", "network": "n", "address": f"10.2.0.{i % 256}",
                      "mac": "02:00:00:00:00:09", "vtep": "172.31.0.3", "address6": ""} for i in range(300)]
    found = decode_kept(bytes(msgpack.packb(raw)))
    assert isinstance(found, FullSync)
    blocks = [goal for goal in found.goals if isinstance(goal, RemotesGoal) and goal.host == "172.31.0.3"]
    assert [len(block.names) for block in blocks] == [256, 44]
    assert [len(block.macs) for block in blocks] == [256 * 6, 44 * 6]


@given(st.data())
def test_what_is_damaged_is_refused_in_the_words_of_now(data: st.DataObject) -> None:
    good = version_1(SYNC)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(st.sampled_from([good[:place], good[:place] + b"\xc0" + good[place + 1:], b"", b"\x91" * place]))
    try:
        found = decode_kept(bad)
    except ProtocolError:
        return
    assert isinstance(found, FullSync)
    assert encode(found)
