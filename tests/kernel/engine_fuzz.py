"""Looks for cases on which the kernel's engine and the reference differ: `make fuzz`, and the bulk of `make test`.

    python tests/kernel/engine_fuzz.py --minutes 5          new cases, on all processors
    python tests/kernel/engine_fuzz.py --seed N --pairs M   the same cases every time, in this process

A difference is cut down, printed, and written to tests/kernel/regressions, where the next test run replays it; the
exit status is 1. See docs/testing.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from engine_shrink import module_of, shrunk
from engine_storms import AgeingBpf, Difference, Storm, rage, storms
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import HypothesisWarning

REGRESSIONS = Path(__file__).with_name("regressions")
FRAMES = 250                                # of a storm
PROGRESS_S = 30.0
_BATCH = 40                                 # storms that Hypothesis draws under one seed


@dataclass(slots=True)
class Tally:
    """How much was compared."""

    pairs: int = 0
    storms: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)


def compare(seed: int, pairs: int, deadline_s: float) -> Tally | None:
    """Storms from a seed until so many (policy, packet) pairs were compared, or the monotonic clock says so.

    None: the engines differ, and the case is told and kept.
    """
    tally, begun_s = Tally(), time.monotonic()
    backend = AgeingBpf()
    told_s = begun_s
    try:
        while tally.pairs < pairs and time.monotonic() < deadline_s:
            _batch(seed, tally, backend, pairs, deadline_s)
            seed += 1
            tally.seconds = time.monotonic() - begun_s
            if time.monotonic() - told_s > PROGRESS_S:
                told_s = time.monotonic()
                _say(tally)
    except Difference as difference:
        print(f"a difference after {tally.pairs} pairs, seed {seed}; cutting it down", file=sys.stderr, flush=True)
        _keep(shrunk(difference, backend), seed)
        return None
    finally:
        backend.close()
    return tally


def _batch(seed: int, tally: Tally, backend: AgeingBpf, pairs: int, deadline_s: float) -> None:
    warnings.simplefilter("ignore", HypothesisWarning)      # of a storm's length: the case is told cut down

    @seeded(seed)
    @settings(max_examples=_BATCH, deadline=None, database=None, phases=(Phase.generate,),
              suppress_health_check=list(HealthCheck))
    @given(storm=storms(FRAMES))
    def one(storm: Storm) -> None:
        if time.monotonic() > deadline_s or tally.pairs >= pairs:
            return
        duel = rage(storm, backend)
        tally.pairs += duel.frames
        tally.storms += 1
        tally.outcomes += duel.seen

    one()


def _say(tally: Tally) -> None:
    rate = tally.pairs / max(tally.seconds, 1e-9)
    print(f"{tally.pairs} pairs, {tally.storms} storms, {tally.seconds:.0f} s, {rate:.0f} pairs/s", file=sys.stderr,
          flush=True)


def workers(seeds: list[int], *options: str) -> list[subprocess.Popen[str]]:
    """Processes that compare side by side, each from its own seed."""
    return [
        subprocess.Popen([sys.executable, __file__, "--seed", str(seed), *options], stdout=subprocess.PIPE, text=True,
                         env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
        for seed in seeds
    ]


def explore(minutes: float) -> int:
    """New cases on every processor; the exit status."""
    count = len(os.sched_getaffinity(0))
    seeds = [secrets.randbelow(1 << 40) << 20 for _ in range(count)]
    print(f"seeds {', '.join(map(str, seeds))}: {minutes:g} min on {count} processors", flush=True)
    running = workers(seeds, "--minutes", str(minutes))
    answers = [process.communicate()[0] for process in running]
    total = Tally()
    for process, answer in zip(running, answers, strict=True):
        if process.returncode:
            print(answer)
            continue
        told = json.loads(answer)
        total.pairs += told["pairs"]
        total.storms += told["storms"]
        total.seconds = max(total.seconds, told["seconds"])
    rate = total.pairs / max(total.seconds, 1e-9)
    print(f"{total.pairs} pairs, {total.storms} storms, {rate:.0f} pairs/s", flush=True)
    return int(any(process.returncode for process in running))


def _keep(difference: Difference, seed: int) -> None:
    """Tell of a difference, and how to see it again."""
    source = module_of(difference, f"seed {seed}")
    name = f"found_{hashlib.sha256(source.encode()).hexdigest()[:10]}"
    REGRESSIONS.mkdir(exist_ok=True)
    path = REGRESSIONS / f"{name}.py"
    path.write_text(source)
    print(f"the engines differ, {difference}\n\n{source}\nwritten to {path}; to replay it:\n"
          f"  python -m pytest tests/kernel/test_engine_regressions.py -k {name}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Hold the kernel's engine against the reference.")
    parser.add_argument("--minutes", type=float, help="look for that long; default: until --pairs")
    parser.add_argument("--seed", type=int, help="in this process, from this seed; default: new ones, all processors")
    parser.add_argument("--pairs", type=int, help="stop after so many")
    options = parser.parse_args()
    if options.seed is None:
        return explore(options.minutes or 5.0)
    deadline_s = time.monotonic() + options.minutes * 60 if options.minutes else float("inf")
    tally = compare(options.seed, options.pairs or sys.maxsize, deadline_s)
    if tally is None:
        return 1
    print(json.dumps({"pairs": tally.pairs, "storms": tally.storms, "seconds": round(tally.seconds, 1),
                      "outcomes": dict(tally.outcomes.most_common())}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
