"""The event bus: every listener runs, what fails is reported once, and what is sent."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import EventBus
from postbus.catalog import MessageCatalog
from postbus.errors import (
    ConnectionFailedError,
    EncodeError,
    HandlerFailedError,
    ListenersFailedError,
    PartiallySentError,
    RoutingError,
    TimedOutError,
    UnsupportedError,
)
from postbus.messages import Envelope, Event
from postbus.pipeline import Stage, Target
from postbus.plugins import ServiceLocatorPlugin
from postbus.routers import EventRouter
from postbus.testing import RecordingProducer
from postbus.unit import Lifetime

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.frozen
class Placed(Event, name="shop.placed"):
    order: int = 1


class Heard(list[str]):
    """Listeners that note their name."""

    def first(self, message: object) -> None:
        self.append("first")

    def second(self, message: object) -> None:
        self.append("second")

    async def third(self, message: object) -> None:
        await asyncio.sleep(0)
        self.append("third")

    def bad(self, message: object) -> None:
        self.append("bad")
        raise ValueError("bad")

    async def worse(self, message: object) -> None:
        self.append("worse")
        await asyncio.sleep(0)
        raise KeyError("worse")


def make(routes: dict[Any, Any], send: dict[Any, Any] | None = None, **options: Any) -> EventBus:
    bus = EventBus(**options)
    bus.utilize(EventRouter(routes, send))
    return bus


def ways(bus: EventBus) -> list[Callable[..., None]]:
    """Return dispatch in both colours."""
    return [bus.dispatch, lambda message, **o: asyncio.run(bus.adispatch(message, **o))]


def failure(run: Callable[..., None], message: object) -> ListenersFailedError:
    with pytest.raises(ListenersFailedError) as caught:
        run(message)
    return caught.value


def done(error: ListenersFailedError) -> list[str]:
    assert error.envelope is not None
    names: list[str] = error.envelope.headers["done"]
    return [name.rpartition(".")[2] for name in names]


class TestDispatch:
    def test_listeners_run_in_route_order(self) -> None:
        """All of them, one listed twice is called twice, and none at all is fine (B28)."""
        heard = Heard()
        bus = make({Placed: [heard.first, heard.second, heard.first]})
        for run in ways(bus):
            heard.clear()
            run(Placed())
            run(Placed())
            assert ["first", "second", "first"] * 2 == heard
            run("shop.nobody-listens")

    def test_async_listeners_are_awaited_in_turn(self) -> None:
        """Colours mix under adispatch; dispatch refuses, naming the listener."""
        heard = Heard()
        bus = make({Placed: [heard.first, heard.third, heard.second]})
        asyncio.run(bus.adispatch(Placed()))
        assert ["first", "third", "second"] == heard
        heard.clear()
        with pytest.raises(RoutingError, match=r"Heard\.third is asynchronous"):
            bus.dispatch(Placed())
        assert [] == heard

    def test_a_coroutine_nobody_saw_coming_is_a_failure(self) -> None:
        """A lambda that returns a coroutine fails alone, and the coroutine is not lost."""
        heard = Heard()

        def decorated(listener: Callable[..., Any]) -> Callable[..., Any]:
            def call(message: object) -> Any:
                return listener(message)

            return call

        undecided = [lambda m: (m, heard.third(m))[1], decorated(heard.third)]
        bus = make({Placed: [*undecided, heard.second, lambda m: 5]})
        error = failure(bus.dispatch, Placed())
        assert [RoutingError, RoutingError] == [type(e.__cause__) for e in error.exceptions]
        assert ["second"] == heard
        asyncio.run(bus.adispatch(Placed()))

    def test_exact_and_pattern_count_in_the_order_of_the_routes(self) -> None:
        """Every match of an event counts."""
        heard = Heard()
        bus = make({"shop.*": heard.first, Placed: heard.second, "**": heard.first})
        bus.dispatch(Placed())
        assert ["first", "second", "first"] == heard

    def test_two_routers_add_their_listeners(self) -> None:
        """Listeners of a later router come after those that are there (P04)."""
        heard = Heard()
        bus = make({Placed: heard.second})
        bus.utilize(EventRouter({Placed: heard.first}))
        bus.dispatch(Placed())
        assert ["second", "first"] == heard

    def test_an_id_that_nothing_answers_to_is_an_error(self) -> None:
        """A listener is never skipped in silence (B33)."""
        with pytest.raises(RoutingError, match="nothing answers to the id 'nobody'"):
            make({Placed: ["nobody"]}).dispatch(Placed())

    def test_a_slow_listener_is_cancelled(self) -> None:
        """A listener's time-out is its failure; the others run."""
        heard = Heard()

        async def slow(message: object) -> None:
            await asyncio.Event().wait()

        bus = make({Placed: [Target(slow, timeout=0.01), heard.first]})
        error = failure(ways(bus)[1], Placed())
        assert isinstance(error.exceptions[0].__cause__, TimedOutError)
        assert ["first"] == heard


