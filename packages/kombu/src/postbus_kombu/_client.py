"""Take messages from the queues of a RabbitMQ broker, and settle them."""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import closing
from functools import partial
from itertools import cycle, takewhile
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from postbus.errors import ConnectionFailedError, TransportError
from postbus.threaded import Action, BlockingClient, Received, Settlement
from postbus_kombu._amqp import Address, Link, Waker, amqp, translated
from postbus_kombu._confirms import Outlet, Posting
from postbus_kombu._declared import Declared
from postbus_kombu._properties import check, properties_of, reply_channel, reply_type
from postbus_kombu._topology import Route, Shape, declare, parts_of_consumer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.transports import Capabilities, Reply, WireMessage
    from postbus_kombu._amqp import Channel
    from postbus_kombu.settings import RabbitMQConsumerSettings

__all__ = ["QueueClient", "Taken"]

# Heartbeats want to be looked at several times in their time.
_BEATS = 4
_PAUSE = 0.2


@attrs.frozen(eq=False)
class Taken:
    """A message that we hold: where it came from, its number, and what its answer wants."""

    subscription: Subscription
    tag: int
    properties: Mapping[str, Any]
    reply: tuple[str, str] | None


@attrs.define(eq=False)
class Subscription:
    """One queue: what came and nobody has yet, how much we hold, how much the broker gives."""

    queue: str
    credit: int = 0
    held: int = 0
    arrived: deque[Received[Taken]] = attrs.Factory(deque[Received[Taken]])


