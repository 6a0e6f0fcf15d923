"""HTTP/1.1 as Docker speaks it to a plug-in: POST with a JSON object, over a Unix stream socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import h11

MAX_BODY_BYTES = 1 << 20
MEDIA_TYPE = b"application/vnd.docker.plugins.v1.2+json"
_READ_BYTES = 1 << 16

# Path and body of a request (None: no body) to status and body of the answer.
Answer = Callable[[str, Any], Awaitable[tuple[int, Any]]]


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
    """Answer the requests of one connection until it ends."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_READ_BYTES)
    try:
        while await _exchange(connection, reader, writer, answer):
            connection.start_next_cycle()
    except (OSError, h11.RemoteProtocolError):
        pass                                # it went away, or speaks something else: Docker asks again
    finally:
        writer.close()


async def _exchange(connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                    answer: Answer) -> bool:
    """One request and its answer. False: there is no further one."""
    try:
        request, body = await _request(connection, reader)
    except _TooLong:
        await _send(connection, writer, 413, {"Err": f"body: more than {MAX_BODY_BYTES} bytes; send less"})
        return False
    except h11.RemoteProtocolError as error:
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise
        await _send(connection, writer, error.error_status_hint, {"Err": f"request: {error}; send HTTP/1.1"})
        return False
    if request is None:
        return False
    status, found = await _answer(request, body, answer)
    await _send(connection, writer, status, found)
    return connection.our_state is h11.DONE and connection.their_state is h11.DONE


async def _answer(request: h11.Request, body: bytes, answer: Answer) -> tuple[int, Any]:
    method = request.method.decode()
    if method != "POST":
        return 405, {"Err": f"method: a plug-in is asked by POST (found: {method}); send POST"}
    if not body.strip():
        content = None
    else:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            return 400, {"Err": f"body: not JSON: {error}; send a JSON object"}
        if content is not None and not isinstance(content, dict):
            return 400, {"Err": f"body: not a JSON object (found: {type(content).__name__}); send one"}
    return await answer(request.target.decode("ascii", "replace").partition("?")[0], content)


class _TooLong(Exception):
    pass


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> tuple[h11.Request | None, bytes]:
    """The next request with its body; None at the end of the connection."""
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise _TooLong
        elif isinstance(event, h11.EndOfMessage):
            return request, bytes(body)
        else:                               # ConnectionClosed, PAUSED
            return None, b""


async def _send(connection: h11.Connection, writer: asyncio.StreamWriter, status: int, found: Any) -> None:
    body = json.dumps(found).encode()
    headers = [(b"Content-Type", MEDIA_TYPE), (b"Content-Length", str(len(body)).encode())]
    for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
        data = connection.send(event)
        if data:
            writer.write(data)
    await writer.drain()
