"""Containers of `dependency_injector`: postbus in one, and every transport in one of its own.

The only part of core that imports `dependency_injector`. A container here is thin: it hands a
configuration and services to `postbus.runtime`, and what that returns stands behind providers.
"""

from postbus.containers._memory import MemoryContainer
from postbus.containers._postbus import PostbusContainer
from postbus.containers._services import ContainerServices
from postbus.containers._transport import TransportContainer

__all__ = ["ContainerServices", "MemoryContainer", "PostbusContainer", "TransportContainer"]
