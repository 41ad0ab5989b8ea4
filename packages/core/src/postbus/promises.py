"""An answer that is on its way: what `QueryBus.dispatch` returns.

A promise runs from birth. Whoever waits for it cannot cancel it, and whoever answers it too
late is told so by a False, never by an exception.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

__all__ = ["Promise"]

T = TypeVar("T")
logger: logging.Logger = logging.getLogger("postbus.promises")

_PENDING: Any = object()
# One lock for all promises: it is held for a few instructions, and only where somebody waits
# or answers; a lock per promise would cost more than the promise. Reentrant, since the garbage
# collector may run anybody's code while it is held; and no fork happens then.
_lock = threading.RLock()
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


class Promise(Generic[T]):
    """The answer to a query, pending, resolved or rejected. Usable from any thread and loop.

    Made pending; `resolve` or `reject` settles it, once. A rejection that nobody looked at is
    logged once, when the promise is garbage collected.
    """

    __slots__ = ("__weakref__", "_callbacks", "_error", "_seen", "_traceback", "_value")

    def __init__(self) -> None:
        self._value: Any = _PENDING
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._callbacks: deque[Callable[[Promise[T]], object]] | None = None
        self._seen = False

    @classmethod
    def resolved(cls, value: T) -> Promise[T]:
        """Return a promise that already has its answer."""
        promise = cls()
        promise._value = value
        return promise

    @classmethod
    def rejected(cls, error: BaseException) -> Promise[T]:
        """Return a promise that has already failed with *error*."""
        promise = cls()
        promise.reject(error)
        return promise

    def done(self) -> bool:
        """Return whether it is resolved or rejected. Never blocks."""
        return self._value is not _PENDING

    def resolve(self, value: T) -> bool:
        """Settle it with *value*; False when it was settled already. Callbacks run here."""
        return self._settle(value, None)

    def reject(self, error: BaseException) -> bool:
        """Settle it with *error*; False when it was settled already. Callbacks run here."""
        return self._settle(None, error)

    def _settle(self, value: Any, error: BaseException | None) -> bool:
        with _lock:
            if self._value is not _PENDING:
                return False
            if error is not None:
                self._error, self._traceback = error, error.__traceback__
            self._value = value
            callbacks, self._callbacks = self._callbacks, None
        if callbacks:
            for callback in callbacks:
                self._call(callback)
        return True

    def _call(self, callback: Callable[[Promise[T]], object]) -> None:
        try:
            callback(self)
        except Exception:  # one waiter's mistake must not reach the answerer or other waiters
            logger.exception("a promise's callback failed")

    def add_done_callback(self, callback: Callable[[Promise[T]], object]) -> None:
        """Call *callback* with this promise once it is settled.

        That is now if it is settled, else when somebody settles it, in that thread. What it
        raises is logged.
        """
        with _lock:
            if self._value is _PENDING:
                if self._callbacks is None:
                    self._callbacks = deque()
                self._callbacks.append(callback)
                return
        self._call(callback)

    def exception(self) -> BaseException | None:
        """Return what it was rejected with, or None; counts as having looked. Never blocks.

        Raises:
            RuntimeError: it is still pending.
        """
        if self._value is _PENDING:
            msg = "the promise is still pending"
            raise RuntimeError(msg)
        self._seen = True
        return self._error

    def result(self, timeout: float | None = None) -> T:
        """Block this thread until it is settled, at most *timeout* seconds, and return the answer.

        Without *timeout* the promise's own deadline ends the wait. A time-out here does not
        disturb the promise or other waiters.

        Raises:
            TimeoutError: *timeout* seconds passed.
            RuntimeError: this thread runs an event loop, which would stand still: use `await`.
            BaseException: what it was rejected with.
        """
        if self._value is _PENDING:
            if asyncio._get_running_loop() is not None:  # noqa: SLF001  documented as public for libraries in asyncio.events
                msg = "result() would block the running event loop: await the promise instead"
                raise RuntimeError(msg)
            settled = threading.Event()
            wake = settled.set

            def on_done(_: Promise[T]) -> None:
                wake()

            self.add_done_callback(on_done)
            try:
                settled.wait(timeout)
            finally:
                self._forget(on_done)
            if self._value is _PENDING:
                msg = f"no answer within {timeout} seconds"
                raise TimeoutError(msg)
        return self._outcome()

    def _outcome(self) -> T:
        if self._error is not None:
            self._seen = True
            # Every waiter gets the traceback of the failure, not those of the waiters before.
            raise self._error.with_traceback(self._traceback)
        return cast("T", self._value)

    def _forget(self, callback: Callable[[Promise[T]], object]) -> None:
        with _lock:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)

    def __await__(self) -> Generator[Any, None, T]:
        """Wait without blocking the loop. Cancelling the waiter leaves the promise as it is."""
        if self._value is _PENDING:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()

            def settle() -> None:
                if not future.done():
                    future.set_result(None)

            def on_done(_: Promise[T]) -> None:
                try:
                    loop.call_soon_threadsafe(settle)
                except RuntimeError:
                    logger.debug("an answer came after its waiter's loop was closed")

            self.add_done_callback(on_done)
            try:
                yield from future
            finally:
                self._forget(on_done)
        return self._outcome()

    def __repr__(self) -> str:
        """Its state; never its value, which may hold secrets."""
        if self._value is _PENDING:
            return "<Promise pending>"
        return f"<Promise {'resolved' if self._error is None else 'rejected'}>"

    def __del__(self) -> None:
        """Log a rejection that nobody looked at."""
        if self._error is not None and not self._seen:
            logger.error(
                "a query failed and nobody looked at the answer",
                extra={"error": type(self._error).__name__},
            )
