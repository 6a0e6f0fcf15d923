"""The controller and the agents of a lab: real processes, enrolled as on real hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import yaml

from labs.errors import LabError, StepFailed
from labs.processes import Spec
from labs.schema import WAIT_S, Lab, Node, Ready
from labs.site import Site, sluice

SOUTHBOUND_PORT = 7443
CONNECT_S = 40
LIMITS = ("flows=65536", "bindings=65536")  # of each host: a lab has many hosts and one machine's memory


def pin_directory(lab: Lab, host: str) -> str:
    """Where the agent of a host pins its maps and programs."""
    return f"/sys/fs/bpf/sluice-{lab.name}-{host}"


def hosts(lab: Lab) -> list[str]:
    """Nodes with an agent."""
    return [name for name, node in lab.nodes.items() if node.hosts]


def controller(lab: Lab) -> str | None:
    """The node where the controller runs."""
    return next((name for name, node in lab.nodes.items() if node.controls), None)


async def start_controller(site: Site, node: str) -> None:
    """Start the controller; it listens for agents on the node's first address, for us on a unix socket."""
    address = _address(node, site.lab.nodes[node])
    state = site.journal.directory / "controller"
    await site.processes.start(Spec(
        "controller",
        (*sluice(), "controller", "run", "--state", str(state), "--api", site.journal.api,
         "--southbound", f"{address}:{SOUTHBOUND_PORT}", "--name", address),
        namespace=f"{site.lab.name}-{node}",
        ready=Ready(tcp=(SOUTHBOUND_PORT,)),
    ))
    socket = site.journal.directory / "api.sock"
    for _ in range(500):
        if socket.exists():
            return
        await asyncio.sleep(0.02)
    raise StepFailed(f"the controller did not open {socket}", site.processes.output("controller"))


async def start_agent(site: Site, host: str, controller_node: str) -> None:
    """Enrol a host with a token and start its agent."""
    address = _address(controller_node, site.lab.nodes[controller_node])
    state = site.journal.directory / "agents" / host
    state.mkdir(parents=True)
    namespace = f"{site.lab.name}-{host}"
    token = (await site.sluice("token", "create", host)).stdout.strip()
    join = [*sluice(), "join", "--controller", f"{address}:{SOUTHBOUND_PORT}", "--token", token,
            "--name", host, "--state", str(state)]
    joined = await site.processes.run(join, namespace)
    if joined.exit:
        raise StepFailed(f"host {host} could not join", joined.shown())
    # A machine of its own has the usual sockets; the other hosts would all have the same. A step that starts the agent
    # again waits for the socket, as runtimes ask at once.
    runtimes = site.lab.nodes[host].runtimes is not None
    sockets = () if runtimes else ("--socket", str(state / "agent.sock"), "--docker", "none")
    await site.processes.start(Spec(
        f"agent/{host}",
        (*sluice(), "agent", "run", "--state", str(state), "--pin-dir", pin_directory(site.lab, host),
         "--name", host, *(word for limit in LIMITS for word in ("--limit", limit)), *sockets),
        namespace=namespace,
        ready=Ready(log="local socket answers", timeout_s=CONNECT_S) if runtimes else Ready(),
    ))


async def wait_connected(site: Site, names: Sequence[str]) -> None:
    """Wait until the controller has a session with each host."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CONNECT_S
    missing = list(names)
    while missing:
        missing = await asyncio.to_thread(_unconnected, site.journal.api, missing)
        ended = [name for name in missing if not site.processes.alive(f"agent/{name}")]
        if ended or (missing and loop.time() > deadline):
            name = (ended or missing)[0]
            why = "ended" if ended else f"did not connect within {CONNECT_S} s"
            raise StepFailed(f"the agent of {name} {why}", site.processes.output(f"agent/{name}"))
        if missing:
            await asyncio.sleep(0.05)


def _unconnected(api: str, names: Sequence[str]) -> list[str]:
    from controller.client import Client, Unreachable

    try:
        with Client(api) as client:
            connected = {host["metadata"]["name"] for host in client.list("Host")
                         if (host.get("status") or {}).get("connected")}
    except Unreachable:
        return list(names)
    return [name for name in names if name not in connected]


async def apply(site: Site, documents: Sequence[dict[str, Any]], label: str = "resources") -> None:
    """`sluice apply` of documents; returns when they are in the kernels."""
    if documents:
        path = write(site, documents, label)
        await site.sluice("apply", "-f", path, "--wait", str(WAIT_S), timeout_s=WAIT_S + 15)


def write(site: Site, documents: Sequence[dict[str, Any]], label: str) -> str:
    """Documents as a YAML file, for the command-line program."""
    path = site.work / f"{label}.yaml"
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
    return str(path)


def _address(name: str, node: Node) -> str:
    for interface in node.interfaces.values():
        if interface.address:
            return str(interface.address.ip)
    raise LabError(f"nodes.{name}: the controller needs an address; give one of its interfaces one")
