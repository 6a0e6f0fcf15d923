"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.output import Format

Api = Annotated[
    str,
    typer.Option(
        "--api",
        help="Controller to ask: unix:/path or http://address:port. Default: $SLUICE_API, else "
        "unix:/run/sluice/api.sock.",
        show_default=False,
    ),
]
Tenant = Annotated[
    str | None, typer.Option("-t", "--tenant", help="Tenant of names without one.", show_default=False)
]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to print.")]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        min=0,
        max=600,
        metavar="SECONDS",
        help="Return once every connected host concerned has acknowledged; 0: return when stored.",
    ),
]
Host = Annotated[str, typer.Option("--host", help="Only this host.", show_default=False)]
State = Annotated[Path, typer.Option("--state", metavar="DIR", help="Folder that keeps the state.")]
PinDir = Annotated[
    Path,
    typer.Option(
        "--pin-dir", metavar="DIR", help="Folder of a BPF file system where programs and maps are pinned."
    ),
]
LocalSocket = Annotated[
    str,
    typer.Option("--socket", metavar="PATH",
                 help="Where container runtimes and `sluice attach` of this host ask; none: nowhere."),
]
Docker = Annotated[
    str,
    typer.Option("--docker", metavar="DIR", help="Folder in which Docker looks for plug-ins; none: no Docker."),
]

CONTROLLER_STATE = Path("/var/lib/sluice/controller")
AGENT_STATE = Path("/var/lib/sluice/agent")
PIN_DIR = Path("/sys/fs/bpf/sluice")
LOCAL_SOCKET = "/run/sluice/agent.sock"
DOCKER = "/run/docker/plugins"
NOTHING = ("", "none")      # of the two
API = "unix:/run/sluice/api.sock"
SOUTHBOUND = "0.0.0.0:7443"
