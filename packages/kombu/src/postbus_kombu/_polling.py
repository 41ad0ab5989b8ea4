"""Take messages from Redis or one of kombu's simple brokers: look, and sleep when all is empty."""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import attrs

from postbus.errors import RejectedError, TransportError, UnsupportedError
from postbus.threaded import Action, BlockingClient, Received, Settlement
from postbus.transports import WaitingMessage
from postbus_kombu._brokers import broker_of, leasing_broker_of
from postbus_kombu._properties import own_reply_queue
from postbus_kombu._virtual import Broker, Change, Taken

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from postbus.transports import Capabilities
    from postbus_kombu.settings import (
        KombuConsumerSettings,
        RedisConsumerSettings,
        SQSConsumerSettings,
    )

    ConsumerSettings: TypeAlias = (
        KombuConsumerSettings | RedisConsumerSettings | SQSConsumerSettings
    )

__all__ = ["Held", "LeasingClient", "PollingClient"]

_SWEEP_INTERVAL = 1.0
_CHANGES = {
    Action.ACK: Change.REMOVE,
    Action.NACK: Change.PUT_BACK,
    Action.RETRY: Change.REPLACE,
    Action.EXTEND: Change.EXTEND,
}


@attrs.define(eq=False)
class Held:
    """A message that was taken: its queue, its tag there, and where its answer goes."""

    queue: str
    tag: str
    reply: tuple[str, str] | None


class PollingClient(BlockingClient[Held]):
    """The blocking side of a consumer; a `ThreadedConsumer` calls it."""

    can_wake: ClassVar[bool] = True

    def __init__(self, settings: ConsumerSettings, capabilities: Capabilities) -> None:
        self.capabilities: Capabilities = capabilities
        self._settings = settings
        self._broker: Broker = broker_of(settings)
        self.source: str = f"{self._broker.place}/{','.join(settings.queues)}"
        self.queues: Sequence[str] = settings.queues
        self._turns = list(settings.queues)
        self._poll_interval = settings.poll_interval
        self._woken = threading.Event()

    def open(self) -> None:
        """Connect.

        Raises:
            TransportError: the broker cannot be reached.
        """
        with self._broker.channel("connect"):
            pass

    def poll(self, max_messages: int, seconds: float) -> Sequence[Received[Held]]:
        """Take at most *max_messages*, waiting up to *seconds* for the first.

        Raises:
            TransportError: the connection is broken.
        """
        end = time.monotonic() + seconds
        while True:
            with self._broker.channel("receive") as channel:
                taken = self._take(channel, max_messages)
            left = end - time.monotonic()
            if taken or left <= 0 or self._woken.wait(min(self._poll_interval, left)):
                self._woken.clear()
                return taken

    def _take(self, channel: Any, max_messages: int) -> list[Received[Held]]:
        """Take a share of each queue in turn, until all are empty."""
        taken: list[Received[Held]] = []
        empty = 0
        share = math.ceil(max_messages / len(self._turns))
        while len(taken) < max_messages and empty < len(self._turns):
            queue = self._turns[0]
            self._turns.append(self._turns.pop(0))
            messages = self._take_from(channel, queue, min(share, max_messages - len(taken)))
            empty = 0 if messages else empty + 1
            taken += [self._received(queue, message) for message in messages]
        return taken

    def _take_from(self, channel: Any, queue: str, count: int) -> list[Taken]:
        return self._broker.take(channel, queue, count)

    def _received(self, queue: str, taken: Taken) -> Received[Held]:
        reply = own_reply_queue(taken.properties) if self.capabilities.queries else None
        return Received(
            body=taken.body,
            receipt=Held(queue, taken.tag, reply),
            headers=taken.headers,
            redelivered=taken.redelivered,
            can_reply=reply is not None,
        )

    def wake(self) -> None:
        """End a `poll` that is waiting. Any thread."""
        self._woken.set()

    def settle(self, settlements: Sequence[Settlement[Held]]) -> Mapping[int, TransportError]:
        """Send answers; what was taken is gone from the broker, and nothing else can be asked.

        Raises:
            TransportError: the connection is broken.
        """
        with self._broker.channel("answer") as channel:
            for settlement in settlements:
                self._answer(channel, settlement)
        return {}

    def _answer(self, channel: Any, settlement: Settlement[Held]) -> None:
        assert settlement.receipt.reply is not None  # noqa: S101  else it is refused before
        self._broker.answer(channel, settlement.receipt.reply, settlement.argument)

    @contextmanager
    def _looking(self) -> Generator[tuple[Any, Any], None, None]:
        broker = broker_of(self._settings)
        try:
            with broker.channel("look") as channel:
                yield broker, channel
        finally:
            broker.close()

    def count(self) -> Mapping[str, int]:
        """Return how many messages wait in each queue, in all its priorities.

        Raises:
            TransportError: the broker cannot be reached.
        """
        with self._looking() as (broker, channel):
            return {queue: broker.count(channel, queue) for queue in self.queues}

    def peek(self, queue: str, offset: int, limit: int) -> Sequence[WaitingMessage]:
        """Return at most *limit* messages that wait in *queue*, but for the first *offset*.

        Raises:
            TransportError: the server cannot be reached.
        """
        with self._looking() as (broker, channel):
            found = broker.peek(channel, queue, offset, limit)
            return [WaitingMessage(each.body, each.headers) for each in found]

    def purge(self, queue: str) -> int:
        """Remove what waits in *queue*; return how many messages that were.

        Raises:
            TransportError: the broker cannot be reached.
        """
        with self._looking() as (broker, channel):
            purged: int = broker.purge(channel, queue)
            return purged

    def close(self) -> None:
        """Disconnect."""
        self._broker.close()


