"""Statements about the system that postbus succeeds which no other module is the place for.

`docs/behaviours.md` lists all of them, with the test of each.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.catalog import MessageCatalog
from postbus.errors import (
    CommandDispatchError,
    ConfigurationError,
    DecodeError,
    EncodeError,
    ListenersFailedError,
    NoHandlerError,
    UnsupportedError,
)
from postbus.messages import AsyncMessage, Command, Envelope, Event, Query
from postbus.pipeline import DispatchContext, Stage
from postbus.promises import Promise
from postbus.routers import AsyncSwitchMessageRouter, CommandRouter, EventRouter, QueryRouter
from postbus.runtime import build
from postbus.testing import RecordingProducer
from postbus.transports import Capabilities
from postbus.wire import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.frozen
class Place(Command, name="shop.place"):
    order: Any = 1


@attrs.frozen
class Placed(Event, name="shop.placed"):
    order: int = 1


@attrs.frozen
class Count(Query[int], name="shop.count"):
    pass


@attrs.frozen
class Mailed(AsyncMessage):
    """Of no kind, so any bus takes it."""


def make(bus: Any, router: Any, *arguments: Any) -> Any:
    bus.utilize(router(*arguments))
    return bus


def ways(bus: Any) -> list[Callable[..., Any]]:
    """Return dispatch in both colours."""
    return [bus.dispatch, lambda message: asyncio.run(bus.adispatch(message))]


def fail(message: object) -> None:
    raise ValueError(f"no {message}")


class TestMessages:
    def test_the_payload_is_the_fields(self) -> None:
        """A class that knows plain data is made from it; nothing has to be implemented (C17)."""
        catalog = MessageCatalog()
        catalog.add(Placed)
        body = encode(Envelope(Placed(7)))
        assert b'"payload":{"order":7}' in body
        assert Placed(7) == decode(body, catalog).message

    def test_a_class_is_chosen_by_the_catalogue_alone(self) -> None:
        """What the wire names is looked up, never imported (C20, C22)."""
        body = encode(Envelope(Placed(7))).replace(b"shop.placed", b"builtins.dict")
        with pytest.raises(DecodeError) as caught:
            decode(body, MessageCatalog())
        assert "unknown_name" == caught.value.reason

    def test_any_class_crosses_the_wire_that_the_catalogue_knows(self) -> None:
        """Base classes are a convenience; what cannot be written is refused (C21)."""

        @attrs.frozen
        class Plain:
            order: int

        catalog = MessageCatalog()
        catalog.add(Plain, name="shop.plain", kind="event")
        assert Plain(7) == decode(encode(Envelope(Plain(7), name="shop.plain")), catalog).message
        with pytest.raises(EncodeError):
            encode(Envelope(Place(object()), name="shop.place"))


class TestStages:
    def test_there_are_six_in_one_order(self) -> None:
        """Stages instead of priorities; FINALIZE is always the last (B02, T01)."""
        names = ["initialize", "detect-name", "route", "locate", "invoke", "finalize"]
        assert names == [str(stage) for stage in Stage]
        seen: list[str] = []
        bus = make(CommandBus(), CommandRouter, {Place: lambda m: seen.append("handled")})
        for stage in reversed(Stage):
            bus.attach(stage, lambda c, stage=stage: seen.append(str(stage)))
        bus.dispatch(Place())
        assert [*names[:5], "handled", "finalize"] == seen

    def test_a_context_has_what_listeners_ask_for(self) -> None:
        """Bus, message, name, identity, handler or listeners, result, error (B03)."""
        seen: list[DispatchContext] = []
        bus = make(QueryBus(), QueryRouter, {Count: lambda q: 5})
        bus.attach(Stage.FINALIZE, seen.append)
        bus.dispatch(Count())
        (context,) = seen
        assert (bus, Count(), "shop.count") == (context.bus, context.message, context.name)
        assert (5, None, False) == (context.result, context.error, context.stopped)
        assert callable(context.handler)
        assert "shop.count" == context.envelope.name
        events = make(EventBus(), EventRouter, {Placed: [fail, fail]})
        events.attach(Stage.FINALIZE, seen.append)
        with pytest.raises(ListenersFailedError):
            events.dispatch(Placed())
        assert (fail, fail) == seen[1].listeners
        assert isinstance(seen[1].error, ListenersFailedError)


class TestCommands:
    def test_a_failure_with_pending_commands_keeps_its_cause(self) -> None:
        """The original exception, its words, and how many did not run (B25)."""

        def place(message: Any) -> None:
            bus.dispatch("shop.later")
            raise ValueError("sold out")

        bus = make(CommandBus(), CommandRouter, {Place: place, "shop.later": fail})
        for run in ways(bus):
            with pytest.raises(CommandDispatchError) as caught:
                run(Place())
            assert isinstance(caught.value.__cause__, ValueError)
            text = "shop.place failed with 'error': sold out (1 nested commands were not run)"
            assert text == str(caught.value)


class TestEvents:
    def test_the_error_has_a_line_for_each_failure(self) -> None:
        """Under one that says how many failed, of which event (B31)."""
        bus = make(EventBus(), EventRouter, {"shop.x": [fail, lambda e: None, fail]})
        with pytest.raises(ListenersFailedError) as caught:
            bus.dispatch("shop.x")
        lines = ["2 of 3 listeners of shop.x failed", *["  'error': no shop.x"] * 2]
        assert lines == str(caught.value).splitlines()

    def test_the_mode_is_an_argument_of_the_event_bus(self) -> None:
        """No plugin toggles it while others dispatch; no other bus has it (B32, T15)."""
        log: list[str] = []
        listeners = [fail, lambda e: log.append("second")]
        modes: list[tuple[Any, list[str]]] = [("stop", []), ("collect", ["second"])]
        for mode, expected in modes:
            bus = make(EventBus(on_listener_error=mode), EventRouter, {Placed: listeners})
            with pytest.raises(ListenersFailedError):
                bus.dispatch(Placed())
            assert expected == log
        with pytest.raises(TypeError, match="on_listener_error"):
            CommandBus(on_listener_error="stop")  # type: ignore[call-arg]  # refused by the type checker as well
        with pytest.raises(ConfigurationError, match="only an event bus has it"):
            build({"command_bus": {"on_listener_error": "stop"}})


class TestQueries:
    def test_a_listener_may_put_another_answer_in_its_place(self) -> None:
        """At FINALIZE, also one that is on its way (B37)."""
        promise: Promise[int] = Promise()
        promise.resolve(7)
        for answer in (7, promise):

            def replace(context: DispatchContext, answer: Any = answer) -> None:
                context.result = answer

            bus = make(QueryBus(), QueryRouter, {Count: lambda q: 5})
            bus.attach(Stage.FINALIZE, replace)
            assert 7 == bus.dispatch(Count()).result(10)

    def test_nobody_finds_it(self) -> None:
        """The query is rejected, by name (B37, B35)."""
        with pytest.raises(NoHandlerError, match=r"nothing handles the query shop\.count"):
            QueryBus().dispatch(Count()).result()


class TestAsyncSwitch:
    def test_it_works_on_every_kind_of_bus(self) -> None:
        """It is a router, and asks no bus what it is; of an event nobody here hears (P09, P10)."""
        got: list[object] = []
        buses: list[tuple[Any, Any]] = [
            (CommandBus(), CommandRouter),
            (EventBus(), EventRouter),
            (QueryBus(), QueryRouter),
        ]
        for bus, router in buses:
            catalog = MessageCatalog()
            catalog.add(Mailed, name="shop.mailed", kind=bus.kind)
            producer = RecordingProducer(answers={"shop.mailed": 5})
            made = type(bus)(catalog=catalog)
            made.utilize(AsyncSwitchMessageRouter(router({"**": got.append}), producer))
            answer = made.dispatch(Mailed())
            assert 5 == (answer.result(10) if answer is not None else 5)
            assert [("shop.mailed", True)] == [
                (m.name, b"handled-async" in m.body) for m in producer.messages
            ]
        assert [] == got


class TestProducers:
    def test_a_message_is_checked_before_it_is_sent(self) -> None:
        """One that cannot be written reaches no producer, in both colours (W02)."""
        producer = RecordingProducer()
        bus = make(CommandBus(), CommandRouter, {}, {Place: producer})
        for run in ways(bus):
            with pytest.raises(EncodeError):
                run(Place(object()))
        assert [] == producer.messages

    def test_a_query_is_answered_rejected_or_refused(self) -> None:
        """By a producer that can answer; one that only sends is refused (W02, T11)."""
        for answer, error in ((5, None), (ValueError("no"), Exception)):
            producer = RecordingProducer(answers={"shop.count": answer})
            bus = make(QueryBus(), QueryRouter, {}, {Count: producer})
            promise = bus.dispatch(Count())
            if error is None:
                assert answer == promise.result(10)
            else:
                assert isinstance(promise.exception(), error)
        sends_only = RecordingProducer(capabilities=Capabilities())
        bus = make(QueryBus(), QueryRouter, {}, {Count: sends_only})
        assert isinstance(bus.dispatch(Count()).exception(), UnsupportedError)
