"""Pins outlive processes: crashes at any step, replacement that readers do not see, layouts that changed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loader_kit import COUNTER, FRAME, HEADER, compile_c, names, open_files

from vfp.datapath import pins
from vfp.datapath.errors import IncompatiblePin
from vfp.datapath.map import BpfMap
from vfp.datapath.object import BpfObject
from vfp.datapath.program import Program

KEY, VALUE = bytes(range(12)), bytes(range(16))
MAPS = ["counts", "events", "flows", "jumps"]
PROGS = ["add", "classify", "jumped"]

LAYOUTS = HEADER + """
struct place { __u32 vtep; __u32 vni; };
struct table_value { __u64 packets; FIELDS __u32 pad1; };
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 16);
         __type(key, __u32); __type(value, struct table_value); } table SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_LRU_HASH); __uint(max_entries, 16); __uint(map_flags, BPF_F_NO_COMMON_LRU);
         __type(key, __u32); __type(value, __u32); } recent SEC(".maps");
"""


WITHOUT_GLOBALS = HEADER + """
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 16);
         __type(key, __u32); __type(value, __u32); } seen SEC(".maps");
SEC("tc") int classify(struct __sk_buff *skb)
{
	__u32 key = 1;

	return bpf_map_lookup_elem(&seen, &key) ? 0 : VERDICT;
}
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions; the programs answer 5 and 6."""
    old, new = (tmp_path_factory.mktemp("loader") for _ in range(2))
    return compile_c(COUNTER, old, "counter", VERDICT=5), compile_c(COUNTER, new, "counter", VERDICT=6)


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    path = Path(f"/sys/fs/bpf/loader-test-{os.getpid()}")
    before = open_files()
    yield path
    BpfObject.unpin(path)
    assert not path.exists()
    assert open_files() == before, "a file descriptor was leaked"


def in_child(work: Callable[[], None]) -> int:
    """Run in a process of its own, which ends without cleaning up; its status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process end at the n-th step that touches the pins: before and after each pin and each rename."""
    count = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count > step:
                os._exit(9)
            return real(*arguments, **named)
        return call

    monkeypatch.setattr(pins, "check", counted(pins.check))
    monkeypatch.setattr(pins, "remove", counted(pins.remove))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))


@pytest.mark.parametrize("reuse", [True, False])
def test_a_load_that_dies_at_any_step_is_completed_by_the_next(
    objects: tuple[Path, Path], pin_dir: Path, reuse: bool
) -> None:
    old, new = objects

    def dying(step: int) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            dying_at(step, monkeypatch)
            BpfObject.load(new, pin_dir=pin_dir, reuse=reuse)

    deaths = 0
    for step in range(100):
        with BpfObject.load(old, pin_dir=pin_dir) as first:
            first.map("flows").update(KEY, VALUE)
            flows_id = first.map("flows").id
        status = in_child(lambda step=step: dying(step))  # type: ignore[misc]
        assert status in (0, 9)
        deaths += status == 9
        assert set(MAPS) <= set(names(pin_dir / "maps")), "at no time is a pin missing"
        assert set(PROGS) <= set(names(pin_dir / "progs"))
        with BpfObject.adopt(pin_dir) as adopted:
            assert sorted(adopted.maps) == MAPS
            assert sorted(adopted.programs) == PROGS
            assert adopted.program("classify").test_run(FRAME).retval in (5, 6)
        with BpfObject.load(new, pin_dir=pin_dir) as second:
            if reuse:
                assert second.map("flows").id == flows_id
                assert second.map("flows").lookup(KEY) == VALUE
        assert (names(pin_dir / "maps"), names(pin_dir / "progs")) == (MAPS, PROGS), "leftovers stay"
        if status == 0:
            break
    assert status == 0
    assert deaths > 8, "there were steps to die at"


def test_a_first_load_that_dies_at_any_step_is_completed_by_the_next(
    objects: tuple[Path, Path], pin_dir: Path
) -> None:
    def dying(step: int) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            dying_at(step, monkeypatch)
            BpfObject.load(objects[0], pin_dir=pin_dir)

    for step in range(100):
        BpfObject.unpin(pin_dir)
        status = in_child(lambda step=step: dying(step))  # type: ignore[misc]
        assert status in (0, 9)
        BpfObject.load(objects[0], pin_dir=pin_dir).close()
        assert (names(pin_dir / "maps"), names(pin_dir / "progs")) == (MAPS, PROGS)
        if status == 0:
            break
    assert status == 0
    assert step > 8, "there were steps to die at"


def test_maps_outlive_the_process_that_made_them(objects: tuple[Path, Path], pin_dir: Path) -> None:
    def make() -> None:
        BpfObject.load(objects[0], pin_dir=pin_dir).map("flows").update(KEY, VALUE)

    assert in_child(make) == 0
    with BpfObject.load(objects[1], pin_dir=pin_dir) as loaded:
        assert loaded.map("flows").lookup(KEY) == VALUE


def test_readers_always_find_a_program_while_it_is_replaced(objects: tuple[Path, Path], pin_dir: Path) -> None:
    stop = threading.Event()
    seen: set[int] = set()
    failures: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                with Program.open_pin(pin_dir / "progs" / "classify") as program:
                    seen.add(program.id)
            except Exception as error:
                failures.append(error)
                return

    with BpfObject.load(objects[0], pin_dir=pin_dir) as old, BpfObject.load(objects[1], pin_dir=pin_dir) as new:
        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(500):
            old.pin_programs(pin_dir)
            new.pin_programs(pin_dir)
        stop.set()
        reader.join()
        assert failures == []
        assert seen == {old.program("classify").id, new.program("classify").id}


def test_loads_of_several_processes_wait_for_each_other(objects: tuple[Path, Path], pin_dir: Path) -> None:
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                BpfObject.load(objects[0], pin_dir=pin_dir)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert (names(pin_dir / "maps"), names(pin_dir / "progs")) == (MAPS, PROGS)


def ids(loaded: BpfObject) -> tuple[list[str], list[str]]:
    """The kernel's numbers of maps and of programs."""
    return tuple(  # type: ignore[return-value]
        [line for owned in owners.values() for line in Path(f"/proc/self/fdinfo/{owned.fd}").read_text().splitlines()
         if line.startswith(("map_id", "prog_id"))]
        for owners in (loaded.maps, loaded.programs)
    )


