"""Where messages are kept: those that failed, those that are not due yet, those handled already.

`FailureStore`, `ScheduleStore` and `Inbox` are the protocols; a `Store` has one of each. SQLite
and memory are here. A store of another kind announces a `StoreKind` in the entry point group
`postbus.stores`.
"""

from __future__ import annotations

from postbus.stores._delayed import DelayedProducer
from postbus.stores._kinds import MEMORY, SQLITE, MemoryStoreSettings, SQLiteStoreSettings
from postbus.stores._memory import MemoryStore
from postbus.stores._protocols import FailureStore, Inbox, ScheduleStore, Store, StoreKind
from postbus.stores._records import (
    HISTORY_LENGTH,
    Begun,
    Claim,
    Conflict,
    Done,
    FailedMessage,
    Failure,
    InboxKey,
    New,
    PendingSend,
    Running,
    ScheduledMessage,
    consumer_target,
    producer_target,
)
from postbus.stores._sqlite import SQLiteStore

__all__ = [
    "HISTORY_LENGTH",
    "MEMORY",
    "SQLITE",
    "Begun",
    "Claim",
    "Conflict",
    "DelayedProducer",
    "Done",
    "FailedMessage",
    "Failure",
    "FailureStore",
    "Inbox",
    "InboxKey",
    "MemoryStore",
    "MemoryStoreSettings",
    "New",
    "PendingSend",
    "Running",
    "SQLiteStore",
    "SQLiteStoreSettings",
    "ScheduleStore",
    "ScheduledMessage",
    "Store",
    "StoreKind",
    "consumer_target",
    "producer_target",
]
