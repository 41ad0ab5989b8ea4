"""Which method of a handler takes the message, where the handler is not callable itself."""

from __future__ import annotations

from typing import Any, ClassVar

from postbus.messages import MessageKind
from postbus.plugins._kinds import refuse_other_kinds


class _Strategy:
    """Calls *method* of the handlers of one kind of bus."""

    kind: ClassVar[MessageKind]
    method: ClassVar[str]

    def attach(self, bus: Any) -> None:
        """Invoke the handlers of *bus*: `bus.utilize(strategy)`.

        Raises:
            RoutingError: *bus* dispatches another kind of message.
        """
        refuse_other_kinds(self, bus, self.kind, "attach the strategy of that kind")
        bus.attach_strategy(self.method)


class HandleCommandStrategy(_Strategy):
    """Calls `handler.handle(command)` of command handlers that are not callable (P14).

    A callable handler is called itself, whatever methods it has; so nothing is handled twice.
    *handle* may be `def` or `async def`.
    """

    kind = MessageKind.COMMAND
    method = "handle"


class OnEventStrategy(_Strategy):
    """Calls `listener.on_event(event)` of listeners that are not callable (P14, P15).

    They run among the others in route order, and fail as those do. *on_event* may be `def` or
    `async def`.
    """

    kind = MessageKind.EVENT
    method = "on_event"


class FinderInvokeStrategy(_Strategy):
    """Calls `finder.find(query)` of finders that are not callable, and returns its answer (P14).

    *find* may be `def` or `async def`, or return a `Promise`.
    """

    kind = MessageKind.QUERY
    method = "find"
