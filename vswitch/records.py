"""What we changed that the kernel cannot say is ours: a small file for each namespace, gone in effect with the boot."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SO_NETNS_COOKIE = 71


def record_path(directory: Path, kind: str) -> Path:
    """The file of this kind for the namespace of this thread: cookies are never used twice while the kernel runs."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        cookie = int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
    return directory / f"{kind}-{BOOT_ID.read_text().strip()[:8]}-{cookie}.json"


def read_record(path: Path) -> dict[str, Any]:
    """What was written; nothing if there is none, or one that was cut short."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Replace it as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(record))
    aside.replace(path)
