"""The record that the entry point `http` names."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from postbus.errors import UnsupportedError
from postbus.transports import Capabilities, CommonSettings, Transport
from postbus_http._capabilities import capabilities_of
from postbus_http.consumer import HTTPConsumer
from postbus_http.producer import HTTPProducer
from postbus_http.settings import HTTPConsumerSettings, HTTPProducerSettings

__all__ = ["HTTP", "HTTPTransport"]


class HTTPTransport(Transport):
    """HTTP: POST to a remote system, and a server that receives."""

    name = "http"
    producer_settings = HTTPProducerSettings
    consumer_settings = HTTPConsumerSettings

    def make_producer(self, settings: Any, common: CommonSettings) -> HTTPProducer:
        """Build a producer; reads certificates, connects nothing.

        Raises:
            UnsupportedError: HTTP/2 was asked for, and its package is not installed.
            RejectedError: a certificate or its key cannot be read.
        """
        return HTTPProducer(settings, max_size_bytes=common.max_size_bytes)

    def make_consumer(self, settings: Any, common: CommonSettings) -> HTTPConsumer:
        """Build a consumer; listens nowhere.

        Raises:
            UnsupportedError: the server's packages are not installed.
        """
        if find_spec("uvicorn") is None or find_spec("httptools") is None:
            raise UnsupportedError(
                f"{common.name}: receiving over HTTP by configuration needs "
                "`postbus-http[server]`; or mount a MessageEndpoint into an application"
            )
        return HTTPConsumer(settings, common)

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do."""
        return capabilities_of(settings, common.max_size_bytes, common.guarantee)


HTTP = HTTPTransport()
