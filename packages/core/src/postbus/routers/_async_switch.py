"""The async switch: messages of marked classes go to a producer, the rest to a router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postbus.errors import RoutingError
from postbus.messages import AsyncMessage
from postbus.pipeline import Strength, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from postbus.pipeline import Router


class AsyncSwitchMessageRouter:
    """Sends every `AsyncMessage` to *producer*, unless *router* sends it elsewhere (P09).

    *producer* is a `MessageProducer` or the id of one. What is sent carries
    `metadata["handled-async"] = true` for receivers of the older system; postbus never reads
    it: a received message is handled because it was received (T06).
    """

    def __init__(self, router: Router, producer: Any) -> None:
        if producer is None:
            msg = "the async switch needs a producer to send to, or the id of one, got None"
            raise RoutingError(msg)
        self._router = router
        self._target = Target(
            producer,
            strength=Strength.ASYNC_SWITCH,
            mark=True,
            route="async_switch",
        )

    def attach(self, bus: Any) -> None:
        """Route the messages of *bus*: `bus.utilize(router)`."""
        bus.attach_router(self)

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Pass the inner router's changes on."""
        return self._router.watch(changed)

    def sends(self, name: str, message_type: type) -> Sequence[Target]:
        """Return the inner router's sends, else the producer for marked classes."""
        found = self._router.sends(name, message_type)
        if found or not issubclass(message_type, AsyncMessage):
            return found
        return (self._target,)

    def handlers(self, name: str) -> Sequence[Target]:
        """Return what the inner router says."""
        return self._router.handlers(name)
