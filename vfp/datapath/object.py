"""An ELF object in the kernel: open, size and pin its maps, load, pin its programs, or adopt what is pinned.

Any step may be the last: a map that was pinned before a crash is adopted by the next load; program pins are
replaced in one step, after everything was loaded. Programs are adopted, too, if the same object with the same sizes
was loaded and all of it is still pinned: the verifier has seen it, and takes seconds.

Maps that libbpf makes for global variables (.rodata,
.data, .bss) belong to one load and are not pinned: what must outlive the process belongs in a declared map.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Self

from vfp.datapath import pins
from vfp.datapath.compat import pinned_differences
from vfp.datapath.errors import IncompatiblePin, NoSuchName, VerifierRejected, kernel_error
from vfp.datapath.libbpf import ObjectOpenOpts, captured_log, check, check_pointer, library, possible_cpus
from vfp.datapath.map import BpfMap, MapFlag
from vfp.datapath.program import Program, TestRun

__all__ = ["BpfMap", "BpfObject", "Program", "TestRun"]

_LOG_BYTES = 16 << 20  # longer logs lose their middle or end; pages are used only by a failed load
_FAILED = re.compile(r"prog '([^']+)': BPF program load failed")


class BpfObject:
    """The maps and programs of one object; owns their descriptors. A context manager.

    Closing leaves what is pinned or attached as it is.
    """

    def __init__(self, name: str, maps: Mapping[str, BpfMap], programs: Mapping[str, Program]) -> None:
        self.name = name
        self.maps = dict(maps)
        self.programs = dict(programs)

    @classmethod
    def load(
        cls,
        source: Path | bytes,
        *,
        max_entries: Mapping[str, int] | None = None,
        map_flags: Mapping[str, int] | None = None,
        pin_dir: Path | None = None,
        reuse: bool = True,
        pin_programs: bool = True,
    ) -> Self:
        """Load an object into the kernel.

        Args:
            source: path of the ELF file, or its contents.
            max_entries: sizes of maps, by name, in place of those in C.
            map_flags: creation flags of maps, by name, in place of those in C.
            pin_dir: directory in a BPF file system; None: nothing is pinned.
            reuse: adopt maps that are pinned already. False: make all maps anew and replace the pins once
                all is loaded (programs that run with the old maps keep them).
            pin_programs: pin programs too; False: call `pin_programs()` when the time has come.

        Raises:
            NoSuchName: `max_entries` or `map_flags` names a map that the object does not have.
            IncompatiblePin: a pinned map differs from what would be made; nothing was changed.
            VerifierRejected: with the tail of the log. Maps that were made and pinned for it are unpinned.
            NotPermitted, KernelRefused, LibraryMissing, DatapathError: as they say.
        """
        name = "object" if isinstance(source, bytes) else source.name.split(".")[0]
        if pin_dir is not None:
            pins.prepare(pin_dir)
        with pins.locked(pin_dir) if pin_dir is not None else nullcontext(), ExitStack() as undo:
            with _opened(source, name) as (handle, log_buffer):
                declared = list(_maps(handle))
                _configure(declared, max_entries or {}, map_flags or {}, name)
                mark = _fingerprint(source, max_entries or {}, map_flags or {})
                whole = pin_programs and all(_outlives(pointer) for _, pointer in declared)
                if pin_dir is not None:
                    if reuse and whole and _is_pinned(pin_dir, mark, declared, [n for n, _ in _programs(handle)]):
                        return cls.adopt(pin_dir)
                    pins.set_fingerprint(pin_dir, "")
                for map_name, pointer in declared:
                    _pin_by_libbpf(handle, map_name, pointer, pin_dir if reuse else None)
                _load(handle, name, log_buffer)
                maps = {
                    map_name: BpfMap(_duplicate(library().bpf_map__fd(pointer), undo), map_name)
                    for map_name, pointer in declared
                }
                programs = {
                    program: Program(_duplicate(library().bpf_program__fd(pointer), undo), program)
                    for program, pointer in _programs(handle)
                }
                pinned = {map_name for map_name, pointer in declared if _outlives(pointer)}
            loaded = cls(name, maps, programs)
            if pin_dir is not None:
                if not reuse:
                    for map_name in pinned:
                        maps[map_name].pin(pin_dir / pins.MAPS / map_name)
                if pin_programs:
                    loaded.pin_programs(pin_dir)
                pins.remove(pin_dir / pins.MAPS, keep=frozenset(pinned))
                if whole:
                    pins.set_fingerprint(pin_dir, mark)
            undo.pop_all()
            return loaded

    @classmethod
    def adopt(cls, pin_dir: Path) -> Self:
        """What is pinned in `pin_dir`, without loading anything.

        Raises:
            NoSuchName: nothing is pinned there.
        """
        with ExitStack() as undo:
            maps = {name: undo.enter_context(BpfMap.open_pin(pin_dir / pins.MAPS / name))
                    for name in pins.names(pin_dir / pins.MAPS)}
            programs = {name: undo.enter_context(Program.open_pin(pin_dir / pins.PROGS / name))
                        for name in pins.names(pin_dir / pins.PROGS)}
            if not maps and not programs:
                raise NoSuchName(f"adopt {pin_dir}: nothing is pinned there; load an object first")
            undo.pop_all()
        return cls(pin_dir.name, maps, programs)

    @staticmethod
    def unpin(pin_dir: Path) -> None:
        """Remove every pin of `pin_dir` and the directory. Idempotent. Attached programs go on."""
        pins.remove_all(pin_dir)

    def pin_programs(self, pin_dir: Path) -> None:
        """Pin every program at progs/NAME, each in place of the old one in one step; drop pins of others."""
        for name, program in self.programs.items():
            program.pin(pin_dir / pins.PROGS / name)
        pins.remove(pin_dir / pins.PROGS, keep=frozenset(self.programs))

    def map(self, name: str) -> BpfMap:
        """The map `name`.

        Raises:
            NoSuchName: there is none.
        """
        if name not in self.maps:
            raise NoSuchName(f"map {name}: not in {self.name}, which has {_listed(self.maps)}")
        return self.maps[name]

    def program(self, name: str) -> Program:
        """The program `name`.

        Raises:
            NoSuchName: there is none.
        """
        if name not in self.programs:
            raise NoSuchName(f"program {name}: not in {self.name}, which has {_listed(self.programs)}")
        return self.programs[name]

    def close(self) -> None:
        """Close every descriptor. Idempotent."""
        for owned_map in self.maps.values():
            owned_map.close()
        for program in self.programs.values():
            program.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _fingerprint(source: Path | bytes, max_entries: Mapping[str, int], map_flags: Mapping[str, int]) -> str:
    """Of what decides about maps and programs: the object and their sizes and flags."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    sizes = repr((sorted(max_entries.items()), sorted(map_flags.items()), possible_cpus()))
    return blake2b(sizes.encode() + b"\0" + content, digest_size=20).hexdigest()


