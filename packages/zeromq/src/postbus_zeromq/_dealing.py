"""One DEALER socket for the queries of many threads and event loops.

There is no thread between asyncio code and the socket: whoever asks sends, under a lock, and an
event loop reads the answers when the socket's descriptor wakes it. A thread does the same for
promises, which nobody's loop waits for, and sends what found no peer.

The descriptor signals changes, and any call on the socket may use a signal up. Hence the rule
that everything here keeps: who finds answers to read after a call of another kind, reads them
or wakes the thread that does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import attrs
import zmq

from postbus.errors import RejectedError, TransportError
from postbus.promises import Promise
from postbus.transports import Reply
from postbus_zeromq._errors import translate
from postbus_zeromq._sockets import PushSocket
from postbus_zeromq._watching import LoopWatch, WatchThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus_zeromq._sockets import Endpoint

__all__ = ["PROBLEM", "Answer", "DealerSocket", "Target", "Unsent"]

logger = logging.getLogger("postbus.zeromq")

PROBLEM = b"problem"
"""The frame behind the body that marks a reply as a failure."""

Answer: TypeAlias = "Reply | TransportError"
Target: TypeAlias = "asyncio.Future[Answer] | Promise[Reply]"
"""Who waits for an answer: a future of an event loop, or a promise of a thread."""

_NOBLOCK = int(zmq.NOBLOCK)
_MORE = _NOBLOCK | int(zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)
# An answer is `[correlation, "", body]`, a failure has one frame more.
_FRAMES = 3
# After so many answers whoever else wants the socket gets a turn.
_BURST = 512
# How often somebody looks for a peer with room.
_SLICE = 0.01


@attrs.frozen
class Unsent:
    """A query that no peer has taken yet. *expires* is a `time.monotonic()`."""

    correlation: bytes
    body: bytes
    target: Target
    expires: float
    late: Callable[[], TransportError]


class DealerSocket(PushSocket):
    """One DEALER socket of this process, for any number of clients, threads and loops."""

    kind = zmq.DEALER

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._largest = endpoint.max_size_bytes

    def _start_afresh(self) -> None:
        super()._start_afresh()
        # Answers to what an earlier socket asked never match.
        self._prefix = os.urandom(8)
        self._numbers = itertools.count()
        self._futures: dict[bytes, tuple[object, asyncio.Future[Answer]]] = {}
        self._promises: dict[bytes, tuple[object, Promise[Reply]]] = {}
        self._unsent: deque[Unsent] = deque()
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopWatch] = (
            weakref.WeakKeyDictionary()
        )
        self._recv: Callable[[int], bytes] | None = None
        self._events: Callable[[], int] = _no_events
        self._more: Callable[[], int] = _no_events
        self._thread: WatchThread | None = None
        self._reads_for_loops = False

    def _connect(self) -> None:
        super()._connect()
        assert self._open is not None  # noqa: S101  what it did
        bare = self._open.bare
        self._recv = bare.recv
        self._events = partial(bare.get, int(zmq.EVENTS))
        self._more = partial(bare.get, int(zmq.RCVMORE))

    def expect(self, owner: object, target: Target) -> bytes:
        """Return the correlation of a new query, whose answer settles *target*.

        *owner* is who can give it up.
        """
        correlation = self._prefix + next(self._numbers).to_bytes(8, "big")
        if isinstance(target, Promise):
            self._promises[correlation] = owner, target
            target.add_done_callback(lambda _: self._promises.pop(correlation, None))
        else:
            self._futures[correlation] = owner, target
        return correlation

    def forget(self, correlation: bytes) -> None:
        """Drop the answer of *correlation* from now on, should it come."""
        self._futures.pop(correlation, None)

    def give_up(self, owner: object, error: Callable[[], TransportError]) -> None:
        """Settle all that *owner* still waits for, each with an *error* of its own."""
        waiting: list[tuple[object, Target]] = [
            *tuple(self._futures.values()),
            *tuple(self._promises.values()),
        ]
        settle([(target, error()) for whose, target in waiting if whose is owner])

    def ask(self, correlation: bytes, body: bytes) -> bool:
        """Send a query if some peer has room for it now; never blocks.

        Raises:
            ClosedError: it is closed.
            TransportError: the socket cannot be opened.
        """
        lock = self._lock
        lock.acquire()
        try:
            send = self._send
            if send is None:
                self._connect()
                return False
            is_sent = _send_query(send, correlation, body)
            events = self._events()
        except zmq.ZMQError as error:
            raise translate(error, f"send to {self.endpoint.dsn}") from error
        finally:
            lock.release()
        if events & _POLLIN:
            self._attend()
        return is_sent

    def ask_later(self, unsent: Unsent) -> None:
        """Send a query once some peer has room, or settle it with `late()` when it expires."""
        self._unsent.append(unsent)
        # Whatever it waits for, it has to look for room from now on.
        self._running_thread().wake()

    def offer(self, body: bytes) -> bool:
        """Send a message that wants no answer if some peer has room for it now."""
        is_sent = super().offer(body)
        self._look()
        return is_sent

    def has_room(self) -> bool:
        """Return whether a send may succeed now; never blocks."""
        return bool(self._look() & zmq.POLLOUT)

    def _look(self) -> int:
        """Return what the socket is ready for, and see to it that answers are read."""
        with self._lock:
            # Before it is open, and once it is closed, the next offer says what is the matter.
            events = zmq.POLLOUT if self._recv is None else self._events()
        if events & _POLLIN:
            self._attend()
        return events

    def _attend(self) -> None:
        loop = asyncio._get_running_loop()  # noqa: SLF001  documented as public for libraries in asyncio.events
        if loop is not None and loop in self._loops:
            self.read()
        else:
            self._running_thread().wake()

    def watch_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let *loop*, which is running here, read answers as long as it and the socket live."""
        if loop in self._loops:
            return
        descriptor = self.descriptor()
        if descriptor is None:
            return
        try:
            loop.add_reader(descriptor, self.read)
        except NotImplementedError:  # the proactor loop of Windows
            os.close(descriptor)
            self._reads_for_loops = True
            self.rouse()
        else:
            self._loops[loop] = LoopWatch(loop, descriptor)

    def read(self) -> None:
        """Settle whoever has an answer here by now."""
        found: list[tuple[Target, Answer]] = []
        with self._lock:
            recv, more = self._recv, self._more
            if recv is None:
                return
            try:
                for _ in range(_BURST):
                    frames = [recv(_NOBLOCK)]
                    while more():
                        frames.append(recv(_NOBLOCK))
                    target = self._target_of(frames)
                    if target is not None:
                        found.append((target, self._answer(frames)))
                has_more = True
            except zmq.Again:
                has_more = False
        settle(found)
        if has_more:
            self._running_thread().wake()

    def _target_of(self, frames: list[bytes]) -> Target | None:
        """Return who waits for an answer and for nobody else's, and wait no longer."""
        correlation = frames[0]
        waiting = self._futures.pop(correlation, None) or self._promises.pop(correlation, None)
        if waiting is None:
            logger.debug("late or unknown reply dropped", extra={"dsn": self.endpoint.dsn})
            return None
        return waiting[1]

    def _answer(self, frames: list[bytes]) -> Answer:
        count = len(frames)
        is_error = count == _FRAMES + 1 and frames[_FRAMES] == PROBLEM
        if (count != _FRAMES and not is_error) or frames[1]:
            return RejectedError(
                f"what came from {self.endpoint.dsn} is no reply: [correlation, empty, body]"
            )
        body = frames[2]
        if len(body) > self._largest:
            return RejectedError(
                f"the answer has {len(body)} bytes, more than max_message_bytes = "
                f"{self._largest} of {self.endpoint.dsn}"
            )
        return Reply(body, is_error)

    def rouse(self) -> None:
        """Have the thread look after promises, if it does not."""
        thread = self._thread
        if thread is None or thread.is_parked:
            self._running_thread().wake()

    def _running_thread(self) -> WatchThread:
        with self._lock:
            if self._thread is None:
                self._thread = WatchThread(self)
                self._thread.start()
            return self._thread

    @property
    def is_needed(self) -> bool:
        """Whether anything waits that only the thread looks after."""
        return bool(self._promises or self._unsent or (self._reads_for_loops and self._futures))

    def descriptor(self) -> int | None:
        """Return a new descriptor to watch, None where there is no open socket.

        The socket's own may be closed, and its number somebody else's, before whoever watches
        it has stopped. Who asks closes it.
        """
        with self._lock:
            return None if self._recv is None else os.dup(self._fd)

    def send_waiting(self) -> None:
        """Send what found no peer, and settle what has waited long enough."""
        has_room = bool(self._unsent) and self.has_room()
        for _ in range(len(self._unsent)):
            unsent = self._unsent.popleft()
            if unsent.target.done():
                continue
            try:
                if has_room and self.ask(unsent.correlation, unsent.body):
                    self.has_sent = True
                    continue
            except TransportError as error:
                settle([(unsent.target, error)])
                continue
            has_room = False
            if time.monotonic() < unsent.expires:
                self._unsent.append(unsent)
            else:
                settle([(unsent.target, unsent.late())])

    @property
    def poll_seconds(self) -> float | None:
        """How long the thread may wait for a signal, None for any time."""
        return _SLICE if self._unsent else None

    @property
    def is_closed(self) -> bool:
        """Whether it was closed for good."""
        return self._closed

    def close(self) -> None:
        """Close it for good; blocks up to `linger` seconds for what is still to be sent."""
        with self._lock:
            self._closed = True
            self._recv = None
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.wake()
        for watch in tuple(self._loops.values()):
            watch.stop()
        super().close()

    def leave_to_parent(self) -> object:
        """Forget the parent's socket and thread without touching them."""
        thread = self._thread
        return super().leave_to_parent(), thread


