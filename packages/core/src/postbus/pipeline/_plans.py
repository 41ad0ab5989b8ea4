"""Plans: everything about dispatching one name, compiled into one callable for each colour."""

from __future__ import annotations

from functools import cached_property
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn

import attrs

from postbus.errors import PostbusError, RoutingError
from postbus.pipeline._calls import is_async, is_awaitable, label_of, refuse_coroutine
from postbus.pipeline._context import Stage
from postbus.pipeline._invocations import Bare, broken
from postbus.pipeline._invoking import Chain
from postbus.pipeline._staged import Staged

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from postbus.messages import Envelope
    from postbus.pipeline._calls import Failures
    from postbus.pipeline._context import DispatchContext
    from postbus.pipeline._invocations import Invocation
    from postbus.pipeline._middleware import Layer, Middleware
    from postbus.pipeline._staged import Resolve

    Listener = Callable[[DispatchContext], Any]
    Body = Callable[..., Any]
    ABody = Callable[..., Coroutine[Any, Any, Any]]
    Bodies = tuple[Body, ABody]

_ROUTING = (Stage.INITIALIZE, Stage.DETECT_NAME, Stage.ROUTE, Stage.LOCATE)


@attrs.frozen
class Wrapped:
    """A handler with middleware around it and nothing else: `dispatch` begins the chain itself.

    *parts* are the class of contexts, the outermost middleware, and what a context is to know:
    name, handler, invocation. *fail* takes what was raised and the context, and raises what the
    caller is to see.
    """

    parts: tuple[type[DispatchContext], Layer, str, Any, Invocation]
    label: str
    fail: Callable[[Exception, DispatchContext], NoReturn]

    def check(self, result: Any) -> None:
        """Refuse a coroutine, which is something to await."""
        refuse_coroutine(result, self.label)


@attrs.frozen
class Plan:
    """One name, compiled. *run* and *arun* take (message, envelope, options) and do it all.

    *blocker* names the step that `dispatch` cannot run. *threads* is what the route says. *bare*
    or *wrapped* is all that *run* does for a message without an envelope, where that is so little.
    """

    run: Body
    arun: ABody
    blocker: str | None = None
    threads: bool | None = None
    may_delay: bool = False
    bare: Bare | None = None
    wrapped: Wrapped | None = None


