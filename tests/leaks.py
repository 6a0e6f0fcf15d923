"""What a test session must not leave behind: namespaces, links, filters, pins, BPF programs and maps, processes.

Two photographs of the machine, before and after; what only the second shows is a leak. Processes are known by a
mark in their environment, which children inherit. The rest bears no owner's name: while another session of
these tests runs on the machine, a difference may be its doing, and is told but not counted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "SLUICE_TEST_SESSION"
WATCHED = "SLUICE_TEST_WATCHED"             # set: whoever started this session looks for leaks
GRACE_S = 4.0                # the kernel frees namespaces, programs and maps a little after their last user
SETTLE_S = 0.5
NAMESPACES = Path("/run/netns")
PINS = Path("/sys/fs/bpf")
RESERVED_PORTS = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")

_USER = re.compile(r"pytest|sluice|labs|scapy|iperf3 -s")

Photograph = Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Leaks:
    """What is left. `certain`: it can only be ours."""

    things: tuple[str, ...]
    certain: bool


@dataclass(frozen=True, slots=True)
class Watch:
    """A session under watch."""

    mark: str
    before: Photograph
    alone: bool


def begin() -> Watch:
    """Mark this process and its children to come; photograph the machine."""
    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    return Watch(mark, photograph(), not others(mark))


def end(watch: Watch) -> Leaks:
    """What is there now and was not before, after some patience."""
    time.sleep(SETTLE_S)        # see `_spent`
    deadline = time.monotonic() + GRACE_S
    while True:
        processes = [f"process {text}" for text in _marked(watch.mark)]
        after = photograph()
        things = {(sort, name) for sort, names in after.items() for name in names - watch.before[sort]}
        if not (processes or things) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    alone = watch.alone and not others(watch.mark)
    ours = things - _spent(things)
    told = (*processes, *(f"{sort} {name}" for sort, name in sorted(things)))
    return Leaks(told, bool(processes) or (alone and bool(ours)))


def _spent(things: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Program arrays that the kernel itself does not let go of, if nothing else is left.

    A worker of the kernel empties a program array after its last descriptor was closed. Whoever opens the map by its id
    before that, as bpftool does, or any look at all maps of a machine, makes the kernel take a reference that it
    never gives back (`prog_array_map_clear`: work that is queued already is not queued again). Such a map is empty. One
    that a process, pin, filter or program of ours holds does not come alone.
    """
    arrays = {(sort, name) for sort, name in things if sort == "BPF map" and name.split()[1] == "prog_array"}
    return arrays if arrays == things and not any(_elements(name.split()[0]) for _, name in arrays) else set()


def _elements(map_id: str) -> int:
    return len(_json("bpftool", "-j", "map", "dump", "id", map_id))


def photograph() -> Photograph:
    """Names of everything that could leak, by sort."""
    return {
        "namespace": _listing(NAMESPACES),
        "pin": _pins(),
        "link": _links(),
        "filter on": _clsact(),
        "BPF program": _bpf("prog"),
        "BPF map": _bpf("map"),
        "reserved ports": _reserved(),
    }


def _listing(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except OSError:
        return frozenset()


def _pins() -> frozenset[str]:
    return frozenset(str(Path(root) / name) for root, folders, files in os.walk(PINS) for name in (*folders, *files))


def _links() -> frozenset[str]:
    return _listing(Path("/sys/class/net"))


def _clsact() -> frozenset[str]:
    answer = _json("tc", "-j", "qdisc", "show")
    return frozenset(str(each.get("dev")) for each in answer if each.get("kind") == "clsact")


def _bpf(sort: str) -> frozenset[str]:
    """Loaded programs or maps; only root can see them. Only the engine's own sort of program is of interest."""
    if os.geteuid() != 0:
        return frozenset()
    return frozenset(f"{each['id']} {each.get('type', '')} {each.get('name', '')}"
                     for each in _json("bpftool", "-j", sort, "show")
                     if sort == "map" or each.get("type") == "sched_cls")


def _reserved() -> frozenset[str]:
    try:
        return frozenset(RESERVED_PORTS.read_text().split())
    except OSError:
        return frozenset()


def _json(*command: str) -> list[dict[str, object]]:
    if not shutil.which(command[0]):
        return []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = json.loads(done.stdout or "[]") if done.returncode == 0 else []
    return answer if isinstance(answer, list) else []


def _marked(mark: str) -> list[str]:
    """Processes that this session started, which have its mark, other than this one."""
    return [text for pid, environment, text in _processes()
            if pid != os.getpid() and f"{MARK}={mark}".encode() in environment]


def others(mark: str) -> bool:
    """Whether somebody else uses Sluice or these tests on this machine right now.

    A process does not show in /proc what it put into its own environment, hence the look at command lines.
    """
    ours = _ancestors()
    return any(_USER.search(text) and pid not in ours and f"{MARK}={mark}".encode() not in environment
               for pid, environment, text in _processes())


def _processes() -> Iterator[tuple[int, list[bytes], str]]:
    """Process id, environment and command line of every process that we may look at. Zombies have neither."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if command:
            yield int(folder.name), environment, f"{folder.name} {command[:200]}"


def _ancestors() -> set[int]:
    """This process and those above it: the shell and the make that started us."""
    found, pid = {os.getpid()}, os.getppid()
    while pid > 1:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found
