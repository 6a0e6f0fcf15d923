"""An agent joins, says hello, gets goal state, acknowledges, is asked things, and finds its way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from southbound_kit import echo, eventually, first, hello, remotes, rig

from southbound.channel import Limits
from southbound.client import AgentSession, connect, run
from southbound.errors import (
    ConnectionLost,
    IdentityError,
    ProtocolError,
    QueryFailed,
    SessionClosed,
    SessionRefused,
    SouthboundError,
    Unreachable,
)
from southbound.messages import (
    Ack,
    Delta,
    Facts,
    FullSync,
    HostFacts,
    ObjectStatus,
    PortGoal,
    Resync,
)


def test_goal_state_flows_down_and_acknowledgement_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.agent("h1") as agent:
            assert (agent.welcome.store, agent.welcome.keepalive_s) == ("store-1", 1.0)
            session = r.server.sessions["h1"]
            port = PortGoal("p", "web", "default", "net", "10.1.0.5/24", "02:00:00:00:00:01", "ns", "eth0")
            delta = Delta(1, 2, (port,), (("remote", "x"),))
            await session.send(delta)
            assert await first(agent) == delta
            ack = Ack(2, (ObjectStatus("port", "p", "no such namespace", {"netns": "ns"}),))
            facts = Facts(HostFacts((("eth0", "172.16.0.10/24"),)))
            for message in (ack, facts, Resync("lost count")):
                await agent.send(message)
            await eventually(lambda: len(r.handler.events) == 4, "three messages told")
            assert r.handler.events == [("hello", "h1"), ("ack", "h1", ack), ("facts", "h1", facts),
                                        ("resync", "h1", Resync("lost count"))]
        assert r.handler.events[-1] == ("disconnect", "h1")

    asyncio.run(scenario())


def test_a_large_full_sync_arrives_in_order_and_pings_pass_meanwhile(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path, keepalive_s=0.5) as r, r.agent("h1") as agent:
            session = r.server.sessions["h1"]
            large, small = FullSync(2, remotes(50_000)), Delta(2, 3, (), ())
            async with asyncio.TaskGroup() as group:
                group.create_task(session.send(large))
                group.create_task(session.send(small))
            assert await first(agent) == large
            assert await first(agent) == small

    asyncio.run(scenario())


def test_queries_are_answered_beside_each_other_and_from_inside_a_handler(tmp_path: Path) -> None:
    async def on_query(what: str, args: dict[str, Any]) -> Any:
        await asyncio.sleep(args["wait_s"])
        return what

    async def scenario() -> None:
        async with rig(tmp_path) as r, r.agent("h1", on_query) as agent:
            session = r.server.sessions["h1"]
            slow = asyncio.create_task(session.query("slow", {"wait_s": 0.3}))
            assert await session.query("fast", {"wait_s": 0}) == "fast"
            assert not slow.done()
            assert await slow == "slow"
            seen: list[Any] = []

            async def ask(session: Any, message: object) -> None:
                seen.append(await session.query("inside", {"wait_s": 0}))

            r.handler.on_event = ask
            await agent.send(Ack(1))
            await eventually(lambda: seen == ["inside"], "the handler's query answered")

    asyncio.run(scenario())


def test_queries_fail_with_the_reason(tmp_path: Path) -> None:
    async def on_query(what: str, args: dict[str, Any]) -> Any:
        match what:
            case "refuse":
                raise ValueError("no such port 7")
            case "bytes":
                return b"not JSON"
            case "huge":
                return "x" * (1 << 20) + "y"
            case "frame":
                return ["x" * 1000] * 10_000
            case _:
                await asyncio.sleep(60)

    async def scenario() -> None:
        async with rig(tmp_path) as r:
            async with r.agent("h1", on_query):
                session = r.server.sessions["h1"]
                for what, text in (("refuse", "host h1: no such port 7"), ("bytes", "JSON-like"),
                                   ("frame", "longer than the bound of 8388608 bytes")):
                    with pytest.raises(QueryFailed, match=text):
                        await session.query(what, {})
                with pytest.raises(QueryFailed, match=r"no answer to 'sleep' within 0\.1 s"):
                    await session.query("sleep", {}, 0.1)
                waiting = asyncio.create_task(session.query("sleep", {}, 30))
                await asyncio.sleep(0.1)
            with pytest.raises(QueryFailed, match="disconnected"):
                await waiting
            with pytest.raises(QueryFailed, match="disconnected"):
                await session.query("late", {})
            with pytest.raises(SessionClosed):
                await session.send(Delta(1, 2, (), ()))

    asyncio.run(scenario())


def test_what_cannot_be_sent_is_said_and_the_session_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path, limits=Limits(send_bytes=10_000)) as r, r.agent("h1") as agent:
            session = r.server.sessions["h1"]
            with pytest.raises(ProtocolError, match="longer than the bound"):
                await session.send(FullSync(2, remotes(1000)))
            with pytest.raises(ProtocolError, match=r"Delta\.base"):
                await session.send(Delta("1", 2, (), ()))        # type: ignore[arg-type]
            assert await session.query("x", {}) == {"what": "x", "args": {}}
            assert not agent._channel.closed

    asyncio.run(scenario())


def test_a_second_session_of_a_host_replaces_the_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.agent("h1") as old:
            before = r.server.sessions["h1"]
            async with r.agent("h1"):
                assert before.closed
                assert r.server.sessions["h1"] is not before
                with pytest.raises(SessionRefused, match="replaced by a newer session from 127"):
                    await first(old)
                assert r.handler.events == [("hello", "h1"), ("disconnect", "h1"), ("hello", "h1")]

    asyncio.run(scenario())


def test_many_sessions_of_one_host_at_once_leave_exactly_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r:
            identity = await r.enrol("h1")

            async def session() -> None:
                try:
                    async with connect(identity, hello("h1"), echo) as agent:
                        while True:
                            await first(agent)
                except SouthboundError:
                    pass

            tasks = [asyncio.create_task(session()) for _ in range(8)]
            await eventually(lambda: sum(task.done() for task in tasks) == 7, "seven replaced")
            assert await r.server.sessions["h1"].query("x", {}) == {"what": "x", "args": {}}
            hellos = [event for event in r.handler.events if event[0] == "hello"]
            goodbyes = [event for event in r.handler.events if event[0] == "disconnect"]
            assert len(hellos) == len(goodbyes) + 1
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        events = [event[0] for event in r.handler.events]
        assert events == ["hello", "disconnect"] * (len(events) // 2)

    asyncio.run(scenario())


def test_a_refused_hello_reaches_the_agent(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            r.handler.turned_away.add("h1")
            with pytest.raises(SessionRefused, match="host 'h1' is not declared"):
                async with r.agent("h1"):
                    pass
            assert list(r.server.sessions) == ["witness"]
            assert ("disconnect", "h1") not in r.handler.events

    asyncio.run(scenario())


def test_a_failing_handler_ends_its_session_only(tmp_path: Path) -> None:
    async def fail(session: Any, message: object) -> None:
        raise RuntimeError("database is locked")

    async def scenario() -> None:
        async with rig(tmp_path) as r, r.undisturbed():
            async with r.agent("h1") as agent:
                r.handler.on_event = fail
                await agent.send(Ack(1))
                with pytest.raises(SessionRefused, match="internal error of the controller") as caught:
                    await first(agent)
                assert "database" not in str(caught.value)
            await eventually(lambda: ("disconnect", "h1") in r.handler.events, "disconnect told")

    asyncio.run(scenario())


def test_a_handler_call_is_finished_when_its_session_ends(tmp_path: Path) -> None:
    finished: list[bool] = []

    async def slow(session: Any, message: object) -> None:
        await asyncio.sleep(0.3)
        finished.append(True)

    async def scenario() -> None:
        async with rig(tmp_path) as r:
            r.handler.on_event = slow
            async with r.agent("h1") as agent:
                await agent.send(Ack(1))
                await eventually(lambda: len(r.handler.events) == 2, "the call began")
            await eventually(lambda: r.handler.events[-1] == ("disconnect", "h1"), "disconnect told")
            assert finished == [True]

    asyncio.run(scenario())


def test_the_agent_comes_back_after_the_controller_was_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        synced: list[object] = []
        lost: list[Exception] = []

        async def serve(agent: AgentSession) -> None:
            async with asyncio.TaskGroup():          # a session's errors may come wrapped
                async for message in agent:
                    synced.append(message)

        @asynccontextmanager
        async def running() -> AsyncIterator[None]:
            identity = tmp_path / "h1" / "identity"
            task = asyncio.create_task(run(identity, lambda who: hello(who.host), serve, echo, on_lost=lost.append))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.wait({task})
                assert task.cancelled()

        async with rig(tmp_path) as r:
            await r.enrol("h1")
            port = r.server.port
        async with running():
            await eventually(lambda: len(lost) >= 2, "two attempts failed")
            assert all(isinstance(error, Unreachable) for error in lost)
            assert "is it running" in str(lost[0])
            from controller.pki import Pki
            from southbound.server import SouthboundServer
            pki = Pki.open(tmp_path / "pki")
            for count in (1, 2):
                async with SouthboundServer("127.0.0.1", port, pki.server_context(), r.handler, keepalive_s=1):
                    await eventually(lambda count=count: len(synced) == count, "a session")   # type: ignore[misc]
            assert isinstance(lost[-1], ConnectionLost | SessionRefused | Unreachable)

    asyncio.run(scenario())


def test_errors_of_the_agent_itself_are_not_swallowed_by_run(tmp_path: Path) -> None:
    async def serve(agent: AgentSession) -> None:
        raise KeyError("bug")

    async def scenario() -> None:
        async with rig(tmp_path) as r:
            identity = await r.enrol("h1")
            with pytest.raises(KeyError):
                await run(identity, lambda who: hello(who.host), serve, echo)
        with pytest.raises(IdentityError, match="not enrolled"):
            await run(tmp_path / "nobody", lambda who: hello(who.host), serve, echo)

    asyncio.run(scenario())


def test_an_agent_under_another_name_than_its_certificate_does_not_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r:
            identity = await r.enrol("h1")
            with pytest.raises(IdentityError, match="to be host 'h2', its certificate is for 'h1'"):
                async with connect(identity, hello("h2"), echo):
                    pass

    asyncio.run(scenario())


def test_stopping_the_server_tells_the_handler_and_frees_the_port(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r:
            await r.enrol("h1")
            agent = connect(tmp_path / "h1" / "identity", hello("h1"), echo)
            session = await agent.__aenter__()
            await first(session)
        assert r.handler.events[-1] == ("disconnect", "h1")
        with pytest.raises(ConnectionLost, match="closed"):
            await first(session)
        await agent.__aexit__(None, None, None)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", r.server.port)

    asyncio.run(scenario())


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path) as r:
            from southbound.server import SouthboundServer
            with pytest.raises(SouthboundError, match=f"cannot listen on 127.0.0.1:{r.server.port}"):
                async with SouthboundServer("127.0.0.1", r.server.port, r.pki.server_context(), r.handler):
                    pass

    asyncio.run(scenario())
