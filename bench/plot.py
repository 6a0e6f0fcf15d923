"""A run as one picture: ratios to a raw link, or bare VXLAN, by case, and what the number of rules costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")                              # a file is drawn, no window

from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullLocator

from bench.report import Run, name
from bench.results import BASES, METRICS, Key, Results
from bench.rules import USUAL
from bench.targets import TARGETS

__all__ = ["draw"]

# Okabe and Ito's palette, which people with any colour vision can tell apart; Sluice is the dark one.
COLOURS = {
    "sluice": "#0b3d6e", "bridge": "#b5b5b5", "iptables": "#d55e00", "nftables": "#e69f00", "docker": "#cc79a7",
    "ovs": "#56b4e9", "raw": "#009e73",
}
_GROUPS = ("tcp_gbps", "tcp_rr_per_s", "udp_rr_per_s", "packets_per_s", "crr_per_s")
_ORDER = ("sluice", "raw", "bridge", "nftables", "iptables", "docker", "ovs")
_STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#666666",
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "xtick.color": "#333333",
    "ytick.color": "#333333", "axes.grid.axis": "y", "grid.color": "#e4e4e4", "legend.frameon": False,
}


def draw(run: Run, file: Path) -> None:
    """Write a PNG."""
    with mpl.rc_context(_STYLE):
        figure = pyplot.figure(figsize=(11, 11.5), layout="constrained")
        rows = figure.add_gridspec(3, 6, height_ratios=(1.15, 1.15, 1))
        for number, case in enumerate(("same-host", "cross-host")):
            _bars(figure.add_subplot(rows[number, :]), run.results, case)
        _by_rules(figure.add_subplot(rows[2, 0:2]), run.results, "crr_per_s", "New connections a second")
        _by_rules(figure.add_subplot(rows[2, 2:4]), run.results, "packets_per_s", "64-byte packets a second")
        _engine(figure.add_subplot(rows[2, 4:6]), run.results)
        figure.suptitle(
            f"Medians of {run.rounds} rounds, whiskers from lowest to highest; white lines: Sluice's targets\n"
            f"{run.facts.get('processors', '')}, {run.facts.get('kernel', '')}", fontsize=9, color="#555555",
            x=0.01, ha="left",
        )
        figure.savefig(file, dpi=140)
        pyplot.close(figure)


def _bars(axes: Any, results: Results, case: str) -> None:
    """Groups by metric, a bar each subject, as a ratio to the base; a notch where Sluice's target is."""
    base = BASES[case]
    axes.set_title(f"{'Same host' if case == 'same-host' else 'Across hosts'}: ratio to {name(case, base)}")
    keys = results.keys(case)
    metrics = [metric for metric in _GROUPS if any(key.metric == metric for key in keys)]
    subjects = [each for each in _ORDER if each != base and any(key.subject == each for key in keys)]
    if not metrics or not subjects:
        _nothing(axes)
        return
    width = 0.82 / len(subjects)
    for place, subject in enumerate(subjects):
        offset = (place - (len(subjects) - 1) / 2) * width
        for group, metric in enumerate(metrics):
            key = Key(case, metric, subject, USUAL)
            ratio = results.ratio(key, replace(key, subject=base))
            if ratio is None:
                continue
            at = group + offset
            axes.bar(at, ratio.median, width * 0.92, color=COLOURS[subject],
                     label=name(case, subject) if group == 0 else None, zorder=2)
            axes.errorbar(at, ratio.median, [[ratio.median - ratio.low], [ratio.high - ratio.median]],
                          color="#222222", elinewidth=0.8, capsize=2, capthick=0.8, zorder=3)
            axes.annotate(f"{ratio.median:.2f}", (at, ratio.high), xytext=(0, 3), textcoords="offset points",
                          ha="center", va="bottom", fontsize=7.5,
                          fontweight="bold" if subject == "sluice" else "normal",
                          color="#111111" if subject == "sluice" else "#555555")
            wanted = _wanted(case, metric) if subject == "sluice" else None
            if wanted:
                axes.plot([at - width / 2, at + width / 2], [wanted, wanted], color="white", lw=1.6, zorder=4)
    axes.axhline(1, color="#222222", lw=0.9, zorder=1)
    axes.annotate(base, (len(metrics) - 0.5, 1), xytext=(2, 0), textcoords="offset points", va="center", fontsize=8,
                  annotation_clip=False)
    axes.set_xlim(-0.5, len(metrics) - 0.5)
    axes.set_xticks(range(len(metrics)), [METRICS[metric].title for metric in metrics])
    axes.tick_params(axis="x", length=0)
    axes.grid(True, axis="y")
    axes.set_ylim(0, None)
    axes.legend(ncols=len(subjects), loc="lower right", bbox_to_anchor=(1, 1), fontsize=8.5, handlelength=1,
                columnspacing=1.4, borderaxespad=0.2)


