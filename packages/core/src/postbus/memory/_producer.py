"""The sending side of a memory queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus.errors import ClosedError, PartiallySentError, TransportError
from postbus.memory._queues import CAPACITY, MAX_SIZE_BYTES, capabilities_of, queue_of
from postbus.transports import MessageProducer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.promises import Promise
    from postbus.transports import Capabilities, Reply, WireMessage

__all__ = ["MemoryProducer"]


class MemoryProducer(MessageProducer):
    """Puts messages into the queue of an address. Any thread.

    Args:
        address: the queue's name in this process.
        capacity: how many messages may wait there before a send is refused.
        max_size_bytes: the largest body.
    """

    def __init__(
        self,
        *,
        address: str = "default",
        capacity: int = CAPACITY,
        max_size_bytes: int = MAX_SIZE_BYTES,
    ) -> None:
        self.capabilities: Capabilities = capabilities_of(max_size_bytes)
        self._queue = queue_of(address)
        self._capacity = capacity
        self._asked: set[Promise[Reply]] = set()
        self._closed = False

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Hand over *messages*, in order. Never blocks: a full queue refuses.

        Raises:
            PartiallySentError: some were too large, had a priority out of range, or found the
                queue full.
            ClosedError: after `close()`.
        """
        failed: dict[int, TransportError] = {}
        for index, message in enumerate(messages):
            try:
                self._add(message)
            except ClosedError:
                raise
            except TransportError as error:
                failed[index] = error
        if failed:
            raise PartiallySentError(
                f"{self._queue.source} refused {len(failed)} of {len(messages)} messages",
                failed,
            )

    def send(self, message: WireMessage) -> None:
        """Hand over one message. Never blocks: a full queue refuses.

        Raises:
            RejectedError: it is too large, its priority out of range, or the queue full.
            ClosedError: after `close()`.
        """
        self._add(message)

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        """Send a query; its delivery's `reply` settles *reply*. Raises nothing."""
        self._asked.add(reply)
        reply.add_done_callback(self._asked.discard)
        try:
            self._add(message, reply)
        except TransportError as error:
            reply.reject(error)

    def _add(self, message: WireMessage, reply: Promise[Reply] | None = None) -> None:
        if self._closed:
            raise ClosedError(f"{self._queue.source}: the producer is closed")
        refusal = self.capabilities.refusal(message, self._queue.source)
        if refusal is not None:
            raise refusal
        self._queue.add(message, self._capacity, reply)

    def close(self) -> None:
        """Refuse further messages and reject the queries that wait. Idempotent.

        What was sent stays for the consumers.
        """
        self._closed = True
        for reply in tuple(self._asked):
            reply.reject(ClosedError(f"{self._queue.source}: closed before the answer came"))
