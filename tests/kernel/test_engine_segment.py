"""On a real segment: endpoints that are machines there, and endpoints that are there in their host's name."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from itertools import permutations

import pytest
from engine_frames import IpFrame
from engine_segment import ADDRESS, BROADCAST, PORTS, Segment, address_of, mac_of, waiting
from engine_switching import tagged

from vfp.model import Deny, Match, PortRange, Rate, Rule
from vfp.reasons import DropReason
from vfp.reference.vlans import untagged

EVERYBODY = ("a", "b", "m1", "m2")
MACHINES = tuple((one, other) for one, other in permutations(EVERYBODY, 2) if not {one, other} <= {"m1", "m2"})
OTHER_PORT = 7001
UDP = 17
_SOL_PACKET, _PACKET_AUXDATA = 263, 8


@pytest.fixture(scope="module")
def transparent() -> Iterator[Segment]:
    with Segment("transparent") as segment:
        yield segment


@pytest.fixture(scope="module")
def bridge() -> Iterator[Segment]:
    with Segment("bridge") as segment:
        yield segment


@pytest.fixture(scope="module")
def tunnel() -> Iterator[Segment]:
    with Segment("tunnel") as segment:
        yield segment


@pytest.mark.parametrize("version", [4, 6])
def test_machines_of_their_own_reach_all_and_are_known_by_their_macs(transparent: Segment, version: int) -> None:
    for one, other in MACHINES:
        assert "1 received" in transparent.pings(one, other, version), (one, other, transparent.drops())
    assert "1 received" in transparent.pings("host", "m2", version)
    for part in PORTS:
        assert transparent.neighbour("m1", part, version) == mac_of(part).hex(":")
    assert not set(transparent.drops()) - {DropReason.NOT_FLOODED}


def test_a_broadcast_comes_to_each_once_and_not_back(transparent: Segment) -> None:
    parts = (*EVERYBODY, "host")
    sockets = {part: transparent.udp(part, port=7000) for part in parts}
    for sender in EVERYBODY:
        sockets[sender].sendto(f"from {sender}".encode(), (BROADCAST, 7000))
        time.sleep(0.3)
        for part in parts:
            sockets[part].setblocking(False)
            got = []
            while True:
                try:
                    got.append(sockets[part].recv(64).decode())
                except BlockingIOError:
                    break
            own = part == sender            # a socket hears its own broadcast, by the stack
            # The host is not of the segment that its endpoints' frames go to: as with macvlan.
            wanted = [] if part == "host" and sender in PORTS else [f"from {sender}"]
            assert got == wanted or (own and set(got) <= {f"from {sender}"}), (sender, part, got)


def test_layers_of_who_receives_judge_each_copy(transparent: Segment) -> None:
    closed = Rule(0, Match(protocol=UDP, dst_ports=PortRange(OTHER_PORT, OTHER_PORT)), Deny(), "closed")
    transparent.engine.apply(transparent.state(closed))
    try:
        before = transparent.drops()
        sockets = {part: transparent.udp(part, port=OTHER_PORT) for part in ("b", "m1")}
        transparent.udp("a").sendto(b"all", (BROADCAST, OTHER_PORT))
        assert sockets["m1"].recv(64) == b"all"
        sockets["b"].settimeout(0.3)
        with pytest.raises(TimeoutError):
            sockets["b"].recv(64)
        assert transparent.drops()[DropReason.DENIED] == before[DropReason.DENIED] + 1
        assert not [flow for flow in transparent.engine.flows() if flow.dst_port == OTHER_PORT]
    finally:
        transparent.engine.apply(transparent.state())


def test_more_frames_to_groups_than_the_rate_are_dropped() -> None:
    with Segment("transparent", rate=Rate(2, 5)) as segment:
        receiver, sender = segment.udp("m1", port=7000), segment.udp("a")
        for _ in range(40):
            sender.sendto(b"storm", (BROADCAST, 7000))
        time.sleep(0.5)
        receiver.setblocking(False)
        got = 0
        while True:
            try:
                receiver.recv(64)
                got += 1
            except BlockingIOError:
                break
        assert 1 <= got <= 10               # the burst, by each of two processors, and what time gives
        assert segment.drops()[DropReason.NOT_FLOODED] >= 40 - got


@pytest.mark.parametrize("version", [4, 6])
def test_in_the_hosts_name_all_are_reached_and_the_wire_sees_the_hosts_mac_only(bridge: Segment, version: int) -> None:
    wire = bridge.wire("m2", "eth0")
    machines = {bytes.fromhex(bridge.parts[part].link("eth0")["address"].replace(":", "")) for part in ("m1", "m2")}
    for one, other in MACHINES:
        assert "1 received" in bridge.pings(one, other, version), (one, other, bridge.drops())
    assert "1 received" in bridge.pings("host", "m2", version)
    said = bridge.pings("a", "far", version)
    assert "1 received" in said
    assert "ttl=64" in said                 # nobody on the way but m1, whose own address it is
    for part in PORTS:
        assert bridge.neighbour("m1", part, version) == bridge.uplink_mac.hex(":")
    assert {frame[6:12] for frame in waiting(wire)} <= machines | {bridge.uplink_mac}


@pytest.mark.parametrize("version", [4, 6])
def test_all_goes_by_the_router_also_between_two_of_one_host(tunnel: Segment, version: int) -> None:
    wire = tunnel.wire("m1", "eth0")
    said = tunnel.pings("a", "b", version)
    assert "1 received" in said, tunnel.drops()
    assert "ttl=63" in said                 # m1 has routed the answer
    here = [frame for frame in waiting(wire) if frame[12:14] in (b"\x08\x00", b"\x86\xdd")]
    assert {frame[6:12] for frame in here} & {tunnel.uplink_mac}
    for other in ("m1", "m2", "far"):
        assert "1 received" in tunnel.pings("a", other, version), (other, tunnel.drops())
        if other != "far":
            assert "1 received" in tunnel.pings(other, "a", version), (other, tunnel.drops())
    assert ADDRESS["b"][version] in tunnel.parts["m1"].ip(f"-{version}", "neigh")


def _tagged(segment: Segment, one: str, other: str, vlan: int, mac: bytes | None = None) -> bytes:
    macs = {part: mac_of(part) if part in PORTS else bytes.fromhex(
        segment.parts[part].link("eth0")["address"].replace(":", "")) for part in (one, other)}
    return tagged(IpFrame(
        src_mac=macs[one], dst_mac=mac or macs[other], src=address_of(one, 4), dst=address_of(other, 4), protocol=UDP,
        src_port=7100, dst_port=7200).build(), vlan)


def _arrives(wire: socket.socket, frame: bytes) -> int | None:
    """The tag with which a frame comes; None: it does not come."""
    wire.settimeout(0.5)
    while True:
        try:
            data, control, _, address = wire.recvmsg(1 << 16, 64)
        except TimeoutError:
            return None
        if data == untagged(frame)[0] and address[2] != socket.PACKET_OUTGOING:
            return int(struct.unpack_from("=IIIHHH", control[0][2])[5]) & 0xFFF


@pytest.mark.parametrize(("vlan", "seen"), [(100, 100), (200, None)])
def test_tags_that_a_port_may_have_go_all_the_way_and_others_nowhere(vlan: int, seen: int | None) -> None:
    """By raw sockets: not every kernel has links for VLANs."""
    with Segment("transparent", vlans=(100,)) as segment:
        wires = {part: segment.wire(part, "eth0") for part in EVERYBODY}
        for wire in wires.values():
            wire.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        for one, other in (("a", "m1"), ("m1", "a"), ("a", "b"), ("m2", "b")):
            frame = _tagged(segment, one, other, vlan)
            wires[one].send(frame)
            assert _arrives(wires[other], frame) == seen, (one, other, segment.drops())
        assert {flow.vlan for flow in segment.engine.flows()} <= {seen}
        for sender in ("a", "m1"):
            frame = _tagged(segment, sender, "b", vlan, b"\xff" * 6)
            wires[sender].send(frame)
            for part in {"a", "b", "m2"} - {sender}:
                here = seen if part in PORTS or sender in PORTS else vlan     # between machines the engine has no say
                assert _arrives(wires[part], frame) == here, (sender, part, segment.drops())
        assert bool(segment.drops()[DropReason.VLAN_TAGGED]) == (seen is None)
