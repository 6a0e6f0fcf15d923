"""What can go wrong between Python and the kernel's BPF, as one exception tree."""

from __future__ import annotations

import errno as errno_module
import os
from collections.abc import Sequence

__all__ = [
    "ENOTSUPP",
    "DatapathError",
    "IncompatiblePin",
    "KernelRefused",
    "LayoutError",
    "LibraryMissing",
    "NoSuchName",
    "NotPermitted",
    "NotSupported",
    "VerifierRejected",
    "errno_name",
    "kernel_error",
]

ENOTSUPP = 524
"""The kernel's own "not supported"; it leaks to user space from BPF batch calls and has no name in libc."""

_LIBBPF_NAMES = (
    "LIBELF", "FORMAT", "KVERSION", "ENDIAN", "INTERNAL", "RELOC", "LOAD", "VERIFY", "PROG2BIG", "KVER",
    "PROGTYPE", "WRNGPID", "INVSEQ", "NLPARSE",
)  # enum libbpf_errno of bpf/libbpf.h, from 4000 on
_LIBBPF_FIRST = 4000

_NOT_PERMITTED_TODO = "run as root, or with CAP_BPF and CAP_NET_ADMIN"
_TODO = {
    errno_module.EPERM: _NOT_PERMITTED_TODO,
    errno_module.EACCES: _NOT_PERMITTED_TODO,
    errno_module.E2BIG: "the map is full, or a size is above the kernel's limit: raise max_entries",
    errno_module.ENOMEM: "the kernel has no memory for it: lower the table sizes or raise the cgroup's limit",
    errno_module.EMFILE: "too many open files: raise `ulimit -n`",
    errno_module.ENOSYS: "this kernel has no bpf(): use Linux 6.1 or later with CONFIG_BPF_SYSCALL",
}


class DatapathError(Exception):
    """Base of everything that `vfp.datapath` raises on purpose."""


class LibraryMissing(DatapathError):
    """libbpf.so.1 is not on this host."""


class NoSuchName(DatapathError):
    """A map, program or type was asked for that the object does not have."""


class LayoutError(DatapathError):
    """A C type cannot be described as offsets and sizes, or its description is missing."""


class IncompatiblePin(DatapathError):
    """A pinned map is not the map that the object declares; it was left alone.

    `differences` holds one text per attribute, with the pinned and the declared value.
    """

    def __init__(self, map_name: str, path: str, differences: Sequence[str]) -> None:
        self.map_name = map_name
        self.differences = tuple(differences)
        super().__init__(
            f"map {map_name}: the map pinned at {path} differs from the object's: {'; '.join(differences)}. "
            f"Use the sizes it was made with, or remove the pin (its contents are lost)"
        )


class KernelRefused(DatapathError):
    """A system call failed. `errno` is positive; `asked` says what was tried."""

    def __init__(self, errno: int, asked: str, todo: str = "", log: Sequence[str] = ()) -> None:
        self.errno = errno
        self.asked = asked
        self.todo = todo
        self.log = tuple(log)
        text = f"{asked}: {errno_name(errno)}"
        if todo:
            text += f"; {todo}"
        if log:
            text += "\n" + "\n".join(f"  {line}" for line in log)
        super().__init__(text)


class NotPermitted(KernelRefused):
    """The process lacks the capability for it."""


class NotSupported(KernelRefused):
    """This kernel, or this kind of map or program, cannot do it."""


class VerifierRejected(KernelRefused):
    """The kernel did not accept a program. The message ends with the log's tail; `log` is all of it."""

    def __init__(self, errno: int, program: str, log: Sequence[str], tail_lines: int = 40) -> None:
        todo = "the verifier says:" if log else ""
        super().__init__(errno, f"load program {program}", todo, log[-tail_lines:])
        self.program = program
        self.log = tuple(log)


def errno_name(errno: int) -> str:
    """`EPERM (Operation not permitted)`, also for the kernel's ENOTSUPP and libbpf's own numbers."""
    if errno == ENOTSUPP:
        return "ENOTSUPP (Operation not supported by this map, program or kernel)"
    if _LIBBPF_FIRST <= errno < _LIBBPF_FIRST + len(_LIBBPF_NAMES):
        return f"LIBBPF_ERRNO__{_LIBBPF_NAMES[errno - _LIBBPF_FIRST]}"
    if errno == errno_module.EOPNOTSUPP:  # errorcode has the other name of the same number
        return f"EOPNOTSUPP ({os.strerror(errno)})"
    return f"{errno_module.errorcode.get(errno, f'errno {errno}')} ({os.strerror(errno)})"


def kernel_error(errno: int, asked: str, log: Sequence[str] = (), todo: str = "") -> KernelRefused:
    """The exception for a failed call; picks the class by errno."""
    todo = todo or _TODO.get(errno, "")
    if errno in (errno_module.EPERM, errno_module.EACCES):
        return NotPermitted(errno, asked, todo, log)
    if errno in (ENOTSUPP, errno_module.EOPNOTSUPP, errno_module.ENOSYS):
        return NotSupported(errno, asked, todo, log)
    return KernelRefused(errno, asked, todo, log)
