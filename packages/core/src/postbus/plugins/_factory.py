"""Messages from plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from postbus.errors import RoutingError
from postbus.messages import Envelope
from postbus.pipeline import Stage, label_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.pipeline import DispatchContext

NAME = "message_name"


class MessageFactoryPlugin:
    """Makes a message of a mapping that has a `message_name` (P13).

    *factory* is called with the name and the rest of the mapping, and returns the message, which
    is dispatched under that name; or an `Envelope`, whose identity and name then count. Anything
    else passes untouched. What *factory* raises ends the dispatch as it is.
    """

    def __init__(self, factory: Callable[[str, dict[str, Any]], Any]) -> None:
        self._factory = factory

    def attach(self, bus: Any) -> None:
        """Make the messages of *bus*: `bus.utilize(plugin)`."""
        bus.attach(Stage.INITIALIZE, self._make)

    def _make(self, context: DispatchContext) -> None:
        message: object = context.message
        if not isinstance(message, Mapping):
            return
        data = dict(cast("Mapping[str, Any]", message))
        name = data.pop(NAME, None)
        if name is None:
            return
        if not isinstance(name, str) or not name:
            msg = f"{NAME} must be the name of a message, got {type(name).__name__}"
            raise RoutingError(msg)
        made = self._factory(name, data)
        if isinstance(made, Envelope):
            # What an interceptor wrote down when the mapping was dispatched stays with it.
            context.envelope = made.evolve(headers={**context.envelope.headers, **made.headers})
        elif made is None:
            msg = f"the factory {label_of(self._factory)} made nothing of {name}"
            raise RoutingError(msg)
        else:
            context.message, context.name = made, name
