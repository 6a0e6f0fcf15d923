"""Spaces as rows of the tables `spaces` and `routes`: in chunks that are made, kept and compared as a whole.

A space of 100,000 remote endpoints is a thousand blocks, of which a change touches one. So a chunk is compiled once,
with numpy, and is the same object in the tables of every state that has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from secrets import randbits
from typing import Any

import numpy as np
import numpy.typing as npt

from vfp.errors import CompileError
from vfp.layout import LOCATION, ROUTE, ROUTE_KEY, SPACE_KEY, LocationKind, pack, pack_address
from vfp.model import Address, EngineState, HostStack, LocalPort, Location, Remote, RemoteBlock, Space, Virtual
from vfp.vteps import check_vtep, vtep_id

__all__ = ["Chunk", "CompiledSpace", "check_exits", "compile_spaces", "match_rows", "rows_of"]

U8Array = npt.NDArray[np.uint8]
U64Array = npt.NDArray[np.uint64]

MAX_VNI = (1 << 24) - 1
_ROUTE_BITS = 64                            # of a route's key, before its prefix

_KEY_WORDS = SPACE_KEY.itemsize // 8
_FACTORS = np.array([randbits(64) | 1 for _ in range(_KEY_WORDS + 1)], np.uint64)
_NO_HASHES = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Rows of `spaces`, all of one space, that come and go together. Known by its identity."""

    space: int
    keys: U8Array                           # [n, key size]
    values: U8Array                         # [n, value size]
    hashes: U64Array                        # of the keys
    ports: frozenset[int] = frozenset()     # that are a place in it
    vteps: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class CompiledSpace:
    """A space and its chunks."""

    space: Space
    entries: Chunk
    routes: Mapping[bytes, bytes]           # rows of the table `routes`
    blocks: Mapping[int, tuple[RemoteBlock, Chunk]]         # by identity: hashing a thousand is dearer than a change
    hashes: U64Array = field(default_factory=_NO_HASHES.copy)     # of the keys of all chunks, sorted

    @property
    def chunks(self) -> list[Chunk]:
        """The entries, then the blocks."""
        return [self.entries, *(chunk for _, chunk in self.blocks.values())]

    @property
    def vteps(self) -> set[Address]:
        """All that it names."""
        routed = {route.via.vtep for route in self.space.routes if isinstance(route.via, Remote)}
        return routed.union(*(chunk.vteps for chunk in self.chunks))     # whole sets: each address is hashed once only


def compile_spaces(spaces: Iterable[Space], known: Mapping[int, CompiledSpace]) -> dict[int, CompiledSpace]:
    """Spaces by id. What is as in `known`, the result of the call before, is taken from there.

    Raises:
        CompileError: an address has two places, or a block is not what it says.
    """
    return {space.id: _compile(space, known.get(space.id)) for space in spaces}


def _compile(space: Space, known: CompiledSpace | None) -> CompiledSpace:
    if known is not None and known.space is space:
        return known
    if known is not None and (known.space.entries is space.entries or known.space.entries == space.entries):
        entries = known.entries
    else:
        entries = _entries(space)
    same = known is not None and known.space.routes == space.routes
    routes = known.routes if known is not None and same else _routes(space)
    blocks = _blocks(space, known.blocks if known is not None else {})
    compiled = CompiledSpace(space, entries, routes, blocks)
    before = {id(chunk) for chunk in known.chunks} if known is not None else set()
    chunks = compiled.chunks
    added = [chunk for chunk in chunks if id(chunk) not in before]
    now = {id(chunk) for chunk in chunks}
    removed = [chunk for chunk in known.chunks if id(chunk) not in now] if known is not None else []
    hashes = known.hashes if known is not None else _NO_HASHES
    return replace(compiled, hashes=_merged(space.id, hashes, removed, added, chunks))


def _blocks(space: Space, old: Mapping[int, tuple[RemoteBlock, Chunk]]) -> dict[int, tuple[RemoteBlock, Chunk]]:
    """Those that are another object are looked for by their value among those that are no longer there."""
    blocks: dict[int, tuple[RemoteBlock, Chunk]] = {}
    equals: dict[RemoteBlock, Chunk] | None = None
    for block in space.blocks:
        if id(block) in blocks and len(block.macs):
            raise _twice(space.id, blocks[id(block)][1].keys[0])
        if (found := old.get(id(block))) is None:
            if equals is None:
                kept = {id(each) for each in space.blocks}
                equals = {each: chunk for identity, (each, chunk) in old.items() if identity not in kept}
            found = (block, equals.pop(block, None) or _block(space.id, block))
        blocks[id(block)] = found
    return blocks


