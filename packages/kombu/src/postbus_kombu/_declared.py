"""What has been declared over one connection, so that it is not declared again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus_kombu._delays import LONG_DELAY, ladder, landing, on_ladder, waiting_room
from postbus_kombu._topology import Route, declare

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from postbus_kombu._amqp import Link
    from postbus_kombu._topology import Part, Shape

__all__ = ["Declared"]


class Declared:
    """Declares what a message needs on its way, on first use. Belongs to its link's thread."""

    def __init__(self, link: Link, shape: Shape) -> None:
        self._link = link
        self._shape = shape
        self._done: set[Hashable] = set()

    def ensure(self, route: Route) -> bool:
        """Declare where *route* leads, unless that has been done; return whether it was now.

        Raises:
            RejectedError: it is there and differs.
            TransportError: the connection is broken.
        """
        shape = self._shape
        return self._once(
            route,
            lambda: shape.exchange(route.exchange) if route.exchange else shape.queue(route.key),
        )

    def forget(self) -> None:
        """Declare everything again at its next use: the broker lacks something of it."""
        self._done.clear()

    def hold_back(self, route: Route, delay: float) -> tuple[Route, bool]:
        """Return where a message waits for *delay* seconds before it goes along *route*.

        And whether that was declared now.

        Raises:
            TransportError: the queues for that cannot be declared.
        """
        if delay >= LONG_DELAY:
            self._once("ladder", ladder)
            is_new = self._once(("landing", route), lambda: landing(route))
            return on_ladder(route, delay), is_new
        room = waiting_room(route, delay)
        return Route("", room.name), self._once(room.name, lambda: [room])

    def _once(self, what: Hashable, parts: Callable[[], Sequence[Part]]) -> bool:
        if what in self._done:
            return False
        declare(self._link, *parts())
        self._done.add(what)
        return True
