"""Loading, pinning, adopting and replacing BPF objects, and running their programs on bytes."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from loader_kit import COUNTER, FRAME, REJECTED, compile_c, names, open_files

from vfp.datapath.errors import DatapathError, IncompatiblePin, KernelRefused, NoSuchName, VerifierRejected
from vfp.datapath.map import BpfMap
from vfp.datapath.object import BpfObject
from vfp.datapath.program import Program

KEY, VALUE = bytes(range(12)), struct.pack("QQ", 3, 180)


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(COUNTER, tmp_path_factory.mktemp("loader"), "counter", VERDICT=5)


@pytest.fixture(scope="module")
def counter_next(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(COUNTER, tmp_path_factory.mktemp("loader"), "counter", VERDICT=6)


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    path = Path(f"/sys/fs/bpf/loader-test-{os.getpid()}")
    before = open_files()
    yield path
    BpfObject.unpin(path)
    assert not path.exists()
    assert open_files() == before, "a file descriptor was leaked"


def sk_buff(*, mark: int = 0, priority: int = 0, ifindex: int = 0) -> bytes:
    """struct __sk_buff with the fields that a test run takes."""
    ctx = bytearray(192)
    struct.pack_into("I", ctx, 8, mark)
    struct.pack_into("I", ctx, 32, priority)
    struct.pack_into("I", ctx, 40, ifindex)
    return bytes(ctx)


def test_loads_maps_with_asked_sizes_and_runs_a_program(counter: Path) -> None:
    before = open_files()
    with BpfObject.load(counter, max_entries={"flows": 1000}) as loaded:
        assert loaded.map("flows").max_entries == 1000
        assert (loaded.map("flows").key_size, loaded.map("flows").value_size) == (12, 16)
        assert {"classify", "jumped", "add"} == set(loaded.programs)
        run = loaded.program("classify").test_run(FRAME)
        assert (run.retval, run.data) == (5, FRAME)
    assert open_files() == before


def test_context_goes_in_and_comes_out(counter: Path) -> None:
    with BpfObject.load(counter) as loaded:
        run = loaded.program("classify").test_run(FRAME, ctx=sk_buff(mark=41, priority=7, ifindex=1))
    assert struct.unpack_from("I", run.ctx, 8) == (42,)
    assert struct.unpack_from("I", run.ctx, 48 + 8) == (1,), "cb[2] has the interface"
    assert run.data[:6] == b"\xff" * 6
    assert run.data[6:] == FRAME[6:]


def test_repeated_runs_are_timed(counter: Path) -> None:
    with BpfObject.load(counter) as loaded:
        assert 0 < loaded.program("classify").test_run(FRAME, repeat=1000).duration_ns < 100_000


def test_syscall_programs_take_a_context_only(counter: Path) -> None:
    with BpfObject.load(counter) as loaded:
        run = loaded.program("add").test_run(ctx=struct.pack("QQQ", 40, 2, 0))
    assert (run.retval, struct.unpack("QQQ", run.ctx)) == (7, (40, 2, 42))


def test_outgrown_packet_buffer_is_an_error(counter: Path) -> None:
    with BpfObject.load(counter) as loaded, pytest.raises(KernelRefused, match="classify: ENOSPC"):
        loaded.program("classify").test_run(FRAME, data_size_out=20)


def test_loads_from_bytes(counter: Path) -> None:
    with BpfObject.load(counter.read_bytes()) as loaded:
        assert loaded.program("classify").test_run(FRAME).retval == 5


def test_tail_call_through_a_program_array(counter: Path) -> None:
    with BpfObject.load(counter) as loaded:
        loaded.map("jumps").set_fd(1, loaded.program("jumped").fd)
        assert loaded.program("classify").test_run(FRAME).retval == 42
        program_id = struct.pack("I", loaded.program("jumped").id)
        assert loaded.map("jumps").lookup(bytes([1, 0, 0, 0])) == program_id
        assert loaded.map("jumps").keys() == [bytes([1, 0, 0, 0])]
        assert loaded.map("jumps").delete(bytes([1, 0, 0, 0]))
        assert loaded.program("classify").test_run(FRAME).retval == 5


def test_reload_adopts_maps_and_replaces_programs(counter: Path, counter_next: Path, pin_dir: Path) -> None:
    with BpfObject.load(counter, max_entries={"flows": 100}, pin_dir=pin_dir) as first:
        first.map("flows").update(KEY, VALUE)
        flows_id, program_id = first.map("flows").id, first.program("classify").id
    with BpfObject.load(counter_next, max_entries={"flows": 100}, pin_dir=pin_dir) as second:
        assert second.map("flows").id == flows_id
        assert second.map("flows").lookup(KEY) == VALUE
        assert second.program("classify").id != program_id
        with Program.open_pin(pin_dir / "progs" / "classify") as pinned:
            assert pinned.id == second.program("classify").id
            assert pinned.test_run(FRAME).retval == 6


def test_adopts_without_loading(counter: Path, pin_dir: Path) -> None:
    with pytest.raises(NoSuchName, match="nothing is pinned"):
        BpfObject.adopt(pin_dir)
    with BpfObject.load(counter, pin_dir=pin_dir) as loaded:
        ids = {name: loaded.map(name).id for name in ("flows", "counts", "jumps", "events")}
        program_id = loaded.program("classify").id
    with BpfObject.adopt(pin_dir) as adopted:
        assert {name: found.id for name, found in adopted.maps.items()} == ids
        assert adopted.program("classify").id == program_id


def test_same_object_has_the_same_tag(counter: Path, counter_next: Path) -> None:
    with BpfObject.load(counter) as one, BpfObject.load(counter) as two:
        assert one.program("classify").tag == two.program("classify").tag


def test_without_reuse_maps_are_new(counter: Path, pin_dir: Path) -> None:
    with BpfObject.load(counter, pin_dir=pin_dir) as first, \
            BpfObject.load(counter, max_entries={"flows": 99}, pin_dir=pin_dir, reuse=False) as second:
        assert first.map("flows").id != second.map("flows").id
        with BpfMap.open_pin(pin_dir / "maps" / "flows") as pinned:
            assert pinned.id == second.map("flows").id


def test_incompatible_pin_is_named_and_left_alone(counter: Path, pin_dir: Path) -> None:
    with BpfObject.load(counter, max_entries={"flows": 100}, pin_dir=pin_dir) as first:
        flows_id = first.map("flows").id
    with pytest.raises(IncompatiblePin, match=r"map flows: .*max_entries is 100, .* has 200") as raised:
        BpfObject.load(counter, max_entries={"flows": 200}, pin_dir=pin_dir)
    assert raised.value.map_name == "flows"
    assert len(raised.value.differences) == 1
    with BpfMap.open_pin(pin_dir / "maps" / "flows") as pinned:
        assert pinned.id == flows_id


def test_pins_of_removed_names_and_leftovers_go(counter: Path, pin_dir: Path) -> None:
    with BpfObject.load(counter, pin_dir=pin_dir) as first:
        first.program("classify").pin(pin_dir / "progs" / "forgotten")
        first.program("classify").pin(pin_dir / "progs" / "classify~new")
        first.map("flows").pin(pin_dir / "maps" / "forgotten")
    with BpfObject.load(counter, pin_dir=pin_dir):
        assert names(pin_dir / "progs") == ["add", "classify", "jumped"]
        assert names(pin_dir / "maps") == ["counts", "events", "flows", "jumps"]


def test_verifier_refusal_has_the_tail_of_its_log(tmp_path: Path, pin_dir: Path) -> None:
    with pytest.raises(VerifierRejected) as raised:
        BpfObject.load(compile_c(REJECTED, tmp_path), pin_dir=pin_dir)
    assert raised.value.program == "careless"
    assert "load program careless: EACCES" in str(raised.value)
    assert "R0 invalid mem access 'map_value_or_null'" in str(raised.value)
    assert "processed" in raised.value.log[-1]
    assert names(pin_dir / "maps") == [], "maps of an object that was not loaded stay pinned"


def test_object_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "bad.o").write_bytes(b"not an ELF file")
    with pytest.raises(DatapathError, match=r"open BPF object .*bad\.o"):
        BpfObject.load(tmp_path / "bad.o")
    with pytest.raises(DatapathError, match=r"absent\.o.*ENOENT"):
        BpfObject.load(tmp_path / "absent.o")


def test_unknown_names_are_refused(counter: Path) -> None:
    with pytest.raises(NoSuchName, match=r"map flowz: cannot be sized.*flows"):
        BpfObject.load(counter, max_entries={"flowz": 5})
    with BpfObject.load(counter) as loaded:
        with pytest.raises(NoSuchName, match=r"map flowz.*flows"):
            loaded.map("flowz")
        with pytest.raises(NoSuchName, match=r"program classic.*classify"):
            loaded.program("classic")


def test_pin_directory_outside_bpffs_is_refused(counter: Path, tmp_path: Path) -> None:
    with pytest.raises(DatapathError, match=r"not in a BPF file system; mount one"):
        BpfObject.load(counter, pin_dir=tmp_path / "pins")
    assert not (tmp_path / "pins").exists()
