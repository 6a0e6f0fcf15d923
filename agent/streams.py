"""What goes on as it goes on: drops, captured packets and records of bindings for whoever follows, in bounded buffers.

Who follows asks again and again with the number of the last record that it has; a question waits until there is a newer
one. Asking is also the sign of life: a stream that nobody asks for is closed after `LEASE_S`, and with the last capture
of a port its packets are no longer copied. Records beyond a buffer are lost, and counted.

This is for the event loop; what touches the kernel goes through the worker.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent import arguments
from agent.arguments import Args
from agent.build import Built
from agent.errors import BadQuery
from agent.names import Row
from vfp.datapath.capture import MAX_BYTES, Captured
from vfp.layout import CaptureStage

__all__ = ["LEASE_S", "MAX_STREAMS", "WAIT_S", "Streams"]

WAIT_S = 4.0                                # a question without news; the controller asks for longer than that
LEASE_S = 12.0
MAX_STREAMS = 8                             # each keeps one of the session's questions open
BUFFER_BYTES = 4 << 20
ANSWER_BYTES = 1 << 20

_DROPS, _CAPTURE, _BINDINGS = "drops", "capture", "bindings"
_ROW_BYTES = 400                            # of a drop or binding, as text
_STAGES = {"before": CaptureStage.BEFORE, "after": CaptureStage.AFTER}

SetCapture = Callable[[frozenset[int], int], Awaitable[None]]
Numbers = Mapping[str, int]


@dataclass(slots=True)
class _Stream:
    """One follower. `port`: uid; empty: all. Records are numbered from 1; those at the front wait to be confirmed."""

    kind: str
    port: str
    number: int = 0                         # of the port
    packet_bytes: int = 0
    stage: str = ""
    network: str = ""
    asked_s: float = 0.0
    waiting: int = 0
    next: int = 1
    size: int = 0
    lost: int = 0
    lost_before: int | None = None          # what the kernel had lost when the stream began
    lost_kernel: int = 0
    records: deque[tuple[int, int, Row]] = field(default_factory=deque)     # number, bytes, record
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, record: Row, size: int) -> None:
        if self.size + size > BUFFER_BYTES:
            self.lost += 1
            return
        self.records.append((self.next, size, record))
        self.next += 1
        self.size += size
        self.news.set()

    def lose(self, total: int) -> None:
        """The kernel's count of what it could not tell."""
        if self.lost_before is None:
            self.lost_before = total
        self.lost_kernel = total - self.lost_before

    def confirm(self, last: int) -> None:
        while self.records and self.records[0][0] <= last:
            self.size -= self.records.popleft()[1]
        if not self.records:
            self.news.clear()

    def answer(self) -> Row:
        told: list[Row] = []
        size, last = 0, 0
        for number, bytes_, record in self.records:
            size += bytes_
            if told and size > ANSWER_BYTES:
                break
            told.append(record)
            last = number
        return {"records": told, "last": last or self.next - 1, "lost": self.lost + self.lost_kernel}


