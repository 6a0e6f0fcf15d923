"""The tour of issue 2 through the real CLI: every step holds, nothing is left. `test_system_tour.py` interrupts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from labs import journal, processes
from labs.journal import Journal

ROOT = Path(__file__).parents[2]
COMMAND = [str(Path(sys.executable).with_name("sluice")), "lab", "run", "labs/tour.yaml"]


def remains() -> list[str]:
    """Everything of the tour that is on this host."""
    found = [str(path) for path in Path("/run/netns").glob("tour-*")]
    found += [str(path) for path in Path("/sys/fs/bpf").glob("sluice-tour-*")]
    found += [str(path) for path in journal.ROOT.glob("tour*")]
    return found + [f"process {pid}" for pid in processes.leftovers(Journal("tour"))]


def test_tour_holds_and_leaves_nothing(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = subprocess.run([*COMMAND, "--json", str(result)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    told = json.loads(result.read_text())
    assert len(told["steps"]) == 14
    assert all(step["held"] for step in told["steps"])
    assert not remains()
