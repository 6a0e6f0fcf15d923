"""Source translation bindings: endpoint-independent mapping (RFC 4787 REQ-1).

One internal (port, protocol, address, transport port) has one external side in a pool, whomever it talks to.

Decided here, where `docs/engine.md` is open:

- A binding whose external side no longer belongs to its pool is not used again; it is replaced. A port that somebody
  else holds now (`Pool.held`) still does: it is only not given again.
- A port of ours that has no binding, quota or block any more has left no trace.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from vfp.model import Address, Pool
from vfp.reference.packet import ICMP, ICMPV6, TCP, UDP

FNV_OFFSET = 2166136261
FNV_PRIME = 16777619
PORT_STEP = 16411                           # prime: leaps out of runs of ports that were kept


class Exhausted(Exception):
    """No address of the pool has a port for this."""


class OverQuota(Exception):
    """The port has as many bindings as it may have in the pool."""


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


@dataclass(frozen=True, slots=True)
class Block:
    """Ports that are given out to one port of ours together."""

    address: Address
    first: int
    size: int

    def __contains__(self, external: External) -> bool:
        """Whether it is a port of the block."""
        ours = external.address == self.address and has_range(external.address.version, external.protocol)
        return ours and self.first <= external.port < self.first + self.size


@dataclass(slots=True)
class Binding:
    """One live translation."""

    key: BindingKey
    external: External
    used_s: float                           # last decision, or last sweep that found a flow using it
    block: Block | None = None
    told: bool = False                      # its beginning was: its end will be


@dataclass(frozen=True, slots=True)
class Told:
    """A record: a binding, or a block, began or ended."""

    kind: str                               # "bound", "released", "block-taken", "block-released"
    port: int
    pool: int
    what: External | Block
    inside: BindingKey | None = None        # of a binding


@dataclass(slots=True)
class _Held:
    """Who has a block, and when it last gave a port."""

    port: int
    pool: int
    used_s: float
    told: bool


class Bindings:
    """All live translations; an external tuple has at most one holder, and a block as well."""

    def __init__(self) -> None:
        self._by_key: dict[BindingKey, Binding] = {}
        self._holders: dict[External, BindingKey] = {}
        self._blocks: dict[Block, _Held] = {}
        self._contacts: dict[tuple[BindingKey, Address], float] = {}
        self.log: list[Told] = []               # of pools with `log`

    def __len__(self) -> int:
        return len(self._by_key)

    def live(self) -> list[Binding]:
        """All bindings."""
        return list(self._by_key.values())

    def blocks(self) -> dict[Block, tuple[int, int]]:
        """Blocks in use, and the (port, pool) that has each."""
        return {block: (held.port, held.pool) for block, held in self._blocks.items()}

    # What a decision asks. `PeekedBindings` answers these from elsewhere.

    def find(self, key: BindingKey) -> External | None:
        """The external side that `key` has."""
        binding = self._by_key.get(key)
        return binding.external if binding else None

    def holder(self, external: External) -> BindingKey | None:
        """Who is behind an external side."""
        return self._holders.get(external)

    def holder_of_block(self, block: Block) -> tuple[int, int] | None:
        """The (port, pool) that has a block."""
        held = self._blocks.get(block)
        return (held.port, held.pool) if held else None

    def count(self, port: int, pool: int) -> int:
        """Bindings that a port has in a pool."""
        return sum((key.port, key.pool) == (port, pool) for key in self._by_key)

    def has_contact(self, key: BindingKey, remote: Address) -> bool:
        """Whether the internal side has sent to an address of the world, of late."""
        return (key, remote) in self._contacts

    # What a decision does. `PeekedBindings` does none of it.

    def touch(self, key: BindingKey, now_s: float) -> None:
        """A decision has used it."""
        self._by_key[key].used_s = now_s

    def note_contact(self, key: BindingKey, remote: Address, now_s: float) -> None:
        """The internal side has sent to an address."""
        self._contacts[key, remote] = now_s

    def obtain(self, key: BindingKey, pool: Pool, now_s: float) -> External:
        """The external side of `key`: the one it has, or a new one.

        Raises:
            OverQuota: the port may have no more; Exhausted: everything that would do is held.
        """
        known = self.find(key)
        if known is not None:
            if self.is_legal(key, known, pool):
                self.touch(key, now_s)
                return known
            self._release(key)
        if pool.quota and self.count(key.port, pool.id) >= pool.quota:
            raise OverQuota
        for address in addresses(key, pool):
            found = self._free_at(address, key, pool)
            if found is not None:
                self._bind(key, *found, pool, now_s)
                return found[0]
        raise Exhausted

    def is_legal(self, key: BindingKey, external: External, pool: Pool) -> bool:
        """Whether the pool, as it is now, might have given it."""
        if external.address not in pool.addresses:
            return False
        if not has_range(key.source.version, key.protocol):
            return True
        if not pool.ports.low <= external.port <= pool.ports.high:
            return False
        return not pool.block or any(external in block for block in self._own_blocks(external.address, key, pool))

    def sweep(self, in_use: Container[BindingKey], contacts: Container[tuple[BindingKey, Address]], now_s: float,
              idle_s: Callable[[int], float]) -> int:
        """Remove bindings, contacts and blocks that nothing has used for longer than `idle_s` of their port.

        Returns how many bindings went.
        """
        for contact, used_s in list(self._contacts.items()):
            if contact in contacts:
                self._contacts[contact] = now_s
            elif now_s - used_s > idle_s(contact[0].port):
                del self._contacts[contact]
        idle = []
        for binding in self.live():
            if binding.key in in_use:
                binding.used_s = now_s
            elif now_s - binding.used_s > idle_s(binding.key.port):
                idle.append(binding)
        for binding in idle:
            self._release(binding.key)
        full = {binding.block for binding in self.live()}
        for block, held in list(self._blocks.items()):
            if block not in full and now_s - held.used_s > idle_s(held.port):
                self._release_block(block)
        return len(idle)

    def purge(self, ports: Container[int], pools: Container[int]) -> None:
        """Forget all that ports and pools have that are gone."""
        for key in list(self._by_key):
            if key.port in ports or key.pool in pools:
                self._release(key)
        for block, held in list(self._blocks.items()):
            if held.port in ports or held.pool in pools:
                self._release_block(block)
        for key, remote in list(self._contacts):
            if key.port in ports or key.pool in pools:
                del self._contacts[key, remote]

    def _bind(self, key: BindingKey, external: External, block: Block | None, pool: Pool, now_s: float) -> None:
        if block is not None:
            if pool.log and block not in self._blocks:
                self.log.append(Told("block-taken", key.port, key.pool, block))
            known = self._blocks.get(block)
            self._blocks[block] = _Held(key.port, key.pool, now_s, known.told if known else pool.log)
        told = pool.log and block is None
        if told:
            self.log.append(Told("bound", key.port, key.pool, external, key))
        self._by_key[key] = Binding(key, external, now_s, block, told)
        self._holders[external] = key

    def _release(self, key: BindingKey) -> None:
        binding = self._by_key.pop(key)
        del self._holders[binding.external]
        if binding.told:
            self.log.append(Told("released", key.port, key.pool, binding.external, key))

    def _release_block(self, block: Block) -> None:
        held = self._blocks.pop(block)
        if held.told:
            self.log.append(Told("block-released", held.port, held.pool, block))

    def _free_at(self, address: Address, key: BindingKey, pool: Pool) -> tuple[External, Block | None] | None:
        """What `key` may have at an address, and the block that it is in."""
        if pool.block and has_range(key.source.version, key.protocol):
            own = self._own_blocks(address, key, pool)
            new = (block for block in blocks(address, key.port, pool) if self.holder_of_block(block) is None)
            for block in (*own, *new):
                if (external := self._free_of(block_candidates(key, block), address, key, pool)) is not None:
                    return external, block
            return None
        external = self._free_of(candidates(key, pool), address, key, pool)
        return (external, None) if external is not None else None

    def _own_blocks(self, address: Address, key: BindingKey, pool: Pool) -> list[Block]:
        return [block for block in blocks(address, key.port, pool)
                if self.holder_of_block(block) == (key.port, key.pool)]

    def _free_of(self, ports: Iterable[int], address: Address, key: BindingKey, pool: Pool) -> External | None:
        for port in ports:
            external = External(address, key.protocol, port)
            if (key.protocol, port) not in pool.held and self.holder(external) is None:
                return external
        return None


class BindingTables(Protocol):
    """The bindings of an engine elsewhere, such as the kernel's (`vfp.datapath.bindings`)."""

    def binding(self, key: BindingKey) -> External | None: ...  # noqa: D102
    def binding_at(self, external: External) -> BindingKey | None: ...  # noqa: D102
    def block_holder(self, block: Block) -> tuple[int, int] | None: ...  # noqa: D102
    def binding_count(self, port: int, pool: int) -> int: ...  # noqa: D102
    def has_contact(self, key: BindingKey, remote: Address) -> bool: ...  # noqa: D102


