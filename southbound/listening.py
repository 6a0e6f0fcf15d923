"""Unix sockets of our daemons: a file that only its owner may use, and that is whole or absent at every step."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["Listening", "PathTaken", "listen"]

MAX_PATH_BYTES = 107                        # sun_path, without its end
_BACKLOG = 256
_SETTLES_S = 1.0


class PathTaken(Exception):
    """A living process listens there, something else is in the way, or nothing can be made there."""


class Listening:
    """A socket that listens at `path`, with its file."""

    def __init__(self, path: Path, listener: socket.socket) -> None:
        self.path = path
        self.socket = listener
        self._file = _identity(path)

    def remove(self) -> None:
        """Close it, and take its file away, unless it is that of a later process. Idempotent."""
        with suppress(OSError):
            if _identity(self.path) == self._file:
                self.path.unlink()
        self.socket.close()


def listen(path: Path, who: str, option: str) -> Listening:
    """Listen on `path`, for its owner only. A socket that a dead process left is replaced in one step.

    Args:
        who: would answer there, for the error, such as "agent".
        option: what to give another path with.

    Raises:
        PathTaken
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    if len(os.fsencode(beside)) > MAX_PATH_BYTES:
        room = MAX_PATH_BYTES - len(os.fsencode(beside.name)) + len(os.fsencode(path.name))
        raise PathTaken(f"{path} is too long for a socket; give one of at most {room} bytes with {option}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.exists() or path.is_symlink():
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise PathTaken(f"{path} is not a socket; remove it, or give another with {option}")
            if _answers(path):
                raise PathTaken(f"another {who} answers at {path}; stop it, or give another with {option}")
        _tidy(path)
        listener.bind(str(beside))
        beside.chmod(0o600)                 # before anyone can connect: it does not listen yet
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        beside.replace(path)
        return Listening(path, listener)
    except OSError as error:
        listener.close()
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise PathTaken(f"cannot listen on {path}: {error}; give another with {option}") from error
    except PathTaken:
        listener.close()
        raise


def _tidy(path: Path) -> None:
    """Take away what processes left that were killed before their socket had its name."""
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}.") and left.is_socket() and not _answers(left):
            left.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_SETTLES_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True                     # busy: do not touch it
        return True
