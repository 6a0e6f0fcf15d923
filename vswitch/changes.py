"""Telling that something changed, without saying what: netlink groups, /run/netns, the mount table.

A named namespace appears in two steps: its file is made, then the namespace is mounted on it. inotify tells
the first (and symbolic links, which some runtimes make), a poll of the mount table the second
(proc_pid_mountinfo(5)).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import select
import socket
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from pathlib import Path

from pyroute2.netlink.rtnl import (
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
)

from vswitch.namespaces import NAMED, Visitor

SETTLE_S = 0.05  # a change seldom comes alone
GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE

# inotify(7)
IN_NONBLOCK, IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
IN_MOVED, IN_CREATE, IN_DELETE = 0x40 | 0x80, 0x100, 0x200

READ_BYTES = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


async def changes(visitor: Visitor) -> AsyncGenerator[None]:
    """Yield once when the watch stands, then after every change; bursts come as one.

    Raises:
        OSError: the kernel has no more sockets or inotify watches to give.
    """
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        netlink = stack.enter_context(visitor.at_home(_open_groups))
        inotify = _open_inotify()
        stack.callback(os.close, inotify)
        mounts = stack.enter_context(_open_mounts(stack))
        named = _Named(inotify)

        def on_netlink() -> None:
            _drain(netlink)
            changed.set()

        def on_named() -> None:
            _drain_inotify(inotify)
            mounts.poll(0)
            if named.look():
                changed.set()

        for descriptor, react in (
            (netlink.fileno(), on_netlink),
            (inotify, on_named),
            (mounts.fileno(), on_named),
        ):
            loop.add_reader(descriptor, react)
            stack.callback(loop.remove_reader, descriptor)
        changed.set()
        while True:
            await changed.wait()
            changed.clear()
            yield
            await changed.wait()
            await asyncio.sleep(SETTLE_S)


class _Named:
    """The namespaces under /run/netns: a name and the namespace mounted there, or linked to."""

    def __init__(self, inotify: int) -> None:
        self._inotify = inotify
        self._last = self._read()

    def look(self) -> bool:
        """Whether it is another set now."""
        found = self._read()
        changed, self._last = found != self._last, found
        return changed

    def _read(self) -> frozenset[tuple[str, int, int]]:
        # The directory may be young, or made anew: watching it twice does no harm.
        _watch(self._inotify, NAMED.parent, IN_CREATE)
        _watch(self._inotify, NAMED, IN_CREATE | IN_DELETE | IN_MOVED)
        found = set()
        try:
            for entry in os.scandir(NAMED):
                try:
                    status = entry.stat()
                except OSError:  # a link to a process that ended
                    continue
                found.add((entry.name, status.st_dev, status.st_ino))
        except FileNotFoundError:
            pass
        return frozenset(found)


def _open_groups() -> socket.socket:
    groups = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    groups.bind((0, GROUPS))
    return groups


def _drain(netlink: socket.socket) -> None:
    while True:
        try:
            netlink.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # messages were lost: a change all the same
                raise


def _open_inotify() -> int:
    descriptor: int = _libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
    if descriptor < 0:
        raise _last_error("inotify_init1")
    return descriptor


def _watch(inotify: int, path: Path, mask: int) -> None:
    if _libc.inotify_add_watch(inotify, os.fsencode(path), mask) < 0:
        error = _last_error(f"inotify_add_watch {path}")
        if error.errno != errno.ENOENT:
            raise error


def _drain_inotify(inotify: int) -> None:
    try:
        while os.read(inotify, READ_BYTES):
            pass
    except BlockingIOError:
        return


def _open_mounts(stack: ExitStack) -> select.epoll:
    """An epoll that is readable when the mount table changed.

    The table itself is always readable; the change is only in EPOLLPRI, for which asyncio does not ask.
    """
    table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, table)
    mounts = select.epoll()
    mounts.register(table, select.EPOLLPRI | select.EPOLLERR)
    return mounts


def _last_error(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), call)
