"""Program one host of the benchmark with the agent's own reconciler: `python -m bench.host PIN_DIR`.

Run in the host's network namespace, with the plan in the environment. Says READY, then ages flows every second as the
agent does, until it is ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from agent.app import REAP_EVERY_S
from agent.goals import from_sync
from agent.ids import Ids
from agent.reconcile import Reconciler
from agent.state import Disk
from bench.rules import acl
from southbound.messages import AclTier, FullSync, Goal, HostGoal, NetworkGoal, PortGoal, RemoteGoal, Subnet
from vfp.datapath.engine import Datapath, Limits
from vswitch.switch import Switch

GOALS = "SLUICE_BENCH_PLAN"
READY = "bench.host: ready"
_NETWORK = "bench"
_SWEEP_EVERY_S = 10.0


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
    tier = AclTier("bench/rules", 1000, acl(plan["rules"]))
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
    """Reconcile once, and age; exit 1 with the errors if an object failed."""
    text = os.environ[GOALS]
    # Old and new groups of both directions have room side by side.
    limits = Limits(flows=131072, rules=16384 + 4 * int(json.loads(text)["rules"]))
    with (
        tempfile.TemporaryDirectory(prefix=f"sluice-bench-{os.getppid()}-") as folder, Switch(Path(folder)) as switch,
        Datapath.open(Path(sys.argv[1]), limits) as datapath,
    ):
        reconciler = Reconciler(switch, datapath, Disk(Path(folder)), Ids(), limits.ports)
        outcome = reconciler.reconcile(from_sync(goals(text)))
        for status in outcome.objects:
            if status.error:
                print(f"{status.kind} {status.id}: {status.error}", file=sys.stderr)
        for problem in outcome.general:
            print(problem, file=sys.stderr)
        if not outcome.complete:
            return 1
        print(READY, flush=True)
        signal.signal(signal.SIGTERM, _leave)
        next_sweep_s = time.monotonic() + _SWEEP_EVERY_S
        while True:
            time.sleep(REAP_EVERY_S)
            datapath.reap()
            if time.monotonic() >= next_sweep_s:
                datapath.sweep()
                next_sweep_s += _SWEEP_EVERY_S


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
