"""Calls to stores, which block and may be down: made in threads, and made until they work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from postbus.errors import ClosedError

__all__ = ["Patience", "StoreThreads", "Together"]

logger = logging.getLogger("postbus.worker")
T = TypeVar("T")

# Stores write together what is asked at one moment, so that more threads are faster ones.
_THREADS = 16
# How long what failed waits for more of its kind, in seconds: nobody is in a hurry for it, and
# each transaction costs as much as many rows. So many are enough.
_MOMENT = 0.02
_MOST_TOGETHER = 100


class StoreThreads:
    """The threads in which a worker calls its stores. Whoever made it closes it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, "postbus-store")
        self._pending: set[Future[Any]] = set()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call *function* in a thread, soon. Any thread; what it raises is in the future."""
        future = self._pool.submit(function, *arguments)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what *function* returns, called in a thread."""
        return await asyncio.wrap_future(self.submit(function, *arguments))

    async def aclose(self, patience: float) -> None:
        """Wait up to *patience* seconds for what was asked, then let go of the threads."""
        pending = [asyncio.wrap_future(each) for each in tuple(self._pending)]
        if pending:
            await asyncio.wait(pending, timeout=patience)
        self._pool.shutdown(wait=False)


class Patience:
    """Makes calls to stores until they work; consumption is paused meanwhile.

    Used on the worker's loop. One log line says that a store is down, one that it is back.

    Args:
        consumer: its name, for the log.
        threads: where the calls are made.
        pause: the seconds to wait after the nth failure in a row.
        on_change: called when the pausing begins and when it ends.
    """

    def __init__(
        self,
        consumer: str,
        threads: StoreThreads,
        pause: Callable[[int], float],
        on_change: Callable[[], None],
    ) -> None:
        self._consumer = consumer
        self._threads = threads
        self._pause = pause
        self._on_change = on_change
        self._waiting = 0
        self._stop = asyncio.Event()

    @property
    def is_waiting(self) -> bool:
        """Whether a store is down, so that nothing more should begin."""
        return self._waiting > 0

    @property
    def is_stopped(self) -> bool:
        """Whether nobody waits for stores any more."""
        return self._stop.is_set()

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what *function* returns once it does not raise.

        Raises:
            ClosedError: the worker stopped before that.
        """
        failures = 0
        try:
            while True:
                try:
                    return await self._threads.run(function, *arguments)
                except Exception as error:
                    failures += 1
                    if failures == 1:
                        self._begin(error)
                    if self.is_stopped:
                        raise ClosedError("the worker stopped while a store was down") from error
                    await self.wait(failures)
        finally:
            if failures:
                self._end()

    async def wait(self, failures: int) -> None:
        """Wait as long as after the nth failure, or until the worker stops."""
        try:
            async with asyncio.timeout(self._pause(failures)):
                await self._stop.wait()
        except TimeoutError:
            return

    def _begin(self, error: Exception) -> None:
        self._waiting += 1
        if self._waiting == 1:
            logger.error(
                "consumer paused: a store is down",
                extra={
                    "consumer": self._consumer,
                    "error": type(error).__name__,
                    "detail": str(error),
                },
            )
            self._on_change()

    def _end(self) -> None:
        self._waiting -= 1
        if self._waiting == 0:
            if not self.is_stopped:
                logger.info(
                    "consumer resumed: the store is back", extra={"consumer": self._consumer}
                )
            self._on_change()

    def stop(self) -> None:
        """Wait for no store any more."""
        self._stop.set()


class Together(Generic[T]):
    """Gives a store in one call what comes within a moment: the disk is waited for once.

    Used on the worker's loop.

    Args:
        function: takes several items; it has them all when it returns.
        patience: how it is called.
    """

    def __init__(self, function: Callable[[Sequence[T]], object], patience: Patience) -> None:
        self._function = function
        self._patience = patience
        self._waiting: list[tuple[T, asyncio.Future[None]]] = []
        self._is_enough = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def call(self, item: T) -> None:
        """Return when the store has *item*.

        Raises:
            ClosedError: the worker stopped before that.
        """
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, kept))
        if len(self._waiting) >= _MOST_TOGETHER:
            self._is_enough.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="postbus store")
        await kept

    async def _run(self) -> None:
        try:
            while self._waiting:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_MOMENT):
                        await self._is_enough.wait()
                self._is_enough.clear()
                batch, self._waiting = self._waiting, []
                for start in range(0, len(batch), _MOST_TOGETHER):
                    await self._keep(batch[start : start + _MOST_TOGETHER])
        finally:
            self._task = None

    async def _keep(self, batch: Sequence[tuple[T, asyncio.Future[None]]]) -> None:
        error: ClosedError | None = None
        try:
            await self._patience.call(self._function, [item for item, _ in batch])
        except ClosedError as stopped:
            error = stopped
        for _, kept in batch:
            # Whoever waited for it may have been cancelled.
            if kept.done():
                continue
            if error is None:
                kept.set_result(None)
            else:
                kept.set_exception(error)

    def cancel(self) -> None:
        """Call the store no more; what was given to it may still reach it."""
        if self._task is not None:
            self._task.cancel()
