"""A real agent process on a namespace that plays a host, and a controller of a few lines that tells it what to do."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from controller.pki import Pki
from southbound.client import join
from southbound.messages import (
    PROTOCOL_VERSION,
    Ack,
    Delta,
    Facts,
    FullSync,
    Goal,
    Hello,
    Join,
    Joined,
    Key,
    Reply,
    Request,
    Resync,
    Welcome,
)
from southbound.server import SouthboundServer
from southbound.session import Session
from vfp.datapath.map import BpfMap

T = TypeVar("T")

WAIT_S = 20.0
_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000

_AGENT = """
import json
import sys
from dataclasses import replace
from pathlib import Path
from agent.app import Config, run
from inspection.dns import Clamp
from vfp.datapath.engine import Limits
small = Limits(flows=4096, rules=4096, bindings=4096, ports=64, space_entries=4096, mappings=256)
clamp = Clamp(*map(float, sys.argv[3].split())) if sys.argv[3] else Clamp()
limits = replace(small, **json.loads(sys.argv[4]))
run(Config(Path(sys.argv[1]), Path(sys.argv[2]), "h1", limits, clamp=clamp))
"""
_PURGE = """
import sys
from pathlib import Path
from agent.app import Config, purge
print("\\n".join(purge(Config(Path(sys.argv[1]), Path(sys.argv[2])))))
"""


def sh(command: str, check: bool = True) -> str:
    """Output of a command line."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


def inside(namespace: str, command: str, check: bool = True) -> str:
    """Output of a command line in a namespace, with our mounts."""
    return sh(f"nsenter --net=/run/netns/{namespace} {command}", check)


def until(true: Callable[[], T], what: str, wait_s: float = WAIT_S) -> T:
    """The first true value."""
    deadline = time.monotonic() + wait_s
    while True:
        found = true()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {wait_s:g} s: {what}")
        time.sleep(0.05)


