"""HTTP keeps every promise of the transport interface."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from postbus.testing import ConsumerContract, ProducerContract, QueryContract, TransportUnderTest
from postbus_http import HTTP

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class TestAcceptedHTTP(ProducerContract, ConsumerContract, QueryContract):
    """Requests and their responses, where a message is taken before it is handled."""

    @pytest.fixture
    def under_test(self, free_port: Callable[[], int]) -> TransportUnderTest:
        """Name an address of the test's own."""
        port = free_port()
        return TransportUnderTest(
            transport=HTTP,
            producer={
                "url": f"http://127.0.0.1:{port}/messages",
                "signing_keys": [KEY],
                "max_connections": 100,
                "resend": {"max_attempts": 100, "initial_delay": 0.05, "max_delay": 0.1},
            },
            consumer={
                "bind": f"127.0.0.1:{port}",
                "path": "/messages",
                "signing_keys": [KEY],
                "guarantee": "at-most-once",
            },
            secrets=(KEY,),
        )
