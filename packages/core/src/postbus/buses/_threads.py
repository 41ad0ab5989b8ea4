"""The threads in which a bus runs what must not stop a loop."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from postbus.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    Future = asyncio.Future[Any]
    Outcome = tuple[Future, Any, BaseException | None]


class Threads:
    """A bounded pool, made on first use. Any thread; whoever made it closes it."""

    def __init__(self, limit: int | None) -> None:
        # As many as the standard library's own pool would have.
        self._limit = limit or min(32, (os.cpu_count() or 1) + 4)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        # What has ended and is not told yet, by the loop that waits for it.
        self._outcomes: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
        self._is_closed = False

    def pool(self) -> ThreadPoolExecutor:
        """Return the pool.

        Raises:
            ClosedError: after `close()`.
        """
        with self._lock:
            if self._is_closed:
                raise ClosedError("this bus is closed, and so are its threads")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._limit, "postbus")
            return self._pool

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what *function* returns, called in a thread with a copy of this context."""
        return await self._begin(partial(contextvars.copy_context().run, function, *arguments))

    def _begin(self, work: Callable[[], Any]) -> Future:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.pool().submit(self._call, loop, [future], work)
        return future

    def _call(
        self, loop: asyncio.AbstractEventLoop, asked: list[Future], work: Callable[[], Any]
    ) -> None:
        # Taken out, since what is raised leads to this frame and to the pool's, and the future
        # to what is raised: nothing is freed that goes round in a circle.
        future = asked.pop()
        if future.cancelled():
            return
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  raised again where it is awaited
            self._tell(loop, (future, None, error))
            del future
        else:
            self._tell(loop, (future, result, None))

    def _tell(self, loop: asyncio.AbstractEventLoop, outcome: Outcome) -> None:
        with self._lock:
            outcomes = self._outcomes.setdefault(loop, [])
            outcomes.append(outcome)
            is_first = len(outcomes) == 1
        if is_first:
            self._wake(loop)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have *loop* told once of all that ends before it looks: waking it is what costs."""
        try:
            loop.call_soon_threadsafe(self._settle, loop)
        except RuntimeError:  # it is closed, and nobody waits any more
            with self._lock:
                self._outcomes.pop(loop, None)

    def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            outcomes = self._outcomes.pop(loop, [])
        for future, result, error in outcomes:
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            elif isinstance(error, StopIteration):
                # As a generator does, whose way of ending this is; a future refuses it.
                made = RuntimeError("what ran in a thread raised StopIteration")
                made.__cause__ = error
                future.set_exception(made)
            else:
                future.set_exception(error)

    def close(self) -> None:
        """Take no more work. What runs finishes; nothing waits for it."""
        with self._lock:
            self._is_closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)
