"""Take messages from Redis or one of kombu's simple brokers: look, and sleep when all is empty."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from postbus.errors import RejectedError, TransportError, UnsupportedError
from postbus.threaded import Action, BlockingClient, Received, Settlement
from postbus_kombu._virtual import Broker, check, connection_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.transports import Capabilities
    from postbus_kombu.settings import KombuConsumerSettings, RedisConsumerSettings

__all__ = ["Held", "LeasingClient", "PollingClient"]

_SWEEP_INTERVAL = 1.0


@attrs.define(eq=False)
class Held:
    """A message that we hold: its queue, its tag, and until when, a monotonic time."""

    queue: str
    tag: str
    until: float = math.inf


class PollingClient(BlockingClient[Held]):
    """The blocking side of a consumer; a `ThreadedConsumer` calls it."""

    can_wake: ClassVar[bool] = True

    def __init__(
        self, settings: KombuConsumerSettings | RedisConsumerSettings, capabilities: Capabilities
    ) -> None:
        self.capabilities: Capabilities = capabilities
        self._broker = Broker(settings.url, connection_options(settings))
        self.source: str = f"{self._broker.place}/{','.join(settings.queues)}"
        self._queues = list(settings.queues)
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
        share = math.ceil(max_messages / len(self._queues))
        while len(taken) < max_messages and empty < len(self._queues):
            queue = self._queues[0]
            self._queues.append(self._queues.pop(0))
            messages = self._take_from(channel, queue, min(share, max_messages - len(taken)))
            empty = 0 if messages else empty + 1
            taken += [self._received(queue, message) for message in messages]
        return taken

    def _take_from(self, channel: Any, queue: str, count: int) -> list[Any]:
        message = channel.basic_get(queue, no_ack=True)
        return [] if message is None else [message]

    def _received(self, queue: str, message: Any) -> Received[Held]:
        lease = self.capabilities.lease
        until = math.inf if lease is None else time.monotonic() + lease
        headers: dict[str, Any] = message.headers or {}
        body = message.body
        return Received(
            body=body if isinstance(body, bytes) else str(body).encode(),
            receipt=Held(queue, message.delivery_tag, until),
            headers={key: value for key, value in headers.items() if isinstance(value, str)},
            redelivered=bool(message.delivery_info.get("redelivered")),
        )

    def wake(self) -> None:
        """End a `poll` that is waiting. Any thread."""
        self._woken.set()

    def settle(self, settlements: Sequence[Settlement[Held]]) -> Mapping[int, TransportError]:
        """Do nothing: what was taken is gone from the broker, and nothing can be asked."""
        return {}

    def close(self) -> None:
        """Disconnect."""
        self._broker.close()


class LeasingClient(PollingClient):
    """The same for Redis, which keeps what is held, until it is settled or its lease runs out."""

    has_leases: ClassVar[bool] = True

    def _take_from(self, channel: Any, queue: str, count: int) -> list[Any]:
        return self._broker.take(channel, queue, count)

    def settle(self, settlements: Sequence[Settlement[Held]]) -> Mapping[int, TransportError]:
        """Carry out what was asked; what was held longer than its lease has failed.

        Raises:
            TransportError: the connection is broken.
        """
        failed: dict[int, TransportError] = {}
        with self._broker.channel("settle") as channel:
            for index, settlement in enumerate(settlements):
                if settlement.receipt.until <= time.monotonic():
                    text = f"{self.source}: the lease ran out before this was settled"
                    failed[index] = TransportError(text)
                    continue
                try:
                    self._settle(channel, settlement)
                except (RejectedError, UnsupportedError) as error:
                    channel.basic_reject(settlement.receipt.tag, requeue=True)
                    failed[index] = error
        return failed

    def _settle(self, channel: Any, settlement: Settlement[Held]) -> None:
        held = settlement.receipt
        match settlement.action:
            case Action.NACK:
                channel.basic_reject(held.tag, requeue=True)
            case Action.EXTEND:
                self._broker.extend(channel, held.tag, settlement.argument)
                held.until = time.monotonic() + settlement.argument
            case Action.RETRY:
                check(settlement.argument, self.capabilities)
                # A crash in between leaves both: the message comes twice, with one id.
                self._broker.put_many(channel, held.queue, [settlement.argument])
                channel.basic_ack(held.tag)
            case _:
                channel.basic_ack(held.tag)

    def tend(self) -> float | None:
        """Put back what somebody held longer than its lease: by a timer, not by new messages.

        Raises:
            TransportError: the connection is broken.
        """
        with self._broker.channel("put back what was abandoned") as channel:
            self._broker.sweep(channel)
        return _SWEEP_INTERVAL
