"""Hosts with a dockerd and a Sluice agent each, a controller, a LAN between them: what tests of our drivers stand on.

    the LAN (172.16.8.1, fd16:8::1; the controller) ── lan0 ── hosts (.11, .12, ..)
    a segment (172.16.9.1, fd16:9::1)               ── seg0 ── hosts (.11, .12, ..), for transparent and l2bridge

Each daemon is a process of its own and can be killed alone. A host that is rebooted loses its namespaces, processes and
pins; disks stay.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, TypeVar

from churn_daemons import Daemons
from docker_kit import Docker, Refused

from controller.client import Client, ClientError, reference_of

PREFIX = f"dk{os.getpid()}"
PINS = Path("/sys/fs/bpf")
WAIT_S = 30.0
START_S = 90.0                              # of a first agent on a busy machine: the kernel looks at its programs
GRACE_S = 15.0                              # in which an agent finds that something is gone
SOUTHBOUND = "172.16.8.1:7443"
_LIMITS = ("flows=65536", "rules=16384", "ports=256", "bindings=16384")
_PORT_LINK = re.compile(r"slp\d+")
Result = TypeVar("Result")


def ip(netns: str, *lines: str) -> None:
    """`ip` commands in a namespace."""
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input="\n".join(lines), text=True, check=True,
                   capture_output=True)


def eventually(true: Callable[[], Result], what: str, limit_s: float = WAIT_S) -> Result:
    """What `true` returns, as soon as that is something."""
    deadline = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.05)
    return found


class Host:
    """One host. `docker` is its dockerd; calling it runs a program in its namespace."""

    def __init__(self, site: Site, number: int, options: Sequence[str]) -> None:
        self.site, self.number, self.name = site, number, f"h{number}"
        self.netns = f"{PREFIX}-{self.name}"
        self.lan, self.lan6 = f"172.16.8.{10 + number}", f"fd16:8::{10 + number:x}"
        self.folder = site.folder / self.name
        self.state, self.pins = self.folder / "agent", PINS / f"sluice-{self.netns}"
        self.plugins, self.socket = self.folder / "plugins", self.folder / "agent.sock"
        self.log = self.folder / "agent.log"
        self.docker = Docker(self.netns, self.folder / "docker", self.plugins, options=options)
        self._agent = 0
        self.plugins.mkdir(parents=True)

    def __call__(self, *command: str) -> str:
        """What a program prints.

        Raises:
            Refused: it failed.
        """
        return inside(self.netns, *command)

    def boot(self) -> None:
        """Namespace and links; no daemon."""
        self.site.namespace(self.netns)
        for link, segment, subnet in (("lan0", "lan", "8"), ("seg0", "seg", "9")):
            end = f"{segment}{self.number}"
            mac = f"02:d0:00:00:{int(subnet):02x}:{self.number:02x}"
            ip(self.site.lan, f"link add {end} type veth peer {link} address {mac} netns {self.netns}",
               f"link set {end} master {segment} up")
            ip(self.netns, f"link set {link} up", f"address add 172.16.{subnet}.{10 + self.number}/24 dev {link}",
               f"address add fd16:{subnet}::{10 + self.number:x}/64 dev {link} nodad")
        ip(self.netns, "route add default via 172.16.8.1", "route add default via fd16:8::1")

    def join(self) -> None:
        """Declare it, and get it a certificate."""
        self.site.apply({"kind": "Host", "metadata": {"name": self.name},
                         "spec": {"underlay": self.lan, "uplink": "lan0"}})
        token = self.site.ask(lambda client: client.create_token(self.name))
        self.site.sluice(self.netns, self.log, "join", "--controller", SOUTHBOUND, "--token", token, "--name",
                         self.name, "--state", str(self.state))

    def start_agent(self, wait: bool = True) -> None:
        """Start the agent, until the controller knows it and Docker could ask it."""
        self._agent = self.site.daemons.sluice(
            self.netns, self.log, "agent", "run", "--state", str(self.state), "--pin-dir", str(self.pins), "--socket",
            str(self.socket), "--docker", str(self.plugins),
            *(word for limit in _LIMITS for word in ("--limit", limit)))
        if wait:
            self.wait_agent()

    def wait_agent(self) -> None:
        """Until it is connected, and its sockets are there."""
        eventually(lambda: _answers(self.socket) and _answers(self.plugins / "sluice.sock"),
                   f"{self.name} listens: {self.told()}", START_S)
        eventually(lambda: (self.site.get("Host", self.name).get("status") or {}).get("connected"),
                   f"{self.name} is connected", START_S)

    def kill_agent(self) -> None:
        """kill -9."""
        process, self._agent = self._agent, 0
        status = self.site.daemons.end(process)
        assert status == -signal.SIGKILL, f"the agent had ended by itself, with {status}: {self.told()}"

    def reboot(self) -> None:
        """All that ran and was in the kernel is gone; then it is there again, without daemons."""
        self.docker.crash()
        if self._agent:
            self.kill_agent()
        self.site.remove_namespace(self.netns)
        shutil.rmtree(self.pins, ignore_errors=True)
        self.boot()

    def told(self) -> str:
        """The end of the agent's log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    # What is in its kernel, and what is declared

    def ports(self) -> set[str]:
        """Names of the host-side links of endpoints."""
        found = {line.split(":")[1].strip().partition("@")[0] for line in self("ip", "-o", "link", "show").splitlines()}
        return {name for name in found if _PORT_LINK.fullmatch(name)}

    def endpoints(self) -> dict[str, dict[str, Any]]:
        """Endpoints of this host, by name."""
        return {found["metadata"]["name"]: found for found in self.site.list("Endpoint")
                if found["spec"].get("host") == self.name}

    def close(self) -> None:
        """End its daemons."""
        self.docker.close()
        if self._agent:
            with suppress(AssertionError):
                self.kill_agent()
        shutil.rmtree(self.pins, ignore_errors=True)


