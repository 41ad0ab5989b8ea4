"""The records of the stores that core has, and the keys that their sections may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import attrs

from postbus.settings import setting
from postbus.stores._memory import MemoryStore
from postbus.stores._protocols import StoreKind
from postbus.stores._sqlite import SQLiteStore

__all__ = ["MEMORY", "SQLITE", "MemoryStoreSettings", "SQLiteStoreSettings"]

# Longer than a message is retried, or waits in a failure store for a person to come back.
INBOX_TTL = 7 * 86_400.0
BUSY_TIMEOUT = 5.0


@attrs.frozen(kw_only=True)
class SQLiteStoreSettings:
    """The keys of a section with `store = "sqlite"`. Durations are seconds."""

    path: str = setting(
        doc="the file of the database; made with mode 0600 when it is not there. A relative path "
        "counts from where the process was started. An inbox joins the transactions of "
        "`sqlite3.Connection`s to the same file",
        pattern=r"(?!:memory:)(?!file:)[^\0]+",
        expected='the path of a file; for one that lives in memory say store = "memory"',
    )
    busy_timeout: float = setting(
        BUSY_TIMEOUT,
        doc="how long to wait for another process that writes; 5 is long for a transaction, and "
        "then consumption pauses",
        above=0.0,
        maximum=60.0,
    )
    inbox_ttl: float = setting(
        INBOX_TTL,
        doc="how long an inbox remembers a message: a week, which is longer than any retry",
        above=0.0,
    )


@attrs.frozen(kw_only=True)
class MemoryStoreSettings:
    """The keys of a section with `store = "memory"`."""


class _SQLite(StoreKind):
    name: ClassVar[str] = "sqlite"
    settings: ClassVar[type[Any]] = SQLiteStoreSettings

    def make(self, settings: Any) -> SQLiteStore:
        return SQLiteStore(
            Path(settings.path),
            busy_timeout=settings.busy_timeout,
            inbox_ttl=settings.inbox_ttl,
        )


class _Memory(StoreKind):
    name: ClassVar[str] = "memory"
    settings: ClassVar[type[Any]] = MemoryStoreSettings

    def make(self, settings: Any) -> MemoryStore:
        return MemoryStore()


SQLITE = _SQLite()
MEMORY = _Memory()
