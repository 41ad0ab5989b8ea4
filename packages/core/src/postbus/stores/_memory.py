"""Stores in the memory of this process: for tests, and for work that need not survive it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import attrs

from postbus.stores._protocols import FailureStore, Inbox, ScheduleStore, Store
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
)

__all__ = ["MemoryStore"]

_INBOX_TTL = 7 * 86_400.0


class MemoryStore(Store):
    """Keeps everything in dicts. Any thread; nothing of it outlives the process.

    Args:
        clock: the time, in seconds since 1970.
        inbox_ttl: how many seconds the inbox remembers a message.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.time, inbox_ttl: float = _INBOX_TTL
    ) -> None:
        lock = threading.Lock()
        self.failures: FailureStore = MemoryFailures(lock)
        self.schedule: ScheduleStore = MemorySchedule(lock, clock)
        self.inbox: Inbox = MemoryInbox(lock, clock, inbox_ttl)

    def close(self) -> None:
        """Do nothing: what is kept can still be looked at."""


@attrs.define
class _Noted:
    redeliveries: int = 0
    history: tuple[Failure, ...] = ()


class MemoryFailures:
    """A `FailureStore` in memory."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._noted: dict[str, _Noted] = {}
        self._failed: dict[str, FailedMessage] = {}

    def note_many(self, failures: Sequence[tuple[str, Failure]]) -> None:
        """Remember failures."""
        with self._lock:
            for key, failure in failures:
                noted = self._noted.setdefault(key, _Noted())
                noted.history = (*noted.history, failure)[-HISTORY_LENGTH:]

    def note_redelivery(self, key: str) -> int:
        """Count that it came back."""
        with self._lock:
            noted = self._noted.setdefault(key, _Noted())
            noted.redeliveries += 1
            return noted.redeliveries

    def forget(self, key: str) -> None:
        """Drop what was noted."""
        with self._lock:
            self._noted.pop(key, None)

    def put(self, failed: FailedMessage) -> None:
        """Keep it, with what was noted before."""
        self.put_many((failed,))

    def put_many(self, failed: Sequence[FailedMessage]) -> None:
        """Keep them."""
        with self._lock:
            for each in failed:
                noted = self._noted.pop(each.key, _Noted())
                history = (*noted.history, *each.history)[-HISTORY_LENGTH:]
                self._failed[each.key] = attrs.evolve(each, history=history)

    def get(self, key: str) -> FailedMessage | None:
        """Return one, or None."""
        return self._failed.get(key)

    def _fitting(
        self, consumer: str | None, name: str | None, reason: str | None
    ) -> list[FailedMessage]:
        with self._lock:
            every = tuple(self._failed.values())
        return sorted(
            (
                each
                for each in every
                if consumer in {None, each.consumer}
                and (name is None or fnmatchcase(each.name or "", name))
                and reason in {None, each.reason}
            ),
            key=lambda each: (each.failed_at, each.key),
        )

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
        return self._fitting(consumer, name, reason)[offset : offset + limit]

    def count(
        self, *, consumer: str | None = None, name: str | None = None, reason: str | None = None
    ) -> int:
        """Return how many fit."""
        return len(self._fitting(consumer, name, reason))

    def replace(self, key: str, body: bytes) -> bool:
        """Give one another body."""
        with self._lock:
            if key not in self._failed:
                return False
            self._failed[key] = attrs.evolve(self._failed[key], body=body)
            return True

    def delete(self, key: str) -> bool:
        """Drop one."""
        with self._lock:
            return self._failed.pop(key, None) is not None


@attrs.define
class _Waiting:
    scheduled: ScheduledMessage
    number: int = 0
    until: float = 0.0

    @property
    def token(self) -> str:
        return str(self.number)

    @property
    def due(self) -> float:
        return max(self.scheduled.due.timestamp(), self.until)


class MemorySchedule:
    """A `ScheduleStore` in memory."""

    def __init__(self, lock: threading.Lock, clock: Callable[[], float]) -> None:
        self._lock = lock
        self._clock = clock
        self._rows: dict[tuple[str, str], _Waiting] = {}
        self._claims = 0

    def put(self, scheduled: ScheduledMessage) -> None:
        """Keep it."""
        self.put_many((scheduled,))

    def put_many(self, scheduled: Sequence[ScheduledMessage]) -> None:
        """Keep them."""
        with self._lock:
            for each in scheduled:
                self._rows[each.message.id, each.target] = _Waiting(each)

    def claim(self, targets: Sequence[str], *, limit: int, lease: float) -> Sequence[Claim]:
        """Take what is due."""
        now = self._clock()
        claims: list[Claim] = []
        with self._lock:
            for row in sorted(self._rows.values(), key=lambda each: each.scheduled.due):
                if len(claims) == limit or row.scheduled.due.timestamp() > now:
                    break
                if row.scheduled.target in targets and row.due <= now:
                    redelivered = row.number > 0
                    self._claims += 1
                    row.number, row.until = self._claims, now + lease
                    claims.append(Claim(row.scheduled, row.token, redelivered))
        return claims

    def _held(self, claim: Claim) -> _Waiting | None:
        row = self._rows.get((claim.scheduled.message.id, claim.scheduled.target))
        return row if row is not None and row.token == claim.token else None

    def complete(self, claim: Claim) -> bool:
        """Drop what was claimed."""
        with self._lock:
            if self._held(claim) is None:
                return False
            del self._rows[claim.scheduled.message.id, claim.scheduled.target]
            return True

    def release(self, claim: Claim) -> bool:
        """Give it back."""
        with self._lock:
            row = self._held(claim)
            if row is not None:
                # Another number: what was claimed has no say any more.
                self._claims += 1
                row.number, row.until = self._claims, 0.0
            return row is not None

    def extend(self, claim: Claim, lease: float) -> bool:
        """Keep it longer."""
        with self._lock:
            row = self._held(claim)
            if row is not None:
                row.until = self._clock() + lease
            return row is not None

    def replace(self, claim: Claim, scheduled: ScheduledMessage) -> bool:
        """Put another in its place."""
        if not self.complete(claim):
            return False
        self.put(scheduled)
        return True

    def next_due(self, targets: Sequence[str]) -> datetime | None:
        """Return when something can be claimed next."""
        with self._lock:
            due = [each.due for each in self._rows.values() if each.scheduled.target in targets]
        return datetime.fromtimestamp(min(due), UTC) if due else None

    def list(
        self,
        *,
        target: str | None = None,
        name: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[ScheduledMessage]:
        """Return those that fit."""
        with self._lock:
            every = [each.scheduled for each in self._rows.values()]
        fitting = [
            each
            for each in every
            if target in {None, each.target}
            and (name is None or fnmatchcase(each.message.name, name))
        ]
        return sorted(fitting, key=lambda each: each.due)[offset : offset + limit]

    def cancel(self, id: str, target: str) -> bool:
        """Drop one that nobody has claimed."""
        with self._lock:
            row = self._rows.get((id, target))
            if row is None or row.until > self._clock():
                return False
            del self._rows[id, target]
            return True


@attrs.define
class _Entry:
    digest: bytes
    at: float
    owner: str = ""
    until: float = 0.0
    is_done: bool = False
    reply: bytes | None = None
    sends: tuple[PendingSend, ...] = ()


class MemoryInbox:
    """An `Inbox` in memory, which joins no transaction."""

    def __init__(self, lock: threading.Lock, clock: Callable[[], float], ttl: float) -> None:
        self._lock = lock
        self._clock = clock
        self._ttl = ttl
        self._rows: dict[tuple[str, str], _Entry] = {}
        self._owners = 0

    def joins(self, handle: Any) -> bool:
        """Return False: memory has no transactions."""
        return False

    def begin(self, id: str, handler: str, digest: bytes, lease: float | None) -> Begun:
        """Say what is known, and claim."""
        now = self._clock()
        with self._lock:
            row = self._rows.get((id, handler))
            if row is not None and row.digest != digest:
                return Conflict()
            if row is not None and row.is_done:
                return Done(InboxKey(id, handler, digest), row.reply, row.sends)
            if row is not None and row.until > now:
                return Running(datetime.fromtimestamp(row.until, UTC))
            if lease is None:
                return New(InboxKey(id, handler, digest))
            self._owners += 1
            owner = str(self._owners)
            self._rows[id, handler] = _Entry(digest, now, owner, now + lease)
            return New(InboxKey(id, handler, digest, owner))

    def _held(self, key: InboxKey) -> _Entry | None:
        row = self._rows.get((key.id, key.handler))
        return row if row is not None and row.owner == key.owner and not row.is_done else None

    def finish(
        self,
        key: InboxKey,
        reply: bytes | None,
        sends: Sequence[PendingSend],
        within: Any = None,
    ) -> bool:
        """Note that it was handled."""
        with self._lock:
            row = self._held(key)
            if row is None:
                return False
            row.is_done, row.reply, row.sends, row.at = True, reply, tuple(sends), self._clock()
            return True

    def extend(self, key: InboxKey, lease: float) -> bool:
        """Keep the row longer."""
        with self._lock:
            row = self._held(key)
            if row is not None:
                row.until = self._clock() + lease
            return row is not None

    def abandon(self, key: InboxKey) -> None:
        """Give the row back."""
        with self._lock:
            if self._held(key) is not None:
                del self._rows[key.id, key.handler]

    def sent(self, key: InboxKey) -> None:
        """Note that everything has left."""
        with self._lock:
            row = self._rows.get((key.id, key.handler))
            if row is not None:
                row.sends = ()

    def purge(self) -> int:
        """Drop old rows."""
        before = self._clock() - self._ttl
        with self._lock:
            old = [
                key
                for key, row in self._rows.items()
                if row.at < before and row.is_done and not row.sends
            ]
            for key in old:
                del self._rows[key]
        return len(old)
