"""A host with a dockerd, whose containers are on a bridge network of Docker's own or on a nat network of Sluice's.

One dockerd has both networks, and agent and controller run beside it (`sluice up`): both sides share all but that.
CNI plug-ins are called on that host as a runtime calls them, without a runtime: Sluice's beside the reference plug-ins
`bridge` (with `host-local`) and `portmap`, both with a mapped port.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.docker import IMAGE, daemon
from bench.measure import Pair
from bench.processes import NAMESPACES, CommandFailed, inside, run, within
from bench.site import Site, peer_of, veth
from runtimes.cni.install import install
from runtimes.local import LocalError, call

__all__ = ["CALLS", "CNI", "CONTAINERS", "RUNS", "Host", "standing"]

CONTAINERS, CNI = "containers", "cni"
RUNS = 5                                    # containers of one reading
CALLS = 10                                  # ADD and DEL of one reading
_START_S = 120.0
_REFERENCE = Path("/usr/lib/cni")           # of Debian's containernetworking-plugins
_SUBNETS = {"docker": "10.8.0.0/24", "sluice": "10.9.0.0/24", "cni-docker": "10.8.1.0/24"}
_PORT = {"portMappings": [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}]}


@dataclass(slots=True)
class Host:
    """What stands. `pairs`: two containers that stay, by network; `absent`: why a case cannot be measured."""

    site: Site
    name: str
    docker: Callable[..., str]
    plugins: Path                           # folder with our CNI plug-in
    socket: Path
    pairs: dict[str, Pair] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def read_runs(self, network: str, count: int) -> dict[str, float]:
        """`docker run --rm` of a program that ends at once: the median of `count`."""
        return {"docker_run_ms": median(
            _timed(lambda: self.docker("run", "--rm", "--network", network, IMAGE, "/busybox", "true"))
            for _ in range(count))}

    def read_calls(self, subject: str, count: int) -> dict[str, float]:
        """ADD and DEL of one interface with a mapped port, in a namespace each that is there already."""
        chain = _chain(subject, self.plugins / "addresses")
        adds, dels = [], []
        namespaces = [self.site.namespace(f"{subject}{number}") for number in range(count)]
        with within(self.name):
            for namespace in namespaces:
                results: list[Any] = []
                adds.append(_timed(partial(self._add, chain, namespace, results)))
                dels.append(_timed(partial(self._delete, chain, namespace, results)))
        for namespace in namespaces:
            run("ip", "netns", "del", namespace)
        return {"cni_add_ms": median(adds), "cni_del_ms": median(dels)}

    def _add(self, chain: list[dict[str, Any]], namespace: str, results: list[Any]) -> None:
        for config in chain:
            before = {"prevResult": results[-1]} if results else {}
            results.append(json.loads(self._call("ADD", {**config, **before}, namespace)))

    def _delete(self, chain: list[dict[str, Any]], namespace: str, results: list[Any]) -> None:
        for config in reversed(chain):
            self._call("DEL", {**config, "prevResult": results[-1]}, namespace)

    def _call(self, command: str, config: Mapping[str, Any], namespace: str) -> str:
        folder = self.plugins if config["type"] == "sluice-cni" else _REFERENCE
        variables = {
            "PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_CONTAINERID": namespace, "CNI_IFNAME": "eth0",
            "CNI_NETNS": str(NAMESPACES / namespace), "CNI_PATH": str(folder), "SLUICE_AGENT": str(self.socket)}
        done = subprocess.run([folder / config["type"]], input=json.dumps(config), capture_output=True, text=True,
                              check=False, timeout=60, env=variables)
        if done.returncode:
            raise CommandFailed(f"{config['type']} {command}: {(done.stdout or done.stderr).strip()[-500:]}")
        return done.stdout


@contextmanager
def standing() -> Iterator[Host]:
    """The host with both networks and two containers on each.

    Raises:
        CommandFailed: a program is missing, or something does not start here.
    """
    with ExitStack() as undo:
        site = Site("containers")
        undo.callback(site.close)
        name, folder = site.namespace("h1"), site.folder()
        run(*inside(name, "sysctl", "-eqw", "net.bridge.bridge-nf-call-iptables=1"))    # as on every host with Docker
        _uplink(site, name)
        sockets, plugins = folder / "plugins", folder / "cni"
        plugins.mkdir()
        _sluice(site, name, folder, sockets)
        docker = daemon(site, name, sockets)
        install(plugins)
        host = Host(site, name, docker, plugins, folder / "agent.sock")
        for network, options in (("docker", ("-d", "bridge")), ("sluice", ("-d", "nat"))):
            try:
                docker("network", "create", *options, "--subnet", _SUBNETS[network], network)
                host.pairs[network] = _pair(host, network)
            except CommandFailed as error:
                host.absent[network] = str(error)
        if not (_REFERENCE / "portmap").exists():
            host.absent[CNI] = "the reference plug-ins are missing: apt-get install containernetworking-plugins"
        yield host


def _uplink(site: Site, host: str) -> None:
    world = site.namespace("w")
    veth(host, "up0", world, "up0")
    run("ip", "-n", host, "addr", "add", "172.31.9.1/24", "dev", "up0")
    run("ip", "-n", world, "addr", "add", "172.31.9.2/24", "dev", "up0")
    run("ip", "-n", host, "route", "add", "default", "via", "172.31.9.2")


def _sluice(site: Site, host: str, folder: Path, sockets: Path) -> None:
    """Controller and agent; until Docker could ask them."""
    sockets.mkdir()
    log = folder / "sluice.log"
    site.daemon(
        host, sys.executable, "-m", "cli.main", "up", "--state", str(folder / "state"), "--api",
        f"unix:{folder}/api.sock", "--southbound", "127.0.0.1:7443", "--name", "h1", "--uplink", "up0", "--pin-dir",
        str(site.pins(host)), "--socket", str(folder / "agent.sock"), "--docker", str(sockets), "--purge", log=log)
    deadline = time.monotonic() + _START_S
    while not (sockets / "nat.sock").exists() or not _connected(folder / "agent.sock"):
        if time.monotonic() > deadline:
            raise CommandFailed(f"sluice up: not connected after {_START_S:g} s: {log.read_text()[-1000:]}")
        time.sleep(0.05)


def _connected(socket: Path) -> bool:
    try:
        return bool(call("hello", str(socket))["controller"] == "connected")
    except LocalError:
        return False


def _pair(host: Host, network: str) -> Pair:
    """Two containers that only sleep."""
    ends = []
    for part in (f"{network}-a", f"{network}-b"):
        host.docker("run", "--detach", "--name", part, "--network", network, IMAGE, "/busybox", "sleep", "1000000")
        process = int(host.docker("inspect", "--format", "{{.State.Pid}}", part))
        ends.append(host.site.adopt(part, process))
    host.site.stack.callback(host.docker, "rm", "--force", f"{network}-a", f"{network}-b")
    address = host.docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
                          f"{network}-b").strip()
    return Pair(ends[0], ends[1], address, (host.name, peer_of(ends[0], host.name)), (host.name,))


def _chain(subject: str, addresses: Path) -> list[dict[str, Any]]:
    """The plug-ins of a configuration, as a runtime hands each its own, with a port to map."""
    known = {"cniVersion": "1.0.0", "name": f"cni-{subject}"}
    if subject == "sluice":
        return [{**known, "type": "sluice-cni", "network": "sluice-cni", "capabilities": {"portMappings": True},
                 "spec": {"mode": "nat", "subnets": [{"prefix": "10.9.1.0/24"}]}, "runtimeConfig": _PORT}]
    return [
        {**known, "type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True,
         "ipam": {"type": "host-local", "subnet": _SUBNETS["cni-docker"], "dataDir": str(addresses)}},
        {**known, "type": "portmap", "capabilities": {"portMappings": True}, "runtimeConfig": _PORT},
    ]


def _timed(do: Callable[[], object]) -> float:
    """Milliseconds by the clock on the wall."""
    begun = time.perf_counter()
    do()
    return (time.perf_counter() - begun) * 1e3