class PeekedBindings(Bindings):
    """Bindings that are elsewhere: looked at, never made."""

    def __init__(self, tables: BindingTables) -> None:
        super().__init__()
        self._tables = tables

    def find(self, key: BindingKey) -> External | None:
        """As `Bindings`, like all below."""
        return self._tables.binding(key)

    def holder(self, external: External) -> BindingKey | None:  # noqa: D102
        return self._tables.binding_at(external)

    def holder_of_block(self, block: Block) -> tuple[int, int] | None:  # noqa: D102
        return self._tables.block_holder(block)

    def count(self, port: int, pool: int) -> int:  # noqa: D102
        return self._tables.binding_count(port, pool)

    def has_contact(self, key: BindingKey, remote: Address) -> bool:  # noqa: D102
        return self._tables.has_contact(key, remote)

    def touch(self, key: BindingKey, now_s: float) -> None:
        """Nothing."""

    def note_contact(self, key: BindingKey, remote: Address, now_s: float) -> None:
        """Nothing."""

    def _bind(self, key: BindingKey, external: External, block: Block | None, pool: Pool, now_s: float) -> None:
        """Nothing."""

    def _release(self, key: BindingKey) -> None:
        """Nothing."""


def has_range(family: int, protocol: int) -> bool:
    """Whether the pool's range counts: what has a port or identifier that can be changed."""
    return protocol in (TCP, UDP, ICMPV6 if family == 6 else ICMP)


