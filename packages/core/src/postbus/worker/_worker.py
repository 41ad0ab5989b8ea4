"""The worker that an application runs or embeds."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from postbus.errors import ClosedError, ConfigurationError, Problem
from postbus.unit import armed
from postbus.worker._consumption import ConsumerRun, Consumption, ReceivingBus, Watch
from postbus.worker._failpoints import pointed_buses, pointed_run
from postbus.worker._failures import default_pause
from postbus.worker._health import Health
from postbus.worker._kept import KeptConsumption
from postbus.worker._limits import Budget, Limits, resident_bytes
from postbus.worker._patience import Patience, StoreThreads
from postbus.worker._scheduled import DueSends, Sending

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from types import TracebackType

    from postbus.catalog import MessageCatalog
    from postbus.messages import MessageKind

__all__ = ["Worker"]

logger = logging.getLogger("postbus.worker")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What a loop of our own waits for tasks that handlers left behind.
_LEFTOVER_PATIENCE = 1.0
# How long nothing may come before nothing is said to wait: longer than a transport looks again.
_EMPTY_AFTER = 0.5
_LIMITS_INTERVAL = 1.0


class Worker:
    """Dispatches what its consumers receive, and acknowledges after success, never before.

    Runs once: `run()` blocks, `with worker.running():` uses a thread of its own, `async with
    worker:` and `await worker.arun()` use the caller's loop. It ends when `stop()` is called or
    when every consumer has been closed; it closes the consumers, not the buses.

    A message that fails is tried again as the consumer's policies say, and kept in its failure
    store in the end. A store that is down pauses the consumer until it is back.

    Without a store it is given back to its transport after a pause, 0.1 to 5 seconds, that
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
        pause: the seconds to wait after the nth failure, of a message, a receive or a store.
        limits: when it ends by itself. Default: never.
        sending: the producers through which it sends what stores have kept. Default: none.
        health: HOST:PORT where `GET /live` and `GET /ready` are answered while it runs; None
            listens nowhere.

    Raises:
        ConfigurationError: no consumers, a negative grace, or retries that cannot wait anywhere.
    """

    def __init__(
        self,
        buses: Mapping[MessageKind, ReceivingBus],
        consumers: Sequence[ConsumerRun],
        catalog: MessageCatalog,
        *,
        shutdown_grace: float = 10.0,
        pause: Callable[[int], float] = default_pause,
        limits: Limits | None = None,
        sending: Sending | None = None,
        health: str | None = None,
    ) -> None:
        problems = [*_retry_problems(consumers)]
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
        self._limits = limits or Limits()
        self._sending = sending or Sending()
        self._health = None if health is None else Health(health, lambda: self.states)
        #: Where its health is asked, once it runs.
        self.health_address: str | None = None
        self._running: list[Consumption] = []
        self._threads: StoreThreads | None = None
        self._error: BaseException | None = None
        self._is_finishing = False
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
        self._ended = asyncio.Event()
        self._running = running = self._make_consumptions()
        self._open = len(running)
        # stop() in another thread sets the flag, then looks for the loop; here it is the reverse.
        self._loop = asyncio.get_running_loop()
        logger.info("worker started", extra={"consumers": [each.name for each in running]})
        tending = self._start_tending()
        try:
            if self._health is not None:
                self.health_address = await self._health.start()
                logger.info("health is told", extra={"address": self.health_address})
            if not self._is_stopping and self._limits.max_messages != 0:
                for each in running:
                    each.start(self._one_ended)
                await self._ended.wait()
                if self._is_finishing:
                    await self._finish()
        except BaseException:
            grace = 0.0
            raise
        finally:
            for task in tending:
                task.cancel()
            if self._health is not None:
                self._health.close()
            await asyncio.gather(*(each.drain(grace) for each in running))
            if self._threads is not None:
                await self._threads.aclose(_LEFTOVER_PATIENCE)
            logger.info("worker stopped")
        if self._error is not None:
            raise self._error

    def _make_consumptions(self) -> list[Consumption]:
        limits = self._limits
        budget = None
        if limits.max_messages is not None:
            budget = Budget(limits.max_messages, self._finish_soon)
        watch = Watch(
            budget=budget,
            empty_after=_EMPTY_AFTER if limits.stop_when_empty else None,
            on_empty=self._one_is_empty,
            **({"on_error": self._fail} if limits.stop_on_error else {}),
        )
        made: list[Consumption] = []
        runs, buses = self._runs, self._buses
        if armed:
            runs, buses = tuple(map(pointed_run, runs)), pointed_buses(buses)
        for run in runs:
            if run.is_plain:
                made.append(Consumption(run, buses, self._catalog, self._pause, watch))
                continue
            if self._threads is None:
                self._threads = StoreThreads()
            made.append(
                KeptConsumption(
                    run,
                    buses,
                    self._catalog,
                    self._pause,
                    watch,
                    self._threads,
                    self._sending,
                )
            )
        return made

    def _start_tending(self) -> list[asyncio.Task[None]]:
        """Start what the worker does beside its consumers."""
        tasks: list[asyncio.Task[None]] = []
        if self._limits.max_runtime is not None or self._limits.max_memory_bytes is not None:
            tasks.append(asyncio.create_task(self._watch_limits(), name="worker limits"))
        for schedule, names in self._sending.schedules:
            if self._threads is None:
                self._threads = StoreThreads()
            patience = Patience("due sends", self._threads, self._pause, _nothing)
            producers = self._sending.producers
            sends = DueSends(schedule, producers, names, self._threads, patience)
            tasks.append(asyncio.create_task(sends.run(), name="worker due sends"))
        return tasks

    async def _watch_limits(self) -> None:
        limits, started = self._limits, time.monotonic()
        most = limits.max_memory_bytes
        while True:
            if most is not None and (held := resident_bytes()) > most:
                logger.warning("worker ends: too much memory", extra={"bytes": held})
                break
            left = _LIMITS_INTERVAL
            if limits.max_runtime is not None:
                left = min(left, started + limits.max_runtime - time.monotonic())
                if left <= 0:
                    break
            await asyncio.sleep(left)
        self.stop()

    async def _finish(self) -> None:
        """Handle everything that was received, unless somebody asks to stop meanwhile."""
        assert self._ended is not None  # noqa: S101  arun() made it
        finishing = [asyncio.create_task(each.finish()) for each in self._running]
        all_finished = asyncio.create_task(_all_of(finishing))
        while not (all_finished.done() or self._is_stopping):
            # Consumers that end set it as well: only a stop cuts this short.
            self._ended.clear()
            woken = asyncio.create_task(self._ended.wait())
            await asyncio.wait({all_finished, woken}, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
        for task in (*finishing, all_finished):
            task.cancel()

    def _finish_soon(self) -> None:
        self._is_finishing = True
        if self._ended is not None:
            self._ended.set()

    def _one_is_empty(self) -> None:
        if all(each.is_empty for each in self._running):
            self._finish_soon()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            self.stop()

    def _refuse_second_start(self) -> None:
        if self._was_started:
            raise ClosedError("a worker runs once: build another one")

    def _one_ended(self, fault: Exception | None) -> None:
        self._error = self._error or fault
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

    def pause(self) -> None:
        """Receive and begin nothing until `resume()`; what runs goes on. Any thread."""
        self._soon(Consumption.pause)

    def resume(self) -> None:
        """Go on after `pause()`. Any thread."""
        self._soon(Consumption.resume)

    def _soon(self, method: Callable[[Consumption], None]) -> None:
        def call() -> None:
            for each in self._running:
                method(each)

        if self._loop is not None:
            with suppress(RuntimeError):  # its loop is closed: it has ended
                self._loop.call_soon_threadsafe(call)

    @property
    def states(self) -> dict[str, str]:
        """What each consumer is doing: "receiving", "paused", "broken" or "ended"."""
        return {each.name: each.state for each in self._running}

    def run(self) -> None:
        """Work on a loop of its own and block until stopped.

        In the main thread SIGTERM and SIGINT stop it; from then on they have the system's own
        effect, so that a second one ends the process at once. SIGUSR2 pauses it and SIGCONT lets
        it go on. In other threads signals are left alone.

        Raises:
            ClosedError: it has been started before.
            Exception: what a consumer ended with that cannot work as it is configured, or what
                a message failed with where `stop_on_error` is set.
            RuntimeError: this thread is running an event loop: use `arun()`.
        """
        if threading.current_thread() is not threading.main_thread():
            self._run_loop()
            return

        def on_signal(*_: object) -> None:
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            self.stop()

        def on_pause(*_: object) -> None:
            self.pause()

        def on_resume(*_: object) -> None:
            self.resume()

        before = {each: signal.signal(each, on_signal) for each in _SIGNALS}
        before[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, on_pause)
        before[signal.SIGCONT] = signal.signal(signal.SIGCONT, on_resume)
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


async def _all_of(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


def _nothing() -> None:
    pass


def _retry_problems(consumers: Sequence[ConsumerRun]) -> Iterator[Problem]:
    """Yield the consumers whose retries have nowhere to wait."""
    for run in consumers:
        policies = [run.retry, *(rule.policy for rule in run.rules)]
        retries = any(policy is not None and policy.max_attempts > 1 for policy in policies)
        if retries and run.schedule is None and not run.consumer.capabilities.retry:
            expected = "this transport cannot retry, so it needs a schedule to wait in"
            advice = "add a schedule or a failure_store, or leave retry out"
            yield Problem(f"consumers.{run.name}.retry", "", expected, advice)
