"""Queries and their answers: a connection of its own, and a thread that alone uses it.

Answers come to RabbitMQ's direct reply-to, whose consumer has to be on the channel that asks.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from postbus.errors import ClosedError, TransportError
from postbus_kombu._amqp import Address, Link, Waker, translated
from postbus_kombu._confirms import Outlet, Posting
from postbus_kombu._declared import Declared
from postbus_kombu._properties import DIRECT_REPLY, answer_of

if TYPE_CHECKING:
    from postbus.promises import Promise
    from postbus.transports import Reply
    from postbus_kombu._topology import Shape

__all__ = ["Replies"]

logger = logging.getLogger("postbus.kombu")

_IDLE = 60.0


class Replies:
    """The queries of this process that wait for their answers. Safe from any thread."""

    def __init__(self, address: Address, shape: Shape, confirm_timeout: float) -> None:
        self._address = address
        self._shape = shape
        self._timeout = confirm_timeout
        self._lock = threading.Lock()
        self._waker = Waker()
        self._asked: deque[Posting] = deque()
        # By correlation id.
        self._pending: dict[str, Promise[Reply]] = {}
        self._number = 0
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._link: Link | None = None

    def ask(self, posting: Posting, reply: Promise[Reply]) -> None:
        """Send *posting*, and settle *reply* when its answer comes. Returns at once.

        Raises:
            ClosedError: after `close()`.
        """
        posting.on_error = reply.reject
        with self._lock:
            if self._is_closed:
                raise ClosedError("the producer was closed before the query was sent")
            self._number += 1
            key = str(self._number)
            posting.properties = {
                **posting.properties,
                "reply_to": DIRECT_REPLY,
                "correlation_id": key,
            }
            self._pending[key] = reply
            self._asked.append(posting)
            if self._thread is None:
                self._waker.open()
                self._thread = threading.Thread(
                    target=self._work, name="postbus kombu replies", daemon=True
                )
                self._thread.start()
        reply.add_done_callback(lambda _: self._pending.pop(key, None))
        self._waker.wake()

    def _work(self) -> None:
        """Send and receive until the end, or until the connection breaks.

        Then all that wait are rejected, since their answers were meant for a channel that is
        gone; who asks after that starts anew.
        """
        error: TransportError = ClosedError("the producer was closed before the answer came")
        try:
            self._exchange()
        except TransportError as broken:
            logger.warning("the connection for answers broke", extra={"error": broken.message})
            error = broken
        with self._lock:
            self._thread = None
            self._asked.clear()
            pending = tuple(self._pending.values())
            link, self._link = self._link, None
        if link is not None:
            link.close()
        for promise in pending:
            promise.reject(error)
        if self._is_closed:
            self._waker.close()

    def _exchange(self) -> None:
        self._link = link = Link(self._address, self._waker)
        outlet = Outlet(link, Declared(link, self._shape), self._timeout)
        with translated("receive answers"):
            outlet.channel.basic_consume(DIRECT_REPLY, no_ack=True, callback=self._answered)
        while not self._is_closed:
            self._waker.clear()
            for _ in range(min(outlet.room, len(self._asked))):
                outlet.post(self._asked.popleft())
            outlet.wait(_IDLE)

    def _answered(self, message: Any) -> None:
        promise = self._pending.get(message.properties.get("correlation_id", ""))
        if promise is None:
            logger.debug("an answer came too late")
            return
        promise.resolve(answer_of(message.body, message.properties))

    def close(self) -> None:
        """Reject what still waits. Idempotent."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
            pending = tuple(self._pending.values())
        error = ClosedError("the producer was closed before the answer came")
        for promise in pending:
            promise.reject(error)
        if thread is threading.current_thread():
            return  # a waiter closes when its answer comes: the thread ends, and lets go, after it
        if thread is not None:
            self._waker.wake()
            thread.join()
        self._waker.close()

    def abandon(self) -> None:
        """Let go of what belongs to the process that forked us."""
        if self._link is not None:
            self._link.abandon()
        self._waker.abandon()
