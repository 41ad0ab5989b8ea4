"""Routers that need no table: the service with the name of the message handles it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from postbus.pipeline import Target
from postbus.unit import MappingServices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from postbus.unit import Services


class ServiceLocatorRouter:
    """Routes each command or query to the service that has its name as id (P07).

    *services* are a mapping from id to service, or anything with `has`, `get` and `lifetime`;
    they are asked when a name is dispatched for the first time, and after any change of the bus.
    A name that none answers to is left to other routers.
    """

    def __init__(self, services: Services | Mapping[str, Any]) -> None:
        self._services = MappingServices(services) if isinstance(services, Mapping) else services

    def attach(self, bus: Any) -> None:
        """Route the messages of *bus*: `bus.utilize(router)`."""
        bus.attach_router(self)

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Return nothing to end: services do not tell when there are more of them."""
        return _nothing

    def sends(self, name: str, message_type: type) -> Sequence[Target]:
        """Return nothing: a service that is a producer is found among the handlers."""
        return ()

    def handlers(self, name: str) -> Sequence[Target]:
        """Return the service called *name*, if there is one."""
        return (self._target(name, name),) if self._services.has(name) else ()

    def _target(self, to: Any, name: str) -> Target:
        return Target(to, services=self._services, route=f"services[{name!r}]")


class ServiceLocatorEventRouter(ServiceLocatorRouter):
    """Routes each event to the service that has its name as id, or to each one in it (P07).

    As `ServiceLocatorRouter`; a service may be a list or tuple of listeners. They are added to
    those of other routers.
    """

    def handlers(self, name: str) -> Sequence[Target]:
        """Return the listeners that stand under *name*."""
        found = super().handlers(name)
        provides = getattr(self._services, "provides", None)
        made = provides(name) if found and provides is not None else None
        if not issubclass(made if isinstance(made, type) else type(made), list | tuple):
            return found
        return [self._target(each, name) for each in self._services.get(name)]


def _nothing() -> None:
    """Undo nothing."""
