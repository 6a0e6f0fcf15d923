"""libbpf.so.1 by ctypes: prototypes, the structs they take, its log, and errno to exception.

The only place that knows C signatures. Declarations follow <bpf/bpf.h>, <bpf/libbpf.h> and <bpf/btf.h> of
libbpf 1.1; later 1.x versions are compatible, since every options struct carries its size.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_bool,
    c_char,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_ubyte,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

from vfp.datapath.errors import LibraryMissing, kernel_error

__all__ = [
    "RING_SAMPLE",
    "BatchOpts",
    "MapCreateOpts",
    "MapInfo",
    "ObjectOpenOpts",
    "ProgInfo",
    "ProgLoadOpts",
    "TestRunOpts",
    "captured_log",
    "check",
    "check_pointer",
    "library",
    "map_info",
    "possible_cpus",
    "prog_info",
]

LIBRARY = "libbpf.so.1"

_LOG_LINES = 200           # what one call can leave behind; the tail tells
_MESSAGE_BYTES = 16384     # longest message kept; verifier logs come by a buffer of our own, not by messages
_LEVEL_INFO = 1            # enum libbpf_print_level: WARN 0, INFO 1, DEBUG 2

_PRINT = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
RING_SAMPLE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)


class MapInfo(ctypes.Structure):
    """struct bpf_map_info."""

    _fields_ = (
        ("type", c_uint32), ("id", c_uint32), ("key_size", c_uint32), ("value_size", c_uint32),
        ("max_entries", c_uint32), ("map_flags", c_uint32), ("name", c_char * 16), ("ifindex", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32), ("netns_dev", c_uint64), ("netns_ino", c_uint64),
        ("btf_id", c_uint32), ("btf_key_type_id", c_uint32), ("btf_value_type_id", c_uint32),
        ("_pad", c_uint32), ("map_extra", c_uint64),
    )


class ProgInfo(ctypes.Structure):
    """struct bpf_prog_info, up to `verified_insns`."""

    _fields_ = (
        ("type", c_uint32), ("id", c_uint32), ("tag", c_ubyte * 8), ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32), ("jited_prog_insns", c_uint64), ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64), ("created_by_uid", c_uint32), ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64), ("name", c_char * 16), ("ifindex", c_uint32), ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64), ("netns_ino", c_uint64), ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32), ("jited_ksyms", c_uint64), ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32), ("func_info_rec_size", c_uint32), ("func_info", c_uint64),
        ("nr_func_info", c_uint32), ("nr_line_info", c_uint32), ("line_info", c_uint64),
        ("jited_line_info", c_uint64), ("nr_jited_line_info", c_uint32), ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32), ("nr_prog_tags", c_uint32), ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64), ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64), ("verified_insns", c_uint32),
    )


class ObjectOpenOpts(ctypes.Structure):
    """struct bpf_object_open_opts."""

    _fields_ = (
        ("sz", c_size_t), ("object_name", c_char_p), ("relaxed_maps", c_bool), ("pin_root_path", c_char_p),
        ("_unused", c_uint32), ("kconfig", c_char_p), ("btf_custom_path", c_char_p),
        ("kernel_log_buf", c_void_p), ("kernel_log_size", c_size_t), ("kernel_log_level", c_uint32),
    )


class MapCreateOpts(ctypes.Structure):
    """struct bpf_map_create_opts."""

    _fields_ = (
        ("sz", c_size_t), ("btf_fd", c_uint32), ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32), ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32), ("map_flags", c_uint32), ("map_extra", c_uint64),
        ("numa_node", c_uint32), ("map_ifindex", c_uint32),
    )


class ProgLoadOpts(ctypes.Structure):
    """struct bpf_prog_load_opts, up to `attempts`; the rest is zero for libbpf when `sz` ends here."""

    _fields_ = (("sz", c_size_t), ("attempts", c_int), ("expected_attach_type", c_uint32))


class BatchOpts(ctypes.Structure):
    """struct bpf_map_batch_opts."""

    _fields_ = (("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64))


class TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts."""

    __test__ = False  # the name starts with Test, and pytest collects by name

    _fields_ = (
        ("sz", c_size_t), ("data_in", c_void_p), ("data_out", c_void_p), ("data_size_in", c_uint32),
        ("data_size_out", c_uint32), ("ctx_in", c_void_p), ("ctx_out", c_void_p), ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32), ("retval", c_uint32), ("repeat", c_int), ("duration", c_uint32),
        ("flags", c_uint32), ("cpu", c_uint32), ("batch_size", c_uint32),
    )


