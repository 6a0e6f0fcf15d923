"""On generated segments the kernel's engine does to each frame what the reference does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from engine_backends import BpfBackend
from engine_steps import History, on_segments
from hypothesis import HealthCheck, given, settings
from test_engine_differential import replay

from vfp.reference import engine


@pytest.fixture(scope="module")
def bpf() -> Iterator[BpfBackend]:
    backend = BpfBackend()
    yield backend
    backend.close()


def test_the_kernel_switches_as_the_reference_switches(bpf: BpfBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    leave = engine.Engine._take

    def take(self: engine.Engine, passage: engine._Passage) -> engine.Result:
        result = leave(self, passage)
        seen[result.reason.name if result.verdict is engine.Verdict.DROP else result.verdict.value] += 1
        return result

    monkeypatch.setattr(engine.Engine, "_take", take)

    @given(history=on_segments())
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    def look(history: History) -> None:
        replay(history, bpf)

    look()
    wanted = ("redirect_port", "redirect_wire", "redirect_uplink", "flood", "reply", "NOT_FLOODED", "NO_MAPPING",
              "VLAN_TAGGED")
    assert not {name: seen[name] for name in wanted if seen[name] < 3}, seen
