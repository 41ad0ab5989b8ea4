"""From one dict to buses, producers and workers, and what is refused on the way."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import logging
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import attrs
import pytest

from postbus import (
    AsyncMessage,
    Capabilities,
    Command,
    CommandBus,
    DispatchContext,
    Event,
    EventBus,
    MessageCatalog,
    MessageProducer,
    MessageProducerPlugin,
    Query,
    QueryBus,
    Stage,
    build,
)
from postbus.errors import (
    ClosedError,
    ConfigurationError,
    HandlerFailedError,
    NoHandlerError,
    Problem,
    RoutingError,
    UnsupportedError,
)
from postbus.memory import MemoryTransport
from postbus.testing import RecordingProducer
from postbus.transports import AsyncMessageProducer, WireMessage
from postbus.unit import Lifetime

# The module whose messages the configurations name: this one.
HERE = __name__
SECRET = "hunter2"  # noqa: S105  planted, to see that it is never shown


@attrs.frozen
class RegisterUser(Command, name="shop.register-user", aliases=("shop.register",)):
    """A command."""

    user: str


@attrs.frozen
class SendWelcome(Command, AsyncMessage, name="shop.mail.send-welcome"):
    """A command that an async switch sends."""

    user: str


@attrs.frozen
class UserRegistered(Event, name="shop.user-registered"):
    """An event."""

    user: str


@attrs.frozen
class CountUsers(Query[int], AsyncMessage, name="shop.count-users"):
    """A query."""


@attrs.frozen
class ListUsers(Query[list[str]], name="shop.list-users"):
    """Another query."""


class CardDeclinedError(Exception):
    """An error with a code of its own."""


class Refusing(MemoryTransport):
    """A transport that cannot be built, and says so in its own way."""

    name = "refusing"

    def make_producer(self, settings: Any, common: Any) -> Any:
        if settings.address == "many":
            problem = Problem(f"producers.{common.name}.address", "", "one thing", "mend it")
            raise ConfigurationError([problem, problem])
        raise UnsupportedError(f"not with password={SECRET}")

    def make_consumer(self, settings: Any, common: Any) -> Any:
        raise UnsupportedError("not here")


class Redelivering(MemoryTransport):
    """A transport whose messages always come back."""

    name = "redelivering"

    def capabilities(self, settings: Any, common: Any) -> Capabilities:
        return Capabilities(acknowledge=True, redeliver_on_crash=True)


REFUSING = Refusing()
REDELIVERING = Redelivering()
ONE_WAY = RecordingProducer(capabilities=Capabilities())
ONLY_ASKS = RecordingProducer(capabilities=Capabilities(queries=True, queries_only=True))


def address(request: pytest.FixtureRequest) -> str:
    """Return a memory address that no other test has."""
    return str(request.node.nodeid)


@pytest.fixture
def extra_transports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the transports of this module."""
    info = tmp_path / "zz_transports-1.0.dist-info"
    info.mkdir()
    names = f"refusing = {HERE}:REFUSING\nredelivering = {HERE}:REDELIVERING\n"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zz-transports\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[postbus.transports]\n{names}")
    monkeypatch.syspath_prepend(str(tmp_path))


def problems_of(config: Any, services: Any = None) -> list[Problem]:
    """Return the problems that building *config* finds."""
    with pytest.raises(ConfigurationError) as caught:
        build(config, services)
    return list(caught.value.problems)


class Audit:
    """A plugin that remembers what it saw, and when it was attached."""

    def __init__(self, log: list[Any], name: str = "audit") -> None:
        self.log = log
        self.name = name

    def attach(self, bus: Any) -> None:
        bus.attach(Stage.ROUTE, self.see)

    def see(self, context: DispatchContext) -> None:
        self.log.append((self.name, context.name, context.handler))


