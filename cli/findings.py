"""The rows of `sluice doctor`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Literal

TRY_S = 5.0

State = Literal["ok", "missing", "absent", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One row. `missing` fails the doctor; `absent` costs, but Sluice works; `unknown`: could not look."""

    name: str
    state: State
    found: str
    cost: str = ""
    todo: str = ""


def run_text(command: list[str]) -> str:
    """What a command says; empty if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRY_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
