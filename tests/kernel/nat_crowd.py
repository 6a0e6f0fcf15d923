"""Many connections at once that say who they are: `python nat_crowd.py serve ADDRESS PORT` and `… call ADDRESS PORT
CONNECTIONS NETNS...`.

Every caller's connection begins with its identity, a line; the server keeps it for the connection. In each round, once
all connections stand, every one says something new, and the server answers with it and with whom it takes the caller
for. Both end with a JSON line of what they have seen.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import resource
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path

ROUNDS = 3
FIRST_PORT = 30000                          # the same source ports in each namespace: all but one must be changed
AT_ONCE = 400                               # connections that are being opened
PATIENCE_S = 60                             # every one of them is awaited so long
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def _many_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (16384, max(16384, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))


async def serve(address: str, port: int) -> None:
    """Until standard input ends."""
    peers: dict[tuple[str, int], str] = {}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            who = (await reader.readline()).decode().strip()
            peers[writer.get_extra_info("peername")[:2]] = who
            while line := await reader.readline():
                writer.write(f"{who} {line.decode().strip()}\n".encode())
            writer.close()

    async with await asyncio.start_server(talk, address, port, backlog=4096):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
    print(json.dumps({
        "connections": len(peers), "identities": len(set(peers.values())),
        "addresses": sorted({address for address, _ in peers}),
    }), flush=True)


def _sockets(namespace: str, count: int) -> list[socket.socket]:
    with Path(f"/run/netns/{namespace}").open("rb") as there:
        if _LIBC.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    made = [socket.socket() for _ in range(count)]
    for number, each in enumerate(made):
        each.setblocking(False)
        each.bind(("", FIRST_PORT + number))
    return made


async def call(address: str, port: int, connections: int, namespaces: list[str]) -> None:
    """As many connections from each namespace."""
    sockets = [(f"{namespace}/{number}/{secrets.token_hex(8)}", each) for namespace in namespaces
               for number, each in enumerate(_sockets(namespace, connections))]
    loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE)
    lost: list[str] = []
    mixed: list[str] = []

    async def open_one(who: str, each: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        async with gate:
            try:
                await asyncio.wait_for(loop.sock_connect(each, (address, port)), PATIENCE_S)
                reader, writer = await asyncio.open_connection(sock=each)
            except (OSError, TimeoutError) as error:
                lost.append(f"{who}: {error!r}")
                return None
            writer.write(f"{who}\n".encode())
            return reader, writer

    streams = await asyncio.gather(*(open_one(*each) for each in sockets))

    async def ask(who: str, stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None) -> None:
        if stream is None:
            return
        said = secrets.token_hex(64)
        try:
            stream[1].write(f"{said}\n".encode())
            heard = (await asyncio.wait_for(stream[0].readline(), PATIENCE_S)).decode().strip()
        except (OSError, TimeoutError) as error:
            lost.append(f"{who}: {error!r}")
            return
        if not heard:
            lost.append(f"{who}: closed")
        elif heard != f"{who} {said}":
            mixed.append(f"{who} is taken for {heard.partition(' ')[0]}")

    for _ in range(ROUNDS):
        await asyncio.gather(*(ask(who, stream) for (who, _), stream in zip(sockets, streams, strict=True)))
    print(json.dumps({"connections": len(sockets), "lost": lost, "mixed": mixed}), flush=True)
    sys.stdin.read(1)                       # all stay open until the test has looked


if __name__ == "__main__":
    _many_files()
    if sys.argv[1] == "serve":
        asyncio.run(serve(sys.argv[2], int(sys.argv[3])))
    else:
        asyncio.run(call(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]))
