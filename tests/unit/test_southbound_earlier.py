"""What an earlier version kept on a host's disk is in force after an upgrade; what is no goal state stays unread."""

from __future__ import annotations

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
    RemoteGoal,
    Subnet,
)

NETWORK = NetworkGoal("n", "office", "default", "nat", 2**24, (Subnet("10.1.0.0/24", "10.1.0.1"),), "02:00:00:00:00:01",
                      0)
FAR = RemoteGoal("r", "far", "n", "10.1.0.6", "02:00:00:00:00:06", "172.31.0.2")
PORT = PortGoal("p", "web", "default", "n", "10.1.0.5/24", "02:00:00:00:00:05", "ns-web", "eth0",
                (AclTier("default/p", 5, (AclRule(1, "in", "allow"), AclRule(2, "out", "deny", protocol=6))),))
SYNC = FullSync(7, (HostGoal("self"), NETWORK, PORT, FAR,
                    MappingGoal("m", "www", "default", "tcp", "0.0.0.0", (8080, 8080), "p", "10.1.0.5", 80)))


def version_1(sync: FullSync) -> bytes:
    """As version 1 wrote it."""
    raw: dict[str, Any] = msgpack.unpackb(encode(sync))
    for goal in raw["goals"]:
        goal.pop("nat", None)
        goal.pop("address6", None)
        for tier in goal.get("tiers", ()):
            for rule in tier["rules"]:
                del rule["mapped"]
        if goal["kind"] == "mapping":
            goal["external_port"] = goal.pop("external_ports")[0]
    return bytes(msgpack.packb(raw))


def test_a_goal_state_of_version_1_is_read_and_one_of_now_is_as_it_is() -> None:
    with pytest.raises(ProtocolError):
        decode(version_1(SYNC))             # never on the wire
    assert decode_kept(version_1(SYNC)) == SYNC
    now = FullSync(8, (NetworkGoal("n", "o", "d", "nat", 1, (), "", 0, NatGoal(log=True)), *SYNC.goals[2:]))
    assert decode_kept(encode(now)) == now


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
