"""A host of a lab whose container runtimes are to find a machine of their own: `python -m labs.machine`.

A network namespace is enough for an agent. dockerd and podman also have files at fixed paths, control groups, and
containers that outlive them. So such a host has, besides its network namespace,

    /run            its own tmpfs: docker.sock, docker/plugins, sluice/agent.sock, netns with the lab's own names
    /etc, /var/lib  the real ones with everything that is written on a tmpfs above them
    /var/lib/docker, /var/lib/containers    empty ones
    control groups  below that of whoever runs the lab
    pids            whose first process is this one: when it ends the kernel ends all others, containers too

and commands in it are those that a user of a real host types, without paths. Nothing of it is seen outside.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
FIRST = "first"                             # file with the pid of the first process, as the lab sees it
COPIED = ("/etc", "/var/lib")
EMPTY = ("/var/lib/docker", "/var/lib/containers", "/var/lib/containerd", "/var/lib/cni")
OWN = "own"                                 # control group of those that were not put anywhere else by a runtime

_CLONE_NEWCGROUP = 0x02000000

# Run before every command: the caller's own control group is outside of the machine, and so may its Docker be.
JOIN = (f'export DOCKER_HOST=unix:///run/docker.sock; for f in {CGROUPS}/{OWN} {CGROUPS}/*/{OWN}; do '
        '[ -d "$f" ] && echo 0 >"$f/cgroup.procs"; done; exec "$@"')


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted control group hierarchy."""

    mount: Path
    kind: str                               # cgroup, cgroup2
    options: str                            # to mount the same one again
    group: Path                             # group of this process


def enter(first: int, namespace: Path, command: Sequence[str]) -> list[str]:
    """A command as run in the machine whose first process is `first`."""
    return ["nsenter", f"--target={first}", "--mount", "--pid", "--cgroup", f"--net={namespace}", "--",
            "/bin/sh", "-c", JOIN, "sh", *command]


def hierarchies() -> list[Hierarchy]:
    """The hierarchies that are mounted here, and where in them we are."""
    return hierarchies_in(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())


def hierarchies_in(mounts: str, groups: str) -> list[Hierarchy]:
    """Those below /sys/fs/cgroup: of `mountinfo` and `cgroup` in proc(5)."""
    ours: dict[str, str] = {}
    for line in groups.splitlines():
        _, names, path = line.split(":", 2)
        ours[names] = path
    found = []
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3], Path(before.split()[4])
        kind, _, options = after.split()[:3]
        if kind not in ("cgroup", "cgroup2") or not mount.is_relative_to(CGROUPS):
            continue
        controllers = "" if kind == "cgroup2" else _controllers(options, ours)
        if controllers is None:
            continue
        group = mount / os.path.relpath(ours.get(controllers, "/"), root)
        again = f"none,{controllers}" if controllers.startswith("name=") else controllers
        found.append(Hierarchy(mount, kind, again, group))
    return found


def _controllers(options: str, ours: Mapping[str, str]) -> str | None:
    wanted = set(options.split(","))
    return next((names for names in ours if names and set(names.split(",")) <= wanted), None)


def groups_of(name: str) -> list[Path]:
    """The control groups of a machine, one of each hierarchy; to be remembered before they are made."""
    return [hierarchy.group / name for hierarchy in hierarchies()]


def remove_groups(groups: Iterable[Path], patience_s: float = 3) -> list[str]:
    """Remove control groups with all below them; returns those in which processes are left.

    A group is busy for a moment after its last process has ended.
    """
    deadline = time.monotonic() + patience_s
    stuck = [group for group in groups if group.exists()]
    while stuck:
        for directory in (path for group in stuck for path, _, _ in os.walk(group, topdown=False)):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
        stuck = [group for group in stuck if group.exists()]
        if time.monotonic() > deadline:
            break
        if stuck:
            time.sleep(0.05)
    return [str(group) for group in stuck]


def main() -> None:
    """Become a machine, and stay until a signal."""
    parser = argparse.ArgumentParser(prog="labs.machine", description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="of the machine and of its control groups")
    parser.add_argument("directory", type=Path, help="of the machine's files; it exists and is empty")
    parser.add_argument("--share", type=Path, action="append", default=[], help="directory of /run that stays")
    parser.add_argument("--netns", action="append", default=[], help="name in /run/netns that stays")
    parser.add_argument("--write", nargs=2, action="append", default=[], metavar=("FILE", "SOURCE"),
                        help="file of the machine, and where its content is")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _first(options)
    _join_groups(options.name)
    words = [sys.executable, "-m", "labs.machine", "--inside", *sys.argv[1:]]
    os.execvp("unshare", ["unshare", "--mount", "--propagation=slave", "--pid", "--fork", "--kill-child", "--", *words])


