"""Correlation: which message caused which, through nested dispatches and over the wire."""

from __future__ import annotations

import asyncio
import threading
from contextlib import nullcontext
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.catalog import MessageCatalog
from postbus.errors import CommandDispatchError
from postbus.messages import Command, Envelope, Event, Query
from postbus.pipeline import Stage, Target
from postbus.plugins import CorrelationPlugin
from postbus.routers import CommandRouter, EventRouter, QueryRouter
from postbus.testing import RecordingProducer
from postbus.wire import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from postbus.pipeline import DispatchContext


@attrs.frozen
class Place(Command, name="shop.place"):
    pass


@attrs.frozen
class Pay(Command, name="shop.pay"):
    pass


@attrs.frozen
class Placed(Event, name="shop.placed"):
    pass


@attrs.frozen
class Count(Query[int], name="shop.count"):
    pass


class Shop:
    """A bus of each kind with one plugin on all of them, and the envelopes they handled."""

    def __init__(self) -> None:
        self.seen: dict[str, Envelope] = {}
        self.commands, self.events, self.queries = CommandBus(), EventBus(), QueryBus()
        plugin = CorrelationPlugin()
        for bus in (self.commands, self.events, self.queries):
            bus.utilize(plugin)
            bus.wrap(self._see)

    def _see(self, context: DispatchContext) -> AbstractContextManager[None]:
        self.seen[context.name] = context.envelope
        return nullcontext()

    def ids(self, name: str) -> tuple[Any, Any]:
        headers = self.seen[name].headers
        return headers.get("causation_id"), headers.get("correlation_id")

    def id(self, name: str) -> str:
        return self.seen[name].id


class TestNested:
    def test_a_message_has_the_one_as_parent_during_which_it_was_dispatched(self) -> None:
        """Causation is the parent, correlation the first of them all."""
        shop = Shop()

        def place(command: object) -> None:
            shop.events.dispatch(Placed())

        def placed(event: object) -> None:
            assert 5 == shop.queries.dispatch(Count()).result()

        shop.commands.utilize(CommandRouter({Place: place}))
        shop.events.utilize(EventRouter({Placed: placed}))
        shop.queries.utilize(QueryRouter({Count: lambda q: 5}))
        shop.commands.dispatch(Place())
        first = shop.id("shop.place")
        assert (None, None) == shop.ids("shop.place")
        assert (first, first) == shop.ids("shop.placed")
        assert (shop.id("shop.placed"), first) == shop.ids("shop.count")

    def test_a_parent_is_over_when_it_is_handled(self) -> None:
        """What is dispatched afterwards has none, also after a failure."""
        shop = Shop()

        def place(command: object) -> None:
            raise ValueError

        shop.commands.utilize(CommandRouter({Place: place, Pay: lambda m: None}))
        with pytest.raises(Exception, match="ValueError"):
            shop.commands.dispatch(Place())
        shop.commands.dispatch(Pay())
        assert (None, None) == shop.ids("shop.pay")

    def test_a_queued_command_has_the_parent_that_dispatched_it(self) -> None:
        """Not the one after which its turn came."""
        shop = Shop()

        def place(command: object) -> None:
            shop.commands.dispatch("shop.a")
            shop.commands.dispatch("shop.b")

        def a(command: object) -> None:
            shop.commands.dispatch("shop.c")

        names = {"shop.a": a, "shop.b": lambda m: None, "shop.c": lambda m: None}
        shop.commands.utilize(CommandRouter({Place: place, **names}))
        for run in (shop.commands.dispatch, run_async(shop.commands)):
            run(Place())
            first = shop.id("shop.place")
            assert (first, first) == shop.ids("shop.b")
            assert (shop.id("shop.a"), first) == shop.ids("shop.c")

    def test_what_comes_back_pending_keeps_its_cause(self) -> None:
        """Dispatched again, elsewhere, it is the same message with the same parent."""
        shop = Shop()

        def place(command: object) -> None:
            shop.commands.dispatch(Pay())
            raise ValueError

        shop.commands.utilize(CommandRouter({Place: place, Pay: lambda m: None}))
        with pytest.raises(CommandDispatchError) as caught:
            shop.commands.dispatch(Place())
        (pending,) = caught.value.pending
        shop.commands.utilize(CommandRouter({"shop.again": lambda m: again(pending)}))

        def again(envelope: Envelope) -> None:
            shop.commands.dispatch(envelope)

        shop.commands.dispatch("shop.again")
        first = shop.id("shop.place")
        assert pending.id == shop.id("shop.pay")
        assert (first, first) == shop.ids("shop.pay")

    def test_headers_that_an_envelope_brings_stay(self) -> None:
        """An application may have an id of its own, of a web request, say."""
        shop = Shop()

        def place(command: object) -> None:
            shop.commands.dispatch(Envelope(Pay(), headers={"correlation_id": "mine"}))

        shop.commands.utilize(CommandRouter({Place: place, Pay: lambda m: None}))
        shop.commands.dispatch(Envelope(Place(), headers={"correlation_id": "request-7"}))
        assert (None, "request-7") == shop.ids("shop.place")
        assert (shop.id("shop.place"), "mine") == shop.ids("shop.pay")

    def test_it_can_be_taken_off(self) -> None:
        """Of one bus; the fast way is open again then (P20, B12)."""
        first, second = CommandBus(), CommandBus()
        plugin = CorrelationPlugin()
        for bus in (first, second):
            bus.utilize(CommandRouter({Place: lambda m: None}))
            bus.utilize(plugin)
            bus.dispatch(Place())
            assert Place not in bus._fast
        assert first.deactivate(plugin)
        assert ((), ()) == (first._interceptors, first._middlewares)
        first.dispatch(Place())
        assert Place in first._fast
        assert 1 == len(second._interceptors)


