"""Answers to queries: a folder per asking process, a file per answer."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from typing import TYPE_CHECKING

from postbus.errors import ClosedError
from postbus.transports import Reply

if TYPE_CHECKING:
    from pathlib import Path

    from postbus.promises import Promise
    from postbus_files._folder import Folder

__all__ = ["Replies", "answer"]

logger = logging.getLogger("postbus.files")

_RESULT = "result.json"
_PROBLEM = "problem.json"


def answer(folder: Folder, address: str, reply: Reply) -> None:
    """Put *reply* where whoever asked under *address* looks for it.

    An asker that is gone has no folder any more: then there is nothing to do.
    """
    client, number = address.split(".")
    target = folder.replies / client / f"{number}.{_PROBLEM if reply.is_error else _RESULT}"
    # Whoever waits for it does not outlive a crash of the machine.
    written = folder.write(reply.body, durable=False)
    try:
        written.rename(target)
    except FileNotFoundError:
        written.unlink(missing_ok=True)
        logger.debug("an answer came for a process that is gone")


class Replies:
    """The queries of this process that wait for their answers.

    A thread looks for answers while there are any to wait for. Safe from any thread.

    Args:
        folder: the queue's.
        poll_interval: seconds between two looks.
    """

    def __init__(self, folder: Folder, poll_interval: float, max_size_bytes: int) -> None:
        self._folder = folder
        self._poll_interval = poll_interval
        self._max_size_bytes = max_size_bytes
        self._client = secrets.token_hex(16)
        self._own = folder.replies / self._client
        self._changed = threading.Condition()
        self._pending: dict[int, Promise[Reply]] = {}
        self._number = 0
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def expect(self, reply: Promise[Reply]) -> str:
        """Wait for the answer that settles *reply*; return the address to ask under.

        Raises:
            ClosedError: after `close()`.
            OSError: the folder for answers cannot be made.
        """
        with self._changed:
            if self._is_closed:
                raise ClosedError(f"{self._folder.path}: the producer is closed")
            if self._thread is None:
                self._own.mkdir(0o700, exist_ok=True)
                self._thread = threading.Thread(
                    target=self._look, name="postbus files replies", daemon=True
                )
                self._thread.start()
            self._number += 1
            number = self._number
            self._pending[number] = reply
            self._changed.notify()
        reply.add_done_callback(lambda _: self._pending.pop(number, None))
        return f"{self._client}.{number}"

    def _look(self) -> None:
        while True:
            with self._changed:
                while not (self._pending or self._is_closed):
                    self._changed.wait()
                if self._is_closed:
                    return
            try:
                for path in self._own.iterdir():
                    self._take(path)
            except OSError:
                if not self._is_closed:
                    logger.exception("answers cannot be read", extra={"path": str(self._own)})
            with self._changed:
                if not self._is_closed:
                    self._changed.wait(self._poll_interval)

    def _take(self, path: Path) -> None:
        number, _, kind = path.name.partition(".")
        body = self._folder.read(path, self._max_size_bytes)
        path.unlink(missing_ok=True)
        promise = self._pending.get(int(number)) if number.isdecimal() else None
        if promise is None or body is None:
            logger.debug("an answer came too late", extra={"number": number})
            return
        promise.resolve(Reply(body, is_error=kind == _PROBLEM))

    def close(self) -> None:
        """Reject what still waits. Idempotent."""
        with self._changed:
            self._is_closed = True
            thread, self._thread = self._thread, None
            pending = tuple(self._pending.values())
            self._changed.notify_all()
        error = ClosedError(f"{self._folder.path}: closed before the answer came")
        for promise in pending:
            promise.reject(error)
        if thread is None:
            return
        if thread is not threading.current_thread():  # a waiter may close when its answer comes
            thread.join()
        # An answer may come while the folder goes: nobody waits for it.
        shutil.rmtree(self._own, ignore_errors=True)
