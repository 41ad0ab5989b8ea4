"""What a folder can do, as it is configured."""

from __future__ import annotations

from postbus.transports import Capabilities
from postbus_files.settings import FilesConsumerSettings, FilesProducerSettings

__all__ = ["capabilities_of"]


def capabilities_of(
    settings: FilesProducerSettings | FilesConsumerSettings,
    max_size_bytes: int,
    guarantee: str | None = None,
) -> Capabilities:
    """Return what a producer or consumer with *settings* can do.

    With the guarantee at-most-once a message is removed when it is taken, so nothing comes back.
    """
    acknowledge = guarantee != "at-most-once"
    lease = settings.lease if isinstance(settings, FilesConsumerSettings) else None
    return Capabilities(
        acknowledge=acknowledge,
        redeliver_on_crash=acknowledge,
        durable=settings.sync,
        queries=True,
        retry=acknowledge,
        delay=settings.poll_interval,
        priority=True,
        expiry=True,
        ordering=True,
        max_size_bytes=max_size_bytes,
        count=True,
        inspect=True,
        purge=True,
        lease=lease if acknowledge else None,
    )
