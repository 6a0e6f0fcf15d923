"""A loaded program: its identity, and running it on bytes (BPF_PROG_TEST_RUN)."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from vfp.datapath import pins
from vfp.datapath.libbpf import TestRunOpts, check, library, prog_info

__all__ = ["ProgType", "Program", "TestRun"]

_HEADROOM = 256  # what a program may add in front of or behind the packet by default


class ProgType(IntEnum):
    """enum bpf_prog_type, as far as this package names them."""

    SOCKET_FILTER = 1
    SCHED_CLS = 3
    SCHED_ACT = 4
    XDP = 6
    SYSCALL = 31


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a test run gave. `duration_ns` is the mean of one run; `data`, `ctx` as the program left them."""

    __test__ = False

    retval: int
    duration_ns: int
    data: bytes
    ctx: bytes


class Program:
    """Owns one program file descriptor; a context manager.

    Attributes:
        name: as in C, or the kernel's 15 characters of it when opened by descriptor only.
        id: the kernel's, unique while the host is up.
        type: ProgType, or the plain number.
        tag: hex digest of the instructions: two loads of the same object have the same tag.
        instructions: what the verifier walked through.
    """

    def __init__(self, fd: int, name: str = "") -> None:
        self._fd = fd
        info = prog_info(fd)
        self.name = name or info.name.decode()
        self.id = int(info.id)
        self.type = int(info.type)
        self.tag = bytes(info.tag).hex()
        self.jited = info.jited_prog_len > 0
        self.instructions = int(info.verified_insns)

    @classmethod
    def open_pin(cls, path: Path) -> Self:
        """The program pinned at `path`."""
        return cls(pins.get(path), path.name)

    @property
    def fd(self) -> int:
        """The descriptor; stays this object's. -1 after `close()`."""
        return self._fd

    def pin(self, path: Path) -> None:
        """Pin at `path`, in place of what was there, in one step."""
        pins.replace(self._fd, path)

    def test_run(
        self,
        data: bytes = b"",
        *,
        ctx: bytes | None = None,
        repeat: int = 1,
        data_size_out: int | None = None,
    ) -> TestRun:
        """Run on `data`, `repeat` times.

        Args:
            data: the packet, from the Ethernet header on, at least 14 bytes. Empty for SEC("syscall").
            ctx: bytes of the context struct (struct __sk_buff for tc, whose other fields than mark, priority,
                ifindex, ingress_ifindex, cb, tstamp, wire_len, gso_* must be 0; any struct for syscall).
            repeat: runs; each starts from what the one before left, so time a program that changes nothing.
            data_size_out: room for the packet afterwards; default 256 bytes more than it had.

        Raises:
            KernelRefused: ENOSPC when the packet outgrew `data_size_out`; EINVAL for a context with fields
                that the kernel does not take, or data shorter than an Ethernet header.
        """
        opts = TestRunOpts(sz=ctypes.sizeof(TestRunOpts))
        ctx_buffer = ctypes.create_string_buffer(ctx, len(ctx)) if ctx is not None else None
        if ctx_buffer is not None:
            opts.ctx_in, opts.ctx_size_in = ctypes.addressof(ctx_buffer), len(ctx_buffer)
        out: ctypes.Array[ctypes.c_char] | None = None
        if self.type != ProgType.SYSCALL:  # which takes a context only, and writes back to it
            room = len(data) + _HEADROOM if data_size_out is None else data_size_out
            out = ctypes.create_string_buffer(room)
            opts.data_in = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p)
            opts.data_size_in = len(data)
            opts.data_out, opts.data_size_out = ctypes.addressof(out), len(out)
            opts.repeat = repeat
            if ctx_buffer is not None:
                opts.ctx_out, opts.ctx_size_out = opts.ctx_in, opts.ctx_size_in
        check(library().bpf_prog_test_run_opts(self._fd, ctypes.byref(opts)), f"test-run program {self.name}")
        return TestRun(
            retval=int(opts.retval),
            duration_ns=int(opts.duration),
            data=out.raw[: opts.data_size_out] if out is not None else b"",
            ctx=ctx_buffer.raw if ctx_buffer is not None else b"",
        )

    def close(self) -> None:
        """Close the descriptor; a pinned or attached program stays. Idempotent."""
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
        return f"<Program {self.name} id {self.id}>"
