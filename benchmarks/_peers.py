"""The same work done by other libraries, each set up the way its users would for speed.

A function takes the number of middlewares or of listeners, and returns the call to be measured
and its argument. A library that is not installed shows as such in its rows.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

from _harness import peer

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = tuple[Callable[[Any], Any], Any]


FIELDS = [("number", int, 1)]
# The same field for pydantic's models, which python-cqrs builds on.
MODEL = {"__annotations__": {"number": int}, "number": 1}


@dataclasses.dataclass(slots=True)
class Ask:
    """A message for the libraries that take any object."""

    number: int = 1


def handle(message: Any) -> Any:
    """Read one field, as every handler here does."""
    return message.number


def pass_on(message: object, call_next: Callable[..., Any]) -> Any:
    return call_next(message)


def pymessagebus_command(middlewares: int) -> Call:
    bus = peer("pymessagebus").CommandBus(middlewares=[pass_on] * middlewares)
    bus.add_handler(Ask, handle)
    return bus.handle, Ask()


def pymessagebus_event(listeners: int) -> Call:
    bus = peer("pymessagebus").MessageBus()
    for _ in range(listeners):
        bus.add_handler(Ask, lambda asked: asked.number)
    return bus.handle, Ask()


def pyee_event(listeners: int) -> Call:
    emitter = peer("pyee.base").EventEmitter()
    for _ in range(listeners):
        emitter.on("asked", lambda asked: asked.number)
    return partial(emitter.emit, "asked"), Ask()


def blinker_event(listeners: int) -> Call:
    signal = peer("blinker").Signal()
    for _ in range(listeners):
        # A signal holds listeners weakly unless told otherwise.
        signal.connect(lambda asked: asked.number, weak=False)
    return signal.send, Ask()


def _mediatr(middlewares: int, handler: Callable[..., Any], behavior: Callable[..., Any]) -> Any:
    mediatr = peer("mediatr")
    request = dataclasses.make_dataclass(f"Request{middlewares}", FIELDS, slots=True)

    # mediatr reads the annotation of the first argument, and keeps handlers per process.
    handler.__annotations__ = {"request": request}
    mediatr.Mediator.register_handler(handler)
    for _ in range(middlewares):
        behavior.__annotations__ = {"request": request}
        mediatr.Mediator.register_behavior(behavior)
    return mediatr.Mediator(), request()


def mediatr_command(middlewares: int) -> Call:
    def handler(request: Any) -> Any:
        return request.number

    def behavior(request: object, next: Callable[..., Any]) -> Any:  # noqa: A002  mediatr's name
        return next()

    mediator, request = _mediatr(middlewares, handler, behavior)
    return mediator.send, request


def mediatr_async_command(middlewares: int) -> Call:
    async def handler(request: Any) -> Any:
        return request.number

    async def behavior(request: object, next: Callable[..., Any]) -> Any:  # noqa: A002  as above
        return await next()

    mediator, request = _mediatr(middlewares, handler, behavior)
    return mediator.send_async, request


class Container:
    """The cheapest container that diator and python-cqrs accept: one instance of each class."""

    def __init__(self) -> None:
        self._instances: dict[type, Any] = {}

    async def resolve(self, wanted: type) -> Any:
        instance = self._instances.get(wanted)
        if instance is None:
            instance = self._instances[wanted] = wanted()
        return instance


class _Handler:
    events = ()

    async def handle(self, request: Any) -> Any:
        return request.number


class _Middleware:
    async def __call__(self, request: object, handle: Callable[..., Any]) -> Any:
        return await handle(request)


def _chain(module: Any, middlewares: int) -> Any:
    chain = module.MiddlewareChain()
    for _ in range(middlewares):
        chain.add(_Middleware())
    return chain


def diator_command(middlewares: int) -> Call:
    requests = peer("diator.requests")
    request = dataclasses.make_dataclass("Request", FIELDS, bases=(requests.Request,), frozen=True)
    request_map = requests.RequestMap()
    request_map.bind(request, type("Handler", (_Handler,), {"events": []}))
    chain = _chain(peer("diator.middlewares"), middlewares)
    mediator = peer("diator.mediator").Mediator(request_map, Container(), middleware_chain=chain)
    return mediator.send, request()


def diator_event(listeners: int) -> Call:
    events = peer("diator.events")
    event = dataclasses.make_dataclass("Asked", FIELDS, bases=(events.DomainEvent,), frozen=True)
    event_map = events.EventMap()
    for _ in range(listeners):
        event_map.bind(event, type("Listener", (_Handler,), {}))
    return events.EventEmitter(event_map, Container()).emit, event()


def cqrs_command(middlewares: int) -> Call:
    request = type("Request", (peer("cqrs.models.request").Request,), dict(MODEL))
    handler = type("Handler", (_Handler, peer("cqrs.handlers.request").RequestHandler), {})
    request_map = peer("cqrs.mapping.requests").RequestMap()
    request_map.bind(request, handler)
    chain = _chain(peer("cqrs.middlewares.base"), middlewares)
    mediators = peer("cqrs.mediators.request")
    mediator = mediators.RequestMediator(request_map, Container(), middleware_chain=chain)
    return mediator.send, request()


def cqrs_event(listeners: int) -> Call:
    event = type("Asked", (peer("cqrs.models.event").DomainEvent,), dict(MODEL))
    listener = peer("cqrs.handlers.event").EventHandler
    event_map = peer("cqrs.mapping.events").EventMap()
    for _ in range(listeners):
        event_map.bind(event, type("Listener", (_Handler, listener), {}))
    mediator = peer("cqrs.mediators.event").EventMediator(event_map, Container())
    return mediator.send, event()
