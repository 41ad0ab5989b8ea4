"""Plugins: what they attach to a bus, and that it can be taken back."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.errors import NoHandlerError, RoutingError
from postbus.messages import Command, Envelope, Event, Query
from postbus.pipeline import Stage
from postbus.plugins import MessageProducerPlugin, ServiceLocatorPlugin
from postbus.routers import CommandRouter, EventRouter
from postbus.testing import RecordingProducer

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


class Audit:
    """Attaches one of everything."""

    def __init__(self, *, fails: bool = False) -> None:
        self.log: list[str] = []
        self._fails = fails

    def attach(self, bus: Any) -> None:
        bus.attach(Stage.INITIALIZE, self._note("initialize"))
        bus.wrap(self._around)
        bus.utilize(CommandRouter({"shop.audit": self._note("handled")}))
        bus.attach_services({})
        bus.unit_of_work(self._unit)
        if self._fails:
            raise OSError("no audit today")

    def _note(self, text: str) -> Callable[[object], None]:
        return lambda _: self.log.append(text)

    def _around(self, context: DispatchContext, call_next: Callable[[], Any]) -> Any:
        self.log.append("around")
        return call_next()

    def _unit(self) -> Audit:
        return self

    def __enter__(self) -> None:
        self.log.append("unit")

    def __exit__(self, *outcome: object) -> None: ...


def state(bus: Any) -> tuple[Any, ...]:
    return (
        {stage: entries for stage, entries in bus._listeners.items() if entries},
        bus._middlewares,
        bus._routers,
        bus._locators,
        bus._openers,
        bus._plugins,
    )


class TestUtilize:
    def test_a_plugin_is_undone_exactly(self) -> None:
        """Everything it attached goes, and nothing else (P20, C09)."""
        audit = Audit()
        bus = CommandBus()
        bus.utilize(CommandRouter({Place: lambda m: None}))
        bus.attach(Stage.ROUTE, lambda c: None)
        before = state(bus)
        bus.utilize(audit)
        bus.dispatch(Place())
        assert ["unit", "initialize", "around"] == audit.log
        assert bus.deactivate(audit)
        assert before == state(bus)
        audit.log.clear()
        bus.dispatch(Place())
        with pytest.raises(NoHandlerError):
            bus.dispatch("shop.audit")
        assert [] == audit.log
        assert not bus.deactivate(audit)

    def test_one_plugin_on_two_buses_is_taken_off_one_by_one(self) -> None:
        """Each bus knows what was attached to it (B12)."""
        audit = Audit()
        first, second = CommandBus(), CommandBus()
        for bus in (first, second):
            bus.utilize(audit)
        assert first.deactivate(audit)
        second.dispatch("shop.audit")
        assert ["unit", "initialize", "around", "handled"] == audit.log
        assert second.deactivate(audit)
        with pytest.raises(NoHandlerError):
            second.dispatch("shop.audit")

    def test_a_plugin_that_raises_leaves_nothing(self) -> None:
        """Not even what it utilized itself."""
        bus = CommandBus()
        before = state(bus)
        with pytest.raises(OSError, match="no audit today"):
            bus.utilize(Audit(fails=True))
        assert before == state(bus)

    def test_a_plugin_within_a_plugin_goes_with_it(self) -> None:
        """And may be taken off before."""

        class Outer:
            def __init__(self) -> None:
                self.inner = Audit()

            def attach(self, bus: Any) -> None:
                bus.utilize(self.inner)

        outer = Outer()
        bus = CommandBus()
        before = state(bus)
        bus.utilize(outer)
        assert bus.deactivate(outer)
        assert before == state(bus)
        bus.utilize(outer)
        assert bus.deactivate(outer.inner)
        assert bus.deactivate(outer)
        assert before == state(bus)

    def test_what_another_thread_attaches_is_not_the_plugins(self) -> None:
        """Attaching waits while a plugin attaches, and is not undone with it."""
        bus = CommandBus()
        called: list[int] = []
        attaching = threading.Event()

        def attach_elsewhere() -> None:
            attaching.set()
            bus.attach(Stage.ROUTE, lambda c: called.append(1))

        other = threading.Thread(target=attach_elsewhere)

        class Slow:
            def attach(self, bus: Any) -> None:
                other.start()
                assert attaching.wait(10)

        slow = Slow()
        bus.utilize(slow)
        other.join()
        assert bus.deactivate(slow)
        bus.utilize(CommandRouter({Place: lambda m: None}))
        bus.dispatch(Place())
        assert [1] == called


class TestHandles:
    def test_detach_works_once(self) -> None:
        """True the first time, and the listener is never called again (C08)."""
        called: list[int] = []
        bus = CommandBus()
        bus.utilize(CommandRouter({Place: lambda m: None}))
        handle = bus.attach(Stage.ROUTE, lambda c: called.append(1))
        bus.dispatch(Place())
        assert bus.detach(handle)
        assert not bus.detach(handle)
        bus.dispatch(Place())
        assert [1] == called

    def test_a_handle_belongs_to_its_bus(self) -> None:
        """Another bus does not know it."""
        first, second = CommandBus(), CommandBus()
        handle = first.wrap(lambda context, call_next: call_next())
        assert not second.detach(handle)
        assert first.detach(handle)

    def test_equal_listeners_are_told_apart(self) -> None:
        """Of two that are equal, the one meant goes, and the other keeps its place."""

        @attrs.frozen(order=False)
        class Equal:
            log: list[str] = attrs.field(eq=False)
            name: str = attrs.field(eq=False)

            def __call__(self, context: object) -> None:
                self.log.append(self.name)

        log: list[str] = []
        bus = CommandBus()
        bus.utilize(CommandRouter({Place: lambda m: None}))
        bus.attach(Stage.ROUTE, Equal(log, "first"))
        second = bus.attach(Stage.ROUTE, Equal(log, "second"))
        assert bus.detach(second)
        bus.dispatch(Place())
        assert ["first"] == log

    def test_an_unknown_stage_is_refused(self) -> None:
        """There are six (B01, T01)."""
        with pytest.raises(ValueError, match="invalid"):
            CommandBus().attach("invalid", lambda c: None)  # type: ignore[arg-type]
        assert 6 == len(Stage)


class TestMessageProducerPlugin:
    def test_every_message_of_the_bus_is_sent(self) -> None:
        """Commands, events and queries, whatever routes say, in any order (P12, T15)."""
        producer = RecordingProducer(answers={"shop.count": 5})
        got: list[object] = []
        commands, events, queries = CommandBus(), EventBus(), QueryBus()
        plugin = MessageProducerPlugin(producer)
        for bus in (commands, events, queries):
            bus.utilize(plugin)
        commands.utilize(CommandRouter({"**": got.append}))
        events.utilize(EventRouter({"**": got.append}))
        commands.dispatch(Place())
        events.dispatch(Placed())
        assert 5 == queries.dispatch(Count()).result()
        assert ["shop.place", "shop.placed", "shop.count"] == [m.name for m in producer.messages]
        assert [] == got
        commands.receive(Envelope(Place()), "memory")
        assert [Place()] == got

    def test_it_can_be_taken_off(self) -> None:
        """Then routes count again (P20)."""
        got: list[object] = []
        bus = CommandBus()
        plugin = MessageProducerPlugin(RecordingProducer())
        bus.utilize(plugin)
        bus.utilize(CommandRouter({Place: got.append}))
        assert bus.deactivate(plugin)
        bus.dispatch(Place())
        assert [Place()] == got

    def test_it_needs_a_producer(self) -> None:
        """None is refused, and so is an id that leads to something else."""
        with pytest.raises(RoutingError, match="needs a message producer"):
            MessageProducerPlugin(None)
        bus = CommandBus()
        bus.utilize(MessageProducerPlugin("mail"))
        bus.utilize(ServiceLocatorPlugin({"mail": lambda m: None}))
        with pytest.raises(RoutingError, match="is no message producer to send to"):
            bus.dispatch(Place())


class TestServiceLocatorPlugin:
    def test_ids_become_services_and_callables_stay(self) -> None:
        """For handlers and for each listener, in their order (P08)."""
        log: list[str] = []
        services = {"one": lambda m: log.append("one"), "two": lambda m: log.append("two")}
        events = EventBus()
        events.utilize(ServiceLocatorPlugin(services))
        events.utilize(EventRouter({Placed: ["two", lambda m: log.append("plain"), "one"]}))
        events.dispatch(Placed())
        commands = CommandBus()
        commands.utilize(CommandRouter({Place: "one"}))
        commands.utilize(ServiceLocatorPlugin(services))
        commands.dispatch(Place())
        assert ["two", "plain", "one", "one"] == log

    def test_the_first_that_knows_an_id_answers(self) -> None:
        """Several sources of services are asked in the order attached."""
        log: list[str] = []
        bus = CommandBus()
        bus.utilize(CommandRouter({Place: "one"}))
        bus.utilize(ServiceLocatorPlugin({"other": None}))
        first = ServiceLocatorPlugin({"one": lambda m: log.append("first")})
        bus.utilize(first)
        bus.utilize(ServiceLocatorPlugin({"one": lambda m: log.append("second")}))
        bus.dispatch(Place())
        bus.deactivate(first)
        asyncio.run(bus.adispatch(Place()))
        assert ["first", "second"] == log
