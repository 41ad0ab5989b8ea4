"""The container of the transport `http`, for applications that wire with dependency_injector."""

from __future__ import annotations

from typing import ClassVar

from postbus.containers import TransportContainer
from postbus.transports import Transport
from postbus_http.transport import HTTP

__all__ = ["HTTPContainer"]


class HTTPContainer(TransportContainer):
    """Producer, consumer, plugin, router and buses over HTTP, from one section."""

    transport: ClassVar[Transport] = HTTP
