"""One host with a real controller and a real agent, and what runtimes ask it by its local socket.

The host is a namespace with an uplink into a LAN; the controller runs there, too. Names begin with `prefix`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from controller.client import Client, ClientError
from runtimes.local import LocalError, call

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
WAIT_S = 40.0
LIMITS = {"flows": 4096, "rules": 4096, "bindings": 4096, "ports": 512, "space_entries": 8192, "mappings": 1024}

NAT = {"apiVersion": "sluice/v1", "kind": "Network", "metadata": {"name": "web"},
       "spec": {"mode": "nat", "host": "h1", "subnets": [{"prefix": "192.168.250.0/24"}]}}


def ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert not check or done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def until(true: Callable[[], T], what: str, wait_s: float = WAIT_S) -> T:
    """The first true value."""
    deadline = time.monotonic() + wait_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {wait_s:g} s: {what}"
        time.sleep(0.02)
    return found


class LocalHost:
    """Host h1. `agent_words`: more words for `sluice agent run`."""

    def __init__(self, folder: Path, prefix: str, *agent_words: str) -> None:
        self.folder, self.prefix = folder, prefix
        self.netns, self.lan = f"{prefix}-h1", f"{prefix}-lan"
        self.state, self.pins = folder / "agent", Path(f"/sys/fs/bpf/sluice-{prefix}-{os.getpid()}")
        self.api, self.socket = f"unix:{folder}/api.sock", str(folder / "agent.sock")
        self.log = folder / "log"
        self._words = agent_words
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._made: list[str] = []

    def open(self) -> None:
        """Make the namespaces and start both daemons."""
        self.namespace(self.netns)
        self.namespace(self.lan)
        ip("-n", self.netns, "link", "add", "lan0", "type", "veth", "peer", "name", "lan0", "netns", self.lan)
        for name, address in ((self.netns, "172.16.9.10/24"), (self.lan, "172.16.9.1/24")):
            ip("-n", name, "address", "add", address, "dev", "lan0")
            ip("-n", name, "link", "set", "lan0", "up")
        ip("-n", self.netns, "route", "add", "default", "via", "172.16.9.1")
        self.start_controller()
        self.apply({"apiVersion": "sluice/v1", "kind": "Host", "metadata": {"name": "h1"}})
        with Client(self.api) as client:
            token = client.create_token("h1")
        self._run("join", "--controller", "127.0.0.1:7443", "--token", token, "--name", "h1",
                  "--state", str(self.state))
        self.start_agent()

    def namespace(self, name: str) -> str:
        """Another one, with lo up."""
        ip("netns", "add", name)
        self._made.append(name)
        ip("-n", name, "link", "set", "lo", "up")
        return name

    def remove_namespace(self, name: str) -> None:
        ip("netns", "delete", name)
        self._made.remove(name)

    def start_controller(self) -> None:
        self._start("controller", "controller", "run", "--state", str(self.folder / "controller"), "--api", self.api,
                    "--southbound", "127.0.0.1:7443")
        until(self._healthy, "the controller answers")

    def start_agent(self, wait: bool = True) -> None:
        limits = [word for name, size in LIMITS.items() for word in ("--limit", f"{name}={size}")]
        self._start("agent", "agent", "run", "--state", str(self.state), "--pin-dir", str(self.pins), "--socket",
                    self.socket, "--docker", "none", *limits, *self._words)
        if wait:
            try:
                until(self._connected, "the agent is connected")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log.read_text()[-3000:]}") from None

    def kill(self, which: str, signal_number: signal.Signals = signal.SIGKILL) -> None:
        """End a daemon: `agent` or `controller`."""
        process = self._daemons.pop(which)
        process.send_signal(signal_number)
        process.wait(WAIT_S)

    def signal(self, which: str, number: signal.Signals) -> None:
        self._daemons[which].send_signal(number)

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One operation on the local socket."""
        return call(op, self.socket, **arguments)

    def apply(self, *documents: dict[str, Any]) -> None:
        with Client(self.api) as client:
            client.apply(list(documents))

    def declared(self, kind: str) -> list[dict[str, Any]]:
        with Client(self.api) as client:
            return list(client.list(kind))

    def links(self) -> list[str]:
        """Links of ports on the host."""
        found = json.loads(ip("-n", self.netns, "-j", "link", "show"))
        return sorted(one["ifname"] for one in found if one["ifname"].startswith(("slp", "slc")))

    def inside(self, netns: str, *command: str) -> str:
        done = subprocess.run(["nsenter", f"--net=/run/netns/{netns}", *command], capture_output=True, text=True,
                              timeout=30, check=False)
        return done.stdout + done.stderr

    def kept(self, folder: str) -> list[str]:
        """Files that the agent keeps."""
        return sorted(path.name for path in (self.state / folder).glob("*.json"))

    def close(self) -> None:
        """End it all; nothing is left."""
        with ExitStack() as undo:
            for name in self._made:
                undo.callback(ip, "netns", "delete", name)
            if self.netns in self._made and self.state.exists():
                undo.callback(self._run, "agent", "purge", "--state", str(self.state), "--pin-dir", str(self.pins))
            for name in list(self._daemons):
                undo.callback(self.kill, name)

    def _healthy(self) -> bool:
        self._look("controller")
        with suppress(ClientError), Client(self.api) as client:
            client.health()
            return True
        return False

    def _connected(self) -> bool:
        self._look("agent")
        with suppress(LocalError):
            return bool(self.ask("hello")["controller"] == "connected")
        return False

    def _look(self, name: str) -> None:
        if self._daemons[name].poll() is not None:
            raise AssertionError(f"{name} ended: {self.log.read_text()[-3000:]}")

    def _command(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.netns}", sys.executable, "-m", "cli.main", *words]

    def _run(self, *words: str) -> None:
        done = subprocess.run(self._command(*words), capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr

    def _start(self, name: str, *words: str) -> None:
        with self.log.open("ab") as log:
            self._daemons[name] = subprocess.Popen(self._command(*words), stdin=subprocess.DEVNULL, stdout=log,
                                                   stderr=log, cwd=ROOT)


@contextmanager
def local_host(folder: Path, prefix: str, *agent_words: str) -> Iterator[LocalHost]:
    """A host for as long as the `with` block."""
    host = LocalHost(folder, prefix, *agent_words)
    try:
        host.open()
        yield host
    finally:
        host.close()
