"""Guards: nothing is handled, and no answer given, that the service does not grant."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.errors import DispatchError, HandlerFailedError, RoutingError, UnauthorizedError
from postbus.messages import Command, Envelope, Event, Query
from postbus.pipeline import Stage
from postbus.plugins import FinalizeGuard, RouteGuard
from postbus.promises import Promise
from postbus.routers import CommandRouter, EventRouter, QueryRouter
from postbus.runtime import build
from postbus.testing import RecordingProducer

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


class Grants:
    """An authorization service that notes what it was asked."""

    def __init__(self, verdict: Any = True) -> None:
        self.verdict = verdict
        self.asked: list[tuple[str, object]] = []

    def is_granted(self, name: str, context: Any = None) -> Any:
        self.asked.append((name, context))
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


def ways(bus: Any) -> list[Callable[..., Any]]:
    """Return dispatch in both colours; of a query, waiting for its answer."""

    def run(message: object) -> Any:
        made = bus.dispatch(message)
        return made.result(10) if isinstance(made, Promise) else made

    return [run, lambda message: asyncio.run(bus.adispatch(message))]


def make(handler: Any) -> list[tuple[Any, object]]:
    """Return a bus of each kind, with a message for it that *handler* takes."""
    made: list[tuple[Any, object]] = [
        (CommandBus(), Place()),
        (EventBus(), Placed()),
        (QueryBus(), Count()),
    ]
    for (bus, _), router in zip(made, (CommandRouter, EventRouter, QueryRouter), strict=True):
        bus.utilize(router({"shop.*": handler}))
    return made


def queries(finder: Any) -> QueryBus:
    bus = QueryBus()
    bus.utilize(QueryRouter({Count: finder}))
    return bus


class TestRouteGuard:
    def test_what_is_not_granted_is_not_handled(self) -> None:
        """On every kind of bus, in the same words and the same family (P16, P18, T07)."""
        got: list[object] = []
        for bus, message in make(got.append):
            bus.utilize(RouteGuard(Grants(verdict=False)))
            for run in ways(bus):
                with pytest.raises(UnauthorizedError, match=r"not authorized for this message$"):
                    run(message)
        assert [] == got
        assert issubclass(UnauthorizedError, DispatchError)

    def test_what_is_granted_is_handled(self) -> None:
        """The service is asked with name and message (P16)."""
        for bus, message in make(lambda m: 5):
            service = Grants()
            bus.utilize(RouteGuard(service))
            for run in ways(bus):
                run(message)
            assert [(bus.make_envelope(message).name, message)] * 2 == service.asked

    def test_the_name_is_exposed_where_that_is_asked_for(self) -> None:
        """Not unless: the words may cross the wire (P18)."""
        ((bus, message), *_) = make(print)
        bus.utilize(RouteGuard(Grants(verdict=False), expose_message_name=True))
        with pytest.raises(UnauthorizedError, match=r'authorized for the message "shop\.place"$'):
            bus.dispatch(message)

    def test_nothing_is_sent_that_is_not_granted(self) -> None:
        """A message that leaves is guarded like one that stays (P16)."""
        producer = RecordingProducer()
        bus = CommandBus()
        bus.utilize(CommandRouter({}, {Place: producer}))
        bus.utilize(RouteGuard(Grants(verdict=False)))
        with pytest.raises(UnauthorizedError):
            bus.dispatch(Place())
        assert [] == producer.messages

    def test_a_received_message_is_guarded(self) -> None:
        """A worker is no way round it (P16)."""
        ((bus, message), *_) = make(print)
        bus.utilize(RouteGuard(Grants(verdict=False)))
        with pytest.raises(UnauthorizedError) as caught:
            bus.receive(Envelope(message), "mail")
        assert caught.value.envelope is not None
        assert "mail" == caught.value.envelope.received_from

    @pytest.mark.parametrize("verdict", [None, 1, "yes", object()])
    def test_only_true_grants(self, verdict: object) -> None:
        """A service that forgot to answer grants nothing (P16)."""
        ((bus, message), *_) = make(print)
        bus.utilize(RouteGuard(Grants(verdict)))
        with pytest.raises(UnauthorizedError):
            bus.dispatch(message)

    def test_a_service_that_fails_grants_nothing(self) -> None:
        """What it raises is what the caller gets (P16)."""
        got: list[object] = []
        ((bus, message), *_) = make(got.append)
        bus.utilize(RouteGuard(Grants(OSError("no database"))))
        with pytest.raises(OSError, match="no database"):
            bus.dispatch(message)
        assert [] == got

    def test_a_service_cannot_be_asynchronous(self) -> None:
        """Its coroutine would be true (P16)."""

        class Later:
            async def is_granted(self, name: str, context: Any = None) -> bool:
                return False

        for guard in (RouteGuard, FinalizeGuard):
            with pytest.raises(RoutingError, match="is asynchronous, and a guard cannot wait"):
                guard(Later())  # type: ignore[arg-type]  # what the type checker refuses as well

    def test_it_can_be_taken_off(self) -> None:
        """Then everything is granted (P20)."""
        got: list[object] = []
        ((bus, message), *_) = make(got.append)
        guard = RouteGuard(Grants(verdict=False))
        bus.utilize(guard)
        assert bus.deactivate(guard)
        bus.dispatch(message)
        assert [message] == got

    def test_it_is_named_in_a_configuration(self) -> None:
        """As a service, and asked before anything is routed (F03, F06, P16)."""
        got: list[object] = []
        section = {"plugins": ["guard"], "router": {"routes": {}}}
        services = {"guard": RouteGuard(Grants(verdict=False))}
        with build({"command_bus": section}, services) as postbus:
            postbus.command_bus.utilize(CommandRouter({Place: got.append}))
            with pytest.raises(UnauthorizedError):
                postbus.command_bus.dispatch(Place())
        assert [] == got


class TestFinalizeGuard:
    def test_an_answer_that_is_not_granted_is_withheld(self) -> None:
        """The service is asked with the answer; the query fails (P17)."""
        service = Grants(verdict=False)
        bus = queries(lambda q: 5)
        bus.utilize(FinalizeGuard(service, expose_message_name=True))
        for run in ways(bus):
            with pytest.raises(UnauthorizedError, match=r'the message "shop\.count"'):
                run(Count())
        assert [("shop.count", 5)] * 2 == service.asked

    def test_an_answer_that_is_granted_is_given(self) -> None:
        """None and 0 are answers too (P17, E05)."""
        answers: list[Any] = [5, 0, None, []]
        for answer in answers:
            bus = queries(lambda q, answer=answer: answer)
            bus.utilize(FinalizeGuard(Grants()))
            for run in ways(bus):
                assert answer == run(Count())

    def test_an_answer_on_its_way_is_guarded_when_it_comes(self) -> None:
        """In the thread that brings it; the promise that was returned fails (P17, B37)."""
        threads: list[int] = []

        class Notes(Grants):
            def is_granted(self, name: str, context: Any = None) -> Any:
                threads.append(threading.get_ident())
                return super().is_granted(name, context)

        for verdict, expected in ((False, UnauthorizedError), (OSError("no"), OSError)):
            answer: Promise[int] = Promise()
            bus = queries(lambda q, answer=answer: answer)
            service = Notes(verdict)
            bus.utilize(FinalizeGuard(service))
            given = bus.dispatch(Count())
            assert ([], False) == (service.asked, given.done())
            bringing = threading.Thread(target=answer.resolve, args=(5,))
            bringing.start()
            with pytest.raises(expected):
                given.result(10)
            bringing.join()
            assert [("shop.count", 5)] == service.asked
            assert bringing.ident == threads.pop()

    def test_a_granted_answer_on_its_way_arrives(self) -> None:
        """And a failure on its way stays what it is, without a question (P17)."""
        outcomes: list[tuple[Callable[[Promise[int]], object], type[BaseException] | None]] = [
            (lambda p: p.resolve(5), None),
            (lambda p: p.reject(ValueError()), ValueError),
            (lambda p: p.reject(asyncio.CancelledError()), asyncio.CancelledError),
        ]
        for settle, expected in outcomes:
            answer: Promise[int] = Promise()
            bus = queries(lambda q, answer=answer: answer)
            service = Grants()
            bus.utilize(FinalizeGuard(service))
            given = bus.dispatch(Count())
            settle(answer)
            if expected is None:
                assert 5 == given.result(10)
                assert [("shop.count", 5)] == service.asked
            else:
                with pytest.raises(expected):
                    given.result(10)
                assert [] == service.asked

    def test_the_denial_is_about_the_query_that_was_sent(self) -> None:
        """The error has the same identity (P17)."""
        producer = RecordingProducer(answers={"shop.count": 5})
        bus = QueryBus()
        bus.utilize(QueryRouter({}, {Count: producer}))
        bus.utilize(FinalizeGuard(Grants(verdict=False)))
        denial = bus.dispatch(Count()).exception()
        assert isinstance(denial, UnauthorizedError)
        assert denial.envelope is not None
        assert producer.messages[0].id == denial.envelope.id

    def test_a_query_that_failed_is_not_asked_about(self) -> None:
        """Its own error is what the caller gets (P17)."""
        service = Grants(verdict=False)

        def fail(query: object) -> int:
            raise ValueError("no count")

        bus = queries(fail)
        bus.utilize(FinalizeGuard(service))
        with pytest.raises(HandlerFailedError, match="no count"):
            bus.dispatch(Count()).result()
        assert [] == service.asked

    def test_it_has_the_last_word(self) -> None:
        """What a listener puts in the place of the answer is guarded as well (P17)."""
        service = Grants(verdict=False)

        def fail(query: object) -> int:
            raise ValueError("no count")

        bus = queries(fail)
        bus.utilize(FinalizeGuard(service))
        bus.attach(Stage.FINALIZE, lambda c: c.recover(6))
        with pytest.raises(UnauthorizedError):
            bus.dispatch(Count()).result()
        assert [("shop.count", 6)] == service.asked

    def test_listeners_behind_it_see_the_denial(self) -> None:
        """It is an outcome like any, and so is a service that fails (P17, T01)."""
        seen: list[object] = []

        def see(context: DispatchContext) -> None:
            seen.append(type(context.error))

        for verdict, expected in ((False, UnauthorizedError), (OSError("no"), OSError)):
            bus = queries(lambda q: 5)
            bus.utilize(FinalizeGuard(Grants(verdict)))
            bus.attach(Stage.FINALIZE, see, -1001)
            with pytest.raises(expected):
                bus.dispatch(Count()).result()
        assert [UnauthorizedError, OSError] == seen

    @pytest.mark.parametrize("bus", [CommandBus(), EventBus()])
    def test_it_is_refused_where_effects_cannot_be_withheld(self, bus: Any) -> None:
        """Commands and events are guarded before they are handled (P19, T07)."""
        with pytest.raises(RoutingError, match=r"is for a query bus.*guard its messages with Rou"):
            bus.utilize(FinalizeGuard(Grants()))
