"""The three buses: one dispatch for each kind of message, in plain code and in asyncio."""

from postbus.buses._attachments import Handle, Plugin
from postbus.buses._bus import MessageBus
from postbus.buses._command import CommandBus
from postbus.buses._event import EventBus
from postbus.buses._query import QueryBus

__all__ = ["CommandBus", "EventBus", "Handle", "MessageBus", "Plugin", "QueryBus"]
