"""Deadlines of queries: one thread for all of them, started with the first."""

from __future__ import annotations

import heapq
import math
import os
import threading
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from postbus.errors import TimedOutError

if TYPE_CHECKING:
    from postbus.promises import Promise

# Deadlines are grouped: a query is rejected at most this many seconds late.
RESOLUTION = 0.05


class Deadlines:
    """Rejects promises that are still pending when their time is up. Any thread.

    Answered promises cost nothing here: they are held weakly and vanish.
    """

    def __init__(self) -> None:
        self._start_over()

    def _start_over(self) -> None:
        self._condition = threading.Condition()
        self._slots: dict[int, WeakSet[Promise[Any]]] = {}
        self._due: list[int] = []
        self._thread: threading.Thread | None = None

    def add(self, promise: Promise[Any], seconds: float) -> None:
        """Reject *promise* with `TimedOutError` after *seconds*, unless it is settled by then."""
        slot = math.ceil((time.monotonic() + seconds) / RESOLUTION)
        with self._condition:
            waiting = self._slots.get(slot)
            if waiting is None:
                waiting = self._slots[slot] = WeakSet()
                heapq.heappush(self._due, slot)
                if self._due[0] == slot:
                    self._condition.notify()
            waiting.add(promise)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run,
                    name="postbus-deadlines",
                    daemon=True,
                )
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._reject(self._next())

    def _reject(self, late: list[Promise[Any]]) -> None:
        # A call of its own: a variable of the loop would keep the last promise for ever.
        for promise in late:
            promise.reject(TimedOutError("no answer came within the query's deadline"))

    def _next(self) -> list[Promise[Any]]:
        with self._condition:
            while True:
                wait = self._due[0] * RESOLUTION - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    return list(self._slots.pop(heapq.heappop(self._due)))
                self._condition.wait(wait)


deadlines: Deadlines = Deadlines()
# A fork copies no threads: the child starts over, without the parent's waiting queries.
os.register_at_fork(after_in_child=deadlines._start_over)  # noqa: SLF001  its own module
