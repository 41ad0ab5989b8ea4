"""Receive queries over a ROUTER socket and answer each where it came from, in any order.

A query is `[identity, ..., "", body]`: whatever stands before the empty frame is its way back. A
DEALER's correlation stands there, a REQ socket has none, a proxy adds its own. A reply repeats
those frames and has the answer as its body; a failure has the frame `problem` behind it.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING

import attrs
import zmq

from postbus.errors import ClosedError
from postbus.promises import Promise
from postbus.transports import Capabilities, Delivery
from postbus_zeromq._dealing import PROBLEM
from postbus_zeromq._errors import translate
from postbus_zeromq._sockets import open_socket
from postbus_zeromq.consumer import NO_HEADERS, ZeroMQConsumer, ZeroMQDelivery, logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from postbus.errors import TransportError
    from postbus.transports import Reply
    from postbus_zeromq._sockets import BareSocket, OpenSocket
    from postbus_zeromq.settings import ZeroMQConsumerSettings

__all__ = ["ZeroMQQueryDelivery", "ZeroMQRouterConsumer"]

_MAX_SIZE_BYTES = 1024 * 1024
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = _NOBLOCK | int(zmq.SNDMORE)
_RCVMORE = int(zmq.RCVMORE)
# Answers may come in bursts; beyond so many times the high-water mark of them the asker is not
# reading, and gets no more.
_ANSWERS = 10
# How long a close waits for answers to leave; with the next, less than a worker's second.
_LINGER = 0.75
# What an asker gets to read the last answers: libzmq throws away what is unread where it
# connected and the other side hangs up.
_FAREWELL = 0.1
# Of a message that wants no answer: `[identity, body]`.
_ONE_WAY = 2


class ZeroMQQueryDelivery(Delivery):
    """A query and its way back. It is not given back, for its asker waits no longer than once."""

    __slots__ = ("_answer", "_error", "_route")

    def __init__(
        self,
        body: bytes,
        source: str,
        route: Sequence[bytes],
        answer: Callable[[ZeroMQQueryDelivery, Sequence[bytes], Reply], None],
    ) -> None:
        super().__init__(body, NO_HEADERS, source)
        self._route: Sequence[bytes] | None = route
        self._answer = answer
        self._error: TransportError | None = None

    def ack(self) -> None:
        """Do nothing: the sender keeps no copy that could come back."""

    def reply(self, reply: Reply) -> None:
        """Answer the query; the first answer counts. Any thread; returns at once.

        Should the asker be gone, or not read its answers, the delivery is `lost`.
        """
        route, self._route = self._route, None
        if route is not None:
            self._answer(self, route, reply)

    def settled(self) -> Promise[None]:
        """Return a settled promise: resolved, or rejected when the delivery was `lost`."""
        promise = Promise[None]
        return promise.resolved(None) if self._error is None else promise.rejected(self._error)

    @property
    def can_reply(self) -> bool:
        """Whether there is a way back: there is."""
        return True

    @property
    def lost(self) -> bool:
        """Whether the answer could not be sent."""
        return self._error is not None

    def lose(self, error: TransportError) -> None:
        """Note that the answer could not be sent because of *error*."""
        self._error = error


class ZeroMQRouterConsumer(ZeroMQConsumer):
    """Takes queries from whoever asks; with `rpc = "both"` commands and events as well.

    Opened by the first `receive`. Usable on one event loop after another, by one task at a time;
    deliveries are answered from any thread. Whoever built it closes it.
    """

    def __init__(
        self, settings: ZeroMQConsumerSettings, *, max_size_bytes: int = _MAX_SIZE_BYTES
    ) -> None:
        super().__init__(settings, max_size_bytes=max_size_bytes)
        limit = self._endpoint.max_size_bytes
        self.capabilities: Capabilities = Capabilities(
            queries=True, ordering=True, max_size_bytes=limit
        )
        self._takes_all = settings.rpc == "both"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._has_answered = False

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        """Wait for at least one delivery and return at most *max_messages*, as over PULL."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        return await super().receive(max_messages)

    def _opened(self) -> OpenSocket:
        options = {
            # So that an answer to nobody is noticed.
            zmq.ROUTER_MANDATORY: 1,
            zmq.SNDHWM: self._endpoint.high_water_mark * _ANSWERS,
        }
        return open_socket(zmq.ROUTER, attrs.evolve(self._endpoint, linger=_LINGER), options)

    async def _let_go(self, opened: OpenSocket) -> None:
        # What was answered leaves first, and the loop does not stand still meanwhile.
        if self._has_answered:
            await asyncio.sleep(_FAREWELL)
        await asyncio.to_thread(opened.close)

    def _drain(self, max_messages: int) -> list[Delivery]:
        """Read up to *max_messages* messages that are here; `_is_empty` when that was all.

        Raises:
            TransportError: the socket cannot be opened or read.
        """
        socket = self._bare()
        recv, more = socket.recv, partial(socket.get, _RCVMORE)
        made: list[Delivery] = []
        self._is_empty = False
        try:
            for _ in range(max_messages):
                frames = [recv(_NOBLOCK)]
                while more():
                    frames.append(recv(_NOBLOCK))
                delivery = self._delivery(frames)
                if delivery is not None:
                    made.append(delivery)
        except zmq.Again:
            self._is_empty = True
        except zmq.ZMQError as error:
            # What was read before comes first; the next call meets the error again.
            if not made:
                failure = translate(error, f"receive from {self._endpoint.dsn}")
                raise failure from error
        return made

    def _bare(self) -> BareSocket:
        self._socket()
        assert self._open is not None  # noqa: S101  what it did
        return self._open.bare

    def _delivery(self, frames: list[bytes]) -> Delivery | None:
        source, body = self._endpoint.dsn, frames[-1]
        if len(body) > self._endpoint.max_size_bytes:
            self._drop("too-large", size_bytes=len(body))
            return None
        # The empty frame ends the way back, and one frame is the body.
        if len(frames) > _ONE_WAY and not frames[-2] and all(frames[1:-2]):
            return ZeroMQQueryDelivery(body, source, frames[:-1], self._answer)
        if len(frames) != _ONE_WAY:
            self._drop("malformed", frames=len(frames))
            return None
        if not self._takes_all:
            self._drop("wants-no-answer", size_bytes=len(body))
            return None
        return ZeroMQDelivery(body, NO_HEADERS, source)

    def _drop(self, reason: str, **facts: int) -> None:
        logger.warning(
            "messages dropped", extra={"dsn": self._endpoint.dsn, "reason": reason, **facts}
        )

    def _answer(self, query: ZeroMQQueryDelivery, route: Sequence[bytes], reply: Reply) -> None:
        """Send *reply* from the thread that owns the socket."""
        if threading.get_ident() == self._thread:
            self._answer_now(query, route, reply)
            return
        assert self._loop is not None  # noqa: S101  what was received came over a loop
        try:
            self._loop.call_soon_threadsafe(self._answer_now, query, route, reply)
        except RuntimeError:
            self._lose(query, ClosedError("the loop that received the query is closed"))

    def _answer_now(
        self, query: ZeroMQQueryDelivery, route: Sequence[bytes], reply: Reply
    ) -> None:
        opened = self._open
        if opened is None:
            self._lose(query, ClosedError(f"the consumer for {self._endpoint.dsn} is closed"))
            return
        send = opened.bare.send
        try:
            for frame in route:
                send(frame, _MORE)
            send(reply.body, _MORE if reply.is_error else _NOBLOCK)
            if reply.is_error:
                send(PROBLEM, _NOBLOCK)
            self._has_answered = True
        except zmq.ZMQError as error:
            self._lose(query, translate(error, f"answer over {self._endpoint.dsn}"))
        # Sending may have used up the signal of what came meanwhile.
        if self._stop_waiting is not None and opened.is_ready(zmq.POLLIN):
            self._stop_waiting()

    def _lose(self, query: ZeroMQQueryDelivery, error: TransportError) -> None:
        query.lose(error)
        logger.warning(
            "an answer was lost",
            extra={"dsn": self._endpoint.dsn, "error": type(error).__name__},
        )
