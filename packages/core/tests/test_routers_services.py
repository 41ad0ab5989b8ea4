"""Routers that ask services for a handler with the name of the message."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest
from dependency_injector import containers, providers

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.containers import ContainerServices
from postbus.errors import NoHandlerError, RoutingError
from postbus.messages import Command, Event, Query
from postbus.plugins import OnEventStrategy, ServiceLocatorPlugin
from postbus.routers import (
    AsyncSwitchMessageRouter,
    CommandRouter,
    EventRouter,
    ServiceLocatorEventRouter,
    ServiceLocatorRouter,
)
from postbus.testing import RecordingProducer


@attrs.frozen
class Place(Command, name="shop.place"):
    pass


@attrs.frozen
class Placed(Event, name="shop.placed"):
    pass


@attrs.frozen
class Count(Query[int], name="shop.count"):
    pass


class TestServiceLocatorRouter:
    def test_the_service_with_the_name_handles_the_message(self) -> None:
        """A command or a query, in both colours (P07)."""
        got: list[object] = []
        services = {"shop.place": got.append, "shop.count": lambda q: 5}
        commands, queries = CommandBus(), QueryBus()
        for bus in (commands, queries):
            bus.utilize(ServiceLocatorRouter(services))
        commands.dispatch(Place())
        asyncio.run(commands.adispatch(Place()))
        assert [Place(), Place()] == got
        assert 5 == queries.dispatch(Count()).result()

    def test_a_name_that_no_service_has_is_left_to_other_routers(self) -> None:
        """Which may have it; without one there is no handler (P07)."""
        got: list[object] = []
        bus = CommandBus()
        bus.utilize(ServiceLocatorRouter({"shop.other": got.append}))
        with pytest.raises(NoHandlerError):
            bus.dispatch(Place())
        bus.utilize(CommandRouter({Place: got.append}))
        bus.dispatch(Place())
        assert [Place()] == got

    def test_two_routers_for_one_command_are_a_contradiction(self) -> None:
        """Neither replaces the other: both routes are named (P07, T04)."""
        bus = CommandBus()
        bus.utilize(ServiceLocatorRouter({"shop.place": lambda m: None}))
        bus.utilize(CommandRouter({Place: lambda m: None}))
        with pytest.raises(
            RoutingError, match=r"services\['shop\.place'\], routes\['shop\.place'"
        ):
            bus.dispatch(Place())

    def test_its_own_services_answer(self) -> None:
        """Not those of a plugin, which may have the id as well (P07)."""
        got: list[str] = []
        bus = CommandBus()
        bus.utilize(ServiceLocatorPlugin({"shop.place": lambda m: got.append("plugin")}))
        bus.utilize(ServiceLocatorRouter({"shop.place": lambda m: got.append("router")}))
        bus.dispatch(Place())
        assert ["router"] == got

    def test_services_of_a_container_keep_their_lifetime(self) -> None:
        """A Factory is made for each unit; dots lead into child containers (P07)."""
        made: list[Any] = []

        class Handler:
            def __init__(self) -> None:
                made.append(self)

            def __call__(self, message: object) -> None: ...

        class Shop(containers.DeclarativeContainer):
            place = providers.Factory(Handler)

        class Application(containers.DeclarativeContainer):
            shop = providers.Container(Shop)

        bus = CommandBus()
        bus.utilize(ServiceLocatorRouter(ContainerServices(Application())))
        assert [] == made
        bus.dispatch(Place())
        bus.dispatch(Place())
        assert 2 == len(made)

    def test_a_producer_among_the_services_is_sent_to(self) -> None:
        """As one in any table of routes is (P07)."""
        producer = RecordingProducer()
        bus = CommandBus()
        bus.utilize(ServiceLocatorRouter({"shop.place": producer}))
        bus.dispatch(Place())
        assert ["shop.place"] == [m.name for m in producer.messages]

    def test_it_can_stand_inside_the_async_switch(self) -> None:
        """It brings its services along (P07, P09)."""
        got: list[object] = []
        inner = ServiceLocatorRouter({"shop.place": got.append})
        bus = CommandBus()
        bus.utilize(AsyncSwitchMessageRouter(inner, RecordingProducer()))
        bus.dispatch(Place())
        assert [Place()] == got

    def test_services_that_come_later_are_found_after_a_change(self) -> None:
        """They do not tell of themselves: the bus is told (P07)."""
        services: dict[str, Any] = {}
        bus = CommandBus()
        bus.utilize(ServiceLocatorRouter(services))
        with pytest.raises(NoHandlerError):
            bus.dispatch(Place())
        services["shop.place"] = lambda m: None
        bus.changed()
        bus.dispatch(Place())

    def test_it_can_be_taken_off(self) -> None:
        """Then nothing handles the message (P20)."""
        router = ServiceLocatorRouter({"shop.place": lambda m: None})
        bus = CommandBus()
        bus.utilize(router)
        bus.dispatch(Place())
        assert bus.deactivate(router)
        with pytest.raises(NoHandlerError):
            bus.dispatch(Place())


class TestServiceLocatorEventRouter:
    def test_a_service_listens_or_each_one_in_it(self) -> None:
        """One listener, or a list or tuple of them, in order (P07)."""
        log: list[str] = []

        class Listens:
            def on_event(self, event: object) -> None:
                log.append("object")

        def one(event: object) -> None:
            log.append("one")

        def two(event: object) -> None:
            log.append("two")

        services: list[tuple[Any, list[str]]] = [
            (one, ["one"]),
            ([one, Listens(), two, one], ["one", "object", "two", "one"]),
            ((two, one), ["two", "one"]),
            ([], []),
        ]
        for service, expected in services:
            log.clear()
            bus = EventBus()
            bus.utilize(ServiceLocatorEventRouter({"shop.placed": service}))
            bus.utilize(OnEventStrategy())
            bus.dispatch(Placed())
            bus.dispatch("shop.nobody-listens")
            assert expected == log

    def test_listeners_of_other_routers_stay(self) -> None:
        """It adds to them, in the order of the routers (P07)."""
        log: list[str] = []
        bus = EventBus()
        bus.utilize(EventRouter({Placed: lambda e: log.append("routed")}))
        bus.utilize(ServiceLocatorEventRouter({"shop.placed": lambda e: log.append("located")}))
        bus.dispatch(Placed())
        assert ["routed", "located"] == log

    def test_ids_in_a_list_are_services_too(self) -> None:
        """Of the same services (P07, P08)."""
        log: list[str] = []
        services = {
            "shop.placed": ["one", "two"],
            "one": lambda e: log.append("one"),
            "two": lambda e: log.append("two"),
        }
        bus = EventBus()
        bus.utilize(ServiceLocatorEventRouter(services))
        bus.dispatch(Placed())
        assert ["one", "two"] == log

    def test_a_list_in_a_container_will_do(self) -> None:
        """An Object provider of one; a service that is no list is one listener (P07)."""
        log: list[str] = []

        class Shop(containers.DeclarativeContainer):
            placed = providers.Object([lambda e: log.append("one"), lambda e: log.append("two")])
            paid = providers.Callable(lambda e: log.append("paid"))

        class Application(containers.DeclarativeContainer):
            shop = providers.Container(Shop)

        bus = EventBus()
        bus.utilize(ServiceLocatorEventRouter(ContainerServices(Application())))
        bus.dispatch(Placed())
        bus.dispatch("shop.paid")
        assert ["one", "two", "paid"] == log