class TestFailure:
    def test_all_run_and_one_group_is_raised(self) -> None:
        """Failures in order, wrapped, with the ids of who failed and who is done (B30, T15)."""
        heard = Heard()
        bus = make({Placed: [heard.bad, heard.first, heard.bad, heard.second]})
        for run in ways(bus):
            heard.clear()
            error = failure(run, Placed())
            assert ["bad", "first", "bad", "second"] == heard
            bad = f"{__name__}.Heard.bad"
            assert (bad, f"{bad}#2") == error.failed
            assert (f"{__name__}.Heard.first", f"{__name__}.Heard.second") == error.done
            assert [ValueError, ValueError] == [type(e.__cause__) for e in error.exceptions]
            assert all(isinstance(e, HandlerFailedError) for e in error.exceptions)
            assert "2 of 4 listeners of shop.placed failed" in str(error)

    def test_one_failure_is_a_group_of_one(self) -> None:
        """A single failure is reported like several."""
        heard = Heard()
        error = failure(make({Placed: heard.bad}).dispatch, Placed())
        assert ["bad"] == [e.message for e in error.exceptions]
        error = failure(ways(make({Placed: heard.worse}))[1], Placed())
        assert [KeyError] == [type(e.__cause__) for e in error.exceptions]

    def test_stop_ends_at_the_first_failure(self) -> None:
        """`on_listener_error = "stop"` runs none of those behind it (B29)."""
        heard = Heard()
        bus = make({Placed: [heard.first, heard.bad, heard.second]}, on_listener_error="stop")
        for run in ways(bus):
            heard.clear()
            error = failure(run, Placed())
            assert ["first", "bad"] == heard
            assert ["first"] == done(error)
            assert 1 == len(error.exceptions)
            heard.clear()
            assert error.envelope is not None
            error = failure(run, error.envelope)
            assert ["bad"] == heard

    def test_dispatching_the_errors_envelope_runs_only_the_others(self) -> None:
        """The same message again, for the listeners that are not done."""
        heard = Heard()
        bus = make({Placed: [heard.first, heard.bad, heard.second, heard.bad]})
        for run in ways(bus):
            error = failure(run, Placed())
            assert error.envelope is not None
            heard.clear()
            again = failure(run, error.envelope)
            assert ["bad", "bad"] == heard
            assert ["first", "second"] == done(again)
            assert again.envelope is not None
            assert error.envelope.id == again.envelope.id
            heard.clear()
            run(again.envelope.evolve(headers={"done": [*error.done, *error.failed]}))
            assert [] == heard

    def test_headers_that_name_no_listener_change_nothing(self) -> None:
        """An envelope with other headers runs everything."""
        heard = Heard()
        bus = make({Placed: [heard.first]})
        bus.dispatch(Envelope(Placed(), headers={"attempt": 1}))
        assert ["first"] == heard

    def test_errors_belong_to_their_event(self) -> None:
        """An event dispatched by a listener reports its own failures only (B38)."""
        heard = Heard()
        bus = EventBus()

        def outer(message: object) -> None:
            error = failure(bus.dispatch, "shop.inner")
            assert 1 == len(error.exceptions)

        bus.utilize(EventRouter({Placed: [heard.bad, outer], "shop.inner": heard.bad}))
        assert 1 == len(failure(bus.dispatch, Placed()).exceptions)

    def test_what_is_no_exception_passes_at_once(self) -> None:
        """KeyboardInterrupt and cancellation end the dispatch unwrapped."""
        heard = Heard()

        def interrupt(message: object) -> None:
            raise KeyboardInterrupt

        async def cancelled(message: object) -> None:
            raise asyncio.CancelledError

        with pytest.raises(KeyboardInterrupt):
            make({Placed: [interrupt, heard.first]}).dispatch(Placed())
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(make({Placed: [cancelled, heard.first]}).adispatch(Placed()))
        assert [] == heard


