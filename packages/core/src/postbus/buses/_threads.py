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


class Threads:
    """A bounded pool, made on first use. Any thread; whoever made it closes it."""

    def __init__(self, limit: int | None) -> None:
        # As many as the standard library's own pool would have.
        self._limit = limit or min(32, (os.cpu_count() or 1) + 4)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
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
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool(), partial(context.run, function, *arguments))

    def close(self) -> None:
        """Take no more work. What runs finishes; nothing waits for it."""
        with self._lock:
            self._is_closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)
