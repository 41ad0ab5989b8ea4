"""What a unit of work does for a received message that must be handled once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

from postbus.errors import TransportError
from postbus.transports import MessageProducer, WireMessage

__all__ = ["HandledError", "Outgoing", "Receipt"]

Outgoing: TypeAlias = tuple[WireMessage, tuple[MessageProducer, ...]]


class HandledError(Exception):
    """Raised by a receipt: the message was handled already, so the unit rolls back."""


class Receipt(Protocol):
    """The row of one received message, and one handler of it, in an inbox.

    Called in this order, by the thread or task that runs the unit; `join` and `finish_within`
    inside it and without waiting for a loop, the others anywhere.
    """

    #: What steps of a plan ask of the options of a dispatch: a received message has none.
    delay: ClassVar[None]
    timeout: ClassVar[None]

    def of(self, handler: str) -> Receipt:
        """Return the receipt of one listener of an event."""
        ...

    def join(self, handle: Any) -> None:
        """Find out whether the row can be written within the transaction of *handle*."""
        ...

    def begin(self) -> None:
        """Look into the inbox, and claim the row where it is apart.

        Raises:
            HandledError: it was handled.
            TransportError: somebody is at it, or the inbox is down.
        """
        ...

    def finish_within(self, result: Any, outgoing: Sequence[Outgoing]) -> None:
        """Write the row as the last statement of a transaction that is joined.

        Raises:
            HandledError: somebody else has handled it meanwhile.
            TransportError: the inbox is down.
        """
        ...

    def finish_apart(self, result: Any, outgoing: Sequence[Outgoing]) -> None:
        """Write the row after the commit, where the transaction is not joined.

        Raises:
            TransportError: the inbox is down.
        """
        ...

    def sent(self) -> None:
        """Note that everything the row holds has left. Raises nothing."""
        ...

    def abandon(self) -> None:
        """Give the row back: the unit was rolled back. Raises nothing."""
        ...

    def again(self) -> tuple[Any, list[TransportError]]:
        """Send what a handled message has still to send; return its reply and what failed."""
        ...

    def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
        """Call one of the methods above, that block, without blocking the loop."""
        ...
