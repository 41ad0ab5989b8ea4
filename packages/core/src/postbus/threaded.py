"""A consumer around a blocking client: one thread of its own makes every call to the client.

Most client libraries block, and their connections belong to one thread. A transport on such a
library writes a `BlockingClient`, and `ThreadedConsumer` makes a consumer of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import attrs

from postbus.errors import ClosedError, TransportError
from postbus.promises import Promise
from postbus.transports import Delivery, MessageConsumer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.transports import Capabilities, Reply, WaitingMessage, WireMessage

__all__ = ["Action", "BlockingClient", "Received", "Settlement", "ThreadedConsumer"]

T = TypeVar("T")
logger: logging.Logger = logging.getLogger("postbus.threaded")

# What a poll may block while settlements can be asked meanwhile, for clients that `wake` cannot
# interrupt: short against any handler, long enough to cost nothing.
_SHORT_POLL = 0.02
# And while nothing can be asked but the close.
_LONG_POLL = 0.5
# What `aclose` waits for a client that is still connecting: it often has just done so.
_CONNECTING = 0.2
_NO_HEADERS: Mapping[str, str] = {}


class Action(Enum):
    """What can be asked about a delivery."""

    ACK = "ack"
    NACK = "nack"
    RETRY = "retry"
    REPLY = "reply"
    EXTEND = "extend"


_FINAL = frozenset({Action.ACK, Action.NACK, Action.RETRY})


@attrs.frozen(kw_only=True)
class Received(Generic[T]):
    """One message as a client has it. *receipt* is what the client needs to settle it.

    *can_reply* says that whoever sent it may wait for an answer, *is_awaited* whether that is
    known to be so.
    """

    body: bytes
    receipt: T
    headers: Mapping[str, str] = _NO_HEADERS
    redelivered: bool = False
    can_reply: bool = False
    is_awaited: bool = True


@attrs.frozen
class Settlement(Generic[T]):
    """Something asked about a received message.

    *argument* is the `WireMessage` of a retry, the `Reply` of a reply, the seconds of an extend.
    """

    action: Action
    receipt: T
    argument: Any = None


class BlockingClient(ABC, Generic[T]):
    """What a `ThreadedConsumer` drives. All calls come from one thread, unless they say otherwise.

    A `TransportError` that a method raises means that the connection is gone: everything
    unsettled is lost to its holders, `close` is called, and the next `receive` calls `open`
    again. Any other exception counts as one, and is logged with its traceback.

    Attributes:
        source: where messages come from, for people; no secrets.
        capabilities: what it can do; an action that they deny is never asked.
        can_wake: whether `wake` ends a waiting `poll`.
        queues: what it takes from, by the names that `count` has.
    """

    source: str
    capabilities: Capabilities
    can_wake: ClassVar[bool] = False
    queues: Sequence[str] = ()

    @abstractmethod
    def open(self) -> None:
        """Connect.

        Raises:
            TransportError: it cannot now.
        """

    @abstractmethod
    def poll(self, max_messages: int, seconds: float) -> Sequence[Received[T]]:
        """Return what is there, at most *max_messages*; wait up to *seconds* for a first one.

        Raises:
            TransportError: the connection is broken.
        """

    @abstractmethod
    def settle(self, settlements: Sequence[Settlement[T]]) -> Mapping[int, TransportError]:
        """Carry out what was asked, in order; return what failed by its index.

        A failure here is that of one message, whose holder has lost it. A reply that nobody
        waits for any more is no failure.

        Raises:
            TransportError: the connection is broken; all of them count as failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection. Idempotent, also after a failed `open`."""

    def wake(self) -> None:
        """End a `poll` that is waiting, or the next one. Any thread; only with `can_wake`."""

    def tend(self) -> float | None:
        """Do what is due by itself, such as a heartbeat; return the seconds until the next time.

        Called now and then between other calls. None: there is nothing to do.

        Raises:
            TransportError: the connection is broken.
        """
        return None

    # Any thread, while the others go on: over a connection of their own. Each is called only
    # where the capabilities have it.

    def count(self) -> Mapping[str, int]:
        """Return how many messages wait in each of `queues`.

        Raises:
            TransportError: the system cannot be reached.
        """
        raise NotImplementedError

    def peek(self, queue: str, offset: int, limit: int) -> Sequence[WaitingMessage]:
        """Return at most *limit* messages that wait in *queue*, but for the first *offset*.

        Raises:
            TransportError: the system cannot be reached.
        """
        raise NotImplementedError

    def purge(self, queue: str) -> int:
        """Remove what waits in *queue*; return how many messages that were.

        Raises:
            TransportError: the system cannot be reached.
        """
        raise NotImplementedError


class _ThreadedDelivery(Delivery):
    """A received message; what is asked about it waits for the owner thread."""

    # All but the receipt belongs to the consumer's lock.
    __slots__ = (
        "_consumer",
        "_is_awaited",
        "_reply",
        "error",
        "is_answered",
        "is_final",
        "promise",
        "receipt",
        "unfinished",
    )

    def __init__(self, consumer: ThreadedConsumer[Any], received: Received[Any]) -> None:
        super().__init__(
            received.body, received.headers, consumer.source, redelivered=received.redelivered
        )
        self._consumer = consumer
        self._reply = received.can_reply
        self._is_awaited = received.is_awaited
        self.receipt: Any = received.receipt
        # Whether ack, nack or retry was asked: the first of them wins.
        self.is_final: bool = False
        # So it is with answers.
        self.is_answered: bool = False
        self.unfinished: int = 0
        self.error: TransportError | None = None
        self.promise: Promise[None] | None = None

    def ack(self) -> None:
        if self._consumer.capabilities.acknowledge:
            self._consumer.ask(self, Action.ACK)

    def nack(self) -> None:
        if not self._consumer.capabilities.acknowledge:
            raise self._unsupported("nack")
        self._consumer.ask(self, Action.NACK)

    def retry(self, message: WireMessage) -> None:
        if not self._consumer.capabilities.retry:
            raise self._unsupported("retry")
        refusal = self._consumer.capabilities.refusal(message, self.source)
        if refusal is None:
            self._consumer.ask(self, Action.RETRY, message)
        else:
            self._consumer.ask(self, Action.NACK, error=refusal)

    def reply(self, reply: Reply) -> None:
        if not self._reply:
            raise self._unsupported("reply to")
        self._consumer.ask(self, Action.REPLY, reply)

    def extend(self, seconds: float) -> None:
        if self._consumer.capabilities.lease is None:
            raise self._unsupported("extend")
        self._consumer.ask(self, Action.EXTEND, seconds)

    def settled(self) -> Promise[None]:
        return self._consumer.settled(self)

    @property
    def can_reply(self) -> bool:
        return self._reply

    @property
    def is_awaited(self) -> bool:
        return self._reply and self._is_awaited

    @property
    def lost(self) -> bool:
        return self.error is not None


@attrs.frozen(eq=False)
class _Waiter:
    """A `receive` that waits for deliveries."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    max_messages: int

    def wake(self, error: Exception | None = None) -> None:
        """Let it go on, or fail. Any thread."""

        def settle() -> None:
            if self.future.done():
                return
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(settle)
        except RuntimeError:
            logger.debug("a message came after its consumer's loop was closed")


