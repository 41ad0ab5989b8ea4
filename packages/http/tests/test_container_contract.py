"""The container keeps what every transport's promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from postbus.containers import TransportContainer
from postbus.testing import ContainerContract
from postbus_http import HTTPContainer


@pytest.fixture
def port(free_port: Callable[[], int]) -> int:
    """Name one port for both sides."""
    return free_port()


class TestHTTPContainer(ContainerContract):
    """Plain HTTP on the loopback."""

    @pytest.fixture
    def container_class(self) -> type[TransportContainer]:
        """The container under test."""
        return HTTPContainer

    @pytest.fixture
    def section(self, port: int) -> dict[str, Any]:
        """Post to an address of the test's own."""
        return {"url": f"http://127.0.0.1:{port}/messages"}

    @pytest.fixture
    def peer_section(self, port: int) -> dict[str, Any]:
        """Listen there."""
        return {"bind": f"127.0.0.1:{port}", "path": "/messages"}


class TestSignedAndResending(TestHTTPContainer):
    """The same with signatures and repeated requests."""

    _key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

    @pytest.fixture
    def section(self, port: int) -> dict[str, Any]:
        """Sign, and send again what failed."""
        url = f"http://127.0.0.1:{port}/messages"
        return {"url": url, "signing_keys": [self._key], "resend": {"initial_delay": 0.01}}

    @pytest.fixture
    def peer_section(self, port: int) -> dict[str, Any]:
        """Verify."""
        return {
            "bind": f"127.0.0.1:{port}",
            "path": "/messages",
            "signing_keys": [self._key],
        }
