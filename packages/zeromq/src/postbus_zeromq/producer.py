"""Send messages over a PUSH socket, one frame each, for any PULL peer to read."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, NoReturn

from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    PartiallySentError,
    RejectedError,
    TimedOutError,
    TransportError,
    UnsupportedError,
)
from postbus.transports import AsyncMessageProducer, Capabilities
from postbus_zeromq._sockets import Endpoint, PushSocket, give_back, take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.transports import WireMessage
    from postbus_zeromq.settings import ZeroMQProducerSettings

__all__ = ["ZeroMQProducer"]

_MAX_SIZE_BYTES = 1024 * 1024
# Long enough to cost nothing, short enough that a close is noticed at once.
_SLICE = 0.01
# A peer that is only slow has room again within a few turns of the loop; one that is not there is
# asked for less and less often.
_TURNS = 8
_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.01


class ZeroMQProducer(AsyncMessageProducer):
    """Sends to whoever pulls, at most once: sent means that the message is on its way.

    Usable from any thread and loop, and after a fork, where the child opens a socket of its own.
    Several peers get messages in turn. Whoever built it closes it.

    >>> from postbus_zeromq import ZeroMQProducer, ZeroMQProducerSettings
    >>> producer = ZeroMQProducer(ZeroMQProducerSettings(dsn="tcp://127.0.0.1:5555"))
    >>> producer.capabilities.ordering
    True
    >>> producer.close()
    """

    def __init__(
        self, settings: ZeroMQProducerSettings, *, max_size_bytes: int = _MAX_SIZE_BYTES
    ) -> None:
        self._settings = settings
        self._max_size_bytes = settings.max_message_bytes or max_size_bytes
        self.capabilities: Capabilities = Capabilities(
            ordering=True, max_size_bytes=self._max_size_bytes
        )
        self._socket = self._take(
            Endpoint(
                settings.dsn,
                settings.bind,
                settings.high_water_mark,
                settings.linger,
                self._max_size_bytes,
            ),
            settings.persistent_id,
        )
        self._closing = threading.Lock()
        self._is_closed = False

    def _take(self, endpoint: Endpoint, persistent_id: str | None) -> PushSocket:
        return take(PushSocket, endpoint, persistent_id)

    def send(self, message: WireMessage) -> None:
        """Send one message; blocks up to `send_timeout` seconds for a peer with room.

        Raises:
            ConnectionFailedError: no peer was there in time, or the address cannot be used.
            TimedOutError: the peers took nothing in time: they are too slow, or gone.
            RejectedError: the body is larger than `max_message_bytes`.
            UnsupportedError: the message has a delay, a priority or an expiry.
            ClosedError: after `close()`, also one that happens meanwhile.
        """
        body = self._body_of(message)
        if not self._socket.offer(body):
            self._wait_and_offer(body)

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Send *messages* in order; each waits up to `send_timeout` seconds for room.

        Once one has waited in vain the rest fails with it, without a wait of its own.

        Raises:
            PartiallySentError: some were not sent; `.failed` maps their index to an error.
            ClosedError: after `close()`.
        """
        self._refuse_closed()
        failed: dict[int, TransportError] = {}
        for index, message in enumerate(messages):
            try:
                self.send(message)
            except (RejectedError, UnsupportedError) as error:
                failed[index] = error
            except TransportError as error:
                failed |= dict.fromkeys(range(index, len(messages)), error)
                break
        self._report(failed, len(messages))

    async def asend(self, message: WireMessage) -> None:
        """Do what `send` does without blocking the loop."""
        body = self._body_of(message)
        if not self._socket.offer(body):
            await self._await_and_offer(body)

    async def asend_many(self, messages: Sequence[WireMessage]) -> None:
        """Do what `send_many` does without blocking the loop.

        Cancelled, it may have sent some of them.
        """
        self._refuse_closed()
        failed: dict[int, TransportError] = {}
        for index, message in enumerate(messages):
            try:
                await self.asend(message)
            except (RejectedError, UnsupportedError) as error:
                failed[index] = error
            except TransportError as error:
                failed |= dict.fromkeys(range(index, len(messages)), error)
                break
        self._report(failed, len(messages))

    def close(self) -> None:
        """Let go of the socket; the last of those who share it flushes, up to `linger` seconds.

        What could not leave in time is discarded and logged. Idempotent; ends sends that wait.
        """
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        self._let_go()

    def _let_go(self) -> None:
        give_back(self._socket, self._settings.persistent_id)

    async def aclose(self) -> None:
        """Do what `close` does without blocking the loop."""
        await asyncio.to_thread(self.close)

    def _body_of(self, message: WireMessage) -> bytes:
        body = message.body
        if (
            self._is_closed
            or len(body) > self._max_size_bytes
            or message.delay is not None
            or message.priority is not None
            or message.expires_at is not None
        ):
            self._refuse(message)
        return body

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise self._closed_error()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the producer for {self._settings.dsn} is closed")

    def _refuse(self, message: WireMessage) -> NoReturn:
        self._refuse_closed()
        size = len(message.body)
        if size > self._max_size_bytes:
            raise RejectedError(
                f"{message.name} has {size} bytes, more than max_message_bytes = "
                f"{self._max_size_bytes} of {self._settings.dsn}"
            )
        asked = {
            "delay": message.delay,
            "priority": message.priority,
            "expiry": message.expires_at,
        }
        names = " and ".join(name for name, value in asked.items() if value is not None)
        raise UnsupportedError(f"{self._settings.dsn}: ZeroMQ has no {names} for {message.name}")

    def _wait_and_offer(self, body: bytes) -> None:
        socket = self._socket
        deadline = time.monotonic() + self._settings.send_timeout
        while not (socket.has_room() and socket.offer(body)):
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._late()
            socket.wait(min(left, _SLICE))
            self._refuse_closed()
        socket.has_sent = True

    async def _await_and_offer(self, body: bytes) -> None:
        socket = self._socket
        deadline = time.monotonic() + self._settings.send_timeout
        turns = 0
        while not (socket.has_room() and socket.offer(body)):
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._late()
            pause = _FIRST_PAUSE * 2 ** (turns - _TURNS) if turns >= _TURNS else 0.0
            await asyncio.sleep(min(pause, _LONGEST_PAUSE, left))
            self._refuse_closed()
            turns += 1
        socket.has_sent = True

    def _late(self) -> TransportError:
        dsn, seconds = self._settings.dsn, self._settings.send_timeout
        if self._socket.has_sent:
            return TimedOutError(
                f"nobody at {dsn} took the message within {seconds} seconds: "
                f"the consumers are gone, or {self._settings.high_water_mark} messages behind"
            )
        return ConnectionFailedError(
            f"nobody was at {dsn} within {seconds} seconds: start a consumer there; of the two "
            "sides one must bind and the other connect"
        )

    def _report(self, failed: dict[int, TransportError], count: int) -> None:
        if failed:
            raise PartiallySentError(
                f"{len(failed)} of {count} messages were not sent to {self._settings.dsn}", failed
            )
