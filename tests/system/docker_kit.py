"""A real dockerd, away from the machine's own: in a host's network namespace, with mounts, processes, data of its own.

    docker = Docker("d2-h1", folder)            # the network namespace is there already
    docker.start()
    docker("run", "-d", "--name", "web", IMAGE, *httpd("web"))
    docker.close()

Around dockerd are process and mount namespaces that stay while it is killed and started again, as a host does. /run is
another one there, so that neither the machine's plug-ins nor its containerd are seen; `plugins` is its
/run/docker/plugins. All that it started, containers too, dies with the first process in there, and that one with the
thread that called `start` first.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

IMAGE = "busybox:local"
START_S = 40.0
COMMAND_S = 60.0
# Debian's, of dockerd's version, before a newer one on the path, which asks for what this dockerd does not have.
CLIENT = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
_BUSYBOX = Path("/bin/busybox")
_CGROUPS = Path("/sys/fs/cgroup")
_NEEDED = {"dockerd": "docker.io", "docker": "docker.io", "busybox": "busybox-static", "nsenter": "util-linux"}


class Refused(AssertionError):
    """A command of Docker's client failed; the text is what it said."""


def need(*programs: str, packages: Mapping[str, str] = _NEEDED) -> None:
    """Fail, with how to install, if a program is not there."""
    for program in programs or tuple(_NEEDED):
        assert shutil.which(program), f"{program} is not installed: apt-get install {packages.get(program, program)}"
    assert b"/ld-" not in _BUSYBOX.read_bytes()[:4096], f"{_BUSYBOX} is not static: apt-get install busybox-static"


def httpd(text: str, port: int = 80) -> tuple[str, ...]:
    """The command of a container that answers every GET of / with `text`."""
    return ("sh", "-c", f"mkdir -p /www && echo '{text}' > /www/index.html && exec httpd -f -p {port} -h /www")


