"""Strategies: which method of a handler that is not callable takes the message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from dependency_injector import containers, providers

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.containers import ContainerServices
from postbus.errors import HandlerFailedError, ListenersFailedError, RoutingError
from postbus.messages import Command, Event, Query
from postbus.pipeline import Stage
from postbus.plugins import (
    FinderInvokeStrategy,
    HandleCommandStrategy,
    OnEventStrategy,
    ServiceLocatorPlugin,
)
from postbus.promises import Promise
from postbus.routers import CommandRouter, EventRouter, QueryRouter

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.pipeline import DispatchContext


@attrs.frozen
class Place(Command, name="shop.place"):
    order: int = 1


@attrs.frozen
class Placed(Event, name="shop.placed"):
    order: int = 1


@attrs.frozen
class Count(Query[int], name="shop.count"):
    pass


class Handles:
    """A command handler of the older system's shape."""

    def __init__(self) -> None:
        self.got: list[object] = []

    def handle(self, command: object) -> None:
        self.got.append(command)


class HandlesAsync(Handles):
    async def handle(self, command: object) -> None:  # type: ignore[override]  # the other colour on purpose
        await asyncio.sleep(0)
        self.got.append(command)


class Listens:
    def __init__(self, log: list[str], name: str, error: Exception | None = None) -> None:
        self._log, self._name, self._error = log, name, error

    def on_event(self, event: object) -> None:
        self._log.append(self._name)
        if self._error is not None:
            raise self._error


class Finds:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def find(self, query: object) -> Any:
        return self.answer


def commands(handler: object, *, strategy: bool = True) -> CommandBus:
    bus = CommandBus()
    bus.utilize(CommandRouter({Place: handler}))
    if strategy:
        bus.utilize(HandleCommandStrategy())
    return bus


def ways(bus: Any) -> list[Callable[..., Any]]:
    """Return dispatch in both colours."""
    return [bus.dispatch, lambda message: asyncio.run(bus.adispatch(message))]


class TestHandleCommandStrategy:
    def test_the_handlers_handle_is_called(self) -> None:
        """With the command, in both colours (P14)."""
        handler = Handles()
        for run in ways(commands(handler)):
            run(Place())
        assert [Place(), Place()] == handler.got

    def test_an_asynchronous_handle_is_awaited(self) -> None:
        """Dispatch refuses it, naming the handler (P14)."""
        handler = HandlesAsync()
        bus = commands(handler)
        with pytest.raises(RoutingError, match=r"HandlesAsync is asynchronous.*use adispatch"):
            bus.dispatch(Place())
        asyncio.run(bus.adispatch(Place()))
        assert [Place()] == handler.got

    def test_a_callable_handler_is_called_itself(self) -> None:
        """Whatever methods it has, and once only (P14, E05)."""
        got: list[str] = []

        class Both(Handles):
            def __call__(self, command: object) -> None:
                got.append("called")

        handler = Both()
        commands(handler).dispatch(Place())
        assert (["called"], []) == (got, handler.got)

    def test_without_it_such_a_handler_is_refused(self) -> None:
        """So after it is taken off; a handler without the method always is (B22, P14, P20)."""
        bus = commands(Handles(), strategy=False)
        refusal = r"Handles is not callable and no strategy invokes it"
        with pytest.raises(RoutingError, match=refusal):
            bus.dispatch(Place())
        strategy = HandleCommandStrategy()
        bus.utilize(strategy)
        bus.dispatch(Place())
        assert bus.deactivate(strategy)
        with pytest.raises(RoutingError, match=refusal):
            bus.dispatch(Place())
        with pytest.raises(RoutingError, match=r"Finds is not callable"):
            commands(Finds(1)).dispatch(Place())

    def test_what_handle_raises_is_the_handlers_failure(self) -> None:
        """Wrapped like that of any handler (P14)."""

        class Fails:
            def handle(self, command: object) -> None:
                raise ValueError("no stock")

        for run in ways(commands(Fails())):
            with pytest.raises(HandlerFailedError, match="no stock") as caught:
                run(Place())
            assert isinstance(caught.value.__cause__, ValueError)

    @pytest.mark.parametrize("factory", [providers.Factory, providers.ContextLocalSingleton])
    @pytest.mark.parametrize("cls", [Handles, HandlesAsync])
    def test_services_of_any_lifetime_are_invoked(self, cls: type, factory: Any) -> None:
        """Made once per unit or shared in it, in the colour of the method (P14)."""
        made: list[Handles] = []

        def make() -> Handles:
            made.append(cls())
            return made[-1]

        class Application(containers.DeclarativeContainer):
            place = factory(cls)

        container = Application()
        bus = commands("place")
        bus.utilize(ServiceLocatorPlugin(ContainerServices(container)))
        if cls is HandlesAsync:
            with pytest.raises(RoutingError, match="place is asynchronous"):
                bus.dispatch(Place())
        container.place.override(factory(make))
        asyncio.run(bus.adispatch(Place()))
        assert [[Place()]] == [each.got for each in made]

    def test_a_service_that_nothing_invokes_is_named(self) -> None:
        """One that is made for each unit is seen when it is made (B22, P14)."""

        class Application(containers.DeclarativeContainer):
            place = providers.Factory(Finds, 1)

        bus = commands("place")
        bus.utilize(ServiceLocatorPlugin(ContainerServices(Application())))
        with pytest.raises(HandlerFailedError, match=r"place: .*Finds is not callable and no str"):
            bus.dispatch(Place())

    def test_a_handler_that_a_listener_puts_in_is_invoked(self) -> None:
        """At ROUTE or LOCATE a listener may name any handler (P14)."""
        handler, other = Handles(), Handles()
        bus = commands(handler)

        def swap(context: DispatchContext) -> None:
            context.handler = other

        bus.attach(Stage.ROUTE, swap)
        bus.dispatch(Place())
        assert ([], [Place()]) == (handler.got, other.got)


