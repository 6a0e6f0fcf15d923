"""`python -m bench`: every subject of a case side by side, in alternating order, medians of the rounds.

Cases: same-host and cross-host (all peers), scale (20 to 100,000 rules, real traffic), engine (the program alone), nat
(source translation and static mappings beside iptables and nftables), overlay (many mappings, in the agent and in the
kernel), containers (docker run and CNI beside Docker's bridge and the reference plug-ins).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from bench.machine import facts
from bench.measure import MeasureError, missing_programs
from bench.processes import CommandFailed
from bench.report import CASES, Run, as_json, markdown
from bench.results import Results
from bench.rounds import Plan, measure
from bench.site import remove_stale
from bench.topologies import SAME
from vfp.datapath.pins import mount_bpffs

DOCS = Path(__file__).parents[1] / "docs" / "bench"


def main() -> int:
    """Parse, measure, write."""
    options = _options()
    problems = _problems()
    if problems:
        print(problems, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    plan = Plan(options.only, options.peers, options.rounds, options.seconds, options.quick)
    try:
        mount_bpffs()
        for name in remove_stale():
            print(f"removed {name}, which a benchmark left that was killed", file=sys.stderr)
        samples, absences = measure(plan, _tell)
    except (MeasureError, CommandFailed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what was built is removed", file=sys.stderr)
        return 130
    run = Run(facts(), plan.rounds, plan.seconds, Results(samples), absences)
    print(markdown(run))
    folder = options.out or (None if options.narrowed else DOCS)
    if folder:
        _write(run, folder)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_among(CASES), metavar="CASE,...", help=f"of {', '.join(CASES)}")
    parser.add_argument("--peers", type=_among(tuple(SAME)), metavar="PEER,...",
                        help=f"beside raw and sluice; of {', '.join(SAME)}")
    parser.add_argument("--rounds", type=_positive, help="readings of each (default 5; --quick 1)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one reading (default 1)")
    parser.add_argument("--quick", action="store_true", help="one round, fewer sizes: a look, not a measurement")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="write latest.json, .md and .png there (default: docs/bench, if all is measured)")
    options = parser.parse_args()
    options.narrowed = bool(options.only or options.peers or options.quick)
    options.only = options.only or CASES
    options.peers = tuple(peer for peer in SAME if peer in (*(options.peers or SAME), "raw", "sluice"))
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def _among(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if wrong := [each for each in found if each not in known]:
            raise argparse.ArgumentTypeError(f"found {', '.join(wrong)}; use {', '.join(known)}")
        return found

    return parse


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


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(run: Run, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.json").write_text(json.dumps(as_json(run), indent=1, ensure_ascii=False) + "\n")
    picture = ""
    try:
        from bench.plot import draw  # matplotlib comes with `make bench` only
    except ImportError:
        print("bench: no plot, since matplotlib is missing: pip install -e '.[bench]'", file=sys.stderr)
    else:
        picture = "latest.png"
        draw(run, folder / picture)
    (folder / "latest.md").write_text(markdown(run, picture))
    print(f"written to {folder}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