class Unseen:
    """Services that say nothing about what they provide."""

    def __init__(self, service: object) -> None:
        self._service = service

    def has(self, id_: str, /) -> bool:
        return True

    def get(self, id_: str, /) -> object:
        return self._service

    def lifetime(self, id_: str, /) -> Lifetime:
        return Lifetime.ONCE


class TestSend:
    def test_a_sent_event_is_heard_where_it_is_received(self) -> None:
        """Here it goes to every producer of its send, there to the listeners."""
        heard = Heard()
        one, two = RecordingProducer(), RecordingProducer()
        bus = make({Placed: heard.first}, {Placed: [one, two]})
        for run in ways(bus):
            run(Placed())
        assert [] == heard
        assert [2, 2] == [len(one.messages), len(two.messages)]
        assert one.messages[0].body == two.messages[0].body
        bus.receive(Envelope(Placed()), "memory")
        assert ["first"] == heard
        bus.close()

    def test_a_dispatched_listener_stays_with_the_dispatching_process(self) -> None:
        """`when = "dispatched"` runs even where the event is sent, and never on a received one."""
        heard = Heard()
        producer = RecordingProducer()
        routes = {Placed: [Target(heard.first, when="dispatched"), heard.second]}
        bus = make(routes, {Placed: producer})
        for run in ways(bus):
            run(Placed())
        assert ["first", "first"] == heard
        assert 2 == len(producer.messages)
        heard.clear()
        bus.receive(Envelope(Placed()), "memory")
        assert ["second"] == heard
        heard.clear()
        make(routes).dispatch(Placed())
        assert ["first", "second"] == heard
        bus.close()

    def test_a_handler_of_a_sent_event_is_not_made_here(self) -> None:
        """The dispatching process does not need the services of the receiving one."""
        bus = make({Placed: "nobody-here"}, {Placed: RecordingProducer()})
        bus.dispatch(Placed())

    def test_an_id_means_the_same_listener_on_both_sides(self) -> None:
        """Ids are counted over all listeners: what is done here is not taken for done there."""
        heard = Heard()
        producer = RecordingProducer()
        catalog = MessageCatalog()
        catalog.add(Placed)
        routes = {Placed: [Target(heard.first, when="dispatched"), heard.first]}
        bus = make(routes, {Placed: producer})
        bus.dispatch(Envelope(Placed(), headers={"done": [f"{__name__}.Heard.first"]}))
        (envelope,) = producer.decoded(catalog)
        bus.receive(envelope, "memory")
        assert ["first"] == heard

    def test_a_failing_listener_does_not_keep_the_event_from_being_sent(self) -> None:
        """The failure is reported, and dispatching its envelope again sends nothing twice."""
        heard = Heard()
        producer = RecordingProducer()
        bus = make({Placed: Target(heard.bad, when="dispatched")}, {Placed: producer})
        for sent, run in enumerate(ways(bus), start=1):
            error = failure(run, Placed())
            assert sent == len(producer.messages)
            assert error.envelope is not None
            failure(run, error.envelope)
            assert sent == len(producer.messages)
        bus.close()

    def test_stop_mode_sends_nothing_behind_a_failure(self) -> None:
        """The send comes after the listeners, and is stopped like them."""
        producer = RecordingProducer()
        routes = {Placed: Target(Heard().bad, when="dispatched")}
        bus = make(routes, {Placed: producer}, on_listener_error="stop")
        for run in ways(bus):
            failure(run, Placed())
        assert [] == producer.messages

    def test_a_failed_send_is_a_transport_error_that_remembers_the_listeners(self) -> None:
        """Dispatching the error's envelope again sends only: who listened here is done."""
        heard = Heard()
        lost = ConnectionFailedError("no peer")
        routes = {Placed: Target(heard.first, when="dispatched")}
        bus = make(routes, {Placed: RecordingProducer(error=lost)})
        for run in ways(bus):
            lost.envelope = None
            with pytest.raises(ConnectionFailedError) as caught:
                run(Placed())
            assert ["first"] == heard
            assert caught.value.envelope is not None
            again = caught.value.envelope
            with pytest.raises(ConnectionFailedError):
                run(again)
            assert ["first"] == heard
            heard.clear()
        bus.close()

    def test_when_listeners_and_send_fail_nothing_is_silent(self) -> None:
        """The group is raised, caused by what the transport said; its envelope sends again."""
        heard = Heard()
        bus = make(
            {Placed: Target(heard.bad, when="dispatched")},
            {Placed: RecordingProducer(error=ConnectionFailedError("no peer"))},
        )
        for run in ways(bus):
            error = failure(run, Placed())
            assert isinstance(error.__cause__, ConnectionFailedError)
            assert "and 1 sends: no peer" in str(error)
            assert [] == done(error)
        bus.close()

    def test_an_event_that_cannot_be_encoded_is_said_to_be(self) -> None:
        """Beside listeners as without them."""

        class Plain(Event, name="shop.plain"): ...

        listener = Target(Heard().first, when="dispatched")
        for routes in ({Plain: listener}, {}):
            with pytest.raises(EncodeError):
                make(routes, {Plain: RecordingProducer()}).dispatch(Plain())

    def test_one_of_several_producers_may_fail(self) -> None:
        """The others have it, and the error says which has not."""
        good = RecordingProducer()
        bad = RecordingProducer(error=ConnectionFailedError("no peer"))
        bus = make({}, {Placed: [bad, good]})
        for run in ways(bus):
            with pytest.raises(PartiallySentError, match="1 of 2 producers") as caught:
                run(Placed())
            assert [0] == list(caught.value.failed)
            assert caught.value.envelope is not None
        assert 2 == len(good.messages)
        bus.close()

    def test_a_producer_among_listeners_sends(self) -> None:
        """In `routes` it is short for `send`: the others listen where it is received."""
        heard = Heard()
        producer = RecordingProducer()
        for to in (producer, "mail"):
            bus = make({Placed: [heard.first, to]})
            bus.utilize(ServiceLocatorPlugin({"mail": producer}))
            bus.dispatch(Placed())
            bus.receive(Envelope(Placed()), "memory")
        assert ["first", "first"] == heard
        assert 2 == len(producer.messages)

    def test_a_producer_that_could_not_be_seen_is_refused(self) -> None:
        """Rather than sent to in one process and not in another."""
        bus = make({Placed: "mail"})
        bus.utilize(ServiceLocatorPlugin(Unseen(RecordingProducer())))
        with pytest.raises(RoutingError, match="mail is a message producer among listeners"):
            bus.dispatch(Placed())

    def test_a_delay_needs_a_send(self) -> None:
        """Listeners are not called later."""
        with pytest.raises(UnsupportedError, match="a delay needs a send"):
            make({Placed: Heard().first}).dispatch(Placed(), delay=1.0)


