"""The container of the transport `zeromq`, for applications that wire with dependency_injector."""

from __future__ import annotations

from typing import ClassVar

from postbus.containers import TransportContainer
from postbus.transports import Transport
from postbus_zeromq.transport import ZEROMQ

__all__ = ["ZeroMQContainer"]


class ZeroMQContainer(TransportContainer):
    """Producer, consumer, plugin, router and buses over ZeroMQ, from one section."""

    transport: ClassVar[Transport] = ZEROMQ
