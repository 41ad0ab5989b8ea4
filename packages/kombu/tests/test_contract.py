"""RabbitMQ keeps every promise of the transport interface."""

from __future__ import annotations

from typing import Any

import pytest

from postbus.testing import (
    ConsumerContract,
    ProducerContract,
    QueryContract,
    TransportUnderTest,
)
from postbus_kombu import KOMBU, RABBITMQ, REDIS, SQS
from postbus_kombu._sqs import SQSBroker
from postbus_kombu._virtual import Taken

# What conftest.py calls so.
OwnRedis = Any


class TestQuorum(ProducerContract, ConsumerContract, QueryContract):
    """A quorum queue of this machine's broker."""

    @pytest.fixture
    def under_test(self, url: str, queue: str) -> TransportUnderTest:
        """Name a queue that nobody else uses."""
        return TransportUnderTest(
            transport=RABBITMQ,
            producer={"url": url, "queue": queue},
            consumer={"url": url, "queues": [queue]},
            secrets=["guest:guest"],
        )


class TestClassic(ProducerContract, ConsumerContract, QueryContract):
    """A classic queue with priorities."""

    @pytest.fixture
    def under_test(self, url: str, queue: str) -> TransportUnderTest:
        """Name a queue that nobody else uses."""
        shape = {"queue_type": "classic", "max_priority": 9}
        return TransportUnderTest(
            transport=RABBITMQ,
            producer={"url": url, "queue": queue, **shape},
            consumer={"url": url, "queues": [queue], **shape},
        )


class TestRedis(ProducerContract, ConsumerContract, QueryContract):
    """A Redis of the tests' own that keeps nothing on the disk."""

    @pytest.fixture
    def under_test(self, own_redis: OwnRedis, queue_name: str) -> TransportUnderTest:
        """Name a queue that nobody else uses."""
        return TransportUnderTest(
            transport=REDIS,
            producer={"url": own_redis.url, "queue": queue_name},
            consumer={"url": own_redis.url, "queues": [queue_name]},
            quick_redelivery={"lease": 2.0},
            system=own_redis,
        )


class TestDurableRedis(ProducerContract):
    """A Redis of the tests' own that writes everything down."""

    @pytest.fixture
    def under_test(self, own_durable_redis: OwnRedis, queue_name: str) -> TransportUnderTest:
        """Name a queue that nobody else uses."""
        return TransportUnderTest(
            transport=REDIS,
            producer={"url": own_durable_redis.url, "queue": queue_name, "durable": True},
            consumer={"url": own_durable_redis.url, "queues": [queue_name], "durable": True},
            system=own_durable_redis,
        )


class TestSQS(ProducerContract, ConsumerContract):
    """moto's server in the place of Amazon's; unlike that, it keeps the order."""

    @pytest.fixture
    def under_test(
        self,
        request: pytest.FixtureRequest,
        sqs: dict[str, Any],
        queue_name: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> TransportUnderTest:
        """Name a queue that nobody else uses."""
        hold = SQSBroker.hold

        def disordered(*arguments: Any) -> list[Taken]:
            return hold(*arguments)[::-1]

        if "ordering" in request.node.name:
            monkeypatch.setattr(SQSBroker, "hold", disordered)
        return TransportUnderTest(
            transport=SQS,
            producer={**sqs, "queue": queue_name},
            consumer={**sqs, "queues": [queue_name], "poll_interval": 0.05},
            quick_redelivery={"lease": 2.0},
            secrets=["hunter2"],
        )


class TestMemory(ProducerContract, ConsumerContract, QueryContract):
    """kombu's queues inside one process."""

    @pytest.fixture
    def under_test(self, queue_name: str) -> TransportUnderTest:
        """Name a queue that nobody else uses."""
        return TransportUnderTest(
            transport=KOMBU,
            producer={"url": "memory://", "queue": queue_name},
            consumer={"url": "memory://", "queues": [queue_name], "poll_interval": 0.002},
            is_in_process=True,
        )
