"""Listings on standard output: a table for people, JSON or YAML for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

WIDE = 10_000  # columns when the output is no terminal: nothing is folded or cut


class Format(StrEnum):
    """What `-o` takes."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Column = tuple[str, Callable[[Any], "str | RenderableType"]]


def console(stderr: bool = False) -> Console:
    """A console on stdout (or stderr) that never folds lines when nobody is looking."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDE, highlight=False, soft_wrap=False)


def show(rows: Sequence[Any], columns: Sequence[Column], form: Format, empty: str = "nothing found") -> None:
    """Print `rows`; what is behind each column is asked for only in a table."""
    if form is not Format.TABLE:
        dump(list(rows), form)
        return
    if not rows:
        print(empty, file=sys.stderr)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for title, _ in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(cell(row) for _, cell in columns))
    _print(table)


def dump(value: Any, form: Format) -> None:
    """Print a value as JSON or YAML; a list becomes several YAML documents (`apply -f -` reads them)."""
    if form is Format.JSON:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        return
    sys.stdout.write(to_yaml(value))


def to_yaml(value: Any) -> str:
    """YAML with keys in their order; a list as several documents."""
    import yaml

    documents = value if isinstance(value, list) else [value]
    return yaml.safe_dump_all(
        documents, sort_keys=False, allow_unicode=True, explicit_start=len(documents) > 1
    )


def plain(text: object) -> Text:
    """Text as it is: square brackets in names are no markup, and control characters stay out."""
    from rich.text import Text

    return Text("".join(char if char.isprintable() else "?" for char in str(text)))


def styled(text: object, style: str) -> Text:
    """`plain` in a style."""
    from rich.text import Text

    return Text("".join(char if char.isprintable() else "?" for char in str(text)), style=style)


def count(number: int, noun: str) -> str:
    """`1 flow`, `2 flows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def join(parts: Iterable[object]) -> str:
    """A list in one cell."""
    return ", ".join(str(part) for part in parts)


def _print(renderable: RenderableType) -> None:
    out = console()
    if out.is_terminal:
        out.print(renderable)
        return
    # Without a terminal rich pads the last column with blanks; they only disturb `grep` and `diff`.
    with out.capture() as capture:
        out.print(renderable)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))
