"""Turn the ids that routes name into services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from postbus.unit import MappingServices

if TYPE_CHECKING:
    from postbus.unit import Services


class ServiceLocatorPlugin:
    """Looks ids that routes name up in *services*, for handlers and listeners alike (P08).

    A service is made on the first use of its route, or once per unit of work where its lifetime
    says so. A mapping from id to service will do. An id that nothing answers to fails the
    dispatch, naming the route (T04).
    """

    def __init__(self, services: Services | Mapping[str, Any]) -> None:
        self._services = MappingServices(services) if isinstance(services, Mapping) else services

    def attach(self, bus: Any) -> None:
        """Serve the ids of *bus*: `bus.utilize(plugin)`."""
        bus.attach_services(self._services)
