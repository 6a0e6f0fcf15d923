"""The check that fails a run which leaves something behind notices what it must."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import leaks


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "GRACE_S", 0.3)


def watch() -> leaks.Watch:
    """A session of its own, without the mark in our environment, which is the real session's."""
    return leaks.Watch("another-mark", leaks.photograph(), alone=True)


def test_a_process_that_stays_is_found_and_certain() -> None:
    begun = watch()
    process = subprocess.Popen(["sleep", "60"], env={**os.environ, leaks.MARK: begun.mark})
    try:
        found = leaks.end(begun)
        assert found.certain
        assert any(f"process {process.pid} sleep 60" in thing for thing in found.things)
    finally:
        process.kill()
        process.wait()
    assert not any(thing.startswith("process") for thing in leaks.end(begun).things)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace, which needs root")
def test_a_namespace_that_stays_is_found() -> None:
    begun = watch()
    subprocess.run(["ip", "netns", "add", "cli-leak"], check=True)
    try:
        assert "namespace cli-leak" in leaks.end(begun).things
    finally:
        subprocess.run(["ip", "netns", "delete", "cli-leak"], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a pin, which needs root")
def test_a_pin_that_stays_is_found() -> None:
    begun = watch()
    folder = Path("/sys/fs/bpf/cli-leak")
    folder.mkdir()
    try:
        assert f"pin {folder}" in leaks.end(begun).things
    finally:
        folder.rmdir()


def test_this_process_and_those_above_it_are_not_somebody_else() -> None:
    assert os.getpid() in leaks._ancestors()
    assert os.getppid() in leaks._ancestors()


@pytest.mark.parametrize(("maps", "elements", "certain"), [
    (("7 prog_array jumps",), 0, False),
    (("7 prog_array jumps",), 1, True),
    (("7 prog_array jumps", "8 hash flows"), 0, True),
])
def test_an_empty_program_array_alone_is_the_kernels_own(
    monkeypatch: pytest.MonkeyPatch, maps: tuple[str, ...], elements: int, certain: bool
) -> None:
    begun = watch()
    after = {**begun.before, "BPF map": begun.before["BPF map"] | set(maps)}
    monkeypatch.setattr(leaks, "photograph", lambda: after)
    monkeypatch.setattr(leaks, "others", lambda mark: False)
    monkeypatch.setattr(leaks, "_elements", lambda map_id: elements)
    found = leaks.end(begun)
    assert found.things == tuple(f"BPF map {name}" for name in maps)
    assert found.certain == certain
