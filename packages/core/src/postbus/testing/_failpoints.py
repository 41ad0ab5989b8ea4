"""Stop, or kill, a process exactly between two steps."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from postbus.unit import FAILPOINTS, armed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["FAILPOINTS", "failpoint"]


@contextmanager
def failpoint(name: str, action: Callable[[], None], *, after: int = 0) -> Generator[None]:
    """Have *action* called where work reaches the point *name*, while the block runs.

    For workers that start inside the block, and for units of work. Points: `FAILPOINTS`, in the
    order in which a message meets them. Not for several tests at once: they are the process's.

    Args:
        name: of the point.
        action: what to do there, on the thread that reaches it; `os._exit`, say, in a child.
        after: how many times the point is passed before that.

    Raises:
        ValueError: there is no such point.
    """
    if name not in FAILPOINTS:
        msg = f"no failpoint {name!r}; there are {', '.join(FAILPOINTS)}"
        raise ValueError(msg)
    passes = iter(range(after))

    def reached() -> None:
        if next(passes, None) is None:
            action()

    armed[name] = reached
    try:
        yield
    finally:
        del armed[name]
