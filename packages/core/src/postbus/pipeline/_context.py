"""The stages of a dispatch, and what listeners and middleware see of one."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.messages import Envelope


class Stage(StrEnum):
    """The stages of every dispatch, in order. Listeners run before the bus's own step.

    All of them are part of the unit of work: its commit comes after FINALIZE.
    """

    INITIALIZE = "initialize"
    DETECT_NAME = "detect-name"
    ROUTE = "route"
    LOCATE = "locate"
    INVOKE = "invoke"
    FINALIZE = "finalize"


class DispatchContext:
    """One dispatch on its way through the stages, as listeners and middleware see it.

    *message* may be replaced up to INVOKE, *name* set at DETECT_NAME, *handler* (command, query)
    or *listeners* (event) at ROUTE and LOCATE. *error* is what was raised, as it was raised.
    One task or thread at a time uses a context, and only while its dispatch runs.
    """

    # Defaults of the class: a context is made for every message, and most of this is never set.
    handler: Any = None
    listeners: Sequence[Any] = ()
    result: Any = None
    error: BaseException | None = None
    # What the handler itself raised; other errors are a middleware's, a listener's or ours.
    _failure: BaseException | None = None
    _invocation: Any = None
    _stopped: bool = False

    def __init__(
        self,
        bus: Any,
        message: Any,
        name: str,
        envelope: Envelope | None = None,
    ) -> None:
        self.bus = bus
        self.message: Any = message
        self.name: str = name
        self._envelope = envelope

    @property
    def envelope(self) -> Envelope:
        """The identity of the message; made when first asked for, then kept."""
        envelope = self._envelope
        if envelope is None:
            envelope = self.bus.make_envelope(self.message, self.name)
        elif envelope.message is not self.message:
            envelope = envelope.evolve(message=self.message)
        if self.name and envelope.name != self.name:
            envelope = envelope.evolve(name=self.name)
        self._envelope = envelope
        return envelope

    @envelope.setter
    def envelope(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self.message = envelope.message
        self.name = envelope.name

    @property
    def source(self) -> str | None:
        """The consumer that a received message came from, None for a local dispatch."""
        return None if self._envelope is None else self._envelope.received_from

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def stop(self) -> None:
        """End the dispatch before INVOKE: a command or query fails, an event ends quietly."""
        self._stopped = True

    def recover(self, result: Any = None) -> None:
        """Clear the error at FINALIZE; the dispatch then ends well, a query with *result*."""
        self.error = None
        self.result = result

    def _made(self) -> Envelope | None:
        """Return the envelope where there is one: it costs nothing where nobody asked."""
        return None if self._envelope is None else self.envelope
