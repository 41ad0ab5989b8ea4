"""Receive messages from a PULL socket on an asyncio loop, without `zmq.asyncio`.

That one makes a future and handles events for each message; here the loop watches the socket's
descriptor only while there is nothing to read, and a wake-up reads all there is.
"""

from __future__ import annotations

import asyncio
import logging
from types import MappingProxyType
from typing import TYPE_CHECKING

import zmq

from postbus.errors import ClosedError
from postbus.promises import Promise
from postbus.transports import Capabilities, Delivery, MessageConsumer
from postbus_zeromq._errors import translate
from postbus_zeromq._sockets import Endpoint, OpenSocket, open_socket, start_afresh_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from postbus_zeromq.settings import ZeroMQConsumerSettings

__all__ = ["ZeroMQConsumer", "ZeroMQDelivery"]

logger: logging.Logger = logging.getLogger("postbus.zeromq")

_MAX_SIZE_BYTES = 1024 * 1024
_NOBLOCK = int(zmq.NOBLOCK)
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_new = object.__new__
# After so many messages without a wait other tasks of the loop get a turn.
_BURST = 256
# How long a loop that cannot watch descriptors leaves a thread waiting, and `aclose` with it.
_POLL_MILLISECONDS = 50


class ZeroMQDelivery(Delivery):
    """One frame. It left the sender for good when it was received: there is nothing to settle."""

    __slots__ = ()

    def ack(self) -> None:
        """Do nothing: the sender keeps no copy that could come back."""

    def settled(self) -> Promise[None]:
        """Return a promise that is resolved."""
        return Promise[None].resolved(None)


class ZeroMQConsumer(MessageConsumer):
    """Takes messages from whoever pushes. Every frame is one message.

    Opened by the first `receive`. Usable on one event loop after another, by one task at a time.
    Whoever built it closes it.
    """

    def __init__(
        self, settings: ZeroMQConsumerSettings, *, max_size_bytes: int = _MAX_SIZE_BYTES
    ) -> None:
        limit = settings.max_message_bytes or max_size_bytes
        self.capabilities: Capabilities = Capabilities(ordering=True, max_size_bytes=limit)
        self._endpoint = Endpoint(
            settings.dsn, settings.bind, settings.high_water_mark, 0.0, limit
        )
        self._open: OpenSocket | None = None
        self._stop_waiting: Callable[[], None] | None = None
        self._since_turn = 0
        self._is_empty = False
        self._closed = False
        start_afresh_after_fork(self)

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        """Wait for at least one delivery and return at most *max_messages*.

        Cancelled, it has taken nothing.

        Raises:
            ConnectionFailedError: the address cannot be bound; the next call tries again.
            ClosedError: after `aclose()`, also one that happens meanwhile.
        """
        if self._since_turn >= _BURST:
            self._since_turn = 0
            await asyncio.sleep(0)
        while not (deliveries := self._drain(max_messages)):
            self._since_turn = 0
            await (self._arrival() if self._is_empty else asyncio.sleep(0))
        self._since_turn += len(deliveries)
        return deliveries

    def _drain(self, max_messages: int) -> list[Delivery]:
        """Read up to *max_messages* frames that are here; `_is_empty` when that was all.

        Raises:
            TransportError: the socket cannot be opened or read.
        """
        recv, source = self._socket().recv, self._endpoint.dsn
        limit = self._endpoint.max_size_bytes
        made: list[Delivery] = []
        too_large: list[int] = []
        self._is_empty = False
        try:
            for _ in range(max_messages):
                body = recv(_NOBLOCK)
                if len(body) > limit:
                    too_large.append(len(body))
                    continue
                # A call of `__init__` would cost a quarter of the time that receiving takes.
                delivery = _new(ZeroMQDelivery)
                delivery.body, delivery.headers = body, NO_HEADERS
                delivery.source, delivery.redelivered = source, False
                made.append(delivery)
        except zmq.Again:
            self._is_empty = True
        except zmq.ZMQError as error:
            # What was read before comes first; the next call meets the error again.
            if not (made or too_large):
                failure = translate(error, f"receive from {source}")
                raise failure from error
        if too_large:
            self._log_dropped(too_large)
        return made

    def _log_dropped(self, sizes: list[int]) -> None:
        logger.warning(
            "messages dropped",
            extra={
                "dsn": self._endpoint.dsn,
                "reason": "too-large",
                "dropped": len(sizes),
                "size_bytes": max(sizes),
                "max_message_bytes": self._endpoint.max_size_bytes,
            },
        )

    def _socket(self) -> zmq.Socket[bytes]:
        if self._open is not None:
            return self._open.socket
        if self._closed:
            raise ClosedError(f"the consumer for {self._endpoint.dsn} is closed")
        self._open = self._opened()
        return self._open.socket

    def _opened(self) -> OpenSocket:
        return open_socket(zmq.PULL, self._endpoint)

    async def _arrival(self) -> None:
        """Wait until there may be something to read, or the consumer is closed.

        The descriptor signals changes, not states: a change is seen once the socket was found
        empty by a read, which is why this is called after a read only.

        Raises:
            RuntimeError: another task waits here already.
        """
        if self._stop_waiting is not None:
            msg = "receive() is already waiting in another task: one at a time"
            raise RuntimeError(msg)
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        descriptor = self._socket().FD

        def wake() -> None:
            loop.remove_reader(descriptor)
            if not woken.done():
                woken.set_result(None)

        try:
            loop.add_reader(descriptor, wake)
        except NotImplementedError:  # the proactor loop of Windows
            await self._arrival_seen_by_thread(loop, descriptor)
            return
        self._stop_waiting = wake
        try:
            await woken
        finally:
            self._stop_waiting = None
            if not woken.done() or woken.cancelled():
                loop.remove_reader(descriptor)

    async def _arrival_seen_by_thread(
        self, loop: asyncio.AbstractEventLoop, descriptor: int
    ) -> None:
        while self._open is not None:
            watched = [(descriptor, zmq.POLLIN)]
            if await loop.run_in_executor(None, zmq.zmq_poll, watched, _POLL_MILLISECONDS):
                return

    async def aclose(self) -> None:
        """Close the socket. Idempotent; a `receive` that waits raises `ClosedError`.

        What had arrived and was not received is lost, and logged.
        """
        self._closed = True
        opened, self._open = self._open, None
        if opened is None:
            return
        if self._stop_waiting is not None:
            self._stop_waiting()
        if opened.is_ready(zmq.POLLIN):
            logger.warning("messages discarded at close", extra={"dsn": self._endpoint.dsn})
        await self._let_go(opened)

    async def _let_go(self, opened: OpenSocket) -> None:
        opened.close()

    def leave_to_parent(self) -> object:
        """In a forked child: forget the parent's socket without touching it."""
        opened, self._open, self._stop_waiting = self._open, None, None
        return opened
