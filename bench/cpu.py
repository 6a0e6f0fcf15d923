"""Processor time: of the whole machine from /proc/stat, and of BPF programs from the kernel's own account."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import inside, run
from vfp.datapath.libbpf import check, library, prog_info

__all__ = ["ProgramClock", "busy_ns"]

_STAT = Path("/proc/stat")
_SWITCH = Path("/proc/sys/kernel/bpf_stats_enabled")
_BUSY = (1, 2, 3, 6, 7)                     # user, nice, system, irq, softirq; not idle, iowait and steal
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def busy_ns() -> int:
    """Nanoseconds that all processors worked since the machine started."""
    fields = _STAT.read_text().split("\n", 1)[0].split()
    return sum(int(fields[number]) for number in _BUSY) * _TICK_NS


@dataclass(frozen=True, slots=True)
class Spent:
    """What programs did within a block."""

    runs: int
    ns: int


class ProgramClock:
    """The account of all BPF programs at TC in some namespaces; a context manager that holds them open."""

    def __init__(self, namespaces: tuple[str, ...]) -> None:
        self._namespaces = namespaces
        self._descriptors: list[int] = []
        self._stack = ExitStack()

    def __enter__(self) -> ProgramClock:
        with ExitStack() as undo:
            for number in sorted(_attached(self._namespaces)):
                descriptor = check(library().bpf_prog_get_fd_by_id(number), f"open program {number}")
                undo.callback(os.close, descriptor)
                self._descriptors.append(descriptor)
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._descriptors.clear()
        self._stack.close()

    def read(self) -> Spent:
        """The sums since the programs were loaded, of times when the account was kept."""
        infos = [prog_info(descriptor) for descriptor in self._descriptors]
        return Spent(sum(int(info.run_cnt) for info in infos), sum(int(info.run_time_ns) for info in infos))


@contextmanager
def program_stats() -> Iterator[None]:
    """The kernel keeps account, which costs some 20 ns a run, for as long as the block lasts."""
    before = _SWITCH.read_text()
    _SWITCH.write_text("1")
    try:
        yield
    finally:
        _SWITCH.write_text(before)


def _attached(namespaces: tuple[str, ...]) -> Iterator[int]:
    """Ids of programs at the hooks of all links; one program may be at many."""
    found = set()
    for namespace in namespaces:
        for link in json.loads(run("ip", "-j", "-n", namespace, "link", "show")):
            for where in ("ingress", "egress"):
                shown = run(*inside(namespace, "tc", "-j", "filter", "show", "dev", link["ifname"], where))
                found |= {
                    each["options"]["prog"]["id"] for each in json.loads(shown or "[]")
                    if "prog" in each.get("options", {})
                }
    return iter(found)
