"""The labs with container runtimes: every step holds, and nothing is left, however they end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab_runs import ROOT, holds_and_leaves_nothing, remains

LABS = ("runtimes-own-bridges", "docker-nat", "docker-compose-blog", "docker-overlay", "podman-cni")
OWN = ("/etc/cni", "/etc/containers", "/etc/docker", "/run/containerd", "/run/containers", "/run/docker.sock",
       "/run/podman", "/var/lib/cni", "/var/lib/containers", "/var/lib/docker")
SLUICE = str(Path(sys.executable).with_name("sluice"))


@pytest.mark.parametrize("file", LABS)
def test_lab_holds_and_leaves_nothing(file: str, tmp_path: Path) -> None:
    holds_and_leaves_nothing(file, tmp_path / "result.json")


def own_files() -> dict[str, int]:
    """What this machine's own runtimes have: file, and when it was changed."""
    roots = [Path(root) for root in OWN if Path(root).exists()]
    found = [path for root in roots for path in (root, *(root.rglob("*") if root.is_dir() else ()))]
    return {str(path): path.lstat().st_mtime_ns for path in found}


def test_daemons_and_containers_of_a_killed_lab_are_found_and_removed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = own_files()
    with log.open("w") as output:
        process = subprocess.Popen([SLUICE, "lab", "run", "labs/runtimes-own-bridges.yaml"], cwd=ROOT, stdout=output)
    deadline = time.monotonic() + 60
    while "2. A machine of its own" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert own_files() == before, "the machine's own runtimes were touched"
    assert any("sluice-lab-own-bridges-docker" in thing for thing in remains("own-bridges"))
    done = subprocess.run([SLUICE, "lab", "down", "own-bridges"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert not remains("own-bridges")
