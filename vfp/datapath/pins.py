"""Names in the BPF file system: what keeps maps and programs alive without a process.

Layout under a pin directory: `maps/NAME` and `progs/NAME`. A pin is replaced by pinning `NAME~new` and
renaming it over `NAME`, so that there is always one to be found; a `~new` that a crash left is overwritten
the next time. While both rooms are those of one whole load, a symbolic link `loaded` has the load's fingerprint
as its text.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vfp.datapath.errors import DatapathError
from vfp.datapath.libbpf import check, library

__all__ = [
    "BPF_FS", "fingerprint", "get", "locked", "mount_bpffs", "names", "prepare", "remove", "remove_all", "replace",
    "set_fingerprint",
]

MAPS = "maps"
PROGS = "progs"
LOADED = "loaded"

BPF_FS = Path("/sys/fs/bpf")
_BPF_FS_MAGIC = 0xCAFE4A11  # linux/magic.h
_NEW = "~new"               # no C identifier has a tilde, so it meets no map or program name


def on_bpffs(path: Path) -> bool:
    """Whether `path`, or its closest ancestor that exists, is in a BPF file system."""
    while not path.exists() and path != path.parent:
        path = path.parent
    buffer = ctypes.create_string_buffer(256)  # struct statfs is 120 bytes; f_type is its first long
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), buffer) != 0:
        return False
    return ctypes.c_ulong.from_buffer(buffer).value == _BPF_FS_MAGIC


def mount_bpffs() -> None:
    """Mount the BPF file system at its usual place, if nothing is there and we may. Idempotent.

    Not where the mount namespace is known to be another than that of the host's first process (`ip netns exec`, a
    container): the mount, and the data path with it, would end with us.
    """
    if on_bpffs(BPF_FS) or not BPF_FS.is_dir():
        return
    with suppress(OSError):                     # some hosts show nobody their first process
        if Path("/proc/self/ns/mnt").readlink() != Path("/proc/1/ns/mnt").readlink():
            return
    ctypes.CDLL(None).mount(b"bpf", os.fsencode(BPF_FS), b"bpf", 0, b"mode=0700")


def prepare(pin_dir: Path) -> None:
    """Make the pin directory and its two rooms; mount the BPF file system if the host has not.

    Raises:
        DatapathError: `pin_dir` is not in a BPF file system, or cannot be made.
    """
    if not on_bpffs(pin_dir) and pin_dir.is_relative_to(BPF_FS):
        mount_bpffs()
    if not on_bpffs(pin_dir):
        raise DatapathError(
            f"pin directory {pin_dir}: not in a BPF file system; mount one (mount -t bpf bpf /sys/fs/bpf). "
            f"`ip netns exec` hides it: use nsenter --net=/run/netns/NAME"
        )
    try:
        for room in (MAPS, PROGS):
            (pin_dir / room).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DatapathError(f"make pin directory {pin_dir}: {error.strerror}; run as root") from error


@contextmanager
def locked(pin_dir: Path) -> Iterator[None]:
    """Hold the pin directory against other loaders. A process that ends lets go."""
    fd = os.open(pin_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def names(room: Path) -> list[str]:
    """Names that are pinned in `maps/` or `progs/`, sorted; without leftovers of a crash."""
    if not room.is_dir():
        return []
    return sorted(entry.name for entry in room.iterdir() if not entry.name.endswith(_NEW))


def get(path: Path) -> int:
    """A new file descriptor for what is pinned at `path`.

    Raises:
        KernelRefused: nothing is there (ENOENT), or it may not be opened.
    """
    return check(library().bpf_obj_get(os.fsencode(path)), f"open pin {path}")


def replace(fd: int, path: Path) -> None:
    """Pin `fd` at `path`, in place of what was there, in one step: a reader finds the old or the new."""
    new = path.with_name(path.name + _NEW)
    new.unlink(missing_ok=True)
    check(library().bpf_obj_pin(fd, os.fsencode(new)), f"pin {path}")
    new.rename(path)


def fingerprint(pin_dir: Path) -> str:
    """Of the load whose maps and programs are all pinned here; empty: none is known to be whole."""
    try:
        return str((pin_dir / LOADED).readlink())
    except OSError:
        return ""


def set_fingerprint(pin_dir: Path, text: str) -> None:
    """Say that a load is whole, or (empty) that it is about to be no more."""
    (pin_dir / LOADED).unlink(missing_ok=True)
    if text:
        (pin_dir / LOADED).symlink_to(text)


def remove(room: Path, keep: frozenset[str] = frozenset()) -> None:
    """Unpin everything in a room but `keep`, leftovers included."""
    if room.is_dir():
        for entry in room.iterdir():
            if entry.name not in keep:
                entry.unlink(missing_ok=True)


def remove_all(pin_dir: Path) -> None:
    """Unpin everything and remove the directory; idempotent. Programs that are attached stay attached."""
    with suppress(FileNotFoundError):
        set_fingerprint(pin_dir, "")
    for room in (pin_dir / PROGS, pin_dir / MAPS):
        remove(room)
        with suppress(FileNotFoundError):
            room.rmdir()
    with suppress(FileNotFoundError):
        pin_dir.rmdir()
