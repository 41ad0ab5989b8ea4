"""Queries and their answers where the broker has no replies of its own: a queue for a process.

One thread sends what is asked, another fetches what comes to the queue; each has a connection.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from postbus.errors import ClosedError, TransportError
from postbus.messages import new_id
from postbus_kombu._brokers import broker_of
from postbus_kombu._properties import OWN_REPLIES, answer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from postbus.promises import Promise
    from postbus.transports import Reply, WireMessage
    from postbus_kombu._virtual import Taken

__all__ = ["ReplyQueue"]

logger = logging.getLogger("postbus.kombu")

# How often brokers are asked that do not wait for an answer themselves.
_POLL_INTERVAL = 0.02


class ReplyQueue:
    """The queries of this process that wait for their answers. Safe from any thread.

    It connects when something is asked, and looks for answers only while somebody waits for one.

    Args:
        settings: of the producer.
    """

    def __init__(self, settings: Any) -> None:
        self._queue = settings.queue
        self._name = f"{OWN_REPLIES}{new_id()}"
        self._asking = broker_of(settings)
        self._listening = broker_of(settings)
        self._changed = threading.Condition()
        self._asked: deque[tuple[str, WireMessage]] = deque()
        # By correlation id.
        self._pending: dict[str, Promise[Reply]] = {}
        self._number = 0
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def ask(self, message: WireMessage, reply: Promise[Reply]) -> None:
        """Send *message*, and settle *reply* when its answer comes. Returns at once.

        Raises:
            ClosedError: after `close()`.
        """
        with self._changed:
            if self._is_closed:
                raise self._closed()
            self._number += 1
            key = str(self._number)
            self._pending[key] = reply
            self._asked.append((key, message))
            if not self._threads:
                self._start(self._send)
                self._start(self._listen)
            self._changed.notify_all()
        reply.add_done_callback(lambda _: self._pending.pop(key, None))

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="postbus kombu replies", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _send(self) -> None:
        broker = self._asking
        while batch := self._next_batch():
            keys, messages = zip(*batch, strict=True)
            try:
                with broker.channel("ask") as channel:
                    replies = [(self._name, key) for key in keys]
                    broker.put_many(channel, self._queue, messages, replies)
            except TransportError as error:
                self._reject(error, keys)
        with suppress(TransportError), broker.channel("stop listening") as channel:
            broker.interrupt(channel, self._name)
        broker.close()

    def _next_batch(self) -> list[tuple[str, WireMessage]]:
        """Wait for questions and return at most a window of them; none after the close."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked or self._is_closed)
            if self._is_closed:
                return []
            size = min(self._asking.window, len(self._asked))
            return [self._asked.popleft() for _ in range(size)]

    def _listen(self) -> None:
        broker = self._listening
        while self._is_wanted():
            try:
                with broker.channel("fetch answers") as channel:
                    found = broker.answers(channel, self._name)
            except TransportError as error:
                logger.warning("the connection for answers broke", extra={"error": error.message})
                # The server may have forgotten them; who asks after that starts anew.
                self._reject(error, tuple(self._pending))
                continue
            for message in found:
                self._settle(message)
            if not found:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed, _POLL_INTERVAL)
        with suppress(TransportError), broker.channel("leave") as channel:
            broker.purge(channel, self._name)
        broker.close()

    def _is_wanted(self) -> bool:
        """Wait until an answer is wanted; return False after the close."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._is_closed)
            return not self._is_closed

    def _settle(self, message: Taken) -> None:
        promise = self._pending.get(message.properties.get("correlation_id", ""))
        if promise is None:
            logger.debug("an answer came too late")
            return
        promise.resolve(answer_of(message.body, message.properties))

    def _reject(self, error: TransportError, keys: Sequence[str]) -> None:
        for key in keys:
            promise = self._pending.get(key)
            if promise is not None:
                promise.reject(error)

    def _closed(self) -> ClosedError:
        return ClosedError("the producer was closed before the answer came")

    def close(self) -> None:
        """Reject what still waits, let go of the queue. Idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            threads = tuple(self._threads)
            pending = tuple(self._pending)
        self._reject(self._closed(), pending)
        for thread in threads:
            # A waiter closes when its answer comes: that thread ends after it.
            if thread is not threading.current_thread():
                thread.join()
