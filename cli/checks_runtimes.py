"""What `sluice doctor` asks about container runtimes: whether those that are here find Sluice. Nothing is started."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cli.findings import TRY_S, Finding

DOCKER_PLUGINS = Path("/run/docker/plugins")
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
NETAVARK = (Path("/usr/lib/podman/netavark"), Path("/usr/libexec/podman/netavark"))
NETAVARK_FOLDERS = (Path("/usr/local/libexec/netavark"), Path("/usr/libexec/netavark"), Path("/usr/lib/netavark"))
_NONE = "Podman and containerd cannot be given Sluice's networks"


def runtime_findings() -> Iterator[Finding]:
    """Every check of this page."""
    answers = agent()
    yield answers
    yield docker(shutil.which("dockerd"), answers.state == "ok", DOCKER_PLUGINS)
    netavark = next((path for path in NETAVARK if path.exists()), None)
    yield cni([name for name in ("podman", "containerd", "crio") if shutil.which(name)], CNI_FOLDERS)
    if netavark is not None:
        yield podman(netavark, NETAVARK_FOLDERS)


def agent() -> Finding:
    """The local socket that plug-ins ask."""
    from runtimes.local import LocalError, call

    name = "local socket"
    try:
        hello = call("hello", deadline_s=TRY_S)
    except LocalError as error:
        return Finding(name, "absent", error.found or error.message, "container runtimes get no networks here",
                       error.todo)
    return Finding(name, "ok", f"agent of {hello['host']}, controller {hello['controller']}")


def docker(daemon: str | None, agent_runs: bool, plugins: Path) -> Finding:
    """Docker looks for drivers by name in a folder of sockets, which the agent fills."""
    name = "docker"
    if daemon is None:
        return Finding(name, "ok", "no dockerd here")
    try:
        sockets = sorted(path.stem for path in plugins.glob("*.sock"))
    except PermissionError:
        return Finding(name, "unknown", f"{daemon}; {plugins} cannot be looked at without privileges", "",
                       "run sudo sluice doctor")
    if "sluice" in sockets:
        return Finding(name, "ok", f"{daemon} finds drivers {', '.join(sockets)}")
    todo = "start the agent with --docker " + str(plugins) if agent_runs else "start the agent"
    return Finding(name, "absent", f"{daemon}, and no sluice.sock in {plugins}",
                   "`docker network create -d nat` and the like fail", todo)


def cni(runtimes: Sequence[str], folders: Sequence[Path]) -> Finding:
    """CNI runtimes look for a program by name in folders."""
    name = "cni plug-in"
    there = [folder for folder in folders if folder.is_dir()]
    found = [folder / "sluice-cni" for folder in there if (folder / "sluice-cni").exists()]
    if found:
        return Finding(name, "ok", ", ".join(map(str, found)))
    if not runtimes:
        return Finding(name, "ok", "no podman, containerd or cri-o here")
    where = there[0] if there else folders[1]
    return Finding(name, "absent", f"{', '.join(runtimes)}, and no sluice-cni in {' or '.join(map(str, folders))}",
                   _NONE, f"sluice-cni install {where}")


def podman(netavark: Path, folders: Sequence[Path]) -> Finding:
    """A Podman with netavark asks its plug-ins, not CNI's."""
    name = "netavark plug-in"
    found = [folder / "sluice" for folder in folders if (folder / "sluice").exists()]
    if found:
        return Finding(name, "ok", ", ".join(map(str, found)))
    return Finding(name, "absent", f"{netavark}, and no sluice in {' or '.join(map(str, folders))}",
                   "a Podman with netavark cannot be given Sluice's networks", f"sluice-netavark install {folders[0]}")
