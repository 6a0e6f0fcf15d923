"""`sluice doctor`: what this host can and cannot do, what that costs, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cli import options
from cli.output import Format, console, dump, styled

if TYPE_CHECKING:
    from cli.findings import Finding

_STYLES = {"ok": "green", "missing": "bold red", "absent": "yellow", "unknown": "yellow"}


def doctor(output: options.Output = Format.TABLE) -> None:
    """Check the kernel, rights and programs that Sluice needs. Status 1: something required lacks."""
    from cli.checks import all_findings

    findings = list(all_findings())
    if output is Format.TABLE:
        _print(findings)
    else:
        dump([asdict(finding) for finding in findings], output)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def _print(findings: Sequence[Finding]) -> None:
    """One line a check: state, name, what was found, what it costs, what to do."""
    from rich.text import Text

    out = console()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        line = Text.assemble(
            styled(f"{finding.state:8}", _STYLES[finding.state]),
            styled(f"{finding.name:{width}}  ", ""),
            styled(finding.found, ""),
        )
        if finding.cost:
            line.append_text(styled(f" - costs: {finding.cost}", "yellow"))
        if finding.todo:
            line.append_text(styled(f" - do: {finding.todo}", "bold"))
        out.print(line, soft_wrap=True)
    lacking = sum(finding.state == "missing" for finding in findings)
    if lacking:
        out.print(
            styled(f"{lacking} required {'thing is' if lacking == 1 else 'things are'} missing", "bold red")
        )
    else:
        out.print(styled("this host can run Sluice", "bold green"))