def _is_pinned(pin_dir: Path, mark: str, declared: Sequence[tuple[str, int]], programs: Sequence[str]) -> bool:
    """Whether the very load that is asked for is there, whole."""
    return (
        pins.fingerprint(pin_dir) == mark
        and pins.names(pin_dir / pins.MAPS) == sorted(name for name, _ in declared)
        and pins.names(pin_dir / pins.PROGS) == sorted(programs)
    )


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[tuple[int, mmap.mmap]]:
    """A struct bpf_object and the buffer that gets the verifier's log."""
    lib = library()
    log_buffer = mmap.mmap(-1, _LOG_BYTES)
    view = ctypes.c_char.from_buffer(log_buffer)
    opts = ObjectOpenOpts(
        sz=ctypes.sizeof(ObjectOpenOpts), object_name=name.encode(),
        kernel_log_buf=ctypes.addressof(view), kernel_log_size=_LOG_BYTES,
    )
    try:
        with captured_log() as log:
            if isinstance(source, bytes):
                handle = lib.bpf_object__open_mem(source, len(source), ctypes.byref(opts))
            else:
                handle = lib.bpf_object__open_file(os.fsencode(source), ctypes.byref(opts))
            check_pointer(handle, f"open BPF object {name if isinstance(source, bytes) else source}", log)
        try:
            yield handle, log_buffer
        finally:
            lib.bpf_object__close(handle)
    finally:
        del view  # a buffer that is looked at cannot be closed
        log_buffer.close()


