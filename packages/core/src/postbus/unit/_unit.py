"""One open unit, who owns it, and how it begins."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack
from threading import get_ident
from typing import TYPE_CHECKING, Any

from postbus.errors import RoutingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.unit._receipts import Outgoing

# Set by asyncio for its own libraries; it returns None instead of raising, at a tenth of the cost.
running_loop: Callable[[], asyncio.AbstractEventLoop | None] = asyncio._get_running_loop  # noqa: SLF001
_current_task = asyncio.current_task
units: dict[object, Unit] = {}


def running() -> object:
    """Return what owns the current dispatch: the running task, else this thread's identity.

    A callback of a loop runs in no task: it belongs to the loop, not to the thread, whose own
    dispatch may be what runs the loop.
    """
    loop = running_loop()
    if loop is None:
        return get_ident()
    return _current_task(loop) or loop


class Unit:
    """One open unit of work. *handle* is what entering the context manager returned.

    Used by the task or thread that owns it, and by nobody else.
    """

    __slots__ = (
        "_after",
        "_before",
        "_instances",
        "_stack",
        "handle",
        "outgoing",
        "transactional",
    )

    def __init__(self, stack: ExitStack | AsyncExitStack, *, transactional: bool) -> None:
        self.handle: Any = None
        self.transactional: bool = transactional
        #: What is sent after the commit, where an inbox keeps it until it has left.
        self.outgoing: list[Outgoing] | None = None
        self._stack = stack
        self._before: list[Callable[[], Any]] = []
        self._after: list[Callable[[], Any]] = []
        self._instances: dict[object, Any] = {}

    @property
    def is_async(self) -> bool:
        """Whether its steps and context managers may be asynchronous."""
        return isinstance(self._stack, AsyncExitStack)

    def before_commit(self, step: Callable[[], Any]) -> None:
        """Run *step* after the handlers and before the commit; what it raises rolls back.

        In an asyncio unit it may return an awaitable.
        """
        self._before.append(step)

    def after_commit(self, step: Callable[[], Any]) -> None:
        """Run *step* once the unit is committed, and not at all when it rolls back.

        In an asyncio unit it may return an awaitable. What it raises reaches the caller as a
        `TransportError`: the work stands.
        """
        self._after.append(step)

    def instance(self, key: object, make: Callable[[], Any]) -> Any:
        """Return this unit's own object for *key*, made and entered on first use.

        Entered where it is a context manager, and left with the unit, outcome included.

        Raises:
            RoutingError: it is an asynchronous context manager only, and this is plain code.
        """
        try:
            return self._instances[key]
        except KeyError:
            made = make()
        if hasattr(made, "__enter__"):
            made = _enter(self._stack, made)
        elif hasattr(made, "__aenter__"):
            name = type(made).__name__
            raise RoutingError(f"{name} is an asynchronous context manager: use adispatch")
        self._instances[key] = made
        return made

    async def ainstance(self, key: object, make: Callable[[], Any]) -> Any:
        """Do what `instance` does, also for asynchronous context managers."""
        if key in self._instances:
            return self._instances[key]
        made = make()
        if isinstance(self._stack, AsyncExitStack) and hasattr(made, "__aenter__"):
            made = self._instances[key] = await _aenter(self._stack, made)
            return made
        return self.instance(key, lambda: made)


def _enter(stack: ExitStack | AsyncExitStack, manager: Any) -> Any:
    """Enter *manager* until *stack* is left. It cannot turn a failure into a success."""
    entered = manager.__enter__()

    def leave(*outcome: Any) -> None:
        manager.__exit__(*outcome)

    stack.push(leave)
    return entered


async def _aenter(stack: AsyncExitStack, manager: Any) -> Any:
    entered = await manager.__aenter__()

    async def leave(*outcome: Any) -> None:
        await manager.__aexit__(*outcome)

    stack.push_async_exit(leave)
    return entered


def current_unit() -> Unit | None:
    """Return the unit that the running task or thread has open, if any."""
    return units.get(running()) if units else None


class Opener:
    """How a bus begins its units: a callable that makes the context manager, named for errors."""

    __slots__ = ("label", "make")

    def __init__(self, make: Callable[[], Any], label: str) -> None:
        self.make: Callable[[], Any] = make
        self.label: str = label

    def enter(self, stack: ExitStack) -> Any:
        """Make and enter it; returns the handle."""
        manager = self.make()
        if not hasattr(manager, "__enter__"):
            raise self._unusable(manager, "dispatch")
        return _enter(stack, manager)

    async def aenter(self, stack: AsyncExitStack) -> Any:
        """Make and enter it, asynchronously where it can; returns the handle."""
        manager = self.make()
        if hasattr(manager, "__aenter__"):
            return await _aenter(stack, manager)
        if not hasattr(manager, "__enter__"):
            raise self._unusable(manager, "adispatch")
        return _enter(stack, manager)

    def _unusable(self, manager: Any, call: str) -> RoutingError:
        kind = type(manager).__name__
        advice = ": use adispatch" if hasattr(manager, "__aenter__") else ""
        return RoutingError(
            f"unit_of_work {self.label} gave a {kind}, and {call} needs a context manager{advice}"
        )
