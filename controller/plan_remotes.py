"""The endpoints of a network behind one host, in blocks, as other hosts are told of them. Pure.

A block holds the endpoints whose uid's hash begins with certain bits: all of them while they are at most
`REMOTES_BLOCK`, else two blocks with one bit more hold them. So the blocks follow from the endpoints alone, a change
is one block, and one that grows too large becomes two while all others stay. A block's number is a one and its
bits: 1 is the whole, 2n and 2n+1 are the halves of n.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from socket import inet_aton
from typing import NamedTuple
from zlib import crc32

from southbound.messages import REMOTES_BLOCK, Key, RemotesGoal

HASH_BITS = 32
NO_ADDRESS6 = bytes(16)


class Entry(NamedTuple):
    """One endpoint. They are ordered by hash."""

    hash: int
    uid: str
    name: str
    mac: bytes
    address: bytes                          # 4; 0.0.0.0: none
    address6: bytes                         # 16; ::: none


Leaves = Mapping[int, tuple[Entry, ...]]


def entry_of(uid: str, name: str, mac: str, address: str, address6: str) -> Entry:
    """The entry of an endpoint; addresses as text, empty: none."""
    return Entry(crc32(uid.encode()), uid, name, bytes.fromhex(mac.replace(":", "")), inet_aton(address or "0.0.0.0"),
                 IPv6Address(address6).packed if address6 else NO_ADDRESS6)


@dataclass(frozen=True, slots=True)
class Home:
    """The endpoints of a network on one host."""

    network: str                            # NetworkGoal.id
    host: str
    vteps: tuple[str, ...]
    leaves: Leaves = field(default_factory=dict)
    goals: Mapping[Key, RemotesGoal] = field(default_factory=dict)

    def told(self, leaves: Leaves) -> Home:
        """The same with other endpoints; goals of blocks that stayed are taken over."""
        goals = {}
        for number, entries in leaves.items():
            key = ("remotes", f"{self.network}/{self.host}/{number}")
            same = self.leaves.get(number) is entries
            goals[key] = self.goals[key] if same else _block(key[1], self, entries)
        return Home(self.network, self.host, self.vteps, leaves, goals)

    def at(self, vteps: tuple[str, ...]) -> Home:
        """The same at other underlay addresses."""
        return self if vteps == self.vteps else Home(self.network, self.host, vteps).told(self.leaves)

    def with_all(self, entries: Iterable[Entry]) -> Home:
        """The same with exactly these endpoints. Blocks that are as before stay the same objects."""
        made: dict[int, tuple[Entry, ...]] = {}
        _split(1, sorted(entries), made)
        return self.told({n: old if (old := self.leaves.get(n)) == new else new for n, new in made.items()})

    def with_changes(self, gone: Iterable[str], come: Iterable[Entry]) -> Home:
        """The same after some endpoints, by uid, have gone (or changed) and others have come. Equal to `with_all`."""
        leaves = dict(self.leaves)
        for uid in gone:
            _change(leaves, crc32(uid.encode()), uid, None)
        for entry in come:
            _change(leaves, entry.hash, entry.uid, entry)
        return self.told(leaves)


def _bits(number: int) -> int:
    return number.bit_length() - 1


def _prefix(hashed: int, bits: int) -> int:
    """The number of the block of so many bits that a hash is in."""
    return 1 << bits | hashed >> (HASH_BITS - bits)


def _split(number: int, entries: list[Entry], into: dict[int, tuple[Entry, ...]]) -> None:
    """The blocks below a number, which hold these entries, in order."""
    if not entries:
        return
    bits = _bits(number)
    if len(entries) <= REMOTES_BLOCK or bits == HASH_BITS:
        into[number] = tuple(entries)
        return
    middle = (2 * number + 1 - (2 << bits)) << (HASH_BITS - bits - 1)
    at = _first(entries, middle)
    _split(2 * number, entries[:at], into)
    _split(2 * number + 1, entries[at:], into)


def _first(entries: list[Entry], hashed: int) -> int:
    low, high = 0, len(entries)
    while low < high:
        middle = (low + high) // 2
        if entries[middle].hash < hashed:
            low = middle + 1
        else:
            high = middle
    return low


def _change(leaves: dict[int, tuple[Entry, ...]], hashed: int, uid: str, entry: Entry | None) -> None:
    """Put an endpoint into the block that its hash is in, or (None) take it out, and make blocks of that as they must
    be: two, or one with its other half."""
    number = next((n for bits in range(HASH_BITS + 1) if (n := _prefix(hashed, bits)) in leaves), 0)
    if not number:                          # nobody there: the largest block that has no others in it
        bits = next(b for b in range(HASH_BITS + 1) if not _below(leaves, _prefix(hashed, b)))
        number = _prefix(hashed, bits)
    entries = [each for each in leaves.pop(number, ()) if each.uid != uid]
    if entry is not None:
        entries = sorted([*entries, entry])
    while number > 1 and len(entries) <= REMOTES_BLOCK:
        other = leaves.get(number ^ 1, ())
        if len(entries) + len(other) > REMOTES_BLOCK or (not other and _below(leaves, number ^ 1)):
            break
        leaves.pop(number ^ 1, None)
        entries, number = sorted([*entries, *other]), number >> 1
    _split(number, entries, leaves)


def _below(leaves: Leaves, number: int) -> bool:
    """Whether there are blocks in the one of this number."""
    bits = _bits(number)
    return any(_bits(n) >= bits and n >> (_bits(n) - bits) == number for n in leaves)


def _block(name: str, home: Home, entries: tuple[Entry, ...]) -> RemotesGoal:
    sixes = any(entry.address6 != NO_ADDRESS6 for entry in entries)
    return RemotesGoal(
        id=name, network=home.network, host=home.host, vteps=home.vteps, names=tuple(entry.name for entry in entries),
        macs=b"".join(entry.mac for entry in entries), addresses=b"".join(entry.address for entry in entries),
        addresses6=b"".join(entry.address6 for entry in entries) if sixes else b"")


__all__ = ["Entry", "Home", "entry_of"]
