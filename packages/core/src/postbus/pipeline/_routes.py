"""What routers say about a name, before anything of it is resolved."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from postbus.unit import Services


class Strength(IntEnum):
    """Which of several sends of one name wins: the smallest."""

    SEND = 0
    ASYNC_SWITCH = 1
    PRODUCER_PLUGIN = 2


@attrs.frozen
class Target:
    """Where a route points: a callable, an object, a producer, or the id of one.

    *threads* overrides where a sync handler runs. *timeout* is in seconds: a query's deadline, an
    async handler's limit. *when* = "dispatched" marks an event listener that stays with the
    dispatching process. *route* says which route it was, for errors. *services* answer to the id
    instead of those of the bus.
    """

    to: Any
    threads: bool | None = None
    timeout: float | None = None
    when: Literal["handled", "dispatched"] = "handled"
    strength: Strength = Strength.SEND
    mark: bool = False
    route: str = ""
    services: Services | None = None


class Router(Protocol):
    """Says where a name goes and who handles it. Asked when a plan is compiled."""

    def sends(self, name: str, message_type: type) -> Sequence[Target]:
        """Return where *name* goes first, strongest route only."""
        ...

    def handlers(self, name: str) -> Sequence[Target]:
        """Return who handles *name*, in order; exact before pattern.

        Raises:
            RoutingError: two patterns claim one command or query.
        """
        ...

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call *changed* whenever the routes change; return what ends that."""
        ...