class TestBuild:
    """`build`: what it takes and what it leaves alone."""

    def test_an_empty_configuration_gives_three_plain_buses(self) -> None:
        """F02: nothing has to be configured."""
        with build({}) as postbus:
            postbus.event_bus.dispatch(UserRegistered("Ada"))

            assert isinstance(postbus.command_bus, CommandBus)
            assert isinstance(postbus.event_bus, EventBus)
            assert isinstance(postbus.query_bus, QueryBus)
            assert dict(postbus.producers) == {}

    def test_a_dict_with_postbus_alone_is_unwrapped(self) -> None:
        """A whole file and its section are the same (F01)."""
        handled: list[Any] = []
        section = {
            "messages": [HERE],
            "command_bus": {"router": {"routes": {"shop.register-user": "register_user"}}},
        }
        for config in (section, {"postbus": section}):
            with build(config, {"register_user": handled.append}) as postbus:
                postbus.command_bus.dispatch(RegisterUser("Ada"))

        assert handled == [RegisterUser("Ada")] * 2

    def test_the_configuration_is_copied_and_not_changed(
        self, request: pytest.FixtureRequest
    ) -> None:
        """Whatever happens to the caller's dict afterwards, a built bus stays what it was."""
        handled: list[Any] = []
        config: dict[str, Any] = {
            "messages": [HERE],
            "producers": {"mail": {"transport": "memory", "address": address(request)}},
            "event_bus": {"router": {"routes": {"shop.user-registered": ["one", "two"]}}},
        }
        before = copy.deepcopy(config)
        services = {"one": handled.append, "two": handled.append}

        with build(config, services) as postbus:
            assert before == config
            config["event_bus"]["router"]["routes"]["shop.user-registered"].clear()
            config["producers"].clear()
            config["messages"].append("no.such.module")
            postbus.event_bus.dispatch(UserRegistered("Ada"))
            postbus.check()

            assert handled == [UserRegistered("Ada")] * 2
            assert list(postbus.producers) == ["mail"]

    def test_a_catalogue_that_is_given_is_filled_further(self) -> None:
        """What was added in code and what the configuration names stand side by side."""
        catalog = MessageCatalog()
        catalog.add(int, name="plain.number", kind="command")

        with build({"messages": [HERE]}, catalog=catalog) as postbus:
            assert postbus.catalog is catalog
            assert {"plain.number", "shop.register-user"} <= set(catalog.names())

    def test_nothing_is_made_before_it_is_needed(self) -> None:
        """T04: ids are checked without asking for the services behind them."""
        made: list[str] = []

        class Services:
            """Services that are counted."""

            def has(self, id_: str, /) -> bool:
                return id_ in {"audit", "register_user", "session"}

            def get(self, id_: str, /) -> Any:
                made.append(id_)
                return Audit([]) if id_ == "audit" else made.append

            def lifetime(self, id_: str, /) -> Lifetime:
                return Lifetime.ONCE

        section = {
            "plugins": ["audit"],
            "unit_of_work": "session",
            "router": {"routes": {"shop.register-user": "register_user"}},
        }
        with build({"messages": [HERE], "command_bus": section}, Services()) as postbus:
            postbus.check()
            assert made == []

            bus = postbus.command_bus
            assert made == ["audit"]
            assert bus is postbus.command_bus

    def test_an_error_class_of_the_configuration_has_its_code(self) -> None:
        """Callers branch on the code, not on the class."""

        def pay(message: RegisterUser) -> None:
            raise CardDeclinedError

        config = {
            "messages": [HERE],
            "errors": {"card-declined": f"{HERE}:CardDeclinedError"},
            "command_bus": {"router": {"routes": {"shop.register-user": "pay"}}},
        }
        with (
            build(config, {"pay": pay}) as postbus,
            pytest.raises(HandlerFailedError) as caught,
        ):
            postbus.command_bus.dispatch(RegisterUser("Ada"))

        assert caught.value.code == "card-declined"

    @pytest.mark.parametrize("services", [object(), 5, "text"])
    def test_services_that_cannot_be_asked_are_refused(self, services: Any) -> None:
        """Neither a mapping nor `has`, `get`, `lifetime`; what else is wrong is said as well."""
        both = problems_of({"messages": ["no.such.module"]}, services)

        assert [problem.path for problem in both] == ["messages[0]", "services"]
        assert "ContainerServices" in both[1].suggestion

    def test_producers_of_a_refused_configuration_are_closed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody else could: they are never handed out."""
        producer = RecordingProducer()
        monkeypatch.setattr(MemoryTransport, "make_producer", lambda *_: producer)

        config = {"producers": {"mail": {"transport": "memory"}}, "messages": ["no.such"]}
        problems_of(config)

        assert producer.is_closed

        monkeypatch.setattr(MemoryTransport, "make_producer", lambda *_: Unclosable())
        assert [problem.path for problem in problems_of(config)] == ["messages[0]"]


class TestRoutes:
    """Router sections of the dict."""

    def test_handlers_may_stand_in_the_dict_themselves(self) -> None:
        """Targets are callables, producers or ids (P10)."""
        handled: list[Any] = []
        sent = RecordingProducer()
        router = {"routes": {"shop.register-user": handled.append, "shop.mail.*": sent}}
        with build({"messages": [HERE], "command_bus": {"router": router}}) as postbus:
            postbus.command_bus.dispatch(RegisterUser("Ada"))
            postbus.command_bus.dispatch(SendWelcome("Ada"))

        assert handled == [RegisterUser("Ada")]
        assert [message.name for message in sent.messages] == ["shop.mail.send-welcome"]

    def test_an_alias_as_key_routes_the_name(self) -> None:
        """The old name of a message stays good in a configuration."""
        handled: list[Any] = []
        router = {"routes": {"shop.register": handled.append}}
        with build({"messages": [HERE], "command_bus": {"router": router}}) as postbus:
            postbus.command_bus.dispatch(RegisterUser("Ada"))

        assert handled == [RegisterUser("Ada")]

    def test_regular_expressions_match_whole_names_and_exact_names_stay_exact(self) -> None:
        """P05, P06: a key that is a name of the catalogue beats an expression."""
        handled: list[str] = []
        router = {
            "type": "regex",
            "routes": {
                r"shop\..*": lambda _: handled.append("pattern"),
                "shop.register-user": lambda _: handled.append("exact"),
            },
        }
        with build({"messages": [HERE], "command_bus": {"router": router}}) as postbus:
            postbus.command_bus.dispatch(RegisterUser("Ada"))
            postbus.command_bus.dispatch(SendWelcome("Ada"))

        assert handled == ["exact", "pattern"]

    @pytest.mark.parametrize("type_", ["exact", "regex"])
    def test_an_event_goes_to_every_listener_in_order(self, type_: str) -> None:
        """P04: a list of targets, and every pattern that matches."""
        heard: list[str] = []
        wide = r"shop\..*" if type_ == "regex" else "shop.*"
        router = {
            "type": type_,
            "routes": {
                "shop.user-registered": [
                    {"to": lambda _: heard.append("first")},
                    lambda _: heard.append("second"),
                ],
                wide: lambda _: heard.append("pattern"),
            },
        }
        with build({"messages": [HERE], "event_bus": {"router": router}}) as postbus:
            postbus.event_bus.dispatch(UserRegistered("Ada"))

        assert heard == ["first", "second", "pattern"]

    @pytest.mark.parametrize("by_id", [True, False])
    def test_a_producer_under_routes_is_short_for_send(
        self, request: pytest.FixtureRequest, *, by_id: bool
    ) -> None:
        """Written as an id or as an object: a name that is sent is not handled here."""
        heard: list[Any] = []
        sent = RecordingProducer()
        config = {
            "messages": [HERE],
            "producers": {"mail": {"transport": "memory", "address": address(request)}},
            "event_bus": {
                "router": {
                    "routes": {
                        "shop.user-registered": [heard.append, "producers.mail" if by_id else sent]
                    }
                }
            },
        }
        with build(config) as postbus, postbus.replacing("mail", sent):
            postbus.event_bus.dispatch(UserRegistered("Ada"))

        assert heard == []
        assert [message.name for message in sent.messages] == ["shop.user-registered"]

    def test_the_async_switch_sends_marked_messages(self, request: pytest.FixtureRequest) -> None:
        """F04: the marked go to the producer, the handler of the others is called."""
        handled: list[Any] = []
        config = {
            "messages": [HERE],
            "producers": {"mail": {"transport": "memory", "address": address(request)}},
            "command_bus": {
                "router": {
                    "routes": {"shop.register-user": "note", "shop.mail.send-welcome": "note"},
                    "async_switch": "producers.mail",
                }
            },
        }
        with (
            build(config, {"note": handled.append}) as postbus,
            postbus.replacing("mail", RecordingProducer()) as sent,
        ):
            postbus.command_bus.dispatch(RegisterUser("Ada"))
            postbus.command_bus.dispatch(SendWelcome("Ada"))

            assert handled == [RegisterUser("Ada")]
            (envelope,) = sent.decoded(postbus.catalog)
            assert envelope.metadata == {"handled-async": True}

    def test_the_timeout_of_a_producer_holds_where_the_route_says_none(
        self, request: pytest.FixtureRequest
    ) -> None:
        """A query nobody answers is given up after it."""
        producer = {"transport": "memory", "address": address(request), "timeout": 0.01}
        config = {
            "messages": [HERE],
            "producers": {"ask": producer},
            "query_bus": {"router": {"send": {"shop.count-users": "producers.ask"}}},
        }
        with build(config) as postbus, pytest.raises(TimeoutError, match="deadline"):
            postbus.query_bus.dispatch(CountUsers()).result(10)

    def test_without_handler_location_services_are_never_asked(self) -> None:
        """F05: ids mean nothing then, but producers are still found."""

        class Services(dict[str, Any]):
            """A mapping that nobody may ask."""

            def __contains__(self, key: object) -> bool:
                raise AssertionError(key)

        handled: list[Any] = []
        section = {
            "enable_handler_location": False,
            "router": {"routes": {"shop.register-user": handled.append}},
        }
        unlocated = {"enable_handler_location": False}
        config = {
            "messages": [HERE],
            "command_bus": section,
            "event_bus": unlocated,
            "query_bus": unlocated,
        }
        with build(config, Services()) as postbus:
            postbus.command_bus.dispatch(RegisterUser("Ada"))
            router: Any = postbus.routers["command_bus"]
            router.route(SendWelcome).to("send_welcome")
            with pytest.raises(RoutingError, match="send_welcome"):
                postbus.command_bus.dispatch(SendWelcome("Ada"))

        assert handled == [RegisterUser("Ada")]


@contextmanager
def recorded(log: list[str]) -> Generator[str]:
    """Be a unit of work that leaves a trace."""
    log.append("begin")
    try:
        yield "handle"
    except Exception:
        log.append("rollback")
        raise
    log.append("commit")


class Session:
    """A unit of work that is a class."""

    log: list[str]

    def __enter__(self) -> Self:
        self.log.append("begin")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.log.append("commit" if kind is None else "rollback")


class TestWiring:
    """What is attached to a bus."""

    def test_plugins_come_in_order_and_before_the_router(self) -> None:
        """F03, F06: they see a message before it is routed."""
        log: list[Any] = []
        section = {
            "plugins": ["first", "second"],
            "router": {"routes": {"shop.register-user": log.append}},
        }
        services = {"first": Audit(log, "first"), "second": Audit(log, "second")}
        with build({"messages": [HERE], "command_bus": section}, services) as postbus:
            postbus.command_bus.dispatch(RegisterUser("Ada"))

            assert log == [
                ("first", "shop.register-user", None),
                ("second", "shop.register-user", None),
                RegisterUser("Ada"),
            ]
            assert postbus.plugins["command_bus"] == (services["first"], services["second"])
            assert postbus.plugins["event_bus"] == ()

    def test_a_router_can_be_added_to(self) -> None:
        """Routes that code adds count from the next dispatch on."""
        handled: list[Any] = []
        with build({"messages": [HERE]}) as postbus:
            router: Any = postbus.routers["command_bus"]
            with pytest.raises(NoHandlerError):
                postbus.command_bus.dispatch(RegisterUser("Ada"))
            router.route(RegisterUser).to(handled.append)
            postbus.command_bus.dispatch(RegisterUser("Ada"))

        assert handled == [RegisterUser("Ada")]

    def test_there_may_be_several_buses_of_a_kind(self) -> None:
        """F07: `[postbus.buses.NAME]`, each with its own routes and settings."""
        handled: list[str] = []

        def config_of(name: str) -> dict[str, Any]:
            return {"routes": {"shop.register-user": lambda _: handled.append(name)}}

        config = {
            "messages": [HERE],
            "command_bus": {"router": config_of("main")},
            "buses": {
                "admin": {"kind": "command", "nested": "inline", "router": config_of("admin")},
                "audit": {"kind": "event", "on_listener_error": "stop"},
                "reports": {"kind": "query", "timeout": 5.0},
            },
        }
        with build(config) as postbus:
            postbus.command_bus.dispatch(RegisterUser("Ada"))
            postbus.bus("admin").dispatch(RegisterUser("Ada"))

            assert handled == ["main", "admin"]
            assert isinstance(postbus.bus("audit"), EventBus)
            assert isinstance(postbus.bus("reports"), QueryBus)
            assert postbus.bus("command_bus") is postbus.command_bus
            assert set(postbus.routers) == {
                "command_bus",
                "event_bus",
                "query_bus",
                "admin",
                "audit",
                "reports",
            }

    def test_a_bus_that_is_not_there_is_named_with_the_nearest(self) -> None:
        """A typo is answered with what there is."""
        with build({"buses": {"admin": {"kind": "command"}}}) as postbus:
            for name, advice in (
                ("admn", "did you mean 'admin'?"),
                ("zzz", "add [postbus.buses.zzz]"),
            ):
                with pytest.raises(ConfigurationError) as caught:
                    postbus.bus(name)
                assert caught.value.problems == (
                    Problem(f"buses.{name}", "", "expected the name of a bus", advice),
                )

    def test_a_plugin_that_is_none_is_refused_when_it_is_made(self) -> None:
        """Where only its maker knew what it would be."""

        class Services:
            """Services that say nothing beforehand."""

            def has(self, id_: str, /) -> bool:
                return True

            def get(self, id_: str, /) -> Any:
                return object()

            def lifetime(self, id_: str, /) -> Lifetime:
                return Lifetime.ONCE

        with (
            build({"command_bus": {"plugins": ["audit"]}}, Services()) as postbus,
            pytest.raises(ConfigurationError) as caught,
        ):
            postbus.bus("command_bus")

        (problem,) = caught.value.problems
        assert problem.path == "command_bus.plugins[0]"
        assert "it is a object" in problem.expected

    def test_a_plugin_that_needs_its_own_bus_to_be_made_is_refused(self) -> None:
        """It would recurse for ever; the bus comes with `attach`."""

        class Services:
            """Services whose plugin asks for the bus."""

            def has(self, id_: str, /) -> bool:
                return True

            def get(self, id_: str, /) -> Any:
                return postbus.command_bus

            def lifetime(self, id_: str, /) -> Lifetime:
                return Lifetime.ONCE

        with build({"command_bus": {"plugins": ["audit"]}}, Services()) as postbus:
            with pytest.raises(ConfigurationError):
                postbus.bus("command_bus")
            with pytest.raises(ConfigurationError) as caught:
                postbus.bus("command_bus")

        (problem,) = caught.value.problems
        assert problem.path == "command_bus.plugins"
        assert "attach(bus)" in problem.suggestion

    def test_a_plugin_may_ask_for_another_bus(self) -> None:
        """While it is attached too: no lock is held then."""
        heard: list[Any] = []

        class Announcing:
            """A plugin that needs the event bus."""

            def attach(self, bus: Any) -> None:
                events = postbus.event_bus
                bus.attach(Stage.FINALIZE, lambda _: events.dispatch(UserRegistered("Ada")))

        config = {
            "messages": [HERE],
            "command_bus": {
                "plugins": ["announcing"],
                "router": {"routes": {"shop.register-user": heard.append}},
            },
            "event_bus": {"router": {"routes": {"shop.user-registered": heard.append}}},
        }
        with build(config, {"announcing": Announcing()}) as postbus:
            postbus.command_bus.dispatch(RegisterUser("Ada"))

        assert heard == [RegisterUser("Ada"), UserRegistered("Ada")]

    def test_a_handler_may_take_the_bus_in_its_constructor(self) -> None:
        """It is made on the first use of its route, when the bus is there."""
        handled: list[Any] = []

        class Register:
            """A handler that dispatches."""

            def __init__(self, bus: EventBus) -> None:
                self.bus = bus

            def __call__(self, message: RegisterUser) -> None:
                self.bus.dispatch(UserRegistered(message.user))

        class Services:
            """Services that make the handler of the bus."""

            def has(self, id_: str, /) -> bool:
                return id_ == "register_user"

            def get(self, id_: str, /) -> Any:
                assert postbus.command_bus is not None
                return Register(postbus.event_bus)

            def lifetime(self, id_: str, /) -> Lifetime:
                return Lifetime.ONCE

        config = {
            "messages": [HERE],
            "command_bus": {"router": {"routes": {"shop.register-user": "register_user"}}},
            "event_bus": {"router": {"routes": {"shop.user-registered": handled.append}}},
        }
        with build(config, Services()) as postbus:
            postbus.command_bus.dispatch(RegisterUser("Ada"))

        assert handled == [UserRegistered("Ada")]

    def test_all_threads_get_one_bus(self) -> None:
        """Whoever comes first wires it."""
        together = threading.Barrier(8)
        with build({"messages": [HERE]}) as postbus, ThreadPoolExecutor(8) as pool:

            def ask(_: int) -> CommandBus:
                together.wait(10)
                return postbus.command_bus

            assert len(set(pool.map(ask, range(8)))) == 1


class TestUnitOfWork:
    """`unit_of_work` as the id of a service."""

    def run(self, service: Any) -> None:
        """Dispatch one message that succeeds and one that fails."""

        def handle(message: RegisterUser) -> None:
            if message.user == "nobody":
                raise ValueError(message.user)

        section = {
            "unit_of_work": "session",
            "router": {"routes": {"shop.register-user": handle}},
        }
        config = {"messages": [HERE], "command_bus": section}
        with build(config, {"session": service}) as postbus:
            postbus.command_bus.dispatch(RegisterUser("Ada"))
            with pytest.raises(HandlerFailedError):
                postbus.command_bus.dispatch(RegisterUser("nobody"))

    def test_a_callable_gives_the_context_manager(self) -> None:
        """Committed after success, rolled back after failure."""
        log: list[str] = []

        self.run(lambda: recorded(log))

        assert log == ["begin", "commit", "begin", "rollback"]

    def test_a_class_is_called_and_not_entered_itself(self) -> None:
        """A class has `__enter__`, but its instances are what is entered."""
        log: list[str] = []
        Session.log = log

        self.run(Session)

        assert log == ["begin", "commit", "begin", "rollback"]

    def test_a_context_manager_is_entered_each_time(self) -> None:
        """An object that can be entered again and again is not called."""
        log: list[str] = []
        Session.log = log

        self.run(Session())

        assert log == ["begin", "commit", "begin", "rollback"]

    def test_what_gives_none_is_refused_by_its_id(self) -> None:
        """The error names the id and what came instead."""
        with pytest.raises(RoutingError, match="unit_of_work 'session' gave a int"):
            self.run(lambda: 5)

    def test_a_shared_service_is_made_anew_for_each_unit(self) -> None:
        """`Lifetime.SHARED_IN_UNIT`: in the unit's own context."""
        current: contextvars.ContextVar[Any] = contextvars.ContextVar("current")
        log: list[str] = []
        seen: list[Any] = []

        class Services:
            """Services with one that each context has for itself."""

            def has(self, id_: str, /) -> bool:
                return id_ == "session"

            def get(self, id_: str, /) -> Any:
                return current.get()

            def lifetime(self, id_: str, /) -> Lifetime:
                return Lifetime.SHARED_IN_UNIT

            def renew(self, id_: str, /) -> Any:
                made = recorded(log)
                current.set(made)
                return made

        section = {
            "unit_of_work": "session",
            "router": {"routes": {"shop.register-user": lambda _: seen.append(current.get())}},
        }
        with build({"messages": [HERE], "command_bus": section}, Services()) as postbus:
            postbus.command_bus.dispatch(RegisterUser("Ada"))
            postbus.command_bus.dispatch(RegisterUser("Bob"))

        assert len(set(map(id, seen))) == 2
        assert log == ["begin", "commit", "begin", "commit"]
        assert current.get(None) is None


