"""RabbitMQ, Redis, SQS and kombu's other brokers for postbus."""

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
    SQSConsumerSettings,
    SQSProducerSettings,
)
from postbus_kombu.transport import RABBITMQ, RabbitMQTransport
from postbus_kombu.virtual import (
    KOMBU,
    REDIS,
    SQS,
    KombuConsumer,
    KombuProducer,
    KombuTransport,
    RedisTransport,
    SQSTransport,
)

if TYPE_CHECKING:
    from postbus_kombu.containers import (
        KombuContainer,
        RabbitMQContainer,
        RedisContainer,
        SQSContainer,
    )

__all__ = [
    "KOMBU",
    "RABBITMQ",
    "REDIS",
    "SQS",
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
    "SQSConsumerSettings",
    "SQSContainer",
    "SQSProducerSettings",
    "SQSTransport",
]


def __getattr__(name: str) -> object:
    """Import a container when it is asked for: only then is dependency_injector needed."""
    if name in {"KombuContainer", "RabbitMQContainer", "RedisContainer", "SQSContainer"}:
        from postbus_kombu import containers

        return getattr(containers, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
