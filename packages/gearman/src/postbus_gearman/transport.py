"""The record that the entry point `gearman` names."""

from __future__ import annotations

from typing import Any

from postbus.transports import Capabilities, CommonSettings, Transport
from postbus_gearman._capabilities import capabilities_of
from postbus_gearman.consumer import GearmanConsumer
from postbus_gearman.producer import GearmanProducer
from postbus_gearman.settings import GearmanConsumerSettings, GearmanProducerSettings

__all__ = ["GEARMAN", "GearmanTransport"]


class GearmanTransport(Transport):
    """gearman: job servers between clients and workers, with answers."""

    name = "gearman"
    producer_settings = GearmanProducerSettings
    consumer_settings = GearmanConsumerSettings

    def make_producer(self, settings: Any, common: CommonSettings) -> GearmanProducer:
        """Build a producer; connects nothing."""
        return GearmanProducer(settings, common)

    def make_consumer(self, settings: Any, common: CommonSettings) -> GearmanConsumer:
        """Build a consumer; connects nothing."""
        return GearmanConsumer(settings, common)

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do."""
        return capabilities_of(settings, common)


GEARMAN = GearmanTransport()
