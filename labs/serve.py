"""`probe serve PORT --say WHO`: a server that says who it is and whom it sees, by HTTP and by datagrams.

    GET /            one line: "WHO answers ADDRESS PORT", of the client as it arrives here
    GET /bytes/N     N bytes, which count upwards, so that what is lost or mixed up shows
    POST             one line: "WHO took SHA256", of the body
    any datagram     the line of GET /

`--greet ADDRESS PORT` first sends a datagram from PORT to another such server, and writes what that answers, so that
the log shows how this one is seen from there.
IPv4 and IPv6, as far as the namespace has them.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import sys
from typing import Any

CHUNK_BYTES = 65536
_COUNTING = b"".join(number.to_bytes(4, "big") for number in range(CHUNK_BYTES // 4))
MAX_HEAD_BYTES = 8192
GREETING = b"hello"


def serve(port: int, who: str, greet: tuple[str, int] | None = None) -> int:
    """Answer until ended."""
    asyncio.run(_serve(port, who, greet))
    return 0


async def _serve(port: int, who: str, greet: tuple[str, int] | None) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")):
                if head.startswith(b"POST "):
                    await _respond(writer, head, f"{who} took {await _taken(reader, head)}\n")
                else:
                    await _respond(writer, head, line(who, writer.get_extra_info("peername")))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            writer.close()

    server = await asyncio.start_server(answer, sock=_bound(socket.SOCK_STREAM, port), limit=MAX_HEAD_BYTES,
                                        backlog=4096)
    datagrams = _bound(socket.SOCK_DGRAM, port)
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Datagrams(who), sock=datagrams)
    if greet:
        mapped = datagrams.family is socket.AF_INET6 and ":" not in greet[0]
        datagrams.sendto(GREETING, (f"::ffff:{greet[0]}" if mapped else greet[0], greet[1]))
    await server.serve_forever()


async def _taken(reader: asyncio.StreamReader, head: bytes) -> str:
    """SHA-256 of a request's body."""
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    left, digest = int(length[1]) if length else 0, hashlib.sha256()
    while left > 0:
        part = await reader.readexactly(min(left, CHUNK_BYTES))
        digest.update(part)
        left -= len(part)
    return digest.hexdigest()


async def _respond(writer: asyncio.StreamWriter, head: bytes, text: str) -> None:
    wanted = re.match(rb"GET /bytes/(\d+) ", head)
    if wanted is None:
        body = text.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        return
    left = int(wanted[1])
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
    while left > 0:
        writer.write(_COUNTING[:left])
        left -= CHUNK_BYTES
        await writer.drain()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, who: str) -> None:
        self._who = who

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        if b" answers " in data:            # to our greeting; two servers must not go on for ever
            sys.stderr.write(f"greeted: {data.decode(errors='replace')}")
            return
        self._transport.sendto(line(self._who, address).encode(), address)


def line(who: str, peer: Any) -> str:
    """What the server says to a peer; IPv4 peers of an IPv6 socket are IPv4 peers."""
    return f"{who} answers {str(peer[0]).removeprefix('::ffff:')} {peer[1]}\n"


def _bound(kind: socket.SocketKind, port: int) -> socket.socket:
    """A socket for both families, or for IPv4 where there is no IPv6."""
    try:
        made = socket.socket(socket.AF_INET6, kind)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        any_address = "::"
    except OSError:
        made, any_address = socket.socket(socket.AF_INET, kind), "0.0.0.0"
    made.setblocking(False)
    if kind is socket.SOCK_STREAM:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((any_address, port))
    except OSError as error:
        sys.exit(f"cannot bind port {port}: {error}")
    return made
