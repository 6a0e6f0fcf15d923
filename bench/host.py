"""Program one host of the benchmark with the agent's own reconciler, then leave: `python -m bench.host PIN_DIR`.

Run in the host's network namespace, with the plan in the environment. The data path outlives this process, as it
outlives the agent.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.goals import from_sync
from agent.ids import Ids
from agent.reconcile import Reconciler
from agent.state import Disk
from southbound.messages import AclRule, AclTier, FullSync, Goal, HostGoal, NetworkGoal, PortGoal, RemoteGoal, Subnet
from vfp.datapath.engine import Datapath, Limits
from vswitch.switch import Switch

GOALS = "SLUICE_BENCH_PLAN"
_NETWORK = "bench"


@dataclass(frozen=True, slots=True)
class HostPlan:
    """Who lives here: endpoint number to namespace, or to the VTEP of the other host."""

    underlay: str
    local: Mapping[int, str] = field(default_factory=dict)
    remote: Mapping[int, str] = field(default_factory=dict)

    def encode(self, addresses: Sequence[str], macs: Sequence[str], vni: int, rules: int) -> str:
        """As text for the environment."""
        return json.dumps({
            "underlay": self.underlay, "local": list(self.local.items()), "remote": list(self.remote.items()),
            "addresses": addresses, "macs": macs, "vni": vni, "rules": rules,
        })


def goals(text: str) -> FullSync:
    """The goal state that a controller would push for the plan."""
    plan = json.loads(text)
    tier = AclTier(
        "bench/rules", 1000,
        tuple(
            AclRule(number, direction, "deny", protocol=6, ports=((20000 + number, 20000 + number),))
            for number in range(plan["rules"]) for direction in ("in", "out")
        ),
    )
    objects: list[Goal] = [
        HostGoal("self", underlay=plan["underlay"]),
        NetworkGoal(
            _NETWORK, _NETWORK, _NETWORK, "overlay", plan["vni"], (Subnet("10.9.0.0/24", "10.9.0.254"),),
            "02:09:00:00:00:fe", 0,
        ),
    ]
    for number, namespace in plan["local"]:
        objects.append(PortGoal(
            f"e{number}", f"e{number}", _NETWORK, _NETWORK, f"{plan['addresses'][number]}/24", plan["macs"][number],
            namespace, "eth0", (tier,),
        ))
    for number, vtep in plan["remote"]:
        objects.append(RemoteGoal(
            f"e{number}", f"e{number}", _NETWORK, plan["addresses"][number], plan["macs"][number], vtep
        ))
    return FullSync(1, tuple(objects))


def main() -> int:
    """Reconcile once; exit 1 with the errors if an object failed."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder, Switch(Path(folder)) as switch:
        limits = Limits(flows=131072)
        with Datapath.open(Path(sys.argv[1]), limits) as datapath:
            reconciler = Reconciler(switch, datapath, Disk(Path(folder)), Ids(), limits.ports)
            outcome = reconciler.reconcile(from_sync(goals(os.environ[GOALS])))
    for status in outcome.objects:
        if status.error:
            print(f"{status.kind} {status.id}: {status.error}", file=sys.stderr)
    for problem in outcome.general:
        print(problem, file=sys.stderr)
    return 0 if outcome.complete else 1


if __name__ == "__main__":
    sys.exit(main())
