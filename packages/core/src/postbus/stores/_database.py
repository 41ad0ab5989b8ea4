"""The connection that the SQLite stores of one section share."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import attrs

from postbus.errors import ConnectionFailedError, RejectedError, TransportError, UnsupportedError

__all__ = ["Database", "put_rows", "translated"]

T = TypeVar("T")
_FULL = frozenset({"SQLITE_FULL", "SQLITE_READONLY", "SQLITE_TOOBIG"})
_FILE_MODE = 0o600
_VERSION = 1
# SQLite may have been built to take no more than 999 parameters: enough for nine a row.
_MOST_ROWS = 100
_SCHEMA = """
CREATE TABLE IF NOT EXISTS postbus_schema (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS postbus_failures (
    key TEXT PRIMARY KEY, consumer TEXT NOT NULL, reason TEXT NOT NULL, name TEXT, id TEXT,
    attempts INTEGER NOT NULL, failed_at REAL NOT NULL, history BLOB NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS postbus_failures_order ON postbus_failures (failed_at, key);
CREATE TABLE IF NOT EXISTS postbus_noted (
    key TEXT PRIMARY KEY, redeliveries INTEGER NOT NULL, history BLOB NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS postbus_schedule (
    id TEXT NOT NULL, target TEXT NOT NULL, name TEXT NOT NULL, due REAL NOT NULL,
    visible REAL NOT NULL, token TEXT, message BLOB NOT NULL, PRIMARY KEY (id, target)
);
CREATE INDEX IF NOT EXISTS postbus_schedule_order ON postbus_schedule (target, visible);
CREATE TABLE IF NOT EXISTS postbus_inbox (
    id TEXT NOT NULL, handler TEXT NOT NULL, digest BLOB NOT NULL, owner TEXT, until REAL,
    done_at REAL, reply BLOB, sends BLOB, PRIMARY KEY (id, handler)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS postbus_inbox_age ON postbus_inbox (done_at);
"""
# Connections of the process before a fork: closing one here would let go of that process's locks.
_inherited: list[sqlite3.Connection] = []


def translate(error: sqlite3.Error, path: Path) -> TransportError:
    """Return the postbus error for what SQLite said: a full disk refuses, all else may pass."""
    name = getattr(error, "sqlite_errorname", "")
    kind = RejectedError if name in _FULL else ConnectionFailedError
    return kind(f"the store {path}: {error}")


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Raise what SQLite says in the block as a `TransportError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error


class _Connection:
    """One connection behind a lock, opened on first use and anew after a failure or a fork."""

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._connection: sqlite3.Connection | None = None
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        if self._connection is not None:
            _inherited.append(self._connection)
        self._connection = None

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what *work* does with the connection, which nobody else uses meanwhile.

        Raises:
            TransportError: what SQLite said.
        """
        self.renew_after_fork()
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = _open(self._path, self._busy_timeout)
                return work(self._connection)
            except BaseException as error:
                # Whatever state it is in: the next call opens another, which begins clean.
                self.drop()
                if isinstance(error, sqlite3.Error):
                    raise translate(error, self._path) from error
                raise

    def renew_after_fork(self) -> None:
        """Begin anew where this is another process than before."""
        if self._process != os.getpid():
            self._start_afresh()

    def drop(self) -> None:
        """Close it; the lock is the caller's."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def close(self) -> None:
        """Close it, unless it is another process's."""
        if self._process == os.getpid():
            with self._lock:
                self.drop()


@attrs.define(eq=False)
class _Asked:
    """A piece of work for the next transaction, and what came of it."""

    work: Callable[[sqlite3.Connection], Any]
    is_done: bool = False
    result: Any = None
    error: BaseException | None = None

    def carry_out(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        self.result = self.work(connection)
        connection.execute("COMMIT")


class _Writer(_Connection):
    """Writes together what several threads ask at one moment: the disk is waited for once."""

    def _start_afresh(self) -> None:
        super()._start_afresh()
        # What threads of another process have asked is theirs.
        self._queue: deque[_Asked] = deque()

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what *work* does in a transaction, which has been committed then.

        Raises:
            TransportError: what SQLite said; nothing of *work* was written.
        """
        asked = _Asked(work)

        def commit(connection: sqlite3.Connection) -> None:
            # Whoever has the connection first does it for all that wait behind him.
            if not asked.is_done:
                self._commit(connection)

        self.renew_after_fork()
        self._queue.append(asked)
        try:
            self.run(commit)
        except BaseException:
            # There was no connection: nobody shall do it for who has been told that it failed.
            with suppress(ValueError):
                self._queue.remove(asked)
            raise
        if asked.error is not None:
            if isinstance(asked.error, sqlite3.Error):
                raise translate(asked.error, self._path) from asked.error
            raise asked.error
        result: T = asked.result
        return result

    def _commit(self, connection: sqlite3.Connection) -> None:
        batch: list[_Asked] = []
        while self._queue:
            batch.append(self._queue.popleft())
        try:
            connection.execute("BEGIN IMMEDIATE")
            for each in batch:
                each.result = each.work(connection)
            connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001  each that asked hears of its own
            _roll_back(connection)
            if len(batch) == 1:
                batch[0].error = error
            else:
                self._commit_each(connection, batch)
        for each in batch:
            each.is_done = True
        if any(isinstance(each.error, sqlite3.Error) for each in batch):
            # Whatever state it is in: the next transaction has another connection.
            self.drop()

    @staticmethod
    def _commit_each(connection: sqlite3.Connection, batch: Sequence[_Asked]) -> None:
        """Find out whose fault it was: one transaction for each."""
        for each in batch:
            try:
                each.carry_out(connection)
            except BaseException as error:  # noqa: BLE001  as in _commit
                _roll_back(connection)
                each.error = error


def _roll_back(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        connection.execute("ROLLBACK")


class Database:
    """A connection for writing, since SQLite writes one transaction at a time, and one to read.

    Reading never waits for who writes: a unit of work that joins the inbox reads while it has
    the write lock itself.

    Args:
        path: the file.
        busy_timeout: seconds to wait for another process that writes.
    """

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self.path = path
        self._reader = _Connection(path, busy_timeout)
        self._writer = _Writer(path, busy_timeout)

    def read(self, statement: str, parameters: Any = ()) -> list[Any]:
        """Return the rows of one SELECT.

        Raises:
            TransportError: the store is down.
        """
        return self._reader.run(
            lambda connection: connection.execute(statement, parameters).fetchall()
        )

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what *work* does in a transaction that has the write lock from its beginning.

        Others may write in the same transaction, so *work* may run twice.

        Raises:
            TransportError: the store is down or full; nothing was written.
        """
        return self._writer.write(work)

    def change(self, statement: str, parameters: Any = ()) -> bool:
        """Carry out one statement and return whether it changed a row.

        Raises:
            TransportError: the store is down or full.
        """
        return (
            self.write(lambda connection: connection.execute(statement, parameters).rowcount) > 0
        )

    def close(self) -> None:
        """Let go of the connections. Idempotent."""
        self._reader.close()
        self._writer.close()


def put_rows(
    connection: sqlite3.Connection,
    table: str,
    columns: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """Put *rows* into *table*, in the place of those with the same key.

    In as few statements as there may be: Python lets other threads run during each, and on a
    busy one gets its turn back milliseconds later.
    """
    row = f"({', '.join('?' * len(columns))})"
    for start in range(0, len(rows), _MOST_ROWS):
        some = rows[start : start + _MOST_ROWS]
        values = ", ".join([row] * len(some))
        statement = f"REPLACE INTO {table} ({', '.join(columns)}) VALUES {values}"  # noqa: S608  names are ours
        connection.execute(statement, list(chain.from_iterable(some)))


def _open(path: Path, busy_timeout: float) -> sqlite3.Connection:
    _create(path)
    connection = sqlite3.connect(
        path, timeout=busy_timeout, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    """Make the file, for its owner only, where it is not there.

    One that is there must not even be opened: closing it again would let go of the locks that
    every other connection of this process holds on it, and two writers at once destroy it.

    Source: "How To Corrupt An SQLite Database File", 2.2.

    Raises:
        ConnectionFailedError: it cannot be made.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _FILE_MODE))
    except FileExistsError:
        return
    except OSError as error:
        msg = f"the store {path}: {error.strerror or error}"
        raise ConnectionFailedError(msg) from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables, where they are not there yet."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'postbus_schema'").fetchone():
        (version,) = connection.execute("SELECT max(version) FROM postbus_schema").fetchone()
        if version > _VERSION:
            msg = (
                f"the store {path} has tables of version {version}, this postbus knows "
                f"{_VERSION}: update it"
            )
            raise UnsupportedError(msg)
        return
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute(
        "INSERT INTO postbus_schema SELECT ? WHERE NOT EXISTS (SELECT 1 FROM postbus_schema)",
        (_VERSION,),
    )
    connection.execute("COMMIT")
