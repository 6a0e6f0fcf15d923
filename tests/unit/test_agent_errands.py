"""What the agent releases by itself, and when: what is gone, what nobody took, what was put back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

import agent.lost
from agent.attachment import Attachment, Place
from agent.errands import Errands
from agent.lost import Lost

HANDED, INSIDE, PROCESS = Place(handed=True), Place(netns="web"), Place(pid=7)


def attachment(uid: str, place: Place, runtime: str = "docker", **more: Any) -> Attachment:
    return Attachment(runtime, f"id-{uid}", uid, uid, "default", "web", place, "eth0", **{"state": "up"} | more)


class World:
    """The rooms around the errands: an outcome, attachments, and what was released."""

    def __init__(self, *attachments: Attachment) -> None:
        self.attachments = {each.uid: each for each in attachments}
        self.released: list[str] = []
        self.host = SimpleNamespace(outcome=None, moved=asyncio.Event())
        self.files = SimpleNamespace(attachments=SimpleNamespace(all=lambda: list(self.attachments.values())))
        self.changed = asyncio.Event()
        self.lost = Lost(cast(Any, self.host), cast(Any, self.files))

    def show(self, gone: frozenset[str] = frozenset(), back: frozenset[str] = frozenset()) -> None:
        """A run of the reconciler."""
        self.host.outcome = SimpleNamespace(gone=gone, back=back)
        old, self.host.moved = self.host.moved, asyncio.Event()
        old.set()

    async def release(self, key: tuple[str, str], uid: str) -> None:
        self.released.append(uid)
        del self.attachments[uid]

    async def run(self, *, until_s: float) -> list[str]:
        unused = cast(Any, None)
        errands = Errands(cast(Any, self.host), unused, cast(Any, self.files), cast(Any, self), unused, unused)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(errands.release(), until_s)
        return sorted(self.released)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("GRACE_S", 0.1), ("BACK_S", 0.4), ("TAKE_S", 0.8)):
        monkeypatch.setattr(agent.lost, name, seconds)


ALL = (
    attachment("lost", HANDED, taken=True), attachment("returned", HANDED, taken=True),
    attachment("waiting", HANDED), attachment("asked", HANDED, state="asked"), attachment("runs", HANDED, taken=True),
    attachment("cni", INSIDE, "cni"), attachment("shell", INSIDE, "attach"), attachment("process", PROCESS, "attach"),
)
GONE = frozenset({"lost", "cni", "shell", "process"})


def test_each_has_its_time() -> None:
    async def all_times() -> None:
        world = World(*ALL)
        world.show(GONE, frozenset({"returned"}))
        seen: list[tuple[float, int]] = []
        began = asyncio.get_running_loop().time()

        async def note() -> None:
            while len(seen) < 5:
                await asyncio.sleep(0.01)
                while len(seen) < len(world.released):
                    seen.append((asyncio.get_running_loop().time() - began, len(seen)))

        noting = asyncio.create_task(note())
        await world.run(until_s=1.5)
        await noting
        assert set(world.released[:3]) == {"lost", "cni", "process"}
        assert world.released[3:] == ["returned", "waiting"]    # and never what runs, was asked, or is a person's
        assert [at >= least for (at, _), least in zip(seen, (0.1, 0.1, 0.1, 0.4, 0.8), strict=True)] == [True] * 5

    asyncio.run(all_times())


def test_what_comes_again_in_time_stays_and_its_time_begins_anew() -> None:
    async def twice() -> None:
        world = World(attachment("a", HANDED, taken=True))
        world.show(back=frozenset({"a"}))

        async def take_and_return() -> None:
            await asyncio.sleep(0.25)
            world.show()
            await asyncio.sleep(0.1)
            world.show(back=frozenset({"a"}))

        moving = asyncio.create_task(take_and_return())
        assert await world.run(until_s=0.6) == []
        await moving
        assert await world.run(until_s=0.6) == ["a"]

    asyncio.run(twice())


def test_one_that_is_taken_in_time_stays() -> None:
    async def taken() -> None:
        world = World(attachment("a", HANDED))
        world.show()

        async def take() -> None:
            await asyncio.sleep(0.3)
            world.attachments["a"] = replace(world.attachments["a"], taken=True)
            world.changed.set()

        taking = asyncio.create_task(take())
        assert await world.run(until_s=1.2) == []
        await taking

    asyncio.run(taken())
