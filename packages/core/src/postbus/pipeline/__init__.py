"""How a dispatch runs: stages, middleware, handlers and sends, compiled into plans."""

from postbus.pipeline._calls import (
    Call,
    Failures,
    direct,
    invocable,
    is_awaitable,
    label_of,
    lifetime_call,
)
from postbus.pipeline._context import DispatchContext, Stage
from postbus.pipeline._deadlines import deadlines
from postbus.pipeline._invocations import Bare, Invocation, ask, broken, handle, limited, send
from postbus.pipeline._listeners import Listeners
from postbus.pipeline._middleware import Middleware
from postbus.pipeline._plans import Plan, Surroundings, Wrapped
from postbus.pipeline._routes import Router, Strength, Target
from postbus.pipeline._sending import (
    Asker,
    DispatchOptions,
    Sender,
    SendOptions,
    query_client,
    refuse_queries_only,
    send_options,
)

__all__ = [
    "Asker",
    "Bare",
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
    "Wrapped",
    "ask",
    "broken",
    "deadlines",
    "direct",
    "handle",
    "invocable",
    "is_awaitable",
    "label_of",
    "lifetime_call",
    "limited",
    "query_client",
    "refuse_queries_only",
    "send",
    "send_options",
]