def _merged(space: int, hashes: U64Array, removed: list[Chunk], added: list[Chunk], chunks: list[Chunk]) -> U64Array:
    """The sorted hashes of all chunks; the cost is that of what comes and goes, and of copying the rest."""
    if not removed and not added:
        return hashes
    if removed:
        gone = np.sort(np.concatenate([chunk.hashes for chunk in removed]))
        first = np.searchsorted(gone, gone)     # equal ones are side by side: the nth of them is the nth there
        hashes = np.delete(hashes, np.searchsorted(hashes, gone) + np.arange(len(gone)) - first)
    if added:
        new = np.sort(np.concatenate([chunk.hashes for chunk in added]))
        at = np.searchsorted(hashes, new)
        there = at < len(hashes)
        again = new[there][hashes[at[there]] == new[there]].tolist() + new[1:][new[1:] == new[:-1]].tolist()
        for hash in set(again):
            _check_once(space, hash, chunks)
        hashes = np.insert(hashes, at, new) if len(hashes) else new
    return hashes


def _check_once(space: int, hash: int, chunks: list[Chunk]) -> None:
    """Keys with one hash may still be different ones."""
    keys = [key.tobytes() for chunk in chunks for key in chunk.keys[chunk.hashes == hash]]
    seen: set[bytes] = set()
    for key in keys:
        if key in seen:
            raise _twice(space, np.frombuffer(key, np.uint8))
        seen.add(key)


def _twice(space: int, key: U8Array) -> CompileError:
    row: Any = np.frombuffer(key.tobytes(), SPACE_KEY)[0]
    raw = row["address"].tobytes()
    address = IPv6Address(raw) if row["family"] == 6 else IPv4Address(raw[:4])
    return CompileError(f"space {space}: address {address} is given twice; one place an address")


def _entries(space: Space) -> Chunk:
    keys = np.zeros(len(space.entries), SPACE_KEY)
    values = np.zeros(len(space.entries), LOCATION)
    keys["space"] = space.id
    if space.entries:
        keys["family"] = [address.version for address, _ in space.entries]
        packed = b"".join(pack_address(address) for address, _ in space.entries)
        keys["address"] = np.frombuffer(packed, np.uint8).reshape(-1, 16)
        rows = [location_fields(location) for _, location in space.entries]
        values["mac"] = np.frombuffer(b"".join(row["mac"] for row in rows), np.uint8).reshape(-1, 6)
        for name in ("kind", "port", "vni", "vtep"):
            values[name] = [row.get(name, 0) for row in rows]
    places = {place for _, place in space.entries}
    ports = frozenset(place.port for place in places if isinstance(place, LocalPort))
    vteps = frozenset(place.vtep for place in places if isinstance(place, Remote))
    for vtep in vteps:
        check_vtep(f"space {space.id}", vtep)
    return rows_of(space.id, _bytes(keys), _bytes(values), ports, vteps)


def _routes(space: Space) -> dict[bytes, bytes]:
    rows: dict[bytes, bytes] = {}
    for route in space.routes:
        where = f"space {space.id}, route to {route.prefix}"
        version, start = route.prefix.version, route.prefix.network_address
        key = pack(ROUTE_KEY, length=_ROUTE_BITS + route.prefix.prefixlen, space=space.id, family=version,
                   address=pack_address(start))
        if key in rows:
            raise CompileError(f"{where}: the prefix has a route already; one next hop a prefix")
        if isinstance(route.via, Address):
            if route.via.version != version:
                raise CompileError(f"{where}: next hop {route.via} is of another family; give an IPv{version} address")
            to = {"kind": LocationKind.VIA}
            rows[key] = pack(ROUTE, to=_place(to), via=pack_address(route.via))
            continue
        if isinstance(route.via, Remote):
            check_vtep(where, route.via.vtep)
        rows[key] = pack(ROUTE, to=_place(location_fields(route.via)))
    return rows


