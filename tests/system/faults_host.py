"""The stage of the fault proof: namespaces, a real agent that is killed and started again, and a stand-in controller.

All that is asynchronous runs in one loop, in a thread that lives in the host's namespace.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from faults_judge import Timeline
from faults_policy import BLUE, ENDPOINTS, EXTRA, State, goals

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

ROOT = Path(__file__).parents[2]
PREFIX = f"xf{os.getpid()}"
HOST_NS = f"{PREFIX}-h"
PINS = Path(f"/sys/fs/bpf/sluice-{PREFIX}")
LIMITS = {
    "flows": 262144, "udp": 131072,         # no budget: every new flow here is UDP
    "rules": 16384, "ports": 64, "space_entries": 4096, "mappings": 256, "bindings": 4096,
}
WAIT_S = 30.0
_CLONE_NEWNET = 0x40000000


def ip(command: str) -> str:
    """Output of `ip`."""
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"ip {command}: {done.stderr}"
    return done.stdout


def enter_host() -> None:
    """Move this thread into the host's namespace."""
    with Path(f"/run/netns/{HOST_NS}").open() as entry:
        if ctypes.CDLL(None, use_errno=True).setns(entry.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


class Namespaces:
    """The host with an uplink and an underlay that lead nowhere, and an empty namespace an endpoint."""

    def __init__(self) -> None:
        self.of = {name: f"{PREFIX}-{name}" for name in (*ENDPOINTS, EXTRA.name)}
        with ExitStack() as undo:
            for name in (HOST_NS, *self.of.values()):
                ip(f"netns add {name}")
                undo.callback(ip, f"netns del {name}")
                ip(f"-n {name} link set lo up")
            for name, address in (("lan0", "172.16.0.10/24"), ("under0", "172.31.0.1/24")):
                ip(f"-n {HOST_NS} link add {name} type veth peer name {name}-far")
                ip(f"-n {HOST_NS} addr add {address} dev {name}")
                for end in (name, f"{name}-far"):
                    ip(f"-n {HOST_NS} link set {end} up")
            # In memory: a kill, unlike a power cut, asks nothing of a disk.
            memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
            self.state_dir = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, dir=memory))) / "agent"
            self._undo = undo.pop_all()

    def make_neighbours_known(self) -> None:
        """No packet waits for ARP: what is sent later is judged later."""
        for name, endpoint in ENDPOINTS.items():
            for other in ENDPOINTS.values():
                if other is not endpoint and other.network is endpoint.network:
                    ip(f"-n {self.of[name]} neigh replace {other.address} lladdr {other.mac} dev eth0 nud permanent")

    def close(self) -> None:
        self._undo.close()


