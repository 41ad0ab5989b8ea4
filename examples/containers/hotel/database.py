"""The database, opened once, and a session, which every unit of work has of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from types import TracebackType
from typing import Self


def open_database(path: str) -> Iterator[str]:
    """Make the table; what stands after `yield` runs when the application shuts down."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bookings (guest TEXT, nights INTEGER)")
        connection.commit()
        yield path
        connection.execute("PRAGMA optimize")


class Session:
    """A transaction: entered when the unit of work begins, left with its outcome."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._connection = sqlite3.connect(self._path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with closing(self._connection):
            if kind is None:
                self._connection.commit()

    def add(self, guest: str, nights: int) -> None:
        self._connection.execute("INSERT INTO bookings VALUES (?, ?)", (guest, nights))

    def count(self) -> int:
        [count] = self._connection.execute("SELECT count(*) FROM bookings").fetchone()
        assert isinstance(count, int)
        return count