class QueueClient(BlockingClient[Taken]):
    """The blocking side of a RabbitMQ consumer; a `ThreadedConsumer` calls it."""

    can_wake: ClassVar[bool] = True

    def __init__(self, settings: RabbitMQConsumerSettings, capabilities: Capabilities) -> None:
        self.capabilities: Capabilities = capabilities
        self._settings = settings
        self._address = Address.of(settings, settings.io_timeout, settings.heartbeat)
        self.queues: Sequence[str] = settings.queues
        self.source: str = f"rabbitmq:{self._address.place}/{','.join(settings.queues)}"
        self._waker = Waker()
        self._link: Link | None = None
        self._channel: Channel | None = None
        self._outlet: Outlet | None = None
        self._subscriptions: list[Subscription] = []
        self._turns = iter(cycle(self._subscriptions))
        # What the broker counts as ours, in the order of its numbers.
        self._unsettled: dict[int, None] = {}
        self._gone: str | None = None

    def open(self) -> None:
        """Connect, declare the queues, and open a channel for them.

        Raises:
            RejectedError: a queue is there and differs.
            TransportError: the broker cannot be reached.
        """
        settings = self._settings
        self._link = link = Link(self._address, self._waker)
        for part in parts_of_consumer(settings):
            declare(link, part)
        self._channel = link.channel()
        self._outlet = Outlet(link, Declared(link, Shape.of(settings)), settings.io_timeout)
        self._subscriptions = [Subscription(queue) for queue in settings.queues]
        self._turns = iter(cycle(self._subscriptions))
        self._gone = None

    def _opened(self) -> tuple[Link, Channel, Outlet]:
        assert self._link is not None  # noqa: S101  the consumer opens it first
        assert self._channel is not None  # noqa: S101  as above
        assert self._outlet is not None  # noqa: S101  as above
        return self._link, self._channel, self._outlet

    def poll(self, max_messages: int, seconds: float) -> Sequence[Received[Taken]]:
        """Take at most *max_messages*, waiting up to *seconds* for the first.

        Raises:
            TransportError: the connection is broken, or the broker cancelled a queue.
        """
        try:
            self._ask_for(max_messages)
        except ConnectionFailedError:
            if self._unsettled:
                raise
            # A quorum queue that somebody else declares at this moment is there for us to declare
            # and not there to consume from, which costs the connection.
            self.close()
            time.sleep(_PAUSE)
            self.open()
            self._ask_for(max_messages)
        link, _, _ = self._opened()
        if not any(subscription.arrived for subscription in self._subscriptions):
            link.read(seconds)
        self._waker.clear()
        self._refuse_gone()
        return self._hand_out(max_messages)

    def _ask_for(self, max_messages: int) -> None:
        share = math.ceil(max_messages / len(self._subscriptions))
        for subscription in self._subscriptions:
            # What has come and nobody has yet is part of what is asked for.
            given = subscription.held - len(subscription.arrived)
            missing = given + share - subscription.credit
            if missing > 0:
                self._subscribe(subscription, missing)

    def _subscribe(self, subscription: Subscription, credit: int) -> None:
        """Have the broker give us *credit* more messages at a time.

        By one more consumer of the queue: what a consumer gets cannot be changed, quorum queues
        know no limit for a channel, and to cancel one and begin anew changes the order.
        """
        _, channel, _ = self._opened()
        with translated(f"consume from {subscription.queue}"):
            channel.basic_qos(0, credit, a_global=False)
            channel.basic_consume(
                subscription.queue,
                callback=partial(self._arrived, subscription),
                on_cancel=partial(self._cancelled, subscription.queue),
            )
        subscription.credit += credit

    def _arrived(self, subscription: Subscription, message: Any) -> None:
        tag = message.delivery_tag
        self._unsettled[tag] = None
        properties = message.properties
        reply = reply_channel(properties)
        body = message.body
        subscription.arrived.append(
            Received(
                body=body if isinstance(body, bytes) else bytes(body, "utf-8"),
                receipt=Taken(subscription, tag, properties, reply),
                headers=_headers(properties),
                redelivered=bool(message.delivery_info["redelivered"]),
                can_reply=reply is not None,
            )
        )
        subscription.held += 1

    def _cancelled(self, queue: str, _: str) -> None:
        self._gone = queue

    def _refuse_gone(self) -> None:
        if self._gone is not None:
            # The next `open` declares it again.
            raise ConnectionFailedError(f"{self.source}: the broker cancelled {self._gone}")

    def _hand_out(self, max_messages: int) -> list[Received[Taken]]:
        """Return what arrived, one of each queue in turn."""
        received: list[Received[Taken]] = []
        idle = 0
        while len(received) < max_messages and idle < len(self._subscriptions):
            subscription = next(self._turns)
            if subscription.arrived:
                received.append(subscription.arrived.popleft())
                idle = 0
            else:
                idle += 1
        if not self.capabilities.acknowledge:
            self._acknowledge([each.receipt for each in received])
        return received

    def wake(self) -> None:
        """End a `poll` that is waiting. Any thread."""
        self._waker.wake()

    def settle(self, settlements: Sequence[Settlement[Taken]]) -> Mapping[int, TransportError]:
        """Carry out what was asked; acknowledgements in as few frames as their order allows.

        Raises:
            TransportError: the connection is broken.
        """
        self._refuse_gone()
        failed: dict[int, TransportError] = {}
        done = [each.receipt for each in settlements if each.action is Action.ACK]
        postings = self._post(settlements, failed)
        if postings:
            self._opened()[2].finish(list(postings.values()))
        for index, posting in postings.items():
            if settlements[index].action is not Action.RETRY:
                continue
            if posting.error is None:
                done.append(settlements[index].receipt)
            else:
                failed[index] = posting.error
        given_back = [each.receipt for each in settlements if each.action is Action.NACK]
        # What could not be retried stays the broker's.
        given_back += [settlements[index].receipt for index in failed]
        self._acknowledge(done)
        self._give_back(given_back)
        return failed

    def _post(
        self, settlements: Sequence[Settlement[Taken]], failed: dict[int, TransportError]
    ) -> dict[int, Posting]:
        """Write retries and answers, all of them before the first confirm is waited for."""
        postings: dict[int, Posting] = {}
        for index, settlement in enumerate(settlements):
            try:
                if settlement.action is Action.RETRY:
                    postings[index] = self._retry(settlement.receipt, settlement.argument)
                elif settlement.action is Action.REPLY:
                    postings[index] = self._answer(settlement.receipt, settlement.argument)
            except TransportError as error:
                failed[index] = error
        _, _, outlet = self._opened()
        for posting in postings.values():
            while not outlet.room:
                outlet.wait()
            outlet.post(posting)
        return postings

    def _retry(self, taken: Taken, message: WireMessage) -> Posting:
        """Return the new message; it goes back to its queue, and keeps who waits for an answer.

        A crash after its confirm leaves both: the message comes twice, with one id.
        """
        check(message, self.capabilities)
        properties = properties_of(message)
        kept = {"reply_to", "correlation_id"}
        if self.capabilities.priority:
            kept.add("priority")
        properties = {
            **{key: value for key, value in taken.properties.items() if key in kept},
            **properties,
        }
        route = Route("", taken.subscription.queue)
        return Posting(message.id, message.body, properties, route, message.delay)

    def _answer(self, taken: Taken, reply: Reply) -> Posting:
        assert taken.reply is not None  # noqa: S101  else it is refused before
        queue, correlation_id = taken.reply
        properties = {
            "content_type": "application/json",
            "type": reply_type(reply),
            "correlation_id": correlation_id,
        }
        # Not mandatory: nobody may be waiting any more.
        return Posting(
            "", reply.body, properties, Route("", queue), mandatory=False, declare=False
        )

    def _acknowledge(self, done: Sequence[Taken]) -> None:
        """Acknowledge all of *done*: up to a gap with one frame, those beyond it one by one."""
        tags = {taken.tag for taken in done}
        leading = list(takewhile(tags.__contains__, self._unsettled))
        _, channel, _ = self._opened()
        with translated(f"acknowledge to {self.source}"):
            if leading:
                channel.basic_ack(leading[-1], multiple=True)
            for tag in tags.difference(leading):
                channel.basic_ack(tag, multiple=False)
        self._settled(done)

    def _give_back(self, given_back: Sequence[Taken]) -> None:
        _, channel, _ = self._opened()
        with translated(f"give back to {self.source}"):
            for taken in given_back:
                channel.basic_reject(taken.tag, requeue=True)
        self._settled(given_back)

    def _settled(self, settled: Sequence[Taken]) -> None:
        for taken in settled:
            del self._unsettled[taken.tag]
            taken.subscription.held -= 1

    def tend(self) -> float | None:
        """Keep up the connection, also while nobody receives.

        Raises:
            TransportError: the broker is gone, or cancelled a queue.
        """
        link, _, _ = self._opened()
        link.read(0)
        self._refuse_gone()
        if not self._settings.heartbeat:
            return None
        link.beat()
        return self._settings.heartbeat / _BEATS

    def count(self) -> Mapping[str, int]:
        """Return how many messages wait in each queue; none in one that is not there.

        Raises:
            TransportError: the broker cannot be reached.
        """
        with closing(Link(self._address)) as link:
            return {queue: _counted(link.channel(), queue) for queue in self.queues}

    def purge(self, queue: str) -> int:
        """Remove what waits in *queue*; return how many messages that were.

        Raises:
            RejectedError: the queue is not there.
            TransportError: the broker cannot be reached.
        """
        with closing(Link(self._address)) as link:
            channel = link.channel()
            with translated(f"purge {queue}"):
                return channel.queue_purge(queue)

    def close(self) -> None:
        """Disconnect; the broker queues again what we hold."""
        link, self._link = self._link, None
        self._channel = self._outlet = None
        self._subscriptions = []
        self._unsettled.clear()
        if link is not None:
            link.close()
        self._waker.close()


def _counted(channel: Channel, queue: str) -> int:
    with translated(f"count {queue}"):
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except amqp.NotFound:
            return 0


def _headers(properties: Mapping[str, Any]) -> dict[str, str]:
    headers: dict[str, Any] = properties.get("application_headers") or {}
    return {key: value for key, value in headers.items() if isinstance(value, str)}
