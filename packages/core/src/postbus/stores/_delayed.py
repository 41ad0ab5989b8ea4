"""A producer's place for messages that it cannot delay itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from postbus.stores._protocols import ScheduleStore
from postbus.stores._records import ScheduledMessage, producer_target
from postbus.transports import Capabilities, MessageProducer, WireMessage

__all__ = ["DelayedProducer"]


class DelayedProducer(MessageProducer):
    """Puts messages into a schedule until they are due; a worker sends them then. Any thread.

    Args:
        name: of the section of the producer that is to send them.
        schedule: where they wait.
        capabilities: those of that producer.
    """

    def __init__(self, name: str, schedule: ScheduleStore, capabilities: Capabilities) -> None:
        # The store knows no other resolution than that of a time, which is a microsecond.
        self.capabilities: Capabilities = Capabilities(
            durable=True,
            delay=1e-6,
            priority=capabilities.priority,
            expiry=capabilities.expiry,
            max_size_bytes=capabilities.max_size_bytes,
        )
        self._target = producer_target(name)
        self._schedule = schedule

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Put *messages* into the schedule; blocks until it has them all.

        Raises:
            TransportError: the store is down or full.
        """
        self._schedule.put_many([self._waiting(message) for message in messages])

    def send(self, message: WireMessage) -> None:
        """Put one message into the schedule.

        Raises:
            TransportError: the store is down or full.
        """
        self._schedule.put(self._waiting(message))

    def _waiting(self, message: WireMessage) -> ScheduledMessage:
        due = datetime.now(UTC) + timedelta(seconds=message.delay or 0.0)
        waiting = WireMessage(
            message.body,
            message.headers,
            message.id,
            message.name,
            message.key,
            message.priority,
            message.expires_at,
        )
        return ScheduledMessage(target=self._target, due=due, message=waiting)

    def close(self) -> None:
        """Do nothing: the store is closed by whoever built it."""
