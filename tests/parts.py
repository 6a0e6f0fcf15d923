"""The whole suite on two processors: `python -m tests.parts [PYTEST OPTIONS]`; a plain `pytest` takes one.

Four parts at the same time: what works on tables and values alone, and shows no link, namespace or daemon to anybody;
labs; container runtimes, both in namespaces of their own, mostly waiting for programs; and the rest. What is left is
looked for when all are done: to look at the maps of one that just ends can make the kernel leak them (`leaks.end`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests import leaks

TESTS = Path(__file__).parent
UNSEEN = (
    "unit",
    *(f"kernel/test_{name}.py" for name in (
        "classifier_kernel", "engine_answers", "engine_asks", "engine_atomic", "engine_bindings", "engine_differential",
        "engine_invariants", "engine_memory", "engine_moves", "engine_nat_machine", "engine_overlay",
        "engine_regressions", "engine_sets", "engine_spaces", "engine_switching", "engine_volume", "layout",
        "nat_rfc4787", "nat_rfc5382", "nat_rfc5508", "nat_rfc6296", "nat_rfc6888")),
)
LABS = (
    "kernel/test_labs_programs.py", "kernel/test_labs_run.py", "system/test_labs_nat.py", "system/test_labs_overlay.py",
    "system/test_labs_tour.py", "system/test_system_churn.py", "system/test_system_tour.py",
)
RUNTIMES = (
    "system/test_cni_containerd.py", "system/test_cni_host.py", "system/test_cni_podman.py",
    "system/test_docker_churn.py", "system/test_docker_compose.py", "system/test_docker_crash.py",
    "system/test_docker_kit.py", "system/test_docker_modes.py", "system/test_docker_nat.py",
    "system/test_labs_runtimes.py", "system/test_netavark_host.py",
)
_NOTHING_COLLECTED = 5


def main() -> int:
    """Run all; the worst of the exit statuses, or 1 if something was left behind."""
    beside = {"tables": _paths(UNSEEN), "labs": _paths(LABS), "runtimes": _paths(RUNTIMES)}
    rest = [str(TESTS), *(f"--ignore={path}" for paths in beside.values() for path in paths)]
    watch = leaks.begin()
    os.environ[leaks.WATCHED] = "1"
    with ExitStack() as undo:
        _keep_bytecode(undo.enter_context(tempfile.TemporaryDirectory(prefix="sluice-tests-")))
        outputs = {name: undo.enter_context(tempfile.TemporaryFile("w+")) for name in beside}
        running = {}
        for name, paths in beside.items():
            running[name] = subprocess.Popen(_pytest(paths), stdout=outputs[name], stderr=outputs[name])
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


def _paths(names: tuple[str, ...]) -> list[str]:
    return [str(TESTS / name) for name in names]


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