class TestOnEventStrategy:
    def test_listeners_of_all_shapes_run_in_route_order(self) -> None:
        """Callables, objects with `on_event`, and those of other strategies (P14, P15, E05)."""
        log: list[str] = []

        class Notified:
            def notify(self, event: object) -> None:
                log.append("notified")

        class Notify:
            def attach(self, bus: Any) -> None:
                bus.attach_strategy("notify")

        routes = {
            Placed: [
                Listens(log, "first"),
                lambda e: log.append("plain"),
                Notified(),
                Listens(log, "last"),
            ]
        }
        bus = EventBus()
        bus.utilize(EventRouter(routes))
        bus.utilize(OnEventStrategy())
        bus.utilize(Notify())
        for run in ways(bus):
            log.clear()
            run(Placed())
            assert ["first", "plain", "notified", "last"] == log

    @pytest.mark.parametrize(("mode", "expected"), [("collect", 3), ("stop", 1)])
    def test_failures_are_collected_like_those_of_callables(
        self, mode: Any, expected: int
    ) -> None:
        """Three of four, in order; or the first one alone (P15, B30)."""
        log: list[str] = []

        def plain(event: object) -> None:
            raise KeyError("plain")

        listeners = [
            Listens(log, "bad", ValueError("bad")),
            plain,
            Listens(log, "good"),
            Listens(log, "worse", ValueError("worse")),
        ]
        bus = EventBus(on_listener_error=mode)
        bus.utilize(EventRouter({Placed: listeners}))
        bus.utilize(OnEventStrategy())
        for run in ways(bus):
            with pytest.raises(ListenersFailedError) as caught:
                run(Placed())
            causes = [type(each.__cause__) for each in caught.value.exceptions]
            assert [ValueError, KeyError, ValueError][:expected] == causes

    def test_an_event_without_listeners_is_fine(self) -> None:
        """There is nothing to mark as handled (P15)."""
        bus = EventBus()
        bus.utilize(OnEventStrategy())
        bus.dispatch(Placed())


class TestFinderInvokeStrategy:
    def test_the_finders_find_returns_the_answer(self) -> None:
        """It takes the query and nothing else; a promise of its own will do (P14, B34, T15)."""
        promise: Promise[int] = Promise()
        promise.resolve(7)
        for answer in (7, promise):
            bus = QueryBus()
            bus.utilize(QueryRouter({Count: Finds(answer)}))
            bus.utilize(FinderInvokeStrategy())
            assert 7 == bus.dispatch(Count()).result(10)
            assert 7 == asyncio.run(bus.adispatch(Count()))


class TestKinds:
    @pytest.mark.parametrize(
        ("strategy", "bus"),
        [
            (HandleCommandStrategy(), EventBus()),
            (OnEventStrategy(), QueryBus()),
            (FinderInvokeStrategy(), CommandBus()),
        ],
    )
    def test_each_belongs_to_one_kind_of_bus(self, strategy: Any, bus: Any) -> None:
        """Another one refuses it, and keeps nothing of it (P14)."""
        with pytest.raises(RoutingError, match=r"is for a \w+ bus, and this is a"):
            bus.utilize(strategy)
        assert not bus.deactivate(strategy)
