"""Places where a test can stop, or kill, what runs: between steps that a crash tears apart.

Nobody but tests arms one; `postbus.testing.failpoint` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAILPOINTS", "armed", "reach"]

#: The names of all of them, in the order in which a message meets them.
FAILPOINTS = (
    "received",
    "decoded",
    "before handler",
    "before commit",
    "after commit",
    "after handler",
    "stored",
    "before ack",
    "after ack",
)
armed: dict[str, Callable[[], None]] = {}


def reach(name: str) -> None:
    """Do what was armed at *name*, if anything."""
    action = armed.get(name)
    if action is not None:
        action()
