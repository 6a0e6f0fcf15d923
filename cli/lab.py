"""Labs: topologies, resources and checks in one YAML file, run for real in namespaces. `labs` does the work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.problems import Fault, Problem, problem

app = typer.Typer(no_args_is_help=True, help="Labs: a topology and its checks as one file, run for real.")

File = Annotated[Path, typer.Argument(metavar="FILE", help="The lab, as docs/labs.md describes it.")]
Name = Annotated[str, typer.Argument(metavar="LAB", help="Name of the lab, or its file.")]


@app.command("run")
def run(
    file: File,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the lab up at the end, for a look at it.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the results there, too.", show_default=False),
    ] = None,
) -> None:
    """Build a lab, check every step, print the table, remove everything. Status 0: all of it held."""
    _need_root("sluice lab run")
    from labs import run as labs

    raise typer.Exit(labs.run(file, keep=keep, result_file=json_file))


@app.command("up")
def up(file: File) -> None:
    """Build a lab and leave it up, without its steps."""
    _need_root("sluice lab up")
    from labs import run as labs

    raise typer.Exit(labs.up(file))


@app.command("down")
def down(lab: Name) -> None:
    """Remove a lab with every process, namespace and pin of it, however it came to be left."""
    _need_root("sluice lab down")
    from labs import run as labs

    raise typer.Exit(labs.down(lab))


@app.command("exec", context_settings={"allow_interspersed_args": False})
def execute(
    lab: Name,
    node: Annotated[str, typer.Argument(metavar="NODE", help="A node, or an endpoint as tenant/name.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND...", help="Default: a shell.", show_default=False),
    ] = None,
) -> None:
    """Run a command inside a lab that is up. The status is the command's."""
    _need_root("sluice lab exec")
    from labs import run as labs

    raise typer.Exit(labs.exec_(lab, node, command or []))


@app.command("graph")
def graph(
    file: File,
    dot: Annotated[bool, typer.Option("--dot", help="In the DOT language, for graphviz.")] = False,
) -> None:
    """Draw the topology of a lab file, without building it. Needs no root."""
    import sys

    from cli import lab_graph
    from cli.output import console
    from labs.errors import InvalidLab, LabError
    from labs.load import load

    try:
        lab = load(file)
    except InvalidLab as error:
        raise Problem(
            Fault(f"{error.file}:{flaw.line}: {flaw.field}", flaw.message) for flaw in error.flaws
        ) from None
    except LabError as error:
        raise problem("FILE", str(error)) from None
    if dot:
        sys.stdout.write(lab_graph.dot(lab))
    else:
        console().print(lab_graph.tree(lab))


def _need_root(command: str) -> None:
    if os.geteuid() != 0:
        raise problem(
            command,
            "needs root: it makes network namespaces",
            f"user id {os.geteuid()}",
            f"run sudo {command}",
        )
