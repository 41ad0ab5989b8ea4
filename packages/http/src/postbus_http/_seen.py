"""The ids of what was handled lately, so that a message that comes again is not handled again.

It is the memory of one process. What several share, and what outlasts a restart, is an inbox.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from enum import Enum
from hashlib import blake2b

__all__ = ["Known", "Seen", "digest_of"]

# Some 200 bytes each.
_CAPACITY = 50_000


class Known(Enum):
    """What is known of a message that comes in."""

    NEW = "new"
    RUNNING = "running"
    DONE = "done"
    CONFLICT = "conflict"


def digest_of(name: str, payload: bytes) -> bytes:
    """Return what stands for a message, and for an inbox too: what else it has may change."""
    return blake2b(b"\0".join((name.encode(), payload)), digest_size=16).digest()


class Seen:
    """Ids of messages that are being handled or were, for *seconds*. Used on one loop.

    It holds at most 50,000: the oldest that is done makes room for a new one.
    """

    def __init__(self, seconds: float, capacity: int = _CAPACITY) -> None:
        self._seconds = seconds
        self._capacity = capacity
        self._running: dict[str, bytes] = {}
        self._done: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    def begin(self, message_id: str, digest: bytes) -> Known:
        """Note that a message is going to be handled, unless it is known."""
        self._forget_old()
        running = self._running.get(message_id)
        if running is not None:
            return Known.RUNNING if running == digest else Known.CONFLICT
        done = self._done.get(message_id)
        if done is not None:
            return Known.DONE if done[0] == digest else Known.CONFLICT
        self._running[message_id] = digest
        return Known.NEW

    def finish(self, message_id: str) -> None:
        """Note that it was handled."""
        digest = self._running.pop(message_id)
        self._done[message_id] = (digest, time.monotonic() + self._seconds)
        if len(self._done) > self._capacity:
            self._done.popitem(last=False)

    def abandon(self, message_id: str) -> None:
        """Note that it was not handled: it may come again."""
        self._running.pop(message_id, None)

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self._done:
            message_id, (_, expires) = next(iter(self._done.items()))
            if expires > now:
                return
            del self._done[message_id]
