"""Source translation bindings: endpoint-independent mapping (RFC 4787 REQ-1).

One internal (port, protocol, address, transport port) has one external port in a pool, whomever it talks to.

Decided here, where `docs/engine.md` is open:

- A binding whose external address or port no longer belongs to its pool is not used again; it is replaced.
- After the source port itself there are as many candidates as the pool is large, at most 64.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from vfp.model import Address, Pool

PROBES = 64
FNV_OFFSET = 2166136261
FNV_PRIME = 16777619


class Exhausted(Exception):
    """Every candidate port of the pool is taken."""


@dataclass(frozen=True, slots=True)
class BindingKey:
    """The internal side of a translation and the pool that serves it."""

    port: int
    pool: int
    protocol: int
    source: Address
    source_port: int


@dataclass(frozen=True, slots=True)
class External:
    """The external side: what the world sees."""

    address: Address
    protocol: int
    port: int


@dataclass(slots=True)
class Binding:
    """One live translation."""

    key: BindingKey
    external: External
    used_s: float                           # last decision, or last sweep that found a flow using it


class Bindings:
    """All live translations; an external tuple has at most one holder."""

    def __init__(self) -> None:
        self._by_key: dict[BindingKey, Binding] = {}
        self._holders: dict[External, BindingKey] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def live(self) -> list[Binding]:
        """All bindings."""
        return list(self._by_key.values())

    def obtain(self, key: BindingKey, pool: Pool, now_s: float) -> External:
        """The external side of `key`: the one it has, or a new one.

        Raises:
            Exhausted: all candidates are held by others.
        """
        binding = self._by_key.get(key)
        if binding is not None:
            if _is_legal(binding.external, pool):
                binding.used_s = now_s
                return binding.external
            self._remove(binding)
        for port in candidates(key, pool):
            external = External(pool.addresses[0], key.protocol, port)
            if external not in self._holders:
                self._by_key[key] = Binding(key, external, now_s)
                self._holders[external] = key
                return external
        raise Exhausted

    def sweep(self, in_use: set[BindingKey], now_s: float, idle_s: Callable[[int], float]) -> int:
        """Remove bindings that no flow has used for longer than `idle_s` of their port; returns how many."""
        idle = []
        for binding in self.live():
            if binding.key in in_use:
                binding.used_s = now_s
            elif now_s - binding.used_s > idle_s(binding.key.port):
                idle.append(binding)
        for binding in idle:
            self._remove(binding)
        return len(idle)

    def _remove(self, binding: Binding) -> None:
        del self._by_key[binding.key]
        del self._holders[binding.external]


class PeekedBindings(Bindings):
    """The bindings of an engine elsewhere, such as the kernel's: looked at, never made."""

    def __init__(self, find: Callable[[BindingKey], External | None], is_held: Callable[[External], bool]) -> None:
        super().__init__()
        self._find = find
        self._is_held = is_held

    def obtain(self, key: BindingKey, pool: Pool, now_s: float) -> External:
        """What `key` has, or would get now."""
        known = self._find(key)
        if known is not None and _is_legal(known, pool):
            return known
        for port in candidates(key, pool):
            external = External(pool.addresses[0], key.protocol, port)
            if not self._is_held(external):
                return external
        raise Exhausted


def candidates(key: BindingKey, pool: Pool) -> list[int]:
    """External ports in the order in which they are tried."""
    low, size = pool.ports.low, pool.ports.high - pool.ports.low + 1
    own = [key.source_port] if pool.ports.low <= key.source_port <= pool.ports.high else []
    start = binding_hash(key)
    return own + [low + (start + i) % size for i in range(min(PROBES, size))]


def binding_hash(key: BindingKey) -> int:
    """FNV-1a, 32 bits, of port (u32 LE), protocol (u8), source and source port (network order)."""
    value = FNV_OFFSET
    port = struct.pack("!H", key.source_port)
    data = struct.pack("<IB", key.port, key.protocol) + key.source.packed + port
    for byte in data:
        value = ((value ^ byte) * FNV_PRIME) & 0xFFFFFFFF
    return value


def _is_legal(external: External, pool: Pool) -> bool:
    return external.address == pool.addresses[0] and pool.ports.low <= external.port <= pool.ports.high
