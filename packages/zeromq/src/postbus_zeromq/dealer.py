"""Ask queries over a DEALER socket, and send commands and events over it where both are wanted.

A query is three frames, `[correlation, "", body]`, which a plain REP peer answers as well as a
ROUTER; a message that wants no answer is one frame, as over PUSH.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NoReturn

import attrs

from postbus.errors import (
    ConnectionFailedError,
    TimedOutError,
    TransportError,
    UnsupportedError,
)
from postbus.transports import Capabilities, Reply
from postbus_zeromq._dealing import DealerSocket, Unsent
from postbus_zeromq._sockets import take
from postbus_zeromq.producer import ZeroMQProducer

if TYPE_CHECKING:
    from postbus.promises import Promise
    from postbus.transports import WireMessage
    from postbus_zeromq._dealing import Target
    from postbus_zeromq._sockets import Endpoint
    from postbus_zeromq.settings import ZeroMQProducerSettings

__all__ = ["ZeroMQDealerProducer"]

_MAX_SIZE_BYTES = 1024 * 1024


class ZeroMQDealerProducer(ZeroMQProducer):
    """Asks whoever answers; with `rpc = "both"` it sends, at most once, as well.

    Any number of queries are under way at once and are answered in any order. Usable from any
    thread and loop, and after a fork, where the child opens a socket of its own. Several peers
    get queries in turn. Whoever built it closes it.

    >>> from postbus_zeromq import ZeroMQDealerProducer, ZeroMQProducerSettings
    >>> producer = ZeroMQDealerProducer(ZeroMQProducerSettings(rpc=True))
    >>> producer.capabilities.queries
    True
    >>> producer.close()
    """

    _socket: DealerSocket

    def __init__(
        self, settings: ZeroMQProducerSettings, *, max_size_bytes: int = _MAX_SIZE_BYTES
    ) -> None:
        self._sends = settings.rpc == "both"
        if not self._sends:
            # A query whose asker was told that it is over need not leave any more.
            settings = attrs.evolve(settings, linger=0.0)
        super().__init__(settings, max_size_bytes=max_size_bytes)
        self.capabilities: Capabilities = Capabilities(
            queries=True,
            queries_only=not self._sends,
            ordering=self._sends,
            max_size_bytes=self._max_size_bytes,
        )

    def _take(self, endpoint: Endpoint, persistent_id: str | None) -> DealerSocket:
        return take(DealerSocket, endpoint, persistent_id)

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        """Send a query and settle *reply* when its answer comes. Any thread; never blocks.

        Raises nothing: *reply* is rejected, after `send_timeout` seconds where nobody takes the
        query, and with `ClosedError` after `close()`. An answer that comes late is dropped.
        """
        socket = self._socket
        correlation = socket.expect(self, reply)
        try:
            # Also refuses what close() has not seen among those who wait.
            body = self._body_of(message)
            if socket.ask(correlation, body):
                socket.rouse()
            else:
                socket.ask_later(self._unsent(correlation, body, reply))
        except TransportError as error:
            reply.reject(error)

    async def arequest(self, message: WireMessage) -> Reply:
        """Send a query and return its answer; cancelled, it drops the answer.

        Raises:
            ConnectionFailedError: no peer was there in time, or the address cannot be used.
            TimedOutError: the peers took nothing in time: they are too slow, or gone.
            RejectedError: the body, or the answer, is larger than `max_message_bytes`.
            UnsupportedError: the message has a delay, a priority or an expiry.
            ClosedError: after `close()`, also one that happens meanwhile.
        """
        socket = self._socket
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        correlation = socket.expect(self, future)
        try:
            body = self._body_of(message)
            if not socket.ask(correlation, body):
                socket.ask_later(self._unsent(correlation, body, future))
            socket.watch_on(loop)
            answer = await future
        finally:
            socket.forget(correlation)
        if isinstance(answer, Reply):
            return answer
        raise answer

    def send(self, message: WireMessage) -> None:
        """Send one message, as a `ZeroMQProducer` does.

        Raises:
            UnsupportedError: it only asks queries (Z02).
            TransportError: as a `ZeroMQProducer` does.
        """
        if not self._sends:
            self._refuse_sending(message)
        super().send(message)

    async def asend(self, message: WireMessage) -> None:
        """Do what `send` does without blocking the loop."""
        if not self._sends:
            self._refuse_sending(message)
        await super().asend(message)

    def _let_go(self) -> None:
        # Who still waits for an answer is told before a flush may take its time.
        self._socket.give_up(self, self._closed_error)
        super()._let_go()

    def _unsent(self, correlation: bytes, body: bytes, target: Target) -> Unsent:
        expires = time.monotonic() + self._settings.send_timeout
        return Unsent(correlation, body, target, expires, self._late)

    def _refuse_sending(self, message: WireMessage) -> NoReturn:
        self._refuse_closed()
        raise UnsupportedError(
            f"{self._settings.dsn} only asks queries, and {message.name} wants no answer: send it "
            'to a section without rpc, or write rpc = "both" on both sides'
        )

    def _late(self) -> TransportError:
        dsn, seconds = self._settings.dsn, self._settings.send_timeout
        if self._socket.has_sent:
            return TimedOutError(
                f"nobody at {dsn} took the message within {seconds} seconds: those who answer are "
                f"gone, or {self._settings.high_water_mark} messages behind"
            )
        rpc = '"both"' if self._sends else "true"
        return ConnectionFailedError(
            f"nobody who answers was at {dsn} within {seconds} seconds: start a consumer with "
            f"rpc = {rpc} there; of the two sides one must bind and the other connect"
        )
