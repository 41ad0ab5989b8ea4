"""The record that the entry point `zeromq` names."""

from __future__ import annotations

from typing import Any

import zmq

from postbus.errors import UnsupportedError
from postbus.transports import Capabilities, CommonSettings, Transport
from postbus_zeromq.consumer import ZeroMQConsumer
from postbus_zeromq.dealer import ZeroMQDealerProducer
from postbus_zeromq.producer import ZeroMQProducer
from postbus_zeromq.router import ZeroMQRouterConsumer
from postbus_zeromq.settings import ZeroMQConsumerSettings, ZeroMQProducerSettings

__all__ = ["ZEROMQ", "ZeroMQTransport"]

# Before it, half-open connections stop a socket, and a crafted one its process.
# Source: CVE-2020-15166, CVE-2019-13132.
_OLDEST_LIBZMQ = (4, 3, 3)


class ZeroMQTransport(Transport):
    """ZeroMQ over PUSH and PULL, or with `rpc` over DEALER and ROUTER: no broker, at most once."""

    name = "zeromq"
    producer_settings = ZeroMQProducerSettings
    consumer_settings = ZeroMQConsumerSettings

    def make_producer(self, settings: Any, common: CommonSettings) -> ZeroMQProducer:
        """Build a producer; connects nothing.

        Raises:
            UnsupportedError: for a guarantee that there is not yet.
        """
        _refuse_what_cannot_be(common)
        cls = ZeroMQDealerProducer if settings.rpc else ZeroMQProducer
        return cls(settings, max_size_bytes=common.max_size_bytes)

    def make_consumer(self, settings: Any, common: CommonSettings) -> ZeroMQConsumer:
        """Build a consumer; binds nothing.

        Raises:
            UnsupportedError: for a guarantee that there is not yet.
        """
        _refuse_what_cannot_be(common)
        cls = ZeroMQRouterConsumer if settings.rpc else ZeroMQConsumer
        return cls(settings, max_size_bytes=common.max_size_bytes)

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what can be done: keep the order of one sender, and bring answers with `rpc`."""
        queries_only = settings.rpc is True and isinstance(settings, ZeroMQProducerSettings)
        return Capabilities(
            queries=bool(settings.rpc),
            queries_only=queries_only,
            ordering=not queries_only,
            max_size_bytes=settings.max_message_bytes or common.max_size_bytes,
        )


def _refuse_what_cannot_be(common: CommonSettings) -> None:
    if common.guarantee == "at-least-once":
        raise UnsupportedError(
            f"{common.name}: acknowledged delivery over ZeroMQ is not available yet, and what is "
            "on its way is lost when a consumer dies; leave out guarantee"
        )
    if zmq.zmq_version_info() < _OLDEST_LIBZMQ:
        raise UnsupportedError(
            f"{common.name}: libzmq {zmq.zmq_version()} has known holes; "
            f"install {'.'.join(map(str, _OLDEST_LIBZMQ))} or later"
        )


ZEROMQ = ZeroMQTransport()
