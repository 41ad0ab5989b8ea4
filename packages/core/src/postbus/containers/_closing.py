"""One thing that closes what a container made, whichever way the container is closed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar

from dependency_injector import containers, providers

from postbus.errors import ClosedError
from postbus.runtime._closing import close_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from postbus.runtime._closing import Closable

C = TypeVar("C", bound="Closable")


class Closer:
    """Closes what was put into it, the last first, and takes nothing after that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Closable] = []
        self._is_closed = False

    def refuse_closed(self) -> None:
        """Raise `ClosedError` where it is closed."""
        if self._is_closed:
            raise _closed()

    def add(self, closable: C) -> C:
        """Return *closable*, to be closed with the container."""
        with self._lock:
            if not self._is_closed:
                self._open.append(closable)
                return closable
        closable.close()
        raise _closed()

    def close(self) -> None:
        """Close everything, each also where another failed to; raise the first failure."""
        with self._lock:
            self._is_closed = True
            closables, self._open = self._open[::-1], []
        close_all(closables)


def _closed() -> ClosedError:
    return ClosedError("this container is closed: make a new one")


def closing(closer: Closer) -> Iterator[Closer]:
    """Yield *closer* until the container's resources are shut down, which closes it."""
    try:
        yield closer
    finally:
        closer.close()


class Closes:
    """What an instance of our containers has beside its providers.

    A declarative class loses its methods when it makes an instance; so this stands in both, in
    the class for type checkers, in `ClosingContainer` for what really runs.
    """

    # Made once per instance, and for good: a resource by itself would begin anew after a close.
    closables: providers.Provider[Closer]
    closer: providers.Resource[Closer]

    def close(self) -> None:
        """Close what this container made. Idempotent; blocks while producers flush.

        After that it makes nothing any more, and what it made raises `ClosedError`.
        """
        self.closables().close()
        resource: Any = self.closer
        resource.shutdown()

    def __enter__(self) -> Self:
        """Return itself; leaving closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


class ClosingContainer(Closes, containers.DynamicContainer):
    """An instance of one of our containers."""
