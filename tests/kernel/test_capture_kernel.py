"""Copies of packets: before and after, both ways, of the ports that are looked at and no others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest
from engine_backends import BpfBackend
from engine_frames import ACK, SYN, TCP, ArpFrame, IpFrame
from engine_gateway import ENDPOINT, ENDPOINT_MAC, GATEWAY, HOST, WORLD, state

from vfp.datapath.capture import Captured
from vfp.datapath.engine import Datapath, Limits
from vfp.layout import PORT, CaptureStage, PortFlag, Ring, ZoneKind
from vfp.model import EngineState
from vfp.reasons import DropReason
from vfp.reference import Hook

PORT_ID, UPLINK_ID = 3, 1
MAC = bytes.fromhex(ENDPOINT_MAC.replace(":", ""))
OTHER_MAC = bytes.fromhex("020000000077")
OUT = IpFrame(MAC, OTHER_MAC, IPv4Address(ENDPOINT[4]), IPv4Address(WORLD[4]), TCP, 40000, 443)


@pytest.fixture(scope="module")
def engine() -> Iterator[BpfBackend]:
    backend = BpfBackend()
    yield backend
    backend.close()


@pytest.fixture
def bpf(engine: BpfBackend) -> Iterator[BpfBackend]:
    engine.reset()
    engine.load(state(13, 51))
    engine._datapath.read_captures()
    yield engine
    engine._datapath.capture((), 0)


def send(bpf: BpfBackend, frame: IpFrame, hook: Hook = Hook.PORT_OUT, number: int = PORT_ID) -> bytes:
    return bpf.process(hook, number, frame.build(), None, time.monotonic()).frame


def stages(copies: list[Captured]) -> list[tuple[CaptureStage, int, int]]:
    return [(copy.stage, copy.sender, copy.receiver) for copy in copies]


def test_both_directions_are_seen_before_and_after_translation(bpf: BpfBackend) -> None:
    datapath = bpf._datapath
    datapath.capture({PORT_ID}, 2048)
    left = send(bpf, OUT)                                           # a miss
    first = datapath.read_captures()
    assert stages(first) == [(CaptureStage.BEFORE, PORT_ID, 0), (CaptureStage.AFTER, PORT_ID, 0)]
    assert [copy.data for copy in first] == [OUT.build(), left]
    assert left[26:30] == IPv4Address(HOST[4]).packed
    assert first[0].zone_kind is ZoneKind.PORT
    back = IpFrame(OTHER_MAC, OTHER_MAC, IPv4Address(WORLD[4]), IPv4Address(HOST[4]), TCP, 443,
                   int.from_bytes(left[34:36], "big"), SYN | ACK)
    arrived = send(bpf, back, Hook.UPLINK_IN, UPLINK_ID)
    reply = datapath.read_captures()
    assert stages(reply) == [(CaptureStage.BEFORE, 0, PORT_ID), (CaptureStage.AFTER, 0, PORT_ID)]
    assert [copy.data for copy in reply] == [back.build(), arrived]
    assert arrived[30:34] == IPv4Address(ENDPOINT[4]).packed
    again = send(bpf, replace(OUT, tcp_flags=ACK))                  # a hit
    assert [copy.data for copy in datapath.read_captures()] == [replace(OUT, tcp_flags=ACK).build(), again]


def test_who_looks_changes_no_flow_and_no_verdict(bpf: BpfBackend) -> None:
    def run() -> tuple[bytes, bytes]:
        return send(bpf, OUT), send(bpf, replace(OUT, payload=b"again"))

    unseen = run()
    assert all(unseen)
    flows = bpf.flows()
    bpf.reset()
    bpf.load(state(13, 51))
    bpf._datapath.capture({PORT_ID}, 64)
    assert run() == unseen
    assert bpf.flows() == flows
    assert all(flow.current for flow in bpf._datapath.flows())


def test_a_dropped_packet_says_why(bpf: BpfBackend) -> None:
    bpf._datapath.capture({PORT_ID}, 2048)
    send(bpf, replace(OUT, src=IPv4Address("10.7.0.99")))           # guard's default
    send(bpf, replace(OUT, ttl=1, src_port=40001))
    tagged = OUT.build()[:12] + b"\x81\x00\x00\x01" + OUT.build()[12:]
    bpf.process(Hook.PORT_OUT, PORT_ID, tagged, None, 0.0)
    copies = bpf._datapath.read_captures()
    assert [(copy.stage, copy.reason) for copy in copies] == [
        (CaptureStage.BEFORE, DropReason.LAYER_DEFAULT),
        (CaptureStage.BEFORE, DropReason.NONE), (CaptureStage.AFTER, DropReason.TTL_EXCEEDED),
        (CaptureStage.BEFORE, DropReason.VLAN_TAGGED),
    ]


def test_an_answered_neighbour_request_comes_back_to_who_asked(bpf: BpfBackend) -> None:
    bpf._datapath.capture({PORT_ID}, 2048)
    ask = ArpFrame(MAC, b"\xff" * 6, 1, MAC, IPv4Address(ENDPOINT[4]), IPv4Address(GATEWAY[4])).build()
    answer = bpf.process(Hook.PORT_OUT, PORT_ID, ask, None, 0.0).frame
    copies = bpf._datapath.read_captures()
    assert stages(copies) == [(CaptureStage.BEFORE, PORT_ID, 0), (CaptureStage.AFTER, 0, PORT_ID)]
    assert [copy.data for copy in copies] == [ask, answer]


def test_only_as_much_is_copied_as_is_asked_for(bpf: BpfBackend) -> None:
    bpf._datapath.capture({PORT_ID}, 60)
    send(bpf, replace(OUT, payload=b"x" * 1000))
    (before, _) = bpf._datapath.read_captures()
    assert (len(before.data), before.length) == (60, 14 + 20 + 20 + 1000)


def test_nothing_is_copied_of_other_ports_and_after_the_end(bpf: BpfBackend) -> None:
    bpf._datapath.capture({PORT_ID + 1}, 2048)
    send(bpf, OUT)
    bpf._datapath.capture({PORT_ID}, 2048)
    bpf._datapath.capture((), 0)
    send(bpf, OUT)
    assert bpf._datapath.read_captures() == []


def test_what_finds_no_room_is_counted(bpf: BpfBackend) -> None:
    before = bpf._datapath.lost(Ring.CAPTURES)
    bpf._datapath.capture({PORT_ID}, 9216)
    for _ in range(300):
        send(bpf, replace(OUT, payload=b"x" * 2900))
    lost = bpf._datapath.lost(Ring.CAPTURES) - before
    got = 0
    while batch := bpf._datapath.read_captures():
        got += len(batch)
    assert got + lost == 600
    assert lost > 0


def test_a_policy_change_keeps_the_bit_and_a_new_process_clears_it() -> None:
    pins = Path(f"/sys/fs/bpf/sluice-captureL-{os.getpid()}")
    limits = Limits(flows=1024, rules=1024, ports=64)

    def flags(datapath: Datapath) -> int:
        record = datapath._object.map("ports").lookup(PORT_ID.to_bytes(4, "little"))
        assert record is not None
        return int(np.frombuffer(record, PORT)[0]["flags"])

    try:
        with Datapath.open(pins, limits) as datapath:
            datapath.apply(state(13, 51))
            assert not flags(datapath) & PortFlag.CAPTURE
            datapath.capture({PORT_ID}, 100)
            assert flags(datapath) & PortFlag.CAPTURE
            datapath.apply(replace(state(13, 51), mappings=()))
            assert flags(datapath) & PortFlag.CAPTURE
            datapath.apply(EngineState())
            datapath.apply(state(13, 51))
            assert flags(datapath) & PortFlag.CAPTURE
        with Datapath.open(pins, limits) as datapath:               # who looked is gone
            assert not flags(datapath) & PortFlag.CAPTURE
            assert datapath._object.map("capturing").lookup(bytes(4)) == bytes(4)
    finally:
        Datapath.unpin(pins)
