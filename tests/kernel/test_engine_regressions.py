"""Cases on which the engines once differed, found by fuzzing (`make fuzz`), each a file in `regressions`."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_fuzz import REGRESSIONS
from engine_shrink import shrunk, source_of
from engine_states import states
from engine_storms import AgeingBpf, AgeingReference, Case, Difference, Send, rage, replay, storms, waits_s
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import vfp.model
import vfp.reference
from vfp.reasons import DropReason


@pytest.fixture(scope="module")
def bpf() -> Iterator[AgeingBpf]:
    backend = AgeingBpf()
    yield backend
    backend.close()


def _case(path: Path) -> Case:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    case = module.CASE
    assert isinstance(case, Case)
    return case


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*.py")), ids=lambda path: path.stem)
def test_a_difference_once_found_does_not_come_back(bpf: AgeingBpf, path: Path) -> None:
    case = _case(path)
    if waits_s(case) > time.monotonic() - 1:
        pytest.skip(f"{waits_s(case):.0f} s pass in this case, and the kernel's clock is younger than that")
    replay(case, bpf)


class Deaf(AgeingReference):
    """An engine with a fault: it takes port 53 for 54 in what it makes of a frame to port 53."""

    def process(self, *args, **kwargs):     # type: ignore[no-untyped-def]
        outcome = super().process(*args, **kwargs)
        frame: bytes = args[2]
        wrong = frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] == b"\0\x35"
        return type(outcome)("drop", DropReason.DENIED, 0, b"") if wrong else outcome


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_a_fault_is_found_and_cut_down_to_one_frame() -> None:
    """The harness: of a storm of hundreds of frames one is left, and hardly any policy."""

    @given(storm=storms())
    @settings(max_examples=20, deadline=None, database=None, derandomize=True, phases=(Phase.generate,),
              suppress_health_check=list(HealthCheck))
    def look(storm: object) -> None:
        rage(storm, Deaf())                 # type: ignore[arg-type]

    with pytest.raises(Difference) as caught:
        look()
    least = shrunk(caught.value, Deaf(), patience_s=20)
    assert len(least.case.events) == 1
    assert isinstance(least.case.events[0], Send)
    assert len(source_of(least.case)) < 1000


def test_a_second_reference_is_never_found_to_differ() -> None:
    @given(storm=storms())
    @settings(max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def look(storm: object) -> None:
        assert rage(storm, AgeingReference()).frames > 200      # type: ignore[arg-type]

    look()


@given(state=st.one_of(states(), states(plain=True)))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_policy_written_as_source_is_the_same_policy(state: vfp.model.EngineState) -> None:
    names = {**vars(vfp.model), "bytes": bytes, "Hook": vfp.reference.Hook}
    assert eval(source_of(state), names) == state
