"""Namespaces that play hosts and endpoints for the tests of `vswitch`, and a check that nothing is left of them."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vswitch import PortLink, Switch, port_interface

Result = TypeVar("Result")

_libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


def run(*command: str, check: bool = True) -> str:
    """Standard output of a command."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


class Namespace:
    """A network namespace of a test."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ip(self, *arguments: str, check: bool = True) -> str:
        """`ip` inside."""
        return run("ip", "-n", self.name, *arguments, check=check)

    def batch(self, lines: str) -> None:
        """Many `ip` commands inside, by one process."""
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input=lines, text=True, check=True, timeout=60)

    def show(self, *arguments: str) -> Any:
        """`ip` inside, as JSON."""
        return json.loads(self.ip("-d", "-j", *arguments) or "[]")

    def link(self, name: str) -> dict[str, Any]:
        """A link, as `ip` shows it."""
        (found,) = self.show("link", "show", "dev", name)
        return dict(found)

    def has(self, name: str) -> bool:
        """Whether it has this link."""
        return any(link["ifname"] == name for link in self.show("link", "show"))

    def addresses(self, name: str) -> list[str]:
        """Addresses of a link, both families."""
        (found,) = self.show("address", "show", "dev", name)
        return [f"{one['local']}/{one['prefixlen']}" for one in found["addr_info"]]

    def execute(self, *command: str, check: bool = True) -> str:
        """A command inside, with our mounts."""
        return run("nsenter", f"--net=/run/netns/{self.name}", *command, check=check)

    def call(self, work: Callable[[], Result]) -> Result:
        """A function inside, on a thread that ends with it."""

        def inside() -> Result:
            with Path(f"/run/netns/{self.name}").open() as namespace:
                if _libc.setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return work()

        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(inside).result()

    def pings(self, address: str, count: int = 2) -> bool:
        """Whether every ping is answered."""
        text = self.execute("ping", "-n", "-c", str(count), "-i", "0.05", "-W", "1", address, check=False)
        return f" {count} received" in text


class Notices:
    """What the kernel tells of links, addresses and routes in the namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        self._socket.bind((0, 0x1 | 0x10 | 0x40 | 0x100 | 0x400))

    def settle(self) -> None:
        """Wait until a good second went by without any."""
        while self.count(1.2):
            pass

    def count(self, within_s: float = 0.1) -> int:
        """How many datagrams came, until none comes for a while."""
        self._socket.settimeout(within_s)
        seen = 0
        while True:
            try:
                self._socket.recv(1 << 16)
            except TimeoutError:
                return seen
            seen += 1

    def close(self) -> None:
        self._socket.close()


class World:
    """What one test may use."""

    def __init__(self, stack: ExitStack, scratch: Path) -> None:
        self._stack = stack
        self.scratch = scratch
        self.names: set[str] = set()

    def namespace(self, role: str) -> Namespace:
        """A new, empty namespace."""
        name = f"vsw-{role}-{os.getpid()}"
        run("ip", "netns", "add", name)
        self.names.add(name)
        self._stack.callback(lambda: run("ip", "netns", "del", name, check=False))
        return Namespace(name)

    def switch(self, host: Namespace) -> Switch:
        """A switch that lives on this host."""
        return self._stack.enter_context(host.call(lambda: Switch(record_dir=self.scratch)))


@contextmanager
def world(scratch: Path) -> Iterator[World]:
    """A world, and the check that it was left as it was found."""
    if os.geteuid():
        pytest.fail("these tests make network namespaces: run them as root (sudo make test)")
    if shutil.which("ip") is None:
        pytest.fail("no `ip`: apt-get install iproute2")
    before = _inventory()
    with ExitStack() as stack:
        yield World(stack, scratch)
    assert _inventory() == before


def _inventory() -> dict[str, set[str]]:
    named = Path("/run/netns")
    names = {path.name for path in named.iterdir()} if named.is_dir() else set()
    links = {link["ifname"] for link in json.loads(run("ip", "-j", "link"))}
    return {
        "namespaces": {name for name in names if name.startswith("vsw-") and name.endswith(f"-{os.getpid()}")},
        "links": {name for name in links if name.startswith(("vsw", "slvx"))},
        "descriptors": {path.name for path in Path("/proc/self/fd").iterdir() if path.exists()},
        "threads": {thread.name for thread in threading.enumerate()},
    }


def port(number: int, endpoint: Namespace, **changes: Any) -> PortLink:
    """A port of the network 10.99.0.0/24: endpoint .<number>, gateway .1."""
    fields: dict[str, Any] = {
        "host_interface": port_interface(number),
        "alias": f"sluice:port:uid-{number}:{number}",
        "netns": endpoint.name,
        "interface": "eth0",
        "mac": f"02:99:00:00:00:{number:02x}",
        "addresses": (f"10.99.0.{number}/24",),
        "gateways": ("10.99.0.1",),
        "mtu_bytes": 1400,
    }
    return PortLink(**(fields | changes))


BPF_HEADER = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
char _license[] SEC("license") = "GPL";
"""


def compile_bpf(source: str, target: Path, **constants: int) -> Path:
    """An object file from C, with constants as macros."""
    if shutil.which("clang") is None:
        pytest.fail("no clang: apt-get install clang libbpf-dev")
    text = target.with_suffix(".c")
    text.write_text(BPF_HEADER + source)
    defines = [f"-D{name}={value}" for name, value in constants.items()]
    include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    flags = ("-O2", "-g", "-target", "bpf", "-Wall", "-Werror", include, *defines)
    run("clang", *flags, "-c", str(text), "-o", str(target))
    return target
