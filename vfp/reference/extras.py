"""What rules ask for beside forwarding: counting on meters, records, copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from vfp.reference.layers import RuleRef
from vfp.reference.packet import FlowTuple
from vfp.reference.zones import Zone


@dataclass(frozen=True, slots=True)
class Extras:
    """Of a flow, or of a packet that has none. What a later rule of the walk asks of one kind holds."""

    meters: tuple[int, int] = (0, 0)        # of the sender's layers, of the receiver's; 0: none
    log: RuleRef | None = None              # whose action says of which packets
    log_every: int = 0
    mirror: int = 0                         # port id; 0: none


NO_EXTRAS = Extras()


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A packet, as it came, that a rule wants told."""

    rule: RuleRef
    zone: Zone
    tuple: FlowTuple
    length: int


@dataclass(slots=True)
class Journal:
    """What was counted and told. A meter that no rule names any more is forgotten."""

    packets: Counter[tuple[int, bool]] = field(default_factory=Counter)    # (meter, is of a reply)
    bytes: Counter[tuple[int, bool]] = field(default_factory=Counter)
    records: list[LogRecord] = field(default_factory=list)

    def count(self, extras: Extras, length: int, *, reply: bool) -> None:
        """One packet of `length` bytes; once on a meter, even if both sides name it."""
        for meter in {*extras.meters} - {0}:
            self.packets[meter, reply] += 1
            self.bytes[meter, reply] += length

    def tell(self, rule: RuleRef, zone: Zone, what: FlowTuple, length: int) -> None:
        """Write a record."""
        self.records.append(LogRecord(rule, zone, what, length))

    def forget_meters_but(self, named: Iterable[int]) -> None:
        """Keep those that rules name."""
        kept = set(named)
        for counts in (self.packets, self.bytes):
            for key in [key for key in counts if key[0] not in kept]:
                del counts[key]
