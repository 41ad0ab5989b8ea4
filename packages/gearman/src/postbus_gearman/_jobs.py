"""What a message is to gearman: submissions, levels of urgency, unique ids, settlements."""

from __future__ import annotations

import re
import secrets
from itertools import count
from typing import TYPE_CHECKING

import attrs

from postbus_gearman._protocol import Kind, packet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postbus.transports import Reply, WireMessage
    from postbus_gearman._protocol import Packet

__all__ = [
    "STATUS",
    "Job",
    "answer",
    "ask",
    "complete",
    "redelivered",
    "submit",
    "unique_ids",
    "waiting",
]

_BACKGROUND = (Kind.SUBMIT_JOB_LOW_BG, Kind.SUBMIT_JOB_BG, Kind.SUBMIT_JOB_HIGH_BG)
_FOREGROUND = (Kind.SUBMIT_JOB_LOW, Kind.SUBMIT_JOB, Kind.SUBMIT_JOB_HIGH)
_FIRST_NORMAL, _FIRST_HIGH = 3, 7
# A server does not tell a worker whether anybody waits for the answer, nor how urgent a job is;
# the unique ids of our background jobs do.
_SENT = b"postbus.sent.%d.%b"
_ASKED_PREFIX = b"postbus.asked."
_ASKED = _ASKED_PREFIX + b"%b"
_sent = re.compile(rb"postbus\.sent\.([0-9])\.").match
STATUS = b"status\n"
_find_status = re.compile(rb"^([^\t\n]+)\t([0-9]+)\t([0-9]+)\t", re.MULTILINE).findall
_find_redelivered = re.compile(rb"^([^\t\n]+)\t[1-9]", re.MULTILINE).findall


def unique_ids() -> Iterator[bytes]:
    """Return ids that no job has or had. Any thread may take the next; a fork may not."""
    return map((secrets.token_hex(8).encode() + b".%d").__mod__, count())


def _level(priority: int | None) -> int:
    """Return the place in gearman's three levels."""
    urgency = priority or 0
    return (urgency >= _FIRST_NORMAL) + (urgency >= _FIRST_HIGH)


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

    *may_be_asked* is False where it is certain that nobody waits for an answer, *is_asked* True
    where it is certain that somebody does.
    """

    handle: bytes
    function: bytes
    body: bytes
    priority: int | None
    may_be_asked: bool
    is_asked: bool

    @classmethod
    def of(cls, assigned: Packet) -> Job:
        """Read a JOB_ASSIGN_UNIQ.

        Raises:
            ConnectionFailedError: it is none.
        """
        handle, function, unique, body = assigned.arguments(4)
        sent = _sent(unique)
        priority = int(sent[1]) if sent else None
        is_asked = unique.startswith(_ASKED_PREFIX)
        return cls(handle, function, body, priority, sent is None, is_asked)


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


def waiting(status: bytes) -> dict[str, int]:
    """Return how many jobs of each function no worker has, as `status` lists them."""
    return {
        function.decode("ascii", "replace"): int(jobs) - int(running)
        for function, jobs, running in _find_status(status)
    }
