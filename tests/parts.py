"""The whole suite on two processors: `python -m tests.parts [PYTEST OPTIONS]`; a plain `pytest` takes one.

Six parts at the same time. Two of them work on tables and values alone, show no link, namespace or daemon to
anybody, and take what processor time the others leave: labs and whole systems, container runtimes, agents and
benchmarks, all in namespaces of their own and mostly waiting for programs, and the rest. What is left is looked for
when all are done: to look at the maps of one that just ends can make the kernel leak them (`leaks.end`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests import leaks

TESTS = Path(__file__).parent


class Part(NamedTuple):
    """Folders and modules, and how far they stand back for others (nice(1))."""

    paths: tuple[str, ...]
    nice: int = 0


PARTS = {
    "engine": Part(tuple(f"kernel/test_engine_{name}.py" for name in (
        "answers", "asks", "atomic", "bindings", "differential", "invariants", "memory", "moves", "nat_machine",
        "overlay", "regressions", "sets", "spaces", "switching", "volume")), 5),
    "values": Part((
        "kernel/test_classifier_kernel.py", "kernel/test_layout.py", *(f"kernel/test_nat_rfc{number}.py" for number in (
            4787, 5382, 5508, 6296, 6888)), "unit"), 5),
    "labs": Part((
        "kernel/test_labs_programs.py", "kernel/test_labs_run.py", "system/test_labs_nat.py",
        "system/test_labs_overlay.py", "system/test_labs_tour.py", *(f"system/test_system_{name}.py" for name in (
            "attach", "churn", "cli", "faults", "leases", "local", "look", "tour", "up")))),
    "runtimes": Part((
        "system/test_cni_containerd.py", "system/test_cni_host.py", "system/test_cni_podman.py",
        "system/test_docker_churn.py", "system/test_docker_compose.py", "system/test_docker_crash.py",
        "system/test_docker_kit.py", "system/test_docker_modes.py", "system/test_docker_nat.py",
        "system/test_labs_runtimes.py", "system/test_netavark_host.py")),
    "agents": Part((
        *(f"kernel/test_agent_{name}.py" for name in (
            "domains", "handed_host", "host", "nat_host", "overlay_host", "segments_host", "services")),
        "kernel/test_bench_run.py")),
}
_NOTHING_COLLECTED = 5


def main() -> int:
    """Run all; the worst of the exit statuses, or 1 if something was left behind."""
    rest = [str(TESTS), *(f"--ignore={path}" for part in PARTS.values() for path in _paths(part))]
    watch = leaks.begin()
    os.environ[leaks.WATCHED] = "1"
    with ExitStack() as undo:
        _keep_bytecode(undo.enter_context(tempfile.TemporaryDirectory(prefix="sluice-tests-")))
        outputs = {name: undo.enter_context(tempfile.TemporaryFile("w+")) for name in PARTS}
        running = {}
        for name, part in PARTS.items():
            command = ["nice", "-n", str(part.nice), *_pytest(_paths(part))]
            running[name] = subprocess.Popen(command, stdout=outputs[name], stderr=outputs[name])
            undo.callback(_end, running[name])
        statuses = {subprocess.run(_pytest(rest), check=False).returncode}
        for name, process in running.items():
            statuses.add(process.wait())
            outputs[name].seek(0)
            print(f"\n{name}, at the same time:\n", outputs[name].read(), sep="", flush=True)
    found = leaks.end(watch)
    for thing in found.things:
        print(f"left on the machine{'' if found.certain else ', perhaps by others'}: {thing}", file=sys.stderr)
    return max(statuses - {_NOTHING_COLLECTED}, default=0) or int(bool(found.things) and found.certain)


def _paths(part: Part) -> list[str]:
    return [str(TESTS / path) for path in part.paths]


def _pytest(arguments: list[str]) -> list[str]:
    return [sys.executable, "-u", "-m", "pytest", *sys.argv[1:], "--rootdir", str(TESTS.parent), *arguments]


def _keep_bytecode(folder: str) -> None:
    """Some thousand Python programs are started: our sources are compiled once, whatever the environment says."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = folder


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
