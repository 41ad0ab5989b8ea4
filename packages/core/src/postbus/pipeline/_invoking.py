"""INVOKE: the middleware of a bus, and what it surrounds."""

from __future__ import annotations

from types import CoroutineType, new_class
from typing import TYPE_CHECKING, Any, cast

from postbus.errors import RoutingError
from postbus.pipeline._calls import is_awaitable, refuse_coroutine
from postbus.pipeline._context import DispatchContext
from postbus.pipeline._middleware import alayers, layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from postbus.pipeline._invocations import Invocation
    from postbus.pipeline._middleware import Layer, Middleware

    Step = Callable[[DispatchContext], Any]


class Chain:
    """The middleware of a bus, ready to surround any invocation in both colours.

    Its dispatches need contexts that *contexts* made: every middleware of every dispatch has a
    `call_next` of its own, and the cheapest callable that knows a context is a method of it. So
    what a `call_next` does is a method of that class. *first* and *afirst* are the outermost
    middleware, None where there is none.
    """

    def __init__(self, middlewares: Sequence[Middleware]) -> None:
        self._middlewares = middlewares
        # A plain def can only surround a call that is made inline, as adispatch makes a sync
        # handler's: so does a send then.
        self._is_inline = any(not (m.is_async or m.is_manager) for m in middlewares)
        around, aaround = layers(middlewares), self._alayers()
        self.first: Layer | None = around[-1] if around else None
        self.afirst: Layer | None = aaround[-1] if aaround else None
        self.label: str = middlewares[0].label if middlewares else ""
        self.contexts: type[DispatchContext] = DispatchContext
        if middlewares:
            inward = _methods(around[:-1], "_call_next", "_call")
            ainward = _methods(aaround[:-1], "_acall_next", self._innermost())
            self.contexts = _contexts(inward | ainward)

    def _innermost(self) -> str:
        return "_call_inline" if self._is_inline else "_acall"

    def _alayers(self) -> tuple[Layer, ...]:
        try:
            return alayers(self._middlewares, "", is_awaited=not self._is_inline)
        except RoutingError:
            return ()  # Whatever is inside, `refusal` says why.

    def refusal(self, invocation: Invocation) -> str | None:
        """Return why *invocation* cannot run inside in asyncio, None where it can."""
        if self._is_inline:
            is_awaited = invocation.blocker is not None
            try:
                alayers(self._middlewares, invocation.label, is_awaited=is_awaited)
            except RoutingError as error:
                return error.message
        return None

    def run(self, context: DispatchContext) -> Any:
        """Run the invocation of *context* in plain code."""
        if self.first is None:
            return context._call()  # noqa: SLF001  one package
        result = self.first(context, context._call_next)  # noqa: SLF001  one package
        if result.__class__ is CoroutineType:
            refuse_coroutine(result, self.label)
        return result

    async def arun(self, context: DispatchContext) -> Any:
        """Run the invocation of *context*, which is not refused, in asyncio."""
        if self.afirst is None:
            return await context._acall()  # noqa: SLF001  one package
        result = self.afirst(context, context._acall_next)  # noqa: SLF001  one package
        return await result if is_awaitable(result) else result


def _methods(inner: Sequence[Layer], name: str, innermost: str) -> dict[str, Step]:
    """Return *inner*, innermost first, as methods that lead to each other; *name* is the last."""
    methods: dict[str, Step] = {}
    call_next = innermost
    for number, layer in enumerate(inner):
        methods[f"{name}_{number}"] = _step(layer, call_next)
        call_next = f"{name}_{number}"
    methods[name] = methods.get(call_next) or getattr(DispatchContext, innermost)
    return methods


def _step(layer: Layer, call_next: str) -> Step:
    def step(context: DispatchContext) -> Any:
        return layer(context, getattr(context, call_next))

    return step


def _contexts(methods: dict[str, Step]) -> type[DispatchContext]:
    base = DispatchContext
    body = {"__module__": base.__module__, "__doc__": base.__doc__, **methods}
    made = new_class(base.__name__, (base,), exec_body=lambda namespace: namespace.update(body))
    return cast("type[DispatchContext]", made)
