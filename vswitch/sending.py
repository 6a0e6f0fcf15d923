"""Frames of our own, sent by a link as they are (packet(7))."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from vswitch.errors import KernelRefused


def send(ifindex: int, frames: Iterable[bytes]) -> None:
    """Send whole Ethernet frames out of a link.

    Raises:
        KernelRefused: the link is down or gone, or we may not.
    """
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind((socket.if_indextoname(ifindex), 0))
            for frame in frames:
                sender.send(frame)
    except OSError as error:
        raise KernelRefused(f"send by link {ifindex}", error.strerror or str(error), "see whether the link is up",
                            error.errno or 0) from None
