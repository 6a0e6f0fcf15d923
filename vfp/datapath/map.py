"""A BPF map as bytes and numpy arrays: single elements, whole tables, per-CPU values."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vfp.datapath import pins
from vfp.datapath.errors import KernelRefused, NotSupported, kernel_error
from vfp.datapath.libbpf import BatchOpts, MapCreateOpts, check, library, map_info, possible_cpus

__all__ = ["ANY", "EXIST", "NOEXIST", "BpfMap", "Bytes", "MapFlag", "MapType"]

ANY, NOEXIST, EXIST = 0, 1, 2
"""Update flags: make or overwrite; make only; overwrite only."""

U8Array = npt.NDArray[np.uint8]
Bytes = bytes | bytearray | memoryview | npt.NDArray[Any]
"""Rows back to back: anything contiguous with the right number of bytes, structured arrays included."""

_CHUNK = 65536  # rows asked for in one batch lookup; a hash bucket must fit


class MapType(IntEnum):
    """enum bpf_map_type, as far as this package names them."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    DEVMAP_HASH = 25
    QUEUE = 22
    STACK = 23
    RINGBUF = 27


class MapFlag(IntFlag):
    """Creation flags, as far as this package names them."""

    NO_PREALLOC = 1
    NO_COMMON_LRU = 2
    RDONLY_PROG = 1 << 7
    MMAPABLE = 1 << 10


_PER_CPU = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})
_FIXED = frozenset({MapType.ARRAY, MapType.PERCPU_ARRAY})  # elements exist always, and are never deleted


