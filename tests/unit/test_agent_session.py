"""The session from the agent's side: what is kept, applied, acknowledged, asked for and told, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from agent_kit import HOST, MAX_PORTS, FakeDatapath, FakeSwitch, nat, port

from agent.host import Host
from agent.reconcile import Reconciler
from agent.session import Session
from agent.state import Disk
from agent.worker import Worker
from southbound.client import AgentSession
from southbound.errors import ConnectionLost, SouthboundError
from southbound.messages import (
    PROTOCOL_VERSION,
    Ack,
    Delta,
    Facts,
    FullSync,
    Message,
    Resync,
    Welcome,
    key_of,
)

NAT = nat(1)
WEB, APP = port("web", NAT, "192.168.1.5", 5), port("app", NAT, "192.168.1.6", 6)
FULL = FullSync(4, (HOST, NAT, WEB))


class Script:
    """A session that says its lines and is lost; a callable among them is called in its turn."""

    def __init__(self, *lines: Any, store: str = "store-1") -> None:
        self.welcome = Welcome(PROTOCOL_VERSION, store, 5.0)
        self.sent: list[Message] = []
        self._lines = lines

    async def __aiter__(self) -> AsyncIterator[FullSync | Delta]:
        for line in self._lines:
            if callable(line):
                await line()
            else:
                yield line
        raise ConnectionLost("the script ends")

    async def send(self, message: Message) -> None:
        self.sent.append(message)


class Bench:
    """A host of fakes with its session logic."""

    def __init__(self, directory: Path, worker: Worker) -> None:
        self.switch, self.datapath = FakeSwitch(), FakeDatapath()
        self.disk = Disk(directory)
        ids = self.disk.load().ids
        reconciler = Reconciler(self.switch, self.datapath, self.disk, ids, MAX_PORTS)
        self.host = Host(worker, self.switch, reconciler, self.disk)
        self.session = Session(self.host, self._no_questions)

    async def _no_questions(self, what: str, args: dict[str, Any]) -> Any:
        raise AssertionError(what)

    async def play(self, *lines: Any, store: str = "store-1") -> list[Message]:
        script = Script(*lines, store=store)
        with pytest.raises(SouthboundError):
            await self.session.serve(cast(AgentSession, script))
        assert self.host.report is None
        return script.sent


def play(directory: Path, *lines: Any, store: str = "store-1") -> tuple[list[Message], Bench]:
    """What one agent's life says to one script."""
    with Worker() as worker:
        made = Bench(directory, worker)

        async def life() -> list[Message]:
            await made.host.start()
            return await made.play(*lines, store=store)

        return asyncio.run(life()), made


def test_goal_state_is_on_disk_and_applied_when_it_is_acknowledged(tmp_path: Path) -> None:
    sent, bench = play(tmp_path, FULL, Delta(4, 5, (APP,), (key_of(WEB),)))
    assert [type(message) for message in sent] == [Ack, Ack]
    assert [message.revision for message in sent if isinstance(message, Ack)] == [4, 5]
    assert Disk(tmp_path).load().goals.revision == 5
    assert [one.name for one in bench.datapath.applied[-1].ports] == ["default/app"]


def test_a_new_process_applies_its_disk_first_and_says_so_at_once(tmp_path: Path) -> None:
    play(tmp_path, FULL)
    sent, bench = play(tmp_path)
    assert len(bench.datapath.applied) == 1
    (ack,) = sent
    assert isinstance(ack, Ack)
    assert ack.revision == 4
    assert bench.host.goals.revision == 4


def test_with_nothing_on_disk_the_kernel_is_left_as_it_is(tmp_path: Path) -> None:
    sent, bench = play(tmp_path)
    assert (sent, bench.datapath.applied, bench.switch.calls) == ([], [], [])


def test_a_delta_from_elsewhere_asks_for_everything(tmp_path: Path) -> None:
    sent, bench = play(tmp_path, FULL, Delta(9, 10, (APP,), ()), FullSync(10, (HOST, NAT, WEB, APP)))
    assert [type(message) for message in sent] == [Ack, Resync, Ack]
    assert bench.host.goals.revision == 10


def test_goal_state_of_another_database_yields_only_to_a_full_sync(tmp_path: Path) -> None:
    play(tmp_path, FULL)
    sent, bench = play(tmp_path, Delta(4, 5, (APP,), ()), FullSync(2, (HOST, NAT, APP)), store="store-2")
    assert [type(message) for message in sent] == [Resync, Ack]
    assert bench.host.goals.revision == 2
    again, _ = play(tmp_path, store="store-2")
    assert [type(message) for message in again] == [Ack]


