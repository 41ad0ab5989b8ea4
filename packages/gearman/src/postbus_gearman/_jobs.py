"""What a message is to gearman: submissions, levels of urgency, unique ids, settlements."""

from __future__ import annotations

import re
import secrets
from itertools import count
from typing import TYPE_CHECKING

import attrs

from postbus.errors import RejectedError, UnsupportedError
from postbus_gearman._protocol import Kind, packet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postbus.transports import Capabilities, Reply, WireMessage
    from postbus_gearman._protocol import Packet

__all__ = ["Job", "answer", "ask", "check", "complete", "redelivered", "submit", "unique_ids"]

_LAST_PRIORITY = 9
_BACKGROUND = (Kind.SUBMIT_JOB_LOW_BG, Kind.SUBMIT_JOB_BG, Kind.SUBMIT_JOB_HIGH_BG)
_FOREGROUND = (Kind.SUBMIT_JOB_LOW, Kind.SUBMIT_JOB, Kind.SUBMIT_JOB_HIGH)
_FIRST_NORMAL, _FIRST_HIGH = 3, 7
# A server does not tell a worker whether anybody waits for the answer, nor how urgent a job is;
# the unique ids of our background jobs do.
_SENT = b"postbus.sent.%d.%b"
_ASKED = b"postbus.asked.%b"
_sent = re.compile(rb"postbus\.sent\.([0-9])\.").match
_find_redelivered = re.compile(rb"^([^\t\n]+)\t[1-9]", re.MULTILINE).findall


def unique_ids() -> Iterator[bytes]:
    """Return ids that no job has or had. Any thread may take the next; a fork may not."""
    return map((secrets.token_hex(8).encode() + b".%d").__mod__, count())


def _level(priority: int | None) -> int:
    """Return the place in gearman's three levels."""
    urgency = priority or 0
    return (urgency >= _FIRST_NORMAL) + (urgency >= _FIRST_HIGH)


def check(message: WireMessage, capabilities: Capabilities) -> None:
    """Refuse what a gearman server cannot do, before it is sent.

    Raises:
        RejectedError: too large, or a priority that there is not.
        UnsupportedError: a delay or an expiry.
    """
    what, limit = f"{message.name} {message.id}", capabilities.max_size_bytes
    if limit is not None and len(message.body) > limit:
        msg = f"{what}: the body has {len(message.body)} bytes, at most {limit} are configured"
        raise RejectedError(msg)
    priority = message.priority
    if not 0 <= (priority or 0) <= _LAST_PRIORITY:
        msg = f"{what}: priority must be 0 to {_LAST_PRIORITY}, got {priority}"
        raise RejectedError(msg)
    if message.delay:
        raise UnsupportedError(f"{what}: gearman cannot delay a job")
    if message.expires_at is not None:
        raise UnsupportedError(f"{what}: gearman has no expiry for a job")


def submit(message: WireMessage, function: bytes, unique: bytes, priority: int | None) -> bytes:
    """Return the packet that sends *message*, which nobody waits for.

    *unique* must be new: a persistent queue keeps one job of each, the empty one included, and a
    server takes jobs that have the same for one.
    """
    kind, unique = _BACKGROUND[_level(priority)], _SENT % (priority or 0, unique)
    return packet(kind, function, unique, message.body)


def ask(message: WireMessage, function: bytes, unique: bytes) -> bytes:
    """Return the packet that asks *message*, whose answer comes over the same connection."""
    kind = _FOREGROUND[_level(message.priority)]
    return packet(kind, function, _ASKED % unique, message.body)


@attrs.frozen
class Job:
    """A job that a worker was given. *priority* is None where nobody said it.

    *may_be_asked* is False where it is certain that nobody waits for an answer.
    """

    handle: bytes
    function: bytes
    body: bytes
    priority: int | None
    may_be_asked: bool

    @classmethod
    def of(cls, assigned: Packet) -> Job:
        """Read a JOB_ASSIGN_UNIQ.

        Raises:
            ConnectionFailedError: it is none.
        """
        handle, function, unique, body = assigned.arguments(4)
        sent = _sent(unique)
        return cls(handle, function, body, int(sent[1]) if sent else None, sent is None)


def complete(handle: bytes) -> bytes:
    """Return the packet that ends a job without a word."""
    return packet(Kind.WORK_COMPLETE, handle, b"")


def answer(handle: bytes, reply: Reply) -> bytes:
    """Return the packets that end a job with an answer.

    A problem travels in a warning, which is handed on to whoever asked, before the failure. An
    exception would say it in one packet; but of gearmand 1.1.20 clients then get either no text,
    or no end.
    """
    if reply.is_error:
        return packet(Kind.WORK_WARNING, handle, reply.body) + packet(Kind.WORK_FAIL, handle)
    return packet(Kind.WORK_COMPLETE, handle, reply.body)


def redelivered(jobs: bytes) -> frozenset[bytes]:
    """Return the handles of jobs that some worker had and lost, as `show jobs` lists them."""
    return frozenset(_find_redelivered(jobs))
