"""What a dispatch costs inside one process, against the least Python that could do the same.

The limits are a look-up by type and a call (`handlers[type(message)](message)`), a loop over
listeners, and closures folded round the handler beforehand. Messages are built outside the
measured loop; a handler reads one field.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import _peers
import attrs
from _harness import Table, clocked, run, timed

from postbus import (
    Command,
    CommandBus,
    CommandRouter,
    Event,
    EventBus,
    EventRouter,
    Query,
    QueryBus,
    QueryRouter,
    RegexRouter,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIDDLEWARES = 3
LOOK_UP = "look-up by type + call"
AWAITED = "look-up by type + await"
LOOP = "loop over listeners"
CLOSURES = "prebuilt closures"
BY_HAND = "(context, call_next) by hand"


@attrs.frozen
class Order(Command):
    number: int = 1


@attrs.frozen
class Ordered(Event):
    number: int = 1


@attrs.frozen
class Find(Query[int]):
    number: int = 1


@attrs.frozen
class Repeated(Command, name="orders.v500.eu.place"):
    number: int = 1


def handle(message: Any) -> None:
    _ = message.number


async def ahandle(message: Any) -> None:
    _ = message.number


def answer(message: Any) -> Any:
    return message.number


def pass_on(context: object, call_next: Callable[[], Any]) -> Any:
    return call_next()


async def apass_on(context: object, call_next: Callable[[], Any]) -> Any:
    return await call_next()


def command_bus(
    handler: Callable[..., Any],
    *middlewares: Callable[..., Any],
    nested: Literal["queue", "inline"] = "inline",
) -> CommandBus:
    bus = CommandBus(nested=nested)
    router = CommandRouter()
    router.route(Order).to(handler)
    bus.utilize(router)
    for middleware in middlewares:
        bus.wrap(middleware)
    return bus


def event_bus(listener: Callable[..., Any], listeners: int) -> EventBus:
    bus = EventBus()
    router = EventRouter()
    route = router.route(Ordered).to(listener)
    for _ in range(listeners - 1):
        route = route.and_to(listener)
    bus.utilize(router)
    return bus


def query_bus() -> QueryBus:
    bus = QueryBus()
    router = QueryRouter()
    router.route(Find).to(answer)
    bus.utilize(router)
    return bus


def look_up(handler: Callable[..., Any], message: object) -> Callable[[int], None]:
    handlers = {type(message): handler}

    def loop(n: int) -> None:
        for _ in range(n):
            handlers[type(message)](message)

    return loop


def alook_up(handler: Callable[..., Any], message: object) -> Callable[[int], Any]:
    handlers = {type(message): handler}

    async def loop(n: int) -> None:
        for _ in range(n):
            await handlers[type(message)](message)

    return loop


def each(listeners: int) -> Callable[[int], None]:
    message = Ordered()
    handlers = {Ordered: (handle,) * listeners}

    def loop(n: int) -> None:
        for _ in range(n):
            for listener in handlers[type(message)]:
                listener(message)

    return loop


def aeach(listeners: int) -> Callable[[int], Any]:
    message = Ordered()
    handlers = {Ordered: (ahandle,) * listeners}

    async def loop(n: int) -> None:
        for _ in range(n):
            for listener in handlers[type(message)]:
                await listener(message)

    return loop


def gathered(listeners: int) -> Callable[[object], Any]:
    handlers = (ahandle,) * listeners

    async def call(message: object) -> None:
        await asyncio.gather(*[handler(message) for handler in handlers])

    return call


def folded(handler: Callable[..., Any], middleware: Callable[..., Any]) -> Callable[..., Any]:
    """Fold middlewares of (message, call_next) round a handler."""
    for _ in range(MIDDLEWARES):

        def call(message: object, call_next: Callable[..., Any] = handler) -> Any:
            return middleware(message, call_next)

        handler = call
    return handler


class Seen:
    """The least a middleware can be shown of a dispatch."""

    __slots__ = ("message", "name")

    def __init__(self, message: object, name: str) -> None:
        self.message = message
        self.name = name


def by_hand(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Write out `MIDDLEWARES` times (context, call_next), whose `call_next` takes nothing.

    Such a `call_next` knows its dispatch, so it is made for each; nothing here catches an error.
    """

    def call(message: object) -> Any:
        seen = Seen(message, "bench.order")

        def innermost() -> Any:
            return handler(seen.message)

        def inner() -> Any:
            return pass_on(seen, innermost)

        def outer() -> Any:
            return pass_on(seen, inner)

        return pass_on(seen, outer)

    return call


