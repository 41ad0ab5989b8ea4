"""Plugins: what `bus.utilize` takes beside routers."""

from postbus.plugins._locate import ServiceLocatorPlugin
from postbus.plugins._produce import MessageProducerPlugin

__all__ = ["MessageProducerPlugin", "ServiceLocatorPlugin"]
