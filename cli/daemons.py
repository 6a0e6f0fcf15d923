"""The daemons and what lets a host in: controller run, agent run and purge, token create, join."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.connection import controller
from cli.problems import USAGE, Fault, Problem, problem

if TYPE_CHECKING:
    from agent.app import Clamp
    from southbound.identity import Identity
    from vfp.datapath.engine import Limits
    from vfp.timeouts import Timeouts

controller_app = typer.Typer(
    no_args_is_help=True, help="The controller: keeps what is declared, tells the hosts."
)
agent_app = typer.Typer(no_args_is_help=True, help="The agent of one host: makes it so in its kernel.")
token_app = typer.Typer(no_args_is_help=True, help="Tokens with which hosts join.")

HostName = Annotated[
    str, typer.Option("--name", help="Name of this host. Default: the host name.", show_default=False)
]
MAX_NAME = 63
MAX_ENTRIES = 1 << 24  # more than any host has memory for
MAX_SECONDS = 30 * 86400
MAX_DNS_TIME_S = 7 * 86400
_ROOMS = ("controller", "agent", "southbound", "vfp", "vswitch", "inspection")


@controller_app.command("run")
def controller_run(
    state: options.State = options.CONTROLLER_STATE,
    api: Annotated[str, typer.Option("--api", help="unix:PATH on which the REST API answers.")] = options.API,
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="ADDR:PORT",
            show_default=False,
            help="Also answer here over HTTP, with the bearer token in the state folder's api-token.",
        ),
    ] = "",
    southbound: Annotated[
        str, typer.Option("--southbound", metavar="ADDR:PORT", help="Where agents connect.")
    ] = options.SOUTHBOUND,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="NAME",
            show_default=False,
            help="DNS name or address by which agents reach it, for its certificate. May be repeated.",
        ),
    ] = None,
) -> None:
    """Run the controller until SIGTERM or Ctrl-C."""
    if not api.startswith("unix:/"):
        raise problem(
            "--api", "not a unix socket", repr(api), "write unix:/path; use --listen for TCP", USAGE
        )
    from controller.app import Config, run

    with _plainly("controller"):
        run(
            Config(
                state_dir=state,
                api=api,
                listen=listen,
                southbound=endpoint("--southbound", southbound),
                names=tuple(name or ()),
            )
        )


@agent_app.command("run")
def agent_run(
    state: options.State = options.AGENT_STATE,
    pin_dir: options.PinDir = options.PIN_DIR,
    name: HostName = "",
    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="TABLE=ENTRIES",
            show_default=False,
            help="Size of a table, or another bound: flows, rules, bindings, ports, space_entries, mappings, half_open,"
            " udp or redecide_per_s. May be repeated.",
        ),
    ] = None,
    timeout: Annotated[
        list[str] | None,
        typer.Option(
            "--timeout",
            metavar="NAME=SECONDS",
            show_default=False,
            help="How long a flow may be idle: tcp_opening, tcp_syn_received, tcp_established, tcp_fin_wait,"
            " tcp_time_wait, tcp_reset, udp_new, udp, icmp, other or binding. May be repeated.",
        ),
    ] = None,
    dns_time: Annotated[
        list[str] | None,
        typer.Option(
            "--dns-time",
            metavar="BOUND=SECONDS",
            show_default=False,
            help="How long an address of a domain name stays open: least, most (of its TTL), grace. May be repeated.",
        ),
    ] = None,
    nat_log: Annotated[
        Path | None,
        typer.Option("--nat-log", metavar="FILE", show_default=False,
                     help="Append a line of JSON for each binding of networks with nat.log: as `sluice nat log`."),
    ] = None,
    socket: options.LocalSocket = options.LOCAL_SOCKET,
    docker: options.Docker = options.DOCKER,
) -> None:
    """Run this host's agent until SIGTERM or Ctrl-C. The data path stays when it ends."""
    _need_root("sluice agent run")
    limits, timeouts, clamp = _limits(limit or []), _timeouts(timeout or []), _clamp(dns_time or [])
    local = None if socket in options.NOTHING else Path(socket).absolute()
    from agent.app import Config, run

    with _plainly("agent"):
        run(Config(state_dir=state, pin_dir=pin_dir, name=name, limits=limits, timeouts=timeouts, clamp=clamp,
                   nat_log=nat_log, socket=local), *_plug_ins(local, docker, state))


def _plug_ins(local: Path | None, docker: str, state: Path) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """What runs in the agent's process and asks its local socket."""
    if docker in options.NOTHING or local is None:
        return []
    from functools import partial

    from runtimes.docker import serve

    return [partial(serve, Path(docker).absolute(), str(local), state)]


@agent_app.command("purge")
def agent_purge(
    state: options.State = options.AGENT_STATE, pin_dir: options.PinDir = options.PIN_DIR
) -> None:
    """Remove every link, pin, filter and setting of Sluice on this host. Endpoints lose their network."""
    _need_root("sluice agent purge")
    from agent.app import Config, purge

    with _plainly("agent"):
        lines = purge(Config(state_dir=state, pin_dir=pin_dir, name=""))
    for line in lines:
        print(line)
    stuck = [line for line in lines if " not removed" in line]
    if stuck:
        raise Problem(
            Fault("agent purge", line, "", "see who uses it, then run the command again") for line in stuck
        )


