"""The memory transport's container keeps what every transport's container promises."""

from __future__ import annotations

from typing import Any

import pytest

from postbus.containers import MemoryContainer, TransportContainer
from postbus.testing import ContainerContract


class TestMemoryContainer(ContainerContract):
    """Queues of this process."""

    @pytest.fixture
    def container_class(self) -> type[TransportContainer]:
        """The container under test."""
        return MemoryContainer

    @pytest.fixture
    def section(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        """Name a queue of the test's own."""
        return {"address": request.node.nodeid}

    @pytest.fixture
    def peer_section(self, section: dict[str, Any]) -> dict[str, Any]:
        """Name the same queue."""
        return dict(section)
