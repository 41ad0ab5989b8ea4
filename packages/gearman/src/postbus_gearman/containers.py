"""The container of `gearman`, for applications that wire with dependency_injector."""

from __future__ import annotations

from typing import ClassVar

from postbus.containers import TransportContainer
from postbus.transports import Transport
from postbus_gearman.transport import GEARMAN

__all__ = ["GearmanContainer"]


class GearmanContainer(TransportContainer):
    """Producer, consumer, plugin, router and buses over gearman, from one section."""

    transport: ClassVar[Transport] = GEARMAN
