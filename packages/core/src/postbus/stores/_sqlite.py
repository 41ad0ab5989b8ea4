"""Stores in a SQLite database: one file, durable, shared by processes of one machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from postbus.stores._database import Database
from postbus.stores._protocols import FailureStore, Inbox, ScheduleStore, Store
from postbus.stores._sqlite_failures import SQLiteFailures
from postbus.stores._sqlite_inbox import SQLiteInbox
from postbus.stores._sqlite_schedule import SQLiteSchedule

__all__ = ["SQLiteStore"]

_BUSY_TIMEOUT = 5.0
_INBOX_TTL = 7 * 86_400.0


class SQLiteStore(Store):
    """Keeps everything in tables of its own, `postbus_*`, in the database at *path*.

    Any thread, any number of processes, after a fork. A write has reached the disk when the call
    returns (WAL, synchronous=FULL): a millisecond to tens of them. Whoever built it closes it.

    Args:
        path: the file; made with mode 0600, tables included, on first use.
        busy_timeout: seconds to wait for another process that writes.
        inbox_ttl: how many seconds the inbox remembers a message.
        clock: the time, in seconds since 1970.
    """

    def __init__(
        self,
        path: Path,
        *,
        busy_timeout: float = _BUSY_TIMEOUT,
        inbox_ttl: float = _INBOX_TTL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = Database(path, busy_timeout)
        self.failures: FailureStore = SQLiteFailures(self._database, clock)
        self.schedule: ScheduleStore = SQLiteSchedule(self._database, clock)
        self.inbox: Inbox = SQLiteInbox(self._database, clock, inbox_ttl)

    def close(self) -> None:
        """Close the connection. Idempotent; the next call would open another."""
        self._database.close()
