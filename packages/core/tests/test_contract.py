"""The memory transport keeps every promise of the interface."""

from __future__ import annotations

import pytest

from postbus.memory import MEMORY
from postbus.testing import (
    ConsumerContract,
    ProducerContract,
    QueryContract,
    TransportUnderTest,
)


class TestMemory(ProducerContract, ConsumerContract, QueryContract):
    """Queues of this process."""

    @pytest.fixture
    def under_test(self, request: pytest.FixtureRequest) -> TransportUnderTest:
        """Name a queue of the test's own."""
        section = {"address": request.node.nodeid}
        return TransportUnderTest(
            transport=MEMORY, producer=section, consumer=section, is_in_process=True
        )
