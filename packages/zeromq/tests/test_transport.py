"""The record that the entry point names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import zmq

import postbus_zeromq
from postbus.errors import UnsupportedError
from postbus.transports import Capabilities, CommonSettings, Transport
from postbus_zeromq import (
    ZEROMQ,
    ZeroMQConsumer,
    ZeroMQConsumerSettings,
    ZeroMQDealerProducer,
    ZeroMQProducer,
    ZeroMQProducerSettings,
    ZeroMQRouterConsumer,
)

COMMON = CommonSettings(name="mail", max_size_bytes=2000)


class TestRecord:
    def test_names_itself_and_its_settings(self) -> None:
        """It is what discovery expects of a transport."""
        assert isinstance(ZEROMQ, Transport)
        assert ZEROMQ.name == "zeromq"
        assert ZEROMQ.producer_settings is ZeroMQProducerSettings
        assert ZEROMQ.consumer_settings is ZeroMQConsumerSettings

    def test_builds_a_producer_and_a_consumer(self) -> None:
        """Neither opens a socket: that is for the first use (Z04)."""
        producer = ZEROMQ.make_producer(ZeroMQProducerSettings(), COMMON)
        assert isinstance(producer, ZeroMQProducer)
        assert isinstance(ZEROMQ.make_consumer(ZeroMQConsumerSettings(), COMMON), ZeroMQConsumer)
        producer.close()

    def test_promises_order_and_a_size_and_nothing_else(self) -> None:
        """The capabilities are the honest ones of PUSH and PULL, before and after building."""
        expected = Capabilities(ordering=True, max_size_bytes=2000)
        settings = ZeroMQProducerSettings()
        assert expected == ZEROMQ.capabilities(settings, COMMON)
        assert expected == ZEROMQ.make_producer(settings, COMMON).capabilities
        assert expected == ZEROMQ.make_consumer(ZeroMQConsumerSettings(), COMMON).capabilities

    def test_takes_the_sections_own_limit_before_the_common_one(self) -> None:
        """`max_message_bytes` is the limit where it is given."""
        settings = ZeroMQConsumerSettings(max_message_bytes=10)
        assert ZEROMQ.capabilities(settings, COMMON).max_size_bytes == 10
        assert ZEROMQ.make_consumer(settings, COMMON).capabilities.max_size_bytes == 10

    @pytest.mark.parametrize("rpc", [True, "both"])
    def test_rpc_makes_those_that_ask_and_answer(self, rpc: bool) -> None:
        """What the capabilities say before building is what is built (Z01, Z02)."""
        settings = ZeroMQProducerSettings(rpc=rpc)
        producer = ZEROMQ.make_producer(settings, COMMON)
        assert isinstance(producer, ZeroMQDealerProducer)
        assert producer.capabilities == ZEROMQ.capabilities(settings, COMMON)
        assert producer.capabilities.queries
        assert producer.capabilities.queries_only == (rpc is True)
        producer.close()
        consumer = ZEROMQ.make_consumer(ZeroMQConsumerSettings(rpc=rpc), COMMON)
        assert isinstance(consumer, ZeroMQRouterConsumer)
        assert consumer.capabilities == Capabilities(
            queries=True, ordering=True, max_size_bytes=2000
        )
        assert consumer.capabilities == ZEROMQ.capabilities(
            ZeroMQConsumerSettings(rpc=rpc), COMMON
        )


class TestRefusals:
    def test_acknowledged_delivery_is_not_available_yet(self) -> None:
        """A guarantee that cannot be kept is refused when it is built."""
        common = CommonSettings(name="mail", guarantee="at-least-once")
        with pytest.raises(UnsupportedError, match=r"acknowledged delivery .* not available yet"):
            ZEROMQ.make_consumer(ZeroMQConsumerSettings(), common)
        with pytest.raises(UnsupportedError, match="leave out guarantee"):
            ZEROMQ.make_producer(ZeroMQProducerSettings(), common)

    def test_at_most_once_is_what_it_gives(self) -> None:
        """A demand that is met is no reason to refuse."""
        common = CommonSettings(name="mail", guarantee="at-most-once")
        ZEROMQ.make_producer(ZeroMQProducerSettings(), common).close()

    def test_a_libzmq_with_known_holes_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before 4.3.3 half-open connections stop a listener (A13)."""
        monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 2))
        with pytest.raises(UnsupportedError, match=r"install 4\.3\.3 or later"):
            ZEROMQ.make_consumer(ZeroMQConsumerSettings(), COMMON)


class TestImport:
    def test_leaves_dependency_injector_alone(self) -> None:
        """The container is imported when somebody asks for it, not before."""
        code = (
            "import sys, postbus_zeromq; assert 'dependency_injector' not in sys.modules; "
            "assert 'ZeroMQContainer' in postbus_zeromq.__all__"
        )
        subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))

    def test_knows_its_names(self) -> None:
        """A name that is not there is an AttributeError, as of any module."""
        with pytest.raises(AttributeError, match="no attribute 'ZeroMQBroker'"):
            postbus_zeromq.ZeroMQBroker  # noqa: B018  that is the test
