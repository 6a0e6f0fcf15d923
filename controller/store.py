"""Where declared objects live: a small protocol, and SQLite behind it.

One commit is one transaction and one revision; the write-ahead log with synchronous=FULL makes a returned commit
survive a power cut. Calls block: the ledger makes them in a thread of their own.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from controller.documents import spec_json
from controller.resources import SPECS, NetworkSpec
from controller.state import AnyStored, Assigned, Ref, State, Stored
from controller.subnets import declared
from southbound.messages import HostFacts

SCHEMA_VERSION = 4
KEPT_EVENTS = 20_000                        # of the watch log

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE objects (
    kind TEXT NOT NULL, tenant TEXT NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL, created_at TEXT NOT NULL, labels TEXT NOT NULL, spec TEXT NOT NULL,
    assigned TEXT NOT NULL, PRIMARY KEY (kind, tenant, name)) WITHOUT ROWID;
CREATE TABLE cursors (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY, revision INTEGER NOT NULL, type TEXT NOT NULL, kind TEXT NOT NULL,
    tenant TEXT NOT NULL, name TEXT NOT NULL, resource TEXT NOT NULL);
CREATE INDEX events_by_revision ON events (revision);
CREATE TABLE reports (host TEXT PRIMARY KEY, agent TEXT NOT NULL, facts TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tokens (secret_hash TEXT PRIMARY KEY, host TEXT NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
"""


