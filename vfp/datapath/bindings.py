"""Source translation as the kernel's tables have it: who has which external side, blocks, contacts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from vfp.datapath.object import BpfObject
from vfp.layout import (
    BINDING,
    BINDING_KEY,
    BLOCK,
    BLOCK_KEY,
    CONTACT_KEY,
    EXTERNAL,
    EXTERNAL_KEY,
    SHARE,
    SHARE_KEY,
    pack,
    pack_address,
    unpack_address,
)
from vfp.model import Address
from vfp.reference.bindings import BindingKey, Block, External

__all__ = ["BindingRecord", "BindingTables"]

_USE = np.dtype([("pool", "u4"), ("address", "u1", 16), ("protocol", "u1"), ("family", "u1")])


@dataclass(frozen=True, slots=True)
class BindingRecord:
    """One live translation."""

    port: int
    pool: int
    protocol: int
    source: Address
    source_port: int                        # ICMP: the identifier; 0: the protocol has none
    external: Address
    external_port: int
    idle_s: float                           # since a decision used it, or a sweep saw a flow that does


class BindingTables:
    """The tables of bindings: look-ups, and the whole of them."""

    def __init__(self, loaded: BpfObject) -> None:
        self._object = loaded

    def find(self, key: BindingKey) -> External | None:
        """The external side of a binding."""
        raw = self._object.map("bindings").lookup(_binding_key(key))
        if raw is None:
            return None
        found: Any = np.frombuffer(raw, BINDING)[0]
        address = unpack_address(found["external"].tobytes(), key.source.version)
        return External(address, key.protocol, int(found["external_port"]))

    def at(self, external: External) -> BindingKey | None:
        """The internal side of a binding."""
        raw = self._object.map("externals").lookup(pack(
            EXTERNAL_KEY, address=pack_address(external.address), port=external.port, protocol=external.protocol,
            family=external.address.version))
        return None if raw is None else _read_key(np.frombuffer(raw, EXTERNAL)[0]["holder"])

    def block_holder(self, block: Block) -> tuple[int, int] | None:
        """The (port, pool) that has a block."""
        raw = self._object.map("blocks").lookup(pack(
            BLOCK_KEY, address=pack_address(block.address), first=block.first, size=block.size,
            family=block.address.version))
        if raw is None:
            return None
        holder = np.frombuffer(raw, BLOCK)[0]["holder"]
        return int(holder["port"]), int(holder["pool"])

    def count(self, port: int, pool: int) -> int:
        """Bindings that a port has in a pool."""
        raw = self._object.map("shares").lookup(pack(SHARE_KEY, port=port, pool=pool))
        return 0 if raw is None else int(np.frombuffer(raw, SHARE)[0]["bindings"]["now"])

    def records(
        self, now_ns: int, pools: Collection[int] | None = None, limit: int | None = None
    ) -> tuple[list[BindingRecord], int]:
        """The first `limit` bindings of these pools (None: all), and how many there are."""
        keys, values = self._object.map("externals").lookup_all()
        key_rows = np.ascontiguousarray(keys).reshape(-1).view(EXTERNAL_KEY)
        rows = np.ascontiguousarray(values).reshape(-1).view(EXTERNAL)
        if pools is not None:
            wanted = np.isin(rows["holder"]["pool"], list(pools))
            key_rows, rows = key_rows[wanted], rows[wanted]
        found = [
            BindingRecord(
                port=int(row["holder"]["port"]), pool=int(row["holder"]["pool"]), protocol=int(key["protocol"]),
                source=unpack_address(row["holder"]["src"].tobytes(), int(key["family"])),
                source_port=int(row["holder"]["sport"]),
                external=unpack_address(key["address"].tobytes(), int(key["family"])), external_port=int(key["port"]),
                idle_s=max(0, now_ns - int(row["seen_ns"])) / 1e9)
            for key, row in zip(key_rows[:limit], rows[:limit], strict=True)
        ]
        return found, len(rows)

    def use(self) -> dict[int, list[tuple[Address, int, int]]]:
        """By pool, (external address, protocol, bindings)."""
        keys, values = self._object.map("externals").lookup_all()
        key_rows = np.ascontiguousarray(keys).reshape(-1).view(EXTERNAL_KEY)
        rows = np.ascontiguousarray(values).reshape(-1).view(EXTERNAL)
        kinds = np.zeros(len(rows), _USE)
        kinds["pool"] = rows["holder"]["pool"]
        for name in ("address", "protocol", "family"):
            kinds[name] = key_rows[name]
        found: dict[int, list[tuple[Address, int, int]]] = {}
        for raw, count in Counter(kind.tobytes() for kind in kinds).items():
            kind: Any = np.frombuffer(raw, _USE)[0]
            address = unpack_address(kind["address"].tobytes(), int(kind["family"]))
            found.setdefault(int(kind["pool"]), []).append((address, int(kind["protocol"]), count))
        return {pool: sorted(uses, key=lambda use: (use[0].packed, use[1])) for pool, uses in sorted(found.items())}

    def block_use(self) -> dict[int, list[tuple[Address, int]]]:
        """By pool, (external address, blocks that are taken)."""
        keys, values = self._object.map("blocks").lookup_all()
        key_rows = np.ascontiguousarray(keys).reshape(-1).view(BLOCK_KEY)
        pools = np.ascontiguousarray(values).reshape(-1).view(BLOCK)["holder"]["pool"]
        counts = Counter(
            (int(pool), unpack_address(key["address"].tobytes(), int(key["family"])))
            for key, pool in zip(key_rows, pools, strict=True)
        )
        found: dict[int, list[tuple[Address, int]]] = {}
        for (pool, address), count in counts.items():
            found.setdefault(pool, []).append((address, count))
        return found

    def has_contact(self, key: BindingKey, remote: Address) -> bool:
        """Whether the internal side has sent to an address of late."""
        inside = np.frombuffer(_binding_key(key), BINDING_KEY)[0]
        contact = np.zeros((), CONTACT_KEY)
        contact["inside"] = inside
        contact["remote"] = np.frombuffer(pack_address(remote), np.uint8)
        return self._object.map("contacts").lookup(contact.tobytes()) is not None


def _binding_key(key: BindingKey) -> bytes:
    return pack(
        BINDING_KEY, port=key.port, pool=key.pool, src=pack_address(key.source), sport=key.source_port,
        protocol=key.protocol, family=key.source.version)


def _read_key(row: Any) -> BindingKey:
    source = unpack_address(row["src"].tobytes(), int(row["family"]))
    return BindingKey(int(row["port"]), int(row["pool"]), int(row["protocol"]), source, int(row["sport"]))
