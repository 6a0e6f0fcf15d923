"""Requests of agents: answered beside each other; whatever one side does, the other goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from southbound_kit import Rig, closed_by_server, eventually, hello, rig

from agent.asking import Asker
from agent.local_errors import Away, Refusal
from southbound.channel import Limits
from southbound.client import MAX_REQUESTS, AgentSession
from southbound.codec import decode, encode
from southbound.errors import ProtocolError, RequestRefused, SessionClosed, Unreachable
from southbound.framing import frame
from southbound.identity import load_identity
from southbound.messages import FullSync, Ping, Refused, Reply, Request, Welcome
from southbound.session import MAX_REQUESTS as MAX_AT_ONCE
from southbound.tls import agent_context

PROBLEM = {"code": "in_use", "message": "taken", "field": "spec.address", "found": "10.1.0.5", "todo": "choose another",
           "resource": "Endpoint default/a"}
FULL = {**PROBLEM, "code": "store", "message": "disk full"}
Scenario = Callable[[Rig, AgentSession], Awaitable[None]]


def with_agent(folder: Path, scenario: Scenario, **options: Any) -> None:
    """An agent of host h1, and another that must not notice anything of it."""
    async def body() -> None:
        async with rig(folder, **options) as r, r.undisturbed(), r.agent("h1") as agent:
            async def answer(session: Any, request: Request) -> Reply:
                match request.what:
                    case "wait":
                        await asyncio.sleep(request.args["s"])
                    case "refuse":
                        return Reply(request.id, (PROBLEM, PROBLEM), None)
                    case "full":
                        return Reply(request.id, (FULL,), None)
                    case "fail":
                        raise RuntimeError("a mistake of ours, with a secret in it")
                    case "bytes":
                        return Reply(request.id, (), b"not JSON")
                    case "large":
                        return Reply(request.id, (), ["x" * 1000] * 100)
                return Reply(request.id, (), request.args)

            r.handler.on_request = answer                # type: ignore[method-assign]
            await scenario(r, agent)

    asyncio.run(body())


def test_replies_come_by_number_and_problems_as_they_are(tmp_path: Path) -> None:
    async def scenario(_: Rig, agent: AgentSession) -> None:
        slow = asyncio.create_task(agent.request("wait", {"s": 0.3}))
        assert await agent.request("echo", {"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}
        assert not slow.done()
        with pytest.raises(RequestRefused, match="taken; taken") as refused:
            await agent.request("refuse", {})
        assert refused.value.problems == (PROBLEM, PROBLEM)
        assert await slow == {"s": 0.3}

    with_agent(tmp_path, scenario)


def test_what_goes_wrong_in_the_controller_is_a_reply_and_the_session_goes_on(tmp_path: Path) -> None:
    async def scenario(_: Rig, agent: AgentSession) -> None:
        for what, code, text in (("fail", "internal", "internal error"), ("bytes", "unavailable", "JSON-like"),
                                 ("large", "unavailable", "longer than the bound")):
            with pytest.raises(RequestRefused, match=text) as refused:
                await agent.request(what, {})
            assert refused.value.problems[0]["code"] == code
            assert "secret" not in str(refused.value.problems)
        assert await agent.request("echo", {}) == {}

    with_agent(tmp_path, scenario, limits=Limits(send_bytes=50_000))


def test_the_agent_takes_trouble_of_the_controller_as_its_being_away_and_refusals_as_such(tmp_path: Path) -> None:
    async def scenario(_: Rig, agent: AgentSession) -> None:
        asker = Asker()
        with pytest.raises(Away, match="is away"):
            await asker.request("echo", {}, 0.05)
        asker.follow(agent)
        assert await asker.request("echo", {"a": 1}, 5) == {"a": 1}
        with pytest.raises(Away, match="cannot do it now: disk full"):
            await asker.request("full", {}, 5)
        with pytest.raises(Refusal) as refused:
            await asker.request("refuse", {}, 5)
        assert (refused.value.code, refused.value.field, refused.value.found) == ("taken", "spec.address", "10.1.0.5")
        with pytest.raises(Refusal) as refused:         # a mistake there: repeating it does not help
            await asker.request("fail", {}, 5)
        assert refused.value.code == "invalid"
        with pytest.raises(Away, match=r"within 0\.05 s"):
            await asker.request("wait", {"s": 1}, 0.05)

    with_agent(tmp_path, scenario)


def test_a_late_reply_is_dropped_and_an_ended_session_says_so(tmp_path: Path) -> None:
    async def scenario(r: Rig, agent: AgentSession) -> None:
        with pytest.raises(Unreachable, match=r"no reply of the controller to 'wait' within 0\.05 s"):
            await agent.request("wait", {"s": 0.2}, 0.05)
        await asyncio.sleep(0.3)
        assert await agent.request("echo", {}) == {}
        with pytest.raises(ProtocolError, match="JSON-like"):
            await agent.request("echo", {"a": b""})
        waiting = asyncio.create_task(agent.request("wait", {"s": 60}, 30))
        await asyncio.sleep(0.05)
        r.server.sessions["h1"].close("enough")
        with pytest.raises(SessionClosed, match="ended before its reply to 'wait'"):
            await waiting
        with pytest.raises(SessionClosed):
            await agent.request("echo", {})

    with_agent(tmp_path, scenario)


def test_no_more_than_some_at_a_time_on_either_side(tmp_path: Path) -> None:
    async def scenario(r: Rig, agent: AgentSession) -> None:
        waiting = [asyncio.create_task(agent.request("wait", {"s": 0.5})) for _ in range(MAX_REQUESTS)]
        await asyncio.sleep(0.1)
        with pytest.raises(Unreachable, match=f"{MAX_REQUESTS} requests to the controller are unanswered"):
            await agent.request("echo", {})
        assert await asyncio.gather(*waiting) == [{"s": 0.5}] * MAX_REQUESTS
        for number in range(MAX_AT_ONCE + 5):           # an agent that does not hold back itself
            await agent.send(Request(1000 + number, "wait", {"s": 0.2}))
        await asyncio.sleep(0.1)
        with pytest.raises(RequestRefused, match=f"{MAX_AT_ONCE} requests of this host are under way") as refused:
            await agent.request("echo", {})
        assert refused.value.problems[0]["todo"] == "try again later"
        await eventually(lambda: not r.server.sessions["h1"]._replying, "all answered")
        assert await agent.request("echo", {}) == {}

    with_agent(tmp_path, scenario)


@pytest.mark.parametrize(("data", "text"), [
    (frame(encode(Reply(1, (), None))), "an agent must not send this in a session"),
    (frame(b"\x84\xa1t\xa7Request\xa2id\xa11\xa4what\xa1x\xa4args\x80"), "Request.id: expected"),
    (frame(b"\x84\xa1t\xa7Request\xa2id\x01\xa4what\xa1x\xa4args\x90"), "Request.args: expected"),
    (frame(b"\x83\xa1t\xa7Request\xa2id\x01\xa4what\xa1x"), "args"),
    (frame(b"\x85\xa1t\xa7Request\xa2id\x01\xa4what\xa1x\xa4args\x80\xa4host\xa2h2"), "host"),
], ids=["a reply", "text for a number", "an array for a map", "a field less", "another host's name"])
def test_malformed_requests_end_their_session_only(tmp_path: Path, data: bytes, text: str) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            reader, writer = await _session(r, "h1")
            writer.write(data)
            said = await closed_by_server(reader)
            messages = list(_messages(said))
            assert isinstance(messages[-1], Refused)
            assert text in messages[-1].reason
            writer.close()

    asyncio.run(scenario())


def test_an_agent_that_floods_and_does_not_read_is_cut_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            _, writer = await _session(r, "h1")
            flood = frame(encode(Request(1, "echo", {"a": "x" * 100_000})))
            for _ in range(400):
                writer.write(flood)
            await eventually(lambda: "h1" not in r.server.sessions, "cut off", 15)
            writer.transport.abort()

    asyncio.run(scenario())


def test_a_request_is_no_first_message(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            for context in (None, agent_context_of(await r.enrol("h1"))):
                reader, writer = await r.open(context)
                writer.write(frame(encode(Request(1, "get", {}))))
                [message] = _messages(await closed_by_server(reader))
                assert isinstance(message, Refused)
                assert "only Hello is accepted" in message.reason
                writer.close()

    asyncio.run(scenario())


def agent_context_of(identity_dir: Path) -> Any:
    identity = load_identity(identity_dir)
    return agent_context(identity.key, identity.certificate, identity.ca)


async def _session(r: Rig, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """One that speaks for itself, up to its full sync."""
    reader, writer = await r.open(agent_context_of(await r.enrol(host)))
    writer.write(frame(encode(hello(host))))
    for kind in (Welcome, FullSync):
        size = int.from_bytes(await reader.readexactly(4), "big")
        assert isinstance(decode(await reader.readexactly(size)), kind)
    return reader, writer


def _messages(data: bytes) -> Any:
    while data:
        size = int.from_bytes(data[:4], "big")
        message = decode(data[4:4 + size])
        if not isinstance(message, Ping):
            yield message
        data = data[4 + size:]
