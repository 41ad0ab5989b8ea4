"""What a message is to beanstalkd: commands, priorities, and how an answer is marked."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import msgspec

from postbus.errors import RejectedError
from postbus.transports import Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "delete",
    "mark_reply",
    "put",
    "release",
    "reply_channel",
    "stats_job",
    "stats_tube",
    "touch",
    "unmark_reply",
    "urgency",
    "watch_only",
    "with_reply_channel",
]

# beanstalkd's own default for a job that says nothing; a smaller number is more urgent there, and
# below 1024 the server counts a job as urgent, which is for people to use.
_USUAL = 65_536
_STEP = 4_096
_REPLY_TUBE = re.compile(r"postbus\.reply\.[a-z0-9-]+").fullmatch
_RESULT, _PROBLEM = b"result", b"problem"
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_write = msgspec.json.Encoder().encode


class _Headers(msgspec.Struct, frozen=True):
    reply_to: str | None = None


class _Asked(msgspec.Struct):
    uuid: str
    headers: _Headers = _Headers()


_asked = msgspec.json.Decoder(_Asked).decode


def urgency(priority: int | None) -> int:
    """Return beanstalkd's number for a priority, of which the larger is more urgent."""
    return _USUAL - _STEP * (priority or 0)


def put(body: bytes, urgency: int, delay: float | None, ttr: int) -> bytes:
    """Return the command that puts a job. *delay* is rounded up: never early."""
    return b"put %d %d %d %d\r\n%b\r\n" % (urgency, math.ceil(delay or 0), ttr, len(body), body)


def delete(job_id: int) -> bytes:
    """Return the command that removes a job for good."""
    return b"delete %d\r\n" % job_id


def touch(job_id: int) -> bytes:
    """Return the command that lets a job's time to run begin anew."""
    return b"touch %d\r\n" % job_id


def stats_job(job_id: int) -> bytes:
    """Return the command that asks for everything the server knows about a job."""
    return b"stats-job %d\r\n" % job_id


def stats_tube(tube: str) -> bytes:
    """Return the command that asks for the numbers of a tube."""
    return b"stats-tube %b\r\n" % tube.encode()


def watch_only(tubes: Sequence[str]) -> list[bytes]:
    """Return the commands after which a new connection reserves from *tubes* and no others."""
    ignored = [] if "default" in tubes else [b"ignore default\r\n"]
    return [*(b"watch %b\r\n" % tube.encode() for tube in tubes), *ignored]


def release(job_id: int, urgency: int) -> bytes:
    """Return the command that gives a job back."""
    return b"release %d %d 0\r\n" % (job_id, urgency)


def with_reply_channel(body: bytes, tube: str) -> bytes:
    """Return the message *body* with its answer's tube among its headers.

    Raises:
        RejectedError: it is no message in the wire format.
    """
    try:
        fields = _fields(body)
    except ValueError as error:
        msg = "a query over beanstalkd is a message in the wire format, which this is not"
        raise RejectedError(msg) from error
    headers = msgspec.json.decode(fields.get("headers", b"{}"), type=dict[str, msgspec.Raw])
    headers["reply_to"] = msgspec.Raw(_write(tube))
    fields["headers"] = msgspec.Raw(_write(headers))
    return _write(fields)


def reply_channel(body: bytes) -> tuple[str, str] | None:
    """Return the tube and the id that an answer to *body* goes to; None where nobody asked."""
    if b'"reply_to"' not in body:
        return None
    try:
        asked = _asked(body)
    except (ValueError, RecursionError):
        return None  # the worker says what is wrong with it
    tube = asked.headers.reply_to
    if tube is None or _REPLY_TUBE(tube) is None:
        return None
    return tube, asked.uuid.lower()


def mark_reply(message_id: str, reply: Reply) -> bytes:
    """Return an answer as it travels: the id of the question and its kind, a line before it."""
    kind = _PROBLEM if reply.is_error else _RESULT
    return b"%b %b\n%b" % (message_id.encode(), kind, reply.body)


def unmark_reply(body: bytes) -> tuple[str, Reply] | None:
    """Return the id and the answer that `mark_reply` wrote, None for anything else."""
    line, newline, answer = body.partition(b"\n")
    message_id, _, kind = line.partition(b" ")
    if not newline or kind not in {_RESULT, _PROBLEM}:
        return None
    return message_id.decode("ascii", "replace"), Reply(answer, is_error=kind == _PROBLEM)
