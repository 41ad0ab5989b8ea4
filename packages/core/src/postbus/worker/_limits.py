"""When a worker ends by itself."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import attrs

__all__ = ["Budget", "Limits", "resident_bytes"]

_at_least_0 = attrs.validators.optional(attrs.validators.ge(0))
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@attrs.frozen(kw_only=True)
class Limits:
    """When a worker ends by itself. None means never, and 0 is a value like others.

    Args:
        max_messages: this many messages were received; they are handled first.
        max_runtime: this many seconds have passed.
        max_memory_bytes: this process holds more than that.
        stop_when_empty: nothing waits any more: no consumer has brought anything for half a
            second, and everything is handled.
        stop_on_error: a message has failed; the worker raises what it failed with.
    """

    max_messages: int | None = attrs.field(default=None, validator=_at_least_0)
    max_runtime: float | None = attrs.field(default=None, validator=_at_least_0)
    max_memory_bytes: int | None = attrs.field(default=None, validator=_at_least_0)
    stop_when_empty: bool = False
    stop_on_error: bool = False


@attrs.define
class Budget:
    """How many messages all consumers of a worker may still take together."""

    left: int
    on_used_up: Callable[[], None]

    def take(self, wanted: int) -> int:
        """Return how many of *wanted* there may be."""
        granted = min(wanted, self.left)
        self.left -= granted
        if self.left == 0:
            self.on_used_up()
        return granted


def resident_bytes() -> int:
    """Return the memory that this process holds; where that is not known, held at most."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
