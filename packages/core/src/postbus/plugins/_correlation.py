"""Which message caused which: ids of correlation and causation."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextvars import Token

    from postbus.messages import Envelope
    from postbus.pipeline import DispatchContext

# A context variable, which child tasks and asyncio.to_thread inherit: what they dispatch has the
# same cause. Queues and units are keyed by what runs and are not inherited.
_parent: ContextVar[Envelope | None] = ContextVar("postbus_parent", default=None)


class _Parent:
    """Makes *envelope* the parent of what is dispatched inside a `with`."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def __enter__(self) -> None:
        self._token: Token[Envelope | None] = _parent.set(self._envelope)

    def __exit__(self, *outcome: object) -> None:
        # A dispatch that is closed unfinished may end in another context: nothing was set there.
        with suppress(ValueError):
            _parent.reset(self._token)


class CorrelationPlugin:
    """Writes down which message caused which, in the headers that travel with a message.

    What is dispatched while a message is handled has that message as its parent: *causation_id*
    is the parent's id, *correlation_id* the parent's correlation_id, or its id where it has none.
    The parent is taken when a message is dispatched, not when a queued command runs, and child
    tasks and `asyncio.to_thread` inherit it. A received message is a parent too. Headers that an
    `Envelope` brings along stay as they are; what has no parent gets none.

    Utilize it on every bus whose messages may cause others; one object may serve all of them.
    """

    def attach(self, bus: Any) -> None:
        """Write the headers of what *bus* dispatches: `bus.utilize(plugin)`."""
        bus.intercept(_with_parent)
        bus.wrap(_as_parent)


def _with_parent(envelope: Envelope) -> Envelope:
    parent = _parent.get()
    if parent is None:
        return envelope
    ids = {
        "correlation_id": parent.headers.get("correlation_id", parent.id),
        "causation_id": parent.id,
    }
    return envelope.evolve(headers={**ids, **envelope.headers})


def _as_parent(context: DispatchContext) -> _Parent:
    return _Parent(context.envelope)