class TestInheritance:
    def test_child_tasks_and_threads_of_asyncio_have_the_same_parent(self) -> None:
        """Although their commands are outermost ones, which do not wait in the queue (T02)."""
        shop = Shop()

        async def place(command: object) -> None:
            await asyncio.create_task(shop.commands.adispatch("shop.task"))
            await asyncio.to_thread(shop.commands.dispatch, "shop.thread")
            assert {"shop.place", "shop.task", "shop.thread"} == set(shop.seen)

        names = {"shop.task": lambda m: None, "shop.thread": lambda m: None}
        shop.commands.utilize(CommandRouter({Place: place, **names}))
        asyncio.run(shop.commands.adispatch(Place()))
        first = shop.id("shop.place")
        assert (first, first) == shop.ids("shop.task") == shop.ids("shop.thread")

    def test_another_thread_has_none(self) -> None:
        """A plain thread does not inherit what its starter does."""
        shop = Shop()

        def place(command: object) -> None:
            thread = threading.Thread(target=shop.commands.dispatch, args=(Pay(),))
            thread.start()
            thread.join()

        shop.commands.utilize(CommandRouter({Place: place, Pay: lambda m: None}))
        shop.commands.dispatch(Place())
        assert (None, None) == shop.ids("shop.pay")

    def test_concurrent_dispatches_do_not_mix(self) -> None:
        """Each task has its own parent."""
        shop = Shop()
        found: dict[str, Any] = {}
        both = asyncio.Barrier(2)

        async def outer(command: Any) -> None:
            await both.wait()
            await shop.queries.adispatch(Envelope(command, name="shop.inner"))

        def find(context: DispatchContext) -> AbstractContextManager[None]:
            found[context.message] = context.envelope.headers["causation_id"]
            return nullcontext()

        shop.commands.utilize(CommandRouter({"a": outer, "b": outer}))
        shop.queries.utilize(QueryRouter({"shop.inner": lambda q: None}))
        shop.queries.wrap(find)
        sent = {name: Envelope(name) for name in "ab"}

        async def dispatch_both() -> None:
            await asyncio.gather(*(shop.commands.adispatch(each) for each in sent.values()))

        asyncio.run(dispatch_both())
        assert {name: each.id for name, each in sent.items()} == found

    def test_a_dispatch_that_is_closed_from_elsewhere_ends_quietly(self) -> None:
        """As when its task is dropped unfinished: there is nothing to go back to."""
        shop = Shop()

        class Forever:
            def __await__(self) -> Any:
                yield

        async def placed(event: object) -> None:
            await Forever()

        shop.events.utilize(EventRouter({Placed: placed}))
        dispatching = shop.events.adispatch(Placed())
        copy_context().run(dispatching.send, None)
        dispatching.close()
        shop.events.utilize(EventRouter({"shop.next": lambda e: None}))
        shop.events.dispatch("shop.next")
        assert (None, None) == shop.ids("shop.next")

    def test_a_handler_in_a_thread_is_a_parent_too(self) -> None:
        """`threads = true` takes the context along, for a command and for a listener."""
        shop = Shop()

        def place(command: object) -> None:
            shop.events.dispatch(Placed())

        async def placed(event: object) -> None:
            await shop.commands.adispatch(Place())

        shop.commands.utilize(CommandRouter({Place: Target(place, threads=True)}))
        shop.events.utilize(EventRouter({Placed: Target(lambda e: None, threads=True)}))
        shop.events.utilize(EventRouter({"shop.start": placed}))
        asyncio.run(shop.events.adispatch("shop.start"))
        first = shop.id("shop.start")
        assert (first, first) == shop.ids("shop.place")
        assert (shop.id("shop.place"), first) == shop.ids("shop.placed")
        for bus in (shop.commands, shop.events):
            bus.close()


