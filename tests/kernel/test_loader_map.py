"""Maps as bytes and arrays: single elements, batches, per-CPU values, maps of maps, and the ring buffer."""

from __future__ import annotations

import select
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loader_kit import COUNTER, FRAME, compile_c, open_files

from vfp.datapath.errors import KernelRefused
from vfp.datapath.libbpf import possible_cpus
from vfp.datapath.map import EXIST, NOEXIST, BpfMap, MapFlag, MapType
from vfp.datapath.object import BpfObject
from vfp.datapath.ring import RingBuffer

MANY = 200_000


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before, "a file descriptor was leaked"


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(COUNTER, tmp_path_factory.mktemp("loader"), "counter", VERDICT=5)


def numbered(kind: MapType, entries: int, **more: int) -> BpfMap:
    """A map from u32 to u64."""
    return BpfMap.create(kind, "numbered", key_size=4, value_size=8, max_entries=entries, **more)


def key(number: int) -> bytes:
    return struct.pack("I", number)


def value(number: int) -> bytes:
    return struct.pack("Q", number)


def test_single_elements() -> None:
    with numbered(MapType.HASH, 2) as table:
        assert table.lookup(key(1)) is None
        table.update(key(1), value(10))
        assert table.lookup(key(1)) == value(10)
        assert table.keys() == [key(1)]
        assert dict(table.items()) == {key(1): value(10)}
        with pytest.raises(KernelRefused, match="update map numbered: EEXIST"):
            table.update(key(1), value(11), NOEXIST)
        with pytest.raises(KernelRefused, match="ENOENT"):
            table.update(key(2), value(11), EXIST)
        assert table.delete(key(1)) is True
        assert table.delete(key(1)) is False
        assert table.keys() == []


def test_wrong_lengths_are_refused_before_the_kernel_reads_them() -> None:
    with numbered(MapType.HASH, 2) as table:
        with pytest.raises(ValueError, match="key of 3 bytes, the map has keys of 4"):
            table.lookup(bytes(3))
        with pytest.raises(ValueError, match="7 bytes of values; expected 1 of 8 bytes"):
            table.update(key(1), bytes(7))
        with pytest.raises(ValueError, match="8 bytes of values; expected 2 of 8 bytes"):
            table.update_batch(key(1) + key(2), bytes(8))
        with pytest.raises(ValueError, match="8 bytes of keys; expected 3 keys of 4 bytes"):
            table.update_batch(key(1) + key(2), bytes(24), 3)
        with pytest.raises(ValueError, match="5 bytes of keys"):
            table.delete_batch(bytes(5))
        assert table.keys() == []


def test_a_full_map_says_how_much_it_holds() -> None:
    with numbered(MapType.HASH, 3) as table:
        with pytest.raises(KernelRefused, match=r"element 3 of 5 .*numbered: E2BIG .* at most 3: raise max_entries"):
            table.update_batch(np.arange(5, dtype="<u4"), np.arange(5, dtype="<u8"))
        assert len(table.keys()) == 3


@pytest.mark.parametrize(
    ("kind", "flags"),
    [(MapType.HASH, 0), (MapType.HASH, MapFlag.NO_PREALLOC), (MapType.LRU_HASH, 0), (MapType.ARRAY, 0)],
)
def test_many_elements_in_batches(kind: MapType, flags: int) -> None:
    keys, values = np.arange(MANY, dtype="<u4"), np.arange(MANY, dtype="<u8") * 3
    # An LRU map gives up the oldest before it is full, since each CPU keeps free ones for itself.
    with numbered(kind, MANY * 2 if kind is MapType.LRU_HASH else MANY, flags=flags) as table:
        table.update_batch(keys, values, MANY)
        found_keys, found_values = table.lookup_all()
        assert found_keys.shape == (len(found_keys), 4)
        order = np.argsort(found_keys.view("<u4")[:, 0])
        assert np.array_equal(found_keys.view("<u4")[order, 0], keys)
        assert np.array_equal(found_values.view("<u8")[order, 0], values)
        if kind is not MapType.ARRAY:
            assert table.delete_batch(keys[::2]) == MANY // 2
            assert len(table.keys()) == MANY // 2
        table.clear()
        left = table.lookup_all()[1]
        assert len(left) == (MANY if kind is MapType.ARRAY else 0)
        assert not left.any()


def test_structured_arrays_are_rows() -> None:
    pair = np.dtype([("low", "<u2"), ("high", "<u2")])
    with numbered(MapType.HASH, 4) as table:
        table.update_batch(np.array([(1, 2), (3, 4)], pair), np.array([5, 6], "<u8"))
        keys, values = table.lookup_all()
        found = dict(zip(keys.view(pair)[:, 0].tolist(), values.view("<u8")[:, 0].tolist(), strict=True))
        assert found == {(1, 2): 5, (3, 4): 6}


def test_empty_batches() -> None:
    with numbered(MapType.HASH, 4) as table:
        table.update_batch(b"", b"")
        assert table.delete_batch(b"") == 0
        keys, values = table.lookup_all()
        assert (keys.shape, values.shape) == ((0, 4), (0, 8))


