"""The receiving side of a memory queue."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from postbus.errors import ClosedError
from postbus.memory._queues import MAX_SIZE_BYTES, capabilities_of, queue_of
from postbus.promises import Promise
from postbus.transports import Delivery, MessageConsumer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.errors import TransportError
    from postbus.memory._queues import Queue, Waiting
    from postbus.transports import Capabilities, Reply, WaitingMessage, WireMessage

__all__ = ["MemoryConsumer", "MemoryDelivery"]

logger = logging.getLogger("postbus.memory")


class MemoryDelivery(Delivery):
    """A message taken from a memory queue; every settlement is carried out at once."""

    __slots__ = ("_capabilities", "_error", "_queue", "_unsettled", "_waiting")

    def __init__(
        self,
        waiting: Waiting,
        queue: Queue,
        unsettled: set[MemoryDelivery],
        capabilities: Capabilities,
    ) -> None:
        super().__init__(
            waiting.body, waiting.headers, queue.source, redelivered=waiting.redelivered
        )
        self._waiting = waiting
        self._queue = queue
        self._unsettled = unsettled
        self._capabilities = capabilities
        self._error: TransportError | None = None

    def _claim(self) -> bool:
        # Taking it out of the consumer's set is what "the first wins" means: one atomic step.
        try:
            self._unsettled.remove(self)
        except KeyError:
            return False
        return True

    def ack(self) -> None:
        """Say that it was handled."""
        self._claim()

    def nack(self) -> None:
        """Give it back: it returns to its old place, before all that came after it.

        Raises:
            UnsupportedError: the consumer is configured at-most-once.
        """
        if not self._capabilities.acknowledge:
            raise self._unsupported("nack")
        if self._claim():
            self._queue.give_back(self._waiting)

    def retry(self, message: WireMessage) -> None:
        """Put *message* in its place, now or after its delay. The reply channel stays.

        A message that is refused leaves the delivery given back, and `lost`.

        Raises:
            UnsupportedError: the consumer is configured at-most-once.
        """
        if not self._capabilities.retry:
            raise self._unsupported("retry")
        if self._claim():
            refusal = self._capabilities.refusal(message, self._queue.source)
            if refusal is not None:
                self.lose(refusal)
            else:
                self._queue.replace(self._waiting, message)

    def reply(self, reply: Reply) -> None:
        """Answer the query; the first answer counts.

        Raises:
            UnsupportedError: the message was sent, not asked.
        """
        if self._waiting.reply is None:
            raise self._unsupported("reply to")
        self._waiting.reply.resolve(reply)

    def settled(self) -> Promise[None]:
        """Return a settled promise: resolved, or rejected when the delivery was `lost`."""
        promise = Promise[None]
        return promise.resolved(None) if self._error is None else promise.rejected(self._error)

    @property
    def can_reply(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._waiting.reply is not None

    @property
    def lost(self) -> bool:
        """Whether it was given back without its holder's doing."""
        return self._error is not None

    def lose(self, error: TransportError) -> None:
        """Give it back because of *error*: from now on it is lost to its holder."""
        self._error = error
        self._queue.give_back(self._waiting)


class MemoryConsumer(MessageConsumer):
    """Takes messages from the queue of an address; several compete for them.

    Used on one loop at a time; deliveries are settled from any thread.

    Args:
        address: the queue's name in this process.
        max_size_bytes: the largest body a retry may have.
        guarantee: "at-most-once" makes a delivery final when it is received.
    """

    def __init__(
        self,
        *,
        address: str = "default",
        max_size_bytes: int = MAX_SIZE_BYTES,
        guarantee: str | None = None,
    ) -> None:
        self.capabilities: Capabilities = capabilities_of(max_size_bytes, guarantee)
        self._queue = queue_of(address)
        self._unsettled: set[MemoryDelivery] = set()
        self._is_receiving = False
        self._closed = False

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        """Wait for at least one delivery and return at most *max_messages*.

        Nothing is taken before it is returned, so a cancelled call loses nothing.

        Raises:
            ClosedError: after `aclose()`, also when that comes while waiting.
            RuntimeError: another call is waiting.
        """
        if self._is_receiving:
            raise RuntimeError(f"{self._queue.source}: receive() has one caller at a time")
        self._is_receiving = True
        try:
            return await self._receive(max_messages)
        finally:
            self._is_receiving = False

    async def _receive(self, max_messages: int) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        while not self._closed:
            woken = asyncio.Event()

            def wake(woken: asyncio.Event = woken) -> None:
                try:
                    loop.call_soon_threadsafe(woken.set)
                except RuntimeError:
                    logger.debug("a message came after its consumer's loop was closed")

            taken, next_due = self._queue.take(max_messages, wake)
            if taken:
                deliveries = [
                    MemoryDelivery(waiting, self._queue, self._unsettled, self.capabilities)
                    for waiting in taken
                ]
                if self.capabilities.acknowledge:
                    self._unsettled.update(deliveries)
                return deliveries
            timer = None
            if next_due is not None:
                timer = loop.call_later(next_due - time.monotonic(), woken.set)
            try:
                await woken.wait()
            finally:
                self._queue.stop_waking(wake)
                if timer is not None:
                    timer.cancel()
        raise self._closed_error()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self._queue.source}: the consumer is closed")

    def count(self) -> Mapping[str, int]:
        """Return how many messages wait at the address.

        Raises:
            ClosedError: after `aclose()`.
        """
        return {self._queue.address: self._open_queue().count()}

    def peek(self, queue: str, *, offset: int = 0, limit: int = 20) -> Sequence[WaitingMessage]:
        """Return messages that wait, the next one first.

        Raises:
            UnsupportedError: *queue* is another address.
            ClosedError: after `aclose()`.
        """
        return self._open_queue(queue).peek(offset, limit)

    def purge(self, queue: str) -> int:
        """Remove what waits; return how many messages that were. Queries among them fail.

        Raises:
            UnsupportedError: *queue* is another address.
            ClosedError: after `aclose()`.
        """
        return self._open_queue(queue).purge()

    def _open_queue(self, queue: str | None = None) -> Queue:
        if self._closed:
            raise self._closed_error()
        if queue is not None:
            self._refuse_unknown(queue, [self._queue.address])
        return self._queue

    async def aclose(self) -> None:
        """Give back what nobody settled; a waiting `receive` ends. Idempotent."""
        self._closed = True
        error = ClosedError(f"{self._queue.source}: closed before this delivery was settled")
        while self._unsettled:
            self._unsettled.pop().lose(error)
        self._queue.wake()
