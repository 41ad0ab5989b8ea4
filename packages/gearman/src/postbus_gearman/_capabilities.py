"""What gearman can do, as it is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus.transports import Capabilities

if TYPE_CHECKING:
    from postbus.transports import CommonSettings
    from postbus_gearman.settings import GearmanConsumerSettings, GearmanProducerSettings

__all__ = ["capabilities_of"]


def capabilities_of(
    settings: GearmanProducerSettings | GearmanConsumerSettings, common: CommonSettings
) -> Capabilities:
    """Return what a producer or consumer with *settings* can do.

    Several servers keep no order between them. gearmand has delayed jobs, but they hold up others
    that are less urgent, and nobody is woken for them when they are due: none is declared.
    """
    return Capabilities(
        acknowledge=True,
        redeliver_on_crash=True,
        durable=settings.durable,
        queries=True,
        retry=True,
        priority=True,
        ordering=len(settings.servers) == 1,
        max_size_bytes=common.max_size_bytes,
        count=True,
    )
