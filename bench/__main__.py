"""`python -m bench`: every subject of a case side by side, in alternating order, medians of the rounds."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench.measure import METRICS, MeasureError, missing_programs, servers
from bench.program import hit_ns
from bench.results import Sample, as_json, summarise, table
from bench.topologies import BUILDERS, built

HIT = "flow-hit"
CASES = (*BUILDERS, HIT)
WIDTH = 140  # of the table where no terminal says


def main() -> int:
    """Parse, measure, print."""
    options = _options()
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    problems = _problems()
    if problems:
        print(problems, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    samples: list[Sample] = []
    try:
        for case in options.only or CASES:
            samples.extend(_measure(case, options.rounds, options.seconds, console))
    except (MeasureError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what was built is removed", file=sys.stderr)
        return 130
    rows = summarise(samples)
    console.print(table(rows))
    if options.json:
        Path(options.json).write_text(json.dumps(as_json(rows), indent=2) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=CASES, metavar="CASE", help=f"one of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=_positive, default=5, help="readings of each (default 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one reading (default 1)")
    parser.add_argument("--json", metavar="FILE", help="write the rows here too")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text}; use 1 or more")
    return value


def _problems() -> str:
    if os.geteuid() != 0:
        return "bench: needs root, for namespaces and BPF: sudo make bench"
    if packages := missing_programs():
        return f"bench: programs are missing: apt-get install {' '.join(packages)}"
    return ""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _measure(case: str, rounds: int, seconds: float, console: Console) -> Iterator[Sample]:
    if case == HIT:
        for number in range(rounds):
            console.print(f"[dim]{case}: round {number + 1} of {rounds}[/dim]")
            yield Sample(case, "ns_per_packet", "sluice", hit_ns())
        return
    with built(case) as pairs, ExitStack() as running:
        for pair in pairs.values():
            running.enter_context(servers(pair))
        subjects = list(pairs)
        for number in range(rounds):
            console.print(f"[dim]{case}: round {number + 1} of {rounds}[/dim]")
            # Whoever goes first differs from round to round, so that no one always meets a cold machine.
            order = subjects[number % len(subjects) :] + subjects[: number % len(subjects)]
            for metric, read in METRICS.items():
                for subject in order:
                    yield Sample(case, metric, subject, read(pairs[subject], seconds))


if __name__ == "__main__":
    sys.exit(main())
