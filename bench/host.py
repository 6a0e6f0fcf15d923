"""Program one host of the benchmark with the agent's own reconciler: `python -m bench.host PIN_DIR PLAN`.

Run in the host's network namespace; the plan is a file. Says READY, then ages flows every second as the agent does,
until it is ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from agent.app import REAP_EVERY_S
from agent.goals import from_sync
from agent.ids import Ids
from agent.reconcile import Reconciler
from agent.state import Disk
from bench.rules import acl
from bench.site import READY
from southbound.messages import (
    AclTier,
    FullSync,
    Goal,
    HostGoal,
    MappingGoal,
    NetworkGoal,
    PortGoal,
    RemotesGoal,
    Subnet,
)
from vfp.datapath.engine import Datapath, Limits
from vfp.timeouts import Timeouts
from vswitch.switch import Switch

__all__ = ["HostPlan", "NatPlan", "goals"]

_NETWORK = "bench"
_PROTOCOLS: dict[int, Literal["tcp", "udp"]] = {6: "tcp", 17: "udp"}
_SWEEP_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class HostPlan:
    """Who lives here: endpoint number to namespace, or to the VTEP of the other host."""

    underlay: str
    local: Mapping[int, str] = field(default_factory=dict)
    remote: Mapping[int, str] = field(default_factory=dict)

    def encode(self, addresses: Sequence[str], macs: Sequence[str], vni: int, rules: int) -> str:
        """As the text of a plan."""
        return json.dumps({
            "underlay": self.underlay, "local": list(self.local.items()), "remote": list(self.remote.items()),
            "addresses": addresses, "macs": macs, "vni": vni, "rules": rules,
        })


@dataclass(frozen=True, slots=True)
class NatPlan:
    """Endpoints of a nat network behind the host's uplink `up0`: name to namespace and address of 10.9.0.0/16.

    Attributes:
        life_s: of flows that nobody has answered.
        mappings: (protocol, external port, internal address, internal port), on all addresses of the uplink.
    """

    endpoints: Mapping[str, tuple[str, str]]
    nat_ports: tuple[int, int]
    life_s: float
    mappings: Sequence[tuple[int, int, str, int]] = ()
    gateway_mac: str = "02:09:00:00:00:fe"

    def encode(self) -> str:
        """As the text of a plan."""
        return json.dumps({**asdict(self), "nat": True, "rules": 0})


def goals(text: str) -> FullSync:
    """The goal state that a controller would push for the plan."""
    plan = json.loads(text)
    return FullSync(1, tuple(_nat_goals(plan) if "nat" in plan else _overlay_goals(plan)))


def _overlay_goals(plan: dict[str, Any]) -> Iterator[Goal]:
    tier = AclTier("bench/rules", 1000, acl(plan["rules"]))
    yield HostGoal("self", underlay=plan["underlay"])
    yield NetworkGoal(
        _NETWORK, _NETWORK, _NETWORK, "overlay", plan["vni"], (Subnet("10.9.0.0/24", "10.9.0.254"),),
        "02:09:00:00:00:fe", 0,
    )
    for number, namespace in plan["local"]:
        yield PortGoal(
            f"e{number}", f"e{number}", _NETWORK, _NETWORK, f"{plan['addresses'][number]}/24", plan["macs"][number],
            namespace, "eth0", (tier,),
        )
    for number, vtep in plan["remote"]:
        yield RemotesGoal(
            f"{_NETWORK}/{vtep}/{number}", _NETWORK, vtep, (vtep,), (f"e{number}",),
            bytes.fromhex(plan["macs"][number].replace(":", "")), ip_address(plan["addresses"][number]).packed, b"",
        )


def _nat_goals(plan: dict[str, Any]) -> Iterator[Goal]:
    yield HostGoal("self", uplink="up0", nat_ports=tuple(plan["nat_ports"]))
    yield NetworkGoal(
        _NETWORK, _NETWORK, _NETWORK, "nat", (1 << 24) + 1, (Subnet("10.9.0.0/16", "10.9.255.254"),),
        plan["gateway_mac"], 0,
    )
    for number, (name, (namespace, address)) in enumerate(plan["endpoints"].items(), 1):
        yield PortGoal(
            name, name, _NETWORK, _NETWORK, f"{address}/16", f"02:09:00:00:01:{number:02x}", namespace, "eth0"
        )
    owners = {address: name for name, (_, address) in plan["endpoints"].items()}
    for protocol, external, address, port in plan["mappings"]:
        name = f"{_PROTOCOLS[protocol]}-{external}"
        yield MappingGoal(
            name, name, _NETWORK, _PROTOCOLS[protocol], "0.0.0.0", (external, external), owners[address], address, port
        )


def main() -> int:
    """Reconcile once, and age; exit 1 with the errors if an object failed."""
    text = Path(sys.argv[2]).read_text()
    limits, timeouts = _bounds(json.loads(text))
    with (
        tempfile.TemporaryDirectory(prefix=f"sluice-bench-{os.getppid()}-") as folder, Switch(Path(folder)) as switch,
        Datapath.open(Path(sys.argv[1]), limits, timeouts) as datapath,
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


def _bounds(plan: dict[str, Any]) -> tuple[Limits, Timeouts]:
    # Old and new groups of both directions have room side by side.
    limits = Limits(flows=131072, rules=16384 + 4 * int(plan["rules"]))
    if "nat" not in plan:
        return limits, Timeouts()
    life_s = plan["life_s"]
    return (
        replace(limits, flows=1 << 19, bindings=1 << 18),
        Timeouts(tcp_opening_s=life_s, udp_new_s=life_s, icmp_s=life_s),
    )


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
