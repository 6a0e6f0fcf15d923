"""A host for real CNI runtimes: a machine of its own (`labs.machine`), with Sluice in it and a LAN beside it.

    the LAN (172.16.7.1) ── lan0 ── the host (172.16.7.10): controller, agent, podman, containerd, plug-ins in /run/lab

All that runs there ends with the machine's first process. Nothing is seen of the real machine's containers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from controller.client import Client, ClientError
from labs import images, machine
from labs.schema import Image
from runtimes.cni.install import install

PROGRAMS, REFERENCE = Path("/run/lab"), Path("/usr/lib/cni")
SOCKET, SOUTHBOUND = "/run/sluice/agent.sock", "127.0.0.1:7443"
LIMITS = ("flows=8192", "rules=8192", "ports=256", "bindings=8192")
IMAGE = "busybox:local"
CAPABILITIES = dict.fromkeys(("portMappings", "bandwidth", "ips", "mac", "ipRanges", "dns", "aliases"), True)
NEEDED = {"podman": "podman", "crun": "crun", "containerd": "containerd", "ctr": "containerd", "runc": "runc",
          "/usr/lib/cni/bridge": "containernetworking-plugins", "/bin/busybox": "busybox-static"}
START_S = 90.0                              # a machine with much to do loads the engine slowly
_CONTAINERS = """\
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/run/lab", "/usr/lib/cni"]
network_config_dir = "/etc/cni/net.d"
"""
_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
"""


def need(*programs: str) -> None:
    """Fail, with how to install, if a program is not there."""
    for program in programs:
        assert shutil.which(program), f"{program} is not installed: apt-get install {NEEDED[program]}"


def plugin(**more: Any) -> dict[str, Any]:
    """Configuration of `sluice-cni`, as one of a list."""
    return {"type": "sluice-cni", "capabilities": CAPABILITIES, **more}


def conflist(name: str, *plugins: Mapping[str, Any], version: str = "1.0.0") -> str:
    """A configuration list as a person writes it."""
    return json.dumps({"cniVersion": version, "name": name, "plugins": plugins})


def eventually(true: Callable[[], Any], what: str | Callable[[], str], limit_s: float = 15.0) -> Any:
    """What `true` returns, as soon as that is something."""
    deadline = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what() if callable(what) else what}"
        time.sleep(0.05)
    return found


