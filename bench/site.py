"""Namespaces, links, folders and pins of one subject: made here, known by name, removed as a whole.

Everything is named `bench-PID-...` for the process that measures, so that two benchmarks do not meet, and what one left
that was killed is found and removed by the next.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from bench.processes import NAMESPACES, CommandFailed, ended, inside, run, start

__all__ = [
    "ENDPOINTS", "MACS", "OVERLAY_MTU", "UNDERLAY", "VNI", "Site", "add_vxlan", "endpoint", "peer_of", "program",
    "remove_cgroups", "remove_stale", "veth",
]

UNDERLAY = ("172.31.9.1", "172.31.9.2")
ENDPOINTS = ("10.9.0.1", "10.9.0.2")
MACS = ("02:09:00:00:00:01", "02:09:00:00:00:02")
VNI = 900
OVERLAY_MTU = 1450
READY = "bench.host: ready"                 # says the program of a host
PINS = Path("/sys/fs/bpf")
_CGROUPS = Path("/sys/fs/cgroup")
_PROGRAM_S = 120.0
_OURS = re.compile(r"bench-(\d+)-")


class Site:
    """What one subject needs; `close` removes it in reverse order. `name` keeps subjects apart."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stack = ExitStack()

    def namespace(self, part: str) -> str:
        """A new namespace with loopback up and IPv6 off."""
        name = f"bench-{os.getpid()}-{self.name}-{part}"
        run("ip", "netns", "add", name)
        self.stack.callback(_remove_namespace, name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        quiet = ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        # Bridge netfilter is on in a new namespace; only the subject that is about it pays for it.
        plain = ("net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-arptables=0")
        run(*inside(name, "sysctl", "-eqw", *quiet, *plain))
        return name

    def adopt(self, part: str, process: int) -> str:
        """A name for the namespace that a process is in."""
        name = f"bench-{os.getpid()}-{self.name}-{part}"
        run("ip", "netns", "attach", name, str(process))
        self.stack.callback(_remove_namespace, name)
        return name

    def folder(self) -> Path:
        """A new folder for a daemon's own things."""
        return Path(self.stack.enter_context(
            tempfile.TemporaryDirectory(prefix=f"sluice-bench-{os.getpid()}-{self.name}-", ignore_cleanup_errors=True)
        ))

    def pins(self, host: str) -> Path:
        """Where the data path of a host is pinned."""
        path = PINS / f"sluice-{host}"
        self.stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    def daemon(self, namespace: str, *command: str, log: Path) -> None:
        """A program that runs as long as the site is there."""
        self.stack.enter_context(ended(start(namespace, *command, log=log)))

    def close(self) -> None:
        """Remove what was made."""
        self.stack.close()


def veth(one: str, one_name: str, other: str, other_name: str) -> None:
    """A pair between two namespaces, both ends up."""
    run("ip", "-n", one, "link", "add", one_name, "type", "veth", "peer", "name", other_name, "netns", other)
    run("ip", "-n", one, "link", "set", one_name, "up")
    run("ip", "-n", other, "link", "set", other_name, "up")


def endpoint(namespace: str, number: int, interface: str = "eth0") -> None:
    """Give the endpoint's interface its MAC and address."""
    run("ip", "-n", namespace, "link", "set", interface, "address", MACS[number])
    run("ip", "-n", namespace, "addr", "add", f"{ENDPOINTS[number]}/24", "dev", interface)


def program(site: Site, host: str, plan: str) -> None:
    """Let the agent's reconciler make it so, in the host's namespace, by a process that then ages flows as an agent."""
    pins, folder = site.pins(host), site.folder()
    log, told = folder / "host.log", folder / "plan.json"
    told.write_text(plan)
    process = start(host, sys.executable, "-m", "bench.host", str(pins), str(told), log=log)
    site.stack.enter_context(ended(process))
    deadline = time.monotonic() + _PROGRAM_S
    while READY not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise CommandFailed(f"programming {host}: {log.read_text().strip()[-2000:] or 'no answer'}")
        time.sleep(0.02)


def peer_of(namespace: str, other: str, interface: str = "eth0") -> str:
    """The name, in namespace `other`, of the far end of a veth."""
    (near,) = json.loads(run("ip", "-j", "-n", namespace, "link", "show", interface))
    for link in json.loads(run("ip", "-j", "-n", other, "link", "show")):
        if link["ifindex"] == near["link_index"]:
            return str(link["ifname"])
    raise CommandFailed(f"{interface} in {namespace}: its far end is not in {other}")


def add_vxlan(host: str, number: int, name: str) -> None:
    """A VXLAN device to the other host only, that learns nothing."""
    run(
        "ip", "-n", host, "link", "add", name, "type", "vxlan", "id", str(VNI), "dstport", "4789", "local",
        UNDERLAY[number], "remote", UNDERLAY[1 - number], "dev", "under0", "nolearning",
    )


def remove_cgroups(name: str) -> None:
    """Control groups of this name, of whatever hierarchy; only empty ones can be."""
    for path in (*_CGROUPS.glob(f"*/{name}"), *_CGROUPS.glob(name)):
        with suppress(OSError):                     # somebody is still in it: theirs
            path.rmdir()


def remove_stale() -> list[str]:
    """Remove what benchmarks left whose process is gone; returns the names."""
    gone = []
    for path in _left(NAMESPACES, "bench-*"):
        for process in run("ip", "netns", "pids", path.name).split():
            with suppress(ProcessLookupError):      # it has ended by itself
                os.kill(int(process), signal.SIGKILL)
        _remove_namespace(path.name)
        gone.append(path.name)
    for path in (*_left(PINS, "sluice-bench-*"), *_left(Path(tempfile.gettempdir()), "sluice-bench-*")):
        shutil.rmtree(path, ignore_errors=True)
        gone.append(str(path))
        remove_cgroups(path.name)
    return gone


def _left(folder: Path, pattern: str) -> Iterator[Path]:
    for path in sorted(folder.glob(pattern)):
        found = _OURS.search(path.name)
        if found and not _is_bench(int(found[1])):
            yield path


def _is_bench(process: int) -> bool:
    """Whether the process is there and is Python: a number may be given again."""
    try:
        return b"python" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def _remove_namespace(name: str) -> None:
    with suppress(CommandFailed):                   # it is gone already
        run("ip", "netns", "del", name)
