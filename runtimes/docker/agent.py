"""The agent's local socket, asked without waiting in the event loop's way."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from runtimes.local import DEADLINE_S, MAX_LINE_BYTES, LocalError, result

_LOOK_EVERY_S = 0.1


class Agent:
    """Asks the agent of this host; a connection for each question, so that a slow one holds up no other."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def ask(self, op: str, deadline_s: float = DEADLINE_S, **arguments: Any) -> dict[str, Any]:
        """One operation. Arguments that are None are left out.

        Raises:
            LocalError
        """
        request = {"op": op, **{name: value for name, value in arguments.items() if value is not None}}
        try:
            async with asyncio.timeout(deadline_s):
                try:
                    lines, writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE_BYTES)
                except OSError as error:
                    raise LocalError("absent", "no agent answers", "socket",
                                     f"{self._path}: {error.strerror or error}",
                                     "start it: `sluice agent run` or `sluice up`") from None
                try:
                    writer.write(json.dumps(request).encode() + b"\n")
                    await writer.drain()
                    return result(await lines.readline(), op)
                except (OSError, ValueError) as error:
                    raise LocalError("lost", f"the agent went away during {op}: {error}",
                                     todo="repeat it: it is safe to") from None
                finally:
                    writer.close()
        except TimeoutError:
            raise LocalError("timeout", f"the agent did not answer {op} within {deadline_s:g} s",
                             todo="see its log") from None

    async def answering(self) -> None:
        """Wait until the agent's socket is there: it is served by the same process, which may open it later."""
        while True:
            try:
                await self.ask("hello")
                return
            except LocalError:
                await asyncio.sleep(_LOOK_EVERY_S)
