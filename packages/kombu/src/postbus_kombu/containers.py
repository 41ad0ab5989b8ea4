"""The containers of these transports, for applications that wire with dependency_injector."""

from __future__ import annotations

from typing import ClassVar

from postbus.containers import TransportContainer
from postbus.transports import Transport
from postbus_kombu.transport import RABBITMQ
from postbus_kombu.virtual import KOMBU, REDIS, SQS

__all__ = ["KombuContainer", "RabbitMQContainer", "RedisContainer", "SQSContainer"]


class RabbitMQContainer(TransportContainer):
    """Producer, consumer, plugin, router and buses over RabbitMQ, from one section."""

    transport: ClassVar[Transport] = RABBITMQ


class RedisContainer(TransportContainer):
    """The same over Redis."""

    transport: ClassVar[Transport] = REDIS


class SQSContainer(TransportContainer):
    """The same over Amazon SQS."""

    transport: ClassVar[Transport] = SQS


class KombuContainer(TransportContainer):
    """The same over any of kombu's brokers."""

    transport: ClassVar[Transport] = KOMBU
