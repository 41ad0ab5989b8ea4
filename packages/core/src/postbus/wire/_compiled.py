"""Functions made once per message class, by whoever needs one first."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Compiled:
    """A table from a class to the function that *make* makes for it. Safe from any thread.

    While one is being made, *make* may ask for others and for itself: a class may hold itself.
    """

    def __init__(self, make: Callable[[Any], Callable[..., Any]]) -> None:
        self._make = make
        self._ready: dict[Any, Callable[..., Any]] = {}
        self._lock = RLock()
        self._unfinished: dict[Any, Callable[..., Any]] = {}
        self._depth = 0

    def get(self, tp: Any) -> Callable[..., Any]:
        """Return the function for *tp*; what *make* raises leaves nothing behind."""
        found = self._ready.get(tp)
        if found is not None:
            return found
        with self._lock:
            found = self._unfinished.get(tp)
            if found is not None:
                return found
            self._unfinished[tp] = self._later(tp)
            self._depth += 1
            try:
                made = self._unfinished[tp] = self._make(tp)
                if self._depth == 1:
                    # All at once: until then each may call one that is not there yet.
                    self._ready.update(self._unfinished)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._unfinished.clear()
            return made

    def _later(self, tp: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            return self._ready[tp](*arguments)

        return call
