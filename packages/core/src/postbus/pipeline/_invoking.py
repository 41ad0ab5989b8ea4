"""INVOKE for one invocation: its middleware, and what they surround."""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any

from postbus.errors import RoutingError
from postbus.pipeline._calls import is_awaitable, refuse_coroutine
from postbus.pipeline._middleware import alayers, layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from postbus.pipeline._context import DispatchContext
    from postbus.pipeline._invocations import Invocation
    from postbus.pipeline._middleware import Layer, Middleware
    from postbus.pipeline._sending import SendOptions

    Step = Callable[[DispatchContext, SendOptions | None], Any]


class Invoking:
    """Runs one invocation inside the middleware of a bus, in both colours.

    What the invocation itself raises is noted in the context: only that is a handler's failure.
    """

    def __init__(self, invocation: Invocation, middlewares: Sequence[Middleware]) -> None:
        self.invocation = invocation
        self._outermost = middlewares[0].label if middlewares else invocation.label
        self._chain = _linked(layers(middlewares), _end(invocation))
        plain = any(not (m.is_async or m.is_manager) for m in middlewares)
        # A plain def can only surround a call that is made inline, as adispatch makes a sync
        # handler's: so does a send then.
        is_awaited = invocation.blocker is not None or not plain
        self._refusal: str | None = None
        self._achain = _aend(invocation) if is_awaited else _inline_end(invocation)
        try:
            around = alayers(middlewares, invocation.label, is_awaited=is_awaited)
            self._achain = _linked(around, self._achain)
        except RoutingError as error:
            self._refusal = error.message

    def run(self, context: DispatchContext, options: SendOptions | None) -> Any:
        """Invoke in plain code."""
        result = self._chain(context, options)
        if result.__class__ is CoroutineType:
            refuse_coroutine(result, self._outermost)
        return result

    async def arun(self, context: DispatchContext, options: SendOptions | None) -> Any:
        """Invoke in asyncio.

        Raises:
            RoutingError: a plain middleware surrounds what must be awaited.
        """
        if self._refusal is not None:
            raise RoutingError(self._refusal, context._made())  # noqa: SLF001  one package
        result = self._achain(context, options)
        return await result if is_awaitable(result) else result


def _linked(layers: Sequence[Layer], inner: Step) -> Step:
    """Return *layers*, innermost first, folded around *inner*."""
    for layer in layers:
        inner = _link(layer, inner)
    return inner


def _link(layer: Layer, inner: Step) -> Step:
    def step(context: DispatchContext, options: SendOptions | None) -> Any:
        def call_next() -> Any:
            return inner(context, options)

        return layer(context, call_next)

    return step


def _end(invocation: Invocation) -> Step:
    """Return the call for plain code, which refuses a coroutine."""
    inline, label = _inline_end(invocation), invocation.label

    def end(context: DispatchContext, options: SendOptions | None) -> Any:
        result = inline(context, options)
        if result.__class__ is CoroutineType:
            refuse_coroutine(result, label)
        return result

    return end


def _inline_end(invocation: Invocation) -> Step:
    call = invocation.call

    def end(context: DispatchContext, options: SendOptions | None) -> Any:
        try:
            return call(context.message, context._made(), options)  # noqa: SLF001  one package
        except Exception as error:
            context._failure = error  # noqa: SLF001  one package
            raise

    return end


def _aend(invocation: Invocation) -> Step:
    acall = invocation.acall

    async def end(context: DispatchContext, options: SendOptions | None) -> Any:
        try:
            return await acall(context.message, context._made(), options)  # noqa: SLF001  one package
        except Exception as error:
            context._failure = error  # noqa: SLF001  one package
            raise

    return end
