"""The labs of overlays, switch modes and bandwidth through the real CLI: every step holds, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab_runs import holds_and_leaves_nothing

LABS = ("overlay-four-nodes", "overlay-tenants", "overlay-move", "overlay-mtu", "overlay-external-vtep", "l2bridge",
        "transparent-dhcp", "nested", "qos")


@pytest.mark.parametrize("file", LABS)
def test_lab_holds_and_leaves_nothing(file: str, tmp_path: Path) -> None:
    holds_and_leaves_nothing(file, tmp_path / "result.json")
