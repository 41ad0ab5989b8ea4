"""What beanstalkd can do, as it is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus.transports import Capabilities

if TYPE_CHECKING:
    from postbus.transports import CommonSettings
    from postbus_beanstalkd.settings import (
        BeanstalkdConsumerSettings,
        BeanstalkdProducerSettings,
    )

__all__ = ["capabilities_of"]

# The server counts whole seconds.
_RESOLUTION = 1.0


def capabilities_of(
    settings: BeanstalkdProducerSettings | BeanstalkdConsumerSettings, common: CommonSettings
) -> Capabilities:
    """Return what a producer or consumer with *settings* can do.

    With the guarantee at-most-once a job is deleted when it is taken, so nothing comes back.
    """
    acknowledge = common.guarantee != "at-most-once"
    lease = getattr(settings, "lease", None) if acknowledge else None
    return Capabilities(
        acknowledge=acknowledge,
        redeliver_on_crash=acknowledge,
        durable=settings.durable,
        queries=True,
        retry=acknowledge,
        delay=_RESOLUTION,
        priority=True,
        ordering=True,
        max_size_bytes=min(common.max_size_bytes, settings.max_job_bytes),
        count=True,
        # `peek-ready` shows the next job, and there is no way to the one behind it.
        purge=True,
        lease=lease,
    )