class Stage:
    """A context manager that removes all it made. `files`: more of the machine's, by path."""

    def __init__(self, files: Mapping[str, str] | None = None) -> None:
        self.name = f"k1{os.getpid()}"
        self.host, self.lan = f"{self.name}-h", f"{self.name}-lan"
        self.pins = Path("/sys/fs/bpf") / f"sluice-{self.name}"
        self._files = {"/etc/containers/containers.conf": _CONTAINERS, "/etc/containers/storage.conf": _STORAGE,
                       **(files or {})}
        self._stack = ExitStack()
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Stage:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _build(self) -> None:
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None      # a kill asks nothing of a disk
        self.folder = Path(self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix=f"{self.name}-", dir=memory, ignore_cleanup_errors=True)))
        self._stack.callback(shutil.rmtree, self.pins, ignore_errors=True)
        for name in (self.host, self.lan):
            self.namespace(name)
        batch = (f"-n {self.host} link add lan0 type veth peer name lan0 netns {self.lan}",
                 f"-n {self.host} address add 172.16.7.10/24 dev lan0", f"-n {self.host} link set lan0 up",
                 f"-n {self.lan} address add 172.16.7.1/24 dev lan0", f"-n {self.lan} link set lan0 up",
                 f"-n {self.host} route add default via 172.16.7.1")
        for line in batch:
            subprocess.run(["ip", *line.split()], check=True)
        self._start_machine()
        launcher = self.folder / "programs"
        launcher.mkdir()
        install(launcher)
        self("cp", "-r", str(launcher), str(PROGRAMS))
        images.pack(Image(), self.folder / "image.tar")
        self.start()

    def _start_machine(self) -> None:
        folder = self.folder / "machine"
        folder.mkdir()
        words = []
        for number, (path, text) in enumerate(self._files.items()):
            source = self.folder / f"file{number}"
            source.write_text(text)
            words += ["--write", path, str(source)]
        groups = machine.groups_of(self.name)
        self._stack.callback(machine.remove_groups, groups)
        log = (self.folder / "machine.log").open("ab")
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.host}", sys.executable, "-m", "labs.machine", self.name, str(folder),
             "--netns", self.host, *words], stdout=log, stderr=log)
        log.close()
        self._daemons.append(process)
        self._stack.callback(self._end)
        first = folder / machine.FIRST
        eventually(lambda: first.exists() and first.read_text(), (self.folder / "machine.log").read_text, START_S)
        self._first = int(first.read_text())

    def _end(self) -> None:
        """The machine first: all others are in it."""
        self._daemons[0].kill()
        for process in self._daemons:
            process.wait(20)

    # Processes of the machine

    def enter(self, *command: str) -> list[str]:
        """A command as run there."""
        return machine.enter(self._first, Path(f"/run/netns/{self.host}"), command)

    def run(self, *command: str, data: str | None = None) -> subprocess.CompletedProcess[str]:
        """What a command there says, and its status."""
        return subprocess.run(self.enter(*command), input=data, capture_output=True, text=True, timeout=60, check=False)

    def __call__(self, *command: str, data: str | None = None) -> str:
        """What a command there prints; it must not fail."""
        done = self.run(*command, data=data)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}\n{self.told()}"
        return done.stdout.strip()

    def refused(self, *command: str) -> str:
        """What a command there says when it fails, as it must."""
        done = self.run(*command)
        assert done.returncode, f"{' '.join(command)} was to be refused, and said {done.stdout!r}"
        return done.stdout + done.stderr

    def daemon(self, *command: str) -> subprocess.Popen[bytes]:
        """A process that ends with the machine."""
        with (self.folder / "daemons.log").open("ab") as log:
            process = subprocess.Popen(self.enter(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._daemons.append(process)
        return process

    # Sluice

    @property
    def api(self) -> str:
        """Of the controller."""
        return f"unix:{self.folder}/api.sock"

    def start(self) -> None:
        """Controller and agent, from nothing."""
        self.start_controller()
        self.apply({"kind": "Host", "metadata": {"name": "h1"}})
        with Client(self.api) as client:
            token = client.create_token("h1")
        self(sys.executable, "-m", "cli.main", "join", "--controller", SOUTHBOUND, "--token", token, "--name", "h1",
             "--state", f"{self.folder}/agent")
        self.start_agent()

    def start_controller(self) -> None:
        """Until it answers."""
        self.sluice("controller", "run", "--state", f"{self.folder}/controller", "--api", self.api,
                    "--southbound", SOUTHBOUND)
        eventually(self._healthy, self.told, START_S)

    def start_agent(self) -> None:
        """Until the controller knows it and its socket answers."""
        self.sluice("agent", "run", "--state", f"{self.folder}/agent", "--pin-dir", str(self.pins), "--socket", SOCKET,
                    "--docker", "none", *(word for limit in LIMITS for word in ("--limit", limit)))
        eventually(self._connected, self.told, START_S)

    def kill(self, which: str) -> None:
        """kill -9 of `agent` or `controller`."""
        self("sh", "-c", f"kill -9 $(cat {self.folder}/pid-{which})")

    def sluice(self, *words: str) -> None:
        """A daemon of ours, its pid there in `pid-WORD`."""
        self.daemon("sh", "-c", f'echo $$ > {self.folder}/pid-{words[0]}; exec "$@"', "sh", sys.executable, "-m",
                    "cli.main", *words)

    def _healthy(self) -> bool:
        with suppress(ClientError), Client(self.api) as client:
            client.health()
            return True
        return False

    def _connected(self) -> bool:
        with suppress(ClientError), Client(self.api) as client:
            status = client.get("Host", "h1").get("status") or {}
            return bool(status.get("connected")) and self.run("test", "-S", SOCKET).returncode == 0
        return False

    def told(self) -> str:
        """The end of what the daemons said."""
        path = self.folder / "daemons.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def apply(self, *documents: Mapping[str, Any]) -> None:
        """Declare, and wait until it is in the kernel."""
        with Client(self.api) as client:
            done = client.apply([{"apiVersion": "sluice/v1", **document} for document in documents], wait_s=20)
        assert not done.pending, done.pending

    def network(self, name: str, mode: str, *prefixes: str) -> None:
        """A network."""
        self.apply({"kind": "Network", "metadata": {"name": name},
                    "spec": {"mode": mode, **({"host": "h1"} if mode == "nat" else {}),
                             "subnets": [{"prefix": prefix} for prefix in prefixes]}})

    def list(self, kind: str) -> dict[str, dict[str, Any]]:
        """All of a kind, by name."""
        with Client(self.api) as client:
            return {found["metadata"]["name"]: found for found in client.list(kind)}

    def links(self) -> set[str]:
        """Links of endpoints on the host."""
        found = json.loads(subprocess.run(["ip", "-j", "-n", self.host, "link", "show"], check=True,
                                          capture_output=True, text=True).stdout)
        return {link["ifname"] for link in found if link["ifname"].startswith(("slp", "slc"))}

    # Namespaces

    def namespace(self, name: str) -> str:
        """A new one, with loopback up; its path."""
        subprocess.run(["ip", "netns", "add", name], check=True)
        self._stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        return f"/run/netns/{name}"

    def podman(self, *words: str) -> str:
        """What podman prints."""
        return self("podman", *words)


def world(netns: str, *command: str) -> str:
    """What a program prints in a namespace of the real machine."""
    done = subprocess.run(["nsenter", f"--net=/run/netns/{netns}", *command], capture_output=True, text=True,
                          timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


__all__ = ["IMAGE", "PROGRAMS", "REFERENCE", "SOCKET", "Stage", "conflist", "eventually", "need", "plugin", "world"]
