"""A folder keeps every promise of the transport interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from postbus.testing import (
    ConsumerContract,
    ContainerContract,
    ProducerContract,
    QueryContract,
    TransportUnderTest,
)
from postbus_files import FILES, FilesContainer


class TestFiles(ProducerContract, ConsumerContract, QueryContract):
    """A folder of this machine."""

    @pytest.fixture
    def under_test(self, tmp_path: Path) -> TransportUnderTest:
        """Name a folder of the test's own."""
        section = {"path": str(tmp_path / "queue")}
        return TransportUnderTest(
            transport=FILES,
            producer=section,
            consumer=section,
            quick_redelivery={"lease": 2.0},
        )


class TestContainer(ContainerContract):
    """The same providers as every transport's."""

    @pytest.fixture
    def container_class(self) -> type[FilesContainer]:
        """Return ours."""
        return FilesContainer

    @pytest.fixture
    def section(self, tmp_path: Path) -> dict[str, Any]:
        """Name a folder of the test's own."""
        return {"path": str(tmp_path / "queue")}

    @pytest.fixture
    def peer_section(self, section: dict[str, Any]) -> dict[str, Any]:
        """Name the same folder."""
        return dict(section)
