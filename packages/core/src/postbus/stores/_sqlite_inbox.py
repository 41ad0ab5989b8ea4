"""The inbox in SQLite: joined to the transactions of the application where they share a file."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from postbus.stores._database import Database, translated
from postbus.stores._packing import pack_sends, unpack_sends
from postbus.stores._records import (
    Begun,
    Conflict,
    Done,
    InboxKey,
    New,
    PendingSend,
    Running,
)

__all__ = ["SQLiteInbox"]

_COLUMNS = "digest, owner, until, done_at, reply, sends"
_KEY = " WHERE id = ? AND handler = ?"
_OWN = f"{_KEY} AND owner = ? AND done_at IS NULL"


class SQLiteInbox:
    """An `Inbox` in SQLite. A row is claimed while `done_at` is null, and done after that."""

    def __init__(self, database: Database, clock: Callable[[], float], ttl: float) -> None:
        self._database = database
        self._clock = clock
        self._ttl = ttl

    def joins(self, handle: Any) -> bool:
        """Return whether *handle* is a connection to our file, with transactions."""
        if not isinstance(handle, sqlite3.Connection):
            return False
        # A connection that commits each statement for itself rolls nothing back.
        begins = (
            handle.isolation_level is not None and getattr(handle, "autocommit", -1) is not True
        )
        if not (begins or handle.in_transaction):
            return False
        for _, name, file in handle.execute("PRAGMA database_list"):
            if name == "main" and file:
                return _is_same(Path(file), self._database.path)
        return False

    def begin(self, id: str, handler: str, digest: bytes, lease: float | None) -> Begun:
        """Say what is known, and claim."""
        now = self._clock()
        statement = f"SELECT {_COLUMNS} FROM postbus_inbox{_KEY}"  # noqa: S608  constants
        rows = self._database.read(statement, (id, handler))
        begun = _begun(rows, InboxKey(id, handler, digest), now)
        if lease is None or not isinstance(begun, New):
            return begun
        key = InboxKey(id, handler, digest, secrets.token_hex(8))

        def claim(connection: sqlite3.Connection) -> Begun:
            rows = connection.execute(statement, (id, handler)).fetchall()
            begun = _begun(rows, key, now)
            if isinstance(begun, New):
                connection.execute(
                    "REPLACE INTO postbus_inbox (id, handler, digest, owner, until)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (id, handler, digest, key.owner, now + lease),
                )
            return begun

        return self._database.write(claim)

    def finish(
        self,
        key: InboxKey,
        reply: bytes | None,
        sends: Sequence[PendingSend],
        within: Any = None,
    ) -> bool:
        """Note that it was handled, in a transaction of ours or in the one of *within*."""
        now, packed = self._clock(), pack_sends(sends)
        if within is None:
            statement = f"UPDATE postbus_inbox SET done_at = ?, reply = ?, sends = ?{_OWN}"  # noqa: S608  constants
            parameters = (now, reply, packed, key.id, key.handler, key.owner)
            return self._database.change(statement, parameters)
        with translated(self._database.path):
            # A claim whose lease has ended is nobody's; any other row is somebody's.
            cursor = within.execute(
                "INSERT INTO postbus_inbox (id, handler, digest, done_at, reply, sends)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id, handler) DO UPDATE SET"
                " digest = excluded.digest, owner = NULL, done_at = excluded.done_at,"
                " reply = excluded.reply, sends = excluded.sends"
                " WHERE done_at IS NULL AND until <= excluded.done_at",
                (key.id, key.handler, key.digest, now, reply, packed),
            )
            return bool(cursor.rowcount > 0)

    def extend(self, key: InboxKey, lease: float) -> bool:
        """Keep the row longer."""
        statement = f"UPDATE postbus_inbox SET until = ?{_OWN}"  # noqa: S608  constants
        parameters = (self._clock() + lease, key.id, key.handler, key.owner)
        return self._database.change(statement, parameters)

    def abandon(self, key: InboxKey) -> None:
        """Give the row back."""
        statement = f"DELETE FROM postbus_inbox{_OWN}"  # noqa: S608  constants
        self._database.change(statement, (key.id, key.handler, key.owner))

    def sent(self, key: InboxKey) -> None:
        """Note that everything has left."""
        statement = f"UPDATE postbus_inbox SET sends = NULL{_KEY}"  # noqa: S608  constants
        self._database.change(statement, (key.id, key.handler))

    def purge(self) -> int:
        """Drop old rows."""

        def work(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "DELETE FROM postbus_inbox WHERE done_at < ? AND sends IS NULL",
                (self._clock() - self._ttl,),
            ).rowcount

        return self._database.write(work)


def _begun(rows: list[Any], key: InboxKey, now: float) -> Begun:
    if not rows:
        return New(key)
    ((digest, owner, until, done_at, reply, sends),) = rows
    if digest != key.digest:
        return Conflict()
    if done_at is not None:
        return Done(key, reply, unpack_sends(sends))
    assert owner is not None  # noqa: S101  only a claim is not done
    return New(key) if until <= now else Running(datetime.fromtimestamp(until, UTC))


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
