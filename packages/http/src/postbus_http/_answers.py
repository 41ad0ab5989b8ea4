"""What a request is answered: a status, and for a failure an RFC 9457 problem object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from postbus.errors import DecodeError
from postbus.wire import Reason, encode_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ACCEPTED", "HANDLED", "Answered", "batch_of", "busy", "failed", "refused", "result"]

_JSON = b"application/json"
_PROBLEM = b"application/problem+json"
_URN = "urn:postbus:problem:"
_STATUSES = {"no-handler": 404, "unauthorized": 403, "timed-out": 504}
_REASONS = frozenset(Reason)
_NO_HEADERS: tuple[tuple[bytes, bytes], ...] = ()
# Seconds; what a sender that is turned away should wait before it comes again.
_PAUSE = b"1"


class _Problem(msgspec.Struct):
    type: str = ""
    code: str = ""
    detail: str = ""


_read_problem = msgspec.json.Decoder(_Problem).decode
_write = msgspec.json.Encoder().encode
_read_object = msgspec.json.Decoder(dict[str, Any]).decode


@attrs.frozen
class Answered:
    """The answer to one message, or to a request that has none."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = _NO_HEADERS

    @property
    def content_type(self) -> bytes:
        """What the body is, if there is one."""
        return _JSON if self.status < 400 else _PROBLEM  # noqa: PLR2004  where errors begin

    @property
    def as_item(self) -> bytes:
        """The same as an object in the answer to a batch."""
        if self.status >= 400:  # noqa: PLR2004  as above
            return _write({"status": self.status, **_read_object(self.body)})
        if self.body:
            return b'{"status":%d,"result":%b}' % (self.status, self.body)
        return b'{"status":%d}' % self.status


HANDLED = Answered(204)
ACCEPTED = Answered(202)


def result(body: bytes) -> Answered:
    """Return the answer to a query."""
    return Answered(200, body)


def refused(
    status: int, code: str, text: str, headers: tuple[tuple[bytes, bytes], ...] = _NO_HEADERS
) -> Answered:
    """Return the refusal of a request, with a stable *code*."""
    return Answered(status, encode_problem(DecodeError(code, text)), headers)


def busy(status: int, code: str, text: str) -> Answered:
    """Return a refusal that asks the sender to come again."""
    return refused(status, code, text, ((b"retry-after", _PAUSE),))


def failed(problem: bytes) -> Answered:
    """Return the answer with a *problem* that `encode_problem` wrote; its kind says the status.

    What a handler raised and the configuration registered is final (422); anything else that it
    raised may do better next time (500).
    """
    found = _read_problem(problem)
    kind = found.type.removeprefix(_URN)
    if kind in _STATUSES:
        return Answered(_STATUSES[kind], problem)
    if found.code in _REASONS:
        return Answered(413 if found.code == Reason.TOO_LARGE else 400, problem)
    if kind == "rejected":
        # Not by what it says, but by this receiver at this time: the worker stops, for instance.
        return Answered(503, problem, ((b"retry-after", _PAUSE),))
    return Answered(422 if found.detail else 500, problem)


def batch_of(answers: Sequence[Answered]) -> Answered:
    """Return one answer for a batch: an array with an object for each message, in order."""
    return Answered(200, b"[" + b",".join(each.as_item for each in answers) + b"]")
