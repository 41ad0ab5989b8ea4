"""Plugins named in a configuration, on both sides of a transport."""

from __future__ import annotations

import logging
import threading
from typing import Any

import attrs
import pytest

from postbus.catalog import MessageCatalog
from postbus.errors import UnauthorizedError, ValidationFailedError
from postbus.messages import Command, Event, Query
from postbus.plugins import (
    CorrelationPlugin,
    FinalizeGuard,
    FinderInvokeStrategy,
    HandleCommandStrategy,
    LoggingPlugin,
    OnEventStrategy,
    RouteGuard,
    ValidationPlugin,
)
from postbus.runtime import Postbus, build


@attrs.frozen
class Place(Command, name="shop.place"):
    order: int


@attrs.frozen
class Placed(Event, name="shop.placed"):
    order: int


@attrs.frozen
class Count(Query[int], name="shop.count"):
    pass


class Grants:
    """Grants small orders, and small answers."""

    def is_granted(self, name: str, context: Any = None) -> bool:
        return getattr(context, "order", context if isinstance(context, int) else 0) < 100


class Records(logging.Handler):
    """A logger of one test's own; *full* is set when there are three records."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}
        self.full = threading.Event()
        self.logger = logging.Logger("test", logging.DEBUG)  # noqa: LOG001  nobody else may find it
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        facts = vars(record)
        self.found[f"{facts['message_name']} {facts['source'] or 'here'}"] = facts
        if len(self.found) == 3:
            self.full.set()


class Application:
    """The services of a shop: handlers with a method each, and plugins."""

    def __init__(self) -> None:
        self.records = Records()
        self.placed: list[object] = []
        self.answer = 7
        self.postbus: Postbus

    def handle(self, command: Place) -> None:
        self.postbus.event_bus.dispatch(Placed(command.order))

    def on_event(self, event: Placed) -> None:
        self.placed.append(event)

    def find(self, query: Count) -> int:
        return self.answer

    def positive(self, message: Any) -> None:
        if getattr(message, "order", 1) < 1:
            raise ValueError("the order must be above 0")

    def build(self, sections: dict[str, Any], **config: Any) -> Postbus:
        catalog = MessageCatalog()
        for message in (Place, Placed, Count):
            catalog.add(message)
        services = {
            "shop": self,
            "handle": HandleCommandStrategy(),
            "on_event": OnEventStrategy(),
            "find": FinderInvokeStrategy(),
            "correlation": CorrelationPlugin(),
            "log": LoggingPlugin(self.records.logger),
            "guard": RouteGuard(Grants()),
            "answer_guard": FinalizeGuard(Grants()),
            "valid": ValidationPlugin(self.positive),
        }
        self.postbus = build({**sections, **config}, services, catalog)
        return self.postbus


def bus(name: str, *plugins: str, **router: Any) -> dict[str, Any]:
    return {"plugins": list(plugins), "router": {"routes": {name: "shop"}, **router}}


class TestConfigured:
    def test_ids_travel_from_one_process_to_the_next(self, request: pytest.FixtureRequest) -> None:
        """A received command is the parent of the event that its handler dispatches."""
        memory = {"transport": "memory", "address": request.node.nodeid}
        shop = Application()
        send = {"shop.place": "producers.later"}
        sections = {
            "command_bus": bus("shop.place", "handle", "correlation", "log", send=send),
            "event_bus": bus("shop.placed", "on_event", "correlation", "log"),
        }
        config = {"producers": {"later": memory}, "consumers": {"later": memory}}
        with shop.build(sections, **config) as postbus, postbus.worker().running():
            postbus.command_bus.dispatch(Place(5))
            assert shop.records.full.wait(30)
        sent, received, placed = (
            shop.records.found[key]
            for key in ("shop.place here", "shop.place later", "shop.placed here")
        )
        assert [Placed(5)] == shop.placed
        assert sent["message_id"] == received["message_id"] == placed["causation_id"]
        assert sent["message_id"] == placed["correlation_id"]
        assert sent["causation_id"] is None

    def test_guards_and_validation_are_services_like_any(self) -> None:
        """In the order of the section, on the bus of each (F03, P16, P17)."""
        shop = Application()
        sections = {
            "command_bus": bus("shop.place", "handle", "guard", "valid"),
            "event_bus": bus("shop.placed", "on_event"),
            "query_bus": bus("shop.count", "find", "answer_guard"),
        }
        with shop.build(sections) as postbus:
            postbus.command_bus.dispatch(Place(5))
            with pytest.raises(UnauthorizedError):
                postbus.command_bus.dispatch(Place(500))
            with pytest.raises(ValidationFailedError):
                postbus.command_bus.dispatch(Place(0))
            assert 7 == postbus.query_bus.dispatch(Count()).result()
            shop.answer = 700
            with pytest.raises(UnauthorizedError):
                postbus.query_bus.dispatch(Count()).result()
        assert [Placed(5)] == shop.placed
