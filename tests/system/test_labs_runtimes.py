"""The labs with container runtimes: every step holds, and nothing is left, however they end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab_runs import ROOT, holds_and_leaves_nothing, remains

LABS = ("runtimes-own-bridges", "docker-nat", "docker-compose-blog", "docker-overlay", "podman-cni")
SLUICE = str(Path(sys.executable).with_name("sluice"))


@pytest.mark.parametrize("file", LABS)
def test_lab_holds_and_leaves_nothing(file: str, tmp_path: Path) -> None:
    holds_and_leaves_nothing(file, tmp_path / "result.json")


def test_daemons_and_containers_of_a_killed_lab_are_found_and_removed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen([SLUICE, "lab", "run", "labs/runtimes-own-bridges.yaml"], cwd=ROOT, stdout=output)
    deadline = time.monotonic() + 60
    while "2. A machine of its own" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert any("sluice-lab-own-bridges-docker" in thing for thing in remains("own-bridges"))
    done = subprocess.run([SLUICE, "lab", "down", "own-bridges"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert not remains("own-bridges")
