"""Captures as files, packets out of files, and what the followers of a site print."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, RawPcapNgReader, wrpcap

import cli.following
from cli.following import differences, drop_line, flow_key, flow_line, forward_rows
from cli.pcap import AFTER, BEFORE, INBOUND, OUTBOUND, CaptureWriter, read_frame
from cli.problems import Problem
from cli.trace import _flags, _say_if_they_differ
from cli.trace_view import draw

FRAMES = [Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / IP(dst="10.0.0.1") / TCP(dport=port)
          for port in (80, 81)]


@pytest.mark.parametrize("name", ["two.pcap", "two.pcapng"])
def test_a_packet_is_read_from_either_kind_of_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("ng"):
        with PcapNgWriter(str(path)) as writer:
            writer.write(FRAMES)
    else:
        wrpcap(str(path), FRAMES)
    assert [read_frame(path, n).data for n in (1, 2)] == [bytes(frame) for frame in FRAMES]


def test_what_was_not_captured_is_zeros(tmp_path: Path) -> None:
    path, data = tmp_path / "cut.pcap", bytes(FRAMES[0])
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    path.write_bytes(head + struct.pack("<IIII", 0, 0, 40, len(data)) + data[:40])
    frame = read_frame(path, 1)
    assert (frame.captured, frame.data) == (40, data[:40] + bytes(len(data) - 40))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("content", "number", "words"), [
    (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1), 1, "has no packets"),
    (b"something else, and long enough to be one", 1, "is no pcap or pcapng file"),
    (b"", 1, "is no pcap or pcapng file"),
    (None, 1, "cannot be read"),
    (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 113) + struct.pack("<IIII", 0, 0, 4, 4) + b"1234", 1,
     "no Ethernet frames"),
])
def test_files_without_a_packet_are_told_apart(tmp_path: Path, content: bytes | None, number: int, words: str) -> None:
    path = tmp_path / "x.pcap"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Problem, match=words):
        read_frame(path, number)


def test_a_number_beyond_the_file_is_told_how_many_there_are(tmp_path: Path) -> None:
    wrpcap(str(tmp_path / "x.pcap"), FRAMES)
    with pytest.raises(Problem, match="has 2 packets"):
        read_frame(tmp_path / "x.pcap", 3)


def test_what_is_written_has_two_interfaces_directions_and_times(tmp_path: Path) -> None:
    stream, data = io.BytesIO(), bytes(FRAMES[0])
    writer = CaptureWriter(stream, "red/a", 96)
    writer.packet(BEFORE, 1_700_000_000_123_456_789, data[:33], len(data), OUTBOUND)
    writer.packet(AFTER, 1_700_000_001_000_000_001, data, len(data), INBOUND, "dropped: DENIED")
    writer.statistics(1_700_000_002_000_000_000, 5)
    assert b"dropped: DENIED" in stream.getvalue()
    with RawPcapNgReader(str(write(tmp_path / "x.pcap", stream.getvalue()))) as reader:
        read = list(reader)
    assert [(raw, about.wirelen, about.direction) for raw, about in read] == [
        (data[:33], len(data), OUTBOUND), (data, len(data), INBOUND)]
    about = read[0][1]
    assert about.tsresol == 1_000_000_000
    assert (about.tshigh << 32 | about.tslow) == 1_700_000_000_123_456_789


def flow(**more: Any) -> dict[str, Any]:
    return {"direction": "forward", "zone": "port a", "protocol": 6, "source": "10.0.0.1", "source_port": 5,
            "destination": "10.0.0.2", "destination_port": 80, "state": "new", "packets": 3, "bytes": 180,
            "endpoint": "red/a", "place": "port b"} | more


def test_flows_begin_change_and_end_between_two_looks() -> None:
    def look(*rows: dict[str, Any]) -> dict[Any, Any]:
        return {flow_key(row): row for row in forward_rows([{"host": "h1", "flows": rows}])}

    a, b, c = flow(), flow(source_port=6), flow(source_port=7, packets=9)
    first = look(a, b, c, flow(direction="reply", source_port=8))
    assert len(first) == 3
    later = look(flow(state="established"), flow(source_port=7, packets=1), flow(source_port=9))
    assert [(event, row["source_port"]) for event, row in differences(first, later)] == [
        ("ended", 6), ("changed", 5), ("new", 7), ("new", 9)]
    assert list(differences(later, later)) == []


def test_lines_of_flows_and_drops() -> None:
    line = flow_line(flow(event="new", host="h1", time=0))
    assert "new      h1  red/a  tcp 10.0.0.1:5 > 10.0.0.2:80  new  3 packets, 180 bytes  port b" in line
    told = drop_line({"time": 0, "host": "h1", "endpoint": "red/a", "reason": "DENIED", "layer": "acl", "group": "p",
                      "rule": "r", "packet": "tcp x > y"})
    assert told.endswith("h1  red/a  DENIED  acl p r  tcp x > y")


class FakeClient:
    """Tells what it is given."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = messages

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def watch_drops(self, host: str, endpoint: str) -> Iterator[dict[str, Any]]:
        yield from self.messages


def test_a_watch_of_drops_says_what_it_cannot_show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"time": 0, "reason": "DENIED", "endpoint": "a", "packet": "p"}
    client = FakeClient({}, {"type": "records", "host": "h1", "records": [record], "lost": 0},
                        {"type": "error", "host": "h2", "message": "host h2 is not connected"},
                        {"type": "records", "host": "h1", "records": [], "lost": 12})
    monkeypatch.setattr(cli.following, "controller", lambda api: client)
    with pytest.raises(Problem, match="closed the connection"):
        cli.following.watch_drops("", "", cli.following.Format.JSON, "")
    told = capsys.readouterr()
    assert json.loads(told.out) == {"host": "h1", **record}
    assert "host h1: 12 drops are not shown" in told.err
    assert "h2 is not connected" in told.err


def test_tcp_flags_by_name_and_number() -> None:
    assert (_flags(""), _flags("syn,ack"), _flags("RST"), _flags("0x12"), _flags("17")) == (None, 18, 4, 18, 17)
    with pytest.raises(Problem, match="flags"):
        _flags("syn,fun")


def test_the_status_says_that_the_engines_differ(capsys: pytest.CaptureFixture[str]) -> None:
    _say_if_they_differ({"hops": []})
    _say_if_they_differ({"agrees": True})
    hop = {"host": "h1", "live": {"differences": [{"field": "reason", "reference": "", "kernel": "DENIED"}]}}
    with pytest.raises(typer.Exit) as ended:
        _say_if_they_differ({"agrees": False, "hops": [hop]})
    assert ended.value.exit_code == 1
    told = capsys.readouterr().err
    assert "host h1: reason" in told
    assert "kernel 'DENIED'" in told


@pytest.mark.parametrize("agrees", [True, False])
def test_a_trace_shows_both_engines_side_by_side(agrees: bool, capsys: pytest.CaptureFixture[str]) -> None:
    differences = [] if agrees else [{"field": "reason", "reference": "", "kernel": "DENIED"}]
    hop = {"host": "h1", "verdict": "forward", "steps": [], "live": {"agrees": agrees, "differences": differences},
           "flow": {"state": "new", "packets": 1, "bytes": 2, "place": "port b", "current": False}}
    from rich.console import Console

    Console(width=200).print(draw("a → b", {"verdict": "forward", "hops": [hop]}))
    told = capsys.readouterr().out
    assert ("kernel agrees" in told) is agrees
    assert ("REFERENCE" in told and "DENIED" in told) is not agrees
    assert "policy changed" in told
