"""Namespaces of the churn proof: hosts on one underlay and one management network, and the slots of their endpoints.

    hosts ── under0 ──┐                      ┌── mgmt0 ── hosts
                      ├─ bridge  `ether`  bridge ─┤
                      └ the controller is here, on the management network

Both underlay families are there. A host that is rebooted loses its namespace and those of its slots, and all that was
in the kernel for it; what it had on disk stays.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from churn_world import Slot, underlays

PREFIX = f"churn{os.getpid()}"
ETHER = f"{PREFIX}-ether"
MANAGEMENT = "172.30.255.254"
PINS = Path("/sys/fs/bpf")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_QUIET = ("net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
          "net.ipv6.conf.default.router_solicitations=0", "net.ipv6.conf.all.keep_addr_on_down=1",
          "net.ipv6.conf.default.keep_addr_on_down=1")
Result = TypeVar("Result")


def host_netns(host: int) -> str:
    return f"{PREFIX}-h{host}"


def slot_netns(slot: Slot) -> str:
    return f"{PREFIX}-h{slot.host}-s{slot.number}"


def run(*command: str, text: str = "") -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def batch(netns: str, *lines: str) -> None:
    """`ip` commands in a namespace, by one process."""
    run("ip", "-n", netns, "-batch", "-", text="\n".join(lines))


class Hopper:
    """One thread that goes from namespace to namespace, so that nothing else of the process ever does."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "hopper")

    def each(self, namespaces: Iterable[str], work: Callable[[str], Result]) -> list[Result]:
        """Call `work` with the name of each, inside."""
        return self._pool.submit(lambda: [_inside(name, work) for name in namespaces]).result()

    def close(self) -> None:
        self._pool.shutdown()


def _inside(name: str, work: Callable[[str], Result]) -> Result:
    assert threading.current_thread() is not threading.main_thread()
    with Path(f"/run/netns/{name}").open() as there:
        if _libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {name}")
    return work(name)


def _mac(host: int) -> str:
    """Of a host's underlay link; a machine keeps it when it boots again."""
    return f"02:75:00:00:{host >> 8:02x}:{host & 255:02x}"


class Stage:
    """Makes and removes namespaces and links."""

    def __init__(self, hosts: int, slots: int, version: int) -> None:
        self.hosts, self.slots, self._version = hosts, slots, version
        self._made: set[str] = set()

    def build(self) -> None:
        """All of it."""
        self._namespace(ETHER)
        batch(ETHER, "link set lo up", "link add under type bridge", "link set under up", "link add mgmt type bridge",
              "link set mgmt up", f"addr add {MANAGEMENT}/16 dev mgmt")
        for host in range(self.hosts):
            self.boot(host)

    def boot(self, host: int) -> None:
        """A host comes up: its namespace and links, and empty slots."""
        name = host_netns(host)
        self._namespace(name)
        batch(ETHER,
              f"link add u{host} mtu 1500 type veth peer under0 address {_mac(host)} netns {name}",
              f"link set u{host} master under up",
              f"link add m{host} type veth peer mgmt0 netns {name}", f"link set m{host} master mgmt up")
        batch(name, "link set lo up", "link set under0 up",
              *(f"addr add {address}/{'64' if ':' in address else '12'} dev under0" + " nodad" * (":" in address)
                for address in underlays(host, self._version)),
              f"addr add 172.30.{host // 200}.{host % 200 + 1}/16 dev mgmt0", "link set mgmt0 up")
        for number in range(self.slots):
            self._namespace(slot_netns(Slot(host, number)))

    def halt(self, host: int) -> None:
        """The kernel of a host is gone, with all that was in it."""
        batch(ETHER, f"link del u{host}", f"link del m{host}")
        for number in range(self.slots):
            self._remove(slot_netns(Slot(host, number)))
        self._remove(host_netns(host))
        shutil.rmtree(self.pins(host), ignore_errors=True)

    def pins(self, host: int) -> Path:
        return PINS / f"sluice-{PREFIX}-h{host}"

    def cable(self, host: int, *, up: bool, far: bool) -> None:
        """The underlay's link, at the host or at the other end of the cable."""
        netns, link = (ETHER, f"u{host}") if far else (host_netns(host), "under0")
        run("ip", "-n", netns, "link", "set", link, "up" if up else "down")

    def close(self) -> None:
        for name in list(self._made):
            with suppress(AssertionError):
                self._remove(name)
        for host in range(self.hosts):
            shutil.rmtree(self.pins(host), ignore_errors=True)

    def _namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._made.add(name)
        run("ip", "netns", "exec", name, "sysctl", "-qw", *_QUIET)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def _remove(self, name: str) -> None:
        run("ip", "netns", "del", name)
        self._made.discard(name)
