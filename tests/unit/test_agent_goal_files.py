"""The goal state on disk: a small write for a small change, and whatever was cut short was never acknowledged."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_kit import HOST, overlay, port, remotes

from agent.goal_files import GOAL_FILES, GoalFiles
from agent.goals import Goals
from southbound.messages import Goal, Key, key_of

RED = overlay(5001)


def goals_of(revision: int, objects: dict[Key, Goal]) -> Goals:
    return Goals(revision, dict(objects))


def many() -> dict[Key, Goal]:
    found: list[Goal] = [HOST, RED, port("a", RED, "10.1.0.2", 2)]
    found += [remotes(RED, *((f"e{n}", f"10.1.{block}.{n}", n, "") for n in range(200)), block=block)
              for block in range(100)]
    return {key_of(goal): goal for goal in found}


def change(objects: dict[Key, Goal], chosen: random.Random) -> None:
    block = chosen.randrange(100)
    new = remotes(RED, *((f"n{n}", f"10.1.{block}.{n}", n, "") for n in range(chosen.randrange(1, 200))), block=block)
    if chosen.random() < 0.3:
        objects.pop(key_of(new), None)
    else:
        objects[key_of(new)] = new


def test_what_was_saved_last_is_loaded_whatever_came_before(tmp_path: Path) -> None:
    chosen, objects, files = random.Random(1), many(), GoalFiles(tmp_path)
    for revision in range(1, 300):
        for _ in range(chosen.randrange(3)):
            change(objects, chosen)
        files.save(goals_of(revision, objects))
        if revision % 20 == 0:
            assert GoalFiles(tmp_path).load() == goals_of(revision, objects)
        if revision % 70 == 0:
            files = GoalFiles(tmp_path)                 # the agent was started again
    assert {path.name for path in tmp_path.iterdir()} == set(GOAL_FILES)


def test_a_small_change_writes_little_and_the_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    objects, files = many(), GoalFiles(tmp_path)
    files.save(goals_of(1, objects))
    snapshot, log = (tmp_path / name for name in GOAL_FILES)
    whole = snapshot.stat().st_size
    before = snapshot.read_bytes()
    assert not log.exists()
    chosen = random.Random(2)
    change(objects, chosen)
    files.save(goals_of(2, objects))
    assert snapshot.read_bytes() == before
    assert 0 < log.stat().st_size < whole / 20
    for revision in range(3, 450):
        change(objects, chosen)
        files.save(goals_of(revision, objects))
        assert not log.exists() or log.stat().st_size <= 1.1 * snapshot.stat().st_size + (1 << 16)
    assert snapshot.read_bytes() != before


@pytest.mark.parametrize("spoil", [
    lambda data: data[:-1],
    lambda data: data[:-1] + bytes((data[-1] ^ 1,)),
    lambda data: data + b"\x05\x00",
    lambda data: data + bytes(64),
])
def test_a_log_that_was_cut_short_tells_what_was_whole(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    objects, files = many(), GoalFiles(tmp_path)
    states = []
    chosen = random.Random(3)
    for revision in range(1, 5):
        change(objects, chosen)
        files.save(goals_of(revision, objects))
        states.append(goals_of(revision, objects))
    log = tmp_path / GOAL_FILES[1]
    data = log.read_bytes()
    log.write_bytes(spoil(data))
    assert GoalFiles(tmp_path).load() == (states[3] if len(spoil(data)) > len(data) else states[2])


def test_the_log_of_another_snapshot_is_none(tmp_path: Path) -> None:
    objects, files = many(), GoalFiles(tmp_path)
    files.save(goals_of(1, objects))
    change(objects, random.Random(4))
    files.save(goals_of(2, objects))
    stale = (tmp_path / GOAL_FILES[1]).read_bytes()
    fresh = GoalFiles(tmp_path)
    other = {key_of(HOST): HOST}
    fresh.save(Goals(1, dict(other)))                   # another controller, from its beginning
    (tmp_path / GOAL_FILES[1]).write_bytes(stale)
    assert GoalFiles(tmp_path).load() == Goals(1, dict(other))


def test_a_write_that_fails_is_made_good_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, files = many(), GoalFiles(tmp_path)
    files.save(goals_of(1, objects))
    change(objects, random.Random(5))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("agent.goal_files.os.fdatasync", full)
        with pytest.raises(OSError, match="No space"):
            files.save(goals_of(2, objects))
    files.save(goals_of(3, objects))
    assert GoalFiles(tmp_path).load() == goals_of(3, objects)
