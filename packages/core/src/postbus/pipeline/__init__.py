"""How a dispatch runs: stages, middleware, handlers and sends, compiled into plans."""

from postbus.pipeline._calls import (
    Call,
    Failures,
    direct,
    is_awaitable,
    label_of,
    lifetime_call,
)
from postbus.pipeline._context import DispatchContext, Stage
from postbus.pipeline._deadlines import deadlines
from postbus.pipeline._invocations import Invocation, ask, broken, handle, limited, send
from postbus.pipeline._listeners import Listeners
from postbus.pipeline._middleware import Middleware
from postbus.pipeline._plans import Plan, Surroundings
from postbus.pipeline._routes import Router, Strength, Target
from postbus.pipeline._sending import (
    Asker,
    DispatchOptions,
    Sender,
    SendOptions,
    query_client,
    send_options,
)

__all__ = [
    "Asker",
    "Call",
    "DispatchContext",
    "DispatchOptions",
    "Failures",
    "Invocation",
    "Listeners",
    "Middleware",
    "Plan",
    "Router",
    "SendOptions",
    "Sender",
    "Stage",
    "Strength",
    "Surroundings",
    "Target",
    "ask",
    "broken",
    "deadlines",
    "direct",
    "handle",
    "is_awaitable",
    "label_of",
    "lifetime_call",
    "limited",
    "query_client",
    "send",
    "send_options",
]
