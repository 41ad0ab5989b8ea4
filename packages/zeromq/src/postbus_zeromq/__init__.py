"""ZeroMQ for postbus: messages over PUSH and PULL, queries over DEALER and ROUTER, no broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus_zeromq.consumer import ZeroMQConsumer
from postbus_zeromq.dealer import ZeroMQDealerProducer
from postbus_zeromq.producer import ZeroMQProducer
from postbus_zeromq.router import ZeroMQRouterConsumer
from postbus_zeromq.settings import ZeroMQConsumerSettings, ZeroMQProducerSettings
from postbus_zeromq.transport import ZEROMQ, ZeroMQTransport

if TYPE_CHECKING:
    from postbus_zeromq.containers import ZeroMQContainer

__all__ = [
    "ZEROMQ",
    "ZeroMQConsumer",
    "ZeroMQConsumerSettings",
    "ZeroMQContainer",
    "ZeroMQDealerProducer",
    "ZeroMQProducer",
    "ZeroMQProducerSettings",
    "ZeroMQRouterConsumer",
    "ZeroMQTransport",
]


def __getattr__(name: str) -> object:
    """Import the container when it is asked for: only then is dependency_injector needed."""
    if name == "ZeroMQContainer":
        from postbus_zeromq.containers import ZeroMQContainer

        return ZeroMQContainer
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
