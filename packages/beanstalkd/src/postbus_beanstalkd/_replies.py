"""Answers to queries: a tube per asking process, which a thread empties."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from typing import TYPE_CHECKING

from postbus.errors import ClosedError, TransportError
from postbus_beanstalkd._jobs import delete, unmark_reply, watch_only
from postbus_beanstalkd._protocol import Connection

if TYPE_CHECKING:
    from postbus.promises import Promise
    from postbus.transports import Reply

__all__ = ["Replies"]

logger = logging.getLogger("postbus.beanstalkd")

_RESERVE = b"reserve-with-timeout 1\r\n"
_MORE = b"reserve-with-timeout 0\r\n"
_WAIT = 1.0
_BATCH = 50
# How long to wait before the server is tried again; the queries' own deadlines go on meanwhile.
_PAUSE = 0.5


class Replies:
    """The queries of this process that wait for their answers. Safe from any thread."""

    def __init__(self, address: tuple[str, int], timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self.tube: str = f"postbus.reply.{secrets.token_hex(16)}"
        self._changed = threading.Condition()
        self._pending: dict[str, Promise[Reply]] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def expect(self, message_id: str, reply: Promise[Reply]) -> str:
        """Wait for the answer that settles *reply*; return the tube to name in the question.

        Raises:
            ClosedError: after `close()`.
        """
        with self._changed:
            if self._is_closed:
                raise ClosedError("the producer was closed before the query was sent")
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._look, name="postbus beanstalkd replies", daemon=True
                )
                self._thread.start()
            self._pending[message_id] = reply
            self._changed.notify()
        reply.add_done_callback(lambda _: self._pending.pop(message_id, None))
        return self.tube

    def _look(self) -> None:
        connection: Connection | None = None
        while self._wait_for_queries():
            try:
                if connection is None:
                    connection = Connection(self._address, self._timeout)
                    connection.run(watch_only([self.tube]))
                self._take(connection)
            except TransportError as error:
                logger.warning("answers cannot be fetched", extra={"error": error.message})
                if connection is not None:
                    connection.close()
                    connection = None
                with self._changed:
                    if not self._is_closed:
                        self._changed.wait(_PAUSE)
        if connection is not None:
            connection.close()

    def _wait_for_queries(self) -> bool:
        with self._changed:
            while not (self._pending or self._is_closed):
                self._changed.wait()
            return not self._is_closed

    def _take(self, connection: Connection) -> None:
        (first,) = connection.run([_RESERVE], patience=_WAIT)
        if first.word != b"RESERVED":
            if first.word != b"TIMED_OUT":
                time.sleep(_PAUSE)
            return
        more = connection.run([_MORE] * _BATCH)
        answers = [first, *(each for each in more if each.word == b"RESERVED")]
        connection.run([delete(int(each.values[0])) for each in answers])
        for answer in answers:
            found = unmark_reply(answer.data)
            promise = None if found is None else self._pending.get(found[0])
            if found is None or promise is None:
                logger.debug("an answer came too late")
                continue
            promise.resolve(found[1])

    def close(self) -> None:
        """Reject what still waits. Idempotent; the thread ends within a second or so."""
        with self._changed:
            self._is_closed = True
            pending = tuple(self._pending.values())
            self._changed.notify_all()
        error = ClosedError("the producer was closed before the answer came")
        for promise in pending:
            promise.reject(error)
