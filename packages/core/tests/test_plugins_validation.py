"""Validation: what is not valid is neither handled nor sent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.catalog import MessageCatalog
from postbus.errors import DispatchError, RoutingError, UnauthorizedError, ValidationFailedError
from postbus.messages import Command, Envelope, Event, Query
from postbus.plugins import RouteGuard, ValidationPlugin
from postbus.routers import CommandRouter, EventRouter, QueryRouter
from postbus.testing import RecordingProducer

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.frozen
class Place(Command, name="shop.place"):
    order: int = 1


@attrs.frozen
class Pay(Command, name="shop.pay"):
    order: int = 1


@attrs.frozen
class Placed(Event, name="shop.placed"):
    order: int = 1


@attrs.frozen
class Count(Query[int], name="shop.count"):
    order: int = 1


def positive(message: Any) -> None:
    if message.order <= 0:
        raise ValueError(f"order must be above 0, got {message.order}")


def commands(got: list[object], plugin: ValidationPlugin) -> CommandBus:
    bus = CommandBus()
    bus.utilize(CommandRouter({"**": got.append}))
    bus.utilize(plugin)
    return bus


def ways(bus: Any) -> list[Callable[..., Any]]:
    """Return dispatch in both colours."""
    return [bus.dispatch, lambda message: asyncio.run(bus.adispatch(message))]


class TestValidation:
    def test_a_message_that_is_refused_is_not_handled(self) -> None:
        """On every kind of bus; the error says which message, and why."""
        got: list[object] = []
        made: list[tuple[Any, Any, type]] = [
            (CommandBus(), CommandRouter, Place),
            (EventBus(), EventRouter, Placed),
            (QueryBus(), QueryRouter, Count),
        ]
        for bus, router, message in made:
            bus.utilize(router({message: got.append}))
            bus.utilize(ValidationPlugin(positive))
            for run in ways(bus):
                with pytest.raises(
                    ValidationFailedError, match=r"shop\.\w+ is not valid: order must be above 0"
                ) as caught:
                    answer = run(message(0))
                    answer.result()
                assert isinstance(caught.value.__cause__, ValueError)
                assert isinstance(caught.value, DispatchError)
                assert caught.value.envelope is not None
                run(message(1))
        assert [type_(1) for _, _, type_ in made for _ in range(2)] == got

    def test_it_is_not_sent_either(self) -> None:
        """And a received one is checked as well."""
        producer = RecordingProducer()
        bus = CommandBus()
        bus.utilize(CommandRouter({Place: lambda m: None}, {Place: producer}))
        bus.utilize(ValidationPlugin(positive))
        with pytest.raises(ValidationFailedError):
            bus.dispatch(Place(0))
        with pytest.raises(ValidationFailedError):
            bus.receive(Envelope(Place(0)), "mail")
        bus.dispatch(Place(1))
        assert 1 == len(producer.messages)

    def test_validators_belong_to_a_class_a_name_or_all(self) -> None:
        """That of all messages first, then the message's own."""
        log: list[str] = []
        plugin = ValidationPlugin(
            lambda m: log.append("all"),
            {Place: lambda m: log.append("class"), "shop.pay": lambda m: log.append("name")},
        )
        bus = commands([], plugin)
        for message in (Place(), Pay(), "shop.other"):
            bus.dispatch(message)
        assert ["all", "class", "all", "name", "all"] == log

    def test_a_class_is_meant_whatever_it_is_called(self) -> None:
        """A catalogue may have given it another name."""

        class Plain:
            order = 0

        catalog = MessageCatalog()
        catalog.add(Plain, name="shop.plain", kind="command")
        bus = CommandBus(catalog=catalog)
        bus.utilize(CommandRouter({"shop.plain": lambda m: None}))
        bus.utilize(ValidationPlugin(validators={Plain: positive}))
        with pytest.raises(ValidationFailedError, match=r"shop\.plain is not valid"):
            bus.dispatch(Plain())

    def test_false_is_a_refusal(self) -> None:
        """A check that answers instead of raising is not overlooked; None and True pass."""
        got: list[object] = []
        verdicts: list[Any] = [None, True, False]
        bus = commands(got, ValidationPlugin(lambda m: verdicts.pop(0)))
        bus.dispatch(Place())
        bus.dispatch(Place())
        with pytest.raises(ValidationFailedError, match=r"shop\.place is not valid: .*refused it"):
            bus.dispatch(Place())
        assert 2 == len(got)

    def test_an_error_without_words_is_named(self) -> None:
        """So that the reason is never empty."""

        def refuse(message: object) -> None:
            raise KeyError

        with pytest.raises(ValidationFailedError, match="is not valid: KeyError"):
            commands([], ValidationPlugin(refuse)).dispatch(Place())

    def test_a_validator_cannot_be_asynchronous(self) -> None:
        """Nothing would run it, so nothing is handled."""
        got: list[object] = []

        async def later(message: object) -> None: ...

        bus = commands(got, ValidationPlugin(later))
        with pytest.raises(RoutingError, match="later is asynchronous, and validators are plain"):
            bus.dispatch(Place())
        assert [] == got

    def test_guards_come_first(self) -> None:
        """Whoever may not dispatch a message is not told what is wrong with it."""

        class Denies:
            def is_granted(self, name: str, context: Any = None) -> bool:
                return False

        bus = commands([], ValidationPlugin(positive))
        bus.utilize(RouteGuard(Denies()))
        with pytest.raises(UnauthorizedError):
            bus.dispatch(Place(0))

    def test_it_can_be_taken_off(self) -> None:
        """Then everything is valid (P20)."""
        got: list[object] = []
        plugin = ValidationPlugin(positive)
        bus = commands(got, plugin)
        assert bus.deactivate(plugin)
        bus.dispatch(Place(0))
        assert [Place(0)] == got
