"""What the agent keeps of runtimes on disk: a small file for each thing, whole or absent.

    DIR/attachments/*.json      attachments (`agent.attachment`)
    DIR/forgotten/*.json        what the controller must be told to delete, by uid
    DIR/runtime-networks/*.json networks as runtimes call them
    DIR/reserved/*.json         addresses that are kept for somebody

A change costs one small write, however many there are. A file that cannot be read is put aside and counts as absent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from agent.attachment import Attachment
from agent.goal_files import put_aside
from agent.worker import Worker
from southbound.durable import sync_directory, write_file

__all__ = ["RUNTIME_FOLDERS", "Files", "Folder", "Forgotten", "Reserved", "RuntimeNetwork"]

RUNTIME_FOLDERS = ("attachments", "forgotten", "runtime-networks", "reserved")


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What must go, and is not programmed any more. Of a Network it is the lease that goes."""

    uid: str                                # of the Endpoint or StaticMapping; of a Network its name
    refs: tuple[tuple[str, str, str], ...]  # kind, tenant, name
    uids: Mapping[str, str]                 # kind/tenant/name to uid: of another uid it is somebody else's

    @classmethod
    def of(cls, attachment: Attachment) -> Forgotten:
        """All that was declared for an attachment."""
        return cls(attachment.uid, tuple(attachment.refs()), attachment.uids())

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Forgotten:
        """Raises KeyError, TypeError, ValueError."""
        refs = tuple((str(kind), str(tenant), str(name)) for kind, tenant, name in value["refs"])
        return cls(str(value["uid"]), refs, dict(value["uids"]))


@dataclass(frozen=True, slots=True)
class RuntimeNetwork:
    """A network as a runtime calls it."""

    runtime: str
    id: str
    uid: str
    name: str
    tenant: str
    done: bool                              # it was answered; one that was not is undone by a new process

    @property
    def key(self) -> tuple[str, str]:
        """What it is known by."""
        return self.runtime, self.id

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RuntimeNetwork:
        """Raises TypeError."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Reserved:
    """An address that `owner` keeps, without length, until it says so, or until the endpoint that has it goes."""

    tenant: str
    network: str
    address: str
    owner: str
    by_hand: bool = False                   # leased for nothing else: it goes back
    held: bool = False                      # an endpoint has it, or had

    @property
    def key(self) -> tuple[str, str]:
        """What it is known by."""
        return f"{self.tenant}/{self.network}", self.address

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Reserved:
        """Raises TypeError."""
        return cls(**value)


Kept = TypeVar("Kept", Attachment, Forgotten, RuntimeNetwork, Reserved)
Key = tuple[str, str]


class Folder(Generic[Kept]):
    """Values by key, in memory and on disk; a change is on disk when its await returns."""

    def __init__(self, directory: Path, worker: Worker, read: Callable[[Mapping[str, Any]], Kept],
                 key: Callable[[Kept], Key]) -> None:
        self._directory = directory
        self._worker = worker
        self._key: Callable[[Kept], Key] = key
        self._kept: dict[Key, Kept] = {each[0]: each[1] for each in self._load(read)}

    def _load(self, read: Callable[[Mapping[str, Any]], Kept]) -> Iterator[tuple[Key, Kept]]:
        for path in sorted(self._directory.glob("*.json")) if self._directory.is_dir() else ():
            try:
                kept = read(json.loads(path.read_bytes()))
            except (ValueError, KeyError, TypeError) as error:
                put_aside(path, repr(error))
                continue
            yield self._key(kept), kept

    def get(self, *key: str) -> Kept | None:
        """What has the key."""
        return self._kept.get((key[0], key[1]))

    def all(self) -> list[Kept]:
        """All of them."""
        return list(self._kept.values())

    async def put(self, kept: Kept) -> None:
        """Keep it, in place of what had its key."""
        await self._worker.run(self._write, kept)
        self._kept[self._key(kept)] = kept

    async def remove(self, kept: Kept) -> None:
        """Forget it."""
        await self._worker.run(self._unlink, self._key(kept))
        self._kept.pop(self._key(kept), None)

    def _path(self, key: Key) -> Path:
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return self._directory / f"{digest[:32]}.json"

    def _write(self, kept: Kept) -> None:
        if not self._directory.is_dir():
            self._directory.mkdir(mode=0o700)
            sync_directory(self._directory.parent)
        value = kept.to_json() if isinstance(kept, Attachment) else asdict(kept)
        write_file(self._path(self._key(kept)), json.dumps(value).encode())

    def _unlink(self, key: Key) -> None:
        self._path(key).unlink(missing_ok=True)     # that it is back after a power cut does no harm


class Files:
    """The folders of one agent. `worker`: a thread for them, so that they do not wait for the kernel."""

    def __init__(self, directory: Path, worker: Worker) -> None:
        names = iter(RUNTIME_FOLDERS)
        self.attachments: Folder[Attachment] = Folder(
            directory / next(names), worker, Attachment.from_json, lambda each: each.key)
        self.forgotten: Folder[Forgotten] = Folder(
            directory / next(names), worker, Forgotten.from_json, lambda each: (each.uid, ""))
        self.networks: Folder[RuntimeNetwork] = Folder(
            directory / next(names), worker, RuntimeNetwork.from_json, lambda each: each.key)
        self.reserved: Folder[Reserved] = Folder(
            directory / next(names), worker, Reserved.from_json, lambda each: each.key)

    def named(self, tenant: str, name: str) -> Iterable[Attachment]:
        """Attachments whose Endpoint has this name."""
        return (each for each in self.attachments.all() if (each.tenant, each.name) == (tenant, name))