class TestThreads:
    def test_a_listener_with_threads_runs_in_one(self) -> None:
        """Under adispatch only that listener leaves the loop; its failure comes back."""
        threads: list[int] = []

        def note(message: object) -> None:
            threads.append(threading.get_ident())

        heard = Heard()
        bus = make({Placed: [Target(note, threads=True), note, Target(heard.bad, threads=True)]})
        failure(ways(bus)[1], Placed())
        first, second = threads
        assert first != threading.get_ident() == second
        threads.clear()
        failure(bus.dispatch, Placed())
        assert {threading.get_ident()} == set(threads)
        bus.close()

    def test_an_async_listener_cannot_have_threads(self) -> None:
        """It is refused when the plan is compiled, by name."""
        with pytest.raises(RoutingError, match=r"threads = true, but .*third is asynchronous"):
            make({Placed: Target(Heard().third, threads=True)}).dispatch(Placed())

    def test_a_worker_runs_plain_listeners_in_a_thread(self) -> None:
        """As a whole in one thread, unless one of them says false."""
        threads: list[int] = []

        def note(message: object) -> None:
            threads.append(threading.get_ident())

        for threads_of_route, is_here in ((None, False), (False, True)):
            threads.clear()
            bus = make({Placed: [note, Target(note, threads=threads_of_route)]})
            asyncio.run(bus.areceive(Envelope(Placed()), "memory", threads=True))
            assert 1 == len(set(threads))
            assert is_here == (threading.get_ident() in threads)
            bus.close()


