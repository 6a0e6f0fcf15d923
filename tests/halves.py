"""The whole suite on two processors: `python -m tests.halves [PYTEST OPTIONS]`; a plain `pytest` takes one.

One half works on tables and values alone and shows no link, namespace or daemon to anybody; the other has all that
makes some. They run at the same time, and what is left on the machine is looked for when both are done: to look at
the maps of one that just ends can make the kernel leak them (`leaks.end`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import leaks

TESTS = Path(__file__).parent
UNSEEN = (                                  # of tests/kernel
    "test_classifier_kernel", "test_engine_answers", "test_engine_asks", "test_engine_atomic", "test_engine_bindings",
    "test_engine_differential", "test_engine_invariants", "test_engine_memory", "test_engine_moves",
    "test_engine_nat_machine", "test_engine_overlay", "test_engine_regressions", "test_engine_sets",
    "test_engine_spaces", "test_engine_switching", "test_engine_volume", "test_layout", "test_nat_rfc4787",
    "test_nat_rfc5382", "test_nat_rfc5508", "test_nat_rfc6296", "test_nat_rfc6888",
)
_NOTHING_COLLECTED = 5


def main() -> int:
    """Run both; the worse of the two exit statuses, or 1 if something was left behind."""
    unseen = [str(TESTS / "unit"), *(str(TESTS / "kernel" / f"{name}.py") for name in UNSEEN)]
    options = [*sys.argv[1:], "--rootdir", str(TESTS.parent)]
    watch = leaks.begin()
    os.environ[leaks.WATCHED] = "1"
    with tempfile.TemporaryFile("w+") as output:
        pytest = [sys.executable, "-u", "-m", "pytest", *options]
        beside = subprocess.Popen([*pytest, *unseen], stdout=output, stderr=output)
        try:
            rest = [f"--ignore={path}" for path in unseen]
            status = subprocess.run([*pytest, str(TESTS), *rest], check=False).returncode
            other = beside.wait()
        finally:
            if beside.poll() is None:
                beside.terminate()
                beside.wait()
        output.seek(0)
        print("\nThe other half, at the same time:\n", output.read(), sep="", flush=True)
    found = leaks.end(watch)
    for thing in found.things:
        print(f"left on the machine{'' if found.certain else ', perhaps by others'}: {thing}", file=sys.stderr)
    statuses = {status, other} - {_NOTHING_COLLECTED}
    return max(statuses, default=0) or int(bool(found.things) and found.certain)


if __name__ == "__main__":
    sys.exit(main())
