"""One interface for handling a message now or later: the daily names.

Everything here is importable without any client library; what is needed less often stands in
`postbus.errors`, `postbus.plugins`, `postbus.wire`, `postbus.transports`, `postbus.containers`
and `postbus.testing`.
"""

from postbus.buses import CommandBus, EventBus, Plugin, QueryBus
from postbus.catalog import MessageCatalog
from postbus.messages import AsyncMessage, Command, Envelope, Event, MessageKind, Query
from postbus.pipeline import DispatchContext, Stage
from postbus.plugins import MessageProducerPlugin, ServiceLocatorPlugin
from postbus.promises import Promise
from postbus.routers import (
    AsyncSwitchMessageRouter,
    CommandRouter,
    EventRouter,
    QueryRouter,
    RegexRouter,
)
from postbus.runtime import Postbus, build
from postbus.transports import Capabilities, MessageConsumer, MessageProducer
from postbus.worker import NeverRetry, RetryPolicy, Worker

__all__ = [
    "AsyncMessage",
    "AsyncSwitchMessageRouter",
    "Capabilities",
    "Command",
    "CommandBus",
    "CommandRouter",
    "DispatchContext",
    "Envelope",
    "Event",
    "EventBus",
    "EventRouter",
    "MessageCatalog",
    "MessageConsumer",
    "MessageKind",
    "MessageProducer",
    "MessageProducerPlugin",
    "NeverRetry",
    "Plugin",
    "Postbus",
    "Promise",
    "Query",
    "QueryBus",
    "QueryRouter",
    "RegexRouter",
    "RetryPolicy",
    "ServiceLocatorPlugin",
    "Stage",
    "Worker",
    "build",
]