class BpfMap:
    """Owns one map file descriptor; a context manager.

    Attributes:
        name: as in C, or the kernel's 15 characters of it when opened by descriptor only.
        id: the kernel's, unique while the host is up.
        type, key_size, value_size, max_entries, flags: as it was made; sizes in bytes. `value_size` of a
            per-CPU map is that of one CPU's value.
        cpus: values for each key; 1 unless the map is per CPU.
    """

    def __init__(self, fd: int, name: str = "") -> None:
        """Take ownership of `fd`."""
        self._fd = fd
        info = map_info(fd)
        self.name = name or info.name.decode()
        self.id = int(info.id)
        self.type = int(info.type)
        self.key_size = int(info.key_size)
        self.value_size = int(info.value_size)
        self.max_entries = int(info.max_entries)
        self.flags = int(info.map_flags)
        self.per_cpu = self.type in _PER_CPU
        self.cpus = possible_cpus() if self.per_cpu else 1
        # The kernel copies each CPU's value in a multiple of 8 bytes (linux/bpf.h, BPF_MAP_LOOKUP_ELEM).
        self._slot = (self.value_size + 7) // 8 * 8 if self.per_cpu else self.value_size
        self._row = self._slot * self.cpus

    @classmethod
    def create(
        cls, kind: MapType, name: str, *, key_size: int, value_size: int, max_entries: int, flags: int = 0,
        inner: BpfMap | None = None,
    ) -> Self:
        """A new map that no object declares; for inner maps. `inner` is the pattern for a map of maps.

        Raises:
            KernelRefused: the kernel does not make such a map.
        """
        opts = MapCreateOpts(sz=ctypes.sizeof(MapCreateOpts), map_flags=flags)
        if inner is not None:
            opts.inner_map_fd = inner.fd
        fd = library().bpf_map_create(
            int(kind), name.encode()[:15], key_size, value_size, max_entries, ctypes.byref(opts)
        )
        return cls(check(fd, f"create map {name}"), name)

    @classmethod
    def open_pin(cls, path: Path) -> Self:
        """The map pinned at `path`."""
        return cls(pins.get(path), path.name)

    @classmethod
    def open_id(cls, map_id: int) -> Self:
        """The map with this kernel id, such as a map of maps gives on lookup."""
        return cls(check(library().bpf_map_get_fd_by_id(map_id), f"open map id {map_id}"))

    @property
    def fd(self) -> int:
        """The descriptor; stays this object's. -1 after `close()`."""
        return self._fd

    def pin(self, path: Path) -> None:
        """Pin at `path`, in place of what was there, in one step."""
        pins.replace(self._fd, path)

    # One element

    def lookup(self, key: bytes) -> bytes | None:
        """The value of `key`, or None. For a map of maps or programs: the id, 4 bytes.

        Raises:
            ValueError: wrong key length, or a per-CPU map (use `lookup_cpus`).
        """
        if self.per_cpu:
            raise ValueError(f"map {self.name} is per CPU: use lookup_cpus")
        return self._lookup(key)

    def lookup_cpus(self, key: bytes) -> U8Array | None:
        """The values of `key` in a per-CPU map, shape [cpus, value_size], or None."""
        raw = self._lookup(key)
        if raw is None:
            return None
        return np.frombuffer(raw, np.uint8).reshape(self.cpus, self._slot)[:, : self.value_size]

    def _lookup(self, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self._row)
        result = library().bpf_map_lookup_elem(self._fd, self._key(key), value)
        if result == -errno.ENOENT:
            return None
        check(result, f"look up in map {self.name}")
        return value.raw

    def update(self, key: bytes, value: bytes | U8Array, flags: int = ANY) -> None:
        """Write one element. Per CPU, `value` is one value for all CPUs, or an array [cpus, value_size].

        Raises:
            ValueError: wrong key or value length.
            KernelRefused: EEXIST with NOEXIST, ENOENT with EXIST, E2BIG when the map is full.
        """
        row = self._rows(np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value, 1)
        self._check(library().bpf_map_update_elem(self._fd, self._key(key), row.ctypes.data, flags), "update")

    def delete(self, key: bytes) -> bool:
        """Remove one element; False if it was not there."""
        result = library().bpf_map_delete_elem(self._fd, self._key(key))
        if result == -errno.ENOENT:
            return False
        self._check(result, "delete from")
        return True

    def set_fd(self, key: bytes | int, fd: int) -> None:
        """Put a program into a program array, or a map into a map of maps. Atomic for readers."""
        raw = key.to_bytes(4, "little") if isinstance(key, int) else key
        value = ctypes.byref(ctypes.c_uint32(fd))
        self._check(library().bpf_map_update_elem(self._fd, self._key(raw), value, ANY), "update")

    def keys(self) -> list[bytes]:
        """All keys."""
        return [key.tobytes() for key in self.lookup_all()[0]]

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All (key, value); the value of a per-CPU map is the CPUs' values back to back."""
        keys, values = self.lookup_all()
        for key, value in zip(keys, values, strict=True):
            yield key.tobytes(), value.tobytes()

    # Whole tables

    def lookup_all(self) -> tuple[U8Array, U8Array]:
        """Every element: keys [n, key_size] and values [n, value_size], or [n, cpus, value_size] per CPU.

        Not a snapshot: an element that is written or removed meanwhile may be in or out.
        """
        try:
            keys, rows = self._lookup_batches()
        except KernelRefused as error:
            # EINTR: a trie that is written meanwhile, in kernels that give up on it.
            if not isinstance(error, NotSupported) and error.errno != errno.EINTR:
                raise
            keys, rows = self._lookup_each()
        if not self.per_cpu:
            return keys, rows
        return keys, rows.reshape(-1, self.cpus, self._slot)[:, :, : self.value_size]

    def _lookup_batches(self) -> tuple[U8Array, U8Array]:
        """BPF_MAP_LOOKUP_BATCH until ENOENT, which means that this batch was the last."""
        found: list[tuple[U8Array, U8Array]] = []
        # The position is a bucket number for hashes and a key for the others.
        position = ctypes.create_string_buffer(max(8, self.key_size))
        started = False
        chunk = min(_CHUNK, max(1, self.max_entries))
        opts = BatchOpts(sz=ctypes.sizeof(BatchOpts))
        while True:
            keys = np.empty((chunk, self.key_size), np.uint8)
            rows = np.empty((chunk, self._row), np.uint8)
            count = ctypes.c_uint32(chunk)
            result = library().bpf_map_lookup_batch(
                self._fd, position if started else None, position, keys.ctypes.data, rows.ctypes.data,
                ctypes.byref(count), ctypes.byref(opts),
            )
            if result == -errno.ENOSPC:  # the next hash bucket alone has more than `chunk`
                chunk *= 2
                continue
            if result not in (0, -errno.ENOENT):
                self._check(result, "list")
            found.append((keys[: count.value], rows[: count.value]))
            started = True
            if result == -errno.ENOENT:
                break
        if len(found) == 1:
            return found[0]
        return np.concatenate([keys for keys, _ in found]), np.concatenate([rows for _, rows in found])

    def _lookup_each(self) -> tuple[U8Array, U8Array]:
        """Key by key, for maps without batches (program arrays, maps of devices)."""
        found: dict[bytes, bytes] = {}
        key: bytes | None = None
        # Removing the current key makes the kernel begin again, so a busy map needs a bound.
        for _ in range(2 * self.max_entries + 1):
            following = ctypes.create_string_buffer(self.key_size)
            result = library().bpf_map_get_next_key(self._fd, key, following)
            if result == -errno.ENOENT:
                break
            self._check(result, "list")
            key = following.raw
            if (value := self._lookup(key)) is not None:
                found[key] = value
        keys = np.frombuffer(b"".join(found), np.uint8).reshape(-1, self.key_size)
        return keys, np.frombuffer(b"".join(found.values()), np.uint8).reshape(-1, self._row)

    def update_batch(self, keys: Bytes, values: Bytes, count: int | None = None, flags: int = ANY) -> None:
        """Write many elements in one call, in order; not atomic together.

        Args:
            keys: `count` keys back to back.
            values: `count` values back to back; per CPU [count, value_size] (the same for all CPUs) or
                [count, cpus, value_size].
            count: rows; by default as many as `keys` has.
            flags: ANY, NOEXIST or EXIST for each.

        Raises:
            ValueError: lengths that do not fit.
            KernelRefused: E2BIG when the map became full; the message says how many were written.
        """
        key_rows, total = self._key_rows(keys, count)
        value_rows = self._rows(_flat(values), total)
        if total == 0:
            return
        opts = BatchOpts(sz=ctypes.sizeof(BatchOpts), elem_flags=flags)
        done = ctypes.c_uint32(total)
        result = library().bpf_map_update_batch(
            self._fd, key_rows.ctypes.data, value_rows.ctypes.data, ctypes.byref(done), ctypes.byref(opts)
        )
        if result == 0:
            return
        error = self._error(-result, f"write element {done.value} of {total} to")
        if not isinstance(error, NotSupported):
            raise error
        for index in range(total):
            self._check(
                library().bpf_map_update_elem(
                    self._fd, key_rows[index].ctypes.data, value_rows[index].ctypes.data, flags
                ),
                f"write element {index} of {total} to",
            )

    def delete_batch(self, keys: Bytes, count: int | None = None) -> int:
        """Remove many elements; returns how many were there."""
        key_rows, total = self._key_rows(keys, count)
        opts = BatchOpts(sz=ctypes.sizeof(BatchOpts))
        position = removed = 0
        while position < total:
            done = ctypes.c_uint32(total - position)
            result = library().bpf_map_delete_batch(
                self._fd, key_rows[position].ctypes.data, ctypes.byref(done), ctypes.byref(opts)
            )
            if result == 0:
                return removed + total - position
            if result != -errno.ENOENT:
                if isinstance(error := self._error(-result, "delete from"), NotSupported):
                    return removed + sum(self.delete(row.tobytes()) for row in key_rows[position:])
                raise error
            removed += done.value
            position += done.value + 1  # the one that was not there is passed over
        return removed

    def clear(self) -> None:
        """Remove every element; zero those that cannot be removed (arrays)."""
        keys, _ = self.lookup_all()
        if self.type in _FIXED:
            self.update_batch(keys, np.zeros((len(keys), self._row), np.uint8))
        else:
            self.delete_batch(keys)

    def close(self) -> None:
        """Close the descriptor; a pinned map stays. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<BpfMap {self.name} id {self.id}>"

    # Bytes in the kernel's shape

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.key_size:
            raise ValueError(f"map {self.name}: key of {len(key)} bytes, the map has keys of {self.key_size}")
        return bytes(key)

    def _key_rows(self, keys: Bytes, count: int | None) -> tuple[U8Array, int]:
        flat = _flat(keys)
        total = flat.size // self.key_size if count is None else count
        if flat.size != total * self.key_size:
            raise ValueError(
                f"map {self.name}: {flat.size} bytes of keys; expected {total} keys of {self.key_size} bytes"
            )
        return flat.reshape(total, self.key_size), total

    def _rows(self, flat: U8Array, total: int) -> U8Array:
        """Values as the kernel reads them: each CPU's padded to 8 bytes."""
        flat = flat.reshape(-1)
        if flat.size == total * self._row:
            return np.ascontiguousarray(flat).reshape(total, self._row)
        if self.per_cpu and flat.size in (total * self.value_size, total * self.value_size * self.cpus):
            rows = np.zeros((total, self.cpus, self._slot), np.uint8)
            rows[:, :, : self.value_size] = flat.reshape(total, -1, self.value_size)
            return rows.reshape(total, self._row)
        raise ValueError(
            f"map {self.name}: {flat.size} bytes of values; expected {total} of {self.value_size} bytes"
            f"{f', or one for each of {self.cpus} CPUs' if self.per_cpu else ''}"
        )

    def _error(self, number: int, doing: str) -> KernelRefused:
        todo = f"it holds at most {self.max_entries}: raise max_entries" if number == errno.E2BIG else ""
        return kernel_error(number, f"{doing} map {self.name}", todo=todo)

    def _check(self, result: int, doing: str) -> None:
        if result < 0:
            raise self._error(-result, doing)


def _flat(data: Bytes) -> U8Array:
    """Any contiguous bytes as one row of uint8."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return np.frombuffer(data, np.uint8)
