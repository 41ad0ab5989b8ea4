"""Send messages by submitting jobs, and ask queries by waiting for them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    PartiallySentError,
    TransportError,
)
from postbus.transports import MessageProducer
from postbus_gearman._capabilities import capabilities_of
from postbus_gearman._jobs import ask, submit, unique_ids
from postbus_gearman._protocol import Connection, Kind, refusal
from postbus_gearman._queries import Queries
from postbus_gearman.settings import address_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.promises import Promise
    from postbus.transports import Capabilities, CommonSettings, Reply, WireMessage
    from postbus_gearman.settings import GearmanProducerSettings

__all__ = ["GearmanProducer"]

# Submissions that are on their way at once: enough to hide the round trip, and what both sides
# buffer for them stays far below what would make each wait for the other.
_WINDOW_JOBS = 100
_WINDOW_BYTES = 65_536


class GearmanProducer(MessageProducer):
    """Submits a background job per message, and a foreground job per query.

    A send returns when a server has accepted the job. Any thread, one at a time: the others wait
    for their turn; and after a fork. `send_many` has up to 100 jobs on their way at once. The
    server in use is kept until it is gone; then the next send tries them in their order. Whoever
    built it closes it.
    """

    def __init__(self, settings: GearmanProducerSettings, common: CommonSettings) -> None:
        self.capabilities: Capabilities = capabilities_of(settings, common)
        self._settings = settings
        self._function = settings.function.encode()
        self._is_closed = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._unique_ids = unique_ids()
        self._queries = Queries(self._connect, self._settings.io_timeout)

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Hand over *messages*, in order; blocks until a server has answered for each.

        Raises:
            PartiallySentError: some were refused, or the connection broke before their answer:
                then the server may have them all the same.
            ClosedError: after `close()`.
        """
        self._refuse_closed()
        failed: dict[int, TransportError] = {}
        submissions: dict[int, bytes] = {}
        for index, message in enumerate(messages):
            refused = self.capabilities.refusal(message, "gearman")
            if refused is not None:
                failed[index] = refused
            else:
                submissions[index] = self._submission(message)
        with self._lock:
            for window in _windows(submissions):
                failed.update(self._submit({index: submissions[index] for index in window}))
        if failed:
            raise PartiallySentError(
                f"{self._where} did not take {len(failed)} of {len(messages)} messages",
                dict(sorted(failed.items())),
            )

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        """Send a query; what a worker ends its job with settles *reply*."""
        try:
            self._refuse_closed()
            refused = self.capabilities.refusal(message, "gearman")
            if refused is not None:
                raise refused
            self._queries.ask(ask(message, self._function, next(self._unique_ids)), reply)
        except TransportError as error:
            reply.reject(error)

    @property
    def _where(self) -> str:
        return ", ".join(self._settings.servers)

    def _submission(self, message: WireMessage) -> bytes:
        unique = message.id.encode() if self._settings.unique else next(self._unique_ids)
        return submit(message, self._function, unique, message.priority)

    def _submit(self, submissions: dict[int, bytes]) -> dict[int, TransportError]:
        doing = f"submit a job for {self._settings.function}"
        try:
            self._refuse_closed()
            connection = self._connected()
            connection.send(b"".join(submissions.values()))
            answers = [connection.answer() for _ in submissions]
        except TransportError as error:
            self._disconnect()
            return dict.fromkeys(submissions, error)
        return {
            index: refusal(answer, doing)
            for index, answer in zip(submissions, answers, strict=True)
            if answer.kind != Kind.JOB_CREATED
        }

    def _connected(self) -> Connection:
        connection = self._connection
        if connection is not None and connection.has_hung_up:
            self._disconnect()
            connection = None
        if connection is None:
            connection = self._connection = self._connect()
        return connection

    def _connect(self) -> Connection:
        errors: list[ConnectionFailedError] = []
        for server in self._settings.servers:
            try:
                return Connection(address_of(server), self._settings.io_timeout)
            except ConnectionFailedError as error:
                errors.append(error)
        raise ConnectionFailedError("; ".join(error.message for error in errors))

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _refuse_closed(self) -> None:
        if self._process != os.getpid():
            # In a forked child: the connection and its answers are the parent's.
            self._start_afresh()
        if self._is_closed:
            raise ClosedError(f"the producer for {self._where} is closed")

    def close(self) -> None:
        """Close the connections and reject the queries that wait. Idempotent.

        Blocks while another thread's send waits for its answer, at most `io_timeout`.
        """
        self._is_closed = True
        if self._process == os.getpid():
            self._queries.close()
            with self._lock:
                self._disconnect()


def _windows(submissions: dict[int, bytes]) -> list[list[int]]:
    windows: list[list[int]] = []
    size = 0
    for index, submission in submissions.items():
        if (
            not windows
            or len(windows[-1]) >= _WINDOW_JOBS
            or size + len(submission) > _WINDOW_BYTES
        ):
            windows.append([])
            size = 0
        windows[-1].append(index)
        size += len(submission)
    return windows
