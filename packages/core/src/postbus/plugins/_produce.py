"""Send every message of a bus to one producer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postbus.errors import RoutingError
from postbus.pipeline import Strength, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class MessageProducerPlugin:
    """Sends every message of the bus it is utilized on to *producer* (P12, T15).

    A `send` for every name: routes do not override it; a router's own `send` and the async
    switch do. *producer* is a `MessageProducer` or the id of one; whoever made it closes it.
    """

    def __init__(self, producer: Any) -> None:
        if producer is None:
            msg = "MessageProducerPlugin needs a message producer, or the id of one, got None"
            raise RoutingError(msg)
        self._target = Target(
            producer,
            strength=Strength.PRODUCER_PLUGIN,
            route="MessageProducerPlugin",
        )

    def attach(self, bus: Any) -> None:
        """Send what *bus* dispatches: `bus.utilize(plugin)`."""
        bus.attach_router(self)

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Return nothing to end: the one target is fixed."""
        return _nothing

    def sends(self, name: str, message_type: type) -> Sequence[Target]:
        """Return the producer, whatever the name."""
        return (self._target,)

    def handlers(self, name: str) -> Sequence[Target]:
        """Return nothing: it only sends."""
        return ()


def _nothing() -> None:
    """Undo nothing."""
