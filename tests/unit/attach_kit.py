"""An agent's local operations over a host of fakes, with a controller of a few lines that can be away.

`Process` is one life of the agent's process. It can be killed before or after any of its steps: from then on nothing of
it reaches disk, kernel or controller, as after kill -9.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from agent_kit import HOST, MAX_PORTS, FakeDatapath, FakeSwitch

from agent.asking import Asker
from agent.attachment_files import RUNTIME_FOLDERS
from agent.goals import Goals
from agent.host import Host
from agent.local import LocalServer
from agent.reconcile import Reconciler
from agent.runtimes_here import RuntimesHere
from agent.state import Disk
from agent.worker import Worker
from southbound.errors import RequestRefused, SessionClosed
from southbound.messages import Goal, LeaseGoal, MappingGoal, NetworkGoal, PortGoal, Subnet, key_of

Row = dict[str, Any]
Ref = tuple[str, str, str]


async def until(true: Callable[[], bool]) -> None:
    """Wait for it."""
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("not within 10 s")


def files_in(directory: Path, *folders: str) -> list[str]:
    """What the agent keeps there."""
    return [path.name for folder in folders or RUNTIME_FOLDERS for path in (directory / folder).glob("*")]


class Killed(BaseException):
    """This process is dead."""


class FakeController:
    """Declared objects and what the host is told of them. It outlives the agent's processes."""

    def __init__(self) -> None:
        self.objects: dict[Ref, Row] = {}
        self.revision = 1
        self.leases: dict[str, list[str]] = {}          # by network
        self.asked: list[str] = []
        self.refuse: dict[str, Row] = {}                # by what: a problem
        self.host: Host | None = None
        self.away = False
        self.heard: list[Any] = []                      # listeners that came with each request for a mapping
        self.silent = False                             # takes requests, does them, and does not answer
        self._next = 2

    def network(self, name: str, prefix: str, mode: str = "nat") -> None:
        """Declare one by hand."""
        self._put({"kind": "Network", "metadata": {"name": name, "tenant": "default"},
                   "spec": {"mode": mode, "host": "h1", "subnets": [{"prefix": prefix}]}}, f"uid-{name}")

    def of(self, kind: str) -> dict[str, str]:
        """Uid by name."""
        return {ref[2]: row["uid"] for ref, row in self.objects.items() if ref[0] == kind}

    async def request(self, what: str, args: Row, timeout_s: float = 5.0) -> Any:
        if self.away:
            raise SessionClosed("away")
        args = json.loads(json.dumps(args))             # as it travels
        self.asked.append(what)
        if problem := self.refuse.get(what):
            raise RequestRefused([problem])
        answer = getattr(self, f"_{what}")(args)
        self.push()
        if self.silent:
            raise SessionClosed("lost")
        return answer

    def push(self) -> None:
        """Tell the host, as soon as it listens."""
        if self.host is not None and not self.away:
            self.revision += 1
            work = asyncio.ensure_future(self.host.take(self.goals(), "store-1"))
            work.add_done_callback(lambda done: done.cancelled() or done.exception())

    def goals(self) -> Goals:
        """What the host is told."""
        found: list[Goal] = [HOST]
        for ref, row in self.objects.items():
            spec, uid = row["spec"], row["uid"]
            if ref[0] == "Network" and (self._endpoints(ref[2]) or ref[2] in self.leases):
                subnets = tuple(Subnet(one["prefix"], self._gateway(one["prefix"])) for one in spec["subnets"])
                space = (1 << 24) + 1 + sorted(self.of("Network")).index(ref[2])
                found.append(NetworkGoal(uid, ref[2], "default", spec["mode"], space, subnets, "02:fe:00:00:01:01", 0))
            elif ref[0] == "Endpoint":
                handed = "veth" in spec
                found.append(PortGoal(
                    uid, ref[2], "default", self.objects["Network", "default", spec["network"]]["uid"],
                    f"{row['address']}/24", row["mac"], spec.get("netns", ""),
                    spec.get("veth") or spec.get("tap") or spec.get("interface", "eth0"), handed=handed))
            elif ref[0] == "StaticMapping":
                target = self.objects["Endpoint", "default", spec["endpoint"]]
                outer = 10000 if spec["externalPort"] == "auto" else int(spec["externalPort"])
                found.append(MappingGoal(uid, ref[2], "default", spec["protocol"], "0.0.0.0", (outer, outer),
                                         target["uid"], target["address"], int(spec["internalPort"])))
        for name, addresses in self.leases.items():
            if ("Network", "default", name) in self.objects:
                found.append(LeaseGoal(self.objects["Network", "default", name]["uid"], tuple(addresses)))
        return Goals(self.revision, {key_of(goal): goal for goal in found})

    def _apply(self, args: Row) -> Row:
        if "listeners" in args:
            self.heard.append(args["listeners"])
        for document in args["documents"]:
            ref = self._ref(document)
            uid, old = args["uids"].get("/".join(ref)), self.objects.get(ref)
            if old is not None and old["uid"] != uid and (old["spec"] != document["spec"] or ref[0] != "Endpoint"):
                if ref[0] == "Network":
                    continue
                raise RequestRefused([{"code": "in_use", "message": "another uid", "field": "metadata.uid"}])
            network = document["spec"].get("network")
            if network and ("Network", "default", network) not in self.objects:
                raise RequestRefused([{"code": "unknown_network", "message": f"there is no Network {network}",
                                       "field": "spec.network", "found": network, "todo": "apply it first"}])
        items = []
        for document in args["documents"]:
            ref = self._ref(document)
            old = self.objects.get(ref)
            if old is None or (ref[0] != "Network" and old["spec"] != document["spec"]):
                self._put(document, args["uids"].get("/".join(ref), "uid-other"))
            if ref[0] == "Network":
                self.leases.setdefault(ref[2], self._block(ref[2]))
            row = self.objects[ref]
            assigned = {"subnets": [{"prefix": one["prefix"], "gateway": self._gateway(one["prefix"])}
                                    for one in row["spec"].get("subnets", ())]}
            items.append({"kind": ref[0], "tenant": ref[1], "name": ref[2], "result": "created" if old is None else
                          "unchanged", "assigned": assigned, "labels": {}, **row})
        return {"revision": self.revision, "items": items}

    def _delete(self, args: Row) -> Row:
        gone = [ref for each in args["refs"] if (ref := (each[0], each[1], each[2])) in self.objects
                and args.get("uids", {}).get("/".join(ref), self.objects[ref]["uid"]) == self.objects[ref]["uid"]]
        for ref in gone:
            del self.objects[ref]
        return {"revision": self.revision, "deleted": ["/".join(ref) for ref in gone]}

    def _get(self, args: Row) -> Row:
        items = []
        for kind, tenant, name in args["refs"]:
            row = self.objects.get((kind, tenant, name))
            if row is None:
                raise RequestRefused([{"code": "not_found", "message": f"there is no {kind} {tenant}/{name}"}])
            assigned = {"subnets": [{"prefix": one["prefix"], "gateway": self._gateway(one["prefix"])}
                                    for one in row["spec"].get("subnets", ())]}
            items.append({"kind": kind, "tenant": tenant, "name": name, "assigned": assigned, "labels": {}, **row})
        return {"items": items}

    def _lease(self, args: Row) -> Row:
        name = args["network"]
        if ("Network", "default", name) not in self.objects:
            raise RequestRefused([{"code": "not_found", "message": f"there is no Network {name}"}])
        had = self.leases.setdefault(name, self._block(name))
        given = list(args.get("addresses") or ())
        if args.get("ranges"):
            given = [str(ip_network(args["ranges"][0])[1])]
        had += [each for each in given if each not in had]
        return {"addresses": had, "given": given}

    def _release(self, args: Row) -> Row:
        name = args["network"]
        if args.get("addresses") is not None:
            self.leases[name] = [each for each in self.leases.get(name, []) if each not in args["addresses"]]
            return {"released": args["addresses"], "deleted": False}
        released = self.leases.pop(name, [])
        made = self.objects.get(("Network", "default", name), {}).get("labels", {}).get("sluice.io/runtime")
        deleted = bool(made) and not self._endpoints(name)
        if deleted:
            del self.objects["Network", "default", name]
        return {"released": released, "deleted": deleted}

    def _block(self, name: str) -> list[str]:
        prefix = ip_network(self.objects["Network", "default", name]["spec"]["subnets"][0]["prefix"])
        return [str(prefix[number]) for number in range(200, 208)]

    def _put(self, document: Row, uid: str) -> None:
        ref, spec = self._ref(document), document["spec"]
        row: Row = {"uid": uid, "spec": spec, "labels": document["metadata"].get("labels", {})}
        if ref[0] == "Endpoint":
            prefix = ip_network(self.objects["Network", "default", spec["network"]]["spec"]["subnets"][0]["prefix"])
            self._next += 1
            row["address"] = spec.get("address") or str(prefix[self._next])
            row["mac"] = spec.get("mac") or f"02:00:00:00:00:{self._next:02x}"
        self.objects[ref] = row

    def _endpoints(self, network: str) -> list[Ref]:
        return [ref for ref, row in self.objects.items() if ref[0] == "Endpoint" and row["spec"]["network"] == network]

    @staticmethod
    def _ref(document: Mapping[str, Any]) -> Ref:
        return document["kind"], document["metadata"].get("tenant", "default"), document["metadata"]["name"]

    @staticmethod
    def _gateway(prefix: str) -> str:
        return str(next(ip_network(prefix).hosts()))


