"""A dispatch through all stages, for the buses that have listeners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postbus.errors import DispatchError, RoutingError, UnsupportedError
from postbus.pipeline._calls import is_awaitable, label_of, refuse_coroutine
from postbus.pipeline._context import DispatchContext, Stage
from postbus.pipeline._invoking import Invoking

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.messages import Envelope
    from postbus.pipeline._invocations import Invocation
    from postbus.pipeline._plans import Surroundings
    from postbus.pipeline._sending import SendOptions

    Resolve = Callable[[DispatchContext], Invocation]

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
        self._invoking = Invoking(expected, around.middlewares)

    def run(self, message: Any, envelope: Envelope | None = None, options: Any = None) -> Any:
        """Dispatch in plain code."""
        context = self._start(message, envelope)
        invoking = None
        try:
            for stage in _BEFORE:
                for listener in self._around.listeners[stage]:
                    result = listener(context)
                    if result is not None:
                        refuse_coroutine(result, label_of(listener))
                    if context.stopped:
                        break
                if context.stopped:
                    self._stop(context, stage)
                    break
                self._step(stage, context)
            else:
                located = self._located(context, options)
                if located.invocation.blocker is not None:
                    msg = f"{located.invocation.blocker} is asynchronous: use adispatch"
                    raise RoutingError(msg, context.envelope)  # noqa: TRY301  FINALIZE sees it
                invoking = located
                context.result = invoking.run(context, options)
        except BaseException as error:  # noqa: BLE001  monitors see every outcome; raised below
            context.error = error
        raised = context.error
        faults: list[Exception] = []
        for listener in self._around.listeners[Stage.FINALIZE]:
            try:
                result = listener(context)
                if result is not None:
                    refuse_coroutine(result, label_of(listener))
            except Exception as error:  # noqa: BLE001  the other monitors still run; raised below
                faults.append(error)
        return self._outcome(context, raised, faults, invoking)

    async def arun(
        self,
        message: Any,
        envelope: Envelope | None = None,
        options: Any = None,
    ) -> Any:
        """Dispatch in asyncio."""
        context = self._start(message, envelope)
        invoking = None
        try:
            for stage in _BEFORE:
                for listener in self._around.listeners[stage]:
                    result = listener(context)
                    if is_awaitable(result):
                        await result
                    if context.stopped:
                        break
                if context.stopped:
                    self._stop(context, stage)
                    break
                self._step(stage, context)
            else:
                invoking = self._located(context, options)
                context.result = await invoking.arun(context, options)
        except GeneratorExit:
            # The coroutine is being closed: nothing can be awaited any more.
            raise
        except BaseException as error:  # noqa: BLE001  monitors see every outcome; raised below
            context.error = error
        raised = context.error
        faults: list[Exception] = []
        for listener in self._around.listeners[Stage.FINALIZE]:
            try:
                result = listener(context)
                if is_awaitable(result):
                    await result
            except Exception as error:  # noqa: BLE001  the other monitors still run; raised below
                faults.append(error)
        return self._outcome(context, raised, faults, invoking)

    def _start(self, message: Any, envelope: Envelope | None) -> DispatchContext:
        name = self._name if envelope is None or not self._name else envelope.name
        return DispatchContext(self._around.bus, message, name, envelope)

    def _step(self, stage: Stage, context: DispatchContext) -> None:
        """Do the bus's own step of *stage*, after its listeners."""
        around = self._around
        if stage is Stage.DETECT_NAME and around.names_late:
            self._name_it(context)
        elif stage is Stage.ROUTE and context.handler is None and not context.listeners:
            around.show(context, self._resolve(context).shown)
        elif stage is Stage.LOCATE:
            context._invocation = self._resolve(context)  # noqa: SLF001  one package
            around.show(context, context._invocation.located)  # noqa: SLF001  asked for is made

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

    def _located(self, context: DispatchContext, options: SendOptions | None) -> Invoking:
        invocation = context._invocation  # noqa: SLF001  one package
        if options is not None and options.delay and not invocation.sends:
            msg = f"{context.name}: a delay needs a send, and this message is handled here at once"
            raise UnsupportedError(msg, context.envelope)
        if invocation is self._expected:
            return self._invoking
        return Invoking(invocation, self._around.middlewares)

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
        invoking: Invoking | None,
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
        if invoking is not None and error is raised and isinstance(error, Exception):
            raise self._around.seen(error, context, invoking.invocation)
        raise error
