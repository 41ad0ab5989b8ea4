"""What command and query bus share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus.buses._bus import MessageBus
from postbus.errors import NoHandlerError, RoutingError
from postbus.pipeline import Call, Target, handle, label_of

if TYPE_CHECKING:
    from postbus.buses._targets import Targets
    from postbus.pipeline import DispatchContext, Invocation
    from postbus.transports import MessageProducer


class SingleHandlerBus(MessageBus):
    """A bus whose messages have exactly one handler, or one send."""

    def _build(
        self,
        targets: Targets,
        name: str,
        message_type: type,
        *,
        received: bool,
    ) -> Invocation:
        sends, handlers = targets.of(name, message_type)
        routes = handlers if received or not sends else sends
        if not routes:
            where = "here " if received else ""
            msg = f"nothing {where}handles the {self.kind} {name}: add a route for it"
            raise NoHandlerError(msg)
        if len(routes) > 1:
            claimed = ", ".join(t.route or label_of(t.to) for t in routes)
            msg = f"{name} has more than one route, and a {self.kind} has one handler: {claimed}"
            raise RoutingError(msg)
        (route,) = routes
        if sends and not received:
            return self._sending(routes, targets.producers(routes, name), name, message_type)
        return self._bound(route, targets.bind(route, name), name, message_type, received=received)

    def _resolve(self, context: DispatchContext, *, received: bool) -> Invocation:
        name, message_type = context.name, context.message.__class__
        invocation = self._invocation(name, message_type, received)
        if context.handler is None or context.handler is invocation.shown:
            return invocation
        target = Target(context.handler)
        bound = self._targets().bind(target, name)
        return self._bound(target, bound, name, message_type, received=False)

    def _bound(
        self,
        target: Target,
        bound: Call | MessageProducer,
        name: str,
        message_type: type,
        *,
        received: bool,
    ) -> Invocation:
        if isinstance(bound, Call):
            return self._handling(bound, target)
        if received:
            msg = f"nothing here handles the {self.kind} {name}: its route leads to a producer"
            raise NoHandlerError(msg)
        return self._sending((target,), (bound,), name, message_type)

    def _handling(self, call: Call, target: Target) -> Invocation:
        return handle(call, target.to)