def _place(fields: Mapping[str, Any]) -> Any:
    """A struct location as a field of another struct."""
    return np.frombuffer(pack(LOCATION, **fields), LOCATION)[0]


def check_exits(state: EngineState) -> None:
    """Raises `CompileError` if a route leads to a port that is no way out of its space."""
    exits = {port.id: port.exit_of for port in state.ports if port.exit_of is not None}
    for space in state.spaces:
        for route in space.routes:
            if isinstance(route.via, LocalPort) and exits.get(route.via.port) != space.id:
                raise CompileError(
                    f"space {space.id}, route to {route.prefix}: port {route.via.port} is no exit of this space; give "
                    f"one with exit_of {space.id}, or the address of an endpoint")


def _block(space: int, block: RemoteBlock) -> Chunk:
    where = f"space {space}, block of VTEP {block.vtep}"
    size = {4: 4, 6: 16}.get(block.version)
    if size is None:
        raise CompileError(f"{where}: version {block.version} is no family; use 4 or 6")
    count, rest = divmod(len(block.addresses), size)
    if rest or len(block.macs) != 6 * count:
        raise CompileError(f"{where}: {len(block.addresses)} bytes of addresses and {len(block.macs)} of MACs; give "
                           f"{size} and 6 bytes for each endpoint")
    if not 0 <= block.vni <= MAX_VNI:
        raise CompileError(f"{where}: VNI {block.vni} is out of range; use 0..{MAX_VNI}")
    check_vtep(where, block.vtep)
    keys, values = np.zeros(count, SPACE_KEY), np.zeros(count, LOCATION)
    keys["space"], keys["family"] = space, block.version
    keys["address"][:, :size] = np.frombuffer(block.addresses, np.uint8).reshape(count, size)
    values["kind"], values["vni"], values["vtep"] = LocationKind.REMOTE, block.vni, vtep_id(block.vtep)
    values["mac"] = np.frombuffer(block.macs, np.uint8).reshape(count, 6)
    return rows_of(space, _bytes(keys), _bytes(values), vteps=frozenset((block.vtep,)))


def location_fields(location: Location) -> dict[str, Any]:
    """Of struct location."""
    match location:
        case LocalPort(port=port, mac=mac):
            return {"kind": LocationKind.PORT, "port": port, "mac": mac}
        case Remote(vtep=vtep, vni=vni, mac=mac):
            return {"kind": LocationKind.REMOTE, "vtep": vtep_id(vtep), "vni": vni, "mac": mac}
        case HostStack(mac=mac):
            return {"kind": LocationKind.HOST, "mac": mac}
        case Virtual(mac=mac):
            return {"kind": LocationKind.VIRTUAL, "mac": mac}


def rows_of(space: int, keys: U8Array, values: U8Array, ports: frozenset[int] = frozenset(),
            vteps: frozenset[Address] = frozenset()) -> Chunk:
    """A chunk of these rows."""
    words = np.ascontiguousarray(keys).view(np.uint64)
    hashes = np.zeros(len(words), np.uint64)
    for column, factor in zip(words.T, _FACTORS[:_KEY_WORDS], strict=True):
        hashes += column * factor
    hashes = (hashes ^ hashes >> np.uint64(32)) * _FACTORS[_KEY_WORDS]
    return Chunk(space, keys, values, hashes, ports, vteps)


def match_rows(keys: U8Array, hashes: U64Array, others: U8Array, other_hashes: U64Array) -> npt.NDArray[np.int64]:
    """For each key its row among `others`, which are unique; -1: it is not there."""
    if not len(keys) or not len(others):
        return np.full(len(keys), -1, np.int64)
    order = np.argsort(other_hashes)
    ordered = other_hashes[order]
    if (ordered[1:] == ordered[:-1]).any():     # different keys with one hash: once in a thousand years
        known = {key.tobytes(): row for row, key in enumerate(others)}
        return np.array([known.get(key.tobytes(), -1) for key in keys], np.int64)
    rows: npt.NDArray[np.int64] = order[np.minimum(np.searchsorted(ordered, hashes), len(order) - 1)]
    return np.where((others[rows] == keys).all(axis=1), rows, -1)


def _bytes(rows: npt.NDArray[Any]) -> U8Array:
    return rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
