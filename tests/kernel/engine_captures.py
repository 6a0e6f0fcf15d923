"""Frames as the receiver's link sees them, with the state of their checksums: verified as tcpdump does, and better."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from typing import Self

from engine_town import Town

_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_NEEDS_CSUM = 1                             # linux/virtio_net.h
_TCP, _UDP, _ICMP, _FRAGMENT, _ICMPV6 = 6, 17, 1, 44, 58
_CHECK_AT = {_TCP: 16, _UDP: 6, _ICMP: 2, _ICMPV6: 2}


class Capture:
    """Records what comes in at a link. `wrong`: frames whose checksums do not fit."""

    def __init__(self, town: Town, part: str, link: str) -> None:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            made.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            made.setsockopt(socket.SOL_SOCKET, 33, 1 << 27)         # SO_RCVBUFFORCE
            made.bind((link, 0x0003))
            return made

        self._socket = town.parts[part].call(make)
        self._socket.settimeout(0.2)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._record)
        self._frames: list[bytes] = []
        self.sizes: list[int] = []
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._socket.close()

    def _record(self) -> None:
        while True:
            try:
                frame, address = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                if self._done.is_set():
                    return
                continue
            if address[2] != socket.PACKET_OUTGOING:
                self._frames.append(frame)
                self.sizes.append(len(frame) - 10)

    def verdicts(self) -> Counter[str]:
        """How many frames have a whole checksum, a partial one, segments to come, or none that could be verified."""
        seen: Counter[str] = Counter()
        for raw in self._frames:
            flags, segments, _, _, start, offset = struct.unpack_from("=BBHHHH", raw)
            seen[self._judge(raw[10:], start + offset if flags & _NEEDS_CSUM else 0)] += 1
            seen["segments to come"] += segments != 0
        return seen

    def _judge(self, frame: bytes, partial_at: int) -> str:
        kind = frame[12:14]
        if kind == b"\x08\x00":
            start = 14 + (frame[14] & 0x0F) * 4
            if _folded(frame[14:start]) != 0xFFFF:
                self.wrong.append(f"IPv4 header: {frame[:120].hex()}")
            end = 14 + int.from_bytes(frame[16:18], "big")
            protocol, addresses = frame[23], frame[26:34]
            if int.from_bytes(frame[20:22], "big") & 0x3FFF:
                return "fragment"
        elif kind == b"\x86\xdd":
            start, end, protocol = 54, 54 + int.from_bytes(frame[18:20], "big"), frame[20]
            addresses = frame[22:54]
        else:
            return "other"
        if protocol not in _CHECK_AT:
            return "fragment" if protocol == _FRAGMENT else "other"
        body = frame[start:end]
        at = _CHECK_AT[protocol]
        pseudo = b"" if protocol == _ICMP else addresses + struct.pack("!II", len(body), protocol)
        if partial_at:
            right = partial_at == start + at and _folded(pseudo) == int.from_bytes(body[at:at + 2], "big")
        else:
            if protocol == _UDP and body[at:at + 2] == b"\0\0":
                return "none"
            right = _folded(pseudo + body) == 0xFFFF
        if not right:
            self.wrong.append(f"{'partial' if partial_at else 'whole'}: {frame[:120].hex()}")
        return "partial" if partial_at else "whole"


def _folded(data: bytes) -> int:
    """The ones' complement sum (RFC 1071), not inverted."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[:len(data) // 2 * 2]))
    if len(data) % 2:
        total += data[-1] << 8
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total
