"""What the ledgers of a run say, as rows and as a table."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs

PLACE = "shop.order.place"


@attrs.frozen
class Row:
    """One message and one handler of it. *waited*: seconds in this process, None for no wait."""

    name: str
    handler: str
    pids: Sequence[int]
    waited: float | None
    sent: Counter[str]
    handled: Counter[str]


def read_ledgers(folder: Path, waited: Sequence[float]) -> list[Row]:
    """Put the two ledgers of *folder* together. *waited*: the seconds for each order as a whole.

    Commands that a handler dispatches run when it is done, so only the whole shows that wait.
    """
    dispatched = read(folder / "dispatched.jsonl")
    handled = read(folder / "handled.jsonl")
    rows: list[Row] = []
    for name in unique((*dispatched, *handled), "name"):
        own = [entry for entry in dispatched if entry["name"] == name]
        here = [entry["seconds"] for entry in own if entry["pid"] == os.getpid()]
        times = waited if name == PLACE else here
        by_name = [entry for entry in handled if entry["name"] == name]
        for handler in unique(by_name, "handler") or ["nobody"]:
            entries = [entry for entry in by_name if entry["handler"] == handler]
            row = Row(
                name,
                handler,
                sorted({entry["pid"] for entry in entries}),
                median(times) if times else None,
                Counter(entry["id"] for entry in own),
                Counter(entry["id"] for entry in entries),
            )
            rows.append(row)
    return sorted(rows, key=lambda row: row.name != PLACE)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def unique(entries: Iterable[Mapping[str, Any]], field: str) -> list[str]:
    return list(dict.fromkeys(entry[field] for entry in entries))


def print_table(number: int, rows: Sequence[Row]) -> None:
    head = (
        f"{'message':<29}{'handler':<19}{'handled in':<16}{'waited':>9}{'sent':>6}{'handled':>9}"
    )
    print(f"\n{number}  {head}")
    for row in rows:
        where = ", ".join(f"{'here' if p == os.getpid() else 'worker'} {p}" for p in row.pids)
        waited = "-" if row.waited is None else f"{1000 * row.waited:.2f} ms"
        counts = f"{row.sent.total():>6}{row.handled.total():>9}"
        print(f"   {row.name:<29}{row.handler:<19}{where:<16}{waited:>9}{counts}")


def print_summary(results: Sequence[Sequence[Row]]) -> bool:
    """Print what the tables come to; return whether all that was sent was handled once."""
    print("\n   waited: the median in this process; of the order, with all that follows from it.")
    print("   -: dispatched by the worker, so nobody here waited.")
    medians = [f"{1000 * (rows[0].waited or 0.0):.2f} ms" for rows in results]
    print(f"\nThe customer waited {', then '.join(medians)} for an order.")
    is_complete = True
    for row in (row for rows in results for row in rows if row.sent != row.handled):
        lost, extra = (row.sent - row.handled).total(), (row.handled - row.sent).total()
        print(f"{row.name}, {row.handler}: {lost} not handled, {extra} too many", file=sys.stderr)
        is_complete = False
    if is_complete:
        print("Everything that was sent was handled, once.")
    return is_complete
