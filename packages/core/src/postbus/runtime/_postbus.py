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
from postbus.runtime._project import Project
from postbus.runtime._routing import make_router
from postbus.runtime._stores import (
    delayed_producers,
    policy_of,
    rules_of,
    schedule_of,
    unnamed_listeners,
)
from postbus.runtime._wire import wire
from postbus.settings import nearest
from postbus.worker import ConsumerRun, IdempotentReceiver, Limits, Sending, Worker

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from types import TracebackType

    from postbus.buses import Plugin
    from postbus.catalog import MessageCatalog
    from postbus.pipeline import Router
    from postbus.runtime._sections import Prepared
    from postbus.runtime._services import Wiring
    from postbus.runtime._wire import Wired
    from postbus.settings import ConsumerSection, PostbusSettings, WorkerSettings
    from postbus.stores import ScheduleStore, Store
    from postbus.transports import MessageConsumer, MessageProducer
    from postbus.worker import RetryRule

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
        stores: dict[str, Store],
        wiring: Wiring,
        errors: Mapping[type[BaseException], str],
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        # The wiring looks producers up in the same dict, so that a replacement counts there too.
        self._producers = producers
        self._own_producers = tuple(producers.values())
        self._consumers = consumers
        self._stores = stores
        self._later = delayed_producers(settings.producers, producers, stores)
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
    def stores(self) -> Mapping[str, Store]:
        """The stores by name; read-only.

        Raises:
            ClosedError: after `close()`.
        """
        self._refuse_closed()
        return MappingProxyType(self._stores)

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

    def worker(
        self,
        *,
        rules: Sequence[RetryRule] = (),
        limits: Limits | None = None,
        consumers: Sequence[str] | None = None,
    ) -> Worker:
        """Return a new worker over every consumer of the configuration; it closes them.

        It dispatches what it receives on the command, event and query bus.

        Args:
            rules: when failed messages are handled again; they count before those of the
                configuration, and can speak of exceptions.
            limits: when it ends by itself, in the place of what `[postbus.worker]` says.
            consumers: the names of those it is for. Default: all of them.

        Raises:
            ConfigurationError: there is no consumer, or none of a given name.
            ClosedError: after `close()`.
        """
        buses = {kind: self.bus(name) for name, kind in MAIN_BUSES.items()}
        names = self._consumers if consumers is None else dict.fromkeys(consumers)
        runs = [_run(name, self._consumer(name), self._stores, rules) for name in names]
        return Worker(
            buses,
            runs,
            self._catalog,
            shutdown_grace=self._settings.worker.shutdown_grace,
            limits=_limits(self._settings.worker) if limits is None else limits,
            sending=Sending(
                producers=self._producers, later=self._later, schedules=self._schedules()
            ),
            health=self._settings.worker.health,
        )

    def receiver(self, inbox: str) -> IdempotentReceiver:
        """Return what dispatches received messages once, for a server that is no worker's.

        Args:
            inbox: the name of the store that knows what was handled.

        Raises:
            ConfigurationError: there is no store of that name, or a listener has no name by which
                an inbox could know it.
            ClosedError: after `close()`.
        """
        store = self.stores.get(inbox)
        if store is None:
            advice = nearest(inbox, self._stores) or f"add [postbus.stores.{inbox}]"
            expected = "expected the name of a store"
            raise ConfigurationError([Problem(f"stores.{inbox}", "", expected, advice)])
        if problems := list(unnamed_listeners(self._settings)):
            raise ConfigurationError(problems)
        buses = {kind: self.bus(name) for name, kind in MAIN_BUSES.items()}
        sending = Sending(producers=self._producers, later=self._later)
        return IdempotentReceiver(buses, store.inbox, sending)

    def consumer(self, name: str) -> MessageConsumer:
        """Return a new consumer, to look at what waits for it or to receive without a worker.

        Whoever asks for it closes it.

        Args:
            name: that of its section.

        Raises:
            ConfigurationError: there is no consumer of that name.
            ClosedError: after `close()`.
        """
        self._refuse_closed()
        return self._consumer(name).consumer()

    def _consumer(self, name: str) -> Prepared[ConsumerSection]:
        if name not in self._consumers:
            advice = nearest(name, self._consumers) or f"add [postbus.consumers.{name}]"
            expected = "expected the name of a consumer"
            raise ConfigurationError([Problem(f"consumers.{name}", "", expected, advice)])
        return self._consumers[name]

    def _schedules(self) -> list[tuple[ScheduleStore, list[str]]]:
        """Return where delayed messages wait, and for which producers."""
        names: dict[str, list[str]] = {}
        for name, section in self._settings.producers.items():
            if section.schedule is not None:
                names.setdefault(section.schedule, []).append(name)
        return [(self._stores[store].schedule, own) for store, own in names.items()]

    def _delayed(self, producer: MessageProducer) -> MessageProducer | None:
        """Return what delays messages for *producer*, None where it can, or nothing does."""
        if producer.capabilities.delay is not None:
            return None
        names = (name for name, known in self._producers.items() if known is producer)
        return next((self._later[name] for name in names if name in self._later), None)

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

    def project(self) -> Project:
        """Return what all of this amounts to, for whoever describes or judges it.

        Makes no service. A bus that was wired already is described with the routes it has now.

        Raises:
            ClosedError: after `close()`.
        """
        self._refuse_closed()
        return Project(
            settings=self._settings,
            catalog=self._catalog,
            wiring=self._wiring,
            producers=dict(self._producers),
            consumers=dict(self._consumers),
            routers={name: self._router(name) for name in self._sections},
        )

    def _router(self, name: str) -> Router:
        if (wired := self._wired.get(name)) is not None:
            return wired.router
        section = self._sections[name]
        return make_router(
            type(section).kind, section.router, self._catalog, f"{path_of(name)}.router", []
        )

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
        try:
            close_all(self._begin_close())
        finally:
            self._close_stores()

    async def aclose(self) -> None:
        """Do what `close` does without blocking the loop."""
        try:
            await aclose_all(self._begin_close())
        finally:
            self._close_stores()

    def _close_stores(self) -> None:
        for store in self._stores.values():
            store.close()

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
            if self._later:
                wired.bus.delay_with(self._delayed)
        finally:
            self._making.remove(making)
        with self._lock:
            if not self._is_closed:
                return self._wired.setdefault(name, wired)
        wired.bus.close()
        raise _closed()


