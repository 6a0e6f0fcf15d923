"""Programs of a lab: run to their end, or kept in the background; and how to find them again after a crash.

Every program gets its own session, and `SLUICE_LAB=<name>` in its environment. Background programs are in the
journal too (some, such as nginx, overwrite their environment).
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labs import machine
from labs.errors import LabError, StepFailed
from labs.journal import Identity, Journal
from labs.schema import Ready
from labs.topology import NETNS

MARK = "SLUICE_LAB"
LOOK_S = 0.02
GRACE_S = 1.5
TAIL_LINES = 30
AT_ONCE = Ready()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. Times are CLOCK_MONOTONIC, which all processes share."""

    command: tuple[str, ...]
    exit: int                               # negative: ended by that signal
    stdout: str
    stderr: str
    began_s: float
    ended_s: float

    def shown(self) -> str:
        """Command and output, for someone who wants to know what went wrong."""
        parts = [f"$ {' '.join(self.command)}", f"exit status {self.exit}"]
        parts += [_tail(text) for text in (self.stdout, self.stderr) if text.strip()]
        return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class Spec:
    """How to start a background program."""

    name: str
    command: tuple[str, ...]
    namespace: str = ""                     # empty: the root namespace
    ready: Ready = AT_ONCE


class Child:
    """A process of ours that may outlive us (`up`), which asyncio's own would complain about."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> None:
        """Start it, in a session of its own.

        Raises:
            OSError: it cannot be started.
        """
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.pid = os.posix_spawnp(
            command[0], list(command), dict(environment), setsid=True,
            # Python ignores these two, and an ignored signal stays ignored in what is started.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                          (os.POSIX_SPAWN_OPEN, 1, str(out), append, 0o644),
                          (os.POSIX_SPAWN_OPEN, 2, str(err), append, 0o644)])
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._descriptor = os.pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._reap)

    async def wait(self) -> int:
        """Its exit status, once it has ended; negative: the signal that ended it."""
        await self._ended.wait()
        return self.returncode or 0

    def release(self) -> None:
        """Let it go on without us."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _reap(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self.release()
        self._ended.set()


@dataclass(slots=True)
class Background:
    """A background program of this run."""

    spec: Spec
    process: Child
    log: Path                               # standard error
    out: Path                               # standard output
    began_s: float
    written: tuple[int, int] = (0, 0)       # bytes that an earlier run of this name left in `out` and `log`


