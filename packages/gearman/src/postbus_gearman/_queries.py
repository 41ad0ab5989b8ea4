"""Queries: foreground jobs over one connection, whose answers a thread reads."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import attrs

from postbus.errors import ClosedError, ConnectionFailedError, TimedOutError, TransportError
from postbus.transports import Reply
from postbus_gearman._protocol import Kind, readable, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.promises import Promise
    from postbus_gearman._protocol import Connection, Packet

__all__ = ["Queries"]

logger = logging.getLogger("postbus.gearman")


@attrs.define(eq=False)
class _Asked:
    """A query: when it was sent, and what came of its answer so far."""

    promise: Promise[Reply]
    sent_at: float
    data: bytes = b""
    warning: bytes = b""


class Queries:
    """The queries of this process that wait for their answers. Safe from any thread.

    An answer that comes when nobody waits any more is dropped; the connection goes on.

    Args:
        connect: makes a connection; raises `TransportError`.
        timeout: seconds that a server may take to accept a query. How long the answer may take
            is the caller's matter.
    """

    def __init__(self, connect: Callable[[], Connection], timeout: float) -> None:
        self._connect = connect
        self._timeout = timeout
        self._lock = threading.Lock()
        self._channel: _Channel | None = None
        self._is_closed = False

    def ask(self, submission: bytes, promise: Promise[Reply]) -> None:
        """Send a query, whose answer settles *promise*.

        Raises:
            TransportError: it could not be sent.
            ClosedError: after `close()`.
        """
        with self._lock:
            if self._is_closed:
                raise ClosedError("the producer was closed before the query was sent")
            channel = self._channel
            if channel is None or channel.has_ended:
                channel = self._channel = _Channel(self._connect(), self._timeout)
            channel.ask(submission, promise)

    def close(self) -> None:
        """Reject what still waits. Idempotent; the thread ends soon after."""
        with self._lock:
            self._is_closed = True
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.end(ClosedError("the producer was closed before the answer came"))


class _Channel:
    """One connection, and the queries that were sent over it. They end with it.

    Queries are sent by one thread at a time, and one of its own reads.
    """

    def __init__(self, connection: Connection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        # The server accepts queries in the order of sending, and then knows them by handles.
        self._unaccepted: deque[_Asked] = deque()
        self._waiting: dict[bytes, _Asked] = {}
        self._error: TransportError | None = None
        self.has_ended = False
        threading.Thread(target=self._read, name="postbus gearman answers", daemon=True).start()

    def ask(self, submission: bytes, promise: Promise[Reply]) -> None:
        """Send a query.

        Raises:
            TransportError: the connection is broken; so are all that wait.
        """
        asked = _Asked(promise, time.monotonic())
        self._unaccepted.append(asked)
        if self.has_ended:
            raise ConnectionFailedError("the connection ended before the query was sent")
        try:
            self._connection.send(submission)
        except TransportError as error:
            self.end(error)
            raise

    def end(self, error: TransportError) -> None:
        """Have the thread reject all that wait with *error*, and end. Any thread."""
        self._error = self._error or error
        self._connection.end()

    def _read(self) -> None:
        try:
            while True:
                self._read_once()
        except TransportError as error:
            self._stop(self._error or error)

    def _read_once(self) -> None:
        connection = self._connection
        if connection.has_more or readable([connection.fileno()], self._timeout):
            self._take(connection.receive())
        elif self._is_ignored():
            raise TimedOutError(f"a query was not accepted within {self._timeout} seconds")

    def _stop(self, error: TransportError) -> None:
        self.has_ended = True
        self._connection.close()
        logger.debug("the connection for answers ended", extra={"error": error.message})
        while self._unaccepted:
            self._unaccepted.popleft().promise.reject(error)
        for asked in tuple(self._waiting.values()):
            asked.promise.reject(error)

    def _is_ignored(self) -> bool:
        oldest = next(iter(self._unaccepted), None)
        return oldest is not None and time.monotonic() - oldest.sent_at >= self._timeout

    def _take(self, packet: Packet) -> None:
        match packet.kind:
            case Kind.JOB_CREATED:
                self._accepted(self._oldest(), packet.data)
            case Kind.ERROR:
                self._oldest().promise.reject(refusal(packet, "ask"))
            case Kind.WORK_DATA | Kind.WORK_WARNING | Kind.WORK_COMPLETE:
                handle, data = packet.arguments(2)
                self._answered(packet.kind, handle, data)
            case Kind.WORK_FAIL:
                self._answered(packet.kind, packet.data.rstrip(b"\0"), b"")
            case _:
                logger.debug("the server said something else", extra={"kind": packet.kind})

    def _oldest(self) -> _Asked:
        try:
            return self._unaccepted.popleft()
        except IndexError:
            raise ConnectionFailedError("the server accepted what nobody asked") from None

    def _accepted(self, asked: _Asked, handle: bytes) -> None:
        self._waiting[handle] = asked
        # Also where somebody gave up, so that nothing is kept of an answer that never comes.
        asked.promise.add_done_callback(lambda _: self._waiting.pop(handle, None))

    def _answered(self, kind: int, handle: bytes, data: bytes) -> None:
        asked = self._waiting.get(handle)
        if asked is None:
            logger.debug("an answer came too late")
        elif kind == Kind.WORK_DATA:
            asked.data += data
        elif kind == Kind.WORK_WARNING:
            asked.warning += data
        elif kind == Kind.WORK_COMPLETE:
            asked.promise.resolve(Reply(asked.data + data))
        else:
            asked.promise.resolve(Reply(asked.warning, is_error=True))
