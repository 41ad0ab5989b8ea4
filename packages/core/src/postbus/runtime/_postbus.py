"""What `build` returns: the buses, producers and workers of one configuration."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Self, TypeVar

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.errors import ClosedError, ConfigurationError, Problem
from postbus.runtime._checks import MAIN_BUSES, bus_sections, check_buses, path_of
from postbus.runtime._closing import aclose_all, close_all
from postbus.runtime._wire import wire
from postbus.settings import nearest
from postbus.worker import ConsumerRun, Worker

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import TracebackType

    from postbus.buses import Plugin
    from postbus.catalog import MessageCatalog
    from postbus.pipeline import Router
    from postbus.runtime._sections import Prepared
    from postbus.runtime._services import Wiring
    from postbus.runtime._wire import Wired
    from postbus.settings import ConsumerSection, PostbusSettings
    from postbus.transports import MessageProducer

P = TypeVar("P", bound="MessageProducer")


class Postbus:
    """The buses, producers and workers of one configuration. Made by `build`.

    Buses are wired when they are first asked for, producers connect when they first send.
    Usable from any thread. Whoever built it closes it: `close()`, `aclose()`, `with` or
    `async with`; after that everything of it raises `ClosedError`.
    """

    def __init__(
        self,
        settings: PostbusSettings,
        catalog: MessageCatalog,
        producers: dict[str, MessageProducer],
        consumers: dict[str, Prepared[ConsumerSection]],
        wiring: Wiring,
        errors: Mapping[type[BaseException], str],
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        # The wiring looks producers up in the same dict, so that a replacement counts there too.
        self._producers = producers
        self._own_producers = tuple(producers.values())
        self._consumers = consumers
        self._wiring = wiring
        self._errors = errors
        self._wired: dict[str, Wired] = {}
        self._making: set[tuple[int, str]] = set()
        self._sections = bus_sections(settings)
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def catalog(self) -> MessageCatalog:
        """The messages that may cross the wire."""
        return self._catalog

    @property
    def producers(self) -> Mapping[str, MessageProducer]:
        """The producers by name, as they stand now; read-only.

        Raises:
            ClosedError: after `close()`.
        """
        self._refuse_closed()
        return MappingProxyType(self._producers)

    @property
    def routers(self) -> Mapping[str, Router]:
        """The router of each bus, by the name of the bus; a route added there counts.

        Raises:
            ClosedError: after `close()`.
        """
        return {name: self._wire(name).router for name in self._sections}

    @property
    def plugins(self) -> Mapping[str, tuple[Plugin, ...]]:
        """The plugins of each bus, by the name of the bus, in the order they were attached.

        Raises:
            ClosedError: after `close()`.
        """
        return {name: self._wire(name).plugins for name in self._sections}

    @property
    def command_bus(self) -> CommandBus:
        """The command bus.

        Raises:
            ClosedError: after `close()`.
        """
        bus = self.bus("command_bus")
        assert isinstance(bus, CommandBus)  # noqa: S101  by its section
        return bus

    @property
    def event_bus(self) -> EventBus:
        """The event bus.

        Raises:
            ClosedError: after `close()`.
        """
        bus = self.bus("event_bus")
        assert isinstance(bus, EventBus)  # noqa: S101  by its section
        return bus

    @property
    def query_bus(self) -> QueryBus:
        """The query bus.

        Raises:
            ClosedError: after `close()`.
        """
        bus = self.bus("query_bus")
        assert isinstance(bus, QueryBus)  # noqa: S101  by its section
        return bus

    def bus(self, name: str) -> CommandBus | EventBus | QueryBus:
        """Return the bus called *name*: `command_bus`, …, or a section of `buses`.

        Its plugins are made when it is first asked for, its handlers when they are first needed:
        those may take the bus in their constructors.

        Raises:
            ConfigurationError: there is none of that name, or a plugin of it is none.
            ClosedError: after `close()`.
        """
        return self._wire(name).bus

    def worker(self) -> Worker:
        """Return a new worker over every consumer of the configuration; it closes them.

        It dispatches what it receives on the command, event and query bus.

        Raises:
            ConfigurationError: there is no consumer.
            ClosedError: after `close()`.
        """
        buses = {kind: self.bus(name) for name, kind in MAIN_BUSES.items()}
        runs = [_run(name, prepared) for name, prepared in self._consumers.items()]
        grace = self._settings.worker.shutdown_grace
        return Worker(buses, runs, self._catalog, shutdown_grace=grace)

    def check(self) -> None:
        """Check again that every route, id and capability holds, as `build` did.

        Raises:
            ConfigurationError: with every problem found.
            ClosedError: after `close()`.
        """
        self._refuse_closed()
        problems = check_buses(self._settings, self._catalog, self._wiring)
        if problems:
            raise ConfigurationError(problems)

    @contextmanager
    def replacing(self, name: str, producer: P) -> Generator[P]:
        """Put *producer* in the place of the one called *name* for the length of a `with`.

        For tests: every bus sends there at once, whether it was wired before or not. Neither
        producer is closed.

        Raises:
            ConfigurationError: there is no producer of that name.
            ClosedError: after `close()`.
        """
        before = self.producers.get(name)
        if before is None:
            advice = nearest(name, self._producers) or "add the producer to the configuration"
            problem = Problem(f"producers.{name}", "", "expected the name of a producer", advice)
            raise ConfigurationError([problem])
        self._put(name, producer)
        try:
            yield producer
        finally:
            self._put(name, before)

    def close(self) -> None:
        """Refuse what comes, flush and close every producer. Blocks as they do. Idempotent.

        Where producers fail to close, the others are closed all the same; the first failure is
        raised then.
        """
        close_all(self._begin_close())

    async def aclose(self) -> None:
        """Do what `close` does without blocking the loop."""
        await aclose_all(self._begin_close())

    def __enter__(self) -> Self:
        """Return itself; leaving closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    async def __aenter__(self) -> Self:
        """Return itself; leaving closes it."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.aclose()

    def _begin_close(self) -> tuple[MessageProducer, ...]:
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        for wired in self._wired.values():
            wired.bus.close()
        return () if was_closed else self._own_producers

    @property
    def is_closed(self) -> bool:
        """Whether `close` or `aclose` was called."""
        return self._is_closed

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise _closed()

    def _put(self, name: str, producer: MessageProducer) -> None:
        with self._lock:
            self._producers[name] = producer
            wired = tuple(self._wired.values())
        for each in wired:
            each.bus.changed()

    def _wire(self, name: str) -> Wired:
        self._refuse_closed()
        wired = self._wired.get(name)
        if wired is not None:
            return wired
        if name not in self._sections:
            advice = nearest(name, self._sections) or f"add [postbus.buses.{name}]"
            problem = Problem(f"buses.{name}", "", "expected the name of a bus", advice)
            raise ConfigurationError([problem])
        making = (threading.get_ident(), name)
        if making in self._making:
            expected = "expected plugins that can be made without the bus they are for"
            advice = "take the bus in attach(bus), not in the constructor"
            raise ConfigurationError([Problem(f"{path_of(name)}.plugins", "", expected, advice)])
        self._making.add(making)
        try:
            # Without our lock: services and plugins have locks of their own, and may hold them
            # while they ask for a bus. So two threads may both come here, and the first one wins.
            wired = wire(name, self._settings, self._catalog, self._wiring, self._errors)
        finally:
            self._making.remove(making)
        with self._lock:
            if not self._is_closed:
                return self._wired.setdefault(name, wired)
        wired.bus.close()
        raise _closed()


def _closed() -> ClosedError:
    return ClosedError("this postbus is closed: build a new one")


def _run(name: str, prepared: Prepared[ConsumerSection]) -> ConsumerRun:
    section, consumer = prepared.section, prepared.consumer()
    return ConsumerRun(
        name=name,
        consumer=consumer,
        concurrency=section.concurrency,
        prefetch=section.prefetch,
        unknown_fields=section.unknown_fields,
        # A transport may have a limit of its own, which then is what senders were told.
        max_size_bytes=consumer.capabilities.max_size_bytes or section.max_size_bytes,
    )
