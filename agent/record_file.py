"""Records of bindings as lines of JSON in a file of the host: for who must keep them, controller or not."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from agent.names import Row
from agent.nat import clock

__all__ = ["RecordFile"]

_log = structlog.get_logger("agent")


class RecordFile:
    """Appends, a line a record. It is opened for each batch: whoever turns the files over need not tell us.

    What could not be told or written is a line of its own, in its place, as soon as something can be written.
    """

    def __init__(self, path: Path, lost: int) -> None:
        """`lost`: records that the kernel had lost before we began."""
        self._path = path
        self._lost = lost
        self._unwritten = 0
        self._failing = False

    def write(self, rows: Sequence[Row], lost: int) -> None:
        """Append records; `lost` as the kernel counts."""
        missing = self._unwritten + max(0, lost - self._lost)
        self._lost = lost
        lines = [{"time": clock(), "event": "lost", "records": missing}] if missing else []
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in (*lines, *rows))
        try:
            self._append(text.encode())
        except OSError as error:
            self._unwritten = missing + len(rows)
            if not self._failing:
                _log.error("records of bindings are not written", file=str(self._path), error=error.strerror)
            self._failing = True
        else:
            self._unwritten, self._failing = 0, False

    def _append(self, data: bytes) -> None:
        """All of it or nothing: half a line would spoil the next."""
        if not data:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            before = os.fstat(descriptor).st_size
            if (written := os.write(descriptor, data)) != len(data):
                os.ftruncate(descriptor, before)
                raise OSError(0, f"only {written} of {len(data)} bytes could be written")
        finally:
            os.close(descriptor)
