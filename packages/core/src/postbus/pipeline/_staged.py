"""A dispatch through all stages, for the buses that have listeners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postbus.errors import DispatchError, RoutingError, UnsupportedError
from postbus.pipeline._calls import is_awaitable, label_of, refuse_coroutine
from postbus.pipeline._context import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.messages import Envelope
    from postbus.pipeline._context import DispatchContext
    from postbus.pipeline._invocations import Invocation
    from postbus.pipeline._plans import Surroundings
    from postbus.pipeline._sending import SendOptions

    Resolve = Callable[[DispatchContext], Invocation]
    Step = Callable[[DispatchContext], None]

_BEFORE = (Stage.INITIALIZE, Stage.DETECT_NAME, Stage.ROUTE, Stage.LOCATE, Stage.INVOKE)


class Staged:
    """Runs the stages of one name in order, with their listeners, in both colours.

    *expected* is what the route says; where listeners may reroute, *resolve* is asked.
    """

    def __init__(
        self,
        around: Surroundings,
        name: str,
        expected: Invocation,
        resolve: Resolve,
    ) -> None:
        self._around = around
        self._name = "" if around.names_late else name
        self._expected = expected
        self._resolve = resolve
        self._chain = around.chain
        self._refusal = self._chain.refusal(expected)
        # Only the stages at which there is something to do.
        stages = ((stage, around.listeners[stage], self._step(stage)) for stage in _BEFORE)
        self._stages = tuple(s for s in stages if s[1] or s[2] is not None)
        self._monitors = around.listeners[Stage.FINALIZE]

    def _step(self, stage: Stage) -> Step | None:
        """Return the bus's own step of *stage*, after its listeners."""
        if not self._around.may_reroute:
            return self._expect if stage is Stage.LOCATE else None
        steps: dict[Stage, Step] = {Stage.ROUTE: self._route, Stage.LOCATE: self._locate}
        if self._around.names_late:
            steps[Stage.DETECT_NAME] = self._name_it
        return steps.get(stage)

    def run(self, message: Any, envelope: Envelope | None = None, options: Any = None) -> Any:
        """Dispatch in plain code."""
        context = self._start(message, envelope, options)
        invocation = None
        try:
            for stage, listeners, step in self._stages:
                for listener in listeners:
                    result = listener(context)
                    if result is not None:
                        refuse_coroutine(result, label_of(listener))
                    if context.stopped:
                        break
                if listeners and context.stopped:
                    self._stop(context, stage)
                    break
                if step is not None:
                    step(context)
            else:
                located = self._located(context, options)
                if located.blocker is not None:
                    msg = f"{located.blocker} is asynchronous: use adispatch"
                    raise RoutingError(msg, context.envelope)  # noqa: TRY301  FINALIZE sees it
                invocation = located
                context.result = self._chain.run(context)
        except BaseException as error:  # noqa: BLE001  monitors see every outcome; raised below
            context.error = error
        raised = context.error
        faults: list[Exception] = []
        for listener in self._monitors:
            try:
                result = listener(context)
                if result is not None:
                    refuse_coroutine(result, label_of(listener))
            except Exception as error:  # noqa: BLE001  the other monitors still run; raised below
                faults.append(error)
        return self._outcome(context, raised, faults, invocation)

    async def arun(
        self,
        message: Any,
        envelope: Envelope | None = None,
        options: Any = None,
    ) -> Any:
        """Dispatch in asyncio."""
        context = self._start(message, envelope, options)
        invocation = None
        try:
            for stage, listeners, step in self._stages:
                for listener in listeners:
                    result = listener(context)
                    if is_awaitable(result):
                        await result
                    if context.stopped:
                        break
                if listeners and context.stopped:
                    self._stop(context, stage)
                    break
                if step is not None:
                    step(context)
            else:
                invocation = self._located(context, options)
                self._allow(invocation, context)
                context.result = await self._chain.arun(context)
        except GeneratorExit:
            # The coroutine is being closed: nothing can be awaited any more.
            raise
        except BaseException as error:  # noqa: BLE001  monitors see every outcome; raised below
            context.error = error
        raised = context.error
        faults: list[Exception] = []
        for listener in self._monitors:
            try:
                result = listener(context)
                if is_awaitable(result):
                    await result
            except Exception as error:  # noqa: BLE001  the other monitors still run; raised below
                faults.append(error)
        return self._outcome(context, raised, faults, invocation)

    def _start(
        self,
        message: Any,
        envelope: Envelope | None,
        options: SendOptions | None,
    ) -> DispatchContext:
        around = self._around
        name = self._name if envelope is None or not self._name else envelope.name
        context = self._chain.contexts(around.bus, message, name, envelope)
        context._options = options  # noqa: SLF001  one package
        return context

    def _route(self, context: DispatchContext) -> None:
        if context.handler is None and not context.listeners:
            self._show(context, self._resolve(context).shown)

    def _locate(self, context: DispatchContext) -> None:
        context._invocation = invocation = self._resolve(context)  # noqa: SLF001  one package
        self._show(context, invocation.located)

    def _expect(self, context: DispatchContext) -> None:
        """Take the expected invocation: nobody listened who could have made it another."""
        context._invocation = self._expected  # noqa: SLF001  one package
        self._show(context, self._expected.located)

    def _show(self, context: DispatchContext, handler_or_listeners: Any) -> None:
        """Put what the route says where listeners and middleware look for it."""
        handler, listeners = self._around.shown(handler_or_listeners)
        if self._around.shows_listeners:
            context.listeners = listeners
        else:
            context.handler = handler

    def _name_it(self, context: DispatchContext) -> None:
        known = context._envelope  # noqa: SLF001  one package
        if known is not None and known.message is context.message:
            name = known.name
        else:
            name = self._around.detect(context.message)
        if not context.name:
            context.name = name
        elif context.name != name:
            # Whoever asks for the identity later, a producer say, finds this name in it.
            _ = context.envelope

    def _located(self, context: DispatchContext, options: SendOptions | None) -> Invocation:
        invocation: Invocation = context._invocation  # noqa: SLF001  one package
        if options is not None and options.delay and not invocation.sends:
            msg = f"{context.name}: a delay needs a send, and this message is handled here at once"
            raise UnsupportedError(msg, context.envelope)
        return invocation

    def _allow(self, invocation: Invocation, context: DispatchContext) -> None:
        """Raise where a plain middleware surrounds what asyncio has to await."""
        is_expected = invocation is self._expected
        refusal = self._refusal if is_expected else self._chain.refusal(invocation)
        if refusal is not None:
            raise RoutingError(refusal, context._made())  # noqa: SLF001  one package

    def _stop(self, context: DispatchContext, stage: Stage) -> None:
        if self._around.shows_listeners:
            return
        msg = f"{context.name or 'a message'} was stopped at {stage} before anything handled it"
        raise DispatchError(msg, context.envelope)

    def _outcome(
        self,
        context: DispatchContext,
        raised: BaseException | None,
        faults: list[Exception],
        invocation: Invocation | None,
    ) -> Any:
        """Return the result, or raise: a handler's error wrapped, any other as it is."""
        if raised is not None and not isinstance(raised, Exception):
            raise raised
        error = context.error
        if faults:
            first, *others = faults
            for other in others:
                first.add_note(f"another FINALIZE listener failed as well: {other!r}")
            if first.__context__ is None:
                first.__context__ = error
            raise first
        if error is None:
            return context.result
        if invocation is not None and error is raised and isinstance(error, Exception):
            raise self._around.seen(error, context, invocation)
        raise error
