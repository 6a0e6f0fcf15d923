"""Whoever misbehaves on the southbound port loses their own connection, is logged, and disturbs nobody else."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from southbound_kit import Rig, closed_by_server, echo, eventually, first, hello, remotes, rig
from structlog.testing import capture_logs

from controller.pki import Pki
from southbound.channel import Limits
from southbound.client import connect, join
from southbound.codec import decode, encode
from southbound.dial import dial
from southbound.errors import (
    ConnectionLost,
    IdentityError,
    JoinFailed,
    ProtocolError,
    SessionClosed,
    SessionRefused,
    TokenError,
    Unreachable,
    UntrustedController,
)
from southbound.framing import BEFORE_SESSION_BYTES, frame
from southbound.identity import draft_identity, load_identity, split_address
from southbound.messages import PROTOCOL_VERSION, Ack, Delta, FullSync, Join, Ping, Refused, Welcome
from southbound.tls import agent_context, trusting_context


@pytest.fixture(name="logs")
def captured() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


async def logged(logs: list[Any], text: str, peer: tuple[Any, ...] | None = None) -> None:
    """A warning or worse that names the peer and has this text comes."""
    def found() -> bool:
        return any(text in str(entry.get("reason", entry["event"])) and entry["log_level"] in ("warning", "error")
                   and (peer is None or entry.get("peer") == f"{peer[0]}:{peer[1]}") for entry in logs)
    await eventually(found, f"log entry with {text!r} by {peer}; there are {logs}")


def refusal(data: bytes) -> str:
    message = decode(data[4:])
    assert isinstance(message, Refused)
    return message.reason


@pytest.mark.parametrize("data", [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(range(256)) * 20, b"\x00\x00\x00\x05\x81\xa1t\xa1x", b"\x16\x03\x01",
], ids=["http", "garbage", "our frame without TLS", "half a TLS record"])
def test_plain_tcp_is_closed_and_logged_with_its_address(tmp_path: Path, logs: list[Any], data: bytes) -> None:
    async def scenario() -> None:
        async with rig(tmp_path, hello_s=0.5) as r, r.undisturbed():
            reader, writer = await asyncio.open_connection("127.0.0.1", r.server.port)
            writer.write(data)
            await closed_by_server(reader)
            await logged(logs, "no TLS 1.3 handshake", writer.get_extra_info("sockname"))
            writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("data", "text"), [
    (b"GET / HTTP/1.1\r\n\r\n", "not a Sluice frame"),
    (b"\xff" * 100, "not a Sluice frame"),
    ((BEFORE_SESSION_BYTES + 1).to_bytes(4, "big") + b"\x80", f"1..{BEFORE_SESSION_BYTES} bytes"),
    (frame(b"\x80"), "not a message"),
    (frame(b"\x81\xa1t\xa8Nonsense"), "not a message"),
    (frame(encode(Ping(1))), "only Hello is accepted from a connection with a certificate"),
    (frame(encode(hello("h1"))), "only Join from one without"),
    (frame(msgpack.packb({"t": "Join", "version": 5, "host": "h1", "secret": "s"})), "speaks protocol version 4"),
    (frame(encode(Join(PROTOCOL_VERSION, "h1", "sluice1.x.y", b"csr"))), "copy the whole token"),
], ids=str)
def test_bad_first_messages_over_tls_get_a_reason_and_the_door(
        tmp_path: Path, logs: list[Any], data: bytes, text: str) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            reader, writer = await r.open()
            writer.write(data)
            assert text in refusal(await closed_by_server(reader))
            await logged(logs, text, writer.get_extra_info("sockname"))
            writer.close()

    asyncio.run(scenario())


def test_slow_loris_is_cut_off_at_the_deadline_wherever_it_dawdles(tmp_path: Path, logs: list[Any]) -> None:
    async def scenario() -> None:
        async with rig(tmp_path, hello_s=0.4) as r, r.undisturbed():
            plain = await asyncio.open_connection("127.0.0.1", r.server.port)
            silent = await r.open()
            dripping = await r.open()

            async def drip() -> None:
                for byte in frame(encode(hello("h1"))):
                    dripping[1].write(bytes([byte]))
                    await asyncio.sleep(0.05)

            task = asyncio.create_task(drip())
            for reader, _ in (plain, silent, dripping):
                assert await closed_by_server(reader, 2.0) == b""
            task.cancel()
            await logged(logs, "no complete first message within 0.4 s", dripping[1].get_extra_info("sockname"))
            await logged(logs, "no TLS 1.3 handshake", plain[1].get_extra_info("sockname"))
            for _, writer in (plain, silent, dripping):
                writer.close()

    asyncio.run(scenario())


def test_too_many_strangers_are_turned_away_and_then_let_in_again(tmp_path: Path, logs: list[Any]) -> None:
    async def scenario() -> None:
        async with rig(tmp_path, max_unauthenticated=4) as r, r.undisturbed():
            strangers = [await asyncio.open_connection("127.0.0.1", r.server.port) for _ in range(4)]
            await eventually(lambda: len(r.server._gate) == 4, "four inside")
            with pytest.raises(Unreachable):
                async with dial(r.address, trusting_context(r.pki.ca_pem.decode())):
                    pass
            await logged(logs, "too many that have not said who they are")
            for _, writer in strangers:
                writer.close()
            await eventually(lambda: len(r.server._gate) == 0, "all gone")
            async with r.agent("h1"):
                assert len(r.server._gate) == 0          # a session does not count

    asyncio.run(scenario())


def test_a_certificate_of_another_ca_is_refused_in_words(tmp_path: Path, logs: list[Any]) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            other = Pki.open(tmp_path / "other")
            with draft_identity(tmp_path / "h1", "h1") as draft:
                identity = draft.complete(other.sign(draft.csr_pem, "h1"), other.ca_pem, r.address)
            with pytest.raises(UntrustedController, match="not by the CA that this host knows"):
                async with connect(identity.directory, hello("h1"), echo):
                    pass
            # and one that trusts us, but whose own certificate is foreign
            mixed = agent_context(identity.key, identity.certificate, r.pki.directory / "ca.pem")
            async with dial(r.address, mixed) as line:
                with pytest.raises((SessionRefused, ConnectionLost)):
                    await line.ask(hello("h1"), 1000)
            await logged(logs, "no TLS 1.3 handshake")
            assert "h1" not in r.server.sessions

    asyncio.run(scenario())


async def _as_host(r: Rig, host: str) -> ssl.SSLContext:
    identity = load_identity(await r.enrol(host))
    return agent_context(identity.key, identity.certificate, identity.ca)


def test_an_agent_cannot_speak_for_another_host(tmp_path: Path, logs: list[Any]) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed(), dial(r.address, await _as_host(r, "h1")) as line:
            with pytest.raises(SessionRefused, match="Hello says host 'witness', the certificate is for 'h1'"):
                await line.ask(hello("witness"), 1000)
            await logged(logs, "Hello says host 'witness'", line.writer.get_extra_info("sockname"))

    asyncio.run(scenario())


def test_the_servers_own_certificate_is_no_host_certificate(tmp_path: Path, logs: list[Any]) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            context = trusting_context(r.pki.ca_pem.decode())
            context.load_cert_chain(r.pki.directory / "server.pem")
            async with dial(r.address, context) as line:
                with pytest.raises((SessionRefused, ConnectionLost)):
                    await line.ask(hello("localhost"), 1000)
            await logged(logs, "no TLS 1.3 handshake")

    asyncio.run(scenario())


def test_older_tls_is_refused(tmp_path: Path, logs: list[Any]) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(r.pki.directory / "ca.pem")
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await r.open(context)
            await logged(logs, "no TLS 1.3 handshake")

    asyncio.run(scenario())


@pytest.mark.parametrize(("data", "text"), [
    (b"GET / HTTP/1.1\r\n\r\n", "not a Sluice frame"),
    ((9 << 20).to_bytes(4, "big"), "1..8388608 bytes"),
    (frame(encode(Delta(1, 2, (), ()))), "an agent must not send this"),
    (frame(encode(hello("h1"))), "an agent must not send this"),
    (frame(encode(Ack(1)).replace(b"revision", b"revisions"[:8])[:-1]), "not an acceptable msgpack"),
], ids=["http", "oversized", "delta", "second hello", "cut"])
def test_bad_frames_in_a_session_end_it_with_a_reason(
        tmp_path: Path, logs: list[Any], data: bytes, text: str) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            async with r.agent("h1") as agent:
                agent._channel._writer.write(data)
                with pytest.raises(SessionRefused) as caught:
                    await first(agent)
                assert text in str(caught.value)
            await logged(logs, text)
            await eventually(lambda: ("disconnect", "h1") in r.handler.events, "disconnect told")

    asyncio.run(scenario())


def test_a_peer_that_falls_silent_is_dead_after_three_keepalives(tmp_path: Path, logs: list[Any]) -> None:
    async def scenario() -> None:
        async with rig(tmp_path, keepalive_s=0.2) as r:
            async with dial(r.address, await _as_host(r, "h1")) as line:
                assert isinstance(await line.ask(hello("h1"), 1000), Welcome)
                assert "h1" in r.server.sessions
                await logged(logs, "silent for 0.6 s", line.writer.get_extra_info("sockname"))
                await eventually(lambda: "h1" not in r.server.sessions, "session forgotten")
            assert r.handler.events == [("hello", "h1"), ("disconnect", "h1")]

    asyncio.run(scenario())


def test_an_agent_notices_a_controller_that_falls_silent(tmp_path: Path) -> None:
    async def scenario() -> None:
        pki = Pki.open(tmp_path / "pki")
        held: list[asyncio.StreamWriter] = []

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            held.append(writer)
            await reader.readexactly(4)
            writer.write(frame(encode(Welcome(PROTOCOL_VERSION, "s", 0.2))))

        async with await asyncio.start_server(hang, "127.0.0.1", 0, ssl=pki.server_context()) as server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with draft_identity(tmp_path / "h1", "h1") as draft:
                identity = draft.complete(pki.sign(draft.csr_pem, "h1"), pki.ca_pem, address)
            async with connect(identity.directory, hello("h1"), echo) as agent:
                with pytest.raises(ConnectionLost, match=r"silent for 0\.6 s"):
                    await first(agent)
            for writer in held:
                writer.close()

    asyncio.run(scenario())


def test_a_peer_that_does_not_read_is_disconnected_and_others_are_served_meanwhile(
        tmp_path: Path, logs: list[Any]) -> None:
    async def scenario() -> None:
        async with rig(tmp_path, keepalive_s=0.3) as r, r.undisturbed():
            identity = load_identity(await r.enrol("h1"))
            context = agent_context(identity.key, identity.certificate, identity.ca)
            raw = socket.create_connection(("127.0.0.1", r.server.port))
            with await asyncio.to_thread(context.wrap_socket, raw, server_hostname="127.0.0.1") as stuck:
                await asyncio.to_thread(stuck.sendall, frame(encode(hello("h1"))))
                await eventually(lambda: "h1" in r.server.sessions, "session")
                session, witness = r.server.sessions["h1"], r.server.sessions["witness"]
                await session.send(FullSync(2, remotes(60_000)))          # 8 MB: more than the sockets hold

                async def alive() -> None:                                # it pings, but never reads
                    while not session.closed:
                        await asyncio.to_thread(stuck.sendall, frame(encode(Ping(1))))
                        await witness.query("x", {}, 1.0)
                        await asyncio.sleep(0.1)

                with suppress(OSError):
                    await asyncio.wait_for(alive(), 10)
                await logged(logs, "the peer did not read for 0.9 s")

    asyncio.run(scenario())


def test_a_queue_that_grows_full_ends_the_session_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path, limits=Limits(queue_messages=8)) as r, r.undisturbed(), r.agent("h1"):
            session = r.server.sessions["h1"]

            async def flood() -> None:
                for revision in range(100):              # no await that would let the writer run
                    await session.send(Delta(revision, revision + 1, (), ()))

            with pytest.raises(SessionClosed, match="reads too slowly: 8 messages"):
                await flood()
            assert session.closed
            await eventually(lambda: ("disconnect", "h1") in r.handler.events, "disconnect told")

    asyncio.run(scenario())


def test_tokens_work_once_for_their_host_and_leave_nothing_when_refused(tmp_path: Path, logs: list[Any]) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            token = r.handler.make_token("h1")
            with pytest.raises(JoinFailed, match="for another host"):
                await join(r.address, token, "h2", tmp_path / "h2")
            assert list((tmp_path / "h2").iterdir()) == []
            token = r.handler.make_token("h1")
            identity = await join(r.address, token, "h1", tmp_path / "h1")
            assert identity.host == "h1"
            assert identity.key.stat().st_mode & 0o777 == 0o600
            with pytest.raises(JoinFailed, match="used"):
                await join(r.address, token, "h1", tmp_path / "h1")
            assert load_identity(tmp_path / "h1" / "identity") == identity
            await logged(logs, "join of host 'h1'")
            assert token.split(".")[1] not in str(logs)
            with pytest.raises(TokenError):
                await join(r.address, "rubbish", "h1", tmp_path / "h1")
            # joining again replaces the identity as a whole
            again = await join(r.address, r.handler.make_token("h1"), "h1", tmp_path / "h1")
            assert again.directory != identity.directory
            assert sorted(path.name for path in (tmp_path / "h1").iterdir()) == [again.directory.name, "identity"]
            assert sorted(path.name for path in again.directory.iterdir()) == ["ca.pem", "cert.pem", "controller",
                                                                               "key.pem"]

    asyncio.run(scenario())


def test_the_token_is_not_sent_to_a_controller_with_another_ca(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r:
            text, _ = Pki.open(tmp_path / "other").make_token()
            with pytest.raises(UntrustedController, match=r"fingerprint mismatch.*nothing was sent"):
                await join(r.address, text, "h1", tmp_path / "h1")
            assert r.handler.events == []

    asyncio.run(scenario())


def test_an_impostor_that_shows_the_right_ca_but_has_no_certificate_by_it_gets_no_token(tmp_path: Path) -> None:
    received: list[bytes] = []

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())
        writer.close()

    async def scenario() -> None:
        pki, evil = Pki.open(tmp_path / "pki"), Pki.open(tmp_path / "evil")
        chain = tmp_path / "chain.pem"
        own = (evil.directory / "server.pem").read_bytes().removesuffix(evil.ca_pem)
        chain.write_bytes(own + pki.ca_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        async with await asyncio.start_server(impostor, "127.0.0.1", 0, ssl=context) as server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(UntrustedController, match="not by the CA"):
                await join(address, pki.make_token()[0], "h1", tmp_path / "h1")
            await asyncio.sleep(0.1)
        assert b"".join(received) == b""

    asyncio.run(scenario())


def test_an_unreachable_or_misnamed_controller_is_told_apart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r:
            Pki.open(r.pki.directory, ["sluice.example"])
            r.server.use_context(r.pki.server_context())
            token = r.handler.make_token("h1")
            with pytest.raises(UntrustedController, match=r"not for the name '127\.0\.0\.1'.*--name 127\.0\.0\.1"):
                await join(r.address, token, "h1", tmp_path / "h1")
            port = r.server.port
        for address, error, text in (
                (f"127.0.0.1:{port}", Unreachable, "is it running"),
                ("nowhere.invalid:7", Unreachable, "cannot resolve 'nowhere.invalid'"),
                ("127.0.0.1", IdentityError, "expected HOST:PORT"),
                ("127.0.0.1:99999", IdentityError, "expected HOST:PORT")):
            with pytest.raises(error, match=text):
                await join(address, token, "h1", tmp_path / "h1")
        async with await asyncio.start_server(_banner, "127.0.0.1", 0) as other:
            address = f"127.0.0.1:{other.sockets[0].getsockname()[1]}"
            with pytest.raises(Unreachable, match=r"no TLS 1\.3 there"):
                await join(address, token, "h1", tmp_path / "h1")
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(IdentityError, match="cannot write the identity"):
            await join(address, token, "h1", tmp_path / "file")

    asyncio.run(scenario())


async def _banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n")
    writer.close()


def test_a_damaged_identity_says_what_is_wrong(tmp_path: Path) -> None:
    async def scenario() -> Path:
        async with rig(tmp_path) as r:
            await r.enrol("h2")
            return await r.enrol("h1")

    identity = asyncio.run(scenario())
    other = tmp_path / "h2" / "identity"
    for name, data, text in (("key.pem", (other / "key.pem").read_bytes(), r"cert\.pem is not for key\.pem"),
                             ("key.pem", b"", "damaged"), ("cert.pem", b"x", "damaged"), ("ca.pem", b"", "damaged"),
                             ("controller", b"nonsense\n", "expected HOST:PORT"),
                             ("controller", None, "not enrolled, or its identity is damaged")):
        path = identity / name
        kept = path.read_bytes()
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(IdentityError, match=text):
            load_identity(identity)
        path.write_bytes(kept)
    assert load_identity(identity).host == "h1"


def test_a_welcome_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    async def scenario(answer: bytes, error: type[Exception], text: str) -> None:
        pki = Pki.open(tmp_path / "pki")

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(4)
            writer.write(answer)
            await writer.drain()
            await reader.read()
            writer.close()

        async with await asyncio.start_server(speak, "127.0.0.1", 0, ssl=pki.server_context()) as server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with draft_identity(tmp_path / "h1", "h1") as draft:
                identity = draft.complete(pki.sign(draft.csr_pem, "h1"), pki.ca_pem, address)
            with pytest.raises(error, match=text):
                async with connect(identity.directory, hello("h1"), echo):
                    pass

    for answer, error, text in ((frame(encode(Welcome(PROTOCOL_VERSION, "s", 1e9))), ProtocolError,
                                 r"keepalive_s: expected"),
                                (frame(encode(Ping(1))), ProtocolError, "expected Welcome"),
                                (frame(encode(Refused("go away"))), SessionRefused, "go away"),
                                (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError, "not a Sluice frame")):
        asyncio.run(scenario(answer, error, text))


@pytest.mark.parametrize(("text", "expected"), [
    ("sluice.example:7081", ("sluice.example", 7081)), ("10.0.0.1:1", ("10.0.0.1", 1)),
    ("[fd00::1]:7081", ("fd00::1", 7081)), ("fd00::1:7081", None), (":7081", None), ("host:", None),
    ("host:0", None), ("host:x", None), ("host:٧", None),
])
def test_controller_addresses(text: str, expected: tuple[str, int] | None) -> None:
    if expected is None:
        with pytest.raises(IdentityError):
            split_address(text)
    else:
        assert split_address(text) == expected


def test_hello_with_a_future_version_is_refused_by_its_version(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            raw = msgpack.unpackb(encode(hello("h1")))
            async with dial(r.address, await _as_host(r, "h1")) as line:
                line.writer.write(frame(msgpack.packb({**raw, "version": 5, "extra": 1})))
                reason = refusal(await closed_by_server(line.reader))
            assert "this side speaks protocol version 4; upgrade the older side; found 5" in reason

    asyncio.run(scenario())


def test_no_file_descriptor_stays_open(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path, hello_s=0.3) as r:
            await r.enrol("h1")
            before = _open_descriptors()
            for _ in range(10):
                async with r.agent("h1"):
                    pass
                reader, writer = await asyncio.open_connection("127.0.0.1", r.server.port)
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                await closed_by_server(reader)
                writer.close()
                await writer.wait_closed()
                _, writer = await r.open()
                writer.transport.abort()
            await eventually(lambda: _open_descriptors() <= before, "all closed")

    asyncio.run(scenario())


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