async def ahand_on(message: object, call_next: Callable[..., Any]) -> Any:
    return await call_next(message)


def future_answer(message: object) -> int:
    """A query at its least: an answer in a future of the standard library."""
    future: Future[int] = Future()
    future.set_result(ANSWERS[type(message)](message))
    return future.result()


ANSWERS: dict[type, Callable[..., Any]] = {Find: answer}


def find(bus: QueryBus) -> Callable[[Find], int]:
    def call(query: Find) -> int:
        return bus.dispatch(query).result()

    return call


def one_command() -> Table:
    table = Table("command, sync")
    table.limit(LOOK_UP, lambda: clocked(look_up(handle, Order())))
    table.row(
        "nested = inline",
        lambda: timed(command_bus(handle).dispatch, Order()),
        against=LOOK_UP,
        at_most=2.0,
    )
    table.row(
        "nested = queue",
        lambda: timed(command_bus(handle, nested="queue").dispatch, Order()),
        against=LOOK_UP,
        at_most=4.5,
    )
    table.limit("pymessagebus", lambda: timed(*_peers.pymessagebus_command(0)))
    table.faster("nested = inline", than="pymessagebus", at_least=5)
    table.faster("nested = queue", than="pymessagebus")
    table.row("mediatr", lambda: timed(*_peers.mediatr_command(0)), against=LOOK_UP)
    return table


def one_query() -> Table:
    table = Table("query, sync")
    table.limit("look-up + call + Future", lambda: timed(future_answer, Find()))
    table.row(
        "dispatch(query).result()",
        lambda: timed(find(query_bus()), Find()),
        against="look-up + call + Future",
        at_most=1.3,
    )
    return table


def one_command_async() -> Table:
    table = Table("command, asyncio")
    table.limit(AWAITED, lambda: table.aclocked(alook_up(ahandle, Order())))
    table.row(
        "nested = inline",
        lambda: table.atimed(command_bus(ahandle).adispatch, Order()),
        against=AWAITED,
        at_most=2.0,
    )
    table.row(
        "nested = queue",
        lambda: table.atimed(command_bus(ahandle, nested="queue").adispatch, Order()),
        against=AWAITED,
        at_most=5.0,
    )
    table.limit("diator", lambda: table.atimed(*_peers.diator_command(0)))
    table.limit("python-cqrs", lambda: table.atimed(*_peers.cqrs_command(0)))
    table.faster("nested = inline", than="diator", at_least=6)
    table.faster("nested = inline", than="python-cqrs", at_least=20)
    table.row("mediatr", lambda: table.atimed(*_peers.mediatr_async_command(0)), against=AWAITED)
    return table


def wrapped() -> Table:
    row = "nested = inline"
    table = Table("command with 3 middlewares, sync")
    table.limit(LOOK_UP, lambda: clocked(look_up(handle, Order())))
    closures = folded(handle, _peers.pass_on)
    table.limit(CLOSURES, lambda: clocked(look_up(closures, Order())))
    bus = command_bus(handle, *(pass_on,) * MIDDLEWARES)
    table.row(row, lambda: timed(bus.dispatch, Order()), against=CLOSURES, at_most=1.15)
    table.compare(row, row, against=LOOK_UP, at_most=5.3)
    table.limit(BY_HAND, lambda: clocked(look_up(by_hand(handle), Order())))
    table.compare(row, row, against=BY_HAND, at_most=1.15)
    table.limit("pymessagebus", lambda: timed(*_peers.pymessagebus_command(MIDDLEWARES)))
    table.faster(row, than="pymessagebus", at_least=2.7)
    table.row("mediatr", lambda: timed(*_peers.mediatr_command(MIDDLEWARES)), against=CLOSURES)
    return table


