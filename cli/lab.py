"""Labs: topologies, resources and checks in one YAML file, run for real in namespaces."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Labs: a topology and its checks as one file, run for real.")
