"""Several worker processes, and what becomes of them: the supervisor of `--processes`."""

from __future__ import annotations

import asyncio
import logging
import signal
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import Callable, Sequence
from contextlib import suppress

__all__ = ["Processes", "backoff"]

logger = logging.getLogger("postbus.worker")

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
# A process that lived this long has not failed at once: the next pause is the first one again.
_LONG_LIFE = 60.0


def backoff(failures: int) -> float:
    """Return the seconds to wait after the nth death in a row."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 16))


class Processes:
    """Runs *count* processes of one command until they end, or until it is told to stop.

    A process that a signal kills is started again, after a pause that grows. One that ends by
    itself has meant it: with 0 it is done; with any other code the others are stopped and the
    supervisor ends with that code. SIGTERM and SIGINT stop all of them, a second one kills them;
    SIGUSR2 and SIGCONT are handed on. Each has a group of its own, so that Ctrl-C reaches it once,
    and a pipe as standard input, whose end tells it that the supervisor is gone.

    Args:
        command: what to run.
        count: how many.
        pause: the seconds to wait after the nth death in a row.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        pause: Callable[[int], float] = backoff,
    ) -> None:
        self._command = tuple(command)
        self._count = count
        self._pause = pause
        self._running: set[Process] = set()
        self._stopping = asyncio.Event()
        self._code = 0

    def run(self) -> int:
        """Block until all have ended, and return the exit code."""
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, number)
        for number in (signal.SIGUSR2, signal.SIGCONT):
            loop.add_signal_handler(number, self._tell, number)
        await asyncio.gather(*(self._keep(index) for index in range(self._count)))
        return self._code

    def _on_stop(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            self._code = 128 + number
            self._tell(signal.SIGKILL)
        else:
            self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        self._tell(signal.SIGTERM)

    def _tell(self, number: signal.Signals) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):  # it has just ended
                process.send_signal(number)

    async def _keep(self, index: int) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        while not self._stopping.is_set():
            started = loop.time()
            code = await self._run_once(index)
            if code >= 0:
                if code > 0 and not self._stopping.is_set():
                    self._code = code
                    self._stop()
                return
            failures = 1 if loop.time() - started >= _LONG_LIFE else failures + 1
            pause = self._pause(failures)
            if not self._stopping.is_set():
                logger.error(
                    "worker process was killed",
                    extra={"worker": index, "signal": -code, "pause": pause},
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _run_once(self, index: int) -> int:
        process = await create_subprocess_exec(*self._command, stdin=PIPE, process_group=0)
        self._running.add(process)
        if self._stopping.is_set():
            # The signal came while it was being started.
            process.send_signal(signal.SIGTERM)
        logger.info("worker process started", extra={"worker": index, "pid": process.pid})
        try:
            return await process.wait()
        finally:
            self._running.discard(process)