class LeasingClient(PollingClient):
    """The same for a broker that keeps what is held, until it is settled or its lease runs out."""

    has_leases: ClassVar[bool] = True

    def __init__(
        self, settings: RedisConsumerSettings | SQSConsumerSettings, capabilities: Capabilities
    ) -> None:
        super().__init__(settings, capabilities)
        self._broker = self._leasing = leasing_broker_of(settings)
        self._lease = settings.lease

    def _take_from(self, channel: Any, queue: str, count: int) -> list[Taken]:
        return self._leasing.hold(channel, queue, count, self._lease)

    def settle(self, settlements: Sequence[Settlement[Held]]) -> Mapping[int, TransportError]:
        """Carry out what was asked, in one step for each queue.

        What was held longer than its lease, and so put back by somebody, has failed.

        Raises:
            TransportError: the connection is broken.
        """
        failed: dict[int, TransportError] = {}
        by_queue: dict[str, list[tuple[int, tuple[Change, str, Any]]]] = {}
        answers: list[Settlement[Held]] = []
        for index, settlement in enumerate(settlements):
            held, argument = settlement.receipt, settlement.argument
            if settlement.action is Action.REPLY:
                answers.append(settlement)
                continue
            change = _CHANGES[settlement.action]
            if settlement.action is Action.RETRY:
                try:
                    self._broker.check(argument, self.capabilities)
                    argument = argument, held.reply
                except (RejectedError, UnsupportedError) as error:
                    change = Change.PUT_BACK
                    failed[index] = error
            by_queue.setdefault(held.queue, []).append((index, (change, held.tag, argument)))
        with self._broker.channel("settle") as channel:
            # Before its query is acknowledged: who dies in between answers twice, and not never.
            for settlement in answers:
                self._answer(channel, settlement)
            for queue, changes in by_queue.items():
                done = self._leasing.change(channel, queue, [change for _, change in changes])
                for (index, _), was_held in zip(changes, done, strict=True):
                    if not was_held:
                        text = f"{self.source}: the lease ran out before this was settled"
                        failed[index] = TransportError(text)
        return failed

    def tend(self) -> float | None:
        """Put back what somebody held longer than its lease: by a timer, not by new messages.

        Raises:
            TransportError: the connection is broken.
        """
        with self._broker.channel("put back what was abandoned") as channel:
            for queue in self.queues:
                self._leasing.sweep(channel, queue)
        return _SWEEP_INTERVAL
