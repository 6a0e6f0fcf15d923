"""Followers of a host: what they are told, in which bounds, and what happens when they go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

import agent.streams
from agent.build import Built
from agent.errors import BadQuery
from agent.streams import MAX_STREAMS, Streams
from southbound.codec import encode
from southbound.messages import Answer
from vfp.datapath.capture import Captured
from vfp.layout import CaptureStage, ZoneKind
from vfp.reasons import DropReason


class Site:
    """Streams over a kernel that only remembers what it was told."""

    def __init__(self) -> None:
        self.numbers = {"uid-a": 3, "uid-b": 4}
        self.captures: list[tuple[frozenset[int], int]] = []
        self.lost = {"drops": 0, "capture": 0, "bindings": 0}
        self.streams = Streams(self._built, self._set, self._lost)

    def _built(self) -> Built:
        ports = tuple(SimpleNamespace(id=number) for number in self.numbers.values())
        found = SimpleNamespace(port_ids=self.numbers, nested={}, engine=SimpleNamespace(ports=ports))
        return found                        # type: ignore[return-value]

    async def _set(self, ports: frozenset[int], size: int) -> None:
        self.captures.append((ports, size))

    async def _lost(self) -> dict[str, int]:
        return self.lost

    async def ask(self, stream: str = "s", after: int | None = None, **more: Any) -> dict[str, Any]:
        """The answer, as it survives the wire."""
        answer = await self.streams.follow({"stream": stream, "after": after, **more})
        encode(Answer(1, "", answer))
        return answer


def on_site(test: Callable[[Site], Awaitable[None]]) -> None:
    async def body() -> None:
        await asyncio.wait_for(test(Site()), 20)

    asyncio.run(body())


def drop(port: str, packet: str = "tcp") -> dict[str, Any]:
    return {"port": port, "reason": "DENIED", "packet": packet}


def packet(sender: int, receiver: int = 0, data: bytes = b"x" * 100, stage: CaptureStage = CaptureStage.BEFORE,
           reason: DropReason = DropReason.NONE) -> Captured:
    return Captured(1.0, stage, reason, ZoneKind.PORT, sender, sender, receiver, len(data), data)


def test_a_question_waits_for_news_and_is_answered_at_once_when_there_is_some() -> None:
    async def body(site: Site) -> None:
        assert await site.ask(kind="drops") == {"records": [], "last": 0, "lost": 0}
        waiting = asyncio.create_task(site.ask(after=0, kind="drops"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        site.streams.drops([drop("uid-a", "one"), drop("uid-b", "two")], 0)
        answer = await waiting
        assert [row["packet"] for row in answer["records"]] == ["one", "two"]
        assert answer["last"] == 2

    on_site(body)


def test_records_are_told_again_until_they_are_confirmed() -> None:
    async def body(site: Site) -> None:
        await site.ask(kind="drops")
        site.streams.drops([drop("uid-a")], 0)
        assert (await site.ask(after=0))["last"] == 1
        assert (await site.ask(after=0))["last"] == 1
        site.streams.drops([drop("uid-a", "later")], 0)
        assert [row["packet"] for row in (await site.ask(after=1))["records"]] == ["later"]

    on_site(body)


def test_without_news_the_answer_is_empty_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.streams, "WAIT_S", 0.05)

    async def body(site: Site) -> None:
        await site.ask(kind="drops")
        assert await site.ask(after=0) == {"records": [], "last": 0, "lost": 0}

    on_site(body)


def test_one_endpoints_followers_hear_of_it_only() -> None:
    async def body(site: Site) -> None:
        await site.ask(kind="drops", port="uid-a")
        site.streams.drops([drop("uid-b", "other"), drop("uid-a", "own")], 0)
        assert [row["packet"] for row in (await site.ask(after=0))["records"]] == ["own"]

    on_site(body)


def test_a_buffer_is_bounded_and_what_is_lost_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.streams, "BUFFER_BYTES", 1000)

    async def body(site: Site) -> None:
        site.lost["drops"] = 7
        await site.ask(kind="drops")
        site.streams.drops([drop("uid-a")] * 10, 10)        # two fit; the kernel lost three more
        answer = await site.ask(after=0)
        assert (len(answer["records"]), answer["lost"]) == (2, 8 + 3)
        site.streams.drops([drop("uid-a")], 10)
        assert (await site.ask(after=answer["last"]))["lost"] == 12

    on_site(body)


def test_an_answer_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.streams, "ANSWER_BYTES", 1000)

    async def body(site: Site) -> None:
        await site.ask(kind="drops")
        site.streams.drops([drop("uid-a")] * 5, 0)
        first = await site.ask(after=0)
        second = await site.ask(after=first["last"])
        assert (len(first["records"]), len(second["records"]), second["last"]) == (2, 2, 4)

    on_site(body)


def test_ports_are_captured_as_long_as_somebody_follows() -> None:
    async def body(site: Site) -> None:
        await site.ask("one", kind="capture", port="uid-a", bytes=100)
        await site.ask("two", kind="capture", port="uid-b", bytes=500)
        await site.ask("three", kind="capture", port="uid-b", bytes=50)
        await site.streams.end({"stream": "two"})
        await site.streams.end({"stream": "one"})
        await site.streams.end({"stream": "three"})
        await site.streams.end({"stream": "three"})
        assert site.captures == [(frozenset({3}), 100), (frozenset({3, 4}), 500), (frozenset({3, 4}), 100),
                                 (frozenset({4}), 50), (frozenset(), 0)]

    on_site(body)


def test_who_does_not_ask_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.streams, "LEASE_S", 0.1)

    async def body(site: Site) -> None:
        keeper = asyncio.create_task(site.streams.keep())
        await site.ask(kind="capture", port="uid-a", bytes=100)
        async with asyncio.timeout(5):
            while site.captures[-1] != (frozenset(), 0):            # noqa: ASYNC110 - the clock decides
                await asyncio.sleep(0.05)
        with pytest.raises(BadQuery, match="begin anew"):
            await site.ask(after=0, kind="capture", port="uid-a")
        keeper.cancel()

    on_site(body)


def test_captured_packets_say_direction_stage_and_why_they_were_dropped() -> None:
    async def body(site: Site) -> None:
        await site.ask("a", kind="capture", port="uid-a", bytes=10)
        await site.ask("b", kind="capture", port="uid-b", bytes=500, stage="after")
        site.streams.captured([packet(3, 4), packet(3, 4, stage=CaptureStage.AFTER),
                               packet(3, reason=DropReason.DENIED)], 0)
        seen = [(r["stage"], r["direction"], r["reason"], r["length"], len(r["data"]))
                for r in (await site.ask("a", 0))["records"]]
        assert seen == [("before", "out", "", 100, 16), ("after", "out", "", 100, 16),
                        ("before", "out", "DENIED", 100, 16)]
        assert [(r["stage"], r["direction"]) for r in (await site.ask("b", 0))["records"]] == [("after", "in")]

    on_site(body)


def test_an_endpoint_that_leaves_ends_its_stream() -> None:
    async def body(site: Site) -> None:
        await site.ask(kind="capture", port="uid-a", bytes=10)
        site.numbers["uid-a"] = 9                                   # gone, and back under another number
        with pytest.raises(BadQuery, match="no longer"):
            await site.ask(after=0)
        assert site.captures[-1] == (frozenset(), 0)

    on_site(body)


@pytest.mark.parametrize(("args", "words"), [
    ({"stream": ""}, "stream"),
    ({"stream": "x" * 65}, "stream"),
    ({"kind": "flows"}, "use drops, capture"),
    ({"kind": "capture"}, "port is missing"),
    ({"kind": "capture", "port": "uid-c"}, "not programmed"),
    ({"kind": "capture", "port": "uid-a", "stage": "amid"}, "use before, after"),
])
def test_bad_questions_are_told_what_is_wrong(args: dict[str, Any], words: str) -> None:
    async def body(site: Site) -> None:
        with pytest.raises(BadQuery, match=words):
            await site.ask(**{"stream": "s", **args})

    on_site(body)


def test_streams_are_few() -> None:
    async def body(site: Site) -> None:
        for number in range(MAX_STREAMS):
            await site.ask(str(number), kind="drops")
        with pytest.raises(BadQuery, match="end one"):
            await site.ask("more", kind="drops")

    on_site(body)



def test_records_of_bindings_are_told_by_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(network: str, number: int) -> dict[str, Any]:
        return {"event": "bound", "network": network, "external_port": number}

    async def test(site: Site) -> None:
        site.lost["bindings"] = 5
        assert await site.ask("all", kind="bindings") == {"records": [], "last": 0, "lost": 0}
        await site.ask("one", kind="bindings", network="default/front")
        site.streams.bindings([row("default/front", 1), row("default/back", 2)], 6)
        site.streams.drops([drop("uid-a")], 9)                  # another matter
        every = await site.ask("all", after=0)
        assert ([one["external_port"] for one in every["records"]], every["lost"]) == ([1, 2], 1)
        assert [one["external_port"] for one in (await site.ask("one", after=0))["records"]] == [1]

    on_site(test)
