"""The record that the entry point `files` names."""

from __future__ import annotations

from typing import Any

from postbus.transports import Capabilities, CommonSettings, Transport
from postbus_files._capabilities import capabilities_of
from postbus_files.consumer import FilesConsumer
from postbus_files.producer import FilesProducer
from postbus_files.settings import FilesConsumerSettings, FilesProducerSettings

__all__ = ["FILES", "FilesTransport"]


class FilesTransport(Transport):
    """A folder as a durable queue: no broker, nothing to install, survives crashes."""

    name = "files"
    producer_settings = FilesProducerSettings
    consumer_settings = FilesConsumerSettings

    def make_producer(self, settings: Any, common: CommonSettings) -> FilesProducer:
        """Build a producer; touches no disk."""
        return FilesProducer(settings, max_size_bytes=common.max_size_bytes)

    def make_consumer(self, settings: Any, common: CommonSettings) -> FilesConsumer:
        """Build a consumer; touches no disk."""
        return FilesConsumer(settings, common)

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do."""
        is_consumer = isinstance(settings, FilesConsumerSettings)
        guarantee = common.guarantee if is_consumer else None
        return capabilities_of(settings, common.max_size_bytes, guarantee)


FILES = FilesTransport()
