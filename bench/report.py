"""A run as JSON and as a markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.results import BASES, METRICS, Key, Results, Spread
from bench.targets import Outcome, outcomes

__all__ = ["CASES", "NAMES", "Absence", "Run", "as_json", "counted", "markdown"]

CASES = ("same-host", "cross-host", "scale", "engine", "nat", "overlay", "containers")
_TITLES = {
    "same-host": "Same host", "cross-host": "Across hosts", "scale": "By number of rules",
    "engine": "The engine's program alone, by rules and layers",
    "nat-out": "NAT, outbound, by live bindings", "nat-in": "NAT, inbound, by static mappings",
    "nat-hit": "The engine's program alone, translating",
    "containers": "Containers of one dockerd, on its own bridge and on our nat network",
    "cni": "CNI plug-ins, beside bridge, host-local and portmap",
    "overlay-remotes": "An agent with many remote endpoints", "overlay-hit": "The engine's program alone, by mappings",
}
_BY_SUBJECT = ("same-host", "cross-host", "containers", "cni")
_COUNTED = {"nat-out": "bindings", "nat-in": "mappings", "nat-hit": "bindings",
            "overlay-remotes": "remote endpoints", "overlay-hit": "mappings"}
NAMES = {
    "raw": "raw veth", "vxlan": "bare VXLAN", "bridge": "bridge", "iptables": "bridge + iptables",
    "nftables": "bridge + nftables", "docker": "Docker bridge", "ovs": "Open vSwitch", "sluice": "Sluice",
    "reference": "bridge + host-local + portmap",
}


@dataclass(frozen=True, slots=True)
class Absence:
    """What was not measured, and why. `reading` empty: nothing of the subject was."""

    case: str
    subject: str
    reading: str
    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """All there is to tell."""

    facts: Mapping[str, str]
    rounds: int
    seconds: float
    results: Results
    absences: Sequence[Absence]


def as_json(run: Run) -> dict[str, Any]:
    """Plain values: facts, every row with its readings by round, ratios to raw, targets, absences."""
    rows = []
    for key in run.results.keys(None):
        spread, ratio = run.results.spread(key), run.results.ratio(key, replace(key, subject="raw"))
        rows.append({
            **asdict(key), "unit": METRICS[key.metric].unit, **(asdict(spread) if spread else {}),
            "values": run.results.values(key), "ratio_to_raw": asdict(ratio) if ratio else None,
        })
    return {
        "facts": dict(run.facts), "rounds": run.rounds, "seconds": run.seconds, "rows": rows,
        "targets": [
            {"target": outcome.target.text, "at_most" if outcome.target.at_most else "at_least": outcome.target.wanted,
             "reached": asdict(outcome.reached) if outcome.reached else None, "met": outcome.is_met}
            for outcome in outcomes(run.results)
        ],
        "absent": [asdict(absence) for absence in run.absences],
    }


def markdown(run: Run, picture: str = "") -> str:
    """The page; `picture` is the plot's file name."""
    lines = [
        "# Sluice beside peers", "",
        f"Rounds: {run.rounds}, of {run.seconds:g} s a reading. Cells: median (lowest to highest round).",
        "What is measured and how to read it: [README.md](README.md).", "",
        *(f"- {name}: {value}" for name, value in run.facts.items()), "",
    ]
    if picture:
        lines += [f"![ratios to a raw link, by case]({picture})", ""]
    found = outcomes(run.results)
    if _TITLES.keys() - {key.case for key in run.results.keys(None)}:   # of the rest there is nothing to say
        found = [outcome for outcome in found if outcome.reached is not None]
    lines += ["## Targets", "", *_targets(found)]
    for case, title in _TITLES.items():
        keys = run.results.keys(case)
        if keys:
            table = (_by_subject if case in _BY_SUBJECT else _by_size)(run.results, keys)
            lines += ["", f"## {title}", "", *table]
    if run.absences:
        lines += ["", "## Not measured", "", *_grid(
            ("case", "subject", "reading", "why"),
            ((each.case, name(each.case, each.subject), each.reading or "all", " ".join(each.reason.split()))
             for each in run.absences),
        )]
    return "\n".join(lines) + "\n"


def name(case: str, subject: str) -> str:
    """Of a subject as read by people: what is raw differs."""
    if case.startswith("nat") and subject != "sluice":
        return subject                      # there without a bridge
    return "raw underlay" if (case, subject) == ("cross-host", "raw") else NAMES[subject]


def counted(case: str) -> str:
    """Of what a case has a number."""
    return _COUNTED.get(case, "rules")


def _targets(found: Iterable[Outcome]) -> list[str]:
    def row(outcome: Outcome) -> tuple[str, ...]:
        target, unit = outcome.target, f" {outcome.target.unit}" if outcome.target.unit else ""
        digits = {"": 2, "s": 2, "ms": 1}.get(target.unit, 0)
        reached = "not measured" if outcome.reached is None else f"{_cell(outcome.reached, digits)}{unit}"
        verdict = {True: "met", False: "**missed**", None: ""}[outcome.is_met]
        return target.text, f"{'≤' if target.at_most else '≥'} {target.wanted:g}{unit}", reached, verdict

    return _grid(("", "wanted", "reached", ""), map(row, found))


def _by_subject(results: Results, keys: Sequence[Key]) -> list[str]:
    """A row each metric, a column each subject; then the ratios."""
    case, subjects = keys[0].case, list(dict.fromkeys(key.subject for key in keys))
    by_metric = {metric: next(key for key in keys if key.metric == metric) for metric in _metrics(keys)}
    heads = [name(case, subject) for subject in subjects]
    base = BASES[case]
    others = [subject for subject in subjects if subject != base]
    out = _grid(("", *heads), (
        (_title(metric), *(
            _cell(results.spread(replace(key, subject=subject)), METRICS[metric].digits) for subject in subjects))
        for metric, key in by_metric.items()
    ))
    out += ["", f"Ratio to {name(case, base)}, round by round; above 1 is better, also for times:", ""]
    return out + _grid(("", *(name(case, subject) for subject in others)), (
        (METRICS[metric].title, *(
            _cell(results.ratio(replace(key, subject=subject), replace(key, subject=base)), 2)
            for subject in others))
        for metric, key in by_metric.items() if metric != "packet_bpf_ns"
    ))


def _by_size(results: Results, keys: Sequence[Key]) -> list[str]:
    """A row each subject and size, a column each metric."""
    metrics = _metrics(keys)
    rows = dict.fromkeys(replace(key, metric="") for key in keys)
    layered = any(key.layers for key in keys)
    return _grid(
        ("", counted(keys[0].case), *(["layers"] if layered else []), *map(_title, metrics)),
        ((name(row.case, row.subject), f"{row.rules:,}",
          *([str(row.layers)] if layered else []),
          *(_cell(results.spread(replace(row, metric=metric)), METRICS[metric].digits) for metric in metrics))
         for row in rows),
    )


def _metrics(keys: Sequence[Key]) -> list[str]:
    """In the order of the table of metrics."""
    return [metric for metric in METRICS if any(key.metric == metric for key in keys)]


def _title(metric: str) -> str:
    return f"{METRICS[metric].title} [{METRICS[metric].unit}]"


def _cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return ""
    if spread.rounds == 1:
        return f"{spread.median:,.{digits}f}"
    return f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f} to {spread.high:,.{digits}f})"


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
