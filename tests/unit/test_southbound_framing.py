"""Frames have bounds in size and time, and what is not a frame is told from its first bytes."""

from __future__ import annotations

import asyncio
import time

import pytest

from southbound import framing
from southbound.errors import ConnectionLost, ProtocolError
from southbound.framing import frame, read_frame


def read(*pieces: bytes, eof: bool = True, limit_bytes: int = 1000, idle_s: float = 0.2,
         stall_s: float = 0.1) -> bytes:
    """Read one frame from a stream that has these bytes and no more."""
    async def scenario() -> bytes:
        reader = asyncio.StreamReader()
        for piece in pieces:
            reader.feed_data(piece)
        if eof:
            reader.feed_eof()
        return await read_frame(reader, limit_bytes=limit_bytes, idle_s=idle_s, stall_s=stall_s)

    return asyncio.run(scenario())


def test_a_frame_is_its_length_in_four_bytes_and_the_payload() -> None:
    assert frame(b"\x81\x01\x02") == b"\x00\x00\x00\x03\x81\x01\x02"


@pytest.mark.parametrize("cuts", [(1,), (3,), (4,), (5,), (1, 2, 3, 4, 5, 6)])
def test_a_frame_is_read_however_it_is_cut(cuts: tuple[int, ...]) -> None:
    whole = frame(b"\x81\xa1t\x01")
    pieces = [whole[start:end] for start, end in zip((0, *cuts), (*cuts, len(whole)), strict=True)]
    assert read(*pieces) == b"\x81\xa1t\x01"


def test_a_frame_of_exactly_the_bound_passes_and_one_byte_more_does_not() -> None:
    payload = b"\x80" + bytes(999)
    assert read(frame(payload)) == payload
    with pytest.raises(ProtocolError, match="1001"):
        read(frame(payload + b"\x00"))
    with pytest.raises(ProtocolError, match="longer than the bound of 1000"):
        frame(bytes(1001), 1000)


@pytest.mark.parametrize(("data", "found"), [
    (b"GET / HTTP/1.1\r\n", "GET "), (b"SSH-2.0-OpenSSH", "SSH-"), (b"\x16\x03\x01\x02\x00\x01", "length"),
    (b"\x00\x00\x00\x00", "length"), (b"\xff\xff\xff\xff", "length"),
    (b"\x00\x00\x00\x05hello", "hello"), (b"\x00\x00\x00\x01\xc1", "no msgpack map"),
])
def test_bytes_that_are_not_ours_are_refused_at_once(data: bytes, found: str) -> None:
    with pytest.raises(ProtocolError, match=found):
        read(data, eof=False, idle_s=5, stall_s=5)


def test_a_wrong_first_byte_is_refused_before_the_rest_came() -> None:
    with pytest.raises(ProtocolError, match="no msgpack map"):
        read(b"\x00\x00\x03\x00hello", eof=False, stall_s=5)


@pytest.mark.parametrize("data", [b"", b"\x00\x00", b"\x00\x00\x00\x05", b"\x00\x00\x00\x05\x80\x01"])
def test_an_end_in_the_middle_is_a_lost_connection(data: bytes) -> None:
    with pytest.raises(ConnectionLost, match="closed"):
        read(data)


@pytest.mark.parametrize(("data", "text"), [
    (b"", "silent for 0.2 s"), (b"\x00\x00", "stalled"), (b"\x00\x00\x00\x05", "stalled"),
    (b"\x00\x00\x00\x05\x80\x01", "stalled"),
])
def test_silence_ends_at_its_deadline(data: bytes, text: str) -> None:
    with pytest.raises(ConnectionLost, match=text):
        read(data, eof=False)


def test_a_frame_that_drips_ends_although_it_never_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MIN_RATE_BYTES_PER_S", 1000)

    async def scenario() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(b"\x00\x00\x00\xc8\x80")

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.02)
                reader.feed_data(b"\x01")

        async with asyncio.TaskGroup() as group:
            dripping = group.create_task(drip())
            with pytest.raises(ConnectionLost, match="slower than 1000 bytes a second"):
                await read_frame(reader, limit_bytes=1000, idle_s=1, stall_s=0.2)
            dripping.cancel()

    began = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - began < 2
