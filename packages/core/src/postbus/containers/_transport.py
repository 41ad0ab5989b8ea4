"""`TransportContainer`: one transport from one section, the same providers for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import attrs
from dependency_injector import containers, providers

from postbus.buses import CommandBus, EventBus, MessageBus, QueryBus
from postbus.catalog import MessageCatalog
from postbus.containers._closing import Closer, Closes, ClosingContainer, closing
from postbus.containers._section import TransportSection
from postbus.containers._services import services_of
from postbus.errors import ConfigurationError, Problem
from postbus.messages import MessageKind
from postbus.plugins import MessageProducerPlugin, ServiceLocatorPlugin
from postbus.runtime._checks import ONLY_ASKS, answers, only_asks, target_problems
from postbus.runtime._routing import make_router
from postbus.runtime._services import Wiring
from postbus.transports import Transport

if TYPE_CHECKING:
    from postbus.pipeline import Router
    from postbus.settings import RouteTarget
    from postbus.transports import MessageConsumer, MessageProducer

B = TypeVar("B", bound=MessageBus)


def _settings(section: TransportSection) -> Any:
    return section.producer().settings


def _producer(section: TransportSection, closer: Closer) -> MessageProducer:
    return closer.add(section.make_producer())


def _consumer(section: TransportSection) -> MessageConsumer:
    return section.make_consumer()


def _wiring(section: TransportSection, producer: MessageProducer, services: Any) -> Wiring:
    return Wiring({section.transport.name: producer}, services_of(services))


def _router(
    section: TransportSection,
    plugin: MessageProducerPlugin,
    wiring: Wiring,
    kind: MessageKind,
) -> Router:
    settings = section.producer().section.router
    if settings is None:
        return plugin
    if kind is not MessageKind.EVENT:
        # The section does not say which names are events; those with several targets are.
        single: dict[str, tuple[RouteTarget, ...]] = {
            key: targets for key, targets in settings.routes.items() if len(targets) == 1
        }
        settings = attrs.evolve(settings, routes=single)
    path = f"{section.path}.router"
    problems = list(target_problems(settings, path, wiring, located=True))
    router = make_router(kind, settings, MessageCatalog(), path, problems)
    if problems:
        raise ConfigurationError(problems)
    return router


def _bus(bus: B, router: Router, wiring: Wiring, closer: Closer) -> B:
    bus.attach_router(router)
    bus.utilize(ServiceLocatorPlugin(wiring))
    return closer.add(bus)


def _sending_bus(
    section: TransportSection,
    producer: MessageProducer,
    bus: B,
    router: Router,
    wiring: Wiring,
    closer: Closer,
) -> B:
    closer.refuse_closed()
    if only_asks(producer):
        path = f"{section.path}.{bus.kind}_bus"
        expected = f"{section.transport.name} as configured takes queries only"
        raise ConfigurationError([Problem(path, "", expected, ONLY_ASKS)])
    return _bus(bus, router, wiring, closer)


def _query_bus(
    section: TransportSection,
    producer: MessageProducer,
    router: Router,
    wiring: Wiring,
    closer: Closer,
) -> QueryBus:
    closer.refuse_closed()
    if not answers(producer):
        expected = f"{section.transport.name} as configured brings no answers back"
        advice = "set rpc where the transport has it, or ask over another transport"
        raise ConfigurationError([Problem(f"{section.path}.query_bus", "", expected, advice)])
    return _bus(QueryBus(), router, wiring, closer)


class TransportContainer(Closes, containers.DeclarativeContainer):
    """One transport from one section: its producer, its consumer, and buses over them.

    Subclasses set *transport*. *config* is the producer's section, with the consumer's under
    `consumer` and routes under `router`; without `router` everything goes to the producer, which
    routes name `producers.<transport>`. Other ids lead to *services*. What a section lacks, or
    the transport cannot, is refused when the provider that needs it is called.

    *router* is that of the command and of the query bus; events, which may have several
    listeners, have *event_router*.

    Closed by `close()`, by `with`, or by the application's `shutdown_resources()`: after that it
    makes nothing, and what it made raises `ClosedError`. A consumer is closed by whoever receives
    from it.

    >>> from postbus.memory import MEMORY
    >>> class MemoryContainer(TransportContainer):
    ...     transport = MEMORY
    >>> with MemoryContainer(config={"address": "mail"}) as memory:
    ...     memory.settings().address
    'mail'
    """

    transport: ClassVar[Transport]
    instance_type = ClosingContainer

    record: providers.Provider[Any] = providers.Dependency()
    config: providers.Configuration = providers.Configuration()
    services: providers.Provider[Any] = providers.Object(None)
    closables: providers.Provider[Closer] = providers.ThreadSafeSingleton(Closer)
    closer: providers.Resource[Closer] = providers.Resource(closing, closables)
    section: providers.Provider[TransportSection] = providers.Factory(
        TransportSection,
        record,
        config,
        closables,
    )
    settings: providers.Provider[Any] = providers.Callable(_settings, section)
    producer: providers.Provider[MessageProducer] = providers.ThreadSafeSingleton(
        _producer,
        section,
        closer,
    )
    consumer: providers.Provider[MessageConsumer] = providers.Callable(_consumer, section)
    plugin: providers.Provider[MessageProducerPlugin] = providers.ThreadSafeSingleton(
        MessageProducerPlugin,
        producer,
    )
    wiring: providers.Provider[Wiring] = providers.ThreadSafeSingleton(
        _wiring,
        section,
        producer,
        services,
    )
    router: providers.Provider[Router] = providers.ThreadSafeSingleton(
        _router,
        section,
        plugin,
        wiring,
        MessageKind.COMMAND,
    )
    event_router: providers.Provider[Router] = providers.ThreadSafeSingleton(
        _router,
        section,
        plugin,
        wiring,
        MessageKind.EVENT,
    )
    command_bus: providers.Provider[CommandBus] = providers.ThreadSafeSingleton(
        _sending_bus,
        section,
        producer,
        providers.Factory(CommandBus),
        router,
        wiring,
        closer,
    )
    event_bus: providers.Provider[EventBus] = providers.ThreadSafeSingleton(
        _sending_bus,
        section,
        producer,
        providers.Factory(EventBus),
        event_router,
        wiring,
        closer,
    )
    query_bus: providers.Provider[QueryBus] = providers.ThreadSafeSingleton(
        _query_bus,
        section,
        producer,
        router,
        wiring,
        closer,
    )

    def __new__(cls, **given: Any) -> Self:
        """Make an instance for the transport of this class.

        Raises:
            TypeError: this is no subclass with a *transport*.
        """
        transport = getattr(cls, "transport", None)
        if transport is None:
            msg = f"{cls.__name__} has no transport: derive a class that sets it"
            raise TypeError(msg)
        given["record"] = providers.Object(transport)
        instance: Self = super().__new__(cls, **given)
        return instance