class Streams:
    """All followers of one host. `built` raises `BadQuery` as long as nothing is programmed."""

    def __init__(self, built: Callable[[], Built], set_capture: SetCapture,
                 lost: Callable[[], Awaitable[Numbers]], changed: Callable[[], None] = lambda: None) -> None:
        """`lost` tells what the kernel could not tell, by kind of stream. `changed`: somebody came or went."""
        self._changed = changed
        self._built = built
        self._set_capture = set_capture
        self._lost = lost
        self._open: dict[str, _Stream] = {}
        self._began = asyncio.Event()
        self._order = asyncio.Lock()        # two changes of what is captured must not pass each other
        self._captured: tuple[frozenset[int], int] = (frozenset(), 0)

    @property
    def follow_drops(self) -> bool:
        """Whether anybody wants drops."""
        return any(stream.kind == _DROPS for stream in self._open.values())

    async def follow(self, args: Args) -> Row:
        """{records, last, lost}: what came after record `after`, as soon as there is something, or nothing.

        Args:
            args: stream (any text that nobody else has), kind (drops, capture, bindings), after (None: begin, and do
                not wait); `port` and, for a capture, `bytes` and `stage` (before, after) say what to tell of, for
                bindings `network` (tenant/name).

        Raises:
            BadQuery: an argument is wrong, the port is not here, or too many follow already.
        """
        name = arguments.word(args, "stream")
        if not name or len(name) > 64:
            raise BadQuery("argument stream: give a name of at most 64 characters")
        stream = self._open.get(name) or await self._begin(name, args)
        stream.asked_s = time.monotonic()
        if stream.port and self._built().port_ids.get(stream.port) != stream.number:
            await self.end(args)
            raise BadQuery("the endpoint is no longer on this host")
        stream.confirm(arguments.number(args, "after", 1 << 53))
        if not stream.records and args.get("after") is not None:
            stream.waiting += 1
            try:
                async with asyncio.timeout(WAIT_S):
                    await stream.news.wait()
            except TimeoutError:
                pass
            finally:
                stream.waiting -= 1
                stream.asked_s = time.monotonic()
        return stream.answer()

    async def end(self, args: Args) -> Row:
        """Nobody follows that stream any more."""
        if self._open.pop(arguments.word(args, "stream"), None) is not None:
            self._changed()
            await self._capture_what_is_followed()
        return {}

    async def keep(self) -> None:
        """Close what nobody asks for. Never ends."""
        while True:
            await self._began.wait()
            await asyncio.sleep(1)
            now = time.monotonic()
            for name, stream in list(self._open.items()):
                if not stream.waiting and now - stream.asked_s > LEASE_S:
                    await self.end({"stream": name})
            if not self._open:
                self._began.clear()

    def drops(self, rows: list[Row], lost: int) -> None:
        """Drops were collected; `lost` as the kernel counts."""
        for stream in self._open.values():
            if stream.kind == _DROPS:
                stream.lose(lost)
                for row in rows:
                    if stream.port in ("", row["port"]):
                        stream.put(row, _ROW_BYTES)

    def captured(self, packets: list[Captured], lost: int) -> None:
        """Packets were captured; `lost` as the kernel counts."""
        epoch_s = time.time() - time.monotonic()
        for stream in self._open.values():
            if stream.kind == _CAPTURE:
                stream.lose(lost)
                for packet in packets:
                    if _is_wanted(stream, packet):
                        record = _record(stream, packet, epoch_s)
                        stream.put(record, len(record["data"]) + _ROW_BYTES)

    def bindings(self, rows: list[Row], lost: int) -> None:
        """Bindings began or ended; `lost` as the kernel counts."""
        for stream in self._open.values():
            if stream.kind == _BINDINGS:
                stream.lose(lost)
                for row in rows:
                    if stream.network in ("", row["network"]):
                        stream.put(row, _ROW_BYTES)

    async def _begin(self, name: str, args: Args) -> _Stream:
        kind = arguments.word(args, "kind", (_DROPS, _CAPTURE, _BINDINGS))
        if len(self._open) >= MAX_STREAMS:
            raise BadQuery(f"{MAX_STREAMS} captures, watches and logs run on this host already; end one")
        if args.get("after") is not None:
            raise BadQuery("the stream was given up: nobody asked for it, or the agent was restarted; begin anew")
        built = self._built()
        port = arguments.asked_port(built, args, required=kind == _CAPTURE)
        stream = _Stream(kind or _DROPS, str(args.get("port") or ""), port.id if port else 0)
        stream.packet_bytes = min(arguments.number(args, "bytes") or MAX_BYTES, MAX_BYTES)
        stream.stage = arguments.word(args, "stage", tuple(_STAGES))
        stream.asked_s = time.monotonic()
        stream.network = arguments.word(args, "network")
        stream.lose((await self._lost())[stream.kind])
        self._open[name] = stream
        self._began.set()
        self._changed()
        try:
            await self._capture_what_is_followed()
        except BaseException:
            self._open.pop(name, None)
            raise
        return stream

    async def _capture_what_is_followed(self) -> None:
        async with self._order:
            captures = [stream for stream in self._open.values() if stream.kind == _CAPTURE]
            wanted = (frozenset(stream.number for stream in captures),
                      max((stream.packet_bytes for stream in captures), default=0))
            if wanted != self._captured:
                await self._set_capture(*wanted)
                self._captured = wanted


def _is_wanted(stream: _Stream, packet: Captured) -> bool:
    return stream.number in (packet.sender, packet.receiver) and (
        not stream.stage or _STAGES[stream.stage] is packet.stage)


def _record(stream: _Stream, packet: Captured, epoch_s: float) -> dict[str, Any]:
    """`direction` is the endpoint's: out, what it sends."""
    data = packet.data[: stream.packet_bytes]
    return {
        "time_ns": int((epoch_s + packet.time_s) * 1e9), "stage": packet.stage.name.lower(),
        "direction": "out" if packet.sender == stream.number else "in",
        "reason": packet.reason.name if packet.reason else "",
        "length": packet.length, "data": base64.b64encode(data).decode(),
    }
