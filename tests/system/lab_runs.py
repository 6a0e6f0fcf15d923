"""Labs through the real CLI, for tests: every step holds, and nothing is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from labs import journal, processes
from labs.journal import Journal
from labs.load import load

ROOT = Path(__file__).parents[2]


def remains(lab: str) -> list[str]:
    """Everything of a lab that is on this host."""
    found = [str(path) for path in Path("/run/netns").glob(f"{lab}-*")]
    found += [str(path) for path in Path("/sys/fs/bpf").glob(f"sluice-{lab}-*")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/sluice-lab-{lab}-*")]
    found += [str(path) for path in journal.ROOT.glob(f"{lab}*")]
    return found + [f"process {pid}" for pid in processes.leftovers(Journal(lab))]


def holds_and_leaves_nothing(file: str, result: Path) -> None:
    """Run `labs/FILE.yaml`; `result` is where its JSON may be written."""
    command = [str(Path(sys.executable).with_name("sluice")), "lab", "run", f"labs/{file}.yaml", "--json", str(result)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    told, lab = json.loads(result.read_text()), load(ROOT / f"labs/{file}.yaml")
    assert len(told["steps"]) == sum(len(chapter.steps) for chapter in lab.chapters)
    assert all(step["held"] for step in told["steps"])
    left = remains(lab.name)
    assert not left, left
