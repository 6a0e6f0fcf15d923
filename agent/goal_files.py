"""The last acknowledged goal state on disk: a snapshot, and a log of what changed since.

`goal.msgpack` is a southbound `FullSync`. `goal.log` begins with the snapshot's digest, so that the log of another one
is none, and has a record for each later state: what is put, as a `FullSync` too (which later versions of this software
can read), and the keys that went. A record that is cut off, or does not have its checksum, and what follows it, was
never acknowledged. When the log is as large as the snapshot a new snapshot takes the place of both.

A change of one object costs one small write, however many there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from zlib import crc32

import msgpack
import structlog

from agent.goals import Goals, from_sync
from southbound import codec
from southbound.durable import sync_directory, write_file
from southbound.earlier import decode_kept
from southbound.errors import ProtocolError
from southbound.messages import FullSync, Goal, Key

__all__ = ["GOAL_FILES", "GoalFiles", "put_aside"]

_log = structlog.get_logger("agent")

GOAL_FILES = ("goal.msgpack", "goal.log")
_HEAD = Struct("<II")                       # bytes of the record that follows, and its CRC-32
_DIGEST_BYTES = 16
_LEAST_LOG_BYTES = 1 << 16                  # smaller ones are not worth a new snapshot


class GoalFiles:
    """The two files of one directory."""

    def __init__(self, directory: Path) -> None:
        self._snapshot, self._changes = (directory / name for name in GOAL_FILES)
        self._encoded: dict[Key, tuple[Goal, bytes]] = {}       # as saved last: the same object is not encoded again
        self._digest = b""                  # of the snapshot; empty: nothing can be added to it
        self._room = 0                      # bytes that the log may still grow

    def load(self) -> Goals:
        """What was saved last; nothing if there is none, or it cannot be read: then it is put aside."""
        try:
            payload = self._snapshot.read_bytes()
            message = decode_kept(payload)
        except FileNotFoundError:
            return Goals()
        except ProtocolError as error:
            put_aside(self._snapshot, str(error))
            return Goals()
        if not isinstance(message, FullSync):
            put_aside(self._snapshot, f"a {type(message).__name__} in place of a goal state")
            return Goals()
        goals = from_sync(message)
        for revision, put, gone in self._records(_digest(payload)):
            objects = {key: goal for key, goal in goals.objects.items() if key not in gone}
            goals = Goals(revision, objects | dict(put.objects))
        return goals

    def save(self, goals: Goals) -> None:
        """Keep a goal state; when this returns it survives a power cut."""
        changed = [(key, goal) for key, goal in goals.objects.items()
                   if (known := self._encoded.get(key)) is None or known[0] is not goal]
        gone = self._encoded.keys() - goals.objects.keys()
        new = {key: (goal, codec.encode_goal(goal)) for key, goal in changed}
        record = _record(goals.revision, [piece for _, piece in new.values()], gone)
        if self._digest and len(record) <= self._room:
            self._append(record)
        else:
            self._encoded = {key: new.get(key) or self._encoded[key] for key in goals.objects}
            self._replace(goals.revision)
            return
        for key in gone:
            del self._encoded[key]
        self._encoded.update(new)

    def _replace(self, revision: int) -> None:
        payload = codec.encode_sync(revision, [piece for _, piece in self._encoded.values()])
        self._digest = b""
        write_file(self._snapshot, payload)
        self._changes.unlink(missing_ok=True)       # it is another snapshot's; if it stays, its digest says so
        self._digest, self._room = _digest(payload), max(len(payload), _LEAST_LOG_BYTES)

    def _append(self, record: bytes) -> None:
        digest, self._digest = self._digest, b""    # until it is written whole, nothing can follow
        new = not self._changes.exists()
        descriptor = os.open(self._changes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            data = digest + record if new else record
            if os.write(descriptor, data) != len(data):
                raise OSError(f"{self._changes}: the disk took a part of a record")
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_directory(self._changes.parent)
        self._digest, self._room = digest, self._room - len(record)

    def _records(self, digest: bytes) -> Iterator[tuple[int, Goals, set[Key]]]:
        """(revision, what is put, what went) of each state after the snapshot."""
        try:
            data = self._changes.read_bytes()
        except FileNotFoundError:
            return
        if data[:_DIGEST_BYTES] != digest:
            return
        at = _DIGEST_BYTES
        while len(data) - at >= _HEAD.size:
            size, checksum = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            record = data[at : at + size]
            at += size
            if len(record) != size or crc32(record) != checksum:
                return
            try:
                put, gone = msgpack.unpackb(record)
                message = decode_kept(put)
                keys = {(str(kind), str(uid)) for kind, uid in gone}
            except (ValueError, TypeError, msgpack.UnpackException, ProtocolError) as error:
                _log.error("goal log unreadable from here on", path=str(self._changes), why=repr(error))
                return
            if isinstance(message, FullSync):
                yield message.revision, from_sync(message), keys


def _digest(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=_DIGEST_BYTES).digest()


def _record(revision: int, put: list[bytes], gone: set[Key]) -> bytes:
    body = bytes(msgpack.packb((codec.encode_sync(revision, put), sorted(gone))))
    return _HEAD.pack(len(body), crc32(body)) + body


def put_aside(path: Path, why: str) -> None:
    """Keep a file that cannot be read for whoever wants to know why."""
    aside = path.with_name(path.name + ".unreadable")
    path.replace(aside)
    _log.error("state file unreadable, put aside", path=str(path), aside=str(aside), why=why)