class StoreError(Exception):
    """The store cannot be opened, read or written; the message says which file and what to do."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change, for watchers. `resource` is the document after it (before it, for a delete)."""

    revision: int
    type: Literal["put", "delete"]
    ref: Ref
    resource: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Commit:
    """One transaction: from the state at `base` to `revision`."""

    base: int
    revision: int
    put: tuple[AnyStored, ...]
    removed: tuple[Ref, ...]
    cursors: Mapping[str, int | None]       # changed ones; None: dropped
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What an agent said of itself and its host last."""

    agent: str
    facts: HostFacts


TokenFate = Literal["taken", "unknown", "expired", "other host"]


class Store(Protocol):
    """What the controller needs of a database. `identity` is made with the database and never changes."""

    @property
    def identity(self) -> str:
        """A random name of this database."""

    def load(self) -> State:
        """Everything declared."""

    def commit(self, commit: Commit) -> None:
        """Do all of it or nothing. Raises `StoreError`, also when the store is not at `base`."""

    def events_after(self, revision: int) -> list[Event] | None:
        """The watch log behind a revision, oldest first; None: it does not reach back that far."""

    def reports(self) -> dict[str, Report]:
        """The last report of each host."""

    def save_report(self, host: str, report: Report) -> None:
        """Keep a report; no revision."""

    def add_token(self, secret_hash: str, host: str, expires_at: float, now: float) -> None:
        """Keep a join token (and forget expired ones). Times are seconds since 1970."""

    def take_token(self, secret_hash: str, host: str, now: float) -> TokenFate:
        """Use a token up, if it is good for this host."""

    def close(self) -> None:
        """Close the database."""


class SqliteStore:
    """A `Store` in one SQLite file. Made in one thread, used from one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create.

        Raises:
            StoreError: no database, of a newer version, damaged, or the file cannot be written.
        """
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._migrate()
                self.identity = self._meta("identity")
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise StoreError(f"cannot open the store {path}: {error}; check the file and its folder") from error

    def _migrate(self) -> None:
        with self._transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == SCHEMA_VERSION:
                return
            if version in (1, 2, 3):
                if version == 1:
                    self._from_version_1()
                # Versions 3 and 4 have fields that an older controller cannot read, and nothing else.
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                return
            if version != 0:
                raise StoreError(f"the store {self._path} has schema version {version}, this controller knows "
                                 f"{SCHEMA_VERSION}; run the controller that wrote it, or a newer one")
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.executemany("INSERT INTO meta VALUES (?, ?)",
                                 [("identity", str(uuid.uuid4())), ("revision", "0")])
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _from_version_1(self) -> None:
        """Networks had one subnet, in use as declared; cursors were integers of 64 bits, too short for IPv6."""
        rows = self._db.execute("SELECT tenant, name, spec, assigned FROM objects WHERE kind = 'Network'").fetchall()
        for tenant, name, spec, assigned in rows:
            subnets = [asdict(declared(each)) for each in NetworkSpec.model_validate_json(spec).subnets]
            self._db.execute("UPDATE objects SET assigned = ? WHERE kind = 'Network' AND tenant = ? AND name = ?",
                             (json.dumps({**json.loads(assigned), "subnets": subnets}), tenant, name))
        self._db.execute("ALTER TABLE cursors RENAME TO cursors_1")
        self._db.execute("CREATE TABLE cursors (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        self._db.execute("INSERT INTO cursors SELECT key, CAST(value AS TEXT) FROM cursors_1")
        self._db.execute("DROP TABLE cursors_1")

    def load(self) -> State:
        """Everything declared."""
        with self._transaction():
            rows = self._db.execute("SELECT * FROM objects").fetchall()
            cursors = {key: int(value) for key, value in self._db.execute("SELECT key, value FROM cursors").fetchall()}
            return State.of(map(_stored, rows), int(self._meta("revision")), cursors)

    def commit(self, commit: Commit) -> None:
        """Do all of it or nothing."""
        with self._transaction():
            found = int(self._meta("revision"))
            if found != commit.base:
                raise StoreError(f"the store {self._path} is at revision {found}, not {commit.base}: another program "
                                 "writes to it; stop that one and start the controller again")
            self._db.executemany("DELETE FROM objects WHERE kind = ? AND tenant = ? AND name = ?", commit.removed)
            self._db.executemany("DELETE FROM reports WHERE host = ?",
                                 [(ref.name,) for ref in commit.removed if ref.kind == "Host"])
            self._db.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                                 map(_row, commit.put))
            for key, value in commit.cursors.items():
                if value is None:
                    self._db.execute("DELETE FROM cursors WHERE key = ?", (key,))
                else:
                    self._db.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (key, str(value)))
            self._db.executemany(
                "INSERT INTO events (revision, type, kind, tenant, name, resource) VALUES (?, ?, ?, ?, ?, ?)",
                [(e.revision, e.type, *e.ref, json.dumps(e.resource)) for e in commit.events])
            self._db.execute("DELETE FROM events WHERE sequence <= (SELECT max(sequence) FROM events) - ?",
                             (KEPT_EVENTS,))
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'revision'", (str(commit.revision),))

    def events_after(self, revision: int) -> list[Event] | None:
        """The watch log behind a revision, oldest first; None: it does not reach back that far.

        Every commit has an event, so the log reaches back to just before its oldest entry. The oldest revision
        may have been cut in its middle, so it counts as gone.
        """
        with self._transaction():
            first_sequence, first = self._db.execute("SELECT min(sequence), min(revision) FROM events").fetchone()
            whole = first_sequence == 1
            if first is not None and revision < (first - 1 if whole else first):
                return None
            rows = self._db.execute(
                "SELECT revision, type, kind, tenant, name, resource FROM events WHERE revision > ? ORDER BY sequence",
                (revision,)).fetchall()
        return [Event(r, kind_of_event, Ref(*names), json.loads(resource))
                for r, kind_of_event, *names, resource in rows]

    def reports(self) -> dict[str, Report]:
        """The last report of each host."""
        with self._transaction():
            rows = self._db.execute("SELECT host, agent, facts FROM reports").fetchall()
        return {host: Report(agent, facts_from_json(json.loads(facts))) for host, agent, facts in rows}

    def save_report(self, host: str, report: Report) -> None:
        """Keep a report; no revision."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO reports VALUES (?, ?, ?)",
                             (host, report.agent, json.dumps(asdict(report.facts))))

    def add_token(self, secret_hash: str, host: str, expires_at: float, now: float) -> None:
        """Keep a join token (and forget expired ones)."""
        with self._transaction():
            self._db.execute("DELETE FROM tokens WHERE expires_at <= ?", (now,))
            self._db.execute("INSERT INTO tokens VALUES (?, ?, ?)", (secret_hash, host, expires_at))

    def take_token(self, secret_hash: str, host: str, now: float) -> TokenFate:
        """Use a token up, if it is good for this host."""
        with self._transaction():
            row = self._db.execute("SELECT host, expires_at FROM tokens WHERE secret_hash = ?",
                                   (secret_hash,)).fetchone()
            if row is None:
                return "unknown"
            if row[1] <= now:
                return "expired"
            if row[0] != host:
                return "other host"
            self._db.execute("DELETE FROM tokens WHERE secret_hash = ?", (secret_hash,))
            return "taken"

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _meta(self, key: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"the store {self._path} failed: {error}; nothing was changed") from error


def facts_from_json(value: Mapping[str, Any]) -> HostFacts:
    """`HostFacts` from their JSON form (lists for tuples); unknown fields of another version are left out."""
    known = {f.name for f in fields(HostFacts)}
    return HostFacts(**{k: _tuples(v) for k, v in value.items() if k in known})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _row(stored: AnyStored) -> tuple[Any, ...]:
    return (*stored.ref, stored.uid, stored.revision, stored.created_at, json.dumps(dict(stored.labels)),
            json.dumps(spec_json(stored.spec)), json.dumps(stored.assigned.to_json()))


def _stored(row: Iterable[Any]) -> AnyStored:
    kind, tenant, name, uid, revision, created_at, labels, spec, assigned = row
    return Stored(Ref(kind, tenant, name), uid, revision, created_at, SPECS[kind].model_validate_json(spec),
                  json.loads(labels), Assigned.from_json(json.loads(assigned)))


__all__ = ["Commit", "Event", "Report", "SqliteStore", "Store", "StoreError", "TokenFate", "facts_from_json"]
