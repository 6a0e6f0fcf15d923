"""Container runtimes of a lab's hosts: their machines, dockerd, what podman needs, and the images of both."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from labs import images, machine, processes
from labs.cross import actions, first_word
from labs.errors import LabError, StepFailed
from labs.journal import Identity
from labs.processes import Spec
from labs.schema import Docker, Lab, Node, Ready, Run
from labs.site import Site
from labs.steps import side_by_side
from runtimes.cni.install import install

CNI = Path("/usr/lib/cni")
NEEDED = {"docker": {"dockerd": "docker.io", "docker": "docker.io"},
          "podman": {"podman": "podman", "crun": "crun", f"{CNI}/bridge": "containernetworking-plugins"}}
CLIENTS = {"docker-compose": "docker-compose"}

CONTAINERS_CONF = """\
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[network]
network_backend = "cni"
cni_plugin_dirs = {programs}
network_config_dir = "/etc/cni/net.d"
"""
STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
"""


def machines(lab: Lab) -> dict[str, Node]:
    """Nodes with container runtimes, by name."""
    return {name: node for name, node in lab.nodes.items() if node.runtimes is not None}


def groups(lab: Lab) -> list[str]:
    """Control groups of the lab's machines."""
    return [str(group) for name in machines(lab) for group in machine.groups_of(_group(lab, name))]


def _group(lab: Lab, name: str) -> str:
    return f"sluice-lab-{lab.name}-{name}"


async def start_machines(site: Site) -> None:
    """Make the machines; from then on whatever runs in such a node runs in its machine.

    Raises:
        LabError: a program is missing; with the package that has it.
    """
    _look_for_programs(site.lab)
    await side_by_side([_start_machine(site, name, node) for name, node in machines(site.lab).items()])


def _look_for_programs(lab: Lab) -> None:
    wanted = {program: package for node in machines(lab).values() for runtime, programs in NEEDED.items()
              if getattr(node.runtimes, runtime) is not None for program, package in programs.items()}
    wanted |= {program: package for program, package in CLIENTS.items()
               for _, action in actions(lab) if isinstance(action, Run) and first_word(action.run) == program}
    missing = [program for program in wanted if shutil.which(program) is None]
    if missing:
        raise LabError(f"the lab needs {', '.join(missing)}; "
                       f"`apt-get install {' '.join(sorted({wanted[program] for program in missing}))}`")


async def _start_machine(site: Site, name: str, node: Node) -> None:
    directory = site.journal.directory / "machines" / name
    programs = directory / "programs"
    programs.mkdir(parents=True)
    install(programs)
    namespace = f"{site.lab.name}-{name}"
    files = _files(node, programs)
    words = [sys.executable, "-m", "labs.machine", _group(site.lab, name), str(directory),
             f"--share={site.journal.directory}"]
    words += [f"--netns={one}" for one in site.journal.namespaces]
    for number, (path, content) in enumerate(files.items()):
        source = directory / f"file-{number}"
        source.write_text(content, encoding="utf-8")
        words += ["--write", path, str(source)]
    await site.processes.start(Spec(f"machine/{name}", tuple(words), namespace, Ready(log="the machine is up")))
    pid = int((directory / machine.FIRST).read_text())
    start = processes.started_at(pid)
    if start is None:
        raise StepFailed(f"the machine of {name} ended at once", site.processes.output(f"machine/{name}"))
    site.journal.machines[namespace] = Identity(f"machine/{name}", pid, start)
    site.journal.save()


def _files(node: Node, programs: Path) -> dict[str, str]:
    """What is written into a machine before anything runs there."""
    found = {"/etc/docker/daemon.json": "{}\n"}
    if node.runtimes is not None and node.runtimes.podman is not None:
        found["/etc/containers/containers.conf"] = CONTAINERS_CONF.format(
            programs=json.dumps([str(programs), str(CNI)]))
        found["/etc/containers/storage.conf"] = STORAGE_CONF
    return found | node.files


async def start(site: Site) -> None:
    """Start the daemons, and give every runtime the lab's images."""
    if not machines(site.lab):
        return
    folder = site.work / "images"
    folder.mkdir()
    for name, image in site.lab.images.items():
        await asyncio.to_thread(images.pack, image, folder / f"{name}.tar")
    jobs = []
    for name, node in machines(site.lab).items():
        if node.runtimes is not None and node.runtimes.docker is not None:
            jobs.append(_start_docker(site, name, node.runtimes.docker))
        if node.runtimes is not None and node.runtimes.podman is not None:
            jobs.append(_import(site, name, "podman"))
    await side_by_side(jobs)


async def _start_docker(site: Site, name: str, docker: Docker) -> None:
    if f"{site.lab.name}-{name}" not in site.journal.machines:
        raise LabError(f"{name} is no machine of its own; dockerd would touch the real one's files")
    await site.processes.start(Spec(
        f"docker/{name}", ("dockerd", *options(docker)), f"{site.lab.name}-{name}",
        Ready(log="API listen on", timeout_s=40)))
    await _import(site, name, "docker")


def options(docker: Docker) -> Sequence[str]:
    """How dockerd is started. Everything of it is in its machine; the paths are said so that nothing else decides."""
    own = () if docker.bridge else ("--bridge=none", "--iptables=false")
    return ("--host=unix:///run/docker.sock", "--data-root=/var/lib/docker", "--exec-root=/run/docker",
            "--pidfile=/run/docker.pid", "--config-file=/etc/docker/daemon.json", "--userland-proxy=false",
            "--exec-opt=native.cgroupdriver=cgroupfs", *own, *docker.options)


async def _import(site: Site, name: str, client: str) -> None:
    for image, what in site.lab.images.items():
        changes = [f"ENTRYPOINT {json.dumps([images.FIRST])}", f"CMD {json.dumps(what.command)}",
                   *(f"EXPOSE {n}" for n in what.expose)]
        outcome = await site.processes.run(
            [client, "import", *(f"--change={change}" for change in changes),
             str(site.work / "images" / f"{image}.tar"), image], f"{site.lab.name}-{name}", timeout_s=60)
        if outcome.exit:
            raise StepFailed(f"{client} on {name} did not take image {image}", outcome.shown())
