"""What the agent keeps on disk: whole or absent, readable by the next process, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_kit import HOST, goals, mapping, nat, overlay, port, remote

from agent.goals import Goals, NotAtBase, apply_delta, from_sync
from agent.ids import Ids
from agent.state import Disk
from southbound.messages import Delta, FullSync, key_of

NAT, RED = nat(1), overlay(5001)
WEB = port("web", NAT, "192.168.1.5", 5)
FAR = remote("far", RED, "10.1.0.9", 8)
STATE = goals(HOST, NAT, RED, WEB, FAR, mapping("m", WEB, 8080, 80), revision=12)


def test_what_is_saved_is_what_the_next_process_loads(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    ids = Ids({"a": 1}, {"b": 2}, {"lan0": 1}, {"172.16.0.10": 1}, 7)
    disk.save_goals(STATE)
    disk.save_ids(ids)
    disk.save_store("store-1")
    stored = Disk(tmp_path).load()
    assert (stored.goals, stored.ids, stored.store) == (STATE, ids, "store-1")


def test_nothing_saved_is_revision_zero(tmp_path: Path) -> None:
    stored = Disk(tmp_path / "new").load()
    assert (stored.goals, stored.ids, stored.store) == (Goals(), Ids(), "")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("goal.msgpack", b"\x81\xa1t"),
        ("goal.msgpack", b""),
        ("agent.json", b"{"),
        ("agent.json", b"[]"),
        ("agent.json", b'{"format": 99}'),
        (
            "agent.json",
            b'{"format": 1, "store": "", "ids":'
            b' {"ports": {"a": 1, "b": 1}, "bridges": {}, "uplinks": {}, "pools": {}, "last_port": 1}}',
        ),
    ],
)
def test_an_unreadable_file_is_put_aside_and_the_other_kept(tmp_path: Path, name: str, content: bytes) -> None:
    disk = Disk(tmp_path)
    disk.save_goals(STATE)
    disk.save_ids(Ids({"a": 3}))
    (tmp_path / name).write_bytes(content)
    stored = Disk(tmp_path).load()
    if name == "goal.msgpack":
        assert (stored.goals, stored.ids) == (Goals(), Ids({"a": 3}))
    else:
        assert (stored.goals, stored.ids) == (STATE, Ids())
    assert (tmp_path / f"{name}.unreadable").read_bytes() == content


def test_a_message_of_another_kind_is_no_goal_state(tmp_path: Path) -> None:
    from southbound.codec import encode
    from southbound.messages import Ping

    (tmp_path / "goal.msgpack").write_bytes(encode(Ping(1)))
    assert Disk(tmp_path).load().goals == Goals()


def test_delta_puts_and_removes_from_its_base_only() -> None:
    before = from_sync(FullSync(3, (HOST, NAT, WEB)))
    after = apply_delta(before, Delta(3, 5, (RED,), (key_of(WEB), ("port", "never-was"))))
    assert after.revision == 5
    assert set(after.objects) == {key_of(HOST), key_of(NAT), key_of(RED)}
    with pytest.raises(NotAtBase, match="revision 4"):
        apply_delta(before, Delta(4, 5, (), ()))
