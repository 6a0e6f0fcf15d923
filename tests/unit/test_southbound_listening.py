"""A daemon's Unix socket: one living process a path, nothing of a dead one stays, nothing of a later one goes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from southbound.listening import PathTaken, listen


def dead(path: Path) -> None:
    """What a killed process leaves."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


def test_it_is_for_its_owner_and_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "run/agent.sock"
    mine = listen(path, "agent", "--socket")
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(path))
    with pytest.raises(PathTaken, match=r"another agent answers at .*; stop it, or give another with --socket"):
        listen(path, "agent", "--socket")
    mine.remove()
    mine.remove()
    assert list(path.parent.iterdir()) == []


def test_what_a_killed_process_left_is_replaced_wherever_it_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    dead(path)
    dead(tmp_path / ".agent.sock.4194304")              # before it gave the socket its name
    (tmp_path / ".agent.sock.notes").write_text("of somebody else")
    mine = listen(path, "agent", "--socket")
    assert {each.name for each in tmp_path.iterdir()} == {"agent.sock", ".agent.sock.notes"}
    mine.remove()


def test_that_of_a_later_process_stays(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    first = listen(path, "agent", "--socket")
    path.unlink()
    second = listen(path, "agent", "--socket")
    first.remove()
    assert path.is_socket()
    second.remove()
    assert not path.exists()


def test_what_is_in_the_way_stays_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("mine")
    with pytest.raises(PathTaken, match="is not a socket; remove it, or give another with --socket"):
        listen(path, "agent", "--socket")
    assert path.read_text() == "mine"
    with pytest.raises(PathTaken, match="too long for a socket"):
        listen(tmp_path / ("x" * 100) / "agent.sock", "agent", "--socket")
    with pytest.raises(PathTaken, match="cannot listen on"):
        listen(path / "agent.sock", "agent", "--socket")
    assert [each.name for each in tmp_path.iterdir()] == ["agent.sock"]
