"""What the ledgers of a run say, as rows and as a table."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import attrs
from shop.ledgers import Ledgers

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


def read_ledgers(book: Ledgers, waited: Sequence[float]) -> list[Row]:
    """Put the two tables of *book* together. *waited*: the seconds for each order as a whole.

    Commands that a handler dispatches run when it is done, so only the whole shows that wait.
    """
    dispatched, handled = read(book, "dispatched"), read(book, "handled")
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


def read(book: Ledgers, table: str) -> list[dict[str, Any]]:
    cursor = book.connection().execute(f"SELECT * FROM {table}")  # noqa: S608  one of two names
    columns = [name for name, *_ in cursor.description]
    return [dict(zip(columns, row, strict=True)) for row in cursor]


def count_handled(book: Ledgers, name: str | None = None) -> int:
    """Say how many handlers have done their work, of the message *name* or of all."""
    statement = "SELECT count(*) FROM handled WHERE ? IS NULL OR name = ?"
    [count] = book.connection().execute(statement, (name, name)).fetchone()
    return int(count)


def unique(entries: Iterable[Mapping[str, Any]], field: str) -> list[str]:
    return list(dict.fromkeys(entry[field] for entry in entries))


def print_table(number: int, rows: Sequence[Row]) -> None:
    head = (
        f"{'message':<29}{'handler':<19}{'handled in':<24}{'waited':>9}{'sent':>6}{'handled':>9}"
    )
    print(f"\n{number}  {head}")
    for row in rows:
        where = " ".join(["here" if os.getpid() in row.pids else "worker", *map(str, row.pids)])
        waited = "-" if row.waited is None else f"{1000 * row.waited:.2f} ms"
        counts = f"{row.sent.total():>6}{row.handled.total():>9}"
        print(f"   {row.name:<29}{row.handler:<19}{where:<24}{waited:>9}{counts}")


def print_summary(results: Sequence[Sequence[Row]]) -> bool:
    """Print what the tables come to; return whether all that was sent was handled once."""
    print("\n   waited: the median in this process; of the order, with all that follows from it.")
    print("   -: dispatched by the worker, so nobody here waited.")
    medians = [f"{1000 * (rows[0].waited or 0.0):.2f} ms" for rows in results]
    print(f"\nThe customer waited {', then '.join(medians)} for an order.")
    is_complete = True
    for row in (row for rows in results for row in rows if row.sent != row.handled):
        lost, extra = differences([row])
        print(f"{row.name}, {row.handler}: {lost} not handled, {extra} too many", file=sys.stderr)
        is_complete = False
    if is_complete:
        print("Everything that was sent was handled, once.")
    return is_complete


def print_survival(number: int, rows: Sequence[Row]) -> None:
    """Print what became of the run whose worker was killed."""
    orders, handled = rows[0].sent.total(), sum(row.handled.total() for row in rows)
    lost, extra = differences(rows)
    print(
        f"The worker of run {number} was killed and replaced: {orders} orders, "
        f"{handled} rows of handlers, {lost} lost, {extra} twice."
    )


def differences(rows: Iterable[Row]) -> tuple[int, int]:
    """Say how many handlings are missing, and how many are too many."""
    lost = extra = 0
    for row in rows:
        lost += (row.sent - row.handled).total()
        extra += (row.handled - row.sent).total()
    return lost, extra