def _closed() -> ClosedError:
    return ClosedError("this postbus is closed: build a new one")


def _limits(settings: WorkerSettings) -> Limits:
    return Limits(
        max_messages=settings.max_messages,
        max_runtime=settings.max_runtime,
        max_memory_bytes=settings.max_memory_bytes,
        stop_when_empty=settings.stop_when_empty,
        stop_on_error=settings.stop_on_error,
    )


def _run(
    name: str,
    prepared: Prepared[ConsumerSection],
    stores: Mapping[str, Store],
    rules: Sequence[RetryRule],
) -> ConsumerRun:
    section, consumer = prepared.section, prepared.consumer()
    failures, inbox = stores.get(section.failure_store or ""), stores.get(section.inbox or "")
    return ConsumerRun(
        name=name,
        consumer=consumer,
        concurrency=section.concurrency,
        prefetch=section.prefetch,
        unknown_fields=section.unknown_fields,
        # A transport may have a limit of its own, which then is what senders were told.
        max_size_bytes=consumer.capabilities.max_size_bytes or section.max_size_bytes,
        time_limit=section.time_limit,
        retry=None if section.retry is None else policy_of(section.retry),
        rules=(*rules, *rules_of(section)),
        failure_store=None if failures is None else failures.failures,
        schedule=schedule_of(section, stores),
        inbox=None if inbox is None else inbox.inbox,
    )
