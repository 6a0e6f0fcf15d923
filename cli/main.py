"""Entry of the `sluice` command: what verbs there are, and the last net under errors.

Modules that cost time (httpx, the controller, the agent) are imported by the commands that need them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from cli import attach, capture, daemons, declare, doctor, lab, look, meters, nat, show, trace, up
from cli.problems import Fault, Problem, report

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def sluice(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            is_eager=True,
            callback=lambda asked: _version(asked),
        ),
    ] = False,
) -> None:
    """Virtual networks for Linux hosts: NAT and VXLAN overlays, with policy, in eBPF."""


_DECLARE, _LOOK, _RUN = "Declare", "Look inside", "Run"
_VERBS: tuple[tuple[str, Callable[..., None]], ...] = (
    (_DECLARE, declare.apply),
    (_DECLARE, declare.diff),
    (_DECLARE, show.get),
    (_DECLARE, show.describe),
    (_DECLARE, declare.delete),
    (_DECLARE, show.watch),
    (_DECLARE, attach.attach),
    (_DECLARE, attach.detach),
    (_LOOK, trace.trace),
    (_LOOK, look.flows),
    (_LOOK, look.rules),
    (_LOOK, look.drops),
    (_LOOK, look.logs),
    (_LOOK, meters.meters),
    (_LOOK, nat.nat),
    (_LOOK, capture.capture),
    (_RUN, up.up),
    (_RUN, daemons.join),
    (_RUN, doctor.doctor),
)
_GROUPS: tuple[tuple[str, typer.Typer], ...] = (
    ("controller", daemons.controller_app),
    ("agent", daemons.agent_app),
    ("token", daemons.token_app),
    ("lab", lab.app),
)


def command_line(asked: str = "") -> typer.Typer:
    """All verbs; or, if it is one, that `asked` for alone: reading the options of all takes longer than most."""
    made = typer.Typer(
        name="sluice",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(sluice)
    alone = {asked} & {*(verb.__name__ for _, verb in _VERBS), *(name for name, _ in _GROUPS)}
    for panel, verb in _VERBS:
        if not alone or verb.__name__ in alone:
            made.command(rich_help_panel=panel)(verb)
    for name, group in _GROUPS:
        if not alone or name in alone:
            made.add_typer(group, name=name, rich_help_panel=_RUN)
    return made


def main() -> None:
    """Run the command line. Ends the process; the status is 0 only on success."""
    try:
        command_line(*sys.argv[1:2])()
    except Problem as error:
        report(error)
        sys.exit(error.status)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader (`head`, `grep -q`) has seen enough. Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("SLUICE_DEBUG"):
            raise
        report(
            Problem(
                [
                    Fault(
                        "sluice",
                        "a bug in Sluice",
                        f"{type(error).__name__}: {error}",
                        "run the command again with SLUICE_DEBUG=1 and report what it prints",
                    )
                ]
            )
        )
        sys.exit(1)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"sluice {version('sluice')}")
        raise typer.Exit


if __name__ == "__main__":
    main()