def image() -> bytes:
    """A tar of busybox with all its applets."""
    need("busybox")
    applets = subprocess.run([_BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for folder in ("bin", "etc", "tmp", "var", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(_BUSYBOX, "bin/busybox")
        for applet in applets:
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
        for path, text in (("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"), ("etc/group", "root:x:0:\n")):
            entry = tarfile.TarInfo(path)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


class Docker:
    """dockerd in network namespace `netns`. Calling it runs Docker's client and returns what that prints.

    `plugins`: a folder of sockets. `bridge`: with Docker's own bridge driver and its iptables rules. `options`: more
    words for dockerd, as `--live-restore`.
    """

    def __init__(self, netns: str, folder: Path, plugins: Path | None = None, *, bridge: bool = False,
                 options: Sequence[str] = ()) -> None:
        self.netns, self.folder, self.options = netns, folder, tuple(options)
        self.plugins = plugins or folder / "plugins"
        self.log = folder / "dockerd.log"
        self.socket = f"unix://{folder}/docker.sock"
        self._bridge = bridge
        self._room: subprocess.Popen[bytes] | None = None       # holds the namespaces
        self._daemon: subprocess.Popen[bytes] | None = None

    # The daemon

    def start(self, wait: bool = True) -> None:
        """Start dockerd, with an image called `IMAGE` in it."""
        need()
        self.plugins.mkdir(parents=True, exist_ok=True)
        if self._room is None:
            self._open()
        networks = ("--userland-proxy=false",) if self._bridge else ("--iptables=false", "--bridge=none")
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(
                [*self._inside(), "dockerd", "--data-root", f"{self.folder}/data", "--exec-root", "/run/docker",
                 "--pidfile", "/run/dockerd.pid", "--host", self.socket, "--storage-driver", "vfs",
                 "--cgroup-parent", f"/{self.cgroup}", "--log-level", "warn", *networks, *self.options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers."""
        assert self._daemon is not None
        deadline = time.monotonic() + START_S
        while True:
            with suppress(Refused):
                if self("images", "--quiet") == "":
                    self("import", "-", IMAGE, data=image())
                return
            assert self._daemon.poll() is None, f"dockerd ended:\n{self.told()}"
            assert time.monotonic() < deadline, f"dockerd does not answer after {START_S:g} s:\n{self.told()}"
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9 of dockerd; containerd and the containers go on."""
        assert self._daemon is not None
        for pid in self._all("dockerd"):
            os.kill(pid, signal.SIGKILL)
        self._daemon.wait(10)

    def stop(self) -> None:
        """SIGTERM, and the end of dockerd."""
        assert self._daemon is not None
        for pid in self._all("dockerd"):
            os.kill(pid, signal.SIGTERM)
        self._daemon.wait(START_S)

    def crash(self) -> None:
        """All that runs is gone at once, as when the host loses its power. What is on disk stays."""
        if self._room is not None:
            self._room.kill()
            self._room.wait(10)
            self._room = None
        if self._daemon is not None:
            self._daemon.wait(10)
            self._daemon = None

    def close(self) -> None:
        """End everything, and remove what it left."""
        self.crash()
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in (*_CGROUPS.glob(f"*/{self.cgroup}"), *_CGROUPS.glob(self.cgroup)):
            for each in (*sorted(path.glob("**/"), reverse=True), path):
                with suppress(OSError):
                    each.rmdir()

    @property
    def cgroup(self) -> str:
        """Its containers' control group."""
        return f"sluice-{self.netns}"

    def told(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    # Its client

    def __call__(self, *words: str, data: bytes | None = None, limit_s: float = COMMAND_S) -> str:
        """What `docker WORDS` prints.

        Raises:
            Refused: it failed.
        """
        done = subprocess.run([CLIENT, "--host", self.socket, *words], input=data, capture_output=True,
                              timeout=limit_s, check=False)
        if done.returncode:
            raise Refused(f"docker {' '.join(words)}: {(done.stderr or done.stdout).decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace").strip()

    def refused(self, *words: str) -> str:
        """What `docker WORDS` says when it fails, as it must."""
        try:
            told = self(*words)
        except Refused as refusal:
            return str(refusal)
        raise AssertionError(f"docker {' '.join(words)} was to be refused, and said {told!r}")

    def run(self, name: str, *words: str, command: Sequence[str] = ("sleep", "1000000")) -> str:
        """A container in the background, from `IMAGE`, that ends at once when it is told to; its id."""
        return self("run", "--detach", "--init", "--name", name, *words, IMAGE, *command)

    def inspect(self, name: str) -> dict[str, Any]:
        """What Docker knows of a container or a network."""
        (found,) = json.loads(self("inspect", name))
        assert isinstance(found, dict)
        return found

    def networks(self, container: str) -> dict[str, dict[str, Any]]:
        """The container's networks, by name: IPAddress, GlobalIPv6Address, MacAddress, Gateway, ..."""
        found = self.inspect(container)["NetworkSettings"]["Networks"]
        assert isinstance(found, dict)
        return found

    def address(self, container: str, network: str) -> str:
        """The container's IPv4 address there."""
        return str(self.networks(container)[network]["IPAddress"])

    def ports(self, container: str) -> dict[str, list[tuple[str, int]]]:
        """What is published, by inner port as `80/tcp`: outer addresses and ports."""
        found = self.inspect(container)["NetworkSettings"]["Ports"]
        return {inner: [(each["HostIp"], int(each["HostPort"])) for each in outer or ()]
                for inner, outer in found.items()}

    def names(self, *, all: bool = False) -> set[str]:
        """Of the containers that run, or of all."""
        return set(self("ps", "--format", "{{.Names}}", *(("--all",) if all else ())).split())

    def exec(self, container: str, *command: str) -> str:
        """What a command prints inside a container."""
        return self("exec", container, *command)

    def remove(self, *containers: str) -> None:
        """Remove containers, running or not."""
        if containers:
            self("rm", "--force", "--volumes", *containers)

    def clean(self) -> None:
        """Remove all containers and all networks that were made."""
        self.remove(*self("ps", "--all", "--quiet").split())
        networks = self("network", "ls", "--quiet", "--filter", "type=custom").split()
        if networks:
            self("network", "rm", *networks)

    # What it runs, from outside

    @contextmanager
    def beside(self, container: str, *command: str) -> Iterator[None]:
        """A program of the machine in the container's network namespace, for as long as the block runs."""
        process = subprocess.Popen(["nsenter", f"--net=/proc/{self.pid(container)}/ns/net", *command],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   start_new_session=True)
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)      # a server has a process for each who asked
            process.wait()

    def pid(self, container: str) -> int:
        """The container's first process, as the machine numbers it."""
        inner = int(self("inspect", "--format", "{{.State.Pid}}", container))
        found = self._numbers().get(inner)
        assert found is not None, f"{container} does not run"
        return found

    def inside(self, container: str, *command: str) -> str:
        """What a program of the machine prints in the container's network namespace.

        Raises:
            Refused: it failed.
        """
        done = subprocess.run(["nsenter", f"--net=/proc/{self.pid(container)}/ns/net", *command], capture_output=True,
                              text=True, timeout=COMMAND_S, check=False)
        if done.returncode:
            raise Refused(f"{container}: {' '.join(command)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout.strip()

    def _open(self) -> None:
        """Mount and process namespaces that outlive dockerd, for as long as we live."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        # What is mounted below /run, as everybody's network namespaces, would live as long as this does. The first
        # process reaps what nobody waits for, as dockerd's children after a kill.
        script = ("awk '$2 ~ \"^/run/\" {print $2}' /proc/self/mounts | sort -ru | xargs -r umount -nl; "
                  "mount -t tmpfs tmpfs /run && mkdir -p /run/docker/plugins /run/lock && "
                  f"mount --bind {self.plugins} /run/docker/plugins && touch {ready} && "
                  "exec busybox sh -c 'trap : CHLD; while :; do busybox sleep 1000000 & wait; done'")
        with self.log.open("ab") as log:
            self._room = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/run/netns/{self.netns}", "unshare", "--mount",
                 "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child=KILL",
                 "sh", "-c", script],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not ready.exists():
            assert self._room.poll() is None, f"no namespaces for dockerd:\n{self.told()}"
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.005)

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._first()}", "--mount", "--pid", "--net", "--"]

    def _all(self, program: str) -> list[int]:
        """Processes of that name in there."""
        found = []
        for pid in self._numbers().values():
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == program:
                    found.append(pid)
        return found

    def _numbers(self) -> dict[int, int]:
        """Processes in there, and first processes of containers: their number inside to the machine's."""
        first = self._first()
        there, depth = Path(f"/proc/{first}/ns/pid").stat().st_ino, len(_status(first, "NSpid")) - 1
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with suppress(OSError):
                    pid = int(folder.name)
                    inner, (parent,) = _status(pid, "NSpid"), _status(pid, "PPid")
                    if len(inner) > depth and there in (_pid_namespace(pid), _pid_namespace(parent)):
                        found[inner[depth]] = pid
        return found

    def _first(self) -> int:
        """The process that holds the namespaces."""
        assert self._room is not None
        return int(Path(f"/proc/{self._room.pid}/task/{self._room.pid}/children").read_text().split()[0])


def _status(pid: int, field: str) -> list[int]:
    """Numbers in a line of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [int(word) for word in next(line for line in lines if line.startswith(f"{field}:")).split()[1:]]


def _pid_namespace(pid: int) -> int:
    return Path(f"/proc/{pid}/ns/pid").stat().st_ino if pid else 0
