"""Frames on a byte stream: 4 bytes big-endian length, then that many bytes of msgpack (one map).

Every wait has a deadline. Within a frame two hold: some bytes must come every `stall_s`, and the whole must
keep up `MIN_RATE_BYTES_PER_S`, so that a peer that drips one byte a second does not hold a connection for days.
"""

from __future__ import annotations

import asyncio
import struct

from southbound.errors import ConnectionLost, ProtocolError

__all__ = ["BEFORE_SESSION_BYTES", "MAX_FRAME_BYTES", "frame", "read_frame", "write_frame"]

MAX_FRAME_BYTES = 32 << 20                  # payload of one frame in a session: about 200,000 goals
BEFORE_SESSION_BYTES = 64 << 10             # payload of one frame before the peer is known
MIN_RATE_BYTES_PER_S = 64 << 10
CHUNK_BYTES = 256 << 10

_HEADER = struct.Struct(">I")
_MAP_FIRST_BYTES = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])   # msgpack fixmap, map 16, map 32


def frame(payload: bytes, limit_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """The payload with its header.

    Raises:
        ProtocolError: longer than `limit_bytes`.
    """
    if len(payload) > limit_bytes:
        raise ProtocolError(f"message is longer than the bound of {limit_bytes} bytes", message="frame",
                            found=f"{len(payload)} bytes")
    return _HEADER.pack(len(payload)) + payload


async def read_frame(reader: asyncio.StreamReader, *, limit_bytes: int, idle_s: float,
                     stall_s: float) -> bytes:
    """The payload of the next frame.

    `idle_s`: how long nothing at all may come before a frame begins; `stall_s`: how long within one.

    Raises:
        ProtocolError: the first bytes cannot be ours, or announce more than `limit_bytes`.
        ConnectionLost: end of stream, reset, or a deadline passed.
    """
    stalled = f"stalled in a frame for {stall_s:g} s"
    header = await _read(reader, _HEADER.size, idle_s, f"silent for {idle_s:g} s")
    while len(header) < _HEADER.size:
        header += await _read(reader, _HEADER.size - len(header), stall_s, stalled)
    (length,) = _HEADER.unpack(header)
    if not 0 < length <= limit_bytes:
        raise ProtocolError(f"not a Sluice frame of 1..{limit_bytes} bytes; is this another program's port?",
                            message="frame", field="length", found=f"{length} (first bytes {header!r})")
    try:
        async with asyncio.timeout(2 * stall_s + length / MIN_RATE_BYTES_PER_S):
            return await _read_payload(reader, length, stall_s, stalled)
    except TimeoutError:
        raise ConnectionLost(f"a frame of {length} bytes came slower than {MIN_RATE_BYTES_PER_S} bytes a "
                             "second") from None


async def _read_payload(reader: asyncio.StreamReader, length: int, stall_s: float, stalled: str) -> bytes:
    chunks: list[bytes] = []
    missing = length
    while missing:
        chunk = await _read(reader, min(missing, CHUNK_BYTES), stall_s, stalled)
        if not chunks and chunk[0] not in _MAP_FIRST_BYTES:
            raise ProtocolError("not a Sluice frame: the payload is no msgpack map", message="frame",
                                found=f"first bytes {chunk[:16]!r}")
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)


async def _read(reader: asyncio.StreamReader, count: int, deadline_s: float, silence: str) -> bytes:
    """Up to `count` bytes, at least one."""
    try:
        async with asyncio.timeout(deadline_s):
            data = await reader.read(count)
    except TimeoutError:
        raise ConnectionLost(f"the peer was {silence}") from None
    except OSError as error:                # reset, or a TLS alert (ssl.SSLError)
        raise ConnectionLost(f"the connection broke: {error}") from error
    if not data:
        raise ConnectionLost("the peer closed the connection")
    return data


async def write_frame(writer: asyncio.StreamWriter, framed: bytes, *, stall_s: float) -> None:
    """Write a frame made by `frame()`; the peer must take some of it every `stall_s`.

    Raises:
        ConnectionLost: reset, or the peer does not read.
    """
    view = memoryview(framed)
    for start in range(0, len(view), CHUNK_BYTES):
        try:
            writer.write(view[start:start + CHUNK_BYTES])
            async with asyncio.timeout(stall_s):
                await writer.drain()
        except TimeoutError:
            raise ConnectionLost(f"the peer did not read for {stall_s:g} s") from None
        except OSError as error:
            raise ConnectionLost(f"the connection broke: {error}") from error
