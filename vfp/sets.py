"""Address sets to the kernel's records: one entry of the map `sets` a member, known by its prefix length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network

import numpy as np

from vfp.errors import CompileError
from vfp.layout import SET_KEY, pack_address
from vfp.model import AddressSet, EngineState, Prefix

__all__ = ["MAX_SET", "CompiledSet", "check_sets", "compile_set", "keys_of", "prefix_of", "set_of"]

MAX_SET = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, eq=False)
class CompiledSet:
    """One set. `members`: keys (struct set_key) with the time at which each ends, ns; 0: never. A dynamic set's are
    not of the state."""

    id: int
    name: str
    dynamic: bool
    members: dict[bytes, int]


def compile_set(given: AddressSet) -> CompiledSet:
    """The kernel's form of one set."""
    return CompiledSet(given.id, given.name, given.dynamic, dict.fromkeys(keys_of(given.id, given.members), 0))


def keys_of(set_id: int, members: Iterable[Prefix]) -> list[bytes]:
    """The key (struct set_key) of each member."""
    prefixes = list(members)
    rows = np.zeros(len(prefixes), SET_KEY)
    if not prefixes:
        return []
    rows["set"] = set_id
    rows["family"] = [prefix.version for prefix in prefixes]
    rows["length"] = [prefix.prefixlen for prefix in prefixes]
    packed = b"".join(pack_address(prefix.network_address) for prefix in prefixes)
    rows["address"] = np.frombuffer(packed, np.uint8).reshape(-1, 16)
    raw, size = rows.tobytes(), SET_KEY.itemsize
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def set_of(key: bytes) -> int:
    """The set of a struct set_key."""
    return int.from_bytes(key[:4], "little")


def prefix_of(key: bytes) -> Prefix:
    """The member of a struct set_key."""
    family, length, address = key[4], key[5], key[8:24]
    if family == 6:
        return IPv6Network((IPv6Address(address), length))
    return IPv4Network((address[:4], length))


def check_sets(state: EngineState) -> None:
    """Refuse sets that contradict themselves or each other.

    Raises:
        CompileError: says which set and what to do.
    """
    seen: dict[int, AddressSet] = {}
    for given in state.sets:
        if not 0 < given.id <= MAX_SET:
            raise CompileError(f"set {given.name!r}: id {given.id} is out of range; use 1..{MAX_SET}")
        if (other := seen.setdefault(given.id, given)) is not given:
            raise CompileError(
                f"sets {other.name!r} and {given.name!r} both have id {given.id}; ids must be unique on the host"
            )
        if given.dynamic and given.members:
            raise CompileError(
                f"set {given.name!r} is dynamic and is given {len(given.members)} members; add them by add_members, "
                f"or make it static"
            )