def _no_events() -> int:
    return 0


def _send_query(send: Callable[[bytes, int], object], correlation: bytes, body: bytes) -> bool:
    """Send the three frames of a query; False where nobody has room for it.

    The peer of the first frame is that of the others too. Should it vanish in between, libzmq
    swallows them: the query is lost with it like any other that was on its way.
    """
    try:
        send(correlation, _MORE)
    except zmq.Again:
        return False
    try:
        send(b"", _MORE)
    except zmq.Again:
        logger.debug("a query was lost with its peer")
    try:
        send(body, _NOBLOCK)
    except zmq.Again:
        logger.debug("a query was lost with its peer")
    return True


def settle(found: list[tuple[Target, Answer]]) -> None:
    """Give each answer to who waits for it, on the loop that it waits on. Any thread."""
    here = asyncio._get_running_loop() if found else None  # noqa: SLF001  as above
    for target, answer in found:
        if isinstance(target, Promise):
            if isinstance(answer, Reply):
                target.resolve(answer)
            else:
                target.reject(answer)
            continue
        loop = target.get_loop()
        if loop is here:
            _set(target, answer)
            continue
        try:
            loop.call_soon_threadsafe(_set, target, answer)
        except RuntimeError:
            logger.debug("an answer came after its waiter's loop was closed")


def _set(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)
