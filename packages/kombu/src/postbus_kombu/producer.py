"""Send messages to RabbitMQ: each is confirmed, and many are on their way at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from postbus.errors import (
    ClosedError,
    PartiallySentError,
    RejectedError,
    TransportError,
    UnsupportedError,
)
from postbus.transports import MessageProducer
from postbus_kombu._amqp import Address
from postbus_kombu._capabilities import capabilities_of
from postbus_kombu._confirms import Posting, Sender
from postbus_kombu._properties import check, properties_of
from postbus_kombu._replies import Replies
from postbus_kombu._topology import Route, Shape, examine, named, parts_of_producer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.promises import Promise
    from postbus.transports import (
        Capabilities,
        CommonSettings,
        Reply,
        TopologyPart,
        WireMessage,
    )
    from postbus_kombu.settings import RabbitMQProducerSettings

__all__ = ["RabbitMQProducer"]

_LONGEST_KEY_BYTES = 255


class RabbitMQProducer(MessageProducer):
    """Sends messages that are persistent, mandatory and confirmed.

    A send returns when the broker has the message: written to the disks of a quorum queue. Any
    thread: what several threads send at once shares its round trips, and each hears of its own.
    Also after a fork. A connection that broke is made anew by the next send. Queries have a
    connection of their own. Whoever built it closes it.
    """

    def __init__(self, settings: RabbitMQProducerSettings, common: CommonSettings) -> None:
        self.capabilities: Capabilities = capabilities_of(settings, common)
        self._settings = settings
        self._address = Address.of(settings, settings.confirm_timeout)
        self._is_closed = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        settings = self._settings
        self._process = os.getpid()
        shape = Shape.of(settings)
        arguments = (self._address, shape, settings.confirm_timeout)
        self._sender = Sender(*arguments)
        self._replies = Replies(*arguments)

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Hand over *messages*, in order; blocks until the broker has confirmed each.

        Raises:
            PartiallySentError: some were refused, returned because no queue takes them, or not
                confirmed: then the broker may have them all the same.
            ClosedError: after `close()`.
        """
        self._refuse_closed()
        failed: dict[int, TransportError] = {}
        postings: dict[int, Posting] = {}
        for index, message in enumerate(messages):
            try:
                postings[index] = self._posting(message)
            except (RejectedError, UnsupportedError) as error:
                failed[index] = error
        self._sender.send(list(postings.values()))
        for index, posting in postings.items():
            if posting.error is not None:
                failed[index] = posting.error
        if failed:
            raise PartiallySentError(
                f"{self._address.place} did not take {len(failed)} of {len(messages)} messages",
                dict(sorted(failed.items())),
            )

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        """Send a query over a connection for queries; its answer settles *reply*."""
        try:
            self._refuse_closed()
            self._replies.ask(self._posting(message), reply)
        except TransportError as error:
            reply.reject(error)

    def show_topology(self) -> Sequence[TopologyPart]:
        """Return the queue or exchange that is sent to, and how it stands at the broker.

        Raises:
            TransportError: the broker cannot be reached.
        """
        return examine(self._address, parts_of_producer(self._settings), make=False)

    def apply_topology(self) -> Sequence[TopologyPart]:
        """Make what is missing of that; one that differs stays as it is.

        Raises:
            TransportError: the broker cannot be reached.
        """
        return examine(self._address, parts_of_producer(self._settings), make=True)

    def _posting(self, message: WireMessage) -> Posting:
        check(message, self.capabilities)
        return Posting(
            message.id,
            message.body,
            properties_of(message),
            self._route(message.name),
            message.delay,
        )

    def _route(self, name: str) -> Route:
        settings = self._settings
        key = named(settings.routing_key if settings.exchange else settings.queue, name)
        if len(key.encode()) > _LONGEST_KEY_BYTES:
            raise RejectedError(f"{name}: its queue or routing key has more than 255 bytes")
        return Route(settings.exchange, key)

    def _refuse_closed(self) -> None:
        if self._process != os.getpid():
            # In a forked child: the connections and their answers are the parent's.
            self._sender.abandon()
            self._replies.abandon()
            self._start_afresh()
        if self._is_closed:
            raise ClosedError(f"the producer for {self._address.place} is closed")

    def close(self) -> None:
        """Close the connections and reject the queries that wait. Idempotent.

        Blocks while another thread's send waits for its confirms, at most `confirm_timeout`.
        """
        self._is_closed = True
        if self._process == os.getpid():
            self._replies.close()
            self._sender.close()
