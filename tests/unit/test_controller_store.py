"""The store: what a commit returned is there after a kill, what did not return is there whole or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from controller_kit import FACTS, WORLD, Parts, endpoint, mapping, nat, overlay, with_parts

from controller.ledger import Ledger
from controller.state import State, Stored
from controller.store import Report, SqliteStore, StoreError

KILLED_WRITER = """
import asyncio, sys
from pathlib import Path
from controller.ledger import Ledger
from controller.store import SqliteStore

async def main():
    ledger = Ledger(SqliteStore(Path(sys.argv[1])))
    print("ready", flush=True)
    n = 0
    while True:
        documents = [{"apiVersion": "sluice/v1", "kind": "Tenant", "metadata": {"name": f"t{n}-{i}"}}
                     for i in range(5)]
        outcome = await ledger.apply(documents)
        print(outcome.revision, flush=True)
        n += 1

asyncio.run(main())
"""


def same(a: State, b: State) -> bool:
    def parts(of: State) -> list[object]:
        return [of.revision, of.cursors, of.objects, of.addresses, of.macs, of.spaces, of.interfaces, of.underlays,
                of.uids, of.externals, of.in_tenant.keys(), {k: set(v) for k, v in of.in_network.items()},
                {k: set(v) for k, v in of.on_host.items()}, {k: set(v) for k, v in of.mapped.items()}]

    return parts(a) == parts(b)


def test_a_reopened_store_has_the_same_state_cursors_identity_and_reports(tmp_path: Path) -> None:
    async def body(parts: Parts) -> tuple[State, str]:
        await parts.world()
        await parts.http.delete("/v1/tenants/default/endpoints/b")
        return parts.ledger.state, parts.ledger.identity

    state, identity = with_parts(tmp_path, body)
    store = SqliteStore(tmp_path / "sluice.db")
    try:
        assert same(store.load(), state)
        assert same(State.of(state.objects.values(), state.revision, state.cursors), state)   # indexes, from scratch
        assert store.identity == identity
        assert store.reports() == {"h1": Report("test", FACTS)}
    finally:
        store.close()


def test_a_kill_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "sluice.db"
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", KILLED_WRITER, str(path)], stdout=subprocess.PIPE,
                              text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            answered = 0
            for _ in range(7):
                answered = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
            rest = writer.stdout.read().split()
        answered = int(rest[-1]) if rest else answered
        store = SqliteStore(path)
        try:
            state = store.load()
            assert state.revision in (answered, answered + 1)
            tenants = [s for s in state.objects.values() if s.ref.kind == "Tenant" and s.ref.name != "default"]
            assert len(tenants) == 5 * (state.revision - 1)     # five a commit, never fewer
        finally:
            store.close()
        path.unlink()
        for beside in tmp_path.glob("sluice.db-*"):
            beside.unlink()


def test_a_store_of_a_newer_version_or_that_is_no_database_is_refused(tmp_path: Path) -> None:
    newer = tmp_path / "newer.db"
    SqliteStore(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="schema version 99"):
        SqliteStore(newer)
    (tmp_path / "text.db").write_text("this is not a database, and long enough to be looked at " * 50)
    with pytest.raises(StoreError, match="cannot open"):
        SqliteStore(tmp_path / "text.db")
    with pytest.raises(StoreError, match="cannot open"):
        SqliteStore(tmp_path / "no" / "folder.db")


SINCE_3 = {"Network": ("peers", "routes", "egress", "isolation", "routerAdvertisements", "slaac"),
           "Host": ("external",), "Endpoint": ("queues", "dhcp", "forwards", "vlans")}
"""Fields that the specs of schema version 3 have, by kind."""
SINCE_4 = {"Host": ("runtimes",), "Endpoint": ("veth",)}


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_of_before_opens_and_an_older_controller_does_not_open_it_then(tmp_path: Path, version: int) -> None:
    """Of before other modes, and before leases: fewer fields in specs."""
    since = [SINCE_4, SINCE_3][:4 - version]
    path = tmp_path / "sluice.db"

    async def before(parts: Parts) -> State:
        await parts.world()
        return parts.ledger.state

    state = with_parts(tmp_path, before)
    connection = sqlite3.connect(path)
    for kind, name, spec in connection.execute("SELECT kind, name, spec FROM objects").fetchall():
        old_spec = {k: v for k, v in json.loads(spec).items()
                    if not any(k in each.get(kind, ()) for each in since)}
        connection.execute("UPDATE objects SET spec = ? WHERE kind = ? AND name = ?",
                           (json.dumps(old_spec), kind, name))
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()

    async def after(parts: Parts) -> None:
        assert same(parts.ledger.state, state)

    with_parts(tmp_path, after)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (4,)
    connection.close()


def test_a_store_of_version_1_opens_and_goes_on(tmp_path: Path) -> None:
    """Of before networks had several subnets: no subnets assigned, cursors of 64 bits, fewer fields in specs."""
    path = tmp_path / "sluice.db"

    async def before(parts: Parts) -> State:
        await parts.world()
        await parts.apply(mapping("auto", "office", "web", "auto"))
        return parts.ledger.state

    state = with_parts(tmp_path, before)
    connection = sqlite3.connect(path)
    new_fields = {"Network": ("onOverlap", *SINCE_3["Network"]), "StaticMapping": ("allowFrom",),
                  "Host": ("mappingPorts", "avoidPrefixes", "autoPrefixes", *SINCE_3["Host"], "runtimes"),
                  "Endpoint": SINCE_3["Endpoint"]}
    for kind, name, spec, assigned in connection.execute("SELECT kind, name, spec, assigned FROM objects").fetchall():
        old_spec = {k: v for k, v in json.loads(spec).items() if k not in new_fields.get(kind, ())}
        for subnet in old_spec.get("subnets", ()):
            del subnet["allocate"], subnet["exclude"]
        old_assigned = {k: v for k, v in json.loads(assigned).items() if k != "subnets"}
        connection.execute("UPDATE objects SET spec = ?, assigned = ? WHERE kind = ? AND name = ?",
                           (json.dumps(old_spec), json.dumps(old_assigned), kind, name))
    connection.execute("ALTER TABLE cursors RENAME TO later")
    connection.execute("CREATE TABLE cursors (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID")
    connection.execute("INSERT INTO cursors SELECT key, CAST(value AS INTEGER) FROM later")
    connection.execute("DROP TABLE later")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()

    async def after(parts: Parts) -> None:
        assert same(parts.ledger.state, state)
        assert {i["result"] for i in (await parts.apply(*WORLD)).json()["items"]} == {"unchanged"}
        six = nat("six", "fd00:5::/64")
        six["spec"]["subnets"][0]["allocate"] = ["fd00:5::ffff:0:0:0/80"]
        answer = await parts.apply(six, endpoint("late", "office"), endpoint("far", "six"))
        assert [i["resource"]["status"].get("address") for i in answer.json()["items"][1:]] == ["192.168.250.3", None]

    async def again(parts: Parts) -> None:      # a cursor of 128 bits is there after a restart
        answer = await parts.apply(endpoint("next", "six"))
        assert answer.json()["items"][0]["resource"]["status"]["address6"] == "fd00:5::ffff:0:0:1"

    with_parts(tmp_path, after)
    with_parts(tmp_path, again)


def test_a_second_writer_is_noticed_and_nothing_is_changed(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        other = Ledger(SqliteStore(tmp_path / "sluice.db"))
        await other.apply([overlay("theirs")])
        before = parts.ledger.state
        answer = await parts.apply(overlay("ours"))
        assert answer.status_code == 503
        assert "another program" in answer.json()["error"]["message"]
        assert parts.ledger.state is before
        await other.close()

    with_parts(tmp_path, body)


def test_revisions_rise_by_one_and_unchanged_documents_do_not_move_them(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        revision = parts.ledger.state.revision
        again = await parts.apply(*WORLD)
        assert {item["result"] for item in again.json()["items"]} == {"unchanged"}
        assert again.json()["revision"] == parts.ledger.state.revision == revision
        more = await parts.apply(*WORLD, endpoint("c", "red"))
        assert more.json()["revision"] == revision + 1
        assert [i["result"] for i in more.json()["items"]] == ["unchanged"] * len(WORLD) + ["created"]
        untouched: Stored[object] = next(s for s in parts.ledger.state.objects.values() if s.ref.name == "red")
        assert untouched.revision == revision

    with_parts(tmp_path, body)


def test_a_deleted_and_remade_object_is_a_new_one(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        path = "/v1/tenants/default/endpoints/b"
        before = (await parts.http.get(path)).json()
        assert (await parts.http.delete(path)).status_code == 200
        assert (await parts.http.get(path)).status_code == 404
        await parts.apply(endpoint("b", "red", "h2"))
        after = (await parts.http.get(path)).json()
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert after["status"]["address"] != before["status"]["address"]    # not the one just freed

    with_parts(tmp_path, body)


def test_automatic_choices_stay_and_avoid_what_others_hold(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        # The explicit address comes later in the request and still wins over the automatic one.
        answer = await parts.apply(endpoint("auto", "blue"), endpoint("fixed", "blue", address="10.1.0.2"))
        addresses = [item["resource"]["status"]["address"] for item in answer.json()["items"]]
        assert addresses == ["10.1.0.3", "10.1.0.2"]
        ports = []
        for name in ("m1", "m2", "m1"):
            answer = await parts.apply(mapping(name, "office", "web", "auto", 81 if name == "m2" else 80))
            ports.append(answer.json()["items"][0]["resource"]["status"]["externalPort"])
        assert ports == [10000, 10001, 10000]
        changed = await parts.apply(mapping("m1", "office", "web", "auto", 8081))
        assert changed.json()["items"][0]["resource"]["status"]["externalPort"] == 10000

    with_parts(tmp_path, body)


def test_a_client_that_goes_away_does_not_part_memory_from_disk(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        task = asyncio.create_task(parts.ledger.apply([overlay("x")]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await parts.ledger.apply([overlay("y")])        # would be refused if memory had fallen behind
        assert {n.ref.name for n in parts.ledger.state.networks()} == {"x", "y"}

    with_parts(tmp_path, body)
