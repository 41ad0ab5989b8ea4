"""The schedule in SQLite."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from postbus.stores._database import Database, put_rows
from postbus.stores._packing import pack_message, unpack_message
from postbus.stores._records import Claim, ScheduledMessage

__all__ = ["SQLiteSchedule"]

_HELD = " WHERE id = ? AND target = ? AND token = ?"


class SQLiteSchedule:
    """A `ScheduleStore` in SQLite.

    A row can be claimed from `visible` on: that is when it is due, and then, while somebody has
    it, when the lease ends. `token` names the last claim, and is kept by nobody else.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def put(self, scheduled: ScheduledMessage) -> None:
        """Keep it."""
        self.put_many((scheduled,))

    def put_many(self, scheduled: Sequence[ScheduledMessage]) -> None:
        """Keep them."""
        self._database.write(lambda connection: _put(connection, scheduled))

    def claim(self, targets: Sequence[str], *, limit: int, lease: float) -> Sequence[Claim]:
        """Take what is due."""
        now = self._clock()
        # Looked at first without the write lock: an idle worker asks often, and mostly in vain.
        due = self.next_due(targets)
        if due is None or due.timestamp() > now:
            return ()

        def work(connection: sqlite3.Connection) -> list[Claim]:
            rows = connection.execute(
                "SELECT id, target, due, message, token FROM postbus_schedule"
                " WHERE target IN (SELECT value FROM json_each(?)) AND visible <= ?"
                " ORDER BY due LIMIT ?",
                (json.dumps(list(targets)), now, limit),
            ).fetchall()
            claims: list[Claim] = []
            for id_, target, due, message, before in rows:
                token = secrets.token_hex(8)
                connection.execute(
                    "UPDATE postbus_schedule SET token = ?, visible = ?"
                    " WHERE id = ? AND target = ?",
                    (token, now + lease, id_, target),
                )
                claims.append(Claim(_scheduled(target, due, message), token, before is not None))
            return claims

        return self._database.write(work)

    def complete(self, claim: Claim) -> bool:
        """Drop what was claimed."""
        statement = f"DELETE FROM postbus_schedule{_HELD}"  # noqa: S608  constants
        return self._database.change(statement, _holder(claim))

    def release(self, claim: Claim) -> bool:
        """Give it back."""
        # Another token, not none: the next holder hears that it was delivered before.
        statement = f"UPDATE postbus_schedule SET token = '', visible = due{_HELD}"  # noqa: S608  constants
        return self._database.change(statement, _holder(claim))

    def extend(self, claim: Claim, lease: float) -> bool:
        """Keep it longer."""
        statement = f"UPDATE postbus_schedule SET visible = ?{_HELD}"  # noqa: S608  constants
        return self._database.change(statement, (self._clock() + lease, *_holder(claim)))

    def replace(self, claim: Claim, scheduled: ScheduledMessage) -> bool:
        """Put another in its place."""

        def work(connection: sqlite3.Connection) -> bool:
            statement = f"DELETE FROM postbus_schedule{_HELD}"  # noqa: S608  constants
            if connection.execute(statement, _holder(claim)).rowcount == 0:
                return False
            _put(connection, (scheduled,))
            return True

        return self._database.write(work)

    def next_due(self, targets: Sequence[str]) -> datetime | None:
        """Return when something can be claimed next."""
        statement = (
            "SELECT min(visible) FROM postbus_schedule"
            " WHERE target IN (SELECT value FROM json_each(?))"
        )
        ((due,),) = self._database.read(statement, (json.dumps(list(targets)),))
        return None if due is None else datetime.fromtimestamp(due, UTC)

    def list(
        self,
        *,
        target: str | None = None,
        name: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[ScheduledMessage]:
        """Return those that fit."""
        rows = self._database.read(
            "SELECT target, due, message FROM postbus_schedule"
            " WHERE (:target IS NULL OR target = :target) AND (:name IS NULL OR name GLOB :name)"
            " ORDER BY due, id LIMIT :limit OFFSET :offset",
            {"target": target, "name": name, "limit": limit, "offset": offset},
        )
        return [_scheduled(*row) for row in rows]

    def cancel(self, id: str, target: str) -> bool:
        """Drop one that nobody has claimed."""
        return self._database.change(
            "DELETE FROM postbus_schedule WHERE id = ? AND target = ?"
            " AND (token IS NULL OR token = '' OR visible <= ?)",
            (id, target, self._clock()),
        )


def _put(connection: sqlite3.Connection, scheduled: Sequence[ScheduledMessage]) -> None:
    rows: list[tuple[Any, ...]] = []
    for each in scheduled:
        message, due = each.message, each.due.timestamp()
        rows.append((message.id, each.target, message.name, due, due, pack_message(message)))
    columns = ("id", "target", "name", "due", "visible", "message")
    put_rows(connection, "postbus_schedule", columns, rows)


def _holder(claim: Claim) -> tuple[str, str, str]:
    return claim.scheduled.message.id, claim.scheduled.target, claim.token


def _scheduled(target: str, due: Any, message: bytes) -> ScheduledMessage:
    return ScheduledMessage(
        target=target, due=datetime.fromtimestamp(due, UTC), message=unpack_message(message)
    )
