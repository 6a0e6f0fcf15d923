"""What a link may leave to later: ethtool's old flags (linux/ethtool.h), without the program."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from bench.processes import within

__all__ = ["Offload", "offloaded", "set_offload"]

_SIOCETHTOOL = 0x8946


class Offload(Enum):
    """(ETHTOOL_G..., ETHTOOL_S...)."""

    SEND_CHECKSUM = (0x16, 0x17)
    TCP_SEGMENTATION = (0x1E, 0x1F)
    SEGMENTATION = (0x23, 0x24)
    RECEIVE = (0x2B, 0x2C)


def set_offload(namespace: str, link: str, what: Offload, value: bool) -> bool:
    """Returns what it was."""
    with within(namespace):
        before = _flag(link, what.value[0], 0)
        _flag(link, what.value[1], int(value))
    return bool(before)


@contextmanager
def offloaded(namespace: str, link: str, what: Offload) -> Iterator[None]:
    """On for as long as the block lasts, then as before."""
    before = set_offload(namespace, link, what, True)
    try:
        yield
    finally:
        set_offload(namespace, link, what, before)


def _flag(link: str, command: int, value: int) -> int:
    buffer = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)     # struct ethtool_value
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, _SIOCETHTOOL, struct.pack("16sP8x", link.encode(), ctypes.addressof(buffer)))
    return int(struct.unpack("=II", buffer.raw)[1])
