"""Receive the messages of one or several queues of a RabbitMQ broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus.threaded import ThreadedConsumer
from postbus_kombu._capabilities import capabilities_of
from postbus_kombu._client import QueueClient, Taken

if TYPE_CHECKING:
    from postbus.transports import CommonSettings
    from postbus_kombu.settings import RabbitMQConsumerSettings

__all__ = ["RabbitMQConsumer"]


class RabbitMQConsumer(ThreadedConsumer[Taken]):
    """Takes messages from queues over one connection, from each queue in turn.

    When the consumer dies, the broker gives what it held to others at once. Heartbeats go on
    while handlers run, however long. A queue that was deleted is declared again. Whoever built it
    closes it.
    """

    def __init__(self, settings: RabbitMQConsumerSettings, common: CommonSettings) -> None:
        client = QueueClient(settings, capabilities_of(settings, common))
        super().__init__(client, close_timeout=common.close_timeout)
