"""The record that the entry point `beanstalkd` names."""

from __future__ import annotations

from typing import Any

from postbus.transports import Capabilities, CommonSettings, Transport
from postbus_beanstalkd._capabilities import capabilities_of
from postbus_beanstalkd.consumer import BeanstalkdConsumer
from postbus_beanstalkd.producer import BeanstalkdProducer
from postbus_beanstalkd.settings import BeanstalkdConsumerSettings, BeanstalkdProducerSettings

__all__ = ["BEANSTALKD", "BeanstalkdTransport"]


class BeanstalkdTransport(Transport):
    """beanstalkd: a small, fast work queue with priorities, delays and leases."""

    name = "beanstalkd"
    producer_settings = BeanstalkdProducerSettings
    consumer_settings = BeanstalkdConsumerSettings

    def make_producer(self, settings: Any, common: CommonSettings) -> BeanstalkdProducer:
        """Build a producer; connects nothing."""
        return BeanstalkdProducer(settings, common)

    def make_consumer(self, settings: Any, common: CommonSettings) -> BeanstalkdConsumer:
        """Build a consumer; connects nothing."""
        return BeanstalkdConsumer(settings, common)

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do."""
        return capabilities_of(settings, common)


BEANSTALKD = BeanstalkdTransport()
