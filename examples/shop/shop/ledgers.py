"""What was dispatched and what was handled, as rows of one SQLite database."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol
from uuid import UUID

from postbus import DispatchContext
from postbus.messages import message_info

TABLES = """
CREATE TABLE IF NOT EXISTS dispatched (name TEXT, id TEXT, pid INTEGER, seconds REAL);
CREATE TABLE IF NOT EXISTS handled (name TEXT, id TEXT, pid INTEGER, handler TEXT, note TEXT);
"""
BUSY_TIMEOUT = 30.0


class ShopMessage(Protocol):
    """Every message of the shop is about one order."""

    @property
    def order_id(self) -> UUID: ...


class Ledgers:
    """The database at *path*; any number of processes may have it open."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._own = threading.local()
        self._opened: list[sqlite3.Connection] = []

    def connection(self) -> sqlite3.Connection:
        """Return this thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, BUSY_TIMEOUT, check_same_thread=False)
            self._opened.append(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            # A commit survives the end of a process; the last ones not a power cut.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(TABLES)
            self._own.connection = connection
        return connection

    def close(self) -> None:
        for connection in self._opened:
            connection.close()


class Session:
    """A unit of work: what is noted in it is written at its end, all of it or nothing.

    So a handler that takes its time keeps nobody from writing. Outside of a unit a note is
    written at once.
    """

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers
        self._notes: list[tuple[str, tuple[object, ...]]] | None = None

    def __enter__(self) -> sqlite3.Connection:
        """Begin. An inbox in the same file joins the transaction of this connection."""
        self._notes = []
        return self._ledgers.connection()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        notes, self._notes = self._notes or [], None
        connection = self._ledgers.connection()
        if kind is not None:
            connection.rollback()
            return
        with connection:
            for statement, row in notes:
                connection.execute(statement, row)

    def dispatched(self, message: ShopMessage, seconds: float) -> None:
        self._note("INSERT INTO dispatched VALUES (?, ?, ?, ?)", message, seconds)

    def handled(self, message: ShopMessage, handler: str, note: str = "") -> None:
        self._note("INSERT INTO handled VALUES (?, ?, ?, ?, ?)", message, handler, note)

    def _note(self, statement: str, message: ShopMessage, *facts: object) -> None:
        name, id_ = message_info(type(message)).name, str(message.order_id)
        row = (name, id_, os.getpid(), *facts)
        if self._notes is not None:
            self._notes.append((statement, row))
        else:
            with self._ledgers.connection() as connection:
                connection.execute(statement, row)


class DispatchJournal:
    """A plugin: notes each message that was dispatched in this process, and how long it took.

    What a worker received was dispatched elsewhere and is noted there.
    """

    def __init__(self, session: Callable[[], Session]) -> None:
        self._session = session

    def attach(self, bus: Any) -> None:
        bus.wrap(self.note)

    @contextmanager
    def note(self, context: DispatchContext) -> Generator[None]:
        started = time.perf_counter()
        yield
        if context.source is None:
            self._session().dispatched(context.message, time.perf_counter() - started)
