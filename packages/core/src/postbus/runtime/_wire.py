"""From the section of a bus to the bus, with everything attached to it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.errors import ConfigurationError, Problem
from postbus.plugins import MessageFactoryPlugin, ServiceLocatorPlugin
from postbus.runtime._checks import bus_sections, path_of
from postbus.runtime._routing import make_router
from postbus.runtime._services import PRODUCERS
from postbus.settings import CommandBusSettings, EventBusSettings, QueryBusSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from postbus.buses import Plugin
    from postbus.catalog import MessageCatalog
    from postbus.pipeline import Router
    from postbus.runtime._services import Wiring
    from postbus.settings import BusSettings, PostbusSettings

AnyBus: TypeAlias = CommandBus | EventBus | QueryBus

# The service that makes messages of mappings where a bus names no other.
MESSAGE_FACTORY = "message_factory"


@attrs.frozen
class Wired:
    """A bus with what was attached to it."""

    bus: AnyBus
    router: Router
    plugins: tuple[Plugin, ...]


def wire(
    name: str,
    settings: PostbusSettings,
    catalog: MessageCatalog,
    wiring: Wiring,
    errors: Mapping[type[BaseException], str],
) -> Wired:
    """Return the bus called *name*: plugins in order, router, services, message factory.

    Makes its plugins and its message factory, and no handler.

    Raises:
        ConfigurationError: a plugin is none, or a message factory cannot be called.
    """
    section = bus_sections(settings)[name]
    bus = _make_bus(section, catalog, errors, settings.worker.threads)
    plugins = _plugins(section, path_of(name), wiring)
    for plugin in plugins:
        bus.utilize(plugin)
    timeouts = {f"{PRODUCERS}{n}": s.timeout for n, s in settings.producers.items()}
    path = f"{path_of(name)}.router"
    # Problems were refused when the configuration was built.
    router = make_router(bus.kind, section.router, catalog, path, [], timeouts)
    bus.attach_router(router)
    located = wiring if section.enable_handler_location else wiring.only_producers()
    bus.utilize(ServiceLocatorPlugin(located))
    if section.message_factory is not None or located.has(MESSAGE_FACTORY):
        id_ = section.message_factory or MESSAGE_FACTORY
        bus.utilize(_message_factory(id_, f"{path_of(name)}.message_factory", wiring))
    if section.unit_of_work is not None:
        bus.unit_of_work(partial(wiring.open_unit, section.unit_of_work))
    return Wired(bus, router, plugins)


def _make_bus(
    section: BusSettings,
    catalog: MessageCatalog,
    errors: Mapping[type[BaseException], str],
    threads: int,
) -> AnyBus:
    shared: dict[str, Any] = {"catalog": catalog, "errors": errors, "threads": threads}
    match section:
        case CommandBusSettings():
            return CommandBus(nested=section.nested, **shared)
        case EventBusSettings():
            return EventBus(on_listener_error=section.on_listener_error, **shared)
        case _:
            assert isinstance(section, QueryBusSettings)  # noqa: S101  there is no fourth kind
            return QueryBus(timeout=section.timeout, **shared)


def _plugins(section: BusSettings, path: str, wiring: Wiring) -> tuple[Plugin, ...]:
    plugins = tuple(wiring.get(id_) for id_ in section.plugins)
    problems = [
        Problem(
            f"{path}.plugins[{index}]",
            repr(section.plugins[index]),
            f"expected a plugin, which has attach(bus), it is a {type(plugin).__name__}",
            "name the id of a plugin",
        )
        for index, plugin in enumerate(plugins)
        if not hasattr(plugin, "attach")
    ]
    if problems:
        raise ConfigurationError(problems)
    return plugins


def _message_factory(id_: str, path: str, wiring: Wiring) -> MessageFactoryPlugin:
    factory = wiring.get(id_)
    if not callable(factory):
        expected = f"expected a callable (name, data), it is a {type(factory).__name__}"
        advice = "name the id of a message factory"
        raise ConfigurationError([Problem(path, repr(id_), expected, advice)])
    return MessageFactoryPlugin(factory)
