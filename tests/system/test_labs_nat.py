"""The NAT labs through the real CLI: every step holds, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab_runs import ROOT, holds_and_leaves_nothing

LABS = sorted(path.stem for path in (ROOT / "labs").glob("nat-*.yaml"))


def test_the_labs_of_the_issue_are_there() -> None:
    assert LABS == ["nat-behind-nat", "nat-exhaustion", "nat-hairpin-host-access", "nat-multiple-prefixes",
                    "nat-roaming", "nat-shared-vm-container", "nat-static-mapping"]


@pytest.mark.parametrize("file", LABS)
def test_lab_holds_and_leaves_nothing(file: str, tmp_path: Path) -> None:
    holds_and_leaves_nothing(file, tmp_path / "result.json")
