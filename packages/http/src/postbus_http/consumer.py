"""Receive messages as a web server: every request waits until its message was handled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from postbus.errors import ClosedError, TransportError
from postbus.messages import parse_id
from postbus.promises import Promise
from postbus.transports import Delivery, MessageConsumer
from postbus_http._answers import ACCEPTED, HANDLED, Answered, busy, failed, refused, result
from postbus_http._capabilities import capabilities_of
from postbus_http._intake import Intake, Limits
from postbus_http._seen import Known, Seen, digest_of
from postbus_http.signatures import WebhookKeys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.transports import Capabilities, CommonSettings, Reply
    from postbus_http._intake import Receive, Scope, Send
    from postbus_http._server import Server
    from postbus_http.settings import HTTPConsumerSettings

__all__ = ["HTTPConsumer", "HTTPDelivery"]

logger: logging.Logger = logging.getLogger("postbus.http")

_NO_HEADERS: Mapping[str, str] = {}
_NOT_HANDLED = busy(503, "not_handled", "the message was not handled now")
_STOPPED = busy(503, "stopped", "the worker stopped before the message was handled")


class _Message(msgspec.Struct):
    uuid: str = ""
    message_name: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"")


_read_message = msgspec.json.Decoder(_Message).decode


class HTTPDelivery(Delivery):
    """The message of a request that waits. To settle it is to answer the request."""

    __slots__ = ("_can_reply", "_error", "_is_settled", "_loop", "_owner", "answer", "key")

    def __init__(
        self,
        body: bytes,
        source: str,
        owner: HTTPConsumer,
        key: str | None,
        *,
        can_reply: bool,
    ) -> None:
        super().__init__(body, _NO_HEADERS, source)
        self._can_reply = can_reply
        self.key: str | None = key
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Answered] = self._loop.create_future()
        self._error: TransportError | None = None
        self._is_settled = False

    def ack(self) -> None:
        """Say that it was handled: its sender hears 204, or what was replied."""
        self._ask(HANDLED, is_handled=True)

    def nack(self) -> None:
        """Give it back: its sender hears 503, and when to come again.

        Raises:
            UnsupportedError: the consumer is configured at-most-once.
        """
        if not self._owner.capabilities.acknowledge:
            raise self._unsupported("nack")
        self._ask(_NOT_HANDLED, is_handled=False)

    def reply(self, reply: Reply) -> None:
        """Answer with the result of a query, or with a problem; the first answer counts.

        Raises:
            UnsupportedError: its sender was answered when it came.
        """
        if not self._can_reply:
            raise self._unsupported("reply to")
        self._later(self._set, failed(reply.body) if reply.is_error else result(reply.body))

    def settled(self) -> Promise[None]:
        """Return a promise of the answer's having been handed to the server."""
        promise: Promise[None] = Promise()
        self._later(self._tell, promise)
        return promise

    def _tell(self, promise: Promise[None]) -> None:
        if self._error is None:
            promise.resolve(None)
        else:
            promise.reject(self._error)

    @property
    def can_reply(self) -> bool:
        """Whether its sender waits, as most do."""
        return self._can_reply

    @property
    def lost(self) -> bool:
        """Whether its sender was told that it was not handled, or is gone."""
        return self._error is not None

    def _ask(self, answered: Answered, *, is_handled: bool) -> None:
        self._later(self._settle, answered, is_handled)

    def _later(self, call: object, *args: object) -> None:
        """Do it on the loop: at once there, else on its next turn, in the order asked."""
        if asyncio._get_running_loop() is self._loop:  # noqa: SLF001  documented as public for libraries in asyncio.events
            call(*args)  # type: ignore[operator]  # methods of this class
            return
        try:
            self._loop.call_soon_threadsafe(call, *args)  # type: ignore[arg-type]  # as above
        except RuntimeError:
            logger.debug("a settlement came after the consumer's loop was closed")

    def _set(self, answered: Answered) -> bool:
        if self.answer.done():
            return False
        self.answer.set_result(answered)
        return True

    def _settle(self, answered: Answered, is_handled: bool) -> None:  # noqa: FBT001  passed on by the loop
        if self._is_settled:
            return
        self._is_settled = True
        is_first = self._set(answered)
        # An answer that cannot be given again is not one to remember.
        self._owner.end(self, is_handled=is_handled and is_first)

    def lose(self, error: TransportError) -> None:
        """Answer that it was not handled, because of *error*: it is lost to its holder."""
        self._error = error
        self._settle(_STOPPED, is_handled=False)


