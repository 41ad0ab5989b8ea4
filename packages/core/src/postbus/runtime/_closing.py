"""Close several things, each of them even where another fails to."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from postbus.transports import AsyncMessageProducer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from postbus.transports import MessageProducer

logger = logging.getLogger("postbus")


class Closable(Protocol):
    """Anything with an idempotent `close`."""

    def close(self) -> None:
        """Let go of everything; again without effect."""


class Failures:
    """What went wrong while closing: all of it is logged, and the first is raised at the end."""

    def __init__(self) -> None:
        self._first: Exception | None = None

    def add(self, closable: object, error: Exception) -> None:
        """Note that *closable* could not be closed."""
        logger.error("not closed", extra={"of": type(closable).__name__}, exc_info=error)
        self._first = self._first or error

    def raise_first(self) -> None:
        """Raise the first failure, if there was one."""
        if self._first is not None:
            raise self._first


def close_all(closables: Iterable[Closable]) -> None:
    """Close every one of *closables* in order; raise the first failure when all had their turn."""
    failures = Failures()
    for closable in closables:
        try:
            closable.close()
        except Exception as error:  # noqa: BLE001  the rest must be closed; raised at the end
            failures.add(closable, error)
    failures.raise_first()


async def aclose_all(producers: Iterable[MessageProducer]) -> None:
    """Do what `close_all` does for producers, without blocking the loop."""
    failures = Failures()
    loop = asyncio.get_running_loop()
    for producer in producers:
        try:
            if isinstance(producer, AsyncMessageProducer):
                await producer.aclose()
            else:
                await loop.run_in_executor(None, producer.close)
        except Exception as error:  # noqa: BLE001  the rest must be closed; raised at the end
            failures.add(producer, error)
    failures.raise_first()
