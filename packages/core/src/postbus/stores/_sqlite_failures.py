"""The failure store in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import msgspec

from postbus.stores._database import Database
from postbus.stores._records import HISTORY_LENGTH, FailedMessage, Failure

__all__ = ["SQLiteFailures"]

# What was noted about a message that never came back is nobody's after this many seconds.
_NOTED_TTL = 30 * 86_400.0
_FAILURES = tuple[Failure, ...]
_COLUMNS = "key, consumer, reason, name, id, attempts, failed_at, history, body"
_WHERE = (
    " FROM postbus_failures WHERE (:consumer IS NULL OR consumer = :consumer)"
    " AND (:name IS NULL OR name GLOB :name) AND (:reason IS NULL OR reason = :reason)"
)


class SQLiteFailures:
    """A `FailureStore` in SQLite."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def note(self, key: str, failure: Failure) -> None:
        """Remember a failure."""

        def work(connection: sqlite3.Connection) -> None:
            redeliveries, history = _noted(connection, key)
            self._keep(connection, key, redeliveries, (*history, failure)[-HISTORY_LENGTH:])

        self._database.write(work)

    def note_redelivery(self, key: str) -> int:
        """Count that it came back."""

        def work(connection: sqlite3.Connection) -> int:
            redeliveries, history = _noted(connection, key)
            self._keep(connection, key, redeliveries + 1, history)
            return redeliveries + 1

        return self._database.write(work)

    def _keep(
        self,
        connection: sqlite3.Connection,
        key: str,
        redeliveries: int,
        history: Sequence[Failure],
    ) -> None:
        now = self._clock()
        connection.execute("DELETE FROM postbus_noted WHERE at < ?", (now - _NOTED_TTL,))
        connection.execute(
            "REPLACE INTO postbus_noted (key, redeliveries, history, at) VALUES (?, ?, ?, ?)",
            (key, redeliveries, _packed(history), now),
        )

    def forget(self, key: str) -> None:
        """Drop what was noted."""
        self._database.change("DELETE FROM postbus_noted WHERE key = ?", (key,))

    def put(self, failed: FailedMessage) -> None:
        """Keep it, with what was noted before."""

        def work(connection: sqlite3.Connection) -> None:
            _, before = _noted(connection, failed.key)
            history = (*before, *failed.history)[-HISTORY_LENGTH:]
            connection.execute("DELETE FROM postbus_noted WHERE key = ?", (failed.key,))
            connection.execute(
                f"REPLACE INTO postbus_failures ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608  a constant
                (
                    failed.key,
                    failed.consumer,
                    failed.reason,
                    failed.name,
                    failed.id,
                    failed.attempts,
                    failed.failed_at.timestamp(),
                    _packed(history),
                    failed.body,
                ),
            )

        self._database.write(work)

    def get(self, key: str) -> FailedMessage | None:
        """Return one, or None."""
        statement = f"SELECT {_COLUMNS} FROM postbus_failures WHERE key = ?"  # noqa: S608  a constant
        rows = self._database.read(statement, (key,))
        return _message(rows[0]) if rows else None

    def list(
        self,
        *,
        consumer: str | None = None,
        name: str | None = None,
        reason: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[FailedMessage]:
        """Return those that fit."""
        statement = (
            f"SELECT {_COLUMNS}{_WHERE} ORDER BY failed_at, key LIMIT :limit OFFSET :offset"
        )
        parameters = {
            "consumer": consumer,
            "name": name,
            "reason": reason,
            "limit": limit,
            "offset": offset,
        }
        return [_message(row) for row in self._database.read(statement, parameters)]

    def count(
        self, *, consumer: str | None = None, name: str | None = None, reason: str | None = None
    ) -> int:
        """Return how many fit."""
        parameters = {"consumer": consumer, "name": name, "reason": reason}
        ((count,),) = self._database.read(f"SELECT count(*){_WHERE}", parameters)
        return int(count)

    def replace(self, key: str, body: bytes) -> bool:
        """Give one another body."""
        return self._database.change(
            "UPDATE postbus_failures SET body = ? WHERE key = ?", (body, key)
        )

    def delete(self, key: str) -> bool:
        """Drop one."""
        return self._database.change("DELETE FROM postbus_failures WHERE key = ?", (key,))


def _noted(connection: sqlite3.Connection, key: str) -> tuple[int, tuple[Failure, ...]]:
    statement = "SELECT redeliveries, history FROM postbus_noted WHERE key = ?"
    row = connection.execute(statement, (key,)).fetchone()
    return (0, ()) if row is None else (row[0], _unpacked(row[1]))


def _packed(history: Sequence[Failure]) -> bytes:
    return msgspec.json.encode([attrs.asdict(each) for each in history])


def _unpacked(data: bytes) -> tuple[Failure, ...]:
    return msgspec.json.decode(data, type=_FAILURES)


def _message(row: Any) -> FailedMessage:
    key, consumer, reason, name, id_, attempts, failed_at, history, body = row
    return FailedMessage(
        key=key,
        consumer=consumer,
        reason=reason,
        name=name,
        id=id_,
        attempts=attempts,
        failed_at=datetime.fromtimestamp(failed_at, UTC),
        history=_unpacked(history),
        body=body,
    )
