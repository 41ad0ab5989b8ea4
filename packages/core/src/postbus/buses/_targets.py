"""From a name to what its routes point at, resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from postbus.errors import HandlerFailedError, PostbusError, RoutingError
from postbus.pipeline import Call, direct, invocable, label_of, lifetime_call
from postbus.transports import MessageProducer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.pipeline import Failures, Router, Target
    from postbus.unit import Services

    Bound = Call | MessageProducer


@attrs.frozen
class Targets:
    """Asks routers where a name goes, and services what an id stands for.

    *strategies* are the methods to call of what is not callable itself.
    """

    routers: Sequence[Router]
    locators: Sequence[Services]
    failures: Failures
    strategies: Sequence[str] = ()

    def of(self, name: str, message_type: type) -> tuple[list[Target], list[Target]]:
        """Return the strongest sends of *name*, and its handlers. Makes nothing.

        Raises:
            RoutingError: two patterns claim a command or query.
        """
        handlers: list[Target] = []
        sends: list[Target] = []
        for router in self.routers:
            sends += router.sends(name, message_type)
            for target in router.handlers(name):
                (sends if self._is_producer(target) else handlers).append(target)
        strongest = min((t.strength for t in sends), default=None)
        return [t for t in sends if t.strength == strongest], handlers

    def _is_producer(self, target: Target) -> bool:
        """Return whether a route is short for a send, as far as can be seen without making it."""
        if not isinstance(target.to, str):
            return isinstance(target.to, MessageProducer)
        services = self._answering(target)
        provides = getattr(services, "provides", None)
        made = None if provides is None else provides(target.to)
        return isinstance(made, type) and issubclass(made, MessageProducer)

    def producers(self, sends: Sequence[Target], name: str) -> list[MessageProducer]:
        """Return the producers that *sends* point at.

        Raises:
            RoutingError: one of them is something else.
        """
        made: list[MessageProducer] = []
        for target in sends:
            bound = self.bind(target, name)
            if isinstance(bound, Call):
                msg = f"{target.route or name}: {bound.label} is no message producer to send to"
                raise RoutingError(msg)
            made.append(bound)
        return made

    def bind(self, target: Target, name: str) -> Bound:
        """Return what *target* stands for, as something to call or to send with.

        Raises:
            RoutingError: it is neither, or nothing answers to its id.
            HandlerFailedError: its service could not be made.
        """
        to, label = target.to, None
        if isinstance(to, str):
            services = self._answering(target)
            if services is None:
                msg = (
                    f"{target.route or name}: nothing answers to the id {to!r}; give services "
                    "that have it, or a callable"
                )
                raise RoutingError(msg)
            call = lifetime_call(services, to, target, self.strategies)
            if call is not None:
                return call
            label, to = to, self._get(services, to, target.route or name)
        if isinstance(to, MessageProducer):
            return to
        function = invocable(to, self.strategies)
        if function is not None:
            return direct(function, target, label or label_of(to))
        msg = (
            f"{target.route or name}: {label or label_of(to)} is not callable and no strategy "
            f"invokes it, so {name} was not handled"
        )
        raise RoutingError(msg)

    def _answering(self, target: Target) -> Services | None:
        if target.services is not None:
            return target.services
        return next((s for s in self.locators if s.has(target.to)), None)

    def _get(self, services: Services, id_: str, where: str) -> Any:
        try:
            return services.get(id_)
        except PostbusError:
            raise
        except Exception as error:
            # Making it may work the next time, as handling may: no fault of the routes.
            msg = f"{where}: {id_!r} could not be made: {error}"
            raise HandlerFailedError(self.failures.code_of(error), msg) from error