def _by_rules(axes: Any, results: Results, metric: str, title: str) -> None:
    """A line each subject over the number of rules."""
    axes.set_title(title)
    keys = [key for key in results.keys("scale") if key.metric == metric]
    if not keys:
        _nothing(axes)
        return
    for subject in (each for each in _ORDER if any(key.subject == each for key in keys)):
        rules = sorted(key.rules for key in keys if key.subject == subject)
        spreads = [spread for count in rules if (spread := results.spread(Key("scale", metric, subject, count)))]
        middle = [spread.median for spread in spreads]
        axes.plot(rules, middle, color=COLOURS[subject], marker="o", ms=4, lw=2 if subject == "sluice" else 1.3,
                  label=name("scale", subject))
        axes.vlines(rules, [each.low for each in spreads], [each.high for each in spreads], color=COLOURS[subject],
                    lw=0.9)
    _log_axis(axes)
    _rules_axis(axes, sorted({key.rules for key in keys}))
    axes.legend(fontsize=8, loc="lower left")


def _engine(axes: Any, results: Results) -> None:
    """The cost of a hit and of a first packet over the number of rules, a line for each number of layers."""
    axes.set_title("Program alone, ns")
    keys = results.keys("engine")
    if not keys:
        _nothing(axes)
        return
    rules, layers = sorted({key.rules for key in keys}), sorted({key.layers for key in keys})
    kinds = {"first_packet_ns": "#d55e00", "hit_rewrite_ns": "#56b4e9", "hit_ns": "#0b3d6e"}
    for metric, colour in kinds.items():
        for depth, line in zip(layers, ("-", "--", ":"), strict=False):
            spreads = [results.spread(Key("engine", metric, "sluice", count, depth)) for count in rules]
            axes.plot(rules, [spread.median if spread else float("nan") for spread in spreads], line, color=colour,
                      marker="o", ms=3, lw=1.4, label=METRICS[metric].title if depth == layers[0] else None)
    for depth, line in zip(layers, ("-", "--", ":"), strict=False):
        axes.plot([], [], line, color="#666666", label=f"{depth} layer{'s' if depth > 1 else ''}")
    _log_axis(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(low * 0.8, high * 6)      # room for the legend
    _rules_axis(axes, rules)
    axes.legend(fontsize=8, ncols=2, loc="upper left", columnspacing=1, handlelength=1.8)


def _rules_axis(axes: Any, rules: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(rules, [_short(count) for count in rules])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("rules")
    axes.grid(True, axis="y")


def _log_axis(axes: Any) -> None:
    """Labels at 1, 2 and 5 of each power of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))


def _nothing(axes: Any) -> None:
    axes.text(0.5, 0.5, "not measured", ha="center", va="center", color="#888888", transform=axes.transAxes)
    axes.set_axis_off()


def _wanted(case: str, metric: str) -> float | None:
    """Sluice's target against the base."""
    return next((target.wanted for target in TARGETS if target.beside == (case, metric, BASES[case])), None)


def _short(value: float) -> str:
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}"
