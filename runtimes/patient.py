"""The agent's local socket for those who have a moment: an agent that is just starting again is waited for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from runtimes.local import SOCKET, SOCKET_VARIABLE, LocalError, call

RESTART_S = 4.0                             # an agent that was killed is back by then
PAUSE_S = 0.1


def ask(op: str, path: str = "", restart_s: float = RESTART_S, **arguments: Any) -> dict[str, Any]:
    """One operation. One that was cut off is asked again, which is safe: the agent knows it by its id.

    An agent whose socket is there although nobody listens was killed, and comes back; one without a socket was stopped.

    Raises:
        LocalError
    """
    where = path or os.environ.get(SOCKET_VARIABLE, SOCKET)
    end = time.monotonic() + restart_s
    while True:
        try:
            return call(op, where, **arguments)
        except LocalError as error:
            starting = error.code == "lost" or (error.code == "absent" and Path(where).exists())
            if not starting or time.monotonic() > end:
                raise
        time.sleep(PAUSE_S)


__all__ = ["ask"]
