"""Plans: everything about dispatching one name, compiled into one callable for each colour."""

from __future__ import annotations

from functools import cached_property
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import attrs

from postbus.errors import PostbusError
from postbus.pipeline._calls import is_async, label_of, refuse_coroutine
from postbus.pipeline._context import DispatchContext, Stage
from postbus.pipeline._invoking import Invoking
from postbus.pipeline._staged import Staged

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from postbus.messages import Envelope
    from postbus.pipeline._calls import Failures
    from postbus.pipeline._invocations import Invocation
    from postbus.pipeline._middleware import Middleware
    from postbus.pipeline._staged import Resolve

    Listener = Callable[[DispatchContext], Any]
    Body = Callable[..., Any]
    ABody = Callable[..., Coroutine[Any, Any, Any]]
    Bodies = tuple[Body, ABody]

_ROUTING = (Stage.INITIALIZE, Stage.DETECT_NAME, Stage.ROUTE, Stage.LOCATE)


@attrs.frozen
class Plan:
    """One name, compiled. *run* and *arun* take (message, envelope, options) and do it all.

    *blocker* names the step that `dispatch` cannot run. *threads* is what the route says.
    """

    run: Body
    arun: ABody
    blocker: str | None = None
    threads: bool | None = None
    may_delay: bool = False


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
        invoking = Invoking(invocation, self.middlewares)
        bus, run, located = self.bus, invoking.run, invocation.located
        shown = "listeners" if self.shows_listeners else "handler"

        def body(message: Any, envelope: Any = None, options: Any = None) -> Any:
            context = DispatchContext(bus, message, name, envelope)
            setattr(context, shown, located)
            try:
                return run(context, options)
            except Exception as error:  # noqa: BLE001  raised again, wrapped
                raise self.seen(error, context, invocation)  # noqa: B904  its cause is set

        async def abody(message: Any, envelope: Any = None, options: Any = None) -> Any:
            context = DispatchContext(bus, message, name, envelope)
            setattr(context, shown, located)
            try:
                return await invoking.arun(context, options)
            except Exception as error:  # noqa: BLE001  raised again, wrapped
                raise self.seen(error, context, invocation)  # noqa: B904  its cause is set

        return body, abody

    def show(self, context: DispatchContext, handler_or_listeners: Any) -> None:
        """Put what the route says where listeners and middleware look for it."""
        if self.shows_listeners:
            context.listeners = handler_or_listeners or ()
        else:
            context.handler = handler_or_listeners

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