class Processes:
    """The programs of one lab run. `environment` comes on top of our own."""

    def __init__(self, journal: Journal, environment: Mapping[str, str]) -> None:
        self._journal = journal
        self._environment = {**os.environ, **environment, MARK: journal.name}
        self._running: dict[str, Background] = {}

    async def run(self, command: Sequence[str], namespace: str = "", timeout_s: float = 20) -> Outcome:
        """Run a program to its end.

        Raises:
            StepFailed: it cannot be started, or took longer than `timeout_s` (it is killed then).
        """
        began = time.monotonic()
        try:
            process = await asyncio.create_subprocess_exec(
                *inside(self._journal, namespace, command), stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=self._environment,
                start_new_session=True)
        except OSError as error:
            raise StepFailed(f"cannot start {command[0]}: {error}") from error
        try:
            out, err = await asyncio.wait_for(process.communicate(), timeout_s)
        except TimeoutError:
            raise StepFailed(f"`{' '.join(command)}` was not done after {timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                _signal_group(process.pid, signal.SIGKILL)
                await process.wait()
        return Outcome(tuple(command), process.returncode or 0, out.decode(errors="replace"),
                       err.decode(errors="replace"), began, time.monotonic())

    async def start(self, spec: Spec) -> None:
        """Start a program and wait until it is ready.

        Raises:
            StepFailed: it runs already, ended, or was not ready in time; with what it wrote.
        """
        known = self._running.get(spec.name)
        if known and known.process.returncode is None:
            raise StepFailed(f"{spec.name} runs already, as pid {known.process.pid}")
        logs = self._journal.directory / "logs"
        logs.mkdir(exist_ok=True)
        stem = spec.name.replace("/", "-")
        log, out = logs / f"{stem}.log", logs / f"{stem}.out"
        written = _size(out), _size(log)
        try:
            process = Child(inside(self._journal, spec.namespace, spec.command), self._environment, out, log)
        except OSError as error:
            raise StepFailed(f"cannot start {spec.name}: {error}") from error
        self._running[spec.name] = Background(spec, process, log, out, time.monotonic(), written)
        start = started_at(process.pid)
        if start is not None:
            self._journal.add_process(Identity(spec.name, process.pid, start))
        await self._until_ready(self._running[spec.name])

    async def _until_ready(self, background: Background) -> None:
        spec, process = background.spec, background.process
        deadline = time.monotonic() + spec.ready.timeout_s
        while missing := _missing(spec.ready, process.pid, background):
            if process.returncode is not None:
                raise StepFailed(f"{spec.name} ended at once, exit status {process.returncode}",
                                 self.output(spec.name))
            if time.monotonic() > deadline:
                raise StepFailed(f"{spec.name} was not ready after {spec.ready.timeout_s:g} s: {missing}",
                                 self.output(spec.name))
            await asyncio.sleep(LOOK_S)

    async def restart(self, name: str) -> None:
        """Start a program that has ended again, as it was."""
        await self.start(self._find(name).spec)

    async def kill(self, name: str, number: signal.Signals) -> None:
        """Signal a program; if the signal ends programs, wait until it is gone.

        Raises:
            StepFailed: it is not running, or does not end.
        """
        background = self._find(name)
        if background.process.returncode is not None:
            raise StepFailed(f"{name} has ended before, exit status {background.process.returncode}",
                             self.output(name))
        _signal_group(background.process.pid, number)
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            await self.finish(name, 10)
            await _until_group_ended(background.process.pid)

    async def finish(self, name: str, timeout_s: float) -> Outcome:
        """Wait for the end of a program.

        Raises:
            StepFailed: it does not end in time.
        """
        background = self._find(name)
        try:
            await asyncio.wait_for(background.process.wait(), timeout_s)
        except TimeoutError:
            raise StepFailed(f"{name} was not done after {timeout_s:g} s", self.output(name)) from None
        self._journal.forget_process(background.process.pid)
        return Outcome(background.spec.command, background.process.returncode or 0,
                       *_written(background), background.began_s, time.monotonic())

    def output(self, name: str) -> str:
        """The last lines that a background program wrote."""
        background = self._find(name)
        texts = (_tail(path.read_text(errors="replace")) for path in (background.out, background.log))
        return "\n".join(text for text in texts if text)

    def log_files(self, name: str) -> tuple[Path, Path]:
        """Files with standard output and standard error."""
        background = self._find(name)
        return background.out, background.log

    def alive(self, name: str) -> bool:
        """Whether a background program of this run is running."""
        return name in self._running and self._running[name].process.returncode is None

    def names(self) -> list[str]:
        """Background programs of this run, ended ones too."""
        return list(self._running)

    def _find(self, name: str) -> Background:
        if name not in self._running:
            raise StepFailed(f"{name} was never started")
        return self._running[name]

    async def reap(self) -> None:
        """Collect our own children after they were ended."""
        for background in self._running.values():
            if background.process.returncode is None:
                await background.process.wait()

    def release(self) -> None:
        """Let the background programs go on without us."""
        for background in self._running.values():
            background.process.release()


def inside(journal: Journal, namespace: str, command: Sequence[str]) -> list[str]:
    """A command as run in a namespace, and in the machine that it may be.

    `ip netns exec` would hide bpffs behind a new /sys.

    Raises:
        StepFailed: the machine has ended.
    """
    if not namespace:
        return list(command)
    first = journal.machines.get(namespace)
    if first is None:
        return ["nsenter", f"--net={NETNS / namespace}", "--", *command]
    if started_at(first.pid) != first.start:
        raise StepFailed(f"{first.name} has ended, with all that ran in it")
    return machine.enter(first.pid, NETNS / namespace, command)


# Finding and ending what an earlier run left

def started_at(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def leftovers(journal: Journal) -> dict[int, str]:
    """Every living process of the lab, pid to name, also those of a runner that died."""
    recorded = {identity.pid: identity for identity in journal.processes}
    networks = {path.stat().st_ino for name in journal.namespaces if (path := NETNS / name).exists()}
    mark = f"{MARK}={journal.name}".encode()
    found: dict[int, str] = {}
    for pid in _pids():
        fields = _stat(pid)
        if pid == os.getpid() or not fields or fields[0] == "Z":
            continue
        identity = recorded.get(pid)
        if identity and identity.start == int(fields[19]):
            found[pid] = identity.name
        elif _marked(pid, mark):
            found[pid] = _name(pid)
        else:
            leader = recorded.get(int(fields[3]))       # of its session
            if leader and leader.pid != pid and int(fields[19]) >= leader.start and (
                    started_at(leader.pid) == leader.start or _network(pid) in networks):
                found[pid] = f"{leader.name} ({_name(pid)})"
    return found


def end_all(journal: Journal) -> None:
    """End every process of the lab: SIGTERM, then SIGKILL after a moment.

    Raises:
        LabError: some do not even go by SIGKILL.
    """
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 5.0), (signal.SIGKILL, 5.0)):
        there = leftovers(journal)
        if not there:
            return
        _signal_and_wait(there, number, patience_s)
    there = leftovers(journal)
    if there:
        stubborn = ", ".join(f"{name} (pid {pid})" for pid, name in there.items())
        raise LabError(f"processes do not end: {stubborn}; see `ps`, then `sluice lab down` again")


