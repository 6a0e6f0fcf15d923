"""A real Docker bridge network: a dockerd of our own in its own namespaces, with two containers that only sleep."""

from __future__ import annotations

import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

from bench.measure import Pair
from bench.processes import CommandFailed, run
from bench.rules import USUAL, docker_user, use_iptables
from bench.site import ENDPOINTS, Site, peer_of, remove_cgroups

__all__ = ["IMAGE", "daemon", "docker_same_host"]

_NETWORK, IMAGE = "bench", "bench:1"
_START_S = 20.0
# Debian's, of dockerd's version, before a newer one on the path.
_CLIENT = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
# Another /run, so that it finds these plug-ins alone. What is mounted below the old one would live as long as this.
_ROOM = """awk '$2 ~ "^/run/" {{print $2}}' /proc/self/mounts | sort -ru | xargs -r umount -nl
mount -t tmpfs tmpfs /run && mkdir -p /run/docker/plugins && mount --bind {plugins} /run/docker/plugins && exec "$@" """
_BUSYBOX = Path("/usr/bin/busybox")         # must be static: it is all there is in the image


def docker_same_host(site: Site, rules: int = USUAL) -> Pair:
    """Two containers on a user-defined bridge network, and the rules in DOCKER-USER.

    Raises:
        CommandFailed: a package is missing, or dockerd does not start here.
    """
    host = site.namespace("h1")
    docker = daemon(site, host)
    docker("network", "create", "--subnet", "10.9.0.0/24", "--gateway", "10.9.0.254",
           "-o", "com.docker.network.bridge.name=br0", _NETWORK)
    endpoints = []
    for number, part in enumerate(("e0", "e1")):
        docker("run", "--detach", "--name", part, "--network", _NETWORK, "--ip", ENDPOINTS[number], IMAGE,
               "/busybox", "sleep", "1000000")
        process = int(docker("inspect", "--format", "{{.State.Pid}}", part))
        endpoints.append(site.adopt(part, process))
    site.stack.callback(docker, "rm", "--force", "e0", "e1")
    use_iptables(host, docker_user(rules), "--noflush")
    return Pair(endpoints[0], endpoints[1], ENDPOINTS[1], (host, peer_of(endpoints[0], host)))


def daemon(site: Site, host: str, plugins: Path | None = None) -> partial[str]:
    """dockerd, with a mount namespace of its own so that no mount of it outlives it; returns its client.

    `plugins` is what it finds at /run/docker/plugins.

    Raises:
        CommandFailed: a package is missing, or dockerd does not start here.
    """
    for program in ("dockerd", _CLIENT):
        if shutil.which(program) is None:
            raise CommandFailed(f"{program} is not installed: apt-get install docker.io")
    if not _BUSYBOX.exists() or _is_dynamic(_BUSYBOX):
        raise CommandFailed(f"{_BUSYBOX} is missing or not static: apt-get install busybox-static")
    folder = site.folder()
    room = ("sh", "-c", _ROOM.format(plugins=plugins), "sh") if plugins else ()
    site.stack.callback(remove_cgroups, folder.name)
    log, socket = folder / "log", f"unix://{folder}/socket"
    site.daemon(
        host, "unshare", "--mount", *room, "dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec",
        "--pidfile", f"{folder}/pid", "--host", socket, "--storage-driver", "vfs", "--bridge", "none",
        "--userland-proxy=false", "--cgroup-parent", f"/{folder.name}", log=log,
    )
    docker = partial(run, _CLIENT, "--host", socket)
    deadline = time.monotonic() + _START_S
    while True:
        try:
            docker("version")
            break
        except CommandFailed as error:
            if time.monotonic() > deadline:
                raise CommandFailed(f"dockerd does not answer: {_tail(log)}") from error
            time.sleep(0.1)
    tar = subprocess.run(
        ["tar", "-C", str(_BUSYBOX.parent), "-c", _BUSYBOX.name], capture_output=True, check=True
    ).stdout
    subprocess.run([_CLIENT, "--host", socket, "import", "-", IMAGE], input=tar, capture_output=True, check=True)
    return docker


def _is_dynamic(program: Path) -> bool:
    """Whether its ELF header names a loader."""
    with program.open("rb") as raw:
        return b"/ld-" in raw.read(4096)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-500:]