def wrapped_async() -> Table:
    row = "nested = inline"
    table = Table("command with 3 middlewares, asyncio")
    closures = folded(ahandle, ahand_on)
    table.limit(CLOSURES, lambda: table.aclocked(alook_up(closures, Order())))
    bus = command_bus(ahandle, *(apass_on,) * MIDDLEWARES)
    table.row(row, lambda: table.atimed(bus.adispatch, Order()), against=CLOSURES, at_most=1.15)
    diator = table.atimed
    table.row("diator", lambda: diator(*_peers.diator_command(MIDDLEWARES)), against=CLOSURES)
    table.row("python-cqrs", lambda: diator(*_peers.cqrs_command(MIDDLEWARES)), against=CLOSURES)
    return table


def rival(make: Callable[[int], _peers.Call], listeners: int) -> Callable[[int], float]:
    return timed(*make(listeners))


def events(listeners: int) -> Table:
    table = Table(f"event, sync, listeners: {listeners}")
    limit, bound = (LOOK_UP, 2.0) if listeners == 1 else (LOOP, 1.1)
    loop = look_up(handle, Ordered()) if listeners == 1 else each(listeners)
    table.limit(limit, lambda: clocked(loop))
    bus = event_bus(handle, listeners)
    table.row("dispatch", lambda: timed(bus.dispatch, Ordered()), against=limit, at_most=bound)
    peers = (
        ("pymessagebus", _peers.pymessagebus_event, 2),
        ("pyee", _peers.pyee_event, 3),
        ("blinker", _peers.blinker_event, 14),
    )
    for name, make, faster in peers:
        table.limit(name, partial(rival, make, listeners))
        table.faster("dispatch", than=name, at_least=None if listeners == 1 else faster)
    return table


def events_async(listeners: int) -> Table:
    table = Table(f"event, asyncio, listeners: {listeners}")
    limit, bound = (AWAITED, 2.0) if listeners == 1 else (LOOP, 1.5)
    loop = alook_up(ahandle, Ordered()) if listeners == 1 else aeach(listeners)
    table.limit(limit, lambda: table.aclocked(loop))
    bus = event_bus(ahandle, listeners)
    table.row(
        "adispatch",
        lambda: table.atimed(bus.adispatch, Ordered()),
        against=limit,
        at_most=bound,
    )
    table.limit("asyncio.gather", lambda: table.atimed(gathered(listeners), Ordered()))
    table.compare("adispatch", "adispatch", against="asyncio.gather", at_most=0.4)
    table.row("diator", lambda: table.atimed(*_peers.diator_event(listeners)), against=limit)
    table.row("python-cqrs", lambda: table.atimed(*_peers.cqrs_event(listeners)), against=limit)
    return table


def routed(count: int) -> CommandBus:
    bus = CommandBus(nested="inline")
    others = {f"orders.other{i}": handle for i in range(count - 1)}
    bus.utilize(CommandRouter({Repeated: handle, **others}))
    return bus


def matched(count: int) -> CommandBus:
    bus = CommandBus(nested="inline")
    bus.utilize(RegexRouter({rf"orders\.v{i}\.[a-z]+\.place": handle for i in range(count)}))
    return bus


def many_routes() -> Table:
    table = Table("many routes, one name again and again")
    table.limit("10 exact routes", lambda: timed(routed(10).dispatch, Repeated()))
    table.row(
        "10,000 exact routes",
        lambda: timed(routed(10_000).dispatch, Repeated()),
        against="10 exact routes",
        at_most=1.3,
    )
    table.row(
        "1,000 regular expressions",
        lambda: timed(matched(1_000).dispatch, Repeated()),
        against="10 exact routes",
        at_most=1.5,
    )
    return table


def tables() -> Iterator[Table]:
    yield one_command()
    yield wrapped()
    yield one_query()
    yield one_command_async()
    yield wrapped_async()
    for listeners in (1, 10, 100):
        yield events(listeners)
        yield events_async(listeners)
    yield many_routes()


if __name__ == "__main__":
    run(__doc__, tables, rounds=15)
