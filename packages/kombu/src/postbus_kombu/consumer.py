"""Receive the messages of one or several queues of a RabbitMQ broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus.threaded import ThreadedConsumer
from postbus_kombu._amqp import Address
from postbus_kombu._capabilities import capabilities_of
from postbus_kombu._client import QueueClient, Taken
from postbus_kombu._topology import examine, parts_of_consumer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.transports import CommonSettings, TopologyPart
    from postbus_kombu.settings import RabbitMQConsumerSettings

__all__ = ["RabbitMQConsumer"]


class RabbitMQConsumer(ThreadedConsumer[Taken]):
    """Takes messages from queues over one connection, from each queue in turn.

    When the consumer dies, the broker gives what it held to others at once. Heartbeats go on
    while handlers run, however long. A queue that was deleted is declared again. Whoever built it
    closes it.
    """

    def __init__(self, settings: RabbitMQConsumerSettings, common: CommonSettings) -> None:
        self._settings = settings
        self._address = Address.of(settings, settings.io_timeout)
        client = QueueClient(settings, capabilities_of(settings, common))
        super().__init__(client, close_timeout=common.close_timeout)

    def show_topology(self) -> Sequence[TopologyPart]:
        """Return queues, exchange and bindings, and how they stand at the broker.

        Raises:
            TransportError: the broker cannot be reached.
        """
        return examine(self._address, parts_of_consumer(self._settings), make=False)

    def apply_topology(self) -> Sequence[TopologyPart]:
        """Make what is missing of that; what differs stays as it is.

        Raises:
            TransportError: the broker cannot be reached.
        """
        return examine(self._address, parts_of_consumer(self._settings), make=True)
