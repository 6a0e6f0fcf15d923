"""Entering network namespaces, on a thread of their own, so that no caller is ever in the wrong one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from vswitch.errors import LinkInvalid, NamespaceMissing, PermissionDenied

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
NAMED = Path("/run/netns")
SO_NETNS_COOKIE = 71
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Result = TypeVar("Result")

_libc = ctypes.CDLL(None, use_errno=True)  # os.setns exists since Python 3.12 only


def namespace_path(netns: str) -> Path:
    """Where a namespace is found: a name under /run/netns, or an absolute path."""
    if netns.startswith("/"):
        return Path(netns)
    if not netns or "/" in netns or netns in (".", ".."):
        raise LinkInvalid("namespace of the endpoint", f"{netns!r}", "give a plain name or an absolute path")
    return NAMED / netns


@contextmanager
def open_namespace(netns: str) -> Iterator[int]:
    """A descriptor of the namespace while in the `with` block.

    Raises:
        NamespaceMissing: no such file, or one that is not a network namespace (`ip netns add` makes the file
            a
            moment before it mounts the namespace there).
        PermissionDenied: the file cannot be opened.
    """
    path = namespace_path(netns)
    asked = f"network namespace {netns!r}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NamespaceMissing(asked, f"no {path}", f"make it: ip netns add {path.name}") from None
    except PermissionError as error:
        raise PermissionDenied(asked, f"{error.strerror}: {path}", "run as root") from None
    try:
        try:
            kind = fcntl.ioctl(descriptor, NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != CLONE_NEWNET:
            raise NamespaceMissing(asked, f"{path} is not a network namespace", "mount one there, or remove it")
        yield descriptor
    finally:
        os.close(descriptor)


class Visitor:
    """One thread that enters namespaces and always comes home, the namespace it was made in.

    It holds no other namespace between visits: a descriptor or thread left in one would keep it alive after
    its deletion, with every link in it.
    """

    def __init__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vswitch-netns")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
        os.close(self._home)

    def is_home(self, descriptor: int) -> bool:
        """Whether this is the namespace we came from."""
        return os.path.sameopenfile(descriptor, self._home)

    def home_inode(self) -> int:
        """What identifies the namespace we came from while it lasts."""
        return os.fstat(self._home).st_ino

    def identify(self, descriptor: int) -> str:
        """What no other namespace is called, not even after a reboot. An inode's number is given again at once."""
        cookie = self.visit(descriptor, _cookie) or f"inode-{os.fstat(descriptor).st_ino}"
        return f"{BOOT_ID.read_text().strip()}/{cookie}"

    def visit(self, descriptor: int, work: Callable[[], Result]) -> Result:
        """Do `work` inside the namespace.

        Raises:
            PermissionDenied: no CAP_SYS_ADMIN; and whatever `work` raises.
        """
        return self._thread.submit(self._inside, descriptor, work).result()

    def at_home(self, work: Callable[[], Result]) -> Result:
        """Do `work` in our own namespace, whichever one the caller is in."""
        return self.visit(self._home, work)

    def _inside(self, descriptor: int, work: Callable[[], Result]) -> Result:
        _enter(descriptor)
        try:
            return work()
        finally:
            _enter(self._home)


def _cookie() -> str:
    """The kernel's own number of the namespace of this thread (SO_NETNS_COOKIE, Linux 5.14); empty: it has none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as inside:
        try:
            return str(int.from_bytes(inside.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder))
        except OSError:
            return ""


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) == 0:
        return
    code = ctypes.get_errno()
    if code in (errno.EPERM, errno.EACCES):
        raise PermissionDenied("enter a network namespace", os.strerror(code), "give the process CAP_SYS_ADMIN")
    raise OSError(code, os.strerror(code), "setns")