class ThreadedConsumer(MessageConsumer, Generic[T]):
    """Makes a consumer of a `BlockingClient`.

    The first `receive` starts a daemon thread, which alone calls the client. It polls only while
    a `receive` waits, so nothing is fetched that nobody asked for; settlements are carried out
    between polls. Used on one loop at a time; deliveries are settled from any thread. Whoever
    built it closes it.

    Args:
        client: belongs to the consumer from now on.
        close_timeout: seconds that `aclose` waits for the client.
    """

    def __init__(self, client: BlockingClient[T], *, close_timeout: float = 5.0) -> None:
        self.capabilities: Capabilities = client.capabilities
        self._client = client
        self._close_timeout = close_timeout
        self._is_closed = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._waiter: _Waiter | None = None
        self._asked: list[tuple[_ThreadedDelivery, Settlement[T]]] = []
        self._fetched: deque[_ThreadedDelivery] = deque()
        # Delivered or fetched, and not settled.
        self._held: set[_ThreadedDelivery] = set()
        self._is_open = False
        self._has_ended = False
        self._ended: Promise[None] = Promise()

    @property
    def source(self) -> str:
        """Where the messages come from, for people."""
        return self._client.source

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        """Wait for at least one delivery and return at most *max_messages*.

        Cancelled, what was fetched meanwhile comes first in the next call.

        Raises:
            ClosedError: after `aclose()`, also when that comes while waiting.
            TransportError: the client cannot reach its system; the next call tries again.
            RuntimeError: another call is waiting.
        """
        if self._process != os.getpid():
            # In a forked child there is no owner thread, and the lock may be held for ever.
            self._start_afresh()
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop, loop.create_future(), max_messages)
        with self._changed:
            if self._is_closed:
                raise self._closed()
            if self._waiter is not None:
                raise RuntimeError(f"{self.source}: receive() has one caller at a time")
            if self._fetched:
                return self._hand_out(max_messages)
            self._waiter = waiter
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name=f"postbus {self.source}", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
        try:
            await waiter.future
        finally:
            with self._changed:
                if self._waiter is waiter:
                    self._waiter = None
        with self._changed:
            return self._hand_out(max_messages)

    def _hand_out(self, max_messages: int) -> list[Delivery]:
        fetched = self._fetched
        return [fetched.popleft() for _ in range(min(max_messages, len(fetched)))]

    def ask(
        self,
        delivery: _ThreadedDelivery,
        action: Action,
        argument: Any = None,
        error: TransportError | None = None,
    ) -> None:
        """Have *action* carried out by the owner thread. Any thread; returns at once.

        With an *error* the delivery is lost to its holder by that.
        """
        with self._changed:
            if action in _FINAL:
                if delivery.is_final:
                    return
                delivery.is_final = True
            elif action is Action.REPLY:
                if delivery.is_answered:
                    return
                delivery.is_answered = True
            if self._has_ended and delivery.error is None:
                delivery.error = self._unsettled()
            if delivery.error is not None:
                return
            delivery.unfinished += 1
            delivery.error = error
            self._asked.append((delivery, Settlement(action, delivery.receipt, argument)))
            is_first = len(self._asked) == 1
            if is_first:
                self._changed.notify_all()
        if is_first:
            # The owner takes all that was asked at once, so only the first has to tell it.
            self._client.wake()

    def settled(self, delivery: _ThreadedDelivery) -> Promise[None]:
        """Return the promise of what was asked last about *delivery*. Any thread."""
        with self._changed:
            promise = delivery.promise or Promise[None]()
            if delivery.error is not None:
                promise.reject(delivery.error)
            elif delivery.unfinished:
                delivery.promise = promise
            else:
                promise.resolve(None)
            return promise

    async def aclose(self) -> None:
        """Carry out what was asked, give back the rest, close the client. Idempotent.

        Waits at most `close_timeout` seconds, and hardly for a client that is still connecting,
        which has nothing to carry out; one that blocks longer is left to its thread, and that is
        logged.
        """
        with self._changed:
            self._is_closed = True
            thread, waiter = self._thread, self._waiter
            patience = self._close_timeout if self._is_open else _CONNECTING
            self._changed.notify_all()
        if thread is None or self._process != os.getpid():
            return
        self._client.wake()
        if waiter is not None:
            waiter.wake(self._closed())
        try:
            async with asyncio.timeout(min(patience, self._close_timeout)):
                await self._ended
        except TimeoutError:
            logger.warning(
                "consumer did not close in time",
                extra={"source": self.source, "close_timeout": self._close_timeout},
            )

    def count(self) -> Mapping[str, int]:
        """Return how many messages wait in each queue. Blocks; any thread."""
        self._refuse(None, "count", can=self.capabilities.count)
        return self._client.count()

    def peek(self, queue: str, *, offset: int = 0, limit: int = 20) -> Sequence[WaitingMessage]:
        """Return messages that wait in *queue*, the next one first. Blocks; any thread."""
        self._refuse(queue, "peek at", can=self.capabilities.inspect)
        return self._client.peek(queue, offset, limit)

    def purge(self, queue: str) -> int:
        """Remove what waits in *queue*; return how many. Blocks; any thread."""
        self._refuse(queue, "purge", can=self.capabilities.purge)
        return self._client.purge(queue)

    def _refuse(self, queue: str | None, call: str, *, can: bool) -> None:
        if self._is_closed:
            raise self._closed()
        if not can:
            raise self._unsupported(call)
        if queue is not None:
            self._refuse_unknown(queue, self._client.queues)

    def _closed(self) -> ClosedError:
        return ClosedError(f"{self.source}: the consumer is closed")

    def _unsettled(self) -> ClosedError:
        return ClosedError(f"{self.source}: closed before this delivery was settled")

    # What follows runs on the owner thread.

    def _work(self) -> None:
        due: float | None = None
        while True:
            with self._changed:
                while not (self._asked or self._wanted() or self._is_closed):
                    pause = None if due is None else due - time.monotonic()
                    if pause is not None and pause <= 0:
                        break
                    self._changed.wait(pause)
                asked, self._asked = self._asked, []
                wanted = self._wanted()
                is_closed = self._is_closed
            try:
                if asked:
                    self._settle(asked)
                    asked = []
                if is_closed:
                    break
                if wanted:
                    self._poll(wanted, due)
                if self._is_open:
                    pause = self._client.tend()
                    due = None if pause is None else time.monotonic() + pause
            except Exception as error:  # noqa: BLE001  a client's fault must not end its thread
                self._broken(error, asked)
                due = None
        self._finish()

    def _wanted(self) -> int:
        waiter = self._waiter
        if waiter is None or self._fetched or waiter.future.done():
            return 0
        return waiter.max_messages

    def _poll(self, wanted: int, due: float | None) -> None:
        client = self._client
        if not self._is_open:
            client.open()
            self._is_open = True
        seconds = _SHORT_POLL if self._held and not client.can_wake else _LONG_POLL
        if due is not None:
            seconds = max(0.0, min(seconds, due - time.monotonic()))
        received = client.poll(wanted, seconds)
        if not received:
            return
        deliveries = [_ThreadedDelivery(self, each) for each in received]
        with self._changed:
            self._fetched.extend(deliveries)
            if self.capabilities.acknowledge:
                self._held.update(deliveries)
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.wake()

    def _settle(self, asked: Sequence[tuple[_ThreadedDelivery, Settlement[T]]]) -> None:
        failed = self._client.settle([settlement for _, settlement in asked])
        self._settled([(d, s, failed.get(index)) for index, (d, s) in enumerate(asked)])

    def _settled(
        self,
        outcomes: Sequence[tuple[_ThreadedDelivery, Settlement[T] | None, TransportError | None]],
    ) -> None:
        """Note what became of settlements, and of deliveries that nobody settled."""
        promises: list[tuple[Promise[None], TransportError | None]] = []
        with self._changed:
            for delivery, settlement, error in outcomes:
                if settlement is not None:
                    delivery.unfinished -= 1
                delivery.error = delivery.error or error
                if settlement is None or error is not None or settlement.action in _FINAL:
                    self._held.discard(delivery)
                if delivery.promise is not None and not delivery.unfinished:
                    promises.append((delivery.promise, delivery.error))
                    delivery.promise = None
        for promise, error in promises:
            if error is None:
                promise.resolve(None)
            else:
                promise.reject(error)

    def _broken(
        self,
        error: Exception,
        asked: Sequence[tuple[_ThreadedDelivery, Settlement[T]]] = (),
    ) -> None:
        """Give up the connection: what is held is lost, and a waiting `receive` is told."""
        if not isinstance(error, TransportError):
            logger.error("the client of %s failed", self.source, exc_info=error)
            text = f"{self.source}: {type(error).__name__}"
            failure = TransportError(text)
            failure.__cause__ = error
        else:
            failure = error
        self._is_open = False
        self._close_client()
        with self._changed:
            left, self._asked = [*asked, *self._asked], []
            self._fetched.clear()
            held, waiter, self._waiter = tuple(self._held), self._waiter, None
        self._settled([*((d, s, failure) for d, s in left), *((d, None, failure) for d in held)])
        if waiter is not None:
            waiter.wake(failure)

    def _close_client(self) -> None:
        try:
            self._client.close()
        except Exception:
            logger.exception("the client of %s could not be closed", self.source)

    def _finish(self) -> None:
        with self._changed:
            self._has_ended = True
            left, self._asked = self._asked, []
            held = tuple(self._held)
            self._fetched.clear()
        error = self._unsettled()
        given_back = [Settlement(Action.NACK, delivery.receipt) for delivery in held]
        try:
            if self._is_open and given_back:
                self._client.settle(given_back)
        except Exception:
            logger.exception("deliveries of %s could not be given back", self.source)
        self._settled([*((d, s, error) for d, s in left), *((d, None, error) for d in held)])
        self._close_client()
        self._ended.resolve(None)
