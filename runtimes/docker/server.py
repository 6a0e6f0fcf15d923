"""The plug-in's sockets: each is a driver's name for Docker, and all speak both protocols."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import structlog

from runtimes.docker.agent import Agent
from runtimes.docker.http import converse
from runtimes.docker.plugin import Plugin
from runtimes.docker.state import State
from southbound.listening import PathTaken, listen

_log = structlog.get_logger("docker")

DIRECTORY = Path("/run/docker/plugins")     # where Docker looks for plug-ins
SOCKETS = ("nat", "transparent", "l2bridge", "l2tunnel", "private", "sluice")


async def serve(directory: Path, agent_socket: str, state_dir: Path) -> None:
    """Be Docker's plug-in until cancelled; what it must know later is in `docker.json` of `state_dir`.

    A directory that cannot be used is told, and ends nothing: the agent does without Docker.
    """
    agent = Agent(agent_socket)
    await agent.answering()                 # Docker waits for a socket that is not there yet
    plugin = Plugin(agent, State(state_dir / "docker.json"))
    await plugin.start()
    with ExitStack() as owned:
        listening = {}
        try:
            for name in SOCKETS:
                listening[name] = listen(directory / f"{name}.sock", "plug-in", "--docker")
                owned.callback(listening[name].remove)
        except PathTaken as error:
            _log.error("Docker cannot find the network plug-in", directory=str(directory), error=str(error),
                       todo="free the folder, or give --docker DIR, or --docker none")
            return
        async with asyncio.TaskGroup() as tasks:
            for name, each in listening.items():
                tasks.create_task(_accept(plugin, name, each.socket))


async def _accept(plugin: Plugin, driver: str, listening: socket.socket) -> None:
    conversations: set[asyncio.Task[None]] = set()

    async def answer(path: str, request: Any) -> tuple[int, Any]:
        return await plugin.answer(driver, path, request)

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        conversations.add(task)
        try:
            await converse(reader, writer, answer)
        except asyncio.CancelledError:
            pass                            # the agent ends
        finally:
            conversations.discard(task)

    server = await asyncio.start_unix_server(on_connection, sock=listening)
    try:
        await server.serve_forever()
    finally:
        for task in tuple(conversations):
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)
