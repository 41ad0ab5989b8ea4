"""Guards: who may dispatch a message, and who may see an answer."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol

from postbus.errors import RoutingError, UnauthorizedError
from postbus.messages import MessageKind
from postbus.pipeline import Stage, label_of
from postbus.plugins._kinds import refuse_other_kinds
from postbus.promises import Promise

if TYPE_CHECKING:
    from postbus.messages import Envelope
    from postbus.pipeline import DispatchContext

# After every listener that may still put another answer in the place of the finder's.
LAST_WORD = -1000


class AuthorizationService(Protocol):
    """Decides who may do what, in the thread or task that dispatches, without waiting."""

    def is_granted(self, name: str, context: Any = None, /) -> bool:
        """Return True to grant *name*; whatever else is returned denies it.

        *context* is the message, or, of an answer, the answer.
        """
        ...


class _Guard:
    """Asks a service and words the denial."""

    def __init__(
        self,
        service: AuthorizationService,
        *,
        expose_message_name: bool = False,
    ) -> None:
        if inspect.iscoroutinefunction(service.is_granted):
            msg = (
                f"{label_of(service.is_granted)} is asynchronous, and a guard cannot wait: decide "
                "by what is known already, or load it before the dispatch"
            )
            raise RoutingError(msg)
        self._service = service
        self._exposes = expose_message_name

    def _grants(self, name: str, context: Any) -> bool:
        # True itself: a coroutine, say, is true as well.
        return self._service.is_granted(name, context) is True

    def _denial(self, name: str, envelope: Envelope) -> UnauthorizedError:
        which = f'the message "{name}"' if self._exposes else "this message"
        return UnauthorizedError(f"you are not authorized for {which}", envelope)


def _identify(context: DispatchContext) -> None:
    """Have the identity made before INVOKE: what is sent and what is denied is one message."""
    _ = context.envelope


class RouteGuard(_Guard):
    """Refuses messages that *service* does not grant, before they are handled or sent (P16).

    `service.is_granted(name, message)` is asked at ROUTE, of received messages too; unless it
    returns True, dispatch raises `UnauthorizedError` and a query is rejected with it. The text
    names the message only where *expose_message_name* says so (P18): it may cross the wire.
    What the service raises ends the dispatch as it is.
    """

    def attach(self, bus: Any) -> None:
        """Guard the messages of *bus*: `bus.utilize(guard)`."""
        bus.attach(Stage.ROUTE, self._guard)

    def _guard(self, context: DispatchContext) -> None:
        if not self._grants(context.name, context.message):
            raise self._denial(context.name, context.envelope)


class FinalizeGuard(_Guard):
    """Withholds answers that *service* does not grant (P17). For query buses only (T07).

    `service.is_granted(name, answer)` is asked at FINALIZE, after every listener of a priority
    above -1000, or where the answer is still on its way, when it comes, in the thread that
    brings it. Unless it returns True the query fails with `UnauthorizedError`. A query that
    failed already is not asked about.
    """

    def attach(self, bus: Any) -> None:
        """Guard the answers of *bus*: `bus.utilize(guard)`.

        Raises:
            RoutingError: *bus* dispatches commands or events, whose effects cannot be withheld.
        """
        refuse_other_kinds(self, bus, MessageKind.QUERY, "guard its messages with RouteGuard")
        bus.attach(Stage.INVOKE, _identify)
        bus.attach(Stage.FINALIZE, self._guard, LAST_WORD)

    def _guard(self, context: DispatchContext) -> None:
        if context.error is not None:
            return
        name, envelope, answer = context.name, context.envelope, context.result
        if answer.__class__ is Promise:
            context.result = self._guarded(answer, name, envelope)
            return
        try:
            if not self._grants(name, answer):
                context.error = self._denial(name, envelope)
        except Exception as error:  # noqa: BLE001  the outcome, for the listeners after this one too
            context.error = error

    def _guarded(self, answer: Promise[Any], name: str, envelope: Envelope) -> Promise[Any]:
        guarded: Promise[Any] = Promise()

        def on_done(answer: Promise[Any]) -> None:
            error = answer.exception()
            try:
                if error is None and not self._grants(name, answer.result()):
                    error = self._denial(name, envelope)
            except Exception as failure:  # noqa: BLE001  whatever it is, the promise is settled
                error = failure
            if error is None:
                guarded.resolve(answer.result())
            else:
                guarded.reject(error)

        answer.add_done_callback(on_done)
        return guarded
