"""Egress by domain name: the addresses that an endpoint is told for a name are opened for it before it is told.

An endpoint's DNS traffic, where policy allows it, comes by here. A question is remembered; an answer counts if it
answers one that is outstanding on the same flow. The addresses it gives for the name that was asked go into the address
set of each rule of that endpoint which names it, for the answer's TTL (within bounds) plus a grace, and only then the
answer goes on: a connection to such an address finds it open. What does not count passes and opens nothing.

Who may be asked is policy's business: whoever answers on port 53 can say any address for a name that a rule has.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Protocol

from inspection.answers import Question, addresses_of, question_of
from inspection.names import Names
from inspection.packet import TCP, UDP, Packet
from inspection.queue import Accept, Drop, Verdict
from inspection.stream import Stream
from vfp.datapath.records import FlowOrigin
from vfp.model import Address, Prefix

__all__ = ["Clamp", "DnsEngine", "DnsInspector", "DomainRule", "SetFull"]

ANSWER_WITHIN_S = 30.0                      # a question is remembered for so long
MAX_QUESTIONS = 65536                       # of all flows; the oldest is forgotten first
MAX_QUESTIONS_OF_FLOW = 256
MAX_STREAMS = 8192                          # directions of TCP connections
MAX_MEMBERS = 8192                          # of one rule of one endpoint
_SYN, _RST = 0x02, 0x04


class SetFull(Exception):
    """A rule has as many addresses as it may; the answer is not told."""


@dataclass(frozen=True, slots=True)
class Clamp:
    """For how long an address stays open: its TTL, but within these bounds, and then `grace_s` more, seconds."""

    least_s: float = 5
    most_s: float = 86400
    grace_s: float = 30

    def time_s(self, ttl_s: float) -> float:
        """The time of an address with this TTL."""
        return min(max(ttl_s, self.least_s), self.most_s) + self.grace_s


@dataclass(frozen=True, slots=True)
class DomainRule:
    """A rule of one endpoint: names, and the address set that is theirs."""

    set_id: int
    names: tuple[str, ...]


class DnsEngine(Protocol):
    """What is needed of the engine; see `vfp.datapath.engine.Datapath`."""

    def flow_origin(self, zone: int, protocol: int, src: Address, dst: Address, src_port: int,  # noqa: D102
                    dst_port: int) -> FlowOrigin | None: ...
    def add_members(self, set_id: int, members: Iterable[Prefix], ttl_s: float | None = None,  # noqa: D102
                    redecide: bool = True) -> None: ...
    def remove_members(self, set_id: int, members: Iterable[Prefix], redecide: bool = True) -> None: ...  # noqa: D102
    def members(self, set_id: int) -> dict[Prefix, float | None]: ...  # noqa: D102
    def destinations(self, ports: Iterable[int]) -> set[tuple[int, Address]]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class _Known:
    """A rule in force: its names ready to match, and when each of its members ends (monotonic, s)."""

    rule: DomainRule
    names: Names
    ends: dict[Prefix, float]


class DnsInspector:
    """An `Inspector` of DNS traffic. `configure` and `expire` may be called from other threads."""

    def __init__(self, engine: DnsEngine, clamp: Clamp | None = None) -> None:
        self._engine = engine
        self._clamp = clamp or Clamp()
        self._lock = threading.Lock()
        self._rules: dict[int, tuple[_Known, ...]] = {}                     # by port
        self._questions: OrderedDict[tuple[bytes, Question], float] = OrderedDict()    # when they are forgotten
        self._of_flow: dict[bytes, int] = {}
        self._streams: OrderedDict[tuple[bytes, bool], Stream] = OrderedDict()

    def configure(self, rules: Mapping[int, tuple[DomainRule, ...]]) -> None:
        """The rules of each port, by its number in the engine. Members that their sets have stay.

        Raises:
            NameInvalid: a rule has a name that is none; nothing was changed.
        """
        with self._lock:
            before = {(port, known.rule): known for port, given in self._rules.items() for known in given}
            self._rules = {
                port: tuple(before.get((port, rule)) or self._learn(rule) for rule in given)
                for port, given in rules.items()
            }

    def _learn(self, rule: DomainRule) -> _Known:
        members = self._engine.members(rule.set_id)         # those of before a restart
        ends = {prefix: end for prefix, end in members.items() if end is not None}
        return _Known(rule, Names(rule.names), ends)

    def inspect(self, packet: Packet) -> Verdict:
        """Look at one packet of a DNS flow. Raises if a rule's set cannot take an address: then it is dropped."""
        if packet.protocol not in (UDP, TCP):
            return Accept()
        origin = self._engine.flow_origin(packet.zone_kind << 24 | packet.zone, packet.protocol, packet.src,
                                          packet.dst, packet.src_port, packet.dst_port)
        if origin is None:                                  # aged meanwhile: the engine would drop it, too
            return Drop()
        with self._lock:
            if packet.protocol == UDP:
                self._message(origin, packet.payload)
                return Accept()
            return self._segment(origin, packet)

    def expire(self) -> int:
        """Remove members whose time is over and to which no flow of their endpoint is left; how many went."""
        now_s = time.monotonic()
        with self._lock:
            over = {
                (port, known.rule.set_id): [prefix for prefix, end in known.ends.items() if end <= now_s]
                for port, given in self._rules.items() for known in given
            }
        over = {which: prefixes for which, prefixes in over.items() if prefixes}
        if not over:
            return 0
        busy = self._engine.destinations({port for port, _ in over})
        removed = 0
        with self._lock:
            for port, given in self._rules.items():
                for known in given:
                    gone = [
                        prefix for prefix in over.get((port, known.rule.set_id), ())
                        if known.ends.get(prefix, now_s + 1) <= now_s and (port, prefix.network_address) not in busy
                    ]
                    if gone:
                        self._engine.remove_members(known.rule.set_id, gone, redecide=False)
                        for prefix in gone:
                            del known.ends[prefix]
                        removed += len(gone)
        return removed

    # One message

    def _segment(self, origin: FlowOrigin, packet: Packet) -> Verdict:
        which = (origin.key, origin.reply)
        if packet.tcp_flags & _RST:
            self._streams.pop((origin.key, False), None)
            self._streams.pop((origin.key, True), None)
            return Accept()
        sequence = packet.sequence
        if packet.tcp_flags & _SYN:
            sequence += 1                                   # it counts as one byte
            self._streams[which] = Stream(sequence % (1 << 32))
            if len(self._streams) > MAX_STREAMS:
                self._streams.popitem(last=False)
        if not packet.payload:
            return Accept()
        stream = self._streams.get(which)
        if stream is None:              # begun before we listened: where a message begins in it is not known
            return Drop()
        self._streams.move_to_end(which)
        messages = stream.take(sequence, packet.payload)
        if messages is None:
            return Drop()
        for message in messages:
            self._message(origin, message)
        return Accept()

    def _message(self, origin: FlowOrigin, message: bytes) -> None:
        found = question_of(message)
        if found is None:
            return
        question, answers = found
        if answers != origin.reply:
            return
        if not answers:
            self._remember(origin.key, question)
        elif self._recall(origin.key, question):
            self._open(origin.port, question.name, message)

    def _remember(self, flow: bytes, question: Question) -> None:
        now_s = time.monotonic()
        while self._questions:
            oldest = next(iter(self._questions))
            if self._questions[oldest] > now_s and len(self._questions) < MAX_QUESTIONS:
                break
            self._forget(oldest)
        which = (flow, question)
        if which in self._questions:
            self._forget(which)
        elif self._of_flow.get(flow, 0) >= MAX_QUESTIONS_OF_FLOW:
            return
        self._questions[which] = now_s + ANSWER_WITHIN_S
        self._of_flow[flow] = self._of_flow.get(flow, 0) + 1

    def _recall(self, flow: bytes, question: Question) -> bool:
        """Whether it is outstanding. It stays so: a resolver may be asked twice, and answer twice."""
        return self._questions.get((flow, question), 0.0) > time.monotonic()

    def _forget(self, which: tuple[bytes, Question]) -> None:
        del self._questions[which]
        self._of_flow[which[0]] -= 1
        if not self._of_flow[which[0]]:
            del self._of_flow[which[0]]

    def _open(self, port: int, name: str, message: bytes) -> None:
        rules = [known for known in self._rules.get(port, ()) if known.names.match(name)]
        if not rules:
            return
        found = addresses_of(message)
        if not found.addresses:
            return
        time_s = self._clamp.time_s(found.ttl_s)
        end = time.monotonic() + time_s
        for known in rules:
            prefixes: list[Prefix] = [ip_network(address) for address in found.addresses]
            later = [prefix for prefix in prefixes if known.ends.get(prefix, 0.0) < end]
            if len(known.ends.keys() | set(later)) > MAX_MEMBERS:
                raise SetFull(f"rule for {', '.join(known.rule.names)} has {len(known.ends)} addresses, at most"
                              f" {MAX_MEMBERS}; the answer for {name} is dropped")
            if later:
                self._engine.add_members(known.rule.set_id, later, ttl_s=time_s, redecide=False)
                known.ends.update(dict.fromkeys(later, end))