def addresses(key: BindingKey, pool: Pool) -> list[Address]:
    """The pool's addresses in the order in which they are tried: an internal address keeps to one (RFC 4787 REQ-2)."""
    start = fnv1a(struct.pack("<I", key.port) + key.source.packed) % len(pool.addresses)
    return [*pool.addresses[start:], *pool.addresses[:start]]


def candidates(key: BindingKey, pool: Pool) -> Iterator[int]:
    """External ports of an address in the order in which they are tried, if there are no blocks."""
    if not has_range(key.source.version, key.protocol):
        yield key.source_port
        return
    low, size = pool.ports.low, pool.ports.high - pool.ports.low + 1
    if low <= key.source_port <= pool.ports.high:
        yield key.source_port
    start = binding_hash(key)
    step = PORT_STEP if size % PORT_STEP else 1
    yield from (low + (start + i * step) % size for i in range(size))


def blocks(address: Address, port: int, pool: Pool) -> list[Block]:
    """The whole blocks of an address in the order in which a port of ours tries them."""
    count = (pool.ports.high - pool.ports.low + 1) // pool.block
    start = fnv1a(struct.pack("<I", port))
    return [Block(address, pool.ports.low + (start + i) % count * pool.block, pool.block) for i in range(count)]


def block_candidates(key: BindingKey, block: Block) -> Iterator[int]:
    """Ports of a block in the order in which they are tried."""
    start = binding_hash(key)
    return (block.first + (start + i) % block.size for i in range(block.size))


def binding_hash(key: BindingKey) -> int:
    """FNV-1a of port (u32 LE), protocol (u8), source and source port (network order)."""
    port = struct.pack("!H", key.source_port)
    return fnv1a(struct.pack("<IB", key.port, key.protocol) + key.source.packed + port)


def fnv1a(data: bytes) -> int:
    """FNV-1a, 32 bits."""
    value = FNV_OFFSET
    for byte in data:
        value = ((value ^ byte) * FNV_PRIME) & 0xFFFFFFFF
    return value
