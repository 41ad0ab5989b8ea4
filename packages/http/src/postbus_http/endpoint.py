"""Receive messages in any ASGI application, and dispatch them there."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs
from msgspec import convert

from postbus.errors import DecodeError, TimedOutError, TransportError
from postbus.messages import MessageKind
from postbus.stores import Conflict, Running
from postbus.transports import AsyncMessageProducer, WireMessage
from postbus.wire import decode, encode_problem, encode_result
from postbus_http._answers import ACCEPTED, HANDLED, Answered, busy, failed, refused, result
from postbus_http._intake import Intake, Limits
from postbus_http._seen import Known, Seen, digest_of
from postbus_http.signatures import WebhookKeys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from postbus.catalog import MessageCatalog
    from postbus.messages import Envelope
    from postbus.transports import MessageProducer
    from postbus_http._intake import Receive, Scope, Send

__all__ = ["Application", "MessageEndpoint", "Receiver", "ReceivingBus"]

logger: logging.Logger = logging.getLogger("postbus.http")

_SOURCE = "http"
_SUCCESSES = range(200, 300)
_IS_RUNNING = busy(409, "running", "the same message is being handled")
_IS_ANOTHER = refused(422, "conflict", "another message came with this id")


class ReceivingBus(Protocol):
    """What an endpoint needs of a bus."""

    def areceive(
        self, envelope: Envelope, source: str, *, threads: bool = False
    ) -> Awaitable[Any]:
        """Dispatch a received message and return the answer of a query."""
        ...


class Receiver(Protocol):
    """What an endpoint needs beside an inbox: `Postbus.receiver` returns one."""

    def areceive(
        self, envelope: Envelope, source: str, encode_reply: Callable[[Any], bytes]
    ) -> Awaitable[bytes | Running | Conflict | None]:
        """Dispatch a received message once; return the answer of a query, or what hinders."""
        ...


class Application(Protocol):
    """What an endpoint needs of an application: a `Postbus` has it."""

    @property
    def catalog(self) -> MessageCatalog:
        """The messages that may come in."""
        ...

    @property
    def command_bus(self) -> ReceivingBus:
        """Where commands go."""
        ...

    @property
    def event_bus(self) -> ReceivingBus:
        """Where events go."""
        ...

    @property
    def query_bus(self) -> ReceivingBus:
        """Where queries go."""
        ...

    def receiver(self, inbox: str) -> Receiver:
        """Return what dispatches received messages once, by the inbox of that name."""
        ...


@attrs.frozen
class _Item:
    """One message of a request, as far as it could be read."""

    raw: bytes
    envelope: Envelope


class MessageEndpoint:
    """A bare ASGI application: POST one message, or a JSON array of some.

    It mounts into Starlette, FastAPI, Litestar, Django or Quart, below any path. Commands and
    events are dispatched and answered 204, queries 200 with their result; what goes wrong is
    answered with a problem object. Handlers that are plain functions run in threads of the bus.

    A message that comes again is not handled again but answered as the first time; another with
    its id is refused (422), and while the first is being handled it is put off (409). An *inbox*
    knows that for all processes that share it. Without one, this process remembers commands and
    events for twice *tolerance*, at most 50,000 of them.

    Args:
        application: the buses and the catalogue; a `Postbus` has them.
        signing_keys: a request must be signed with one of them (Standard Webhooks).
        bearer: the token that a request must have in `Authorization: Bearer`.
        allow_any_peer: True takes messages from whoever reaches the endpoint, for one whose
            framework asks who it is.
        mode: "handle" dispatches commands and events; "accept" gives them to *store* and answers
            202, so that a worker handles them later. Queries are answered in both.
        store: the producer that takes what is accepted, such as that of a folder or a broker.
        inbox: the name of the application's store that knows what was handled, here, in other
            processes and by workers. Not for what is accepted: a worker handles that.
        unknown_fields: what a payload field that the class lacks does.
        max_size_bytes: the largest body of a request.
        max_batch: messages in one array.
        max_in_flight: requests that are handled at once; more are answered 503.
        read_timeout: seconds that the body of a request may take.
        answer_timeout: seconds that a sender waits; then it is answered 503, may send again, and
            learns what became of it. The handler goes on.
        tolerance: seconds that a signature may be old, or ahead.

    Raises:
        ValueError: nothing says who may send, a key is none, or *mode*, *store* and *inbox* do
            not fit.
        ConfigurationError: the application has no such *inbox*.
    """

    def __init__(  # noqa: PLR0913  one keyword per limit
        self,
        application: Application,
        *,
        signing_keys: Sequence[str] = (),
        bearer: str | None = None,
        allow_any_peer: bool = False,
        mode: Literal["handle", "accept"] = "handle",
        store: MessageProducer | None = None,
        inbox: str | None = None,
        unknown_fields: Literal["refuse", "ignore"] = "refuse",
        max_size_bytes: int = 1024 * 1024,
        max_batch: int = 100,
        max_in_flight: int = 100,
        read_timeout: float = 10.0,
        answer_timeout: float = 60.0,
        tolerance: float = 300.0,
    ) -> None:
        keys = WebhookKeys(signing_keys)
        if not (keys or bearer or allow_any_peer):
            msg = "expected signing_keys or bearer; or write allow_any_peer=True"
            raise ValueError(msg)
        if (mode == "accept") != (store is not None):
            msg = "expected a store with mode='accept', and only there"
            raise ValueError(msg)
        if inbox is not None and store is not None:
            msg = "expected an inbox with mode='handle' only: the worker behind the store has one"
            raise ValueError(msg)
        self._application = application
        self._receiver = None if inbox is None else application.receiver(inbox)
        self._store = store
        self._unknown_fields: Literal["refuse", "ignore"] = unknown_fields
        self._max_size_bytes = max_size_bytes
        self._answer_timeout = answer_timeout
        self._seen = Seen(2 * tolerance)
        self._running: set[asyncio.Task[Answered]] = set()
        limits = Limits(
            max_size_bytes=max_size_bytes,
            max_batch=max_batch,
            max_in_flight=max_in_flight,
            read_timeout=read_timeout,
            tolerance=tolerance,
        )
        self._intake = Intake(self._take, keys=keys, bearer=bearer, limits=limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection: a request, or the lifespan of a server.

        Raises:
            ValueError: it is neither.
        """
        if scope["type"] == "http":
            await self._intake(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            msg = f"expected a request, got {scope['type']!r}"
            raise ValueError(msg)

    async def _take(self, bodies: Sequence[bytes], _: bool) -> list[Answered]:  # noqa: FBT001  what a sender prefers is not asked
        if len(bodies) == 1:
            return [await self._take_one(bodies[0])]
        return list(await asyncio.gather(*(self._take_one(body) for body in bodies)))

    async def _take_one(self, body: bytes) -> Answered:
        try:
            envelope = decode(
                body,
                self._application.catalog,
                unknown_fields=self._unknown_fields,
                max_size_bytes=self._max_size_bytes,
            )
            # Reads the payload: what does not fit is refused before anything is dispatched.
            _ = envelope.message
        except DecodeError as error:
            logger.info("message refused", extra={"reason": error.reason, "body_bytes": len(body)})
            return failed(encode_problem(error))
        item = _Item(body, envelope)
        if envelope.kind is MessageKind.QUERY and self._receiver is None:
            # Its answer may change, and nobody has kept the first.
            return await self._within_time(self._answer(item))
        match self._seen.begin(envelope.id, digest_of(envelope.name, envelope.payload or b"")):
            case Known.RUNNING:
                return _IS_RUNNING
            case Known.DONE:
                return HANDLED if self._store is None else ACCEPTED
            case Known.CONFLICT:
                return _IS_ANOTHER
            case Known.NEW:
                return await self._within_time(self._answer_once(item))

    async def _within_time(self, work: Any) -> Answered:
        """Wait for *work*, which goes on when the sender's patience, or the sender, is gone."""
        task: asyncio.Task[Answered] = asyncio.create_task(work, name="postbus http message")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.wait({task}, timeout=self._answer_timeout)
        if task.done():
            return task.result()
        return busy(503, "still_running", "the message is still being handled")

    async def _answer_once(self, item: _Item) -> Answered:
        """Answer a message that this process did not know, and note what became of it."""
        is_to_remember = False
        try:
            answered = await self._answer(item)
            is_to_remember = self._receiver is None and answered.status in _SUCCESSES
        finally:
            note = self._seen.finish if is_to_remember else self._seen.abandon
            note(item.envelope.id)
        return answered

    async def _answer(self, item: _Item) -> Answered:
        try:
            return await self._handle(item)
        except BaseException as error:
            if not _is_failure(error):
                raise
            return self._failed(item.envelope, error)

    async def _handle(self, item: _Item) -> Answered:
        envelope = item.envelope
        is_query = envelope.kind is MessageKind.QUERY
        if is_query:
            _refuse_late(envelope)
        elif self._store is not None:
            await self._put(self._store, item)
            return ACCEPTED
        if self._receiver is None:
            found = await self._bus(envelope).areceive(envelope, _SOURCE, threads=True)
            return result(self._encode(found)) if is_query else HANDLED
        match await self._receiver.areceive(envelope, _SOURCE, self._encode):
            case None:
                return HANDLED
            case Running():
                return _IS_RUNNING
            case Conflict():
                return _IS_ANOTHER
            case reply:
                return result(reply)

    def _bus(self, envelope: Envelope) -> ReceivingBus:
        if envelope.kind is MessageKind.QUERY:
            return self._application.query_bus
        if envelope.kind is MessageKind.EVENT:
            return self._application.event_bus
        return self._application.command_bus

    def _encode(self, found: Any) -> bytes:
        return encode_result(found, max_size_bytes=self._max_size_bytes)

    async def _put(self, store: MessageProducer, item: _Item) -> None:
        message = WireMessage(item.raw, {}, item.envelope.id, item.envelope.name)
        if isinstance(store, AsyncMessageProducer):
            await store.asend(message)
        else:
            await asyncio.to_thread(store.send, message)

    def _failed(self, envelope: Envelope, error: BaseException) -> Answered:
        if isinstance(error, TransportError) and not isinstance(error, TimedOutError):
            # An inbox or a store is down, or what a handler sends has not left.
            answered = busy(503, "not_handled", "the message was not handled now")
        else:
            answered = failed(encode_problem(error))
        logger.warning(
            "message failed",
            extra={
                "message_id": envelope.id,
                "message_name": envelope.name,
                "error": type(error.__cause__ or error).__name__,
                "status": answered.status,
            },
        )
        return answered


def _refuse_late(query: Envelope) -> None:
    deadline = query.headers.get("deadline")
    if deadline is not None and convert(deadline, datetime) <= datetime.now(UTC):
        raise TimedOutError("the query's deadline has passed", query)


def _is_failure(error: BaseException) -> bool:
    """Tell what a handler raised from the end of this task, or of everything.

    A handler may await something that somebody else cancels: a failure like others.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, Exception)


async def _live(receive: Receive, send: Send) -> None:
    """Answer a server that tells when it starts and stops: there is nothing to prepare."""
    for _ in range(2):
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
