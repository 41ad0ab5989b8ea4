"""The end of a plan that hands a message to producers instead of a handler."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import attrs

from postbus.errors import (
    EncodeError,
    PartiallySentError,
    TimedOutError,
    TransportError,
    UnsupportedError,
)
from postbus.pipeline._deadlines import deadlines
from postbus.promises import Promise
from postbus.transports import (
    AsyncMessageProducer,
    AsyncQueryClient,
    MessageProducer,
    QueryClient,
    Reply,
    WireMessage,
)
from postbus.unit import current_unit
from postbus.wire import decode_problem, decode_result, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from postbus.messages import Envelope

NO_HEADERS: Mapping[str, str] = {}


class DispatchOptions(TypedDict, total=False):
    """What `dispatch` takes beside the message; each is optional.

    *id*: a UUID as text. *metadata*: the user's facts. *timeout*: seconds until the deadline.
    *delay*: seconds, and *at*: an aware time, before which it is not handled. *key*: messages of
    one key stay in order. *priority*: 0 to 9, larger first. The last four concern sending only.
    """

    id: str | None
    metadata: Mapping[str, Any] | None
    timeout: float | None
    delay: float | None
    at: datetime | None
    key: str | None
    priority: int | None


@attrs.frozen
class SendOptions:
    """The options of one dispatch that concern its sending."""

    timeout: float | None = None
    delay: float | None = None
    key: str | None = None
    priority: int | None = None


_NO_OPTIONS = SendOptions()


def send_options(options: DispatchOptions) -> SendOptions | None:
    """Return the sending part of *options*, None where it says nothing.

    Raises:
        ValueError: a value is out of range, or both *delay* and *at* are given.
    """
    delay, at = options.get("delay"), options.get("at")
    if at is not None:
        if delay is not None or at.utcoffset() is None:
            msg = "give either delay (seconds) or at (an aware time), not both and not naive"
            raise ValueError(msg)
        delay = max(0.0, (at - datetime.now(UTC)).total_seconds())
    timeout, priority = options.get("timeout"), options.get("priority")
    if (delay is not None and delay < 0) or (timeout is not None and timeout <= 0):
        msg = f"delay must be >= 0 and timeout > 0 seconds, got {delay=!r}, {timeout=!r}"
        raise ValueError(msg)
    if priority is not None and priority not in range(10):
        msg = f"priority must be 0 to 9, larger is more urgent, got {priority!r}"
        raise ValueError(msg)
    made = SendOptions(timeout, delay, options.get("key"), priority)
    return None if made == _NO_OPTIONS else made


@attrs.frozen
class Sender:
    """Hands the messages of one name to its producers. *key_field* orders them."""

    name: str
    producers: tuple[MessageProducer, ...]
    key_field: str | None
    pool: Callable[[], ThreadPoolExecutor]
    #: Takes what is delayed, where a producer cannot do that itself.
    later: Sender | None = None

    def send(self, envelope: Envelope, options: SendOptions | None) -> None:
        """Send now, or after the commit where a transaction is open. Blocks as producers do.

        Raises:
            EncodeError: the message cannot be written.
            UnsupportedError: a producer cannot do what *options* ask.
            TransportError: a system does not have it.
        """
        if options is not None and options.delay and self.later is not None:
            self.later.send(envelope, options)
            return
        message = self._wire_message(envelope, options)
        unit = current_unit()
        if unit is None or not unit.transactional:
            self._send_now(message, envelope)
        else:
            send = self._asend_now if unit.is_async else self._send_now
            unit.after_commit(partial(send, message, envelope))
            if unit.outgoing is not None:
                unit.outgoing.append((message, self.producers))

    def _send_now(self, message: WireMessage, envelope: Envelope) -> None:
        if len(self.producers) == 1:
            try:
                self.producers[0].send(message)
            except Exception as error:
                made = as_transport_error(error, envelope)
                if made is error:
                    raise
                raise made from error
            return
        failed: dict[int, TransportError] = {}
        for index, producer in enumerate(self.producers):
            try:
                producer.send(message)
            except Exception as error:  # noqa: BLE001  the other producers have their turn
                failed[index] = as_transport_error(error, envelope)
        self._raise(failed, envelope)

    async def asend(self, envelope: Envelope, options: SendOptions | None) -> None:
        """Do what `send` does without blocking the loop."""
        if options is not None and options.delay and self.later is not None:
            await self.later.asend(envelope, options)
            return
        message = self._wire_message(envelope, options)
        unit = current_unit()
        if unit is None or not unit.transactional:
            await self._asend_now(message, envelope)
        else:
            unit.after_commit(partial(self._asend_now, message, envelope))
            if unit.outgoing is not None:
                unit.outgoing.append((message, self.producers))

    async def _asend_now(self, message: WireMessage, envelope: Envelope) -> None:
        failed: dict[int, TransportError] = {}
        for index, producer in enumerate(self.producers):
            try:
                if isinstance(producer, AsyncMessageProducer):
                    await producer.asend(message)
                else:
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(self.pool(), producer.send, message)
            except Exception as error:  # noqa: BLE001  the other producers have their turn
                failed[index] = as_transport_error(error, envelope)
        self._raise(failed, envelope)

    def _raise(self, failed: Mapping[int, TransportError], envelope: Envelope) -> None:
        if not failed:
            return
        first = next(iter(failed.values()))
        if len(self.producers) == 1:
            raise first
        msg = f"{self.name}: {len(failed)} of {len(self.producers)} producers did not take it"
        raise PartiallySentError(msg, failed, envelope) from first

    def _wire_message(self, envelope: Envelope, options: SendOptions | None) -> WireMessage:
        if options is None:
            if self.key_field is None and not envelope._headers:  # noqa: SLF001  its property makes a view
                return WireMessage(encode(envelope), NO_HEADERS, envelope.id, envelope.name)
            return self.wire_message(envelope, _NO_OPTIONS, None)
        due = None
        if options.timeout is not None:
            due = datetime.now(UTC) + timedelta(seconds=options.timeout)
            envelope = _with_deadline(envelope, due)
        return self.wire_message(envelope, options, due)

    def wire_message(
        self,
        envelope: Envelope,
        options: SendOptions,
        due: datetime | None,
    ) -> WireMessage:
        """Return the bytes of *envelope* with what a transport needs beside them.

        Raises:
            EncodeError: the message cannot be written.
            UnsupportedError: a producer cannot do what *options* ask.
        """
        message = WireMessage(encode(envelope), NO_HEADERS, envelope.id, envelope.name)
        if envelope.headers:
            message.headers = {k: str(v) for k, v in envelope.headers.items()}
        if options.key is not None:
            message.key = options.key
        elif self.key_field is not None:
            message.key = self._key(envelope.message)
        if options.delay:
            self._demand("delay", [p.capabilities.delay is not None for p in self.producers])
            message.delay = options.delay
        if options.priority is not None:
            self._demand("priority", [p.capabilities.priority for p in self.producers])
            message.priority = options.priority
        if due is not None and all(p.capabilities.expiry for p in self.producers):
            message.expires_at = due
        return message

    def _key(self, message: Any) -> str:
        assert self.key_field is not None  # noqa: S101  asked for where there is one
        try:
            return str(getattr(message, self.key_field))
        except AttributeError as error:
            msg = f"{self.name} is ordered by {self.key_field!r}, which the message does not have"
            raise EncodeError(msg) from error

    def _demand(self, what: str, able: Sequence[bool]) -> None:
        if not all(able):
            producer = type(self.producers[able.index(False)]).__name__
            msg = f"{self.name}: a {what} was asked for, and this {producer} has no {what}"
            raise UnsupportedError(msg)


def as_transport_error(error: Exception, envelope: Envelope) -> TransportError:
    """Return *error* with its envelope; a producer's own exceptions do not get out."""
    if not isinstance(error, TransportError):
        text = f"{envelope.name} could not be sent: {type(error).__name__}: {error}"
        made = TransportError(text, envelope)
        made.__cause__ = error
        return made
    if error.envelope is None:
        error.envelope = envelope
    return error