def test_what_mends_or_breaks_by_itself_is_told(tmp_path: Path) -> None:
    with Worker() as worker:
        bench = Bench(tmp_path, worker)
        bench.switch.missing.add(WEB.netns)

        async def appears() -> None:
            bench.switch.missing.clear()
            await bench.host.again()
            await bench.host.again()                    # nothing new: nothing said

        sent = asyncio.run(bench.play(FULL, appears))
    errors = [[s.error for s in message.objects if s.error] for message in sent if isinstance(message, Ack)]
    assert len(errors) == 2
    assert WEB.netns in errors[0][0]
    assert errors[1] == []


def test_facts_are_told_once_when_they_change(tmp_path: Path) -> None:
    with Worker() as worker:
        bench = Bench(tmp_path, worker)

        async def look() -> None:
            await bench.host.look_around()

        sent = asyncio.run(bench.play(look, look))
    assert [type(message) for message in sent] == [Facts]


def test_a_disk_that_refuses_ends_the_session_without_an_acknowledgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Worker() as worker:
        bench = Bench(tmp_path, worker)

        def full(_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(bench.disk, "save_goals", full)
        assert asyncio.run(bench.play(FULL)) == []
    assert bench.datapath.applied == []


def test_a_kernel_that_cannot_be_read_fails_every_object_and_is_told_when_it_can(tmp_path: Path) -> None:
    with Worker() as worker:
        bench = Bench(tmp_path, worker)
        owned = bench.switch.owned

        def broken() -> Any:
            raise OSError(105, "No buffer space available")

        bench.switch.owned = broken  # type: ignore[method-assign]

        async def mend() -> None:
            bench.switch.owned = owned  # type: ignore[method-assign]
            await bench.host.again()

        first, second = asyncio.run(bench.play(FULL, mend))
    assert isinstance(first, Ack)
    assert isinstance(second, Ack)
    assert all("No buffer space" in status.error for status in first.objects)
    assert all(status.error == "" for status in second.objects)


def test_a_lan_that_is_joined_later_degrades_the_network_and_is_told(tmp_path: Path) -> None:
    async def life() -> None:
        with Worker() as worker:
            bench = Bench(tmp_path, worker)
            host = bench.host

            async def join_lan() -> None:
                bench.switch.joined = [("wlan0", "192.168.1.77/16")]
                await host.look_around()

            async def leave_lan() -> None:
                bench.switch.joined = []
                await host.look_around()

            sent = await bench.play(FULL, join_lan, leave_lan)
            acks = [message for message in sent if isinstance(message, Ack)]
            told = [{one.id: one.details.get("overlap") for one in ack.objects}[NAT.id] for ack in acks]
            assert told == [None, "overlap with wlan0 192.168.0.0/16", None]
            assert not any(one.error for ack in acks for one in ack.objects)

            await join_lan()                # without a controller
            assert host.report is None
            assert {uid: str(overlap) for uid, overlap in host.overlaps.items()} == {NAT.id: told[1]}
            assert bench.switch.bridges["slb1"].addresses == ("192.168.1.1/24",)    # a hole in the LAN

            gateway = ("192.168.1.1/24",)
            for address, kept in (("192.168.1.77/24", ()), ("192.168.1.77/25", ()), ("10.0.0.1/8", gateway)):
                bench.switch.joined = [("wlan0", address)]
                await host.look_around()
                assert bench.switch.bridges["slb1"].addresses == kept

    asyncio.run(life())


def test_an_overlap_that_was_there_at_the_start_is_told_with_the_first_ack(tmp_path: Path) -> None:
    async def life() -> None:
        with Worker() as worker:
            bench = Bench(tmp_path, worker)
            bench.switch.joined = [("tun0", "192.168.1.0/25"), ("tun0", "192.168.1.200/32"), ("lan1", "10.0.0.0/8")]
            await bench.host.start()
            (ack,) = [message for message in await bench.play(FULL) if isinstance(message, Ack)]
            (told,) = [one.details["overlap"] for one in ack.objects if "overlap" in one.details]
            assert told == "overlap with tun0 192.168.1.0/25"

    asyncio.run(life())


def test_a_new_listening_socket_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.host.LISTENERS_EVERY_S", 0.01)

    async def life() -> None:
        with Worker() as worker:
            bench = Bench(tmp_path, worker)

            async def open_socket() -> None:
                bench.switch.listening = [("tcp", "0.0.0.0", 8080)]
                listening = asyncio.create_task(bench.host.listen())
                await asyncio.sleep(0.1)
                listening.cancel()

            told = [message for message in await bench.play(FULL, open_socket) if isinstance(message, Facts)]
            assert [one.facts.listeners for one in told] == [(("tcp", "0.0.0.0", 8080),)]

    asyncio.run(life())