def _maps(handle: int) -> Iterator[tuple[str, int]]:
    pointer = library().bpf_object__next_map(handle, None)
    while pointer:
        yield library().bpf_map__name(pointer).decode(), pointer
        pointer = library().bpf_object__next_map(handle, pointer)


def _programs(handle: int) -> Iterator[tuple[str, int]]:
    pointer = library().bpf_object__next_program(handle, None)
    while pointer:
        if library().bpf_program__autoload(pointer):
            yield library().bpf_program__name(pointer).decode(), pointer
        pointer = library().bpf_object__next_program(handle, pointer)


def _outlives(pointer: int) -> bool:
    """Whether a map is pinned: all but those of global variables."""
    return not library().bpf_map__is_internal(pointer)


def _configure(
    declared: Sequence[tuple[str, int]],
    max_entries: Mapping[str, int],
    map_flags: Mapping[str, int],
    name: str,
) -> None:
    """Set sizes and flags before the maps are made."""
    lib = library()
    known = dict(declared)
    for unknown in sorted((set(max_entries) | set(map_flags)) - set(known)):
        raise NoSuchName(f"map {unknown}: cannot be sized, {name} does not have it; it has {_listed(known)}")
    for map_name, flags in map_flags.items():
        check(lib.bpf_map__set_map_flags(known[map_name], flags), f"set flags {flags:#x} of map {map_name}")
    for map_name, entries in max_entries.items():
        pointer = known[map_name]
        if lib.bpf_map__map_flags(pointer) & MapFlag.NO_COMMON_LRU:
            # The kernel rounds up to a multiple of the CPUs; asking for that makes the pinned map the same.
            entries = -(-entries // possible_cpus()) * possible_cpus()
        check(lib.bpf_map__set_max_entries(pointer, entries), f"set max_entries {entries} of map {map_name}")


def _pin_by_libbpf(handle: int, map_name: str, pointer: int, pin_dir: Path | None) -> None:
    """Tell libbpf where a map is pinned, which makes it adopt or pin. No directory: undo what C declared."""
    lib = library()
    if pin_dir is None or not _outlives(pointer):
        check(lib.bpf_map__set_pin_path(pointer, None), f"set no pin for map {map_name}")
        return
    path = pin_dir / pins.MAPS / map_name
    if path.exists():
        with BpfMap.open_pin(path) as pinned:
            if differences := pinned_differences(pinned, handle, pointer):
                raise IncompatiblePin(map_name, str(path), differences)
    check(lib.bpf_map__set_pin_path(pointer, os.fsencode(path)), f"set pin of map {map_name}")


def _load(handle: int, name: str, log_buffer: mmap.mmap) -> None:
    """bpf_object__load, and what went wrong."""
    with captured_log() as log:
        result = library().bpf_object__load(handle)
    if result >= 0:
        return
    verifier = log_buffer[: max(log_buffer.find(b"\0"), 0)].decode(errors="replace").splitlines()
    failed = next((match[1] for line in log if (match := _FAILED.search(line))), "")
    if failed and verifier:
        raise VerifierRejected(-result, failed, verifier)
    raise kernel_error(-result, f"load BPF object {name}", tuple(log))


def _duplicate(fd: int, undo: ExitStack) -> int:
    """A descriptor of our own, closed if the rest fails; libbpf closes its own with the object."""
    own = os.dup(check(fd, "take a descriptor from libbpf"))
    undo.callback(os.close, own)
    return own


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"
