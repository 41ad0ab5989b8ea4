"""The failure store in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from postbus.stores._database import Database, put_rows
from postbus.stores._records import HISTORY_LENGTH, FailedMessage, Failure

__all__ = ["SQLiteFailures"]

# What was noted about a message that never came back is nobody's after this many seconds.
_NOTED_TTL = 30 * 86_400.0
_FAILURES = tuple[Failure, ...]
_Noted = dict[str, tuple[int, tuple[Failure, ...]]]
_COLUMNS = (
    "key",
    "consumer",
    "reason",
    "name",
    "id",
    "attempts",
    "failed_at",
    "history",
    "body",
)
_SELECT = f"SELECT {', '.join(_COLUMNS)}"
_AMONG = " WHERE key IN (SELECT value FROM json_each(?))"
_WHERE = (
    " FROM postbus_failures WHERE (:consumer IS NULL OR consumer = :consumer)"
    " AND (:name IS NULL OR name GLOB :name) AND (:reason IS NULL OR reason = :reason)"
)


class SQLiteFailures:
    """A `FailureStore` in SQLite."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def note_many(self, failures: Sequence[tuple[str, Failure]]) -> None:
        """Remember failures."""

        def work(connection: sqlite3.Connection) -> None:
            noted = _noted(connection, [key for key, _ in failures])
            for key, failure in failures:
                redeliveries, history = noted[key]
                noted[key] = redeliveries, (*history, failure)[-HISTORY_LENGTH:]
            self._remember(connection, noted)

        self._database.write(work)

    def note_redelivery(self, key: str) -> int:
        """Count that it came back."""

        def work(connection: sqlite3.Connection) -> int:
            ((redeliveries, history),) = _noted(connection, [key]).values()
            self._remember(connection, {key: (redeliveries + 1, history)})
            return redeliveries + 1

        return self._database.write(work)

    def _remember(self, connection: sqlite3.Connection, noted: _Noted) -> None:
        now = self._clock()
        connection.execute("DELETE FROM postbus_noted WHERE at < ?", (now - _NOTED_TTL,))
        rows = [
            (key, redeliveries, _packed(history), now)
            for key, (redeliveries, history) in noted.items()
        ]
        put_rows(connection, "postbus_noted", ("key", "redeliveries", "history", "at"), rows)

    def forget(self, key: str) -> None:
        """Drop what was noted."""
        self._database.change("DELETE FROM postbus_noted WHERE key = ?", (key,))

    def put(self, failed: FailedMessage) -> None:
        """Keep it, with what was noted before."""
        self.put_many((failed,))

    def put_many(self, failed: Sequence[FailedMessage]) -> None:
        """Keep them."""
        keys = [each.key for each in failed]

        def work(connection: sqlite3.Connection) -> None:
            noted = _noted(connection, keys)
            connection.execute(f"DELETE FROM postbus_noted{_AMONG}", (json.dumps(keys),))  # noqa: S608  constants
            rows = [
                (
                    each.key,
                    each.consumer,
                    each.reason,
                    each.name,
                    each.id,
                    each.attempts,
                    each.failed_at.timestamp(),
                    _packed((*noted[each.key][1], *each.history)[-HISTORY_LENGTH:]),
                    each.body,
                )
                for each in failed
            ]
            put_rows(connection, "postbus_failures", _COLUMNS, rows)

        self._database.write(work)

    def get(self, key: str) -> FailedMessage | None:
        """Return one, or None."""
        statement = f"{_SELECT} FROM postbus_failures WHERE key = ?"
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
        statement = f"{_SELECT}{_WHERE} ORDER BY failed_at, key LIMIT :limit OFFSET :offset"
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


def _noted(connection: sqlite3.Connection, keys: Sequence[str]) -> _Noted:
    """Return what was noted about each of *keys*: how often it came back, and its failures."""
    noted: _Noted = dict.fromkeys(keys, (0, ()))
    statement = f"SELECT key, redeliveries, history FROM postbus_noted{_AMONG}"  # noqa: S608  constants
    for key, redeliveries, history in connection.execute(statement, (json.dumps(keys),)):
        noted[key] = redeliveries, _unpacked(history)
    return noted


def _packed(history: Sequence[Failure]) -> bytes:
    return msgspec.json.encode(history)


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
