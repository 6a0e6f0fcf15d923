"""How often the agent looks at every flow: often while that costs little, seldom while there is none."""

from __future__ import annotations

import asyncio
import time

import pytest

from agent import app
from agent.worker import Worker
from vfp.datapath.engine import Datapath, Swept


class Table:
    """In place of the datapath: so many flows, and when each look was."""

    def __init__(self, flows: int) -> None:
        self.flows = flows
        self.looks: list[float] = []
        self.reaps = 0

    def reap(self) -> Swept:
        self.reaps += 1
        return Swept(0, 0)

    def age(self) -> Swept:
        self.looks.append(time.monotonic())
        return Swept(self.flows, 0)


def looks(table: Table, monkeypatch: pytest.MonkeyPatch, seconds: float) -> int:
    monkeypatch.setattr(app, "REAP_EVERY_S", 0.01)
    monkeypatch.setattr(app, "SWEEP_EMPTY_S", 0.25)
    monkeypatch.setattr(app, "SWEEP_SHARE", 1.0)

    async def some_time() -> None:
        datapath: Datapath = table      # type: ignore[assignment]
        with Worker() as ager:
            ageing = asyncio.create_task(app._age(datapath, ager))
            await asyncio.sleep(seconds)
            ageing.cancel()

    asyncio.run(some_time())
    return len(table.looks)


def test_an_empty_table_is_looked_at_seldom_but_reaped_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(0)
    assert 1 <= looks(table, monkeypatch, 0.6) <= 3
    assert table.reaps > 5


def test_one_with_flows_is_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(1)
    assert looks(table, monkeypatch, 0.6) > 5
