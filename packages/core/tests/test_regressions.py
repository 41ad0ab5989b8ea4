"""What broke once in the system that postbus succeeds, as its changelog records it (E05)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.errors import DispatchError, NoHandlerError, UnauthorizedError
from postbus.messages import Command, Event, Query
from postbus.pipeline import Stage
from postbus.plugins import (
    FinalizeGuard,
    FinderInvokeStrategy,
    HandleCommandStrategy,
    OnEventStrategy,
    RouteGuard,
    ServiceLocatorPlugin,
)
from postbus.routers import CommandRouter, EventRouter, QueryRouter

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.pipeline import DispatchContext


@attrs.frozen
class Place(Command, name="shop.place"):
    pass


@attrs.frozen
class Placed(Event, name="shop.placed"):
    pass


@attrs.frozen
class Count(Query[int], name="shop.count"):
    pass


class Shape:
    """A handler with the method of every strategy."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def handle(self, message: object) -> None:
        self.calls.append("handle")

    def on_event(self, message: object) -> None:
        self.calls.append("on_event")

    def find(self, message: object) -> int:
        self.calls.append("find")
        return 5


class CallableShape(Shape):
    def __call__(self, message: object) -> None:
        self.calls.append("call")


def ways(bus: Any) -> list[Callable[..., Any]]:
    """Return dispatch in both colours."""
    return [bus.dispatch, lambda message: asyncio.run(bus.adispatch(message))]


class Verdict:
    def __init__(self, *, granted: bool) -> None:
        self._granted = granted

    def is_granted(self, name: str, context: Any = None) -> bool:
        return self._granted


class TestFinalize:
    @pytest.mark.parametrize("stage", [s for s in Stage if s is not Stage.FINALIZE])
    def test_it_is_skipped_after_a_stop(self, stage: Stage) -> None:
        """It is not: whichever stage a listener stops at, monitors run (E05, B07)."""
        seen: list[bool] = []
        for bus in (CommandBus(), EventBus()):
            bus.attach(stage, lambda c: c.stop())
            bus.attach(Stage.FINALIZE, lambda c: seen.append(c.stopped))
            for run in ways(bus):
                if isinstance(bus, CommandBus):
                    with pytest.raises(DispatchError):
                        run(Place())
                else:
                    run(Placed())
        assert [True] * 4 == seen

    @pytest.mark.parametrize("priority", [-2000, 0, 2000])
    def test_a_denial_is_lost_when_others_listen(self, priority: int) -> None:
        """It is not, whichever listener comes first (E05, P16, P17)."""
        guards: list[Any] = [RouteGuard, FinalizeGuard]
        for guard in guards:
            bus = QueryBus()
            bus.utilize(QueryRouter({Count: lambda q: 5}))
            bus.attach(Stage.FINALIZE, lambda c: None, priority)
            bus.utilize(guard(Verdict(granted=False)))
            bus.attach(Stage.FINALIZE, lambda c: None, priority)
            with pytest.raises(UnauthorizedError):
                bus.dispatch(Count()).result()
            with pytest.raises(UnauthorizedError):
                asyncio.run(bus.adispatch(Count()))

    def test_a_guard_makes_the_answer_null(self) -> None:
        """It does not: what is granted is what the finder said (E05, P17)."""
        bus = QueryBus()
        bus.utilize(QueryRouter({Count: lambda q: 5}))
        bus.utilize(FinalizeGuard(Verdict(granted=True)))
        assert 5 == bus.dispatch(Count()).result()
        assert 5 == asyncio.run(bus.adispatch(Count()))


class TestLocator:
    def test_it_drops_listeners_that_are_no_ids(self) -> None:
        """It does not: all of them run, in their order (E05, P08)."""
        log: list[str] = []
        bus = EventBus()
        services = {"one": lambda e: log.append("one"), "two": lambda e: log.append("two")}
        listeners = [lambda e: log.append("a"), "one", lambda e: log.append("b"), "two"]
        bus.utilize(EventRouter({Placed: listeners}))
        bus.utilize(ServiceLocatorPlugin(services))
        bus.dispatch(Placed())
        assert ["a", "one", "b", "two"] == log

    def test_it_leaves_ids_among_the_listeners(self) -> None:
        """It does not: from LOCATE on there are only callables (E05, P08)."""
        seen: list[Any] = []
        bus = EventBus()
        bus.utilize(EventRouter({Placed: ["one", "one"]}))
        bus.utilize(ServiceLocatorPlugin({"one": lambda e: None}))
        bus.attach(Stage.INVOKE, lambda c: seen.extend(c.listeners))
        bus.dispatch(Placed())
        assert [True, True] == [callable(each) for each in seen]


class TestStrategies:
    def test_a_handled_message_is_handled_again(self) -> None:
        """It is not: a callable is called, and that is all (E05, P14)."""
        shape = CallableShape()
        buses: list[tuple[Any, Any]] = [
            (CommandBus(), HandleCommandStrategy()),
            (EventBus(), OnEventStrategy()),
            (QueryBus(), FinderInvokeStrategy()),
        ]
        routers = (CommandRouter, EventRouter, QueryRouter)
        for (bus, strategy), router in zip(buses, routers, strict=True):
            bus.utilize(router({"shop.*": shape}))
            bus.utilize(strategy)
            bus.dispatch("shop.x")
        assert ["call"] * 3 == shape.calls

    def test_a_strategy_and_callables_do_not_mix(self) -> None:
        """They do: each listener runs once, in route order (E05, P15)."""
        shape, other = Shape(), CallableShape()
        bus = EventBus()
        bus.utilize(EventRouter({Placed: [other, shape, shape.calls.append]}))
        bus.utilize(OnEventStrategy())
        bus.dispatch(Placed())
        assert (["on_event", Placed()], ["call"]) == (shape.calls, other.calls)

    def test_a_name_of_its_own_is_ignored(self) -> None:
        """It is not: a message's own name routes it, and so does a listener's (E05)."""
        shape = Shape()

        class Named:
            message_name = "shop.named"

        def rename(context: DispatchContext) -> None:
            if context.message == "anything":
                context.name = "shop.named"

        buses: list[tuple[Any, Any, Any]] = [
            (CommandBus(), CommandRouter, HandleCommandStrategy()),
            (EventBus(), EventRouter, OnEventStrategy()),
            (QueryBus(), QueryRouter, FinderInvokeStrategy()),
        ]
        for bus, router, strategy in buses:
            bus.utilize(router({"shop.named": shape}))
            bus.utilize(strategy)
            bus.dispatch(Named())
            bus.attach(Stage.DETECT_NAME, rename)
            bus.dispatch("anything")
        assert ["handle"] * 2 + ["on_event"] * 2 + ["find"] * 2 == shape.calls


class TestDispatching:
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_the_flag_is_stuck_after_an_error(self, error: type[BaseException]) -> None:
        """It is not: whatever a handler raised, the next dispatch runs at once (E05, T02)."""
        got: list[object] = []

        def fail(message: object) -> None:
            raise error

        bus = CommandBus()
        bus.utilize(CommandRouter({"shop.bad": fail, Place: got.append}))
        with pytest.raises((DispatchError, error)):
            bus.dispatch("shop.bad")
        bus.dispatch(Place())
        with pytest.raises(NoHandlerError):
            bus.dispatch("shop.nobody")
        bus.dispatch(Place())
        assert [Place(), Place()] == got
