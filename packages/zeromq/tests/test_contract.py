"""ZeroMQ keeps every promise of the transport interface."""

from __future__ import annotations

import pytest

from postbus.testing import ConsumerContract, ProducerContract, QueryContract, TransportUnderTest
from postbus_zeromq import ZEROMQ


class TestPushPull(ProducerContract, ConsumerContract):
    """Messages over PUSH and PULL."""

    @pytest.fixture
    def under_test(self, dsn: str) -> TransportUnderTest:
        """Name an address of the test's own."""
        return TransportUnderTest(
            transport=ZEROMQ,
            producer={"dsn": dsn, "send_timeout": 3.0},
            consumer={"dsn": dsn},
        )


class TestQueries(QueryContract):
    """Queries over DEALER and ROUTER."""

    @pytest.fixture
    def under_test(self, dsn: str) -> TransportUnderTest:
        """Name an address of the test's own."""
        return TransportUnderTest(
            transport=ZEROMQ,
            producer={"dsn": dsn, "rpc": True},
            consumer={"dsn": dsn, "rpc": True},
        )


class TestBoth(ProducerContract, ConsumerContract, QueryContract):
    """Messages and queries over one DEALER and one ROUTER."""

    @pytest.fixture
    def under_test(self, dsn: str) -> TransportUnderTest:
        """Name an address of the test's own."""
        return TransportUnderTest(
            transport=ZEROMQ,
            producer={"dsn": dsn, "rpc": "both", "send_timeout": 3.0},
            consumer={"dsn": dsn, "rpc": "both"},
        )