def test_deleting_passes_over_what_is_not_there() -> None:
    with numbered(MapType.HASH, 10) as table:
        table.update_batch(np.arange(1, 9, dtype="<u4"), np.arange(8, dtype="<u8"))
        assert table.delete_batch(np.array([0, 1, 2, 99, 3, 98, 97, 8, 96], "<u4")) == 4
        assert sorted(table.keys()) == [key(number) for number in (4, 5, 6, 7)]


@pytest.mark.parametrize("kind", [MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH])
def test_per_cpu_values(kind: MapType) -> None:
    cpus = possible_cpus()
    # 12 bytes: the kernel pads each CPU's value to 16, which must not show.
    with BpfMap.create(kind, "cpus", key_size=4, value_size=12, max_entries=16) as table:
        each = np.arange(cpus * 12, dtype=np.uint8).reshape(cpus, 12)
        table.update(key(0), each)
        found = table.lookup_cpus(key(0))
        assert found is not None
        assert np.array_equal(found, each)
        table.update(key(1), b"same on all!")
        found = table.lookup_cpus(key(1))
        assert found is not None
        assert [row.tobytes() for row in found] == [b"same on all!"] * cpus
        table.update_batch(key(2) + key(3), np.stack([each + 1, each + 2]))
        keys, values = table.lookup_all()
        assert values.shape == (len(keys), cpus, 12)
        rows = {row.tobytes(): per_cpu for row, per_cpu in zip(keys, values, strict=True)}
        assert np.array_equal(rows[key(2)], each + 1)
        assert np.array_equal(rows[key(3)], each + 2)
        with pytest.raises(ValueError, match="use lookup_cpus"):
            table.lookup(key(0))
        if kind is not MapType.PERCPU_ARRAY:
            assert table.lookup_cpus(key(9)) is None


def test_a_program_counts_per_cpu(counter: Path) -> None:
    with BpfObject.load(counter) as loaded:
        loaded.program("classify").test_run(FRAME, repeat=100)
        found = loaded.map("counts").lookup_cpus(key(0))
        assert found is not None
        assert found.view("<u4").sum() == 100


def test_maps_without_batches_are_served_one_by_one(counter: Path) -> None:
    with BpfObject.load(counter) as loaded:
        jumps, target = loaded.map("jumps"), loaded.program("jumped")
        jumps.update_batch(key(0) + key(3), key(target.fd) * 2)
        assert dict(jumps.items()) == {key(0): key(target.id), key(3): key(target.id)}
        assert jumps.delete_batch(key(0) + key(1) + key(3)) == 2
        assert jumps.keys() == []


def test_maps_of_maps_hold_made_maps() -> None:
    with numbered(MapType.ARRAY, 4) as inner, BpfMap.create(
        MapType.HASH_OF_MAPS, "outer", key_size=8, value_size=4, max_entries=4, inner=inner
    ) as outer:
        inner.update(key(2), value(77))
        outer.set_fd(value(5), inner.fd)
        assert outer.lookup(value(5)) == key(inner.id)
        with BpfMap.open_id(inner.id) as again:
            assert again.lookup(key(2)) == value(77)


def test_ring_buffer_records_arrive_in_order(counter: Path) -> None:
    with BpfObject.load(counter) as loaded, RingBuffer(loaded.map("events").fd) as ring:
        ready = select.poll()
        ready.register(ring.fd, select.POLLIN)
        assert ring.consume() == []
        assert ready.poll(0) == []
        for length in (60, 61, 62, 63):
            loaded.program("classify").test_run(FRAME + bytes(length - len(FRAME)))
        assert ready.poll(1000) == [(ring.fd, select.POLLIN)]
        assert ring.consume(limit=3) == [value(60), value(61), value(62)]
        assert ring.consume() == [value(63)]
        assert ready.poll(0) == []


def test_a_full_ring_buffer_loses_the_newest_and_recovers(counter: Path) -> None:
    with BpfObject.load(counter, max_entries={"events": 4096}) as loaded, \
            RingBuffer(loaded.map("events").fd) as ring:
        loaded.program("classify").test_run(FRAME, repeat=1000)
        assert len(ring.consume()) == 4096 // 16 - 1
        loaded.program("classify").test_run(FRAME)
        assert len(ring.consume()) == 1


def test_a_ring_buffer_needs_a_ring_buffer_map() -> None:
    with numbered(MapType.HASH, 1) as table, pytest.raises(KernelRefused, match=r"open ring buffer .*EINVAL"):
        RingBuffer(table.fd)
    with pytest.raises(KernelRefused, match="EBADF"):
        RingBuffer(-1)


def test_a_closed_ring_buffer_says_so(counter: Path) -> None:
    with BpfObject.load(counter) as loaded:
        ring = RingBuffer(loaded.map("events").fd)
        ring.close()
        ring.close()
        with pytest.raises(ValueError, match="closed"):
            ring.consume()
