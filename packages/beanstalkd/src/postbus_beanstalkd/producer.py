"""Send messages by putting jobs into a tube."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import msgspec

from postbus.errors import ClosedError, PartiallySentError, TransportError
from postbus.transports import MessageProducer
from postbus_beanstalkd._capabilities import capabilities_of
from postbus_beanstalkd._jobs import put, urgency, with_reply_channel
from postbus_beanstalkd._protocol import Connection, refusal
from postbus_beanstalkd._replies import Replies
from postbus_beanstalkd.settings import address_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.promises import Promise
    from postbus.transports import Capabilities, CommonSettings, Reply, WireMessage
    from postbus_beanstalkd.settings import BeanstalkdProducerSettings

__all__ = ["BeanstalkdProducer"]

# Commands that are on their way at once: enough to hide the round trip, and what both sides
# buffer for them stays far below what would make each wait for the other.
_WINDOW_JOBS = 100
_WINDOW_BYTES = 65_536


class BeanstalkdProducer(MessageProducer):
    """Puts one job per message into a tube; a send returns when the server has inserted it.

    Any thread, one at a time: the others wait for their turn; and after a fork. `send_many`
    sends up to 100 jobs per round trip. A connection that broke is made anew by the next send.
    Whoever built it closes it.
    """

    def __init__(self, settings: BeanstalkdProducerSettings, common: CommonSettings) -> None:
        self.capabilities: Capabilities = capabilities_of(settings, common)
        self._settings = settings
        self._address = address_of(settings.address)
        self._is_closed = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._replies = Replies(self._address, self._settings.io_timeout)

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Hand over *messages*, in order; blocks until the server has answered for each.

        Raises:
            PartiallySentError: some were refused, or the connection broke before their answer:
                then the server may have them all the same.
            ClosedError: after `close()`.
        """
        self._refuse_closed()
        failed: dict[int, TransportError] = {}
        commands: dict[int, bytes] = {}
        for index, message in enumerate(messages):
            refused = self.capabilities.refusal(message, "beanstalkd", size_key="max_job_bytes")
            if refused is not None:
                failed[index] = refused
            else:
                pri, ttr = urgency(message.priority), self._settings.ttr
                commands[index] = put(message.body, pri, message.delay, ttr)
        with self._lock:
            for window in _windows(commands):
                failed.update(self._insert({index: commands[index] for index in window}))
        if failed:
            raise PartiallySentError(
                f"{self._settings.address} did not take {len(failed)} of {len(messages)} messages",
                dict(sorted(failed.items())),
            )

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        """Send a query; the job in our reply tube that answers it settles *reply*."""
        try:
            self._refuse_closed()
            tube = self._replies.expect(message.id, reply)
            body = with_reply_channel(message.body, tube)
            self.send(msgspec.structs.replace(message, body=body))
        except TransportError as error:
            reply.reject(error)

    def _insert(self, commands: dict[int, bytes]) -> dict[int, TransportError]:
        doing = f"put into {self._settings.tube}"
        try:
            # It may have been closed while this send waited for its turn.
            self._refuse_closed()
            answers = self._connected().run(list(commands.values()))
        except TransportError as error:
            self._disconnect()
            return dict.fromkeys(commands, error)
        return {
            index: refusal(answer, doing)
            for index, answer in zip(commands, answers, strict=True)
            if answer.word != b"INSERTED"
        }

    def _connected(self) -> Connection:
        connection = self._connection
        if connection is not None and connection.has_hung_up:
            self._disconnect()
            connection = None
        if connection is None:
            connection = Connection(self._address, self._settings.io_timeout)
            self._connection = connection
            (answer,) = connection.run([b"use %b\r\n" % self._settings.tube.encode()])
            if answer.word != b"USING":
                raise refusal(answer, f"use {self._settings.tube}")
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _refuse_closed(self) -> None:
        if self._process != os.getpid():
            # In a forked child: the connection and its answers are the parent's.
            self._start_afresh()
        if self._is_closed:
            raise ClosedError(f"the producer for {self._settings.address} is closed")

    def close(self) -> None:
        """Close the connection and reject the queries that wait. Idempotent.

        Blocks while another thread's send waits for its answer, at most `io_timeout`.
        """
        self._is_closed = True
        if self._process == os.getpid():
            self._replies.close()
            with self._lock:
                self._disconnect()


def _windows(commands: dict[int, bytes]) -> list[list[int]]:
    windows: list[list[int]] = []
    size = 0
    for index, command in commands.items():
        if not windows or len(windows[-1]) >= _WINDOW_JOBS or size + len(command) > _WINDOW_BYTES:
            windows.append([])
            size = 0
        windows[-1].append(index)
        size += len(command)
    return windows
