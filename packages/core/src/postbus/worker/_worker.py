"""The worker that an application runs or embeds."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from postbus.errors import ClosedError, ConfigurationError, Problem
from postbus.worker._consumption import ConsumerRun, Consumption, ReceivingBus
from postbus.worker._failures import default_pause

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from types import TracebackType

    from postbus.catalog import MessageCatalog
    from postbus.messages import MessageKind

__all__ = ["Worker"]

logger = logging.getLogger("postbus.worker")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What a loop of our own waits for tasks that handlers left behind.
_LEFTOVER_PATIENCE = 1.0


class Worker:
    """Dispatches what its consumers receive, and acknowledges after success, never before.

    Runs once: `run()` blocks, `with worker.running():` uses a thread of its own, `async with
    worker:` and `await worker.arun()` use the caller's loop. It ends when `stop()` is called or
    when every consumer has been closed; it closes the consumers, not the buses.

    A message that fails is given back to its transport after a pause, 0.1 to 5 seconds, that
    grows with each failure of the same bytes; meanwhile others are handled, until 100 are set
    aside: then the consumer receives no more. The same goes for what cannot be decoded, has
    an unknown name or no handler, or asks without a reply channel: nothing is dropped, and a
    newer worker may understand it. A query that fails is answered with the problem instead. Where
    a transport takes nothing back, the message is lost and logged at error level with its id.

    Args:
        buses: the bus of each kind; a kind without one has no handlers.
        consumers: what to receive from.
        catalog: the only names that are accepted.
        shutdown_grace: seconds that running handlers get to finish after a stop; 0 cancels
            them at once. A handler in a thread cannot be cancelled: its message is given back.
        pause: the seconds to wait after the nth failure, of a message or of a receive.

    Raises:
        ConfigurationError: no consumers, or a negative grace.
    """

    def __init__(
        self,
        buses: Mapping[MessageKind, ReceivingBus],
        consumers: Sequence[ConsumerRun],
        catalog: MessageCatalog,
        *,
        shutdown_grace: float = 10.0,
        pause: Callable[[int], float] = default_pause,
    ) -> None:
        problems: list[Problem] = []
        if not consumers:
            problems.append(Problem("consumers", "", "a worker needs at least one consumer"))
        if not shutdown_grace >= 0:
            expected = "seconds, 0 or more"
            problems.append(Problem("worker.shutdown_grace", repr(shutdown_grace), expected))
        if problems:
            raise ConfigurationError(problems)
        self._buses = dict(buses)
        self._runs = tuple(consumers)
        self._catalog = catalog
        self._shutdown_grace = shutdown_grace
        self._pause = pause
        self._was_started = False
        self._is_stopping = False
        self._open = 0
        self._ended: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    async def arun(self) -> None:
        """Work on the caller's loop until stopped. Cancelled, it stops without grace.

        Raises:
            ClosedError: it has been started before.
        """
        self._refuse_second_start()
        self._was_started = True
        grace = self._shutdown_grace
        running = [Consumption(run, self._buses, self._catalog, self._pause) for run in self._runs]
        self._open = len(running)
        self._ended = asyncio.Event()
        # stop() in another thread sets the flag, then looks for the loop; here it is the reverse.
        self._loop = asyncio.get_running_loop()
        logger.info("worker started", extra={"consumers": [each.name for each in running]})
        try:
            if not self._is_stopping:
                for each in running:
                    each.start(self._one_ended)
                await self._ended.wait()
        except BaseException:
            grace = 0.0
            raise
        finally:
            await asyncio.gather(*(each.drain(grace) for each in running))
            logger.info("worker stopped")

    def _refuse_second_start(self) -> None:
        if self._was_started:
            raise ClosedError("a worker runs once: build another one")

    def _one_ended(self) -> None:
        self._open -= 1
        if self._open == 0 and self._ended is not None:
            self._ended.set()

    def stop(self) -> None:
        """Ask the worker to stop, and return at once. Any thread, signal handlers too. Idempotent.

        Stopped before it was started, it only closes its consumers when it is.
        """
        self._is_stopping = True
        if self._loop is not None and self._ended is not None:
            try:
                self._loop.call_soon_threadsafe(self._ended.set)
            except RuntimeError:
                logger.debug("stop() came after the worker's loop was closed")

    def run(self) -> None:
        """Work on a loop of its own and block until stopped.

        In the main thread SIGTERM and SIGINT stop it; from then on they have the system's own
        effect, so that a second one ends the process at once. In other threads signals are left
        alone.

        Raises:
            ClosedError: it has been started before.
            RuntimeError: this thread is running an event loop: use `arun()`.
        """
        if threading.current_thread() is not threading.main_thread():
            self._run_loop()
            return

        def on_signal(*_: object) -> None:
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            self.stop()

        before = {each: signal.signal(each, on_signal) for each in _SIGNALS}
        try:
            self._run_loop()
        finally:
            for each, handler in before.items():
                # None: somebody outside of Python had set it, and Python cannot set it again.
                signal.signal(each, signal.SIG_DFL if handler is None else handler)

    def _run_loop(self) -> None:
        # Not asyncio.run(): at its end it waits without limit for threads and for tasks that
        # ignore their cancellation, and a worker ends in time.
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self.arun())
        finally:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=_LEFTOVER_PATIENCE))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    @contextmanager
    def running(self) -> Generator[Self, None, None]:
        """Work in a thread while the block runs; leaving it stops the worker and waits for it.

        Raises:
            ClosedError: it has been started before.
        """
        self._refuse_second_start()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                self._run_loop()
            except BaseException as error:  # noqa: BLE001  raised again where the block ends
                errors.append(error)

        thread = threading.Thread(target=work, name="postbus-worker")
        thread.start()
        try:
            yield self
        finally:
            self.stop()
            thread.join()
        if errors:
            raise errors[0]

    async def __aenter__(self) -> Self:
        """Start working on this loop."""
        self._task = asyncio.create_task(self.arun(), name="postbus worker")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and return when it has."""
        self.stop()
        if self._task is not None:
            await self._task
