"""The DNS inspector: which answers open which addresses, and that hostile ones open nothing."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

import dns.flags
import dns.message
import dns.rrset
import pytest

import inspection.dns
from inspection.answers import Question, addresses_of, question_of
from inspection.dns import Clamp, DnsInspector, DomainRule, SetFull
from inspection.names import NameInvalid, Names, check_name
from inspection.packet import TCP, UDP, Packet
from inspection.queue import Accept, Drop
from inspection.stream import Stream
from vfp.datapath.records import FlowOrigin
from vfp.layout import ZoneKind
from vfp.model import Address, Prefix

CLIENT, SERVER = IPv4Address("10.0.0.2"), IPv4Address("10.0.0.53")
API, OTHER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
SIX = IPv6Address("2001:db8::1")


class FakeEngine:
    """Sets in memory; every packet to port 53 is the forward half of its flow, of port 7."""

    def __init__(self) -> None:
        self.sets: dict[int, dict[Prefix, float | None]] = {}
        self.busy: set[tuple[int, Address]] = set()
        self.full = False

    def flow_origin(self, zone: int, protocol: int, src: Address, dst: Address, src_port: int,
                    dst_port: int) -> FlowOrigin | None:
        reply = src_port == 53
        client = (dst_port if reply else src_port).to_bytes(2, "big")
        return FlowOrigin(client + bytes([protocol]), reply, 7)

    def add_members(self, set_id: int, members: Iterable[Prefix], ttl_s: float | None = None,
                    redecide: bool = True) -> None:
        assert not redecide
        if self.full:
            raise RuntimeError("full")
        end = None if ttl_s is None else time.monotonic() + ttl_s
        self.sets.setdefault(set_id, {}).update(dict.fromkeys(members, end))

    def remove_members(self, set_id: int, members: Iterable[Prefix], redecide: bool = True) -> None:
        assert not redecide
        for member in members:
            del self.sets[set_id][member]

    def members(self, set_id: int) -> dict[Prefix, float | None]:
        return dict(self.sets.get(set_id, {}))

    def destinations(self, ports: Iterable[int]) -> set[tuple[int, Address]]:
        return self.busy

    def addresses(self, set_id: int) -> set[Address]:
        return {prefix.network_address for prefix in self.sets.get(set_id, {})}


def query(name: str = "api.example.com", kind: str = "A", id: int = 1) -> bytes:
    message = dns.message.make_query(name, kind)
    message.id = id
    return message.to_wire()


def answer(to: bytes, *records: str, rcode: int = 0) -> bytes:
    """Records as `name ttl type value`."""
    response = dns.message.make_response(dns.message.from_wire(to))
    response.set_rcode(rcode)
    for record in records:
        name, ttl, kind, *value = record.split()
        response.answer.append(dns.rrset.from_text(f"{name}.", int(ttl), "IN", kind, " ".join(value)))
    return response.to_wire()


def packet(payload: bytes, *, back: bool = False, protocol: int = UDP, port: int = 4000, flags: int = 0x10,
           sequence: int = 0) -> Packet:
    src, dst, sport, dport = (SERVER, CLIENT, 53, port) if back else (CLIENT, SERVER, port, 53)
    return Packet(ZoneKind.PORT, 7, payload, protocol, src, dst, sport, dport, 0, 0, flags, sequence)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def inspector(engine: FakeEngine) -> DnsInspector:
    made = DnsInspector(engine, Clamp(least_s=0, most_s=100, grace_s=0))
    made.configure({7: (DomainRule(1, ("api.example.com",)), DomainRule(2, ("*.example.com",)))})
    return made


def ask(inspector: DnsInspector, asked: bytes, *records: str, port: int = 4000) -> None:
    assert inspector.inspect(packet(asked, port=port)) == Accept()
    assert inspector.inspect(packet(answer(asked, *records), back=True, port=port)) == Accept()


def test_an_answer_opens_its_addresses_for_each_rule_that_names_it(inspector: DnsInspector, engine: FakeEngine) -> None:
    ask(inspector, query(), "api.example.com 60 A 192.0.2.1", "api.example.com 60 A 192.0.2.2")
    assert engine.addresses(1) == engine.addresses(2) == {API, OTHER}
    ask(inspector, query("deep.www.Example.COM"), "deep.www.example.com 60 A 192.0.2.9")
    assert IPv4Address("192.0.2.9") in engine.addresses(2)
    assert IPv4Address("192.0.2.9") not in engine.addresses(1)
    ask(inspector, query(kind="AAAA"), "api.example.com 60 AAAA 2001:db8::1")
    assert SIX in engine.addresses(1)


def test_aliases_are_followed_and_the_least_ttl_holds(inspector: DnsInspector, engine: FakeEngine) -> None:
    ask(inspector, query(), "api.example.com 60 CNAME a.cdn.net.", "a.cdn.net 5 CNAME b.cdn.net.",
        "b.cdn.net 600 A 192.0.2.1", "c.cdn.net 600 A 192.0.2.2")
    assert engine.addresses(1) == {API}
    (end,) = engine.sets[1].values()
    assert end is not None
    assert 0 < end - time.monotonic() <= 5


@pytest.mark.parametrize("records", [
    ("other.example.net 60 A 192.0.2.1",),                                  # of another name
    ("api.example.com 60 CNAME a.cdn.net.", "a.cdn.net 60 CNAME api.example.com."),
    ("api.example.com 60 A 127.0.0.1", "api.example.com 60 A 224.0.0.1", "api.example.com 60 A 0.0.0.0",
     "api.example.com 60 A 169.254.169.254"),
])
def test_what_answers_besides_opens_nothing(inspector: DnsInspector, engine: FakeEngine,
                                            records: tuple[str, ...]) -> None:
    ask(inspector, query(), *records)
    assert not engine.sets


def test_only_answers_to_outstanding_questions_of_the_flow_count(inspector: DnsInspector, engine: FakeEngine) -> None:
    said = "api.example.com 60 A 192.0.2.1"
    asked = query()
    assert inspector.inspect(packet(answer(asked, said), back=True)) == Accept()        # nobody asked
    inspector.inspect(packet(asked))
    inspector.inspect(packet(answer(query(id=2), said), back=True))                     # another id
    inspector.inspect(packet(answer(query("b.example.com"), said), back=True))          # another name
    inspector.inspect(packet(answer(query(kind="AAAA"), said), back=True))              # another type
    inspector.inspect(packet(answer(asked, said), back=True, port=4001))                # another flow
    inspector.inspect(packet(answer(asked, said)))                                      # the endpoint answers itself
    assert not engine.sets
    inspector.inspect(packet(answer(asked, said), back=True))
    assert engine.addresses(1) == {API}


def test_an_error_or_a_name_of_no_rule_opens_nothing(inspector: DnsInspector, engine: FakeEngine) -> None:
    asked = query()
    inspector.inspect(packet(asked))
    inspector.inspect(packet(answer(asked, "api.example.com 60 A 192.0.2.1", rcode=3), back=True))
    ask(inspector, query("example.com"), "example.com 60 A 192.0.2.1")      # a wildcard is not its own parent
    ask(inspector, query("badexample.com"), "badexample.com 60 A 192.0.2.1")
    assert not engine.sets


@pytest.mark.parametrize("damage", [
    b"", b"\0", bytes(12), bytes(500), struct.pack("!6H", 1, 0x8180, 1, 1, 0, 0) + b"\xc0\x0c\0\1\0\1",
    struct.pack("!6H", 1, 0x8180, 1, 1, 0, 0) + b"\x03api\xc0\x0c\0\1\0\1",
    struct.pack("!6H", 1, 0x8180, 65535, 65535, 65535, 65535) + b"\0" * 40,
    struct.pack("!6H", 1, 0x8180, 2, 0, 0, 0) + b"\0\0\1\0\1" * 2,
])
def test_hostile_messages_pass_and_open_nothing(inspector: DnsInspector, engine: FakeEngine, damage: bytes) -> None:
    """Compression loops, counts without records, several questions: what cannot be read is not policy's business."""
    inspector.inspect(packet(query()))
    assert inspector.inspect(packet(damage, back=True)) == Accept()
    assert inspector.inspect(packet(damage)) == Accept()
    assert not engine.sets


