"""However the tour ends, nothing of it is left: Ctrl-C at random moments, and kill -9.

`test_labs_tour.py` sees it through to the end.
It runs under another name, so that it does not meet a tour that somebody else runs on this machine.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "clitour"
INTERRUPTED = 130
# Long enough to be anywhere between the first namespace and the last chapter.
LATEST_S = 12.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Path]:
    """The tour under our name."""
    text = (ROOT / "labs/tour.yaml").read_text(encoding="utf-8")
    file = tmp_path / "tour.yaml"
    file.write_text(text.replace("tour-", f"{NAME}-").replace("name: tour\n", f"name: {NAME}\n"), encoding="utf-8")
    yield file
    subprocess.run(command("lab", "down", NAME), capture_output=True, check=False)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli.main", *arguments]


def left() -> list[str]:
    """Whatever still bears the name of our lab: namespaces, pins, files, and processes that live in them."""
    found = [str(path) for folder in ("/run/netns", "/sys/fs/bpf", "/run/sluice-lab")
             for path in Path(folder).glob(f"*{NAME}*") if path.suffix != ".lock"]
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if NAME in line and int(entry.name) != os.getpid():
                found.append(line)
    return found


@pytest.mark.parametrize("attempt", range(2))
def test_an_interrupted_tour_leaves_nothing(tour: Path, attempt: int) -> None:
    """At a random moment, which is told when it fails; sometimes with a second, impatient Ctrl-C."""
    moment_s, impatient = random.uniform(0.2, LATEST_S), random.random() < 0.5
    process = subprocess.Popen(command("lab", "run", str(tour)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    time.sleep(moment_s)
    process.send_signal(signal.SIGINT)
    if impatient:
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    told = f"after {moment_s:.2f} s, impatient: {impatient}\n{output.decode(errors='replace')}"
    assert process.returncode == INTERRUPTED, told
    assert left() == [], told


def test_what_a_killed_tour_left_is_removed_by_name(tour: Path) -> None:
    process = subprocess.Popen(command("lab", "run", str(tour)), stdout=subprocess.DEVNULL)
    time.sleep(6)
    process.kill()
    process.wait()
    assert left() != []
    assert subprocess.run(command("lab", "down", NAME), check=False).returncode == 0
    assert left() == []
