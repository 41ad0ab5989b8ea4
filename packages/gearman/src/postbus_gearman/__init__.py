"""gearman for postbus: background jobs for commands and events, foreground jobs as queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus_gearman.consumer import GearmanConsumer
from postbus_gearman.producer import GearmanProducer
from postbus_gearman.settings import GearmanConsumerSettings, GearmanProducerSettings
from postbus_gearman.transport import GEARMAN, GearmanTransport

if TYPE_CHECKING:
    from postbus_gearman.containers import GearmanContainer

__all__ = [
    "GEARMAN",
    "GearmanConsumer",
    "GearmanConsumerSettings",
    "GearmanContainer",
    "GearmanProducer",
    "GearmanProducerSettings",
    "GearmanTransport",
]


def __getattr__(name: str) -> object:
    """Import the container when it is asked for: only then is dependency_injector needed."""
    if name == "GearmanContainer":
        from postbus_gearman.containers import GearmanContainer

        return GearmanContainer
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