class HTTPConsumer(MessageConsumer):
    """Takes messages from whoever posts them; serves from the first `receive` on.

    Used on one loop; deliveries are settled from any thread. Needs `postbus-http[server]`.
    Configured at-most-once, it answers 202 as soon as it has a message whose sender says that it
    need not wait (`Prefer: respond-async`). Whoever built it closes it.
    """

    def __init__(self, settings: HTTPConsumerSettings, common: CommonSettings) -> None:
        self.capabilities: Capabilities = capabilities_of(
            settings, common.max_size_bytes, common.guarantee
        )
        self._settings = settings
        self._max_size_bytes = common.max_size_bytes
        self._source = f"http://{settings.bind}{settings.path}"
        self._server: Server | None = None
        self._address: tuple[str, int] | None = None
        self._waiting: deque[HTTPDelivery] = deque()
        self._unsettled: set[HTTPDelivery] = set()
        self._seen = Seen(2 * settings.tolerance)
        self._arrived: asyncio.Event | None = None
        self._is_closed = False
        limits = Limits(
            max_size_bytes=common.max_size_bytes,
            max_batch=settings.max_batch,
            max_in_flight=settings.max_in_flight,
            read_timeout=settings.read_timeout,
            tolerance=settings.tolerance,
        )
        keys = WebhookKeys(settings.signing_keys)
        self._intake = Intake(self._take, keys=keys, bearer=settings.bearer, limits=limits)

    @property
    def address(self) -> tuple[str, int] | None:
        """The host and port it listens at, None before the first `receive`."""
        return self._address

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        """Wait for at least one delivery and return at most *max_messages*.

        Cancelled, it has taken nothing.

        Raises:
            ConnectionFailedError: the address cannot be bound, or a certificate not be read; the
                next call tries again.
            ClosedError: after `aclose()`, also one that happens meanwhile.
        """
        self._refuse_closed()
        if self._server is None:
            self._serve()
        while not self._waiting:
            self._arrived = asyncio.Event()
            await self._arrived.wait()
            self._refuse_closed()
        count = min(max_messages, len(self._waiting))
        return [self._waiting.popleft() for _ in range(count)]

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise ClosedError(f"{self._source}: the consumer is closed")

    def _serve(self) -> None:
        from postbus_http._server import Server, listen

        listening = listen(self._settings.host, self._settings.port)
        try:
            self._server = Server(self._serve_request, listening, self._settings)
        except BaseException:
            listening.close()
            raise
        host, port = listening.getsockname()[:2]
        self._address = host, port

    async def _serve_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == self._settings.path:
            await self._intake(scope, receive, send)
        else:
            headers = [(b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 404, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

    async def _take(self, bodies: Sequence[bytes], may_wait: bool) -> list[Answered]:  # noqa: FBT001  passed on
        if may_wait and not self.capabilities.acknowledge:
            return self._accept(bodies)
        taken = [self._enter(body) for body in bodies]
        waiting = [each for each in taken if isinstance(each, HTTPDelivery)]
        if waiting:
            self._unsettled.update(waiting)
            self._waiting.extend(waiting)
            self._wake()
            await asyncio.wait(
                {each.answer for each in waiting}, timeout=self._settings.answer_timeout
            )
        return [self._answer_of(each) for each in taken]

    def _accept(self, bodies: Sequence[bytes]) -> list[Answered]:
        """Take messages whose senders do not wait, up to as many as may be in flight."""
        answers: list[Answered] = []
        for body in bodies:
            if len(self._waiting) >= self._settings.max_in_flight:
                answers.append(busy(503, "busy", "too many messages wait to be handled"))
                continue
            taken = self._enter(body, can_reply=False)
            if isinstance(taken, HTTPDelivery):
                self._waiting.append(taken)
                taken.ack()
                taken = ACCEPTED
            answers.append(taken)
        self._wake()
        return answers

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set()

    def _enter(self, body: bytes, *, can_reply: bool = True) -> HTTPDelivery | Answered:
        """Return the delivery of a new message, or what one that is known is answered."""
        if self._is_closed:
            return _STOPPED
        try:
            message = _read_message(body)
            key = parse_id(message.uuid)
            digest = digest_of(message.message_name, bytes(message.payload))
        except (ValueError, RecursionError):
            # The worker says what is wrong with it.
            return HTTPDelivery(body, self._source, self, None, can_reply=can_reply)
        match self._seen.begin(key, digest):
            case Known.NEW:
                return HTTPDelivery(body, self._source, self, key, can_reply=can_reply)
            case Known.DONE:
                return HANDLED if can_reply else ACCEPTED
            case Known.RUNNING:
                return busy(409, "running", "the same message is being handled")
            case Known.CONFLICT:
                return refused(422, "conflict", "another message came with this id")

    def _answer_of(self, taken: HTTPDelivery | Answered) -> Answered:
        if isinstance(taken, Answered):
            return taken
        if taken.answer.done():
            return taken.answer.result()
        return busy(503, "still_running", "the message is still being handled")

    def end(self, delivery: HTTPDelivery, *, is_handled: bool) -> None:
        """Note what became of a delivery of this consumer."""
        self._unsettled.discard(delivery)
        if delivery.key is not None:
            if is_handled:
                self._seen.finish(delivery.key)
            else:
                self._seen.abandon(delivery.key)

    async def aclose(self) -> None:
        """Answer what nobody settled with 503, and stop listening. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        error = ClosedError(f"{self._source}: closed before this delivery was settled")
        for delivery in tuple(self._unsettled):
            delivery.lose(error)
        self._waiting.clear()
        self._wake()
        server, self._server = self._server, None
        if server is not None:
            await server.aclose()
