"""Packets as inspectors see and rewrite them, and verdicts as the queue hands them back."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet as ScapyPacket
from scapy.packet import Raw
from structlog.testing import capture_logs

from inspection.packet import Packet, Unparsable, parse
from inspection.queue import RELEASE_MARK, Accept, Drop, Inspector, Queue, QueueCounts, Release, Rewrite, Verdict
from vfp.layout import ZoneKind

MARK = 2 << 24 | 7 | 3 << 26                # uplink 7, queue 3
FOUR = IP(src="10.0.0.1", dst="10.0.0.2", options=b"\1\1\1\1")
SIX = IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrDestOpt()


@pytest.mark.parametrize("head", [FOUR, SIX])
@pytest.mark.parametrize("payload", [b"", b"x", b"longer than before", bytes(1000)])
def test_a_rewritten_datagram_has_right_lengths_and_checksums(head: ScapyPacket, payload: bytes) -> None:
    data = bytes(head / UDP(sport=5, dport=6) / Raw(b"before"))
    packet = parse(MARK, data + b"padding")
    assert (packet.zone_kind, packet.zone, packet.src_port, packet.dst_port) == (ZoneKind.UPLINK, 7, 5, 6)
    assert packet.payload == b"before"
    assert packet.with_payload(payload) == bytes(head / UDP(sport=5, dport=6) / Raw(payload))


def test_tcp_keeps_its_length() -> None:
    segment = TCP(sport=5, dport=6, seq=77, options=[("NOP", None)] * 4)
    packet = parse(MARK, bytes(FOUR / segment / Raw(b"before")))
    assert (packet.payload, packet.sequence, packet.tcp_flags) == (b"before", 77, 2)
    assert packet.with_payload(b"after!") == bytes(FOUR / segment / Raw(b"after!"))
    with pytest.raises(ValueError, match="keep the length"):
        packet.with_payload(b"after")


@pytest.mark.parametrize("data", [
    b"", b"\x45", bytes(FOUR / UDP())[:30], bytes(FOUR / TCP())[:40], bytes(SIX / UDP())[:45], b"\x45" + bytes(60)[:19],
])
def test_what_is_cut_short_is_no_packet(data: bytes) -> None:
    with pytest.raises(Unparsable):
        parse(MARK, data)


class Queued:
    """A packet of NFQUEUE."""

    def __init__(self, data: bytes) -> None:
        self.data, self.mark, self.verdict = data, MARK, ""

    def get_mark(self) -> int:
        return self.mark

    def set_mark(self, mark: int) -> None:
        self.mark = mark

    def get_payload(self) -> bytes:
        return self.data

    def set_payload(self, data: bytes) -> None:
        self.data = data

    def accept(self) -> None:
        self.verdict = "accept"

    def drop(self) -> None:
        self.verdict = "drop"


class Says:
    """An inspector of one verdict."""

    def __init__(self, verdict: Verdict | Exception) -> None:
        self.verdict = verdict
        self.seen: list[Packet] = []

    def inspect(self, packet: Packet) -> Verdict:
        self.seen.append(packet)
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


def queue(inspector: Inspector) -> Queue:
    """A queue without its thread."""
    made = Queue.__new__(Queue)
    made.number, made._inspector, made._counts, made._told = 3, inspector, QueueCounts(), set()
    return made


@pytest.mark.parametrize(("verdict", "then", "mark", "counts"), [
    (Accept(), "accept", MARK, QueueCounts(accepted=1)),
    (Drop(), "drop", MARK, QueueCounts(dropped=1)),
    (Release(), "accept", MARK | RELEASE_MARK, QueueCounts(released=1)),
    (Rewrite(b"new"), "accept", MARK, QueueCounts(rewritten=1)),
    (RuntimeError("no"), "drop", MARK, QueueCounts(failed=1)),
])
def test_each_verdict_is_handed_back(verdict: Verdict | Exception, then: str, mark: int, counts: QueueCounts) -> None:
    inspector, packet = Says(verdict), Queued(bytes(FOUR / UDP(sport=5, dport=6) / Raw(b"old")))
    served = queue(inspector)
    with capture_logs() as logs:
        served._take(packet)
    assert (packet.verdict, packet.mark, served.counts) == (then, mark, counts)
    assert parse(MARK, packet.data).payload == (b"new" if isinstance(verdict, Rewrite) else b"old")
    assert inspector.seen[0].src == IPv4Address("10.0.0.1")
    assert len(logs) == counts.failed


def test_what_cannot_be_read_or_rewritten_is_dropped_and_a_flood_of_it_told_once() -> None:
    served = queue(Says(Rewrite(b"another length")))
    packets = [Queued(bytes(FOUR / TCP() / Raw(b"x"))) for _ in range(50)] + [Queued(b"\x45")]
    with capture_logs() as logs:
        for packet in packets:
            served._take(packet)
    assert {packet.verdict for packet in packets} == {"drop"}
    assert served.counts == QueueCounts(failed=51)
    assert len(logs) == 2
