"""Send messages by posting them to a web server."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from postbus.errors import ClosedError, PartiallySentError, TimedOutError, TransportError
from postbus.transports import AsyncMessageProducer
from postbus_http._capabilities import capabilities_of
from postbus_http._client import AsyncConnections, Connections, plan_of
from postbus_http._exchange import Answer, Outgoing, Requests
from postbus_http._resending import Attempts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from postbus.promises import Promise
    from postbus.transports import Capabilities, Reply, WireMessage
    from postbus_http.settings import HTTPProducerSettings

__all__ = ["HTTPProducer"]

_MAX_SIZE_BYTES = 1024 * 1024
# The connections of a parent: a forked child must not touch them, nor let them be collected.
_inherited: list[object] = []
_Failed = dict[int, TransportError]


class HTTPProducer(AsyncMessageProducer):
    """Posts each message to a URL; sent means that the other side answered 2xx.

    Usable from any thread and loop, and after a fork, where the child opens connections of its
    own. At most `max_connections` requests are in flight for all threads together, and as many
    for each loop; the others wait. Whoever built it closes it.

    >>> from postbus_http import HTTPProducer, HTTPProducerSettings
    >>> producer = HTTPProducer(HTTPProducerSettings(url="https://example.org/messages"))
    >>> producer.capabilities.queries
    True
    >>> producer.close()
    """

    def __init__(
        self, settings: HTTPProducerSettings, *, max_size_bytes: int = _MAX_SIZE_BYTES
    ) -> None:
        self.capabilities: Capabilities = capabilities_of(settings, max_size_bytes)
        self._settings = settings
        self._requests = Requests(settings, self.capabilities)
        self._plan = plan_of(settings, self._requests.shown, max_size_bytes)
        self._max_size_bytes = max_size_bytes
        self._is_closed = False
        self._start_afresh()
        _fork_aware.add(self)

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connections = Connections(self._plan)
        self._pool: ThreadPoolExecutor | None = None
        self._asked: set[Promise[Reply]] = set()
        self._of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncConnections] = (
            weakref.WeakKeyDictionary()
        )

    def leave_to_parent(self) -> object:
        """Forget the parent's connections and threads without touching them."""
        left = (self._connections, self._pool, dict(self._of_loops))
        self._start_afresh()
        if self._is_closed:
            self._connections.close()
        return left

    def send(self, message: WireMessage) -> None:
        """Post one message; blocks up to `total_timeout` seconds.

        Raises:
            StatusError: the other side answered with another status than 2xx.
            ConnectionFailedError: it cannot be reached, or went away before it answered.
            TimedOutError: it did not answer in time, or no connection was free.
            RejectedError: the body is larger than `max_size_bytes`, or the address not allowed.
            UnsupportedError: the message has a delay, a priority or an expiry.
            ClosedError: after `close()`.
        """
        self._requests.accept(self._post(self._requests.of(message)))

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Post *messages* side by side, on as many connections as there may be; in no order.

        Where `batch` is above 1, so many travel in one request.

        Raises:
            PartiallySentError: some were not taken; `.failed` maps their index to an error.
            ClosedError: after `close()`.
        """
        self._refuse_closed()
        parts, failed = self._parts(messages)
        if len(parts) == 1:
            failed |= self._send_part(*parts[0])
        elif parts:
            waiting = [self._submit(self._send_part, *part) for part in parts]
            for each in waiting:
                failed |= each.result()
        self._report(failed, len(messages))

    def _send_part(self, indexes: range | list[int], outgoing: Outgoing) -> _Failed:
        try:
            return self._failures(indexes, self._post(outgoing))
        except TransportError as error:
            return dict.fromkeys(indexes, error)

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        """Post a query in a thread of the producer's own; its answer settles *reply*.

        Raises nothing, and returns at once. As many threads as `max_connections` wait for
        answers.
        """
        try:
            outgoing = self._requests.of(message, is_query=True)
            self._asked.add(reply)
            reply.add_done_callback(self._asked.discard)
            self._submit(self._ask, outgoing, reply)
        except (TransportError, RuntimeError) as error:  # the latter at the interpreter's end
            reply.reject(error)

    def _ask(self, outgoing: Outgoing, reply: Promise[Reply]) -> None:
        if reply.done():
            return
        try:
            reply.resolve(self._requests.reply(self._post(outgoing, is_query=True)))
        except Exception as error:  # noqa: BLE001  whatever it is, the promise is settled
            reply.reject(error)

    async def asend(self, message: WireMessage) -> None:
        """Do what `send` does without blocking the loop. Cancelled, it may have been sent."""
        self._requests.accept(await self._apost(self._requests.of(message)))

    async def asend_many(self, messages: Sequence[WireMessage]) -> None:
        """Do what `send_many` does without blocking the loop.

        Cancelled, it may have sent some of them.
        """
        self._refuse_closed()
        parts, failed = self._parts(messages)
        left = iter(parts)

        async def send_some() -> None:
            # One task for each connection, however many messages there are.
            for indexes, outgoing in left:
                try:
                    answer = await self._apost(outgoing)
                    failed.update(self._failures(indexes, answer))
                except TransportError as error:
                    failed.update(dict.fromkeys(indexes, error))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(len(parts), self._settings.max_connections)):
                tasks.create_task(send_some())
        self._report(failed, len(messages))

    async def arequest(self, message: WireMessage) -> Reply:
        """Post a query and return its answer.

        Raises:
            StatusError: the status is no success, and the body no problem object.
            TransportError: as `send`, and an answer that is larger than `max_response_bytes`.
        """
        outgoing = self._requests.of(message, is_query=True)
        return self._requests.reply(await self._apost(outgoing, is_query=True))

    def _parts(
        self, messages: Sequence[WireMessage]
    ) -> tuple[list[tuple[list[int], Outgoing]], _Failed]:
        """Return the requests for *messages* with the indexes in each, and what is in none."""
        good: list[tuple[int, Outgoing]] = []
        failed: _Failed = {}
        for index, message in enumerate(messages):
            try:
                good.append((index, self._requests.of(message)))
            except TransportError as error:
                failed[index] = error
        if self._settings.batch == 1:
            return [([index], outgoing) for index, outgoing in good], failed
        return [
            ([index for index, _ in part], self._batch_of(part, messages))
            for part in self._batches(good)
        ], failed

    def _batches(self, good: list[tuple[int, Outgoing]]) -> Iterator[list[tuple[int, Outgoing]]]:
        """Split what is sent into parts of at most `batch` messages and `max_size_bytes`."""
        part: list[tuple[int, Outgoing]] = []
        size = 1
        for each in good:
            more = len(each[1].body) + 1
            if part and (len(part) == self._settings.batch or size + more > self._max_size_bytes):
                yield part
                part, size = [], 1
            part.append(each)
            size += more
        if part:
            yield part

    def _batch_of(
        self, part: list[tuple[int, Outgoing]], messages: Sequence[WireMessage]
    ) -> Outgoing:
        if len(part) == 1:
            return part[0][1]
        return self._requests.of_batch([messages[index] for index, _ in part])

    def _failures(self, indexes: Sequence[int], answer: Answer) -> _Failed:
        if len(indexes) == 1:
            self._requests.accept(answer)
            return {}
        found = self._requests.failures(answer, len(indexes))
        return {indexes[index]: error for index, error in found.items()}

    def _report(self, failed: _Failed, count: int) -> None:
        if failed:
            raise PartiallySentError(
                f"{self._requests.shown} did not take {len(failed)} of {count} messages",
                dict(sorted(failed.items())),
            )

    def _post(self, outgoing: Outgoing, *, is_query: bool = False) -> Answer:
        deadline = time.monotonic() + self._settings.total_timeout
        attempts = Attempts(self._settings.resend, deadline, is_query=is_query)
        while True:
            try:
                outcome: Answer | TransportError = self._connections.post(
                    self._requests.signed(outgoing), outgoing.body, deadline
                )
            except TransportError as error:
                outcome = error
            pause = attempts.pause_after(outcome)
            if pause is None:
                return _answer(outcome)
            if self._closing.wait(pause):
                raise self._closed_error() from None

    async def _apost(self, outgoing: Outgoing, *, is_query: bool = False) -> Answer:
        connections = self._connections_here()
        seconds = self._settings.total_timeout
        deadline = time.monotonic() + seconds
        attempts = Attempts(self._settings.resend, deadline, is_query=is_query)
        scope = asyncio.timeout(seconds)
        outcome: Answer | TransportError
        try:
            async with scope:
                while True:
                    try:
                        outcome = await connections.post(
                            self._requests.signed(outgoing), outgoing.body, deadline
                        )
                    except TransportError as error:
                        outcome = error
                    pause = attempts.pause_after(outcome)
                    if pause is None:
                        return _answer(outcome)
                    await asyncio.sleep(pause)
        except TimeoutError as error:
            if isinstance(error, TimedOutError) or not scope.expired():
                raise
            raise TimedOutError(
                f"{self._requests.shown} did not answer within {seconds} seconds"
            ) from None

    def _connections_here(self) -> AsyncConnections:
        loop = asyncio.get_running_loop()
        found = self._of_loops.get(loop)
        if found is None:
            with self._lock:
                self._refuse_closed()
                found = self._of_loops[loop] = AsyncConnections(self._plan, loop)
        return found

    def _submit(self, call: Any, *args: Any) -> Future[Any]:
        with self._lock:
            self._refuse_closed()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    self._settings.max_connections, thread_name_prefix="postbus-http"
                )
            return self._pool.submit(call, *args)

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise self._closed_error()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the producer for {self._requests.shown} is closed")

    def close(self) -> None:
        """Refuse further messages, and let go of the connections. Idempotent.

        Does not wait: a request in flight is finished by whoever waits for it, and those that
        wait for a connection or between two attempts get `ClosedError`; so do the promises of
        queries.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            pool, self._pool = self._pool, None
        self._closing.set()
        self._connections.close()
        for connections in tuple(self._of_loops.values()):
            connections.close()
        if pool is not None:
            pool.shutdown(wait=False)
        for reply in tuple(self._asked):
            reply.reject(self._closed_error())

    async def aclose(self) -> None:
        """Do what `close` does; that blocks for nothing."""
        self.close()


def _answer(outcome: Answer | TransportError) -> Answer:
    if isinstance(outcome, Answer):
        return outcome
    raise outcome


_fork_aware: weakref.WeakSet[HTTPProducer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    _inherited.extend(producer.leave_to_parent() for producer in _fork_aware)


os.register_at_fork(after_in_child=_after_fork_in_child)
