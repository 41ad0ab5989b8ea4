"""Messages to requests and responses to answers; knows no connection, and no client."""

from __future__ import annotations

import base64
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import attrs
import msgspec

from postbus.errors import RejectedError, TransportError
from postbus.settings import mask
from postbus.transports import Reply
from postbus_http.errors import StatusError
from postbus_http.signatures import WebhookKeys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.transports import Capabilities, WireMessage
    from postbus_http.settings import HTTPProducerSettings

__all__ = ["Answer", "Outgoing", "Requests"]

_LONGEST_EXCERPT = 200
_PROBLEM = b"application/problem+json"
_JSON = b"application/json"
# Source: RFC 7240, section 4.1.
_MAY_WAIT = (b"Prefer", b"respond-async")
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
_is_plain = re.compile(r"[\x21-\x24\x26-\x7e]+").fullmatch
_UNSAFE = re.compile(r"[^\x20-\x7e]")
_OK = range(200, 300)
_read_items = msgspec.json.Decoder(list[dict[str, Any]]).decode


@attrs.frozen
class Outgoing:
    """One request: the headers that every attempt has, and the body. *count* messages in it."""

    id: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    count: int = 1


@attrs.frozen
class Answer:
    """What came back. *headers* have names in lower case.

    *is_whole*: the body was read to its end, which it is not where it exceeds the limit.
    """

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    is_whole: bool = True

    @property
    def is_success(self) -> bool:
        """Whether the status is one of 2xx (H02)."""
        return self.status in _OK

    @property
    def is_problem(self) -> bool:
        """Whether the body is an RFC 9457 problem object by its content type."""
        content_type = self.headers.get(b"content-type", b"").partition(b";")[0]
        return content_type.strip().lower() == _PROBLEM


class Requests:
    """Makes the requests of one producer and reads what they were answered."""

    def __init__(self, settings: HTTPProducerSettings, capabilities: Capabilities) -> None:
        parts = urlsplit(settings.url)
        # Without the path: with some services that is the secret.
        self.shown = f"{parts.scheme}://{parts.netloc}"
        self._capabilities = capabilities
        self._keys = WebhookKeys(settings.signing_keys)
        self._secrets = [
            each for each in (settings.bearer, settings.password, *settings.signing_keys) if each
        ]
        fixed = [
            (b"Accept", b"application/json, application/problem+json"),
            # A small body that unpacks to a large one is an attack; there is nothing to gain.
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"postbus-http"),
            (b"Content-Type", _JSON),
        ]
        if settings.bearer is not None:
            fixed.append((b"Authorization", f"Bearer {settings.bearer}".encode()))
        if settings.username is not None:
            pair = base64.b64encode(f"{settings.username}:{settings.password}".encode())
            fixed.append((b"Authorization", b"Basic " + pair))
        self._fixed = tuple(fixed)

    def of(self, message: WireMessage, *, is_query: bool = False) -> Outgoing:
        """Return the request that takes *message*.

        One that is no query says that it need not be handled before it is answered.

        Raises:
            RejectedError: the body is too large, or the id cannot stand in a header.
            UnsupportedError: a delay, a priority or an expiry was asked for.
        """
        refusal = self._capabilities.refusal(message, "HTTP")
        if refusal is not None:
            raise refusal
        id_ = _header_value(message.id)
        headers = (
            *self._fixed,
            (b"Idempotency-Key", id_),
            (b"Postbus-Message-Id", id_),
            (b"Postbus-Message-Name", _header_value(message.name)),
            (b"Content-Length", b"%d" % len(message.body)),
        )
        if not is_query:
            headers += (_MAY_WAIT,)
        return Outgoing(message.id, headers, message.body)

    def of_batch(self, messages: Sequence[WireMessage]) -> Outgoing:
        """Return the request that takes *messages*, each of which `of` accepts."""
        body = b"[" + b",".join(message.body for message in messages) + b"]"
        headers = (*self._fixed, (b"Content-Length", b"%d" % len(body)), _MAY_WAIT)
        return Outgoing(messages[0].id, headers, body, len(messages))

    def signed(self, outgoing: Outgoing) -> list[tuple[bytes, bytes]]:
        """Return the headers of one attempt: a signature has the time of that attempt.

        Raises:
            RejectedError: the id cannot be signed.
        """
        headers = list(outgoing.headers)
        if self._keys:
            try:
                made = self._keys.sign(outgoing.id, outgoing.body)
            except ValueError as error:
                raise RejectedError(str(error)) from error
            headers += [(name.encode(), value.encode()) for name, value in made.items()]
        return headers

    def accept(self, answer: Answer) -> None:
        """Return where the other side took the message; its body says nothing then (H02).

        Raises:
            StatusError: it did not.
        """
        if not answer.is_success:
            raise self._error(answer.status, answer.body)

    def reply(self, answer: Answer) -> Reply:
        """Return the answer to a query: the status is looked at before the body (H04, T10).

        Raises:
            StatusError: the status is no success, and the body no problem object.
            RejectedError: the answer is larger than `max_response_bytes`.
        """
        if not answer.is_whole:
            raise RejectedError(
                f"{self.shown}: the answer has more than {len(answer.body)} bytes, "
                "the most that are configured (`max_response_bytes`)"
            )
        if answer.is_success:
            return Reply(answer.body)
        if answer.is_problem:
            return Reply(answer.body, is_error=True)
        raise self._error(answer.status, answer.body)

    def failures(self, answer: Answer, count: int) -> dict[int, TransportError]:
        """Return what of a batch of *count* was not taken, by index.

        Raises:
            StatusError: the other side took none of it.
            RejectedError: what it answered is not about the messages of the batch.
        """
        self.accept(answer)
        try:
            items = _read_items(answer.body)
            statuses = [int(item["status"]) for item in items]
        except (ValueError, KeyError, TypeError, RecursionError):
            statuses, items = [], []
        if len(statuses) != count:
            raise RejectedError(
                f"{self.shown} did not answer for each of {count} messages: leave out `batch`, "
                "which only a receiver that is postbus too understands"
            )
        return {
            index: self._error(status, msgspec.json.encode(items[index]))
            for index, status in enumerate(statuses)
            if status not in _OK
        }

    def _error(self, status: int, body: bytes) -> StatusError:
        excerpt = self._excerpt(body)
        try:
            phrase = f" {HTTPStatus(status).phrase}"
        except ValueError:
            phrase = ""
        text = f"{self.shown} answered {status}{phrase}"
        return StatusError(f"{text}: {excerpt}" if excerpt else text, None, status, excerpt)

    def _excerpt(self, body: bytes) -> str:
        # What is cut may be the half of a secret, so that is done last.
        text = body[: 16 * _LONGEST_EXCERPT].decode(errors="replace")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _UNSAFE.sub(" ", mask(text))[:_LONGEST_EXCERPT].strip()


def _header_value(text: str) -> bytes:
    """Return *text* as printable ASCII; anything else of it in percent-encoding (A16)."""
    if _is_plain(text) is not None:
        return text.encode()
    return quote(text, safe=_PRINTABLE, errors="replace").encode()
