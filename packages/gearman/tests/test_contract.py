"""gearman keeps every promise of the transport interface, and so do its containers."""

from __future__ import annotations

from typing import Any

import pytest

from postbus.containers import TransportContainer
from postbus.testing import (
    ConsumerContract,
    ContainerContract,
    ProducerContract,
    QueryContract,
    TransportUnderTest,
)
from postbus_gearman import GEARMAN, GearmanContainer

# What conftest.py calls Server.
Server = Any


class TestGearman(ProducerContract, ConsumerContract, QueryContract):
    """A server that keeps jobs in memory."""

    @pytest.fixture
    def under_test(self, memory_server: Server, function: str) -> TransportUnderTest:
        """Hand the server over, to be killed and started again."""
        return make_under_test(memory_server, function, durable=False)


class TestWithPersistentQueue(ProducerContract, ConsumerContract, QueryContract):
    """A server that keeps jobs on the disk."""

    @pytest.fixture
    def under_test(self, own_server: Server, function: str) -> TransportUnderTest:
        """Hand the server over, to be killed and started again."""
        return make_under_test(own_server, function, durable=True)


class TestGearmanContainer(ContainerContract):
    """Over a function of the test's own."""

    @pytest.fixture
    def container_class(self) -> type[TransportContainer]:
        """The container under test."""
        return GearmanContainer

    @pytest.fixture
    def section(self, server: Server, function: str) -> dict[str, Any]:
        """Submit to a function that nobody else works."""
        return {"servers": [server.address], "function": function}

    @pytest.fixture
    def peer_section(self, server: Server, function: str) -> dict[str, Any]:
        """Work it."""
        return {"servers": [server.address], "functions": [function]}


def make_under_test(server: Server, function: str, *, durable: bool) -> TransportUnderTest:
    return TransportUnderTest(
        transport=GEARMAN,
        producer={"servers": [server.address], "function": function, "durable": durable},
        consumer={"servers": [server.address], "functions": [function], "durable": durable},
        system=server,
    )
