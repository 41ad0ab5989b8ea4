"""The record of the memory transport, and the keys that its sections may have."""

from __future__ import annotations

from typing import Any

import attrs

from postbus.memory._consumer import MemoryConsumer
from postbus.memory._producer import MemoryProducer
from postbus.memory._queues import CAPACITY, capabilities_of
from postbus.settings import setting
from postbus.transports import Capabilities, CommonSettings, Transport

__all__ = ["MEMORY", "MemoryConsumerSettings", "MemoryProducerSettings", "MemoryTransport"]

_ADDRESS = "the queue's name in this process; producers and consumers of one address share it"


@attrs.frozen(kw_only=True)
class MemoryProducerSettings:
    """The keys of a producer's section."""

    address: str = setting(default="default", doc=_ADDRESS)
    capacity: int = setting(
        default=CAPACITY,
        doc="how many messages may wait; a send that finds more is refused",
        minimum=1,
    )


@attrs.frozen(kw_only=True)
class MemoryConsumerSettings:
    """The keys of a consumer's section."""

    address: str = setting(default="default", doc=_ADDRESS)


class MemoryTransport(Transport):
    """The record that the entry point `memory` names."""

    name = "memory"
    producer_settings = MemoryProducerSettings
    consumer_settings = MemoryConsumerSettings

    def make_producer(self, settings: Any, common: CommonSettings) -> MemoryProducer:
        """Build a producer of `settings.address`."""
        return MemoryProducer(
            address=settings.address,
            capacity=settings.capacity,
            max_size_bytes=common.max_size_bytes,
        )

    def make_consumer(self, settings: Any, common: CommonSettings) -> MemoryConsumer:
        """Build a consumer of `settings.address`."""
        return MemoryConsumer(
            address=settings.address,
            max_size_bytes=common.max_size_bytes,
            guarantee=common.guarantee,
        )

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do."""
        is_consumer = isinstance(settings, MemoryConsumerSettings)
        return capabilities_of(common.max_size_bytes, common.guarantee if is_consumer else None)


MEMORY = MemoryTransport()