class TestContext:
    def test_listeners_are_shown_and_may_be_replaced(self) -> None:
        """What the route names at ROUTE, what it turned out to be from LOCATE on (P08)."""
        heard = Heard()
        seen: list[Any] = []
        bus = make({Placed: ["id", heard.second]})
        bus.utilize(ServiceLocatorPlugin({"id": heard.first}))
        handles = [
            bus.attach(Stage.LOCATE, lambda c: seen.append(tuple(c.listeners))),
            bus.attach(Stage.INVOKE, lambda c: seen.append(tuple(c.listeners))),
        ]
        bus.dispatch(Placed())
        assert [("id", heard.second), (heard.first, heard.second)] == seen
        assert ["first", "second"] == heard
        for handle in handles:
            bus.detach(handle)
        heard.clear()
        bus.attach(Stage.ROUTE, lambda c: setattr(c, "listeners", ["id", heard.first, "id"]))
        for run in ways(bus):
            run(Placed())
        assert ["first", "first", "first"] * 2 == heard

    def test_a_sent_event_shows_where_it_goes(self) -> None:
        """Listeners of the bus see the producers, as the route names them and as they are."""
        seen: list[Any] = []
        producer = RecordingProducer()
        bus = make({}, {Placed: "mail"})
        bus.utilize(ServiceLocatorPlugin({"mail": producer}))
        bus.attach(Stage.LOCATE, lambda c: seen.append(c.listeners))
        bus.attach(Stage.INVOKE, lambda c: seen.append(c.listeners))
        bus.dispatch(Placed())
        assert [("mail",), (producer,)] == seen
        assert 1 == len(producer.messages)

    def test_a_stopped_event_ends_quietly(self) -> None:
        """No listener runs, nothing is raised, FINALIZE sees it."""
        heard = Heard()
        stopped: list[bool] = []
        bus = make({Placed: heard.first})
        bus.attach(Stage.ROUTE, lambda c: c.stop())
        bus.attach(Stage.FINALIZE, lambda c: stopped.append(c.stopped))
        for run in ways(bus):
            run(Placed())
        assert ([], [True, True]) == (heard, stopped)

    def test_a_missing_handler_is_no_matter_for_events(self) -> None:
        """Even received ones: nobody has to listen."""
        bus = make({})
        bus.receive(Envelope(Placed()), "memory")