class Site:
    """A context manager that removes all it made. `options`: more words for each dockerd."""

    def __init__(self, hosts: int = 1, options: Sequence[str] = ()) -> None:
        self._stack = ExitStack()
        self._made: set[str] = set()
        self._wanted, self._options = hosts, options
        self.lan = f"{PREFIX}-lan"
        self.hosts: list[Host] = []
        self._controller = 0

    def __enter__(self) -> Site:
        try:
            memory = "/dev/shm" if Path("/dev/shm").is_dir() else None      # a kill asks nothing of a disk
            self.folder = Path(self._stack.enter_context(
                tempfile.TemporaryDirectory(prefix=f"{PREFIX}-", dir=memory, ignore_cleanup_errors=True)))
            self._stack.callback(self._remove)
            self.daemons = Daemons()
            self._stack.callback(self.daemons.close)
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _build(self) -> None:
        self.namespace(self.lan)
        ip(self.lan, "link add lan type bridge", "link set lan up", "address add 172.16.8.1/24 dev lan",
           "address add fd16:8::1/64 dev lan nodad", "link add seg type bridge", "link set seg up",
           "address add 172.16.9.1/24 dev seg", "address add fd16:9::1/64 dev seg nodad")
        self.hosts = [Host(self, number + 1, self._options) for number in range(self._wanted)]
        for host in self.hosts:
            self._stack.callback(host.close)
            host.boot()
            host.docker.start(wait=False)
        self.start_controller()
        for host in self.hosts:
            host.join()
            host.start_agent(wait=False)
        for host in self.hosts:
            host.wait_agent()
            host.docker.wait()

    def world(self, *command: str) -> str:
        """What a program on the LAN prints: a machine that knows nothing of containers."""
        return inside(self.lan, *command)

    def clean(self) -> None:
        """Remove all containers and networks, and demand that nothing of them is left, in Sluice or in a kernel."""
        for host in self.hosts:
            host.docker.clean()
        deadline = time.monotonic() + GRACE_S
        while left := self.remains():
            assert time.monotonic() < deadline, f"left after all was removed: {left}"
            time.sleep(0.1)

    def mend(self) -> None:
        """After a test that failed: nothing of it shall be in the way of the next."""
        for host in self.hosts:
            host.docker.crash()
            shutil.rmtree(host.docker.folder, ignore_errors=True)
            host.reboot()
        if not self._healthy():
            self.start_controller()
        for kind in ("StaticMapping", "Endpoint", "Network"):
            told = [reference_of(each) for each in self.list(kind)]
            self.ask(lambda client, told=told: client.delete_all(told))     # type: ignore[misc]
        for host in self.hosts:
            for kept in (host.state / "attachments.json", host.state / "docker.json"):
                kept.unlink(missing_ok=True)
            host.docker.start(wait=False)
            host.start_agent()
            host.docker.wait()

    def remains(self) -> list[str]:
        """What runtimes declared, and links of endpoints."""
        found = [f"{kind} {each['metadata']['name']}" for kind in ("StaticMapping", "Endpoint", "Network")
                 for each in self.list(kind)]
        return found + [f"link {name} of {host.name}" for host in self.hosts for name in sorted(host.ports())]

    # The controller

    def start_controller(self) -> None:
        """Start it, until it answers."""
        self._controller = self.daemons.sluice(
            self.lan, self.folder / "controller.log", "controller", "run", "--state", f"{self.folder}/controller",
            "--api", self.api, "--southbound", SOUTHBOUND, "--name", SOUTHBOUND.rpartition(":")[0])
        eventually(self._healthy, "the controller answers")

    def kill_controller(self) -> None:
        """kill -9."""
        process, self._controller = self._controller, 0
        status = self.daemons.end(process)
        assert status == -signal.SIGKILL, f"the controller had ended by itself, with {status}"

    @property
    def api(self) -> str:
        """Of the controller."""
        return f"unix:{self.folder}/api.sock"

    def ask(self, what: Callable[[Client], Result]) -> Result:
        """What the controller answers."""
        with Client(self.api) as client:
            return what(client)

    def apply(self, *documents: Mapping[str, Any]) -> None:
        """Declare, and wait until it is in the kernels."""
        told = [{"apiVersion": "sluice/v1", **document} for document in documents]
        done = self.ask(lambda client: client.apply(told, wait_s=WAIT_S))
        assert not done.pending, done.pending

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One resource."""
        return self.ask(lambda client: client.get(kind, name))

    def list(self, kind: str) -> list[dict[str, Any]]:
        """All of a kind, of all tenants."""
        return self.ask(lambda client: list(client.list(kind)))

    def _healthy(self) -> bool:
        with suppress(ClientError):
            self.ask(lambda client: client.health())
            return True
        return False

    # Namespaces

    def namespace(self, name: str) -> None:
        """A new one, with loopback up."""
        subprocess.run(["ip", "netns", "add", name], check=True)
        self._made.add(name)
        inside(name, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
               "net.ipv6.conf.default.router_solicitations=0")
        ip(name, "link set lo up")

    def remove_namespace(self, name: str) -> None:
        """Its links go at once, so that their names are free."""
        for link in ("lan0", "seg0"):
            subprocess.run(["ip", "-n", name, "link", "delete", link], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", name], check=True)
        self._made.discard(name)

    def sluice(self, netns: str, log: Path, *words: str) -> None:
        """Run `sluice WORDS` to its end."""
        status = self.daemons.wait(self.daemons.sluice(netns, log, *words))
        assert status == 0, f"sluice {' '.join(words[:2])}: {log.read_text()[-2000:]}"

    def _remove(self) -> None:
        for name in list(self._made):
            with suppress(subprocess.CalledProcessError):
                self.remove_namespace(name)


def inside(netns: str, *command: str) -> str:
    """What a program prints in a namespace.

    Raises:
        Refused: it failed.
    """
    done = subprocess.run(["nsenter", f"--net=/run/netns/{netns}", *command], capture_output=True, text=True,
                          timeout=60, check=False)
    if done.returncode:
        raise Refused(f"{netns}: {' '.join(command)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def bare(address: str) -> str:
    """An address without its prefix length."""
    return str(ip_interface(address).ip) if address else ""


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.connect(str(path))
        return True
    return False