def _join_groups(name: str) -> None:
    """The machine's groups become the roots of a control group namespace, in which we are in `OWN`.

    A root with controllers for its children may have no processes in version 2.
    """
    made = [(hierarchy, hierarchy.group / name) for hierarchy in hierarchies()]
    for hierarchy, group in made:
        _make_group(hierarchy, group)
        _make_group(hierarchy, group / OWN)
        (group / "cgroup.procs").write_text("0")
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWCGROUP):
        sys.exit(f"no control group namespace: {os.strerror(ctypes.get_errno())}; a lab with container runtimes needs "
                 "root and a kernel with CONFIG_CGROUPS")
    for _, group in made:
        (group / OWN / "cgroup.procs").write_text("0")


def _make_group(hierarchy: Hierarchy, group: Path) -> None:
    group.mkdir()
    for file in ("cpuset.cpus", "cpuset.mems"):             # version 1 makes groups that nobody may join
        if hierarchy.kind == "cgroup" and (group / file).exists():
            (group / file).write_text((group.parent / file).read_text())


def _first(options: argparse.Namespace) -> None:
    """The machine's first process."""
    waited = {signal.SIGCHLD, signal.SIGTERM}
    signal.signal(signal.SIGTERM, lambda *_: None)          # the first process does not get what it ignores
    signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    outside = str(Path("/proc/self").readlink())                     # /proc is still the lab's
    _mount_files(options.directory, options.share, options.netns)
    _mount_groups()
    _mount("-t", "proc", "proc", "/proc")
    for file, source in options.write:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        content = Path(source).read_bytes()
        Path(file).write_bytes(content)
        Path(file).chmod(0o755 if content.startswith(b"#!") else 0o644)
    (options.directory / FIRST).write_text(outside)
    print("the machine is up", flush=True)
    while signal.sigwait(waited) != signal.SIGTERM:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:            # whose parents have ended
                pass


def _mount_files(directory: Path, shared: Sequence[Path], namespaces: Sequence[str]) -> None:
    disk, run = directory / "disk", directory / "run"
    for target in (disk, run):
        target.mkdir()
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(target))
    for path in COPIED:
        upper, work = (disk / part / path.strip("/").replace("/", "-") for part in ("upper", "work"))
        upper.mkdir(parents=True)
        work.mkdir(parents=True)
        _mount("-t", "overlay", "-o", f"lowerdir={path},upperdir={upper},workdir={work}", "overlay", path)
    for path in EMPTY:
        own = disk / path.strip("/").replace("/", "-")
        own.mkdir(mode=0o711)
        Path(path).mkdir(parents=True, exist_ok=True)
        _mount("--bind", str(own), path)
    for kept in shared:
        target = run / kept.relative_to("/run")
        target.mkdir(parents=True)
        _mount("--bind", str(kept), str(target))
    for name in ("netns", "lock", "sluice"):
        (run / name).mkdir()
    _mount("--bind", str(run / "netns"), str(run / "netns"))
    for name in namespaces:
        (run / "netns" / name).touch(mode=0o444)
        _mount("--bind", f"/run/netns/{name}", str(run / "netns" / name))
    (run / "shm").symlink_to("/dev/shm")
    # Namespaces of others, which must not live on because they are mounted here, too.
    subprocess.run(["umount", "-nlR", "/run/netns"], capture_output=True, check=False)
    _mount("--move", str(run), "/run")


def _mount_groups() -> None:
    """The hierarchies again, each from our own group on, which is the root of this control group namespace."""
    found = hierarchies()
    if any(hierarchy.mount != CGROUPS for hierarchy in found):
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(CGROUPS))
    for hierarchy in found:
        hierarchy.mount.mkdir(exist_ok=True)
        options = ("-o", hierarchy.options) if hierarchy.kind == "cgroup" else ()
        _mount("-t", hierarchy.kind, *options, "cgroup", str(hierarchy.mount))


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", "-n", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"`mount {' '.join(words)}` failed: {done.stderr.strip()}; a lab with container runtimes needs "
                 "root, tmpfs and overlay file systems")


if __name__ == "__main__":
    main()
