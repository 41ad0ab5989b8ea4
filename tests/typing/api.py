"""Type-checked and never run: what type checkers see of the public interface.

Each `type: ignore` must stay needed: mypy refuses one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

import attrs

from postbus import (
    Command,
    CommandBus,
    Event,
    EventBus,
    MessageCatalog,
    MessageProducer,
    MessageProducerPlugin,
    Plugin,
    Postbus,
    Promise,
    Query,
    QueryBus,
    Worker,
    build,
)
from postbus.containers import PostbusContainer
from postbus.testing import RecordingProducer
from postbus.transports import MessageConsumer
from postbus_zeromq import ZeroMQContainer


@attrs.frozen
class RegisterUser(Command, name="typing.register-user"):
    """A command."""

    user: str


@attrs.frozen
class UserRegistered(Event, name="typing.user-registered"):
    """An event."""

    user: str


@attrs.frozen
class CountUsers(Query[int], name="typing.count-users"):
    """A query with a typed answer."""


class Plain:
    """A message of no class of ours."""


def of_build() -> None:
    """Check what `build` returns."""
    with build({}, {"register_user": print}, MessageCatalog()) as postbus:
        assert_type(postbus, Postbus)
        assert_type(postbus.command_bus, CommandBus)
        assert_type(postbus.event_bus, EventBus)
        assert_type(postbus.query_bus, QueryBus)
        assert_type(postbus.bus("admin"), CommandBus | EventBus | QueryBus)
        assert_type(postbus.producers, Mapping[str, MessageProducer])
        assert_type(postbus.plugins, Mapping[str, tuple[Plugin, ...]])
        assert_type(postbus.catalog, MessageCatalog)
        assert_type(postbus.worker(), Worker)
        with postbus.replacing("mail", RecordingProducer()) as sent:
            assert_type(sent, RecordingProducer)
    build([])  # type: ignore[arg-type]  # a configuration is a mapping
    build({}, 5)  # type: ignore[arg-type]  # services can be asked


async def of_build_in_asyncio() -> None:
    """Check the asynchronous ways."""
    async with build({}) as postbus:
        assert_type(postbus, Postbus)
    await postbus.aclose()


def of_queries(bus: QueryBus) -> None:
    """Check that the answer of a query has its type."""
    assert_type(bus.dispatch(CountUsers()), Promise[int])
    assert_type(bus.dispatch(CountUsers()).result(1.0), int)
    answer: str = bus.dispatch(CountUsers()).result()  # type: ignore[assignment]  # it is an int
    assert_type(answer, str)
    assert_type(bus.dispatch(Plain()), Promise[Any])
    bus.dispatch(CountUsers(), timeot=1.0)  # type: ignore[call-overload]  # a misspelt option


async def of_awaited_answers(bus: QueryBus) -> None:
    """Check the same in asyncio, and for a promise."""
    assert_type(await bus.adispatch(CountUsers()), int)
    assert_type(await bus.dispatch(CountUsers()), int)


def of_commands_and_events(commands: CommandBus, events: EventBus) -> None:
    """Check that nothing comes back from a command or an event."""
    commands.dispatch(RegisterUser("Ada"), priority=9, metadata={"by": "admin"})
    events.dispatch(UserRegistered("Ada"), delay=1.0)
    commands.dispatch(RegisterUser("Ada"), priority="high")  # type: ignore[arg-type]  # a number


def of_containers() -> None:
    """Check what the providers of a container give."""
    with PostbusContainer(config={}, services={"register_user": print}) as container:
        assert_type(container, PostbusContainer)
        assert_type(container.postbus(), Postbus)
        assert_type(container.command_bus(), CommandBus)
        assert_type(container.event_bus(), EventBus)
        assert_type(container.query_bus(), QueryBus)
        assert_type(container.query_bus().dispatch(CountUsers()), Promise[int])
        assert_type(container.catalog(), MessageCatalog)
        assert_type(container.producers(), Mapping[str, MessageProducer])
        assert_type(container.worker(), Worker)
        container.check()
    container.close()


def of_a_transport() -> None:
    """Check what the providers of a transport's container give."""
    with ZeroMQContainer(config={"dsn": "tcp://127.0.0.1:5555"}) as zeromq:
        assert_type(zeromq, ZeroMQContainer)
        assert_type(zeromq.producer(), MessageProducer)
        assert_type(zeromq.consumer(), MessageConsumer)
        assert_type(zeromq.plugin(), MessageProducerPlugin)
        assert_type(zeromq.command_bus(), CommandBus)
        assert_type(zeromq.event_bus(), EventBus)
        assert_type(zeromq.query_bus(), QueryBus)
    bus = CommandBus()
    bus.utilize(MessageProducerPlugin(zeromq.producer()))
    bus.utilize(zeromq.plugin())
    bus.utilize(RegisterUser("Ada"))  # type: ignore[arg-type]  # no plugin
    bus.dispatch(RegisterUser("Ada"))
