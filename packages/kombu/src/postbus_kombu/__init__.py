"""RabbitMQ, Redis and kombu's other brokers for postbus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus_kombu.consumer import RabbitMQConsumer
from postbus_kombu.producer import RabbitMQProducer
from postbus_kombu.settings import (
    KombuConsumerSettings,
    KombuProducerSettings,
    RabbitMQConsumerSettings,
    RabbitMQProducerSettings,
    RedisConsumerSettings,
    RedisProducerSettings,
)
from postbus_kombu.transport import RABBITMQ, RabbitMQTransport
from postbus_kombu.virtual import (
    KOMBU,
    REDIS,
    KombuConsumer,
    KombuProducer,
    KombuTransport,
    RedisTransport,
)

if TYPE_CHECKING:
    from postbus_kombu.containers import KombuContainer, RabbitMQContainer, RedisContainer

__all__ = [
    "KOMBU",
    "RABBITMQ",
    "REDIS",
    "KombuConsumer",
    "KombuConsumerSettings",
    "KombuContainer",
    "KombuProducer",
    "KombuProducerSettings",
    "KombuTransport",
    "RabbitMQConsumer",
    "RabbitMQConsumerSettings",
    "RabbitMQContainer",
    "RabbitMQProducer",
    "RabbitMQProducerSettings",
    "RabbitMQTransport",
    "RedisConsumerSettings",
    "RedisContainer",
    "RedisProducerSettings",
    "RedisTransport",
]


def __getattr__(name: str) -> object:
    """Import a container when it is asked for: only then is dependency_injector needed."""
    if name in {"KombuContainer", "RabbitMQContainer", "RedisContainer"}:
        from postbus_kombu import containers

        return getattr(containers, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