def test_damaged_answers_never_raise(inspector: DnsInspector, engine: FakeEngine) -> None:
    asked = query()
    whole = answer(asked, "api.example.com 60 CNAME a.cdn.net.", "a.cdn.net 60 A 192.0.2.1")
    inspector.inspect(packet(asked))
    for at in range(len(whole)):
        for value in (0, 0xC0, 0xFF):
            broken = whole[:at] + bytes([value]) + whole[at + 1:]
            assert inspector.inspect(packet(broken, back=True)) == Accept()
        assert inspector.inspect(packet(whole[:at], back=True)) == Accept()


def test_what_a_set_cannot_take_is_not_told(inspector: DnsInspector, engine: FakeEngine,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    asked = query()
    inspector.inspect(packet(asked))
    engine.full = True
    with pytest.raises(RuntimeError, match="full"):
        inspector.inspect(packet(answer(asked, "api.example.com 60 A 192.0.2.1"), back=True))
    engine.full = False
    monkeypatch.setattr(inspection.dns, "MAX_MEMBERS", 1)
    with pytest.raises(SetFull, match=r"api\.example\.com"):
        inspector.inspect(packet(answer(asked, "api.example.com 60 A 192.0.2.1", "api.example.com 60 A 192.0.2.2"),
                                 back=True))


def test_members_leave_after_their_time_unless_a_flow_is_left(engine: FakeEngine) -> None:
    inspector = DnsInspector(engine, Clamp(least_s=0.01, most_s=0.01, grace_s=0))
    inspector.configure({7: (DomainRule(1, ("api.example.com",)),)})
    ask(inspector, query(), "api.example.com 60 A 192.0.2.1", "api.example.com 60 A 192.0.2.2")
    engine.busy = {(7, API)}
    time.sleep(0.02)
    assert inspector.expire() == 1
    assert engine.addresses(1) == {API}
    engine.busy = set()
    assert inspector.expire() == 1
    assert engine.addresses(1) == set()


def test_a_shorter_ttl_does_not_close_what_is_open_longer(inspector: DnsInspector, engine: FakeEngine) -> None:
    ask(inspector, query(), "api.example.com 90 A 192.0.2.1")
    before = dict(engine.sets[1])
    ask(inspector, query(id=9), "api.example.com 1 A 192.0.2.1")
    assert engine.sets[1] == before


def test_a_new_process_takes_over_what_sets_hold(engine: FakeEngine) -> None:
    engine.sets[1] = {ip_network("192.0.2.1/32"): time.monotonic() - 1}
    inspector = DnsInspector(engine)
    inspector.configure({7: (DomainRule(1, ("api.example.com",)),)})
    assert inspector.expire() == 1
    assert not engine.sets[1]


def test_questions_are_bounded(inspector: DnsInspector, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection.dns, "MAX_QUESTIONS", 10)
    for id in range(100):
        inspector.inspect(packet(query(id=id), port=id))
    assert len(inspector._questions) <= 10
    assert len(inspector._of_flow) <= 10


def segments(message: bytes, *cuts: int) -> list[bytes]:
    framed = len(message).to_bytes(2, "big") + message
    return [framed[a:b] for a, b in zip((0, *cuts), (*cuts, len(framed)), strict=True)]


def test_an_answer_over_tcp_counts_when_it_is_whole(inspector: DnsInspector, engine: FakeEngine) -> None:
    asked = query()
    said = segments(answer(asked, "api.example.com 60 A 192.0.2.1"), 1, 20)
    inspector.inspect(packet(b"", protocol=TCP, flags=0x02, sequence=99))
    inspector.inspect(packet(b"", protocol=TCP, flags=0x12, sequence=0xFFFFFFFF, back=True))
    (question,) = segments(asked)
    assert inspector.inspect(packet(question, protocol=TCP, sequence=100)) == Accept()

    def back(sequence: int, data: bytes) -> object:
        return inspector.inspect(packet(data, protocol=TCP, sequence=sequence, back=True))

    assert back(1, said[1]) == Drop()                       # a gap: it will be sent again
    assert back(0, said[0]) == Accept()
    assert back(1, said[1]) == Accept()
    assert back(0, said[0] + said[1]) == Accept()           # sent again
    assert not engine.sets
    assert back(10, said[1][9:] + said[2]) == Accept()      # overlapping, and the rest
    assert engine.addresses(1) == {API}


def test_a_tcp_connection_begun_before_is_not_gone_on_with(inspector: DnsInspector) -> None:
    assert inspector.inspect(packet(b"", protocol=TCP)) == Accept()
    assert inspector.inspect(packet(b"\0\1x", protocol=TCP, sequence=5)) == Drop()


def test_a_stream_gives_messages_whole_wherever_it_is_cut() -> None:
    messages = [b"one", b"", b"three" * 100]
    data = b"".join(len(m).to_bytes(2, "big") + m for m in messages)
    for size in (1, 2, 3, 7, len(data)):
        stream = Stream(0xFFFFFFF0)
        got: list[bytes] = []
        for at in range(0, len(data), size):
            taken = stream.take((0xFFFFFFF0 + at) % (1 << 32), data[at:at + size])
            assert taken is not None
            got += taken
        assert got == messages


@pytest.mark.parametrize("name", ["", "com", "*", "*.com", "a..com", "-a.com", "a.*.com", "*a.example.com", "ä.com",
                                  "a" * 64 + ".com", "a b.com", ".".join(["abcdefgh"] * 29)])
def test_names_that_no_rule_can_have(name: str) -> None:
    with pytest.raises(NameInvalid, match=r"write a full name|domain"):
        check_name(name)


def test_names_are_compared_without_case_and_final_dot() -> None:
    names = Names(["API.Example.com.", "*.a.net"])
    assert names.match("api.example.com")
    assert names.match("x.y.a.net")
    assert not names.match("a.net")
    assert not names.match("xa.net")
    assert check_name("*.A.net.") == "*.a.net"


def test_questions_are_read_with_whatever_case() -> None:
    assert question_of(query("aPi.eXample.com", id=7)) == (Question(7, "api.example.com", 1), False)
    assert addresses_of(answer(query(), "api.example.com 30 A 192.0.2.1")).ttl_s == 30
