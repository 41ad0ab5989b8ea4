"""What RabbitMQ can do, as it is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus.transports import Capabilities
from postbus_kombu._delays import RESOLUTION

if TYPE_CHECKING:
    from postbus.transports import CommonSettings
    from postbus_kombu.settings import RabbitMQConsumerSettings, RabbitMQProducerSettings

__all__ = ["capabilities_of"]


def capabilities_of(
    settings: RabbitMQProducerSettings | RabbitMQConsumerSettings, common: CommonSettings
) -> Capabilities:
    """Return what a producer or consumer with *settings* can do.

    With the guarantee at-most-once a message is acknowledged when it is taken, so nothing comes
    back.
    """
    acknowledge = common.guarantee != "at-most-once"
    return Capabilities(
        acknowledge=acknowledge,
        redeliver_on_crash=acknowledge,
        durable=True,
        queries=True,
        retry=acknowledge,
        delay=RESOLUTION,
        priority=settings.max_priority is not None,
        expiry=True,
        ordering=True,
        max_size_bytes=common.max_size_bytes,
        count=True,
        purge=True,
    )