def test_the_same_load_again_adopts_programs_without_the_verifier(tmp_path: Path, pin_dir: Path) -> None:
    objects = [compile_c(WITHOUT_GLOBALS, tmp_path, f"plain{verdict}", VERDICT=verdict) for verdict in (5, 6)]

    def load(number: int = 0) -> tuple[list[str], list[str]]:
        with BpfObject.load(objects[number], pin_dir=pin_dir) as loaded:
            assert loaded.program("classify").test_run(FRAME).retval == 5 + number
            return ids(loaded)

    maps, programs = load()
    assert load() == (maps, programs)
    assert load(1)[1] != programs, "another object"
    back = load()
    assert back[0] == maps, "maps are adopted always"
    assert back[1] != programs, "and back again"
    (pin_dir / "progs" / "classify").unlink()
    mended = load()
    assert mended[1] != back[1], "a pin was missing"
    pins.set_fingerprint(pin_dir, "")
    assert load()[1] != mended[1], "a load was cut short"


def test_unpin_is_idempotent_and_leaves_users_alone(objects: tuple[Path, Path], pin_dir: Path) -> None:
    with BpfObject.load(objects[0], pin_dir=pin_dir) as loaded:
        BpfObject.unpin(pin_dir)
        BpfObject.unpin(pin_dir)
        assert not pin_dir.exists()
        assert loaded.program("classify").test_run(FRAME).retval == 5


def test_a_field_that_moved_within_the_same_size_is_incompatible(tmp_path: Path, pin_dir: Path) -> None:
    old = compile_c(LAYOUTS.replace("FIELDS", "__u32 age; struct place to;"), tmp_path, "layouts")
    new = compile_c(
        LAYOUTS.replace("FIELDS", "__u32 mark; struct place to;").replace("vtep; __u32 vni;", "vni; __u32 vtep;"),
        tmp_path, "changed",
    )
    BpfObject.load(old, pin_dir=pin_dir).close()
    BpfObject.load(old, pin_dir=pin_dir).close()
    with pytest.raises(IncompatiblePin) as raised:
        BpfObject.load(new, pin_dir=pin_dir)
    assert raised.value.differences == (
        "value.age is 4 bytes at 8, in the object absent",
        "value.mark is absent, in the object 4 bytes at 8",
        "value.to.vni is 4 bytes at 4, in the object 4 bytes at 0",
        "value.to.vtep is 4 bytes at 0, in the object 4 bytes at 4",
    )


def test_padding_may_be_named_anew(tmp_path: Path, pin_dir: Path) -> None:
    old = compile_c(LAYOUTS.replace("FIELDS", "__u32 age;"), tmp_path, "layouts")
    new = compile_c(LAYOUTS.replace("FIELDS", "__u32 age;").replace("pad1", "pad2"), tmp_path, "changed")
    with BpfObject.load(old, pin_dir=pin_dir) as first, BpfObject.load(new, pin_dir=pin_dir) as second:
        assert first.map("table").id == second.map("table").id


def test_sizes_that_the_kernel_rounds_are_adopted(tmp_path: Path, pin_dir: Path) -> None:
    source = compile_c(LAYOUTS.replace("FIELDS", "__u32 age;"), tmp_path, "layouts")
    with BpfObject.load(source, max_entries={"recent": 1001}, pin_dir=pin_dir) as first, \
            BpfObject.load(source, max_entries={"recent": 1001}, pin_dir=pin_dir) as second:
        assert first.map("recent").id == second.map("recent").id


def test_all_that_differs_is_named(tmp_path: Path, pin_dir: Path) -> None:
    old = compile_c(LAYOUTS.replace("FIELDS", "__u32 age;"), tmp_path, "layouts")
    new = compile_c(
        LAYOUTS.replace("FIELDS", "__u32 age; __u64 more;").replace("_LRU_HASH", "_LRU_PERCPU_HASH"), tmp_path, "new"
    )
    BpfObject.load(old, pin_dir=pin_dir).close()
    with BpfMap.open_pin(pin_dir / "maps" / "table") as pinned:
        before = pinned.id
    with pytest.raises(IncompatiblePin, match=r"map table: .*value_size is 16, the object has 32"):
        BpfObject.load(new, pin_dir=pin_dir)
    (pin_dir / "maps" / "table").rename(pin_dir / "maps" / "kept")
    with pytest.raises(IncompatiblePin, match=r"map recent: .*type is lru_hash, the object has lru_percpu_hash"):
        BpfObject.load(new, pin_dir=pin_dir, max_entries={"recent": 16})
    with BpfMap.open_pin(pin_dir / "maps" / "kept") as pinned:
        assert pinned.id == before
