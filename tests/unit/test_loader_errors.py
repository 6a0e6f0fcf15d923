"""What the loader says when something is missing or refused; needs no root."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator

import pytest

from vfp.datapath import libbpf
from vfp.datapath.errors import (
    ENOTSUPP,
    DatapathError,
    IncompatiblePin,
    KernelRefused,
    LibraryMissing,
    NotPermitted,
    NotSupported,
    VerifierRejected,
    errno_name,
    kernel_error,
)


@pytest.fixture
def no_library_yet() -> Iterator[None]:
    libbpf.library.cache_clear()
    yield
    libbpf.library.cache_clear()


@pytest.mark.usefixtures("no_library_yet")
def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "LIBRARY", "libbpf-absent.so.1")
    with pytest.raises(LibraryMissing, match=r"load libbpf-absent\.so\.1: .*apt install libbpf1"):
        libbpf.library()


@pytest.mark.usefixtures("no_library_yet")
def test_library_without_a_function_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "LIBRARY", "libc.so.6")
    with pytest.raises(LibraryMissing, match=r"has no libbpf_set_print: it is older than 1\.1"):
        libbpf.library()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EPERM, NotPermitted, "EPERM (Operation not permitted); run as root, or with CAP_BPF"),
        (errno.E2BIG, KernelRefused, "raise max_entries"),
        (errno.EINVAL, KernelRefused, "EINVAL (Invalid argument)"),
        (errno.EOPNOTSUPP, NotSupported, "EOPNOTSUPP"),
        (ENOTSUPP, NotSupported, "ENOTSUPP"),
        (4005, KernelRefused, "LIBBPF_ERRNO__RELOC"),
        (9999, KernelRefused, "errno 9999"),
    ],
)
def test_errors_say_what_was_asked_and_what_to_do(number: int, kind: type[KernelRefused], words: str) -> None:
    error = kernel_error(number, "update map flows")
    assert type(error) is kind
    assert isinstance(error, DatapathError)
    assert str(error).startswith("update map flows: ")
    assert words in str(error)
    assert error.errno == number


def test_errors_carry_the_log() -> None:
    assert str(kernel_error(errno.EINVAL, "load x", ["one", "two"])).endswith("\n  one\n  two")


def test_verifier_log_is_whole_but_its_tail_is_shown() -> None:
    error = VerifierRejected(errno.EACCES, "slow", [f"line {number}" for number in range(100)])
    assert len(error.log) == 100
    assert "line 99" in str(error)
    assert "line 59" not in str(error)


def test_incompatible_pin_names_map_and_differences() -> None:
    error = IncompatiblePin("flows", "/sys/fs/bpf/x/maps/flows", ["max_entries is 1, the object has 2"])
    assert "map flows" in str(error)
    assert "max_entries is 1, the object has 2" in str(error)


def test_struct_sizes_are_those_of_libbpf_1_1() -> None:
    sizes = {
        libbpf.MapInfo: 88, libbpf.ProgInfo: 224, libbpf.ObjectOpenOpts: 80, libbpf.MapCreateOpts: 48,
        libbpf.BatchOpts: 24, libbpf.TestRunOpts: 80,
    }
    assert {struct: ctypes.sizeof(struct) for struct in sizes} == sizes


def test_messages_are_kept_only_inside_a_capture() -> None:
    library = libbpf.library()
    with libbpf.captured_log() as log:
        assert not library.bpf_object__open_file(b"/nonexistent.o", None)
        outside = list(log)
        with libbpf.captured_log() as inner:
            assert not library.bpf_object__open_file(b"/other.o", None)
        assert list(log) == outside
    library.bpf_object__open_file(b"/third.o", None)
    assert any("/nonexistent.o" in line for line in log)
    assert any("/other.o" in line for line in inner)
    assert not any("/third.o" in line for line in (*log, *inner))
    assert errno_name(errno.ENOENT) == "ENOENT (No such file or directory)"