def _with_deadline(envelope: Envelope, due: datetime) -> Envelope:
    return envelope.evolve(headers={**envelope.headers, "deadline": due.isoformat()})


@attrs.frozen
class Asker:
    """Sends the queries of one name and brings their answers back."""

    sender: Sender
    client: QueryClient
    answer: Any
    timeout: float

    def ask(self, envelope: Envelope, options: SendOptions | None) -> Promise[Any]:
        """Send the query at once and return the promise of its answer.

        Raises:
            EncodeError: the query cannot be written.
            UnsupportedError: the producer cannot do what *options* ask.
        """
        seconds, message, envelope = self._prepare(envelope, options)
        promise: Promise[Any] = Promise()
        reply: Promise[Reply] = Promise()

        def on_reply(reply: Promise[Reply]) -> None:
            error = reply.exception()
            try:
                if error is not None:
                    raise error  # noqa: TRY301  one road for both kinds of failure
                promise.resolve(self._read(reply.result(), envelope))
            except Exception as refused:  # noqa: BLE001  whatever it is, the promise is settled
                promise.reject(_about(refused, envelope))

        def on_settled(_: Promise[Any]) -> None:
            # The deadline is the promise's; a transport that still waits learns of it here.
            if not reply.done():
                reply.reject(TimedOutError("the query's deadline has passed", envelope))

        reply.add_done_callback(on_reply)
        promise.add_done_callback(on_settled)
        deadlines.add(promise, seconds)
        self.client.request(message, reply)
        return promise

    async def aask(self, envelope: Envelope, options: SendOptions | None) -> Any:
        """Send the query and return its answer.

        Raises:
            TimedOutError: no answer within the deadline.
            PostbusError: what the other side, or the transport, said.
        """
        if not isinstance(self.client, AsyncQueryClient):
            return await self.ask(envelope, options)
        seconds, message, envelope = self._prepare(envelope, options)
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                reply = await self.client.arequest(message)
        except TransportError as error:
            raise _about(error, envelope) from error.__cause__
        except TimeoutError:
            if not scope.expired():
                raise
            msg = f"no answer came within {seconds} seconds"
            raise TimedOutError(msg, envelope) from None
        return self._read(reply, envelope)

    def _prepare(
        self,
        envelope: Envelope,
        options: SendOptions | None,
    ) -> tuple[float, WireMessage, Envelope]:
        options = options or _NO_OPTIONS
        seconds = self.timeout if options.timeout is None else options.timeout
        due = datetime.now(UTC) + timedelta(seconds=seconds)
        envelope = _with_deadline(envelope, due)
        return seconds, self.sender.wire_message(envelope, options, due), envelope

    def _read(self, reply: Reply, envelope: Envelope) -> Any:
        if reply.is_error:
            raise decode_problem(reply.body, envelope)
        return decode_result(reply.body, self.answer)


def _about(error: Exception, envelope: Envelope) -> Exception:
    if isinstance(error, TransportError) and error.envelope is None:
        error.envelope = envelope
    return error


def query_client(name: str, producer: MessageProducer) -> QueryClient:
    """Return *producer* as what can answer a query.

    Raises:
        UnsupportedError: it sends only (Z02, T11).
    """
    if not (producer.capabilities.queries and isinstance(producer, QueryClient)):
        msg = (
            f"{name}: {type(producer).__name__} only sends and cannot bring an answer back: "
            "route the query to a producer with rpc, or handle it here"
        )
        raise UnsupportedError(msg)
    return producer


def refuse_queries_only(name: str, producers: Sequence[MessageProducer]) -> None:
    """Refuse to send *name* to a producer that takes queries only.

    Raises:
        UnsupportedError: one of *producers* only asks (Z02).
    """
    for producer in producers:
        if producer.capabilities.queries_only:
            msg = (
                f"{name}: {type(producer).__name__} only asks queries: route the message to a "
                'producer without rpc, or with rpc = "both" on both sides'
            )
            raise UnsupportedError(msg)