def _signal_and_wait(pids: Iterable[int], number: signal.Signals, patience_s: float) -> None:
    poll, open_fds = select.poll(), {}
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
            open_fds[descriptor] = pid
            poll.register(descriptor, select.POLLIN)
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + patience_s
    waiting = set(open_fds)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            waiting.discard(descriptor)
    for descriptor in open_fds:
        os.close(descriptor)


async def _until_group_ended(pid: int, longest_s: float = 5) -> None:
    """In a machine it is the leader's child that has the files and locks, and whose end comes a little later."""
    deadline = time.monotonic() + longest_s
    while time.monotonic() < deadline:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(LOOK_S)


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Our children lead their own groups, so that what they start goes with them."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _written(background: Background) -> tuple[str, str]:
    """What this run of a program wrote to standard output and standard error."""
    out, log = (path.read_bytes()[skip:].decode(errors="replace")
                for path, skip in zip((background.out, background.log), background.written, strict=True))
    return out, log


def _missing(ready: Ready, pid: int, background: Background) -> str:
    """What a program lacks to count as ready; empty: nothing."""
    namespace = background.spec.namespace
    if namespace and _network(pid) != (NETNS / namespace).stat().st_ino:
        return f"it has not entered namespace {namespace}"
    for port in ready.tcp:
        if port not in _bound(pid, "tcp"):
            return f"nothing listens on TCP port {port}"
    for port in ready.udp:
        if port not in _bound(pid, "udp"):
            return f"nothing is bound to UDP port {port}"
    if ready.log and not re.search(ready.log, "".join(_written(background)), re.MULTILINE):
        return f"its output does not show {ready.log!r}"
    return ""


def _bound(pid: int, protocol: str) -> set[int]:
    """Local ports in use in the network namespace of a process: proc(5), /proc/<pid>/net."""
    listening = {"tcp": "0A", "udp": "07"}[protocol]
    ports = set()
    for table in (protocol, protocol + "6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[3] == listening:
                ports.add(int(words[1].rsplit(":", 1)[1], 16))
    return ports


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from `state` (field 3) on; the name before may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def _marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _network(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0


def _tail(text: str, lines: int = TAIL_LINES) -> str:
    kept = text.rstrip().splitlines()
    return "\n".join(kept[-lines:])
