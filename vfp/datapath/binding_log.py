"""Records of bindings and blocks of ports that begin and end, from the `bindings_log` ring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vfp.datapath.object import BpfObject
from vfp.datapath.ring import RingBuffer
from vfp.layout import BINDING_EVENT, BindingEventKind, unpack_address
from vfp.model import Address

__all__ = ["BindingEvent", "BindingLog"]

Kind = Literal["bound", "released", "block-taken", "block-released"]

_KINDS: dict[int, Kind] = {
    BindingEventKind.BOUND: "bound",
    BindingEventKind.RELEASED: "released",
    BindingEventKind.BLOCK_TAKEN: "block-taken",
    BindingEventKind.BLOCK_RELEASED: "block-released",
}
_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class BindingEvent:
    """One record. Of a block: its first external port and its `size`, and nothing internal."""

    time_s: float                           # monotonic clock
    kind: Kind
    port: int
    pool: int
    protocol: int                           # 0: a block's, which is of all
    internal: Address | None
    internal_port: int
    external: Address
    external_port: int
    size: int                               # ports of a block; 0: a binding


class BindingLog:
    """The ring's reading end."""

    def __init__(self, loaded: BpfObject) -> None:
        self._map = loaded.map("bindings_log")
        self._ring: RingBuffer | None = None

    def ring(self) -> RingBuffer:
        """The ring, opened when it is first asked for."""
        if self._ring is None:
            self._ring = RingBuffer(self._map.fd)
        return self._ring

    def read(self) -> list[BindingEvent]:
        """The next records that are there."""
        return [_event(raw) for raw in self.ring().consume(_AT_ONCE)]

    def close(self) -> None:
        """Close the ring; what is in it stays for the next process. Idempotent."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None


def _event(raw: bytes) -> BindingEvent:
    event: Any = np.frombuffer(raw, BINDING_EVENT, 1)[0]
    family = int(event["family"])
    size = int(event["size"])
    return BindingEvent(
        time_s=int(event["time_ns"]) / 1e9, kind=_KINDS[int(event["kind"])], port=int(event["port"]),
        pool=int(event["pool"]), protocol=int(event["protocol"]),
        internal=None if size else unpack_address(event["internal"].tobytes(), family),
        internal_port=int(event["internal_port"]), external=unpack_address(event["external"].tobytes(), family),
        external_port=int(event["external_port"]), size=size,
    )
