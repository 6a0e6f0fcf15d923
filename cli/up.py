"""`sluice up`: a controller and an agent for this one host, in the foreground."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.children import Children
from cli.daemons import agent_purge, endpoint, enrol, host_name
from cli.problems import problem

if TYPE_CHECKING:
    from controller.client import Client

START_S = 60.0  # of a daemon, on a machine that does other things: the kernel looks at programs for seconds

_NEXT = """
Sluice is up on this host, {host}. In another terminal:

  sluice apply -f net.yaml     declare networks, endpoints, policies (README.md has a first net.yaml)
  sluice get all               what is declared, and how far it has come
  sluice trace FROM TO         which layer and rule decides on a packet
  sluice doctor                what this host can and cannot do
{export}
Ctrl-C stops controller and agent; {leaves}
"""


def up(
    state: Annotated[
        Path, typer.Option("--state", metavar="DIR", help="Folder that keeps the state.")
    ] = Path("/var/lib/sluice"),
    api: Annotated[str, typer.Option("--api", help="unix:PATH on which the REST API answers.")] = options.API,
    southbound: Annotated[
        str, typer.Option("--southbound", metavar="ADDR:PORT", help="Where agents connect.")
    ] = "127.0.0.1:7443",
    name: Annotated[
        str, typer.Option("--name", help="Name of this host. Default: the host name.", show_default=False)
    ] = "",
    underlay: Annotated[
        str,
        typer.Option(
            "--underlay",
            metavar="ADDRESS",
            show_default=False,
            help="VTEP address of this host, for overlay networks.",
        ),
    ] = "",
    uplink: Annotated[
        str,
        typer.Option(
            "--uplink",
            metavar="INTERFACE",
            show_default=False,
            help="Interface for NAT. Default: that of the default route.",
        ),
    ] = "",
    pin_dir: options.PinDir = options.PIN_DIR,
    socket: options.LocalSocket = options.LOCAL_SOCKET,
    docker: options.Docker = options.DOCKER,
    purge: Annotated[
        bool, typer.Option("--purge", help="At the end, take everything out of the kernel.")
    ] = False,
) -> None:
    """Run controller and agent for this host in the foreground: SQLite, and the host enrols itself."""
    if os.geteuid() != 0:
        raise problem(
            "sluice up",
            "needs root: it makes links and loads BPF programs",
            f"user id {os.geteuid()}",
            "run sudo sluice up; `sluice doctor` says what is missing",
        )
    endpoint("--southbound", southbound)
    host = name or host_name()
    agent_state = state / "agent"
    _make_folders(state, api)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        with Children() as children:
            _start_controller(children, state, api, southbound)
            _let_in(api, southbound, host, agent_state, underlay, uplink)
            children.start(
                "agent",
                ["agent", "run", "--state", str(agent_state), "--pin-dir", str(pin_dir), "--name", host,
                 "--socket", socket, "--docker", docker],
            )
            _wait_connected(children, api, host)
            _greet(api, host, purge)
            children.wait()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        if purge:
            agent_purge(state=agent_state, pin_dir=pin_dir)


def _make_folders(state: Path, api: str) -> None:
    if not api.startswith("unix:/"):
        raise problem("--api", "not a unix socket", repr(api), "write unix:/path")
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(api.removeprefix("unix:")).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise problem(
            "sluice up",
            "a folder cannot be made",
            f"{error.filename}: {error.strerror}",
            "give --state DIR and --api unix:PATH",
        ) from None


def _start_controller(children: Children, state: Path, api: str, southbound: str) -> None:
    if _health(api):
        raise problem(
            "--api",
            "a controller answers there already",
            api,
            "stop that one, or give another --api unix:PATH, --southbound and --state",
        )
    children.start(
        "controller",
        [
            "controller",
            "run",
            "--state",
            str(state / "controller"),
            "--api",
            api,
            "--southbound",
            southbound,
            "--name",
            southbound.rpartition(":")[0],
        ],
    )
    children.wait_until(lambda: _health(api), "the controller", START_S)


def _health(api: str) -> bool:
    from controller.client import Client, ClientError

    with Client(api) as client:
        try:
            client.health()
        except ClientError:
            return False
    return True


def _let_in(api: str, southbound: str, host: str, agent_state: Path, underlay: str, uplink: str) -> None:
    """Declare the host, unless it is, and let it join, unless it has a certificate of this controller."""
    from cli.connection import controller

    with controller(api) as client:
        new = _declare(client, host, underlay, uplink)
        if (agent_state / "identity" / "cert.pem").exists() and not new:
            return
        shutil.rmtree(agent_state / "identity", ignore_errors=True)  # of a controller whose store is gone
        token = client.create_token(host)
    enrol(southbound, token, host, agent_state)


def _declare(client: Client, host: str, underlay: str, uplink: str) -> bool:
    """Declare the host as the options say; what they do not say stays. Returns whether it was not there."""
    spec = {key: text for key, text in {"underlay": underlay, "uplink": uplink}.items() if text}
    found = next((each for each in client.list("Host") if each["metadata"]["name"] == host), None)
    if found is None:
        client.put({"apiVersion": "sluice/v1", "kind": "Host", "metadata": {"name": host}, "spec": spec})
        return True
    if spec:
        client.put(
            {
                "apiVersion": "sluice/v1",
                "kind": "Host",
                "metadata": {"name": host, "labels": found["metadata"].get("labels") or {}},
                "spec": {**found["spec"], **spec},
            }
        )
    return False


def _wait_connected(children: Children, api: str, host: str) -> None:
    from controller.client import Client, ClientError

    with Client(api) as client:

        def connected() -> bool:
            try:
                return bool((client.get("Host", host).get("status") or {}).get("connected"))
            except ClientError:
                return False

        children.wait_until(connected, "the agent", START_S)


def _greet(api: str, host: str, purge: bool) -> None:
    export = "" if api == options.API else f"\nThey need to know the controller: export SLUICE_API={api}\n"
    leaves = (
        "everything leaves the kernel."
        if purge
        else "networks go on working without them (`sluice agent purge` removes them)."
    )
    print(_NEXT.format(host=host, export=export, leaves=leaves), flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
