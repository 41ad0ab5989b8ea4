"""beanstalkd keeps every promise of the transport interface, and so do its containers."""

from __future__ import annotations

from typing import Any

import pytest

from postbus.testing import (
    ConsumerContract,
    ContainerContract,
    ProducerContract,
    QueryContract,
    TransportUnderTest,
)
from postbus_beanstalkd import BEANSTALKD, BeanstalkdContainer

# What conftest.py calls Server.
Server = Any
# The server counts whole seconds, and in the last of them gives its holder nothing more.
SHORTEST_TTR = 2


class TestBeanstalkd(ProducerContract, ConsumerContract, QueryContract):
    """A server of this machine that keeps jobs in memory."""

    @pytest.fixture
    def under_test(self, forgetful_server: Server, tube: str) -> TransportUnderTest:
        """Hand the server over, to be killed and started again."""
        return make_under_test(forgetful_server, tube, durable=False)


class TestWithBinlog(ProducerContract, ConsumerContract, QueryContract):
    """A server that keeps jobs on the disk."""

    @pytest.fixture
    def under_test(self, own_server: Server, tube: str) -> TransportUnderTest:
        """Hand the server over, to be killed and started again."""
        return make_under_test(own_server, tube, durable=True)


def make_under_test(server: Server, tube: str, *, durable: bool) -> TransportUnderTest:
    return TransportUnderTest(
        transport=BEANSTALKD,
        producer={
            "address": server.address,
            "tube": tube,
            "ttr": SHORTEST_TTR,
            "durable": durable,
        },
        consumer={"address": server.address, "tubes": [tube], "durable": durable},
        quick_redelivery={"lease": 1.0},
        system=server,
    )


class TestContainer(ContainerContract):
    """The same providers as every transport's."""

    @pytest.fixture
    def container_class(self) -> type[BeanstalkdContainer]:
        """Return ours."""
        return BeanstalkdContainer

    @pytest.fixture
    def section(self, server: Server, tube: str) -> dict[str, Any]:
        """Name a tube that nobody else uses."""
        return {"address": server.address, "tube": tube}

    @pytest.fixture
    def peer_section(self, server: Server, tube: str) -> dict[str, Any]:
        """Name the same tube."""
        return {"address": server.address, "tubes": [tube]}
