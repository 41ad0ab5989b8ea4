"""The command bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from postbus.buses._queue import NestedQueues
from postbus.buses._single import SingleHandlerBus
from postbus.errors import CommandDispatchError, HandlerFailedError
from postbus.messages import MessageKind

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Unpack

    from postbus.buses._bus import Bodies
    from postbus.buses._queue import Waiting
    from postbus.catalog import MessageCatalog
    from postbus.messages import Envelope
    from postbus.pipeline import Bare, DispatchOptions, Invocation, Plan, Wrapped

    Fast = tuple[Callable[[Any], Any], Bare | None, Wrapped | None]


class CommandBus(SingleHandlerBus):
    """Dispatches commands: exactly one handler each, and no return value.

    Args:
        nested: "queue" runs a command dispatched from inside a handler after that handler, in
            order; "inline" runs it at once.
        catalog: as for every bus.
        errors: as for every bus.
        threads: as for every bus.
    """

    kind = MessageKind.COMMAND

    def __init__(
        self,
        *,
        nested: Literal["queue", "inline"] = "queue",
        catalog: MessageCatalog | None = None,
        errors: Mapping[type[BaseException], str] | None = None,
        threads: int | None = None,
    ) -> None:
        self._queues = None if nested == "inline" else NestedQueues(self._with_pending)
        super().__init__(catalog=catalog, errors=errors, threads=threads)

    def dispatch(self, message: Any, **options: Unpack[DispatchOptions]) -> None:
        """Have *message*, or the message of an `Envelope`, handled or sent. Blocks until it is.

        Inside a handler of this bus it waits its turn behind that handler (`nested`).

        Raises:
            HandlerFailedError: the handler raised; `CommandDispatchError` when nested commands
                were still waiting.
            DispatchError: nothing handles it, or its routes contradict each other.
            TransportError: it was to be sent, and the system does not have it; or it was
                handled, which stands, and what waited for that could not be sent.
            ClosedError: after `close()`.
        """
        if not options:
            try:
                call, bare, wrapped = self._fast[message.__class__]
            except KeyError:
                pass  # The first of its class, or one whose name is its own.
            else:
                if wrapped is not None:
                    contexts, first, name, handler, invocation = wrapped.parts
                    context = contexts(self, message, name, None, handler, (), invocation)
                    try:
                        result = first(context, context._call_next)  # noqa: SLF001  one package
                    except Exception as error:  # noqa: BLE001  raised again, wrapped
                        wrapped.fail(error, context)
                    if result is not None:
                        wrapped.check(result)
                    return
                try:
                    result = call(message)
                except Exception as error:
                    if bare is None:
                        raise
                    bare.fail(message, error, 0)
                if result is not None and bare is not None:
                    bare.check(result)
                return
        self._dispatch(message, options)

    def adispatch(
        self,
        message: Any,
        **options: Unpack[DispatchOptions],
    ) -> Coroutine[Any, Any, None]:
        """Do what `dispatch` does in asyncio. Raises as `dispatch` does."""
        if not options:
            try:
                run = self._afast[message.__class__]
            except KeyError:
                pass
            else:
                return run(message)
        return self._adispatch(message, options)

    def _forget(self) -> None:
        super()._forget()
        self._fast: dict[type, Fast] = {}

    def _remember(self, cls: type, plan: Plan) -> None:
        super()._remember(cls, plan)
        call = plan.run if plan.bare is None else plan.bare.functions[0]
        self._fast[cls] = call, plan.bare, plan.wrapped

    def _is_nested(self) -> bool:
        return self._queues is not None and self._queues.is_nested()

    def _enclose(
        self,
        bodies: Bodies,
        invocation: Invocation,
        bare: Bare | None,
        *,
        reroutes: bool,
        kept: bool,
    ) -> Bodies:
        queues = self._queues
        alone = self._in_unit(bodies, invocation, reroutes=reroutes, kept=kept)
        if queues is None:
            return alone
        if alone is bodies:
            return queues.enclose(bodies, bodies, bare)
        # Nested commands belong to the unit of the command that caused them, so the queue is
        # emptied inside it.
        drained = queues.then_drain(bodies)
        first = self._in_unit(drained, invocation, reroutes=reroutes, kept=kept)
        return queues.enclose(first, alone)

    def _with_pending(
        self,
        error: Exception,
        waiting: Waiting,
        message: Any,
        envelope: Envelope | None,
    ) -> CommandDispatchError:
        """Return *error* with the commands that were still waiting (B24, T03)."""
        envelope_of = self._naming.envelope_of
        pending = [envelope_of(message, envelope) for _, _, message, envelope, _ in waiting]
        if not isinstance(error, HandlerFailedError):
            error = self._failures.wrap(error, envelope_of(message, envelope))
        made = CommandDispatchError(error.code, error.message, error.envelope, pending)
        made.__cause__ = error.__cause__
        made.is_registered = error.is_registered
        return made