class TestWire:
    def test_ids_travel_and_a_received_message_is_a_parent(self) -> None:
        """Whether or not its sender wrote any down."""
        catalog = MessageCatalog()
        catalog.add(Pay)
        producer = RecordingProducer()
        sending = Shop()
        sending.commands.utilize(
            CommandRouter({Place: lambda m: sending.commands.dispatch(Pay())}, {Pay: producer})
        )
        sending.commands.dispatch(Place())
        first = sending.id("shop.place")
        (arrived,) = producer.decoded(catalog)
        assert {"causation_id": first, "correlation_id": first} == {
            name: arrived.headers[name] for name in ("causation_id", "correlation_id")
        }
        receiving = Shop()
        receiving.commands.utilize(
            CommandRouter({Pay: lambda m: receiving.events.dispatch(Placed())})
        )
        receiving.commands.receive(arrived, "mail")
        assert (arrived.id, first) == receiving.ids("shop.placed")
        plain = decode(encode(Envelope(Pay())), catalog)
        asyncio.run(receiving.commands.areceive(plain, "mail"))
        assert (plain.id, plain.id) == receiving.ids("shop.placed")


class TestInterceptors:
    def test_they_run_in_order_where_a_message_is_dispatched(self) -> None:
        """In both colours, whatever was dispatched and however; not for received ones."""
        log: list[str] = []

        def note(text: str) -> Callable[[Envelope], Envelope]:
            def intercept(envelope: Envelope) -> Envelope:
                log.append(f"{text} {envelope.name}")
                return envelope.evolve(metadata={**envelope.metadata, text: True})

            return intercept

        got: list[Envelope] = []
        bus = CommandBus()
        bus.utilize(CommandRouter({Place: lambda m: None}))
        bus.attach(Stage.INVOKE, lambda context: got.append(context.envelope))
        bus.intercept(note("first"))
        bus.intercept(note("second"))
        for run in (bus.dispatch, run_async(bus)):
            run(Place())
            run(Envelope(Place()))
            run(Place(), metadata={"user": 7})
            assert ["first shop.place", "second shop.place"] * 3 == log
            both = {"first": True, "second": True}
            assert [both, both, {"user": 7, **both}] == [e.metadata for e in got]
            log.clear()
            got.clear()
        bus.receive(Envelope(Place()), "mail")
        assert [] == log

    def test_one_may_give_another_message(self) -> None:
        """Which is dispatched then."""
        got: list[object] = []
        bus = CommandBus()
        bus.utilize(CommandRouter({Pay: got.append}))
        bus.intercept(lambda envelope: Envelope(Pay()))
        bus.dispatch(Place())
        assert [Pay()] == got

    def test_one_that_raises_does_so_where_the_message_is_dispatched(self) -> None:
        """A nested command is refused in the handler; a query is rejected (B35)."""
        refused: list[str] = []

        def refuse(envelope: Envelope) -> Envelope:
            if envelope.name == "shop.place":
                return envelope
            raise OSError("not now")

        def place(command: object) -> None:
            with pytest.raises(OSError, match="not now"):
                bus.dispatch(Pay())
            refused.append("in the handler")

        bus = CommandBus()
        bus.utilize(CommandRouter({Place: place}))
        handle = bus.intercept(refuse)
        bus.dispatch(Place())
        assert ["in the handler"] == refused
        assert bus.detach(handle)
        queries = QueryBus()
        queries.intercept(refuse)
        assert isinstance(queries.dispatch(Count()).exception(), OSError)


def run_async(bus: CommandBus) -> Callable[..., None]:
    return lambda message, **options: asyncio.run(bus.adispatch(message, **options))
