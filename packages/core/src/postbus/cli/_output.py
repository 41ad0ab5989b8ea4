"""What commands print: a table for people, JSON for programs, errors and progress beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar, cast

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from postbus.settings import mask

__all__ = ["progress", "show_error", "show_json", "show_table", "stamp"]

T = TypeVar("T")

# Where nobody looks at it, a line is not broken.
_UNBROKEN = 1_000
# Below that many a bar would be gone before it is seen.
_WORTH_A_BAR = 20


def show_json(value: Any) -> None:
    """Print *value* as JSON, on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print a table on standard output; *empty* where it has no rows."""
    shown = [[Text(_cell(value)) for value in row] for row in rows]
    if not shown:
        click.echo(empty)
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in shown:
        table.add_row(*row)
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _UNBROKEN)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_error(text: str, *, as_json: bool, kind: str, **facts: Any) -> None:
    """Print why a command failed, on standard error; what looks like a secret is replaced."""
    if as_json:
        click.echo(json.dumps({"error": kind, "text": mask(text), **facts}), err=True)
    else:
        lines = "\n".join(map(mask, text.splitlines()))
        click.echo(f"postbus: {lines}", err=True)


def progress(values: Sequence[T], what: str) -> Iterator[T]:
    """Yield *values*, with a bar on standard error where a person looks at it and waits."""
    if len(values) < _WORTH_A_BAR or not sys.stderr.isatty():
        yield from values
        return
    yield from track(values, description=what, console=Console(file=sys.stderr), transient=True)


def stamp(moment: datetime) -> str:
    """Return a moment as RFC 3339 with seconds."""
    return moment.isoformat(timespec="seconds")


def _cell(value: Any) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, cast("tuple[object, ...]", value)))
    return str(value)