_U32_P = POINTER(c_uint32)
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    # objects, maps and programs of an ELF file
    "libbpf_set_print": (c_void_p, (_PRINT,)),
    "libbpf_version_string": (c_char_p, ()),
    "libbpf_num_possible_cpus": (c_int, ()),
    "bpf_object__open_file": (c_void_p, (c_char_p, POINTER(ObjectOpenOpts))),
    "bpf_object__open_mem": (c_void_p, (c_void_p, c_size_t, POINTER(ObjectOpenOpts))),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__btf": (c_void_p, (c_void_p,)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__type": (c_uint32, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__max_entries": (c_uint32, (c_void_p,)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__map_flags": (c_uint32, (c_void_p,)),
    "bpf_map__set_map_flags": (c_int, (c_void_p, c_uint32)),
    "bpf_map__map_extra": (c_uint64, (c_void_p,)),
    "bpf_map__btf_key_type_id": (c_uint32, (c_void_p,)),
    "bpf_map__btf_value_type_id": (c_uint32, (c_void_p,)),
    "bpf_map__is_internal": (c_bool, (c_void_p,)),
    "bpf_map__set_pin_path": (c_int, (c_void_p, c_char_p)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__autoload": (c_bool, (c_void_p,)),
    # system calls
    "bpf_obj_pin": (c_int, (c_int, c_char_p)),
    "bpf_obj_get": (c_int, (c_char_p,)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, _U32_P)),
    "bpf_map_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_prog_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_map_create": (c_int, (c_uint32, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(MapCreateOpts))),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_map_get_next_key": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_lookup_batch": (
        c_int, (c_int, c_void_p, c_void_p, c_void_p, c_void_p, _U32_P, POINTER(BatchOpts))),
    "bpf_map_update_batch": (c_int, (c_int, c_void_p, c_void_p, _U32_P, POINTER(BatchOpts))),
    "bpf_map_delete_batch": (c_int, (c_int, c_void_p, _U32_P, POINTER(BatchOpts))),
    "bpf_prog_load": (c_int, (c_uint32, c_char_p, c_char_p, c_void_p, c_size_t, POINTER(ProgLoadOpts))),
    "bpf_prog_test_run_opts": (c_int, (c_int, POINTER(TestRunOpts))),
    # ring buffer
    "ring_buffer__new": (c_void_p, (c_int, RING_SAMPLE, c_void_p, c_void_p)),
    "ring_buffer__free": (None, (c_void_p,)),
    "ring_buffer__consume": (c_int, (c_void_p,)),
    "ring_buffer__epoll_fd": (c_int, (c_void_p,)),
    # types
    "btf__parse": (c_void_p, (c_char_p, c_void_p)),
    "btf__load_from_kernel_by_id": (c_void_p, (c_uint32,)),
    "btf__free": (None, (c_void_p,)),
    "btf__find_by_name_kind": (c_int32, (c_void_p, c_char_p, c_uint32)),
    "btf__type_by_id": (c_void_p, (c_void_p, c_uint32)),
    "btf__name_by_offset": (c_char_p, (c_void_p, c_uint32)),
    "btf__resolve_size": (c_int64, (c_void_p, c_uint32)),
    "btf__resolve_type": (c_int, (c_void_p, c_uint32)),
    # features
    "libbpf_probe_bpf_prog_type": (c_int, (c_uint32, c_void_p)),
    "libbpf_probe_bpf_map_type": (c_int, (c_uint32, c_void_p)),
    "libbpf_probe_bpf_helper": (c_int, (c_uint32, c_uint32, c_void_p)),
}


class _Capture(threading.local):
    """Lines that libbpf printed in this thread, which is the one that called it; None: nobody listens."""

    lines: deque[str] | None = None


_capture = _Capture()


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf with its prototypes set and its messages caught.

    Raises:
        LibraryMissing: libbpf.so.1 cannot be loaded.
    """
    try:
        lib = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError as error:
        raise LibraryMissing(
            f"load {LIBRARY}: {error}; install libbpf 1.x (Debian, Ubuntu: apt install libbpf1)"
        ) from error
    for name, (result, arguments) in _PROTOTYPES.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise LibraryMissing(
                f"{LIBRARY} has no {name}: it is older than 1.1; install a later one (apt install libbpf1)"
            ) from None
        function.restype, function.argtypes = result, arguments
    lib.libbpf_set_print(_print_callback)
    return lib


def _print(level: int, template: bytes, arguments: int) -> int:
    """libbpf_print_fn_t. `arguments` is a va_list; a pointer in both the x86-64 and the AArch64 ABI."""
    lines = _capture.lines
    if lines is None or level > _LEVEL_INFO:
        return 0
    buffer = ctypes.create_string_buffer(_MESSAGE_BYTES)
    _vsnprintf()(buffer, _MESSAGE_BYTES, template, arguments)
    lines.extend(line for line in buffer.value.decode(errors="replace").splitlines() if line.strip())
    return 0


_print_callback = _PRINT(_print)  # libbpf keeps the pointer: it must live as long as the process


@functools.cache
def _vsnprintf() -> Any:
    function = ctypes.CDLL(None).vsnprintf
    function.restype, function.argtypes = c_int, (c_void_p, c_size_t, c_char_p, c_void_p)
    return function


@contextmanager
def captured_log() -> Iterator[deque[str]]:
    """Collect what libbpf warns of in this thread, inside the block; the last 200 lines."""
    before = _capture.lines
    lines: deque[str] = deque(maxlen=_LOG_LINES)
    _capture.lines = lines
    try:
        yield lines
    finally:
        _capture.lines = before


def check(result: int, asked: str) -> int:
    """Pass a libbpf result on; a negative one is -errno.

    Raises:
        KernelRefused: or a subclass, by errno.
    """
    if result < 0:
        raise kernel_error(-result, asked)
    return result


def check_pointer(pointer: int | None, asked: str, log: deque[str] | None = None) -> int:
    """Pass a libbpf pointer on; NULL leaves errno.

    Raises:
        KernelRefused: or a subclass, by errno.
    """
    if not pointer:
        raise kernel_error(ctypes.get_errno(), asked, tuple(log or ()))
    return pointer


def map_info(fd: int) -> MapInfo:
    """What the kernel knows of a map."""
    info = MapInfo()
    _info(fd, info, f"read info of map fd {fd}")
    return info


def prog_info(fd: int) -> ProgInfo:
    """What the kernel knows of a program."""
    info = ProgInfo()
    _info(fd, info, f"read info of program fd {fd}")
    return info


def _info(fd: int, info: ctypes.Structure, asked: str) -> None:
    size = c_uint32(ctypes.sizeof(info))
    check(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)), asked)


@functools.cache
def possible_cpus() -> int:
    """How many values a per-CPU map has for each key: CPUs that may ever come up, not those that are."""
    return check(library().libbpf_num_possible_cpus(), "count possible CPUs")
