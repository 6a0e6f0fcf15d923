"""The NAT labs through the real CLI: every step holds, and nothing is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labs import journal, processes
from labs.journal import Journal
from labs.load import load

ROOT = Path(__file__).parents[2]
LABS = sorted(path.stem for path in (ROOT / "labs").glob("nat-*.yaml"))


def remains(lab: str) -> list[str]:
    """Everything of a lab that is on this host."""
    found = [str(path) for path in Path("/run/netns").glob(f"{lab}-*")]
    found += [str(path) for path in Path("/sys/fs/bpf").glob(f"sluice-{lab}-*")]
    found += [str(path) for path in journal.ROOT.glob(f"{lab}*")]
    return found + [f"process {pid}" for pid in processes.leftovers(Journal(lab))]


def test_the_labs_of_the_issue_are_there() -> None:
    assert LABS == ["nat-behind-nat", "nat-exhaustion", "nat-hairpin-host-access", "nat-multiple-prefixes",
                    "nat-roaming", "nat-shared-vm-container", "nat-static-mapping"]


@pytest.mark.parametrize("file", LABS)
def test_lab_holds_and_leaves_nothing(file: str, tmp_path: Path) -> None:
    path, result = f"labs/{file}.yaml", tmp_path / "result.json"
    command = [str(Path(sys.executable).with_name("sluice")), "lab", "run", path, "--json", str(result)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    told, lab = json.loads(result.read_text()), load(ROOT / path)
    assert len(told["steps"]) == sum(len(chapter.steps) for chapter in lab.chapters)
    assert all(step["held"] for step in told["steps"])
    assert not remains(lab.name)
