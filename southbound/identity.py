"""Who an agent is: its key, certificate, CA and controller, as files (in progress: signatures are stable)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Identity", "load_identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity directory of an enrolled agent."""

    directory: Path
    host: str                               # common name of the certificate
    controller: str                         # "host:port"


def load_identity(directory: Path) -> Identity:
    """Read `DIR/identity`. Raises `IdentityError` that says what is missing and to run `sluice join`."""
    raise NotImplementedError