@attrs.frozen
class Surroundings:
    """What a bus puts around its invocations, as it was when the plan was compiled (C12)."""

    bus: Any
    listeners: Mapping[Stage, tuple[Listener, ...]]
    middlewares: tuple[Middleware, ...]
    failures: Failures
    envelope_of: Callable[[Any, Envelope | None], Envelope]
    detect: Callable[[Any], str]
    shows_listeners: bool

    @cached_property
    def chain(self) -> Chain:
        """The middleware, ready to surround what is invoked."""
        return Chain(self.middlewares)

    @cached_property
    def names_late(self) -> bool:
        """Whether listeners may change the message or its name before it is routed."""
        return bool(self.listeners[Stage.INITIALIZE] or self.listeners[Stage.DETECT_NAME])

    @cached_property
    def may_reroute(self) -> bool:
        """Whether listeners may make something else of a message than its route says."""
        return any(self.listeners[stage] for stage in _ROUTING)

    @cached_property
    def _listens(self) -> bool:
        return any(self.listeners.values())

    @cached_property
    def _blocker(self) -> str | None:
        for stage_listeners in self.listeners.values():
            for listener in stage_listeners:
                if is_async(listener):
                    return label_of(listener)
        return next((m.label for m in self.middlewares if m.is_async), None)

    def blocker(self, invocation: Invocation) -> str | None:
        """Return the label of the first step that only asyncio can run."""
        if self._blocker is None and not self.may_reroute:
            return invocation.blocker
        return self._blocker

    def bodies(self, name: str, invocation: Invocation, resolve: Resolve) -> Bodies:
        """Return the bodies for plain code and for asyncio.

        Where listeners may reroute, *invocation* is what the route says and *resolve* asks again.
        """
        if self._listens:
            staged = Staged(self, name, invocation, resolve)
            return staged.run, staged.arun
        if self.middlewares:
            return self._wrapped(name, invocation)
        if invocation.function is None:
            return invocation.call, invocation.acall
        body = self._sync_body(invocation.function, invocation.label)
        return body, self._async_body(invocation)

    def bare(self, invocation: Invocation) -> Bare | None:
        """Return the handlers of *invocation* where `bodies` puts nothing around them."""
        if self._listens or self.middlewares:
            return None
        function, wrap, envelope_of = invocation.function, self.failures.wrap, self.envelope_of
        if function is None:
            return invocation.bare

        def fail(message: Any, error: Exception, _: int) -> NoReturn:
            raise wrap(error, envelope_of(message, None)) from error

        if invocation.blocker is None:
            return Bare((function,), invocation.label, fail)
        if not invocation.is_bare:
            return None
        return Bare((invocation.located,), invocation.label, fail, is_async=True)

    def wrapped(self, name: str, invocation: Invocation) -> Wrapped | None:
        """Return the handler of *invocation* where `bodies` puts nothing but middleware round."""
        first = self.chain.first
        if self._listens or first is None or self.shows_listeners:
            return None

        def fail(error: Exception, context: DispatchContext) -> NoReturn:
            raise self.seen(error, context, invocation)

        parts = (self.chain.contexts, first, name, invocation.located, invocation)
        return Wrapped(parts, self.chain.label, fail)

    def _sync_body(self, function: Callable[[Any], Any], label: str) -> Body:
        wrap, envelope_of = self.failures.wrap, self.envelope_of

        def body(message: Any, envelope: Any = None, _options: Any = None) -> Any:
            try:
                result = function(message)
            except Exception as error:
                raise wrap(error, envelope_of(message, envelope)) from error
            if result.__class__ is CoroutineType:
                refuse_coroutine(result, label)
            return result

        return body

    def _async_body(self, invocation: Invocation) -> ABody:
        wrap, envelope_of, acall = self.failures.wrap, self.envelope_of, invocation.acall
        function = invocation.located

        async def body(message: Any, envelope: Any = None, options: Any = None) -> Any:
            try:
                return await acall(message, envelope, options)
            except Exception as error:
                raise wrap(error, envelope_of(message, envelope)) from error

        if not (invocation.is_bare and invocation.blocker):
            return body

        async def direct(message: Any, envelope: Any = None, options: Any = None) -> Any:
            if options is not None:
                return await body(message, envelope, options)
            try:
                return await function(message)
            except Exception as error:
                raise wrap(error, envelope_of(message, envelope)) from error

        return direct

    def _wrapped(self, name: str, invocation: Invocation) -> Bodies:
        """Middleware and nothing else: no stage has a listener to call."""
        chain, bus = self.chain, self.bus
        contexts, first, afirst = chain.contexts, chain.first, chain.afirst
        assert first is not None  # noqa: S101  there is middleware
        handler, listeners = self.shown(invocation.located)

        # As chain.run, without a call more.
        def body(message: Any, envelope: Any = None, options: Any = None) -> Any:
            context = contexts(
                bus, message, name, envelope, handler, listeners, invocation, options
            )
            try:
                result = first(context, context._call_next)  # noqa: SLF001  one package
            except Exception as error:  # noqa: BLE001  raised again, wrapped
                raise self.seen(error, context, invocation)  # noqa: B904  its cause is set
            if result is not None and result.__class__ is CoroutineType:
                refuse_coroutine(result, chain.label)
            return result

        refusal = chain.refusal(invocation)
        if refusal is not None or afirst is None:
            return body, broken(name, RoutingError(refusal or "")).acall

        async def abody(message: Any, envelope: Any = None, options: Any = None) -> Any:
            context = contexts(
                bus, message, name, envelope, handler, listeners, invocation, options
            )
            try:
                result = afirst(context, context._acall_next)  # noqa: SLF001  one package
                if result.__class__ is CoroutineType or is_awaitable(result):
                    result = await result
            except Exception as error:  # noqa: BLE001  raised again, wrapped
                raise self.seen(error, context, invocation)  # noqa: B904  its cause is set
            return result

        return body, abody

    def shown(self, handler_or_listeners: Any) -> tuple[Any, Sequence[Any]]:
        """Return the handler and the listeners that a context is to show."""
        if self.shows_listeners:
            return None, handler_or_listeners or ()
        return handler_or_listeners, ()

    def seen(
        self,
        error: Exception,
        context: DispatchContext,
        invocation: Invocation,
    ) -> Exception:
        """Return what the caller sees of *error*: a handler's wrapped, postbus' own as it is."""
        if invocation.function is None:
            return error
        if isinstance(error, PostbusError) and error is not context._failure:  # noqa: SLF001  one package
            return error
        return self.failures.wrap(error, context.envelope)
