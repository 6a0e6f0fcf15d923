"""How long an agent takes over many remote endpoints: `python -m bench.remotes PIN_DIR NETNS COUNT FAMILIES`.

In a host's namespace: what a session does from the moment a frame is whole: decode, next goal state, save it to disk,
reconcile, tables of the kernel. First all remote endpoints of a network that has one port here, then one of them that
moves to another host, again and again. Prints a line of JSON: `receipt_s`, `change_ms` (median), the processor time of
both, and `kernel_bytes` (of the table of places, by address).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from agent.goals import Goals, apply_delta, from_sync
from agent.ids import Ids
from agent.reconcile import Reconciler
from agent.state import Disk
from bench.site import UNDERLAY
from southbound.codec import decode, encode
from southbound.messages import (
    REMOTES_BLOCK,
    Delta,
    FullSync,
    Goal,
    HostFacts,
    HostGoal,
    NetworkGoal,
    PortGoal,
    RemotesGoal,
    Subnet,
)
from vfp.datapath.engine import Datapath, Limits
from vswitch.switch import Switch

__all__ = ["blocks", "moved"]

HOSTS = 50                                  # that the remote endpoints are on
CHANGES = 20
VNI = 901
_NETWORK = "many"


@dataclass(frozen=True, slots=True)
class _Host:
    """Where remote endpoints are."""

    number: int

    @property
    def vtep(self) -> str:
        return f"172.31.{10 + self.number // 200}.{1 + self.number % 200}"


def blocks(count: int, families: int) -> Iterator[RemotesGoal]:
    """`count` endpoints, spread evenly over hosts, in blocks as large as a controller makes them at most."""
    by_host = -(-count // HOSTS)
    for host in map(_Host, range(HOSTS)):
        mine = range(host.number * by_host, min(count, (host.number + 1) * by_host))
        for start in range(mine.start, mine.stop, REMOTES_BLOCK):
            yield _block(host, start // REMOTES_BLOCK, range(start, min(mine.stop, start + REMOTES_BLOCK)), families)


def _block(host: _Host, number: int, members: range | list[int], families: int) -> RemotesGoal:
    return RemotesGoal(
        f"{_NETWORK}/h{host.number}/{number}", _NETWORK, f"h{host.number}", (host.vtep,),
        tuple(f"e{each}" for each in members),
        b"".join(b"\x02\x90" + each.to_bytes(4, "big") for each in members),
        b"".join(((10 << 24) + (64 << 16) + each).to_bytes(4, "big") for each in members),
        b"".join(b"\xfd\x90" + each.to_bytes(14, "big") for each in members) if families == 2 else b"",
    )


def moved(goals: list[RemotesGoal], number: int) -> tuple[RemotesGoal, RemotesGoal]:
    """The two blocks that change when the first endpoint of block `number` goes to the host of the last one."""
    from_, to = goals[number], goals[-1 - number]
    members = [_number(from_, index) for index in range(len(from_.names))]
    others = [_number(to, index) for index in range(len(to.names))]
    families = 2 if from_.addresses6 else 1

    def again(goal: RemotesGoal, those: list[int]) -> RemotesGoal:
        host = _Host(int(goal.host.removeprefix("h")))
        return _block(host, int(goal.id.rpartition("/")[2]), those, families)

    return again(from_, members[1:]), again(to, [*others, members[0]])


def _number(goal: RemotesGoal, index: int) -> int:
    return int(goal.names[index].removeprefix("e"))


def _own(netns: str) -> tuple[Goal, ...]:
    subnets = (Subnet("10.64.0.0/10", "10.127.255.254"), Subnet("fd90::/16", "fd90:ffff::1"))
    return (
        HostGoal("self", underlay=UNDERLAY[0], underlays=(UNDERLAY[0],)),
        NetworkGoal(_NETWORK, _NETWORK, _NETWORK, "overlay", VNI, subnets, "02:90:ff:00:00:fe", 0),
        PortGoal("own", "own", _NETWORK, _NETWORK, "10.127.0.1/10", "02:90:fe:00:00:01", netns, "eth0",
                 address6="fd90:fffe::1/16"),
    )


def main() -> int:
    """Measure once."""
    pins, netns, count, families = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    addresses = count * (3 if families == 2 else 1)     # with IPv6, a link-local one, too
    limits = Limits(flows=65536, rules=16384, space_entries=1 << (addresses + 16).bit_length())
    with (
        tempfile.TemporaryDirectory(prefix="sluice-bench-remotes-") as folder, Switch(Path(folder)) as switch,
        Datapath.open(pins, limits) as datapath,
    ):
        disk = Disk(Path(folder))
        reconciler = Reconciler(switch, datapath, disk, Ids(), limits.ports)
        host = _Applying(reconciler, disk, from_sync(FullSync(1, _own(netns))))
        host.apply()
        goals = list(blocks(count, families))
        receipt_s, receipt_cpu_s = host.receive(tuple(goals))
        changes = []
        for number in range(CHANGES):
            pair = moved(goals, number)
            goals[number], goals[-1 - number] = pair
            changes.append([1e3 * seconds for seconds in host.receive(pair)])
        places = datapath._object.map("spaces")
        text = Path(f"/proc/self/fdinfo/{places.fd}").read_text()
        held = int(text.partition("memlock:")[2].split()[0])
    found: dict[str, Any] = {
        "receipt_s": receipt_s, "receipt_cpu_s": receipt_cpu_s, "change_ms": median(each[0] for each in changes),
        "change_cpu_ms": median(each[1] for each in changes), "kernel_bytes": held / addresses,
    }
    print(json.dumps(found))
    return 0


class _Applying:
    """An agent's way from a message to the kernel, without its event loop."""

    def __init__(self, reconciler: Reconciler, disk: Disk, goals: Goals) -> None:
        self._reconciler, self._disk, self._goals = reconciler, disk, goals

    def apply(self) -> None:
        """Raises SystemExit if an object could not be programmed."""
        self._disk.save_goals(self._goals)
        outcome = self._reconciler.reconcile(self._goals, False, HostFacts())
        if wrong := [f"{each.kind} {each.id}: {each.error}" for each in outcome.objects if each.error]:
            raise SystemExit("\n".join([*wrong[:5], *outcome.general]))

    def receive(self, goals: tuple[Goal, ...]) -> tuple[float, float]:
        """Seconds from a whole frame with these objects to the tables of the kernel, and processor time of that."""
        revision = self._goals.revision
        payload = encode(Delta(revision, revision + 1, goals, ()))
        began, busy = time.perf_counter(), time.process_time()
        message = decode(payload)
        assert isinstance(message, Delta)
        self._goals = apply_delta(self._goals, message)
        self.apply()
        return time.perf_counter() - began, time.process_time() - busy


if __name__ == "__main__":
    sys.exit(main())
