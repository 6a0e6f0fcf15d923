"""What the plug-in must know of Docker's networks after a restart: Docker tells of each once, when it makes it.

Endpoints are not here: the agent keeps attachments under Docker's ids. Pools are not, either: their ids say all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import structlog

from southbound.durable import write_file

_log = structlog.get_logger("docker")

VERSION = 1


@dataclass(frozen=True, slots=True)
class DockerNetwork:
    """A network of Docker's, and which of ours it is."""

    id: str                                 # NetworkID
    tenant: str
    network: str
    mode: str
    pools: tuple[str, ...] = ()             # prefixes from which Docker, or our IPAM for it, takes addresses
    own_ipam: bool = False                  # these are pools of ours
    exit: bool | None = None                # Docker's default route may go through it; None: as the network is
    reserved: tuple[str, ...] = ()          # --aux-address in a network that was there before
    done: bool = True                       # Docker may have been told that it is made

    @property
    def path(self) -> str:
        """As people write it."""
        return f"{self.tenant}/{self.network}"


class State:
    """The networks, in memory and in one file that is the old one or the new one, whatever step was the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saving = asyncio.Lock()
        self._networks = {each.id: each for each in _load(path)}

    def __iter__(self) -> Iterator[DockerNetwork]:
        return iter(tuple(self._networks.values()))

    def get(self, network_id: str) -> DockerNetwork | None:
        """The network of this NetworkID, if Docker told of it."""
        return self._networks.get(network_id)

    async def put(self, network: DockerNetwork) -> None:
        """Keep it from now on."""
        self._networks[network.id] = network
        await self._save()

    async def drop(self, network_id: str) -> None:
        """Forget it."""
        if self._networks.pop(network_id, None) is not None:
            await self._save()

    async def _save(self) -> None:
        async with self._saving:            # in order; the disk is waited for elsewhere than in the agent's loop
            content = {"version": VERSION, "networks": [asdict(each) for each in self._networks.values()]}
            await asyncio.to_thread(write_file, self._path, json.dumps(content, indent=1).encode())


def _load(path: Path) -> list[DockerNetwork]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [_network(row) for row in content["networks"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        aside = path.with_suffix(".damaged")
        _log.error("what is kept of Docker's networks cannot be read; it is put aside, and the agent's list is used",
                   file=str(path), aside=str(aside), error=str(error))
        path.replace(aside)
        return []


def _network(row: dict[str, Any]) -> DockerNetwork:
    known = {field.name for field in fields(DockerNetwork)}
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                              for name, value in row.items() if name in known}
    return DockerNetwork(**values)
