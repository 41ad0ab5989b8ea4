"""Middleware: what surrounds INVOKE, in both colours."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import attrs

from postbus.errors import RoutingError
from postbus.pipeline._calls import is_async, is_awaitable, label_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from postbus.pipeline._context import DispatchContext

    Next = Callable[[], Any]
    Layer = Callable[[DispatchContext, Next], Any]


@attrs.frozen
class Middleware:
    """A middleware as given.

    `def` or `async def` with (context, call_next), or a callable with (context) that returns a
    context manager and so serves both colours.
    """

    function: Callable[..., Any]
    label: str
    is_async: bool
    is_manager: bool

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Middleware:
        """Return the middleware that *function* is, told by its parameters.

        Raises:
            RoutingError: it is neither.
        """
        label = label_of(function)
        required = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
        ]
        if len(required) not in (1, 2):
            msg = (
                f"{label} is no middleware: it must take (context, call_next), or (context) and "
                "return a context manager"
            )
            raise RoutingError(msg)
        is_manager, asynchronous = len(required) == 1, is_async(function)
        if is_manager and asynchronous:
            msg = f"{label} must return a context manager, and an async def returns a coroutine"
            raise RoutingError(msg)
        return cls(function, label, asynchronous, is_manager)

    def layer(self) -> Layer:
        """Return it as a layer for plain code: (context, call_next) → result."""
        if self.is_manager:
            return self._managed
        return self.function

    def _managed(self, context: DispatchContext, call_next: Next) -> Any:
        with self._entering(self.function(context)):
            return call_next()

    async def amanaged(self, context: DispatchContext, call_next: Next) -> Any:
        """Run *call_next*, which gives an awaitable, inside the context manager."""
        manager = self.function(context)
        if hasattr(manager, "__aenter__"):
            async with manager:
                return await call_next()
        with self._entering(manager):
            return await call_next()

    def _entering(self, manager: Any) -> AbstractContextManager[Any]:
        if hasattr(manager, "__enter__"):
            return cast("AbstractContextManager[Any]", manager)
        advice = ": use adispatch" if hasattr(manager, "__aenter__") else ""
        raise RoutingError(
            f"the middleware {self.label} takes (context) alone and must return a context "
            f"manager, but gave a {type(manager).__name__}{advice}"
        )


def layers(middlewares: Sequence[Middleware]) -> tuple[Layer, ...]:
    """Return the layers for plain code, innermost first."""
    return tuple(m.layer() for m in reversed(middlewares))


def alayers(
    middlewares: Sequence[Middleware],
    label: str,
    *,
    is_awaited: bool,
) -> tuple[Layer, ...]:
    """Return the layers for asyncio, innermost first, around *label*, which *is_awaited* or not.

    Raises:
        RoutingError: a sync middleware surrounds something that must be awaited; names both.
    """
    made: list[Layer] = []
    inner = label
    for middleware in reversed(middlewares):
        if not (middleware.is_async or middleware.is_manager):
            if is_awaited:
                msg = (
                    f"the middleware {middleware.label} is a plain def and cannot surround "
                    f"{inner}, which is asynchronous: make it async, or a context manager"
                )
                raise RoutingError(msg)
            made.append(middleware.function)
            continue
        function: Layer = middleware.amanaged if middleware.is_manager else middleware.function
        made.append(function if is_awaited else partial(_lifted, function))
        is_awaited, inner = True, middleware.label
    return tuple(made)


async def _lifted(function: Layer, context: DispatchContext, call_next: Next) -> Any:
    async def awaitable_next() -> Any:
        result = call_next()
        return await result if is_awaitable(result) else result

    return await function(context, awaitable_next)
