"""A worker that a test lets work, and gets back when there is nothing left to do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from postbus.errors import TimedOutError
from postbus.worker import Limits

if TYPE_CHECKING:
    from postbus.worker import Worker

__all__ = ["run_worker_until_idle"]


def run_worker_until_idle(worker: Worker, *, patience: float = 30.0) -> None:
    """Let *worker* handle what waits, and what that sends in turn; return when nothing is left.

    Blocks for as long as it works and about half a second more. A worker runs once: build another
    one for what is sent later. Messages that are delayed beyond that half second do not count.

    Args:
        worker: not started yet; its consumers are closed at the end.
        patience: how many seconds it may take.

    Raises:
        BaseException: what a message failed with, as `Limits.stop_on_error` has it.
        TimedOutError: it is not idle after *patience* seconds.
        ClosedError: the worker has been started before.
        RuntimeError: this thread is running an event loop.
    """
    worker._limits = Limits(stop_when_empty=True, stop_on_error=True, max_runtime=patience)  # noqa: SLF001  a test may change what a configuration said
    start = time.monotonic()
    worker.run()
    if time.monotonic() - start >= patience:
        raise TimedOutError(f"the worker was not idle after {patience} seconds")
