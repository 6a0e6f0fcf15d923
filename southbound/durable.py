"""Files that are whole or absent, whatever step was the last one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["sync_directory", "write_file"]


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by a file of `data`: it is the old one or the new one, also after a power cut."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)   # 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` lasting."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
