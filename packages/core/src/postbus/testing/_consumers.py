"""A consumer that brings what a test gives it, and remembers what became of it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from postbus.errors import ClosedError
from postbus.promises import Promise
from postbus.transports import Capabilities, Delivery, MessageConsumer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from postbus.transports import Reply, WireMessage

__all__ = ["FakeConsumer", "FakeDelivery"]


class FakeDelivery(Delivery):
    """A delivery whose fate can be read: *outcome* is "ack", "nack", "retry" or None.

    *replies* are the answers it got; *replacement* is what `retry` was given.
    """

    __slots__ = ("_can_reply", "outcome", "replacement", "replies")

    def __init__(self, body: bytes, *, can_reply: bool = False, redelivered: bool = False) -> None:
        super().__init__(body, {}, "fake", redelivered=redelivered)
        self._can_reply = can_reply
        self.outcome: str | None = None
        self.replacement: WireMessage | None = None
        self.replies: list[Reply] = []

    def ack(self) -> None:
        """Note it, unless something else came first."""
        self.outcome = self.outcome or "ack"

    def nack(self) -> None:
        """Note it, unless something else came first."""
        self.outcome = self.outcome or "nack"

    def retry(self, message: WireMessage) -> None:
        """Note it, unless something else came first."""
        if self.outcome is None:
            self.outcome = "retry"
            self.replacement = message

    def reply(self, reply: Reply) -> None:
        """Keep the answer.

        Raises:
            UnsupportedError: made without `can_reply`.
        """
        if not self._can_reply:
            raise self._unsupported("reply to")
        self.replies.append(reply)

    def settled(self) -> Promise[None]:
        """Return a resolved promise."""
        return Promise[None].resolved(None)

    @property
    def can_reply(self) -> bool:
        """What it was made with."""
        return self._can_reply


class FakeConsumer(MessageConsumer):
    """Brings *bodies* once, then says that it is closed, so that a worker's `run()` returns.

    Args:
        bodies: what to bring, in order.
        can_reply: whether the deliveries carry a reply channel.
        acknowledge: whether they can be given back.

    `deliveries` holds one `FakeDelivery` per body, in order.
    """

    def __init__(
        self, bodies: Iterable[bytes], *, can_reply: bool = False, acknowledge: bool = True
    ) -> None:
        self.capabilities: Capabilities = Capabilities(
            acknowledge=acknowledge, retry=acknowledge, queries=can_reply, ordering=True
        )
        self.deliveries: list[FakeDelivery] = [
            FakeDelivery(body, can_reply=can_reply) for body in bodies
        ]
        self._waiting = deque(self.deliveries)
        self.is_closed: bool = False

    async def receive(self, max_messages: int) -> Sequence[FakeDelivery]:
        """Return the next ones.

        Raises:
            ClosedError: there are no more, or after `aclose()`.
        """
        if self.is_closed or not self._waiting:
            raise ClosedError("the fake consumer has brought everything")
        count = min(max_messages, len(self._waiting))
        return [self._waiting.popleft() for _ in range(count)]

    async def aclose(self) -> None:
        """Note it. Idempotent."""
        self.is_closed = True
