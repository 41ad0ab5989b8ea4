"""The message factory: messages from plain data."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.catalog import MessageCatalog
from postbus.errors import ConfigurationError, RoutingError
from postbus.messages import Command, Envelope
from postbus.pipeline import Stage
from postbus.plugins import MessageFactoryPlugin
from postbus.routers import CommandRouter, EventRouter, QueryRouter
from postbus.runtime import Postbus, build
from postbus.testing import RecordingProducer


@attrs.frozen
class Place(Command, name="shop.place"):
    order: int = 1


def factory(name: str, data: dict[str, Any]) -> Any:
    assert "shop.place" == name
    return Place(**data["payload"])


def make(routes: dict[Any, Any], made_by: Any = factory) -> CommandBus:
    bus = CommandBus()
    bus.utilize(CommandRouter(routes))
    bus.utilize(MessageFactoryPlugin(made_by))
    return bus


DATA = {"message_name": "shop.place", "payload": {"order": 7}}


class TestMessageFactoryPlugin:
    def test_a_mapping_with_a_name_becomes_a_message(self) -> None:
        """By the factory, which gets the name and the rest, on every bus (P13)."""
        got: list[object] = []
        buses: list[Any] = [CommandBus(), EventBus(), QueryBus()]
        for bus, router in zip(buses, (CommandRouter, EventRouter, QueryRouter), strict=True):
            bus.utilize(router({Place: got.append}))
            bus.utilize(MessageFactoryPlugin(factory))
            bus.dispatch(DATA)
            asyncio.run(bus.adispatch(DATA))
        assert [Place(7)] * 6 == got
        assert {"message_name", "payload"} == set(DATA)

    def test_other_messages_pass_untouched(self) -> None:
        """A mapping without a name is a message of its own, and so is anything else (P13)."""
        got: list[object] = []
        bus = make({"dict": got.append, Place: got.append}, None)
        messages: list[Any] = [{"payload": {}}, {"message_name": None}, Place()]
        for message in messages:
            bus.dispatch(message)
        assert messages == got

    def test_the_name_is_that_of_the_data(self) -> None:
        """Whatever the class is called; so it is routed, sent and reported (P13)."""
        producer = RecordingProducer()
        bus = CommandBus()
        bus.utilize(CommandRouter({}, {"shop.renamed": producer}))
        bus.utilize(MessageFactoryPlugin(lambda name, data: Place()))
        bus.dispatch({"message_name": "shop.renamed"})
        assert ["shop.renamed"] == [m.name for m in producer.messages]

    def test_an_envelope_keeps_its_identity(self) -> None:
        """Id and name are the factory's then, beside what was asked for at dispatch (P13)."""
        made = Envelope(Place(3), name="shop.place", headers={"attempt": 1})
        seen: list[Envelope] = []
        bus = make({Place: lambda m: None}, lambda name, data: made)
        bus.intercept(lambda e: e.evolve(headers={"correlation_id": "a", "attempt": 0}))
        bus.attach(Stage.INVOKE, lambda c: seen.append(c.envelope))
        bus.dispatch({"message_name": "anything.else"})
        assert [(made.id, "shop.place")] == [(e.id, e.name) for e in seen]
        assert {"correlation_id": "a", "attempt": 1} == seen[0].headers

    @pytest.mark.parametrize("name", [5, "", ["shop.place"]])
    def test_a_name_is_text(self, name: object) -> None:
        """Anything else is refused (P13)."""
        with pytest.raises(RoutingError, match="message_name must be the name of a message"):
            make({}).dispatch({"message_name": name})

    def test_a_factory_that_makes_nothing_is_named(self) -> None:
        """None is no message (P13)."""
        bus = make({}, lambda name, data: None)
        with pytest.raises(RoutingError, match=r"<lambda> made nothing of shop\.place"):
            bus.dispatch(DATA)

    def test_what_the_factory_raises_ends_the_dispatch(self) -> None:
        """As it is: the data is the caller's (P13)."""
        with pytest.raises(TypeError, match="unexpected keyword"):
            make({}).dispatch({"message_name": "shop.place", "payload": {"ordr": 7}})


class TestConfiguration:
    def built(self, services: dict[str, Any] | None = None, **section: Any) -> Postbus:
        catalog = MessageCatalog()
        catalog.add(Place)
        return build({"command_bus": section}, services, catalog)

    def handled(self, services: dict[str, Any], **section: Any) -> list[object]:
        """Return what a handler of `shop.place` got of a mapping."""
        got: list[object] = []
        router = {"routes": {"shop.place": got.append}}
        with self.built(services, router=router, **section) as postbus:
            postbus.command_bus.dispatch({"message_name": "shop.place", "order": 7})
        return got

    def test_a_bus_names_its_message_factory(self) -> None:
        """By service id (F01, F05)."""
        services = {"makes": lambda name, data: ("made", name, data)}
        got = self.handled(services, message_factory="makes")
        assert [("made", "shop.place", {"order": 7})] == got

    def test_the_service_of_that_name_is_used_where_there_is_one(self) -> None:
        """Where there is none, a mapping is a message like any (F05)."""
        services = {"message_factory": lambda name, data: ("made", name, data)}
        assert [("made", "shop.place", {"order": 7})] == self.handled(services)
        with self.built() as postbus:
            got: list[object] = []
            postbus.command_bus.utilize(CommandRouter({"dict": got.append}))
            postbus.command_bus.dispatch({"message_name": "shop.place"})
        assert [{"message_name": "shop.place"}] == got

    def test_it_comes_after_plugins_router_and_services(self) -> None:
        """So a plugin sees what was dispatched, and then what it became (F06)."""
        seen: list[object] = []

        class Sees:
            def attach(self, bus: Any) -> None:
                bus.attach(Stage.INITIALIZE, lambda c: seen.append(c.message))
                bus.attach(Stage.DETECT_NAME, lambda c: seen.append(c.message))

        services = {"sees": Sees(), "message_factory": lambda name, data: "made"}
        assert ["made"] == self.handled(services, plugins=["sees"])
        assert [{"message_name": "shop.place", "order": 7}, "made"] == seen

    def test_an_id_that_nothing_answers_to_is_refused(self) -> None:
        """When the configuration is built (F05, T04)."""
        with pytest.raises(ConfigurationError) as caught:
            self.built({"makes": factory}, message_factory="mkes")
        (problem,) = caught.value.problems
        assert "command_bus.message_factory" == problem.path
        assert "makes" in problem.suggestion

    def test_a_service_that_cannot_be_called_is_refused(self) -> None:
        """When its bus is first asked for (F05)."""
        with (
            self.built({"makes": object()}, message_factory="makes") as postbus,
            pytest.raises(ConfigurationError, match=r"expected a callable \(name, data\)"),
        ):
            _ = postbus.command_bus