class Agent:
    """`sluice agent run`, one process after the other."""

    def __init__(self, state_dir: Path, log: Path) -> None:
        self.state_dir, self.log = state_dir, log
        self.process: subprocess.Popen[bytes] | None = None

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cli.main", "agent", *words, "--state", str(self.state_dir),
                "--pin-dir", str(PINS)]

    def start(self) -> None:
        limits = [word for name, size in LIMITS.items() for word in ("--limit", f"{name}={size}")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{HOST_NS}", *self._command("run"), *limits,
                 "--socket", str(self.state_dir / "agent.sock"), "--docker", "none"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
            )

    def end(self, which: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        assert self.process.poll() is None, f"the agent ended by itself:\n{self.log.read_text()[-3000:]}"
        self.process.send_signal(which)
        self.process.wait(WAIT_S)
        self.process = None

    def purge(self) -> str:
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{HOST_NS}", *self._command("purge")], capture_output=True, text=True,
            timeout=60, check=False, cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


class Director:
    """The controller's side: pushes states, notes when, takes acknowledgements. A southbound `Handler`."""

    def __init__(self, netns: Mapping[str, str], pki: Pki) -> None:
        self.timeline = Timeline()
        self.errors: list[str] = []
        self.resyncs = 0
        self._netns, self._pki = netns, pki
        self._goals: list[dict[Key, Goal]] = [{}]       # by revision; version n is revision n + 1
        self._session: Session | None = None
        self._base = 0                                  # revision that the agent has after what was sent
        self._acked = 0
        self._moved = asyncio.Event()

    @property
    def revision(self) -> int:
        return len(self._goals) - 1

    async def push(self, state: State, whole: bool = False) -> None:
        """A new version, on its way."""
        session = self._session
        assert session is not None
        wanted = goals(state, self._netns)
        before = self._goals[self._base]
        self.timeline.push(state, time.monotonic_ns())
        self._goals.append(wanted)
        message: Delta | FullSync = FullSync(self.revision, tuple(wanted.values()))
        if not whole and self._base:
            put = tuple(goal for key, goal in wanted.items() if before.get(key) != goal)
            message = Delta(self._base, self.revision, put, tuple(before.keys() - wanted.keys()))
        self._base = self.revision
        await session.send(message)

    @property
    def is_acknowledged(self) -> bool:
        """Nothing is on its way."""
        return self._acked >= self.revision

    async def catch_up(self) -> None:
        """Tell a new session what the last one did not keep."""
        assert self._session is not None
        if self._base < self.revision:
            before, wanted = self._goals[self._base], self._goals[-1]
            put = tuple(goal for key, goal in wanted.items() if before.get(key) != goal)
            base, self._base = self._base, self.revision
            await self._session.send(Delta(base, self.revision, put, tuple(before.keys() - wanted.keys())))

    async def until_acknowledged(self) -> None:
        await self._until(lambda: self.is_acknowledged, f"acknowledgement of {self.revision}")

    async def until_connected(self) -> None:
        await self._until(lambda: self._session is not None, "a session")

    async def until_gone(self) -> None:
        await self._until(lambda: self._session is None, "the end of the session")

    async def _until(self, true: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                while not true():
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise AssertionError(f"not within {WAIT_S:g} s: {what}") from None

    async def on_join(self, join: Join) -> Joined:
        return Joined(self._pki.sign(join.csr_pem, join.host), self._pki.ca_pem)

    async def on_hello(self, session: Session, hello: Hello) -> Welcome:
        self._base = hello.applied_revision
        self._session = session
        self._moved.set()
        return Welcome(PROTOCOL_VERSION, "store-1", 0.0)

    async def on_ack(self, session: Session, ack: Ack) -> None:
        now = time.monotonic_ns()
        self.errors += [f"{status.kind} {status.id}: {status.error}" for status in ack.objects if status.error
                        and (status.kind, status.id) != ("network", BLUE.id)]
        if not any(status.error for status in ack.objects if status.kind == "port"):
            self.timeline.acknowledge(ack.revision - 1, now)
        self._acked = max(self._acked, ack.revision)
        self._moved.set()

    async def on_facts(self, session: Session, facts: Facts) -> None:
        pass

    async def on_resync(self, session: Session, resync: Resync) -> None:
        self.resyncs += 1
        await session.send(FullSync(self.revision, tuple(self._goals[-1].values())))

    async def on_request(self, session: Session, request: Request) -> Reply:
        return Reply(request.id, (), {"what": request.what, "args": request.args})

    async def on_disconnect(self, session: Session) -> None:
        if self._session is session:
            self._session = None
            self._moved.set()


@asynccontextmanager
async def directed(netns: Mapping[str, str], scratch: Path, state_dir: Path) -> AsyncIterator[Director]:
    """A listening controller, and the agent's identity in its state folder."""
    pki = Pki.open(scratch / "pki")
    director = Director(netns, pki)
    async with SouthboundServer("127.0.0.1", 0, pki.server_context(), director) as server:
        token, _ = pki.make_token()
        await join(f"127.0.0.1:{server.port}", token, "h1", state_dir)
        yield director