class Process:
    """One life of the agent. `kill_at`: the number of the step before which it dies; None: it lives."""

    def __init__(self, directory: Path, controller: FakeController, switch: FakeSwitch, worker: Worker,
                 kill_at: int | None = None) -> None:
        self.controller, self.switch = controller, switch
        self.kill_at, self.steps, self.dead = kill_at, 0, False
        disk = Disk(directory)
        reconciler = Reconciler(switch, FakeDatapath(), disk, disk.load().ids, MAX_PORTS)
        self.host = Host(worker, switch, reconciler, disk)
        self.asker = Asker()
        self.runtimes = RuntimesHere("h1", self.host, self.asker, directory, worker, switch)
        self.server = LocalServer(directory / "agent.sock", self.runtimes.operations())
        files = self.runtimes.attachments._files
        for folder in (files.attachments, files.forgotten, files.networks, files.reserved):
            for name in ("put", "remove"):
                setattr(folder, name, self._step(getattr(folder, name)))
        self.asker.request = self._step(self.asker.request)     # type: ignore[method-assign]
        self.host.again = self._step(self.host.again)           # type: ignore[method-assign]

    def _step(self, call: Any) -> Any:
        async def step(*args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            self._die_at(2 * self.steps - 1)
            done = await call(*args, **kwargs)
            self._die_at(2 * self.steps)
            return done
        return step

    def _die_at(self, point: int) -> None:
        if self.dead or (self.kill_at is not None and point >= self.kill_at):
            self.dead = True
            self.controller.host = None
            raise Killed

    async def ask(self, op: str, **arguments: Any) -> Row:
        """One operation: its `ok`, or its error as {"code", ...}."""
        answer = await self.server.answer(json.dumps({"op": op, **arguments}).encode())
        found: Row = answer.get("ok") if "ok" in answer else answer["error"]
        return found

    def connect(self) -> None:
        """The controller is there (again)."""
        self.controller.away, self.controller.host = False, self.host
        self.asker.follow(self.controller)
        self.controller.push()

    def disconnect(self) -> None:
        self.controller.away = True
        self.asker.follow(None)

    async def settled(self) -> None:
        """Wait until nothing is left to do."""
        files = self.runtimes.attachments._files
        await until(lambda: not files.forgotten.all()
                    and not any(each.leased or each.changing for each in files.attachments.all())
                    and self.ports() == set(self.controller.of("Endpoint").values()))

    def ports(self) -> set[str]:
        """Uids of ports that are programmed."""
        return set(self.host.outcome.built.ports) if self.host.outcome is not None else set()


@asynccontextmanager
async def life(directory: Path, controller: FakeController, switch: FakeSwitch, kill_at: int | None = None,
               connected: bool = True) -> AsyncIterator[Process]:
    """A process from its start to its end."""
    with Worker() as worker:
        process = Process(directory, controller, switch, worker, kill_at)
        errands: list[asyncio.Task[None]] = []
        try:
            await process.runtimes.start()
            await process.host.start()
            if connected:
                process.connect()
            errands = [asyncio.ensure_future(work) for work in (process.runtimes.errands.tell(),
                                                                process.runtimes.errands.release())]
            yield process
        finally:
            process.dead, controller.host = True, None
            for task in errands:
                task.cancel()
            for task in errands:
                with suppress(asyncio.CancelledError, Killed):
                    await task
