"""What the user sees while a lab runs, and the table at its end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

LOG_WIDTH = 140


@dataclass(frozen=True, slots=True)
class Row:
    """One step as it went."""

    chapter: str
    tried: str
    expected: str
    seen: str
    held: bool
    seconds: float
    details: str = ""                       # of a failure: the command's output


@dataclass(slots=True)
class Report:
    """Collects rows; prints each as it comes. `console` may be any rich console."""

    console: Console
    lab: str
    planned: int = 0                        # steps of the lab; fewer rows: it was not run to its end
    rows: list[Row] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Something that is done before or after the steps."""
        began = time.monotonic()
        with self._busy(text):
            yield
        self._say(f"[dim]{self._clock()}[/dim]   [dim]{escape(text)}[/dim] "
                           f"[dim]({time.monotonic() - began:.1f} s)[/dim]")

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """A step at work; its row is printed by `add`."""
        with self._busy(text):
            yield

    def chapter(self, title: str) -> None:
        """A new chapter begins."""
        self._say(f"[dim]{self._clock()}[/dim] [bold]{escape(title)}[/bold]")

    def add(self, row: Row) -> None:
        """A step is done."""
        self.rows.append(row)
        mark = "[green]✓[/green]" if row.held else "[red]✗[/red]"
        self._say(f"[dim]{self._clock()}[/dim] {mark} {escape(row.tried)} "
                           f"[dim]({row.seconds:.1f} s)[/dim]", soft_wrap=True)
        if not row.held:
            self._say(f"        [red]{escape(row.seen)}[/red]", soft_wrap=True)
            for line in row.details.splitlines():
                self._say(f"        [dim]{escape(line)}[/dim]", soft_wrap=True)

    def note(self, text: str, style: str = "yellow") -> None:
        """Something worth a line."""
        self._say(f"[dim]{self._clock()}[/dim]   [{style}]{escape(text)}[/{style}]")

    def log_tail(self, name: str, text: str) -> None:
        """The last lines of a daemon, shown after a failure."""
        self._say(f"[bold]last lines of {escape(name)}[/bold]")
        self._say(escape(text or "(it wrote nothing)"), style="dim", soft_wrap=True)

    def table(self) -> None:
        """Everything that was tried, and the verdict."""
        if not self.rows:
            return
        table = Table(title=f"lab {self.lab}", title_justify="left", show_lines=True, expand=False)
        table.add_column("tried", ratio=3)
        table.add_column("expected", ratio=3)
        table.add_column("seen", ratio=3)
        table.add_column("", justify="center", width=1)
        table.add_column("s", justify="right", no_wrap=True)
        chapter = ""
        for row in self.rows:
            if row.chapter != chapter:
                chapter = row.chapter
                table.add_row(f"[bold]{escape(chapter)}[/bold]", "", "", "", "")
            mark = "[green]✓[/green]" if row.held else "[red]✗[/red]"
            table.add_row(escape(row.tried), escape(row.expected), escape(row.seen), mark,
                          f"{row.seconds:.1f}")
        # A file or a CI log has no width; rich would squeeze the table into 80 columns.
        width = None if self.console.is_terminal else max(self.console.width, LOG_WIDTH)
        self._say(table, width=width, crop=False, no_wrap=False, overflow="fold")
        held = sum(row.held for row in self.rows)
        planned = max(self.planned, len(self.rows))
        style = "green" if held == planned else "red"
        self._say(f"[{style}]{held} of {planned} held[/{style}], "
                           f"{self.seconds():.1f} s in all")

    def seconds(self) -> float:
        """Since the lab was begun."""
        return time.monotonic() - self.began

    def as_json(self, exit_status: int) -> dict[str, Any]:
        """The same for programs."""
        fields = ("chapter", "tried", "expected", "seen", "held", "seconds", "details")
        rows = [{name: getattr(row, name) for name in fields} for row in self.rows]
        return {"lab": self.lab, "exit": exit_status, "seconds": round(self.seconds(), 2), "steps": rows}

    def write_json(self, path: Path, exit_status: int) -> None:
        """Write `as_json` to a file."""
        path.write_text(json.dumps(self.as_json(exit_status), indent=1, ensure_ascii=False) + "\n",
                        encoding="utf-8")

    def _say(self, *what: Any, **how: Any) -> None:
        """Print without rich's own colours for numbers and what it takes for addresses."""
        self.console.print(*what, highlight=False, **how)

    def _clock(self) -> str:
        return f"{self.seconds():5.1f} s"

    @contextmanager
    def _busy(self, text: str) -> Iterator[None]:
        if self.console.is_terminal:
            with Status(escape(text), console=self.console):
                yield
        else:
            yield
