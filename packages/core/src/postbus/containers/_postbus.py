"""`PostbusContainer`: a whole configuration as providers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from dependency_injector import containers, providers

from postbus.catalog import MessageCatalog
from postbus.containers._closing import Closer, Closes, closing
from postbus.containers._services import services_of
from postbus.runtime import Postbus, build

if TYPE_CHECKING:
    from collections.abc import Mapping

    from postbus.buses import CommandBus, EventBus, Plugin, QueryBus
    from postbus.pipeline import Router
    from postbus.transports import MessageProducer
    from postbus.worker import Worker


def _build(
    config: Any,
    services: Any,
    catalog: Any,
    closer: Closer,
) -> Postbus:
    closer.refuse_closed()
    given = catalog() if catalog.overridden else None
    return closer.add(build(config, services_of(services), given))


def _open(built: Postbus, closer: Closer) -> Postbus:
    closer.refuse_closed()
    return built


def _catalog(postbus: Postbus) -> MessageCatalog:
    return postbus.catalog


def _producers(postbus: Postbus) -> Mapping[str, MessageProducer]:
    return postbus.producers


def _routers(postbus: Postbus) -> Mapping[str, Router]:
    return postbus.routers


def _plugins(postbus: Postbus) -> Mapping[str, tuple[Plugin, ...]]:
    return postbus.plugins


def _command_bus(postbus: Postbus) -> CommandBus:
    return postbus.command_bus


def _event_bus(postbus: Postbus) -> EventBus:
    return postbus.event_bus


def _query_bus(postbus: Postbus) -> QueryBus:
    return postbus.query_bus


def _worker(postbus: Postbus) -> Worker:
    return postbus.worker()


class Checks(Closes):
    """What an instance of `PostbusContainer` has beside its providers."""

    postbus: providers.Provider[Postbus]

    def check(self) -> None:
        """Validate the whole configuration now, as the first call of any provider would.

        Raises:
            ConfigurationError: with every problem.
            ClosedError: it is closed.
        """
        self.postbus().check()


class PostbusInstance(Checks, containers.DynamicContainer):
    """An instance of `PostbusContainer`."""


class PostbusContainer(Checks, containers.DeclarativeContainer):
    """Everything one configuration describes, as providers.

    *config*: the `postbus` section. *services*: where ids lead: an application's container
    (`services=__self__`), a mapping, or anything with `has`, `get` and `lifetime`. *catalog*: a
    catalogue to fill further; left out, one is made. Given in the constructor, the configuration
    is validated there and then; filled later, when any provider is first called, and by
    `check()`.

    Closed by `close()`, by `with`, or by the application's `shutdown_resources()`; after that
    its providers raise `ClosedError`.

    >>> config = {"producers": {"mail": {"transport": "memory"}}}
    >>> with PostbusContainer(config=config) as container:
    ...     list(container.producers())
    ['mail']
    """

    instance_type = PostbusInstance

    config: providers.Configuration = providers.Configuration()
    services: providers.Provider[Any] = providers.Object(None)
    closables: providers.Provider[Closer] = providers.ThreadSafeSingleton(Closer)
    closer: providers.Resource[Closer] = providers.Resource(closing, closables)
    catalog: providers.Callable[MessageCatalog] = providers.Callable(_catalog)
    # Thread-safe, and depending on the resource that closes it: so both are made in one place,
    # and shutting the resources down closes it.
    built: providers.Provider[Postbus] = providers.ThreadSafeSingleton(
        _build,
        config,
        services,
        catalog.provider,
        closer,
    )
    postbus: providers.Provider[Postbus] = providers.Callable(_open, built, closables)
    # The catalogue is what was built from; where an application gives its own, it is built with.
    catalog.add_args(postbus)
    producers: providers.Provider[Mapping[str, MessageProducer]] = providers.Callable(
        _producers,
        postbus,
    )
    routers: providers.Provider[Mapping[str, Router]] = providers.Callable(_routers, postbus)
    plugins: providers.Provider[Mapping[str, tuple[Plugin, ...]]] = providers.Callable(
        _plugins,
        postbus,
    )
    command_bus: providers.Provider[CommandBus] = providers.Callable(_command_bus, postbus)
    event_bus: providers.Provider[EventBus] = providers.Callable(_event_bus, postbus)
    query_bus: providers.Provider[QueryBus] = providers.Callable(_query_bus, postbus)
    worker: providers.Provider[Worker] = providers.Callable(_worker, postbus)

    def __new__(cls, **given: Any) -> Self:
        """Make an instance; with a *config* validate it here.

        Raises:
            ConfigurationError: with every problem of *config*.
        """
        instance: Self = super().__new__(cls, **given)
        if "config" in given and not isinstance(given["config"], providers.Provider):
            instance.check()
        return instance