class TestReplacing:
    """`replacing`: another producer for the length of a test."""

    @staticmethod
    def config_of(request: pytest.FixtureRequest) -> dict[str, Any]:
        """Return a configuration that sends."""
        return {
            "messages": [HERE],
            "producers": {"mail": {"transport": "memory", "address": address(request)}},
            "command_bus": {"router": {"send": {"shop.mail.*": "producers.mail"}}},
        }

    def test_it_counts_before_and_after_the_bus_exists(
        self, request: pytest.FixtureRequest
    ) -> None:
        """And ends with the block; nothing is closed by it."""
        with build(self.config_of(request)) as postbus:
            own = postbus.producers["mail"]
            with postbus.replacing("mail", RecordingProducer()) as first:
                postbus.command_bus.dispatch(SendWelcome("one"))
                assert postbus.producers["mail"] is first
            postbus.command_bus.dispatch(SendWelcome("two"))
            with postbus.replacing("mail", RecordingProducer()) as second:
                postbus.command_bus.dispatch(SendWelcome("three"))

            assert postbus.producers["mail"] is own
            assert [len(first.messages), len(second.messages)] == [1, 1]
            assert [first.is_closed, second.is_closed] == [False, False]

    def test_an_error_inside_ends_it_too(self, request: pytest.FixtureRequest) -> None:
        """A failing test leaves nothing behind."""
        with build(self.config_of(request)) as postbus:
            own = postbus.producers["mail"]
            with (
                pytest.raises(ZeroDivisionError),
                postbus.replacing("mail", RecordingProducer()),
            ):
                raise ZeroDivisionError

            assert postbus.producers["mail"] is own

    @pytest.mark.parametrize(
        ("name", "advice"),
        [
            ("mial", "did you mean 'mail'?"),
            ("zzz", "add the producer to the configuration"),
        ],
    )
    def test_a_name_that_is_not_there_is_refused(
        self, request: pytest.FixtureRequest, name: str, advice: str
    ) -> None:
        """A test that replaces nothing would prove nothing."""
        with (
            build(self.config_of(request)) as postbus,
            pytest.raises(ConfigurationError) as caught,
            postbus.replacing(name, RecordingProducer()),
        ):
            pass

        (problem,) = caught.value.problems
        assert (problem.path, problem.suggestion) == (f"producers.{name}", advice)


