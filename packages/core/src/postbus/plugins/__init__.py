"""Plugins: what `bus.utilize` takes beside routers."""

from postbus.plugins._correlation import CorrelationPlugin
from postbus.plugins._factory import MessageFactoryPlugin
from postbus.plugins._guards import AuthorizationService, FinalizeGuard, RouteGuard
from postbus.plugins._locate import ServiceLocatorPlugin
from postbus.plugins._logging import LoggingPlugin
from postbus.plugins._produce import MessageProducerPlugin
from postbus.plugins._strategies import (
    FinderInvokeStrategy,
    HandleCommandStrategy,
    OnEventStrategy,
)
from postbus.plugins._validation import ValidationPlugin

__all__ = [
    "AuthorizationService",
    "CorrelationPlugin",
    "FinalizeGuard",
    "FinderInvokeStrategy",
    "HandleCommandStrategy",
    "LoggingPlugin",
    "MessageFactoryPlugin",
    "MessageProducerPlugin",
    "OnEventStrategy",
    "RouteGuard",
    "ServiceLocatorPlugin",
    "ValidationPlugin",
]
