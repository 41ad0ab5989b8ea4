"""What stores keep: failed messages, scheduled messages, and the state of a handled one."""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

import attrs

from postbus.transports import WireMessage

__all__ = [
    "HISTORY_LENGTH",
    "Begun",
    "Claim",
    "Conflict",
    "Done",
    "FailedMessage",
    "Failure",
    "InboxKey",
    "New",
    "PendingSend",
    "Running",
    "ScheduledMessage",
    "consumer_target",
    "producer_target",
]

# Enough to see whether a message fails in the same way each time, and no more than a page.
HISTORY_LENGTH = 5


@attrs.frozen(kw_only=True)
class Failure:
    """One time that a message failed.

    *reason* is a stable code, *error* the name of the exception's class and *code* the code it
    has on the wire. *text* is what it said, without secrets and of at most 1 KiB; *where* is the
    line that raised it.
    """

    at: datetime
    reason: str
    error: str
    code: str | None = None
    text: str = ""
    where: str | None = None


@attrs.frozen(kw_only=True)
class FailedMessage:
    """A message that a worker gave up, with its bytes as they were.

    *key* is the row's own: the same message of the same consumer has the same one. *id* and
    *name* are None where the bytes could not be read. *attempts* counts how often it failed;
    *history* are the last five failures, oldest first.
    """

    key: str
    consumer: str
    body: bytes = attrs.field(repr=False)
    reason: str
    id: str | None = None
    name: str | None = None
    attempts: int = 1
    failed_at: datetime
    history: tuple[Failure, ...] = attrs.field(default=(), repr=False)


@attrs.frozen(kw_only=True)
class ScheduledMessage:
    """A message that waits until it is due. *target* says whose it is then.

    That is `consumers.NAME` for a message to be handled again, and `producers.NAME` for one to be
    sent. A store has one row for each id and target.
    """

    target: str
    due: datetime
    message: WireMessage = attrs.field(repr=False)


@attrs.frozen
class Claim:
    """A scheduled message that its holder has until the lease ends; *token* is the fence."""

    scheduled: ScheduledMessage
    token: str
    redelivered: bool = False


@attrs.frozen
class InboxKey:
    """Which row of an inbox is meant, and who may write it."""

    id: str
    handler: str
    digest: bytes = attrs.field(repr=False)
    owner: str = attrs.field(default="", repr=False)


@attrs.frozen
class PendingSend:
    """A message that a handler sent, and the producer it goes to, by the name of its section."""

    producer: str
    message: WireMessage = attrs.field(repr=False)


@attrs.frozen
class New:
    """Nobody has handled it: it is the caller's to do."""

    key: InboxKey


@attrs.frozen
class Running:
    """Somebody is at it until *until*, unless it is extended."""

    until: datetime


@attrs.frozen
class Done:
    """It was handled. *reply* is the answer, *sends* what has not left yet."""

    key: InboxKey
    reply: bytes | None = attrs.field(default=None, repr=False)
    sends: tuple[PendingSend, ...] = ()


@attrs.frozen
class Conflict:
    """Another message was handled under the same id: this one must not pass for it."""


Begun: TypeAlias = New | Running | Done | Conflict


def consumer_target(name: str) -> str:
    """Return the target of what the consumer *name* is to handle."""
    return f"consumers.{name}"


def producer_target(name: str) -> str:
    """Return the target of what the producer *name* is to send."""
    return f"producers.{name}"
