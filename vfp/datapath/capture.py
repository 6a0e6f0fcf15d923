"""Copies of the packets of some ports, before and after transposition, from the `captures` ring.

Which ports are looked at is a bit in their records. A process that opens the engine anew clears it: whoever looked is
gone with the process before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from vfp.datapath.object import BpfObject
from vfp.datapath.ring import RingBuffer
from vfp.layout import CAPTURE, PORT, ZONE_SHIFT, CaptureStage, PortFlag, ZoneKind
from vfp.reasons import DropReason

__all__ = ["MAX_BYTES", "Captured", "Capturing"]

MAX_BYTES = 9216                            # CAPTURE_BYTES

_ZERO = bytes(4)
_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Captured:
    """One packet at one stage. `sender`, `receiver`: port ids if that port is looked at, else 0."""

    time_s: float                           # monotonic clock
    stage: CaptureStage
    reason: DropReason                      # it was dropped
    zone_kind: ZoneKind
    zone: int
    sender: int
    receiver: int
    length: int                             # of the packet; `data` may have less of it
    data: bytes


class Capturing:
    """The bits and the ring."""

    def __init__(self, loaded: BpfObject) -> None:
        self._ports = loaded.map("ports")
        self._bytes = loaded.map("capturing")
        self._captures = loaded.map("captures")
        self._watched: frozenset[int] = frozenset()
        self._ring: RingBuffer | None = None
        self._bytes.update(_ZERO, _ZERO)
        _, values = self._ports.lookup_all()
        flags = np.ascontiguousarray(values).reshape(-1).view(PORT)["flags"]
        for port in np.flatnonzero(flags & int(PortFlag.CAPTURE)):
            self._mark(int(port))

    def set(self, ports: Collection[int], packet_bytes: int) -> None:
        """Look at these ports and no others."""
        before, self._watched = self._watched, frozenset(ports)
        size = min(max(packet_bytes, 1), MAX_BYTES) if ports else 0
        self._bytes.update(_ZERO, size.to_bytes(4, "little"))
        for port in before ^ self._watched:
            self._mark(port)

    def marked(self, port: int, record: bytes) -> bytes:
        """A port's record with the bit as it must be."""
        value = np.frombuffer(record, PORT).copy()
        value["flags"] &= ~np.uint16(int(PortFlag.CAPTURE))
        if port in self._watched:
            value["flags"] |= np.uint16(int(PortFlag.CAPTURE))
        return value.tobytes()

    def without(self, record: bytes) -> bytes:
        """A port's record as policy has it."""
        return self.marked(-1, record) if record else record

    def ring(self) -> RingBuffer:
        """The ring's reading end."""
        if self._ring is None:
            self._ring = RingBuffer(self._captures.fd)
        return self._ring

    def read(self) -> list[Captured]:
        """The next copies that are there."""
        return [_captured(raw) for raw in self.ring().consume(_AT_ONCE)]

    def close(self) -> None:
        """Close the ring; the bits stay, and the next process clears them. Idempotent."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _mark(self, port: int) -> None:
        key = port.to_bytes(4, "little")
        if (record := self._ports.lookup(key)) is not None:
            self._ports.update(key, self.marked(port, record))


def _captured(raw: bytes) -> Captured:
    head: Any = np.frombuffer(raw, CAPTURE, 1)[0]
    data = raw[CAPTURE.itemsize : CAPTURE.itemsize + int(head["captured"])]
    return Captured(
        time_s=int(head["time_ns"]) / 1e9, stage=CaptureStage(int(head["stage"])),
        reason=DropReason(int(head["reason"])), zone_kind=ZoneKind(int(head["zone"]) >> ZONE_SHIFT),
        zone=int(head["zone"]) & ((1 << ZONE_SHIFT) - 1), sender=int(head["ports"][0]),
        receiver=int(head["ports"][1]), length=int(head["length"]), data=data,
    )