@token_app.command("create")
def token_create(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host that may join with it.")],
    ttl: Annotated[
        int, typer.Option("--ttl", min=60, max=7 * 86400, metavar="SECONDS", help="How long it is good.")
    ] = 3600,
    api: options.Api = "",
) -> None:
    """Make a token: good for one host, once. It is printed only here."""
    with controller(api) as client:
        print(client.create_token(host, ttl))


def join(
    controller_address: Annotated[
        str, typer.Option("--controller", metavar="HOST:PORT", help="The controller's southbound address.")
    ],
    token: Annotated[
        str,
        typer.Option("--token", help="What `sluice token create` printed; - reads it from standard input."),
    ],
    name: HostName = "",
    state: options.State = options.AGENT_STATE,
) -> None:
    """Enrol this host: get it a certificate from the controller."""
    import sys

    text = sys.stdin.readline().strip() if token == "-" else token
    identity = enrol(endpoint("--controller", controller_address), text, name or host_name(), state)
    print(f"host {identity.host} joined {identity.controller}; now start: sluice agent run --state {state}")


def enrol(address: str, token: str, host: str, state: Path) -> Identity:
    """Get a certificate for `host` from the controller at `address`, into `state`.

    Raises:
        Problem: why it did not work.
    """
    import asyncio

    from southbound.client import join as enrol_there
    from southbound.errors import IdentityError, SouthboundError, TokenError, Unreachable

    try:
        return asyncio.run(enrol_there(address, token, host, state))
    except TokenError as error:
        raise problem("--token", str(error)) from None
    except Unreachable as error:
        raise problem(
            "--controller", str(error), "", "check address, port and firewall, and that the controller runs"
        ) from None
    except IdentityError as error:
        raise problem("--state", str(error)) from None
    except SouthboundError as error:
        raise problem("join", str(error)) from None
    except OSError as error:
        raise problem(
            "--state",
            "cannot be written",
            f"{error.filename or state}: {error.strerror}",
            "run as root, or give --state DIR",
        ) from None


def endpoint(option: str, text: str) -> str:
    """`ADDR:PORT` as it was given, once it has been looked at.

    Raises:
        Problem: it is not an address (or name) and a port.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise problem(option, "not ADDR:PORT", repr(text), "write for example 10.0.0.1:7443", USAGE)
    return text


def host_name() -> str:
    """This host's name as a DNS label."""
    import re
    import socket

    label = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")[:MAX_NAME]
    return label or "localhost"


def _limits(given: Sequence[str]) -> Limits:
    from dataclasses import fields, replace

    from vfp.datapath.engine import Limits

    names = [field.name for field in fields(Limits)]
    sizes: dict[str, int] = {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in names or not number.isdecimal() or not 0 < int(number) <= MAX_ENTRIES:
            raise problem(
                "--limit",
                "not TABLE=ENTRIES",
                repr(text),
                f"use one of {', '.join(names)}, with 1 to {MAX_ENTRIES}, as in flows=65536",
                USAGE,
            )
        sizes[name] = int(number)
    return replace(Limits(), **sizes)


def _timeouts(given: Sequence[str]) -> Timeouts:
    from dataclasses import fields, replace

    from vfp.timeouts import Timeouts

    names = [field.name.removesuffix("_s") for field in fields(Timeouts)]
    seconds: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            seconds[f"{name}_s"] = value = float(number)
        except ValueError:
            value = -1.0
        if name not in names or not 0 < value <= MAX_SECONDS:
            raise problem(
                "--timeout",
                "not NAME=SECONDS",
                repr(text),
                f"use one of {', '.join(names)}, with more than 0 and at most {MAX_SECONDS}, as in udp=300",
                USAGE,
            )
    return replace(Timeouts(), **seconds)


def _clamp(given: Sequence[str]) -> Clamp:
    from dataclasses import replace

    from agent.app import Clamp

    names = {"least": "least_s", "most": "most_s", "grace": "grace_s"}
    times: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in names or not number.isdecimal() or int(number) > MAX_DNS_TIME_S:
            raise problem(
                "--dns-time",
                "not BOUND=SECONDS",
                repr(text),
                f"use one of {', '.join(names)}, with 0 to {MAX_DNS_TIME_S}, as in most=3600",
                USAGE,
            )
        times[names[name]] = float(number)
    clamp = replace(Clamp(), **times)
    if clamp.least_s > clamp.most_s or clamp.most_s + clamp.grace_s == 0:
        raise problem("--dns-time", "no time is left", f"least {clamp.least_s:g}, most {clamp.most_s:g}",
                      "give least no more than most, and some time", USAGE)
    return clamp


def _need_root(command: str) -> None:
    if os.geteuid() != 0:
        raise problem(
            command,
            "needs root: it makes links and loads BPF programs",
            f"user id {os.geteuid()}",
            f"run sudo {command}; `sluice doctor` says what is missing",
        )


@contextmanager
def _plainly(what: str) -> Iterator[None]:
    """Say why a daemon could not start or go on, without a traceback.

    Errors of our own rooms were written for people; any other is a bug, which `cli.main` reports as one.
    """
    try:
        yield
    except OSError as error:
        found = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise problem(
            what, "the system refused", found, "check paths and rights, and whether another one runs already"
        ) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _ROOMS:
            raise
        raise problem(what, str(error)) from None
