"""The churn proof: endpoints move, go and come back on old addresses, while links, hosts and the controller fail.

    sudo make churn MINUTES=5                       30 hosts of 20 endpoints
    sudo .venv/bin/python tests/system/churn.py --hosts 8 --endpoints 6 --minutes 1 --seed 7

Every agent is a real process with a real engine, the controller is a real process, and all sit in namespaces of one
machine. A course of some seconds of changes and failures is followed by a quiet point: when every host has applied
what is declared, every endpoint sends to every address of both families, and what arrives where must be the declared
matrix; then each host's mappings and links are compared with what is declared. While things change, a packet that
crosses from one network to another is wrong at any moment. The seed determines what is done, in which order; not when
exactly.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from churn_daemons import Daemons
from churn_probe import Pair, Probe
from churn_remains import differences
from churn_stage import ETHER, MANAGEMENT, PREFIX, Hopper, Stage, host_netns, slot_netns
from churn_world import API, Change, Network, Slot, World, host_name, underlays

from controller.client import ApiError, Client, Reference, Unreachable
from southbound.client import join
from vfp.datapath.pins import mount_bpffs

LIMITS = {"flows": 65536, "udp": 32768, "rules": 16384, "ports": 128, "space_entries": 8192, "mappings": 64,
          "bindings": 256, "sets": 256, "set_members": 1024, "pools": 64, "meters": 256}
APPLIED_S = 180.0                           # from the last change to its being in force everywhere
CARRIER_S = 1.2                             # the kernel looks at links that came up once a second (linkwatch)
SOUTHBOUND = 7443
STEPS = (6, 14)                             # changes of one course
FAULTS = ("flap", "kill", "controller", "reboot")
SHOWN = 12


class Churned(AssertionError):
    """Something was not as declared; the message says what, and how to see it again."""


@dataclass(slots=True)
class Tally:
    """What was done and seen."""

    courses: int = 0
    changes: int = 0
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))
    pairs: int = 0
    scattered: int = 0
    again: int = 0                          # probes lost once, that came when sent again
    settle_s: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in self.faults.items())
        waits = sorted(self.settle_s) or [0.0]
        return (f"churn: {self.courses} quiet points, {self.changes} changes, {faults}; {self.pairs} pairs probed, "
                f"{self.again} of them twice, {self.scattered} packets in between; in force after "
                f"{waits[len(waits) // 2]:.1f} s (median), {waits[-1]:.1f} s (longest)")


class Churn:
    """One run; a context manager that removes all it made."""

    def __init__(self, hosts: int, endpoints: int, networks: int, seed: int, tell: Callable[[str], None]) -> None:
        self.seed, self._tell = seed, tell
        self._rng = random.Random(seed)
        self.world = World(hosts, endpoints, networks, self._rng)
        self.tally = Tally()
        self._stage = Stage(hosts, self.world.slots, self.world.version)
        self._hopper = Hopper()
        self._probe = Probe(self._hopper)
        self._agents: dict[int, int] = {}   # by host; process id
        self._controller = 0
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._gateways: dict[Network, str] = {}
        self._homes: dict[Slot, set[int]] = {}      # numbers of networks that a slot was in since the last quiet point
        self._mended_s = 0.0                # when a cable last was
        self._revision = 0
        self._stack = ExitStack()

    def __enter__(self) -> Churn:
        try:
            # In memory: what fails here is processes and kernels, not disks.
            memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, dir=memory)))
            self._stack.callback(self._stage.close)
            self._stack.callback(self._hopper.close)
            self._stack.callback(self._probe.close)
            self._stack.callback(self._keep_logs)
            self._daemons = Daemons()
            self._stack.callback(self._daemons.close)
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # Building

    def _build(self) -> None:
        began = time.monotonic()
        self._stage.build()
        self._probe.open(Slot(host, number) for host in range(self.world.hosts) for number in range(self.world.slots))
        self._tell(f"churn: {self.world.hosts} hosts with {len(self.world.endpoints)} endpoints in "
                   f"{len(self.world.networks)} networks, IPv{self.world.version} underneath, namespaces after "
                   f"{time.monotonic() - began:.0f} s")
        self._start_controller()
        hosts = range(self.world.hosts)
        self._apply([{"apiVersion": API, "kind": "Host", "metadata": {"name": host_name(host)},
                      "spec": {"underlay": list(underlays(host, self.world.version))}} for host in hosts])
        for network in self.world.networks:
            self._apply(network.documents())
            with self._client() as client:
                self._gateways[network] = client.get("Network", "net", network.tenant)["status"]["gatewayMac"]
        self._hopper.each([ETHER], lambda _: asyncio.run(self._join()))
        self._apply([endpoint.document(slot_netns(endpoint.slot)) for endpoint in self.world.endpoints.values()])
        for host in hosts:
            self._start_agent(host)
        self._note_homes()

    async def _join(self) -> None:
        with self._client() as client:
            for host in range(self.world.hosts):
                token = client.create_token(host_name(host))
                await join(f"{MANAGEMENT}:{SOUTHBOUND}", token, host_name(host), self._state(host))

    def _state(self, host: int) -> Path:
        return self._folder / f"h{host}"

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _start_agent(self, host: int) -> None:
        self._agents[host] = self._daemons.agent(
            host_netns(host), self._log(f"agent-h{host}"), self._state(host), self._stage.pins(host), LIMITS)

    def _end_agent(self, host: int) -> None:
        status = self._daemons.end(self._agents.pop(host))
        if status != -signal.SIGKILL:
            raise self._wrong([f"the agent of h{host} had ended by itself, with {status}"])

    def _start_controller(self) -> None:
        self._controller = self._daemons.controller(
            ETHER, self._log("controller"), self._folder / "controller", self._api, f"{MANAGEMENT}:{SOUTHBOUND}",
            MANAGEMENT)

    @property
    def _api(self) -> str:
        return f"unix:{self._folder}/api.sock"

    def _client(self) -> Client:
        return Client(self._api)

    def _ask(self, what: Callable[[Client], int]) -> None:
        """Write, and again while the controller is away: what is written twice is the same."""
        until = time.monotonic() + APPLIED_S
        while True:
            try:
                with self._client() as client:
                    self._revision = max(self._revision, what(client))
                return
            except Unreachable:
                if time.monotonic() > until:
                    raise
                self._do_due()
                time.sleep(0.05)
            except ApiError as error:
                raise self._wrong([f"refused: {error}"]) from error

    def _apply(self, documents: list[dict[str, object]]) -> None:
        self._ask(lambda client: client.apply(documents).revision)

    # Running

    def run(self, courses: int = 0, minutes: float = 0.0) -> Tally:
        """So many courses, or for so long.

        Raises:
            Churned: something was not as declared.
        """
        end = time.monotonic() + 60 * minutes
        self.quiet()
        while self.tally.courses - 1 < courses or time.monotonic() < end:
            self.course()
            self.quiet()
            self._tell(f"{60 * minutes + time.monotonic() - end:5.0f} s  {self.tally}")
        return self.tally

    def course(self) -> None:
        """Changes and failures, one on the other."""
        for _ in range(self._rng.randint(*STEPS)):
            change = self.world.step()
            self._note_homes()
            if change.remove:
                self._remove(change)
            if change.put:
                self._apply([endpoint.document(slot_netns(endpoint.slot)) for endpoint in change.put])
            self.tally.changes += len(change.remove) + len(change.put)
            if self._rng.random() < 0.45:
                self._fail(self._rng.choices(FAULTS, (5, 4, 2, 2))[0])
            self._scatter()
            self._do_due()
            time.sleep(self._rng.uniform(0, 0.25))

    def _remove(self, change: Change) -> None:
        gone = [Reference("Endpoint", endpoint.name, endpoint.network.tenant) for endpoint in change.remove]
        self._ask(lambda client: client.delete_all(gone, missing_ok=True).revision)

    def _fail(self, what: str) -> None:
        host = self._rng.randrange(self.world.hosts)
        wait_s, far, orderly = self._rng.uniform(0.1, 1.0), self._rng.random() < 0.5, self._rng.random() < 0.3
        match what:
            case "flap":
                self._stage.cable(host, up=False, far=far)
                self._after(wait_s, lambda: self._mend_cable(host, far))
            case "kill" if host in self._agents:
                self._end_agent(host)
                self._after(wait_s, lambda: self._start_agent(host))
            case "controller" if self._controller:
                self._daemons.end(self._controller, signal.SIGTERM if orderly else signal.SIGKILL)
                self._controller = 0
                self._after(wait_s, self._start_controller)
            case "reboot" if host in self._agents and not self._later:
                self._end_agent(host)
                slots = [Slot(host, number) for number in range(self.world.slots)]
                self._probe.close(slots)
                self._stage.halt(host)
                time.sleep(wait_s / 4)
                self._stage.boot(host)
                self._probe.open(slots)
                self._start_agent(host)
            case _:
                return
        self.tally.faults[what] += 1

    def _mend_cable(self, host: int, far: bool) -> None:
        self._stage.cable(host, up=True, far=far)
        self._mended_s = time.monotonic()

    def _after(self, seconds: float, work: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, work))

    def _do_due(self, everything: bool = False) -> None:
        due = [each for each in self._later if everything or each[0] <= time.monotonic()]
        for each in due:
            self._later.remove(each)
            each[1]()

    def _note_homes(self) -> None:
        for endpoint in self.world.endpoints.values():
            self._homes.setdefault(endpoint.slot, set()).update(
                network.number for network in self.world.joined(endpoint.network))

    def _scatter(self) -> None:
        """Some packets while things change: nothing may cross from one network into another, at no moment."""
        rng = random.Random(self._rng.random())
        endpoints, targets = list(self.world.endpoints.values()), self.world.targets()
        chosen = [(rng.choice(endpoints), *rng.choice(targets)) for _ in range(200)]
        self.tally.scattered += len(chosen)
        crossed = [(slot, sender) for slot, sender in self._probe.scatter(
            (source, version, address, self._gateways[source.network]) for source, version, address in chosen)
            if sender not in self._homes.get(slot, set())]
        if crossed:
            raise self._wrong([f"a packet of network {sender} came to {slot_netns(slot)}" for slot, sender in crossed])

    # Quiet points

    def quiet(self) -> None:
        """All that was to come back is back; wait until it is applied, and look at everything."""
        while self._later:
            self._do_due()
            time.sleep(0.02)
        time.sleep(max(0.0, self._mended_s + CARRIER_S - time.monotonic()))
        began = time.monotonic()
        self._until_applied()
        self.tally.settle_s.append(time.monotonic() - began)
        self._compare_matrix()
        wrong = [line for host in range(self.world.hosts)
                 for line in differences(self.world, host, self._stage.pins(host), self._gateways)]
        wrong += self._hopper_links()
        if wrong:
            raise self._wrong(wrong)
        self._homes = {}
        self._note_homes()
        self.tally.courses += 1

    def _until_applied(self) -> None:
        until = time.monotonic() + APPLIED_S
        busy = sorted({endpoint.slot.host for endpoint in self.world.endpoints.values()})
        while True:
            try:
                with self._client() as client:
                    behind = self._behind(client, busy)
            except Unreachable as error:
                behind = [str(error)]
            if not behind:
                return
            if time.monotonic() > until:
                raise self._wrong([f"not in force after {APPLIED_S:g} s:", *behind])
            time.sleep(0.1)

    def _behind(self, client: Client, busy: list[int]) -> list[str]:
        hosts = {host["metadata"]["name"]: host["status"] for host in client.list("Host")}
        out = [f"{host_name(host)} is not connected" for host in range(self.world.hosts)
               if not hosts[host_name(host)]["connected"]]
        out += [f"{host_name(host)} is at {hosts[host_name(host)]['appliedRevision']} of {self._revision}"
                for host in busy if hosts[host_name(host)]["appliedRevision"] < self._revision]
        if out:
            return out
        told = client.list("Endpoint")
        names = {each["metadata"]["name"] for each in told}
        if names != self.world.endpoints.keys():
            return [f"endpoints differ: {sorted(names ^ self.world.endpoints.keys())[:8]}"]
        return [f"{each['metadata']['name']}: {each['status']['phase']} {each['status']['message']}" for each in told
                if each["status"]["phase"] != "Ready"]

    def _compare_matrix(self) -> None:
        sources = sorted(self.world.endpoints.values(), key=lambda endpoint: endpoint.slot)
        found, wanted = self._probe.matrix(self.world, self._gateways, sources)
        self.tally.pairs += len(wanted)
        lost = [pair for pair, to in wanted.items() if to is not None and pair not in found]
        if lost:                            # a full queue, perhaps: then once more will do
            more, _ = self._probe.matrix(self.world, self._gateways, sources, lost)
            self.tally.again += len(lost)
            for pair in lost[:SHOWN]:
                self._tell(f"once more: {self._row(pair, wanted[pair], [])}")
            found |= more
        wrong = [self._row(pair, to, found.get(pair, [])) for pair, to in wanted.items()
                 if found.get(pair, []) != ([to] if to is not None else [])]
        if wrong:
            raise self._wrong([f"{len(wrong)} of {len(wanted)} pairs are not as declared", *wrong])

    def _row(self, pair: Pair, to: Slot | None, got: list[Slot]) -> str:
        at = self.world.at()
        address = self.world.targets()[pair[1]][1]

        def named(slot: Slot | None) -> str:
            endpoint = at.get(slot) if slot is not None else None
            return f"{endpoint.name} ({slot_netns(endpoint.slot)})" if endpoint else str(slot)

        return (f"{named(pair[0])} of network {at[pair[0]].network.number} to {address}: declared "
                f"{named(to) if to else 'nobody'}, got by {', '.join(map(named, got)) or 'nobody'}")

    def _hopper_links(self) -> list[str]:
        """Slots have the one link of their endpoint, or none."""
        at = self.world.at()
        slots = [Slot(host, number) for host in range(self.world.hosts) for number in range(self.world.slots)]
        links = self._hopper.each(map(slot_netns, slots), lambda _: {name for _, name in socket.if_nameindex()})
        return [f"{slot_netns(slot)} has links {sorted(names)}" for slot, names in zip(slots, links, strict=True)
                if names - {"lo"} != ({"eth0"} if slot in at else set())]

    def _wrong(self, lines: list[str]) -> Churned:
        course = f"after {self.tally.courses} quiet points"
        again = (f"again: python tests/system/churn.py --hosts {self.world.hosts} --endpoints "
                 f"{self._endpoints_a_host()} --networks {len(self.world.networks)} --seed {self.seed}")
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        return Churned("\n".join([course, *lines[:SHOWN], *more, again, *self._last_words()]))

    def _endpoints_a_host(self) -> int:
        return next(n for n in range(self.world.slots, 0, -1) if n + max(2, n // 5) == self.world.slots)

    def _last_words(self) -> Iterator[str]:
        for path in sorted(self._folder.glob("*.log")):
            lines = [line for line in path.read_text().splitlines() if '"error"' in line or "Traceback" in line]
            if lines:
                yield f"{path.name}: {lines[-1][:300]}"

    def _keep_logs(self) -> None:
        if kept := os.environ.get("SLUICE_CHURN_KEEP"):
            for path in self._folder.glob("*.log"):
                (Path(kept) / path.name).write_bytes(path.read_bytes())


@contextmanager
def many_files() -> Iterator[None]:
    """Two sockets a slot."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 8192), max(before[1], 8192)))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=30)
    parser.add_argument("--endpoints", type=int, default=20, help="of a host")
    parser.add_argument("--networks", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    mount_bpffs()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"seed {options.seed}", flush=True)

    def tell(text: str) -> None:
        print(text, flush=True)

    with many_files(), Churn(options.hosts, options.endpoints, options.networks, options.seed, tell) as churn:
        try:
            churn.run(1, options.minutes)
        except Churned as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
