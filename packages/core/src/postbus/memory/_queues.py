"""The queues of the process, by address: what a memory producer and a memory consumer share."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs

from postbus.errors import RejectedError, TimedOutError
from postbus.promises import Promise
from postbus.transports import Capabilities, Reply, WaitingMessage

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.transports import WireMessage

__all__ = [
    "CAPACITY",
    "MAX_SIZE_BYTES",
    "Queue",
    "Waiting",
    "capabilities_of",
    "queue_of",
    "reset",
]

logger = logging.getLogger("postbus.memory")

# Enough for any burst of a test or a small service, and at the usual few hundred bytes a message
# still only a few megabytes.
CAPACITY = 10_000
MAX_SIZE_BYTES = 1024 * 1024


def capabilities_of(max_size_bytes: int, guarantee: str | None = None) -> Capabilities:
    """Return what memory can do; with the guarantee at-most-once nothing comes back."""
    acknowledge = guarantee != "at-most-once"
    return Capabilities(
        acknowledge=acknowledge,
        queries=True,
        retry=acknowledge,
        delay=0.001,
        priority=True,
        expiry=True,
        ordering=True,
        max_size_bytes=max_size_bytes,
        count=True,
        inspect=True,
        purge=True,
    )


@attrs.define(eq=False)
class Waiting:
    """One message in a queue. *place* orders it: priority, then the order of sending."""

    body: bytes
    headers: Mapping[str, str]
    place: tuple[int, int]
    due: float = 0.0
    expires_at: datetime | None = None
    reply: Promise[Reply] | None = None
    redelivered: bool = False

    def has_expired(self) -> bool:
        """Whether nobody is to have it any more."""
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)


class Queue:
    """The messages of one address. Every method is safe from any thread."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.source: str = f"memory:{address}"
        self.start_empty()

    def start_empty(self) -> None:
        """Begin anew: also what a forked child does, where the lock may be held for ever."""
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._ready: list[tuple[tuple[int, int], Waiting]] = []
        self._delayed: list[tuple[float, tuple[int, int], Waiting]] = []
        self._wakes: set[Callable[[], None]] = set()

    def add(
        self, message: WireMessage, capacity: int, reply: Promise[Reply] | None = None
    ) -> None:
        """Append *message*.

        Raises:
            RejectedError: *capacity* messages wait already.
        """
        place = (-(message.priority or 0), next(self._numbers))
        waiting = _make_waiting(message, place, reply)
        with self._lock:
            if len(self._ready) + len(self._delayed) >= capacity:
                raise RejectedError(
                    f"{self.source} is full: {capacity} messages wait; "
                    "consume faster or raise `capacity`"
                )
            self._put(waiting)
        self.wake()

    def give_back(self, waiting: Waiting) -> None:
        """Return a taken message to its place, full or not: it was accepted once."""
        waiting.redelivered = True
        with self._lock:
            self._put(waiting)
        self.wake()

    def replace(self, waiting: Waiting, message: WireMessage) -> None:
        """Put *message* where the taken *waiting* was."""
        with self._lock:
            self._put(_make_waiting(message, waiting.place, waiting.reply))
        self.wake()

    def _put(self, waiting: Waiting) -> None:
        if waiting.due:
            heapq.heappush(self._delayed, (waiting.due, waiting.place, waiting))
        else:
            heapq.heappush(self._ready, (waiting.place, waiting))

    def take(
        self, max_messages: int, wake: Callable[[], None]
    ) -> tuple[list[Waiting], float | None]:
        """Return what is ready and, when nothing is, the time the next one is due.

        When nothing is ready, *wake* is called once, from any thread, as soon as that changes.
        """
        taken: list[Waiting] = []
        expired: list[Waiting] = []
        with self._lock:
            self._release_due()
            ready = self._ready
            while ready and len(taken) < max_messages:
                waiting = heapq.heappop(ready)[1]
                if waiting.has_expired():
                    expired.append(waiting)
                else:
                    taken.append(waiting)
            if not taken:
                self._wakes.add(wake)
            next_due = self._delayed[0][0] if self._delayed else None
        for waiting in expired:
            self._drop_expired(waiting)
        return taken, next_due

    def count(self) -> int:
        """Return how many messages could be taken now."""
        return len(self._takeable())

    def peek(self, offset: int, limit: int) -> list[WaitingMessage]:
        """Return what would be taken next, from *offset* on, at most *limit*."""
        found = sorted(self._takeable(), key=_place)[offset : offset + limit]
        return [WaitingMessage(waiting.body, waiting.headers) for waiting in found]

    def purge(self) -> int:
        """Remove what could be taken now, and return how much that was."""
        found = self._takeable(remove=True)
        for waiting in found:
            if waiting.reply is not None:
                waiting.reply.reject(RejectedError(f"{self.source} was purged before the answer"))
        return len(found)

    def _takeable(self, *, remove: bool = False) -> list[Waiting]:
        with self._lock:
            self._release_due()
            found = [waiting for _, waiting in self._ready if not waiting.has_expired()]
            if remove:
                # What has expired goes as well, and is none of them.
                self._ready.clear()
            return found

    def _release_due(self) -> None:
        delayed = self._delayed
        if delayed:
            now = time.monotonic()
            while delayed and delayed[0][0] <= now:
                waiting = heapq.heappop(delayed)[2]
                waiting.due = 0.0
                heapq.heappush(self._ready, (waiting.place, waiting))

    def _drop_expired(self, waiting: Waiting) -> None:
        logger.info("message expired", extra={"source": self.source})
        if waiting.reply is not None:
            waiting.reply.reject(TimedOutError("the query expired before anybody took it"))

    def wake(self) -> None:
        """Let every consumer that waits look again."""
        if not self._wakes:
            return
        with self._lock:
            wakes, self._wakes = self._wakes, set()
        for wake in wakes:
            wake()

    def stop_waking(self, wake: Callable[[], None]) -> None:
        """Forget *wake*."""
        with self._lock:
            self._wakes.discard(wake)


def _place(waiting: Waiting) -> tuple[int, int]:
    return waiting.place


def _make_waiting(
    message: WireMessage, place: tuple[int, int], reply: Promise[Reply] | None
) -> Waiting:
    due = time.monotonic() + message.delay if message.delay else 0.0
    return Waiting(message.body, dict(message.headers), place, due, message.expires_at, reply)


_queues: dict[str, Queue] = {}


def queue_of(address: str) -> Queue:
    return _queues.setdefault(address, Queue(address))


def _start_empty() -> None:
    for queue in _queues.values():
        queue.start_empty()


os.register_at_fork(after_in_child=_start_empty)


def reset(address: str | None = None) -> None:
    """Drop what waits at *address*, or everywhere: for the time between two tests.

    Producers and consumers made before share the old queue with each other only.
    """
    if address is None:
        _queues.clear()
    else:
        _queues.pop(address, None)
