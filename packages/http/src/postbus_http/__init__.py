"""HTTP for postbus: POST messages to a remote system, receive them in any ASGI application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus_http.consumer import HTTPConsumer
from postbus_http.endpoint import MessageEndpoint
from postbus_http.errors import StatusError
from postbus_http.producer import HTTPProducer
from postbus_http.settings import HTTPConsumerSettings, HTTPProducerSettings, ResendSettings
from postbus_http.signatures import WebhookKeys
from postbus_http.transport import HTTP, HTTPTransport

if TYPE_CHECKING:
    from postbus_http.containers import HTTPContainer

__all__ = [
    "HTTP",
    "HTTPConsumer",
    "HTTPConsumerSettings",
    "HTTPContainer",
    "HTTPProducer",
    "HTTPProducerSettings",
    "HTTPTransport",
    "MessageEndpoint",
    "ResendSettings",
    "StatusError",
    "WebhookKeys",
]


def __getattr__(name: str) -> object:
    """Import the container when it is asked for: only then is dependency_injector needed."""
    if name == "HTTPContainer":
        from postbus_http.containers import HTTPContainer

        return HTTPContainer
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