class Controller:
    """Keeps sessions in the loop of a thread that lives in the host's namespace; its methods wait."""

    def __init__(self, namespace: str, directory: Path, store: str = "store-1") -> None:
        self.pki = Pki.open(directory / "pki")
        self.store = store
        self.revision = 0
        self.goals: dict[Key, Goal] = {}
        self.acks: list[Ack] = []
        self.facts: list[Facts] = []
        self.hellos: list[Hello] = []
        self.resyncs: list[Resync] = []
        self.session: Session | None = None
        self.port = 0
        self._namespace = namespace
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._do(self._listen())

    def _run(self) -> None:
        with Path(f"/run/netns/{self._namespace}").open() as namespace:
            if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        done: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(WAIT_S)

    async def _listen(self) -> None:
        server = SouthboundServer("127.0.0.1", self.port, self.pki.server_context(), self)
        await self._stack.enter_async_context(server)
        self.port = server.port

    def enrol(self, state_dir: Path) -> None:
        """Give h1 its identity."""
        token, _ = self.pki.make_token()
        self._do(join(f"127.0.0.1:{self.port}", token, "h1", state_dir))

    def tell(self, *goals: Goal) -> Ack:
        """Make the goal state exactly `goals`, by a full sync; the acknowledgement."""
        self.revision += 1
        self.goals = {(goal.kind, goal.id): goal for goal in goals}
        self._send(FullSync(self.revision, tuple(goals)))
        return self.acknowledged(self.revision)

    def change(self, *put: Goal, remove: tuple[Key, ...] = ()) -> Ack:
        """A delta; its acknowledgement."""
        for key in remove:
            self.goals.pop(key)
        self.send_delta(self.revision, *put, remove=remove)
        return self.acknowledged(self.revision)

    def send_delta(self, base: int, *put: Goal, remove: tuple[Key, ...] = ()) -> None:
        """A delta, to whatever end."""
        self.revision += 1
        self.goals.update({(goal.kind, goal.id): goal for goal in put})
        self._send(Delta(base, self.revision, put, remove))

    def _send(self, message: FullSync | Delta) -> None:
        session = until(lambda: self.session, "the agent connects")
        self._do(session.send(message))

    def acknowledged(self, revision: int) -> Ack:
        """The first acknowledgement of a revision."""
        return until(lambda: next((ack for ack in self.acks if ack.revision == revision), None), f"ack {revision}")

    def ask(self, what: str, **args: Any) -> Any:
        """Look inside."""
        session = until(lambda: self.session, "the agent connects")
        return self._do(session.query(what, args))

    def close(self) -> None:
        self._do(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # southbound.server.Handler

    async def on_join(self, join: Join) -> Joined:
        return Joined(self.pki.sign(join.csr_pem, join.host), self.pki.ca_pem)

    async def on_hello(self, session: Session, hello: Hello) -> Welcome:
        self.hellos.append(hello)
        self.session = session
        return Welcome(PROTOCOL_VERSION, self.store, 0.0)

    async def on_ack(self, session: Session, ack: Ack) -> None:
        self.acks.append(ack)

    async def on_facts(self, session: Session, facts: Facts) -> None:
        self.facts.append(facts)

    async def on_resync(self, session: Session, resync: Resync) -> None:
        self.resyncs.append(resync)
        self.revision += 1
        await session.send(FullSync(self.revision, tuple(self.goals.values())))

    async def on_request(self, session: Session, request: Request) -> Reply:
        return Reply(request.id, (), {"what": request.what, "args": request.args})

    async def on_disconnect(self, session: Session) -> None:
        if self.session is session:
            self.session = None


class Machine:
    """Namespace `PREFIX-h1` as a host with uplink `lan0` to `PREFIX-lan` and underlay `under0` to `PREFIX-h2`."""

    def __init__(self, scratch: Path, prefix: str = "agt", clamp: str = "", **limits: int) -> None:
        self.scratch = scratch
        self.limits = json.dumps(limits)
        self.name, self.clamp = f"{prefix}-h1", clamp
        self.state = scratch / "state"
        self.pins = Path(f"/sys/fs/bpf/sluice-{prefix}-{os.getpid()}")
        self.namespaces: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.log = scratch / "agent.log"
        for name in ("h1", "h2", "lan"):
            self.add_namespace(f"{prefix}-{name}")
        self._wire("lan0", "172.16.0.10/24", f"{prefix}-lan", "172.16.0.80/24")
        self._wire("under0", "172.31.0.1/24", f"{prefix}-h2", "172.31.0.2/24")
        self.controller = Controller(self.name, scratch)
        self.controller.enrol(self.state)

    def add_namespace(self, name: str) -> None:
        sh(f"ip netns add {name}")
        self.namespaces.append(name)
        sh(f"ip -n {name} link set lo up")

    def remove_namespace(self, name: str) -> None:
        sh(f"ip netns del {name}")
        self.namespaces.remove(name)

    def _wire(self, name: str, address: str, other: str, other_address: str) -> None:
        sh(f"ip -n {self.name} link add {name} type veth peer name eth0 netns {other}")
        for namespace, link, text in ((self.name, name, address), (other, "eth0", other_address)):
            sh(f"ip -n {namespace} addr add {text} dev {link}")
            sh(f"ip -n {namespace} link set {link} up")

    def start(self) -> None:
        """Start the agent."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.name}", sys.executable, "-c", _AGENT, self.state, self.pins,
                 self.clamp, self.limits],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=Path(__file__).parents[2],
            )

    def start_connected(self) -> None:
        """Start the agent and wait for its session."""
        before = len(self.controller.hellos)
        self.start()
        until(self._alive(lambda: len(self.controller.hellos) > before), "the agent says hello")

    def _alive(self, true: Callable[[], T]) -> Callable[[], T]:
        def check() -> T:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the agent ended: {self.log.read_text()[-3000:]}")
            return true()

        return check

    def kill(self, which: signal.Signals = signal.SIGKILL) -> int:
        """End the agent; its exit status."""
        assert self.process is not None
        self.process.send_signal(which)
        status = self.process.wait(WAIT_S)
        self.process = None
        until(lambda: self.controller.session is None, "the session ends")
        return status

    def spawn(self, namespace: str, command: str) -> subprocess.Popen[str]:
        """A program in a namespace that runs beside the test."""
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{namespace}", *command.split()], stdout=subprocess.PIPE, text=True
        )

    def purge(self) -> str:
        """Output of a purge."""
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.name}", sys.executable, "-c", _PURGE, self.state, self.pins],
            capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def links(self) -> dict[str, int]:
        """Our links on the host, name to ifindex."""
        found = json.loads(inside(self.name, "ip -j link show"))
        return {one["ifname"]: one["ifindex"] for one in found if one["ifname"].startswith(("slp", "slb", "slvx"))}

    def filters(self, link: str, where: str) -> list[str]:
        """Names and program ids of BPF filters."""
        found = json.loads(inside(self.name, f"tc -j filter show dev {link} {where}", check=False) or "[]")
        options = [one["options"] for one in found if "options" in one]
        return [f"{one['bpf_name']} {one['prog']['id']}" for one in options if "bpf_name" in one]

    def map_ids(self) -> dict[str, int]:
        """Pinned maps."""
        found = {}
        for pin in sorted((self.pins / "maps").iterdir()):
            with BpfMap.open_pin(pin) as pinned:
                text = Path(f"/proc/self/fdinfo/{pinned.fd}").read_text()
            found[pin.name] = int(text.partition("map_id:")[2].split()[0])
        return found

    def close(self) -> None:
        try:
            if self.process is not None:
                self.kill()
            if self.name in self.namespaces:
                self.purge()
        finally:
            self.controller.close()
            for name in list(self.namespaces):
                self.remove_namespace(name)


@contextmanager
def machine(scratch: Path, prefix: str = "agt", clamp: str = "", **limits: int) -> Iterator[Machine]:
    """A host for one test; nothing is left of it. `limits`: those of the engine that are not small."""
    made = Machine(scratch, prefix, clamp, **limits)
    try:
        yield made
    finally:
        made.close()