class Unclosable(RecordingProducer):
    """A producer that fails to close."""

    def close(self) -> None:
        super().close()
        raise OSError("the disk is gone")


class Asynchronous(AsyncMessageProducer):
    """A producer with calls of its own for asyncio."""

    capabilities = Capabilities()

    def __init__(self) -> None:
        self.closed: list[str] = []

    def send_many(self, messages: Any) -> None:
        raise AssertionError

    async def asend_many(self, messages: Any) -> None:
        raise AssertionError

    def close(self) -> None:
        self.closed.append("close")

    async def aclose(self) -> None:
        self.closed.append("aclose")


class TestClosing:
    """The three ways, and what is left after them."""

    @staticmethod
    def made_of(
        monkeypatch: pytest.MonkeyPatch, *producers: MessageProducer, **sections: Any
    ) -> Any:
        """Build a postbus over *producers*, which are called a, b and so on."""
        waiting = list(producers)
        monkeypatch.setattr(MemoryTransport, "make_producer", lambda *_: waiting.pop(0))
        names = "abcdef"[: len(producers)]
        config = {"producers": {name: {"transport": "memory"} for name in names}, **sections}
        return build(config)

    @pytest.mark.parametrize("way", ["close", "with", "aclose", "async with"])
    def test_everything_raises_closed_error_afterwards(
        self, monkeypatch: pytest.MonkeyPatch, way: str
    ) -> None:
        """Buses, whether they were wired or not, local dispatches too."""
        producer = RecordingProducer()
        postbus = self.made_of(monkeypatch, producer, messages=[HERE])
        bus: CommandBus = postbus.command_bus
        bus.attach(Stage.ROUTE, lambda context: setattr(context, "handler", print))

        async def aclose() -> None:
            async with postbus:
                pass

        if way == "close":
            postbus.close()
        elif way == "with":
            with postbus as entered:
                assert entered is postbus
        elif way == "aclose":
            asyncio.run(postbus.aclose())
        else:
            asyncio.run(aclose())

        assert producer.is_closed
        assert postbus.is_closed
        calls: list[Callable[[], Any]] = [
            lambda: bus.dispatch(RegisterUser("Ada")),
            lambda: postbus.command_bus,
            lambda: postbus.event_bus,
            lambda: postbus.query_bus,
            lambda: postbus.bus("command_bus"),
            lambda: postbus.producers,
            lambda: postbus.routers,
            lambda: postbus.plugins,
            postbus.worker,
            postbus.check,
            lambda: postbus.replacing("a", producer).__enter__(),
            lambda: producer.send(WireMessage(b"", {}, "0", "shop.x")),
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()
        postbus.close()
        asyncio.run(postbus.aclose())

    def test_producers_are_closed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The second close has nothing left; a replacement is not ours to close."""
        producer, replacement = Asynchronous(), RecordingProducer()
        postbus = self.made_of(monkeypatch, producer)
        with postbus.replacing("a", replacement):
            postbus.close()
        postbus.close()

        assert producer.closed == ["close"]
        assert not replacement.is_closed

    def test_asyncio_producers_are_closed_their_own_way(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The others in a thread: the loop does not stand still."""
        threads: list[threading.Thread] = []

        class Blocking(RecordingProducer):
            """A producer that says where it was closed."""

            def close(self) -> None:
                threads.append(threading.current_thread())

        producer = Asynchronous()
        postbus = self.made_of(monkeypatch, producer, Blocking())
        asyncio.run(postbus.aclose())

        assert producer.closed == ["aclose"]
        assert threads[0] is not threading.main_thread()

    @pytest.mark.parametrize("asynchronous", [True, False])
    def test_one_that_fails_does_not_keep_the_others_open(
        self,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        *,
        asynchronous: bool,
    ) -> None:
        """All are closed, every failure is logged, and the first is raised."""
        first, second, third = Unclosable(), Unclosable(), RecordingProducer()
        postbus = self.made_of(monkeypatch, first, second, third)

        with caplog.at_level(logging.ERROR, "postbus"), pytest.raises(OSError, match="disk"):
            if asynchronous:
                asyncio.run(postbus.aclose())
            else:
                postbus.close()

        assert [first.is_closed, second.is_closed, third.is_closed] == [True] * 3
        assert [record.message for record in caplog.records] == ["not closed"] * 2

    def test_a_bus_that_is_wired_meanwhile_is_closed(self) -> None:
        """Closing does not wait for plugins that are being made."""

        class Services:
            """Services whose plugin closes everything."""

            def has(self, id_: str, /) -> bool:
                return id_ == "audit"

            def get(self, id_: str, /) -> Any:
                postbus.close()
                return Audit([])

            def lifetime(self, id_: str, /) -> Lifetime:
                return Lifetime.ONCE

        postbus = build({"command_bus": {"plugins": ["audit"]}}, Services())

        with pytest.raises(ClosedError):
            postbus.bus("command_bus")


class TestConsumer:
    """`consumer()`: a new one, without a worker."""

    def test_it_is_as_its_section_says(self) -> None:
        """Each call makes one; whoever asks closes it."""
        section = {"transport": "memory", "address": "looked-at"}
        with build({"consumers": {"mail": section}}) as postbus:
            first, second = postbus.consumer("mail"), postbus.consumer("mail")
            asyncio.run(first.aclose())
            assert {"looked-at": 0} == second.count()

    def test_an_unknown_name_is_refused(self) -> None:
        """With the nearest one there is; and closed it refuses any."""
        postbus = build({"consumers": {"mail": {"transport": "memory"}}})
        with pytest.raises(ConfigurationError, match="did you mean 'mail'"):
            postbus.consumer("mial")
        postbus.close()
        with pytest.raises(ClosedError):
            postbus.consumer("mail")


class TestWorker:
    """`worker()`: a new one over every consumer."""

    def test_it_needs_a_consumer(self) -> None:
        """A worker without one would do nothing for ever."""
        with build({}) as postbus, pytest.raises(ConfigurationError, match="consumer"):
            postbus.worker()

    def test_commands_events_and_queries_come_back_by_configuration_alone(
        self, request: pytest.FixtureRequest
    ) -> None:
        """One dict serves the side that sends and the side that receives."""
        handled: dict[str, Any] = {}
        done = threading.Event()

        def note(message: Any) -> None:
            handled[type(message).__name__] = message
            if len(handled) == 2:
                done.set()

        send = {"transport": "memory", "address": address(request)}
        receive = {"concurrency": 2, "prefetch": 3, "unknown_fields": "ignore"}
        config: dict[str, Any] = {
            "messages": [HERE],
            "producers": {"later": send},
            "consumers": {"later": {**send, **receive, "max_size_bytes": 2048}},
            "worker": {"shutdown_grace": 5.0, "threads": 2},
        }
        for kind, name in (
            ("command", "shop.register-user"),
            ("event", "shop.user-registered"),
            ("query", "shop.count-users"),
        ):
            router = {"routes": {name: kind}, "send": {name: "producers.later"}}
            config[f"{kind}_bus"] = {"router": router}
        services = {"command": note, "event": note, "query": lambda _: 7}

        with build(config, services) as postbus, postbus.worker().running():
            postbus.command_bus.dispatch(RegisterUser("Ada"))
            postbus.event_bus.dispatch(UserRegistered("Ada"))
            answer = postbus.query_bus.dispatch(CountUsers()).result(10)
            assert done.wait(10)

        assert answer == 7
        assert handled == {
            "RegisterUser": RegisterUser("Ada"),
            "UserRegistered": UserRegistered("Ada"),
        }


def routed(kind: str, table: str, routes: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """Return the section of a bus with one table of routes."""
    return {f"{kind}_bus": {"router": {table: dict(routes), **others}}}


REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "service id": (
        routed("command", "routes", {"shop.register-user": "register_usr"}),
        'command_bus.router.routes."shop.register-user"',
        "expected the id of a service",
        "did you mean 'register_user'?",
    ),
    "service id with nothing near": (
        routed("command", "routes", {"shop.register-user": {"to": "zzz"}}),
        'command_bus.router.routes."shop.register-user"',
        "expected the id of a service",
        "add a service with this id",
    ),
    "second listener": (
        routed("event", "routes", {"shop.user-registered": ["register_user", "zzz"]}),
        'event_bus.router.routes."shop.user-registered"[1]',
        "expected the id of a service",
        "add a service with this id",
    ),
    "producer id": (
        routed("command", "send", {"shop.register-user": "producers.mial"}),
        'command_bus.router.send."shop.register-user"',
        "expected the id of a producer",
        "did you mean 'producers.mail'?",
    ),
    "producer under routes": (
        routed("command", "routes", {"shop.register-user": "producers.an_altogether_other_one"}),
        'command_bus.router.routes."shop.register-user"',
        "expected the id of a producer",
        "add a producer with this id",
    ),
    "async switch": (
        {"command_bus": {"router": {"async_switch": "producers.mial"}}},
        "command_bus.router.async_switch",
        "expected the id of a producer",
        "did you mean 'producers.mail'?",
    ),
    "plugin id": (
        {"event_bus": {"plugins": ["audit", "audti"]}},
        "event_bus.plugins[1]",
        "expected the id of a plugin",
        "did you mean 'audit'?",
    ),
    "plugin that is none": (
        {"query_bus": {"plugins": ["register_user"]}},
        "query_bus.plugins[0]",
        "expected a plugin, which has attach(bus)",
        "name the id of a plugin",
    ),
    "unit of work": (
        {"buses": {"admin": {"kind": "command", "unit_of_work": "sesion"}}},
        "buses.admin.unit_of_work",
        "expected the id of a unit of work",
        "did you mean 'session'?",
    ),
    "name": (
        routed("command", "routes", {"shop.register-usr": "register_user"}),
        'command_bus.router.routes."shop.register-usr"',
        "expected the name of a command in the catalogue",
        "did you mean 'shop.register-user'?",
    ),
    "name with nothing near": (
        routed("event", "routes", {"zzz": "register_user"}),
        "event_bus.router.routes.zzz",
        "expected the name of an event in the catalogue",
        "add its module to `messages`",
    ),
    "wrong kind": (
        routed("command", "routes", {"shop.user-registered": "register_user"}),
        'command_bus.router.routes."shop.user-registered"',
        "expected the name of a command, shop.user-registered is an event",
        "route it on the event bus",
    ),
    "pattern": (
        routed("command", "send", {"zzz.*": "producers.mail"}),
        'command_bus.router.send."zzz.*"',
        "expected a pattern that matches a command in the catalogue",
        "correct it, or add its module to `messages`",
    ),
    "expression": (
        routed("query", "routes", {"shop\\.zzz.*": "register_user"}, type="regex"),
        'query_bus.router.routes."shop\\\\.zzz.*"',
        "expected a pattern that matches a query in the catalogue",
        "correct it, or add its module to `messages`",
    ),
    "two patterns": (
        routed("command", "routes", {"shop.*": "register_user", "*.register-user": "other"}),
        "command_bus.router.routes",
        "shop.register-user matches more than one pattern, and may match one: 'shop.*' and '*.reg",
        "make one pattern narrower, or route the name itself",
    ),
    "two patterns to send": (
        routed("query", "send", {"shop.*": "producers.mail", "*.count-users": "producers.mail"}),
        "query_bus.router.send",
        "shop.count-users matches more than one pattern",
        "make one pattern narrower, or route the name itself",
    ),
    "two routes by an alias": (
        routed("command", "routes", {"shop.register-user": "other", "shop.register": "other"}),
        'command_bus.router.routes."shop.register"',
        'shop.register-user is routed already, by command_bus.router.routes."shop.register-user"',
        "remove one of the two",
    ),
    "send to a handler": (
        routed("command", "send", {"shop.register-user": "register_user"}),
        'command_bus.router.send."shop.register-user"',
        "expected a message producer to send to",
        "name it under `routes`, or send to producers.NAME",
    ),
    "query to a one-way producer": (
        routed("query", "send", {"shop.count-users": ONE_WAY}),
        'query_bus.router.send."shop.count-users"',
        "expected a producer that brings answers back, since shop.count-users is a query",
        "set rpc where the transport has it",
    ),
    "query routed to a one-way producer": (
        routed("query", "routes", {"shop.*": ONE_WAY}),
        'query_bus.router.routes."shop.*"',
        "expected a producer that brings answers back",
        "set rpc where the transport has it",
    ),
    "query switched to a one-way producer": (
        {"query_bus": {"router": {"async_switch": "one_way"}}},
        "query_bus.router.async_switch",
        "expected a producer that brings answers back",
        "set rpc where the transport has it",
    ),
    "command to a producer that only asks": (
        routed("command", "send", {"shop.register-user": ONLY_ASKS}),
        'command_bus.router.send."shop.register-user"',
        "expected a producer that sends, since shop.register-user is a command",
        'leave rpc out, or write rpc = "both" on both sides',
    ),
    "no handler location": (
        {
            "command_bus": {
                "enable_handler_location": False,
                "router": {"routes": {"shop.register-user": "register_user"}},
            }
        },
        'command_bus.router.routes."shop.register-user"',
        "ids are not looked up, since enable_handler_location is false",
        "give the object itself",
    ),
    "guarantee": (
        {"producers": {"mail": {"transport": "memory", "guarantee": "at-least-once"}}},
        "producers.mail.guarantee",
        "memory cannot give it: it lacks redeliver_on_crash",
        "leave guarantee out, or choose a transport that can",
    ),
    "guarantee that the transport would refuse in its own words": (
        {"producers": {"mail": {"transport": "refusing", "guarantee": "at-least-once"}}},
        "producers.mail.guarantee",
        "refusing cannot give it: it lacks redeliver_on_crash",
        "leave guarantee out, or choose a transport that can",
    ),
    "guarantee of a consumer": (
        {"consumers": {"mail": {"transport": "memory", "guarantee": "at-least-once"}}},
        "consumers.mail.guarantee",
        "memory cannot give it: it lacks redeliver_on_crash",
        "leave guarantee out, or choose a transport that can",
    ),
    "guarantee of a consumer whose messages come back": (
        {"consumers": {"mail": {"transport": "redelivering", "guarantee": "at-most-once"}}},
        "consumers.mail.guarantee",
        "redelivering cannot give it: what was not acknowledged comes back",
        "leave guarantee out, or choose a transport that can",
    ),
    "requires": (
        {"producers": {"mail": {"transport": "memory", "requires": ["delay", "durable"]}}},
        "producers.mail.requires[1]",
        "memory does not have it as configured",
        "choose a transport that has it",
    ),
    "requires a delay": (
        {"producers": {"mail": {"transport": "redelivering", "requires": ["delay"]}}},
        "producers.mail.requires[0]",
        "redelivering does not have it as configured",
        "choose a transport that has it",
    ),
    "transport": (
        {"memry_producer": {}},
        "memry_producer.transport",
        "expected an installed transport",
        "did you mean 'memory'?",
    ),
    "transport that is not installed": (
        {"consumers": {"mail": {"transport": "carrierpigeon"}}},
        "consumers.mail.transport",
        "expected an installed transport",
        "install postbus-carrierpigeon",
    ),
    "option of a transport": (
        {"producers": {"mail": {"transport": "memory", "adress": SECRET}}},
        "producers.mail.adress",
        "not a known key",
        "did you mean 'address'?",
    ),
    "option of a consumer's transport": (
        {"consumers": {"mail": {"transport": "memory", "adress": SECRET}}},
        "consumers.mail.adress",
        "not a known key",
        "did you mean 'address'?",
    ),
    "what a transport refuses": (
        {"producers": {"mail": {"transport": "refusing"}}},
        "producers.mail",
        "not with password=***",
        "change the section, or choose another transport",
    ),
    "what a consumer's transport refuses": (
        {"consumers": {"mail": {"transport": "refusing"}}},
        "consumers.mail",
        "not here",
        "change the section, or choose another transport",
    ),
    "error class": (
        {"errors": {"card-declined": "no.such.module:Error"}},
        "errors.card-declined",
        "expected an exception class (ModuleNotFoundError",
        "write package.module:Class",
    ),
    "error class that is none": (
        {"errors": {"card-declined": f"{HERE}:RegisterUser"}},
        "errors.card-declined",
        "expected an exception class",
        "name a class derived from Exception",
    ),
    "error class with two codes": (
        {
            "errors": {
                "card-declined": f"{HERE}:CardDeclinedError",
                "declined": f"{HERE}:CardDeclinedError",
            }
        },
        "errors.declined",
        "expected one code for a class, and it has 'card-declined'",
        "remove one of the two",
    ),
    "module of messages": (
        {"messages": [HERE, "no.such.module"]},
        "messages[1]",
        "expected a module that can be imported (ModuleNotFoundError",
        "correct the module, or its name here",
    ),
}

SERVICES: dict[str, Any] = {
    "audit": Audit([]),
    "one_way": ONE_WAY,
    "other": print,
    "register_user": print,
    "session": lambda: recorded([]),
}


def around(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sound configuration with *section* in it, and a secret in a place of its own."""
    sound: dict[str, Any] = {
        "messages": [HERE],
        "producers": {
            "mail": {"transport": "memory"},
            "secret": {"transport": "memory", "address": f"amqp://user:{SECRET}@host/"},
        },
    }
    for key, value in section.items():
        sound[key] = {**sound.get(key, {}), **value} if isinstance(value, dict) else value
    return sound


@pytest.mark.usefixtures("extra_transports")
class TestRefusals:
    """What `build` checks beyond the settings: each by hand, then all at once."""

    @pytest.mark.parametrize("case", REFUSED)
    def test_a_broken_configuration_says_where_what_and_how_to_mend_it(self, case: str) -> None:
        """T04, T11: one problem with path, expectation and remedy, and no secret in it."""
        section, path, expected, remedy = REFUSED[case]

        (problem,) = problems_of(around(section), SERVICES)

        assert problem.path == path
        assert problem.expected.startswith(expected)
        assert problem.suggestion.startswith(remedy)
        assert SECRET not in str(problem)

    def test_the_configuration_around_them_is_sound(self) -> None:
        """So each problem above is the case's own."""
        build(around({}), SERVICES).close()

    def test_all_problems_come_in_one_error(self) -> None:
        """Everything is looked at, whatever else is wrong."""
        config: dict[str, Any] = {
            "messages": [HERE, "no.such.module"],
            "commnd_bus": {},
            "producers": {
                "mail": {"transport": "memory", "adress": SECRET},
                "slow": {"transport": "memory", "guarantee": "at-least-once"},
                "gone": {"transport": "carrierpigeon"},
                "many": {"transport": "refusing", "address": "many"},
            },
            "consumers": {"mail": {"transport": "memory", "requires": ["durable"]}},
            "errors": {"card-declined": "no.such.module:Error"},
            "command_bus": {
                "plugins": ["zzz"],
                "unit_of_work": "zzz",
                "router": {
                    "routes": {
                        "shop.register-usr": "register_user",
                        "shop.register-user": "zzz",
                        "shop.register": "other",
                        "shop.mail.send-welcome": "producers.gone",
                    },
                    "send": {"zzz.*": "producers.mail", "shop.mail.*": "producers.slow"},
                },
            },
            "event_bus": {"router": {"routes": {"shop.count-users": "register_user"}}},
            "query_bus": {"router": {"send": {"shop.count-users": ONE_WAY}}},
        }

        problems = problems_of(config, SERVICES)

        assert sorted(problem.path for problem in problems) == sorted(
            [
                "commnd_bus",
                "messages[1]",
                "producers.mail.adress",
                "producers.slow.guarantee",
                "producers.gone.transport",
                "producers.many.address",
                "producers.many.address",
                "consumers.mail.requires[0]",
                "errors.card-declined",
                "command_bus.plugins[0]",
                "command_bus.unit_of_work",
                'command_bus.router.routes."shop.register-usr"',
                'command_bus.router.routes."shop.register-user"',
                'command_bus.router.routes."shop.register"',
                'command_bus.router.send."zzz.*"',
                'event_bus.router.routes."shop.count-users"',
                'query_bus.router.send."shop.count-users"',
            ]
        )
        assert all(problem.suggestion for problem in problems)
        assert SECRET not in "".join(map(str, problems))

    def test_a_broken_producer_does_not_make_its_routes_wrong(self) -> None:
        """What follows from another problem is no problem of its own."""
        section = {
            "producers": {"mail": {"transport": "memory", "capacity": 0}},
            "zeromqq_producer": {},
            "command_bus": {
                "router": {
                    "send": {
                        "shop.mail.*": "producers.mail",
                        "shop.register-user": "producers.zeromqq",
                    },
                },
            },
        }

        paths = [problem.path for problem in problems_of(around(section), SERVICES)]

        assert paths == ["producers.mail.capacity", "zeromqq_producer.transport"]

    def test_names_of_a_broken_module_point_to_it(self) -> None:
        """The name may be right, so the advice is to begin with the module."""
        section = {
            "messages": ["no.such.module"],
            **routed("command", "routes", {"shop.x": "other", "shop.mail.*": "other"}),
        }

        problems = problems_of(around(section), SERVICES)

        assert [problem.suggestion for problem in problems[1:]] == [
            "correct `messages` first",
            "correct it, or correct `messages` first",
        ]

    def test_a_broken_expression_is_refused_once(self) -> None:
        """By the settings; nothing is said of what it would match."""
        section = routed("event", "routes", {"shop.(": "other"}, type="regex")

        (problem,) = problems_of(around(section), SERVICES)

        assert problem.path == 'event_bus.router.routes."shop.("'

    def test_a_name_may_be_handled_and_sent(self) -> None:
        """The two tables answer two questions: the same dict serves both sides."""
        section = {
            "command_bus": {
                "router": {
                    "routes": {"shop.register-user": "register_user"},
                    "send": {"shop.register-user": "producers.mail"},
                }
            }
        }

        build(around(section), SERVICES).close()

    def test_a_producer_class_behind_an_id_is_a_producer(self) -> None:
        """Known by what it is made by; without that, it is seen when it is used."""

        class Services:
            """Services that know what makes them."""

            made_by: Any = RecordingProducer

            def has(self, id_: str, /) -> bool:
                return id_ == "remote"

            def get(self, id_: str, /) -> Any:
                raise AssertionError

            def lifetime(self, id_: str, /) -> Lifetime:
                return Lifetime.ONCE

            def provides(self, id_: str, /) -> Any:
                return self.made_by

        services = Services()
        section = around(routed("query", "send", {"shop.count-users": "remote"}))
        build(section, services).close()
        services.made_by = print
        build(section, services).close()
        services.made_by = Audit
        (problem,) = problems_of(section, services)

        assert problem.expected == "expected a message producer to send to"

    def test_what_became_wrong_later_is_found_by_check(self) -> None:
        """`check` looks again, at the services as they are now."""
        services = dict(SERVICES)
        section = routed("command", "routes", {"shop.register-user": "register_user"})
        with build(around(section), services) as postbus:
            postbus.check()
            del services["register_user"]
            with pytest.raises(ConfigurationError, match="expected the id of a service"):
                postbus.check()

    def test_the_plugin_for_everything_can_be_a_service(self) -> None:
        """P12: a `MessageProducerPlugin` by its id."""
        sent = RecordingProducer()
        section = {"command_bus": {"plugins": ["send_all"]}}
        with build(around(section), {"send_all": MessageProducerPlugin(sent)}) as postbus:
            postbus.command_bus.dispatch(RegisterUser("Ada"))

        assert [message.name for message in sent.messages] == ["shop.register-user"]


def test_this_module_can_be_named() -> None:
    """The configurations above name it, so it must be importable by its name."""
    assert sys.modules[HERE].RegisterUser is RegisterUser
