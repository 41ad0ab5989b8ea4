"""The records that the entry points of this package name."""

from __future__ import annotations

from typing import Any

from postbus.transports import Capabilities, CommonSettings, Transport
from postbus_kombu._capabilities import capabilities_of
from postbus_kombu.consumer import RabbitMQConsumer
from postbus_kombu.producer import RabbitMQProducer
from postbus_kombu.settings import RabbitMQConsumerSettings, RabbitMQProducerSettings

__all__ = ["RABBITMQ", "RabbitMQTransport"]


class RabbitMQTransport(Transport):
    """RabbitMQ: durable queues, confirms, priorities, delays, queries."""

    name = "rabbitmq"
    producer_settings = RabbitMQProducerSettings
    consumer_settings = RabbitMQConsumerSettings

    def make_producer(self, settings: Any, common: CommonSettings) -> RabbitMQProducer:
        """Build a producer; connects nothing."""
        return RabbitMQProducer(settings, common)

    def make_consumer(self, settings: Any, common: CommonSettings) -> RabbitMQConsumer:
        """Build a consumer; connects nothing."""
        return RabbitMQConsumer(settings, common)

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do."""
        return capabilities_of(settings, common)


RABBITMQ = RabbitMQTransport()
