"""All that this agent does for container runtimes of its host, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agent.addresses_here import AddressesHere
from agent.asking import Asker
from agent.attach_words import Arguments
from agent.attachment_files import Files
from agent.attachments import Attachments
from agent.errands import Errands
from agent.host import Host
from agent.local import LocalServer, Operation
from agent.runtime_networks import RuntimeNetworks
from agent.seams import SwitchSeam
from agent.worker import Worker

__all__ = ["RuntimesHere", "software"]


class RuntimesHere:
    """Operations of the local socket, and what goes on without being asked. `name`: the host's.

    `filer`: a thread for what is on disk and for looking at namespaces, so that neither waits for the kernel's changes.
    """

    def __init__(self, name: str, host: Host, asker: Asker, state_dir: Path, filer: Worker, switch: SwitchSeam) -> None:
        self._name = name
        self._asker = asker
        asker.listeners = host.listeners
        files = Files(state_dir, filer)

        async def identify(netns: str) -> str:
            return await filer.run(switch.identify, netns)

        self.addresses = AddressesHere(host, asker, files)
        self.attachments = Attachments(name, host, asker, files, self.addresses, identify)
        self.networks = RuntimeNetworks(name, host, asker, files, self.attachments.left)
        self.errands = Errands(host, asker, files, self.attachments, self.networks, self.addresses)

    async def start(self) -> None:
        """Before anything is programmed."""
        await self.attachments.start()
        await self.networks.start()
        await self.addresses.start()

    async def keep(self, path: Path | None) -> None:
        """Answer at the socket, and run errands. Never ends.

        Raises:
            SocketTaken
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.errands.tell())
            tasks.create_task(self.errands.release())
            if path is not None:
                tasks.create_task(LocalServer(path, self.operations()).serve())

    def operations(self) -> Mapping[str, Operation]:
        """By name."""
        attachments, networks = self.attachments, self.networks
        return {
            "hello": self._hello,
            "attach": attachments.attach, "check": attachments.check, "taken": attachments.taken,
            "map": attachments.map, "detach": attachments.detach, "list": attachments.list, "gc": attachments.gc,
            "network": networks.network, "network-create": networks.create, "network-delete": networks.delete,
            "networks": networks.list,
            "reserve": self.addresses.reserve, "unreserve": self.addresses.unreserve,
        }

    async def _hello(self, arguments: Arguments) -> dict[str, Any]:
        arguments.only()
        return {"host": self._name, "controller": "connected" if self._asker.connected else "away",
                "version": software()}


def software() -> str:
    """Version of this software."""
    try:
        return version("sluice")
    except PackageNotFoundError:
        return "unknown"
