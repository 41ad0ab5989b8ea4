"""What a store does, for those who write one, and the record that makes one known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Protocol

from postbus.stores._records import (
    Begun,
    Claim,
    FailedMessage,
    Failure,
    InboxKey,
    PendingSend,
    ScheduledMessage,
)

__all__ = ["FailureStore", "Inbox", "ScheduleStore", "Store", "StoreKind"]


class FailureStore(Protocol):
    """Keeps messages that a worker gave up until a person has looked at them.

    Every method blocks, is safe from any thread and after a fork, and raises a `TransportError`
    while the store is down or full.
    """

    def note_many(self, failures: Sequence[tuple[str, Failure]]) -> None:
        """Remember failures, each with its key, of messages that are tried again.

        The last five of a message are kept.
        """
        ...

    def note_redelivery(self, key: str) -> int:
        """Count that a message came back without a word; return how often it has by now."""
        ...

    def forget(self, key: str) -> None:
        """Drop what was noted about a message that was handled after all."""
        ...

    def put(self, failed: FailedMessage) -> None:
        """Keep *failed*, in the place of what its key has, with the failures noted before."""
        ...

    def put_many(self, failed: Sequence[FailedMessage]) -> None:
        """Do that for each: all are kept, or none."""
        ...

    def get(self, key: str) -> FailedMessage | None:
        """Return one, or None."""
        ...

    def list(
        self,
        *,
        consumer: str | None = None,
        name: str | None = None,
        reason: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[FailedMessage]:
        """Return those that fit, the longest failed first; *name* may be a glob."""
        ...

    def count(
        self, *, consumer: str | None = None, name: str | None = None, reason: str | None = None
    ) -> int:
        """Return how many there are that fit."""
        ...

    def replace(self, key: str, body: bytes) -> bool:
        """Give one another body; False when it is not there."""
        ...

    def delete(self, key: str) -> bool:
        """Drop one; False when it is not there."""
        ...


class ScheduleStore(Protocol):
    """Keeps messages until they are due. As for calls: see `FailureStore`."""

    def put(self, scheduled: ScheduledMessage) -> None:
        """Keep *scheduled*, in the place of what its id and target have."""
        ...

    def put_many(self, scheduled: Sequence[ScheduledMessage]) -> None:
        """Do that for each: all are kept, or none."""
        ...

    def claim(self, targets: Sequence[str], *, limit: int, lease: float) -> Sequence[Claim]:
        """Take what is due for *targets*, the longest due first, for *lease* seconds."""
        ...

    def complete(self, claim: Claim) -> bool:
        """Drop what was claimed; False when the claim is somebody else's by now."""
        ...

    def release(self, claim: Claim) -> bool:
        """Give a claim back: the message is due again at once."""
        ...

    def extend(self, claim: Claim, lease: float) -> bool:
        """Keep a claim for another *lease* seconds from now."""
        ...

    def replace(self, claim: Claim, scheduled: ScheduledMessage) -> bool:
        """Put *scheduled* in the place of what was claimed, and let go of it."""
        ...

    def next_due(self, targets: Sequence[str]) -> datetime | None:
        """Return when something for *targets* can be claimed next; None: nothing waits."""
        ...

    def list(
        self,
        *,
        target: str | None = None,
        name: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[ScheduledMessage]:
        """Return those that fit, the next due first; *name* may be a glob."""
        ...

    def cancel(self, id: str, target: str) -> bool:
        """Drop one; False when it is not there, or somebody has claimed it."""
        ...


class Inbox(Protocol):
    """Knows which messages were handled, by id and handler. As for calls: see `FailureStore`."""

    def joins(self, handle: Any) -> bool:
        """Return whether rows can be written in the transaction of *handle*.

        *handle* is what entering the unit of work returned. Called in the unit's own thread.
        """
        ...

    def begin(self, id: str, handler: str, digest: bytes, lease: float | None) -> Begun:
        """Say what is known; New claims the row for *lease* seconds, None claims nothing."""
        ...

    def finish(
        self,
        key: InboxKey,
        reply: bytes | None,
        sends: Sequence[PendingSend],
        within: Any = None,
    ) -> bool:
        """Note that it was handled; False when somebody else has.

        *within* is a handle that `joins`: then the row is written in its transaction, and False
        means that the transaction must be rolled back.
        """
        ...

    def extend(self, key: InboxKey, lease: float) -> bool:
        """Keep a claimed row for another *lease* seconds from now."""
        ...

    def abandon(self, key: InboxKey) -> None:
        """Give a claimed row back: it was not handled."""
        ...

    def sent(self, key: InboxKey) -> None:
        """Note that what the row holds has left."""
        ...

    def purge(self) -> int:
        """Drop rows that are older than the inbox keeps them; return how many."""
        ...


class Store(ABC):
    """One section of `[postbus.stores]`: three stores in one place.

    It connects on first use, never when built. Whoever built it closes it.
    """

    failures: FailureStore
    schedule: ScheduleStore
    inbox: Inbox

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection. Idempotent."""


class StoreKind(ABC):
    """The record of a kind of store: `store = NAME` in a section.

    Core has `sqlite` and `memory`; another distribution announces its own in the entry point
    group `postbus.stores`. *settings* is an attrs class: its fields are the keys of a section.
    """

    name: ClassVar[str]
    settings: ClassVar[type[Any]]

    @abstractmethod
    def make(self, settings: Any) -> Store:
        """Build a store; connects nothing."""
