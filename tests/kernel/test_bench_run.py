"""The benchmark builds every subject, reads every metric, writes its JSON and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.results import SUBJECTS


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("case", ["same-host", "cross-host"])
def test_every_subject_and_metric_is_read(case: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    done = _bench("--only", case, "--rounds", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert {(row["metric"], row["subject"]) for row in rows} == {
        (metric, subject) for metric in ("tcp_gbps", "rr_us", "crr_per_s") for subject in SUBJECTS
    }
    assert all(row["median"] > 0 and row["rounds"] == 1 for row in rows)
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert "bench-" not in namespaces
    assert not list(Path("/sys/fs/bpf").glob("sluice-bench*"))


def test_the_cost_of_a_flow_hit_is_printed(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    done = _bench("--only", "flow-hit", "--rounds", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())
    assert row["metric"] == "ns_per_packet"
    assert 0 < row["median"] < 10_000


def test_a_wrong_case_is_refused_with_the_right_ones() -> None:
    done = _bench("--only", "moon")
    assert done.returncode == 2
    assert "same-host" in done.stderr
