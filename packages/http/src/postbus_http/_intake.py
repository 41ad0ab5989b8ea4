"""The way of a request up to its messages: who sent it, how large it is, and what is in it.

Each check stands before what the next one costs. Nothing here knows what a message is: whoever
takes them answers for each.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import msgspec

from postbus.errors import UnauthorizedError
from postbus.wire import Reason, encode_problem
from postbus_http._answers import Answered, batch_of, busy, refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus_http.signatures import WebhookKeys

__all__ = ["Intake", "Limits", "Receive", "Scope", "Send"]

logger: logging.Logger = logging.getLogger("postbus.http")

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Take: TypeAlias = "Callable[[Sequence[bytes], bool], Awaitable[Sequence[Answered]]]"

_MAX_HEADERS = 64
_MAX_HEADER_BYTES = 16 * 1024
# Bodies that are being read may hold so many times the largest one in memory, all together.
_READING = 32
_IDENTITY = (b"", b"identity")
_UTF8 = (b"", b"charset=utf-8", b'charset="utf-8"')
_UNAUTHORIZED = Answered(
    401,
    encode_problem(UnauthorizedError("the request does not say who it is from, as it must")),
    ((b"www-authenticate", b"Bearer"),),
)
_read_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


@attrs.frozen(kw_only=True)
class Limits:
    """What a request may cost. Durations are seconds."""

    max_size_bytes: int
    max_batch: int
    max_in_flight: int
    read_timeout: float
    tolerance: float


class _RefusedError(Exception):
    """Ends a request with an answer."""

    def __init__(self, answered: Answered) -> None:
        super().__init__(answered.status)
        self.answered = answered


class _GoneError(Exception):
    """Ends a request whose sender is gone."""


class Intake:
    """Reads and checks requests and has their messages taken. Used on one loop.

    Args:
        take: given the bytes of each message of a request, and whether its sender says that they
            need not be handled before they are answered; returns an answer for each.
        keys: a request must be signed with one of them, if there are any.
        bearer: the token that a request must have, None for none.
        limits: what a request may cost.
    """

    def __init__(
        self, take: Take, *, keys: WebhookKeys, bearer: str | None, limits: Limits
    ) -> None:
        self._take = take
        self._keys = keys
        self._authorization = None if bearer is None else f"Bearer {bearer}".encode()
        self._limits = limits
        self._in_flight = 0
        self._reading_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            headers = self._headers(scope)
            body = await self._admit(scope, receive, headers)
        except _RefusedError as refusal:
            # What is left of the body is not worth reading.
            await self._refuse(scope, send, refusal.answered, ends=True)
            return
        except _GoneError:
            return
        try:
            may_wait = b"respond-async" in headers.get(b"prefer", b"")
            answered = await self._handle(body, may_wait)
        except _RefusedError as refusal:
            await self._refuse(scope, send, refusal.answered, ends=False)
            return
        await _respond(send, answered)

    async def _refuse(self, scope: Scope, send: Send, answered: Answered, *, ends: bool) -> None:
        client = (scope.get("client") or ("",))[0]
        logger.info("request refused", extra={"status": answered.status, "client": client})
        if ends and scope.get("http_version", "1.1").startswith("1"):
            answered = attrs.evolve(
                answered, headers=(*answered.headers, (b"connection", b"close"))
            )
        await _respond(send, answered)

    async def _admit(self, scope: Scope, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
        """Return the body of a request that may be one of ours."""
        if scope["method"] != "POST":
            raise _RefusedError(
                refused(405, "method_not_allowed", "POST a message", ((b"allow", b"POST"),))
            )
        self._authorize(headers)
        self._check_content(headers)
        body = await self._body(receive)
        if self._keys:
            try:
                self._keys.verify(headers, body, tolerance=self._limits.tolerance)
            except UnauthorizedError:
                raise _RefusedError(_UNAUTHORIZED) from None
        return body

    async def _handle(self, body: bytes, may_wait: bool) -> Answered:  # noqa: FBT001  passed on
        if self._in_flight >= self._limits.max_in_flight:
            raise _RefusedError(busy(503, "busy", "too many requests are being handled"))
        self._in_flight += 1
        try:
            return await self._take_all(body, may_wait)
        finally:
            self._in_flight -= 1

    def _headers(self, scope: Scope) -> dict[bytes, bytes]:
        pairs = scope["headers"]
        if (
            len(pairs) > _MAX_HEADERS
            or sum(len(name) + len(value) for name, value in pairs) > _MAX_HEADER_BYTES
        ):
            raise _RefusedError(refused(431, "headers_too_large", "the headers are too large"))
        return {bytes(name).lower(): bytes(value) for name, value in pairs}

    def _authorize(self, headers: dict[bytes, bytes]) -> None:
        """Check what can be checked before the body is read."""
        try:
            if self._authorization is not None:
                given = headers.get(b"authorization", b"")
                if not hmac.compare_digest(self._authorization, given):
                    raise _RefusedError(_UNAUTHORIZED)
            if self._keys:
                self._keys.check_time(headers, tolerance=self._limits.tolerance)
        except UnauthorizedError:
            raise _RefusedError(_UNAUTHORIZED) from None

    def _check_content(self, headers: dict[bytes, bytes]) -> None:
        kind, _, parameters = headers.get(b"content-type", b"").lower().partition(b";")
        if kind.strip() != b"application/json" or parameters.strip() not in _UTF8:
            raise _RefusedError(
                refused(415, "unsupported_media_type", "the content type is application/json")
            )
        if headers.get(b"content-encoding", b"").lower() not in _IDENTITY:
            raise _RefusedError(
                refused(415, "unsupported_content_encoding", "send the body as it is")
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._limits.max_size_bytes:
            raise self._too_large()

    def _too_large(self) -> _RefusedError:
        text = f"more than {self._limits.max_size_bytes} bytes"
        return _RefusedError(refused(413, Reason.TOO_LARGE, text))

    async def _body(self, receive: Receive) -> bytes:
        """Read the body, counted as it comes, whatever its length was said to be."""
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.read_timeout):
                while True:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise _GoneError
                    chunk = event.get("body", b"")
                    size += len(chunk)
                    self._reading_bytes += len(chunk)
                    if size > self._limits.max_size_bytes:
                        raise self._too_large()
                    if self._reading_bytes > _READING * self._limits.max_size_bytes:
                        raise _RefusedError(busy(503, "busy", "too many requests are being read"))
                    chunks.append(chunk)
                    if not event.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise _RefusedError(
                refused(408, "too_slow", "the body did not come in time")
            ) from None
        finally:
            self._reading_bytes -= size

    async def _take_all(self, body: bytes, may_wait: bool) -> Answered:  # noqa: FBT001  passed on
        items = _items(body)
        if items is None:
            (answered,) = await self._take([body], may_wait)
            return answered
        if not 0 < len(items) <= self._limits.max_batch:
            text = f"expected 1 to {self._limits.max_batch} messages in an array"
            raise _RefusedError(refused(413, "batch_too_large", text))
        return batch_of(await self._take(items, may_wait))


def _items(body: bytes) -> list[bytes] | None:
    """Return the messages of an array; None for what is none, which is one message or a fault."""
    if body[:16].lstrip()[:1] != b"[":
        return None
    try:
        return [bytes(raw) for raw in _read_array(body)]
    except (ValueError, RecursionError):
        # Whoever takes it says what is wrong with it.
        return None


async def _respond(send: Send, answered: Answered) -> None:
    headers = [*answered.headers]
    if answered.body:
        headers.append((b"content-type", answered.content_type))
    if answered.status != 204:  # noqa: PLR2004  which has no length. Source: RFC 9110, 8.6
        headers.append((b"content-length", b"%d" % len(answered.body)))
    await send({"type": "http.response.start", "status": answered.status, "headers": headers})
    await send({"type": "http.response.body", "body": answered.body})
