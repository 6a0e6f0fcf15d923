"""The plug-in's sockets: names as people type them, every path, bad input, ends and leftovers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runtimes.docker import SOCKETS, serve
from runtimes.docker.http import MAX_BODY_BYTES
from tests.unit.docker_kit_agent import FakeAgent

METHODS = ("AllocateNetwork", "FreeNetwork", "DiscoverNew", "DiscoverDelete", "GetCapabilities", "GwAllocCheck")
WAIT_S = 5


@asynccontextmanager
async def plugin(folder: Path) -> AsyncIterator[Path]:
    agent = FakeAgent(folder / "agent.sock")
    await agent.start()
    task = asyncio.create_task(serve(folder / "plugins", str(agent.path), folder))
    try:
        async with asyncio.timeout(WAIT_S):
            while not (folder / "plugins/sluice.sock").exists():
                assert not task.done()
                await asyncio.sleep(0.01)
        yield folder / "plugins"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await agent.stop()


async def raw(path: Path, *pieces: bytes) -> bytes:
    """What comes back until the other side closes, or says no more for a while."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    found = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(0.5):
            while data := await reader.read(1 << 16):
                found += data
    except (TimeoutError, OSError):
        pass
    finally:
        writer.close()
    return found


def post(path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}",
             *(headers or ("Connection: close",)), "", ""]
    return "\r\n".join(lines).encode() + body


def test_every_driver_name_answers(tmp_path: Path) -> None:
    async def course() -> None:
        async with plugin(tmp_path) as folder:
            assert {path.name for path in folder.iterdir()} == {f"{name}.sock" for name in SOCKETS}
            assert {"nat", "transparent", "l2bridge", "l2tunnel", "sluice"} <= set(SOCKETS)
            for path in folder.iterdir():
                assert path.stat().st_mode & 0o777 == 0o600
                answer = await raw(path, post("/Plugin.Activate"))
                assert b'"Implements": ["NetworkDriver", "IpamDriver"]' in answer
        assert not list(folder.iterdir())

    asyncio.run(course())


def test_every_method_that_docker_rarely_calls(tmp_path: Path) -> None:
    async def course() -> None:
        async with plugin(tmp_path) as folder:
            # One connection for all, in chunks, as Go may write it.
            calls = [post(f"/NetworkDriver.{method}", b"{}", "Connection: keep-alive") for method in METHODS]
            chunked = (b"POST /NetworkDriver.DiscoverNew HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                       b"Transfer-Encoding: chunked\r\n\r\n"
                       b"2\r\n{}\r\n0\r\n\r\n")
            answers = await raw(folder / "nat.sock", b"".join(calls)[:300], b"".join(calls)[300:], chunked)
            assert answers.count(b"HTTP/1.1 200") == len(METHODS) + 1
            assert b"Err" not in answers

    asyncio.run(course())


@pytest.mark.parametrize(("request_", "status", "words"), [
    (post("/NetworkDriver.Fly"), 404, "no such method"),
    (post("/"), 404, "no such method"),
    (b"GET /Plugin.Activate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405, "send POST"),
    (post("/NetworkDriver.Join", b"{nonsense"), 400, "not JSON"),
    (post("/NetworkDriver.Join", b"[" * 100_000), 400, "not JSON"),
    (post("/NetworkDriver.Join", b'["a"]'), 400, "not a JSON object"),
    (post("/NetworkDriver.Join", b"\xff\xfe{}"), 400, "not JSON"),
    (b"POST /x HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400, "send HTTP/1.1"),
    (b"\x16\x03\x01\x02\x00 is no HTTP\r\n\r\n", 400, "send HTTP/1.1"),
    (post("/NetworkDriver.Join", b" " * (MAX_BODY_BYTES + 1)), 413, "send less"),
    (post("/NetworkDriver.Join"), 200, "the agent was away while Docker asked"),
    (post("/NetworkDriver.Join", b"{}"), 200, "EndpointID: a text is needed"),
    (post("/NetworkDriver.Join", b'{"EndpointID": 5}'), 200, "EndpointID: a text is needed (found: 5)"),
    (post("/NetworkDriver.Join", b'{"EndpointID": "e", "NetworkID": "n"}'), 200, "not made by the agent of this host"),
    (post("/NetworkDriver.DeleteNetwork", b"{}"), 200, "NetworkID"),
    (post("/NetworkDriver.CreateNetwork", b'{"NetworkID": "n", "Options": 5}'), 200, "Options: an object is needed"),
    (post("/NetworkDriver.CreateNetwork", b'{"NetworkID": "n", "IPv4Data": [{"Pool": "x"}]}'), 200, "not a prefix"),
    (post("/IpamDriver.RequestAddress", b'{"PoolID": "x"}'), 200, "no such pool"),
])
def test_bad_input_is_answered(tmp_path: Path, request_: bytes, status: int, words: str) -> None:
    async def course() -> None:
        async with plugin(tmp_path) as folder:
            head, _, body = (await raw(folder / "sluice.sock", request_)).partition(b"\r\n\r\n")
            assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
            assert words in json.loads(body)["Err"]
            # And the next one is served.
            assert b"200" in await raw(folder / "sluice.sock", post("/Plugin.Activate"))

    asyncio.run(course())


def test_what_a_killed_agent_left_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    async def course() -> None:
        (tmp_path / "plugins").mkdir()
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(tmp_path / "plugins/nat.sock"))
        left.close()
        async with plugin(tmp_path) as folder:
            assert b"200" in await raw(folder / "nat.sock", post("/Plugin.Activate"))
            await serve(folder, str(tmp_path / "agent.sock"), tmp_path)     # another one gives up, and says so
            assert b"200" in await raw(folder / "nat.sock", post("/Plugin.Activate"))

    asyncio.run(course())


def test_a_connection_that_ends_in_the_middle_is_nothing(tmp_path: Path) -> None:
    async def course() -> None:
        async with plugin(tmp_path) as folder:
            for part in (b"", b"POST", post("/Plugin.Activate")[:-3], post("/NetworkDriver.Join", b"{}" * 50)[:-20]):
                reader, writer = await asyncio.open_unix_connection(str(folder / "nat.sock"))
                writer.write(part)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
                del reader
            assert b"200" in await raw(folder / "nat.sock", post("/Plugin.Activate"))

    asyncio.run(course())
