"""Routers: who handles a name, and where it goes first."""

from postbus.routers._async_switch import AsyncSwitchMessageRouter
from postbus.routers._routes import CommandRouter, EventRouter, QueryRouter, RegexRouter, Routes
from postbus.routers._services import ServiceLocatorEventRouter, ServiceLocatorRouter

__all__ = [
    "AsyncSwitchMessageRouter",
    "CommandRouter",
    "EventRouter",
    "QueryRouter",
    "RegexRouter",
    "Routes",
    "ServiceLocatorEventRouter",
    "ServiceLocatorRouter",
]
