"""What Sluice promises, as ratios between things measured side by side, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bench.mappings import FEW, MANY, REMOTES
from bench.nat import BINDINGS, INBOUND, MAPPINGS, OUTBOUND
from bench.program import LAYERS
from bench.results import METRICS, Key, Results, Spread
from bench.rules import USUAL
from bench.topologies import SCALE_RULES

__all__ = ["TARGETS", "Outcome", "Target", "outcomes"]

_CASES = {"same-host": "same host", "cross-host": "across hosts", "containers": "containers", "cni": "CNI"}
_PEERS = {
    ("same-host", "raw"): "raw veth", ("same-host", "iptables"): "bridge + iptables",
    ("cross-host", "vxlan"): "bare VXLAN", ("cross-host", "iptables"): "bridge + VXLAN + iptables",
    ("containers", "docker"): "Docker bridge", ("cni", "reference"): "reference plug-ins",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A promise. `at_most`: the figure is a cost."""

    text: str
    wanted: float
    read: Callable[[Results], Spread | None]
    at_most: bool = False
    unit: str = ""
    beside: tuple[str, str, str] | None = None      # case, metric, peer


@dataclass(frozen=True, slots=True)
class Outcome:
    """A promise and the figure reached; None: not measured in this run."""

    target: Target
    reached: Spread | None

    @property
    def is_met(self) -> bool | None:
        """By the median."""
        if self.reached is None:
            return None
        reached, wanted = self.reached.median, self.target.wanted
        return reached <= wanted if self.target.at_most else reached >= wanted


def outcomes(results: Results) -> list[Outcome]:
    """Every promise."""
    return [Outcome(target, target.read(results)) for target in TARGETS]


def _beside(case: str, metric: str, peer: str, wanted: float) -> Target:
    own = Key(case, metric, "sluice", USUAL)
    return Target(
        f"{_CASES[case]}, {METRICS[metric].title} ÷ {_PEERS[case, peer]}", wanted,
        lambda results: results.ratio(own, replace(own, subject=peer)), beside=(case, metric, peer),
    )


def _flat(metric: str) -> Callable[[Results], Spread | None]:
    few = Key("scale", metric, "sluice", min(SCALE_RULES))
    return lambda results: results.ratio(replace(few, rules=max(SCALE_RULES)), few)


def _worst(
    metric: str, rules: int | None = None, layers: int | None = None, case: str = "engine"
) -> Callable[[Results], Spread | None]:
    """The policy with the highest median, of those with so many rules and layers."""
    def read(results: Results) -> Spread | None:
        found = [
            spread for key in results.keys(case)
            if key.metric == metric and rules in (None, key.rules) and layers in (None, key.layers)
            and (spread := results.spread(key))
        ]
        return max(found, key=lambda spread: spread.median, default=None)

    return read


def _better_peer(case: str, metric: str) -> Callable[[Results], Spread | None]:
    """The ratio to the better of the peers, at the number of bindings or mappings where it is worst."""
    def read(results: Results) -> Spread | None:
        ratios = [
            ratio for key in results.keys(case) if key.metric == metric and key.subject != "sluice"
            and (ratio := results.ratio(replace(key, subject="sluice"), key))
        ]
        return min(ratios, key=lambda ratio: ratio.median, default=None)

    return read


def _grown(case: str, metric: str, sizes: tuple[int, ...]) -> Callable[[Results], Spread | None]:
    least = Key(case, metric, "sluice", sizes[0])
    return lambda results: results.ratio(replace(least, rules=sizes[-1]), least)


def _translated() -> Iterator[Target]:
    words = {OUTBOUND: "NAT outbound", INBOUND: "NAT inbound"}
    for case, text in words.items():
        for metric, wanted in (("crr_per_s", 1.25), ("packets_per_s", 1.25), ("tcp_gbps", 1.0)):
            yield Target(f"{text}, {METRICS[metric].title} ÷ better peer, worst size", wanted,
                         _better_peer(case, metric))
    for metric in ("crr_per_s", "packets_per_s"):
        yield Target(f"NAT inbound, {METRICS[metric].title}, 30k mappings ÷ 10", 0.95,
                     _grown(INBOUND, metric, MAPPINGS))
        yield Target(f"NAT outbound, {METRICS[metric].title}, 100k bindings ÷ 1", 0.95,
                     _grown(OUTBOUND, metric, BINDINGS))
    for metric, text in (("nat_out_hit_ns", "source translation"), ("nat_in_hit_ns", "static mapping")):
        yield Target(f"flow hit with {text}, program alone", 180, _worst(metric, case="nat-hit"), True, "ns")


def _many() -> Iterator[Target]:
    for metric, wanted, unit, text in (
        ("remotes_receipt_s", 1.0, "s", "from receipt to the kernel"), ("remotes_change_ms", 5.0, "ms", "one moves"),
        ("remotes_kernel_bytes", 200.0, "bytes", "kernel memory of each"),
    ):
        yield Target(f"{REMOTES:,} remote endpoints, {text}", wanted, _worst(metric, case="overlay-remotes"), True,
                     unit)
    for metric, text in (("mapped_hit_ns", "flow hit"), ("mapped_first_ns", "first packet to ten places")):
        yield Target(f"{text}, {MANY:,} mappings ÷ {FEW}", 0.9, _grown("overlay-hit", metric, (FEW, MANY)))


_LEAST = Key("engine", "hit_ns", "sluice", min(SCALE_RULES), min(LAYERS))
_MOST = replace(_LEAST, rules=max(SCALE_RULES), layers=max(LAYERS))
_ADD = Key("cni", "cni_add_ms", "sluice", USUAL)

TARGETS = (
    _beside("same-host", "tcp_gbps", "raw", 0.97),
    _beside("same-host", "tcp_rr_per_s", "raw", 0.93),
    _beside("same-host", "crr_per_s", "raw", 0.90),
    _beside("same-host", "crr_per_s", "iptables", 1.3),
    _beside("same-host", "packets_per_s", "iptables", 1.3),
    Target("new connections, 100k rules ÷ 20 rules", 0.95, _flat("crr_per_s")),
    Target("64-byte packets, 100k rules ÷ 20 rules", 0.95, _flat("packets_per_s")),
    _beside("cross-host", "tcp_gbps", "vxlan", 0.95),
    _beside("cross-host", "tcp_rr_per_s", "vxlan", 0.95),
    _beside("cross-host", "crr_per_s", "iptables", 1.2),
    _beside("cross-host", "packets_per_s", "iptables", 1.2),
    Target("flow hit, 20 rules in 1 layer ÷ 100k rules in 10 layers", 0.95, lambda found: found.ratio(_MOST, _LEAST)),
    Target("flow hit, worst of all rules and layers", 120, _worst("hit_ns"), True, "ns"),
    Target("flow hit with rewrite, worst of all rules and layers", 180, _worst("hit_rewrite_ns"), True, "ns"),
    Target("first packet, 20 rules in one layer", 700, _worst("first_packet_ns", USUAL, min(LAYERS)), True, "ns"),
    *_translated(),
    *_many(),
    _beside("containers", "crr_per_s", "docker", 1.25),
    _beside("containers", "docker_run_ms", "docker", 0.91),     # of times above 1 is better: at most 1.1 times as long
    Target("CNI ADD with a mapped port", 100, lambda found: found.spread(_ADD), True, "ms"),
)
