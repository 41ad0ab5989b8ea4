"""Guarantees of `postbus.settings`: what a configuration may say, and what it hears when wrong."""

# ruff: noqa: RUF009  a field is made by a call; attrs reads what it returns

from __future__ import annotations

import copy
import math
import os
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import attrs
import pytest

from postbus.config import EnvironmentText
from postbus.errors import ConfigurationError, Problem
from postbus.messages import MessageKind
from postbus.settings import (
    CAPABILITIES,
    RESERVED_CONSUMER_KEYS,
    RESERVED_PRODUCER_KEYS,
    BusSettings,
    CommandBusSettings,
    ConsumerSection,
    EventBusSettings,
    EventRouterSettings,
    Key,
    PostbusSettings,
    ProducerSection,
    QueryBusSettings,
    RouterSettings,
    RouteTarget,
    WorkerSettings,
    describe,
    keys_of,
    mask,
    parse,
    read_settings,
    setting,
    show,
)
from postbus.transports import Capabilities

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "hunter2"
CANARY_URL = f"amqp://user:{CANARY}@mq.example/vhost"


@attrs.frozen(kw_only=True)
class Login:
    """A table inside a transport's section."""

    user: str = setting("guest", doc="who", pattern="[a-z]+", expected="a user's name")
    password: str = setting("", doc="the password", secret=True)


@attrs.frozen(kw_only=True)
class Pin:
    """A table with nothing secret about it by name."""

    pin: int = setting(0, doc="a number")


@attrs.frozen(kw_only=True)
class ExampleSettings:
    """A transport's own keys, one of each sort."""

    dsn: str = setting(doc="where", pattern=r"[a-z]+://\S+", expected="an address")
    persistent_id: str | None = setting(None, doc="a shared name")
    rpc: bool | Literal["both"] = setting(default=False, doc="queries")
    linger: float = setting(1.0, doc="seconds", minimum=0, maximum=60)
    ratio: float = setting(0.5, doc="a share", above=0, maximum=1)
    backlog: int = setting(10, doc="how many", minimum=1)
    depth: int = setting(3, doc="how deep", maximum=9)
    level: str = setting("low", doc="how loud", choices=("low", "high", "highest"))
    curve_key: str | None = setting(None, doc="key", secret=True, pattern="[a-f0-9]{8}")
    login: Login = setting(attrs.Factory(Login), doc="who asks")
    hosts: list[str] = setting(attrs.Factory(list), doc="peers", pattern=r"\S+")
    ports: tuple[int, ...] = setting((), doc="ports", minimum=1, maximum=65535)
    headers: dict[str, str] = setting(attrs.Factory(dict), doc="extra", names="[a-z-]+")
    extra: Any = setting(None, doc="anything")
    from_: str = setting("a", doc="a keyword of Python", key="from")
    later: bool = setting(default=False, doc="a plan", available=False)


def problems_of(config: Any) -> list[Problem]:
    problems: list[Problem] = []
    read_settings(config, problems)
    return problems


def settings_of(config: Any) -> PostbusSettings:
    problems: list[Problem] = []
    settings = read_settings(config, problems)
    assert [] == problems
    return settings


def example_problems(section: Any, *also_known: str) -> list[Problem]:
    problems: list[Problem] = []
    parse(ExampleSettings, section, "producers.mail", problems, also_known=also_known)
    return problems


def example(**section: Any) -> ExampleSettings:
    problems: list[Problem] = []
    settings = parse(ExampleSettings, {"dsn": "tcp://a:1", **section}, "x", problems)
    assert [] == problems
    assert settings is not None
    return settings


@attrs.frozen
class Place:
    """Where a class's keys stand in a whole configuration, and what must stand beside them."""

    path: str
    cls: type
    beside: dict[str, Any] = attrs.Factory(dict)

    def problems(self, section: dict[str, Any]) -> list[Problem]:
        """Read a configuration with *section* in this place."""
        if self.cls is ExampleSettings:
            return example_problems(section)
        config: Any = section
        for key in reversed(self.path.split("/")):
            config = {key: config} if key else config
        return problems_of(config)

    def at(self, key: str) -> str:
        """Return the path that a problem with *key* has."""
        parts = [f'"{part}"' if "." in part else part for part in self.path.split("/") if part]
        return ".".join([*parts, key])


PLACES = [
    Place("", PostbusSettings),
    Place("producers/mail", ProducerSection, {"transport": "memory"}),
    Place("consumers/mail", ConsumerSection, {"transport": "memory"}),
    Place("command_bus", CommandBusSettings),
    Place("event_bus", EventBusSettings),
    Place("query_bus", QueryBusSettings),
    Place("buses/more", QueryBusSettings, {"kind": "query"}),
    Place("command_bus/router", RouterSettings),
    Place("event_bus/router", EventRouterSettings),
    Place("event_bus/router/routes/shop.sold", RouteTarget, {"to": "x"}),
    Place("worker", WorkerSettings),
    Place("producers/mail", ExampleSettings, {"dsn": "tcp://a:1"}),
]


def options(wanted: Callable[[Place, Key], object] = lambda place, key: True) -> list[Any]:
    """List every key of every settings class for which *wanted* holds, as parameters."""
    return [
        pytest.param(place, key, id=f"{place.cls.__name__} {place.at(key.name)}")
        for place in PLACES
        for key in keys_of(place.cls)
        if wanted(place, key)
    ]


def item(key: Key, value: Any) -> tuple[Any, str]:
    """Return *value* as the key takes it, in an array if need be, and the name for its path."""
    is_array = get_origin(key.type) in {list, tuple}
    return ([value], f"{key.name}[0]") if is_array else (value, key.name)


def members(key: Key) -> list[Any]:
    """List what a union of the schema may be; the schema's unions hold None or a boolean."""
    is_union = {type(None), bool} & set(get_args(key.type))
    return (
        [each for each in get_args(key.type) if each is not type(None)] if is_union else [key.type]
    )


def wrong_values(key: Key) -> list[Any]:
    """Return values that the key cannot have, each with a secret where there is room for one."""
    if key.name in {"to", "extra"}:
        return []
    wanted = {get_origin(each) or each for each in members(key)}
    if dict in wanted or any(attrs.has(each) for each in wanted if isinstance(each, type)):
        return [CANARY_URL, 5, [CANARY]]
    if wanted & {list, tuple}:
        return [CANARY_URL, 5, True, {"x": CANARY}, [[CANARY]]]
    if str in wanted:
        return [5, True, [CANARY], {"x": CANARY}, object()]
    if wanted & {int, float}:
        return [CANARY_URL, True, [CANARY], {"x": CANARY}, math.nan, math.inf, "5"]
    return [CANARY_URL, 5, 0, [CANARY], {"x": CANARY}]


def choices_of(key: Key) -> list[str]:
    """List the texts that the key allows."""
    choices = list(key.rule.choices)
    for member in members(key):
        choices += get_args(member) if get_origin(member) is Literal else ()
    return choices


def near_miss(name: str) -> str:
    """Misspell a name: two letters swapped, or the last one doubled."""
    is_long = len(name) > 3 and name[-1] != name[-2]
    return name[:-2] + name[-1] + name[-2] if is_long else name + name[-1]


def assert_one(problems: list[Problem], path: str) -> Problem:
    """Check that there is one problem, there, which says what is expected and tells no secret."""
    error = ConfigurationError(problems)
    assert CANARY not in str(error)
    assert CANARY not in repr(error)
    assert [path] == [problem.path for problem in problems]
    problem = problems[0]
    assert problem.expected
    assert len(problem.value) <= 120
    return problem


class TestBrokenConfigurations:
    """Every option of every settings class, broken in every way its type and rule allow."""

    @pytest.mark.parametrize(("place", "key"), options(lambda _, key: wrong_values(key)))
    def test_a_wrong_type_is_refused_with_path_and_expectation(
        self, place: Place, key: Key
    ) -> None:
        """Whatever the option, a value of another type is one problem and never shown whole."""
        for value in wrong_values(key):
            problems = place.problems({**place.beside, key.name: value})
            inside = {place.at(f"{key.name}{below}") for below in ("", "[0]", ".x")}
            assert problems, value
            assert problems[0].path in inside, value
            problem = assert_one(problems, problems[0].path)
            assert problem.expected.startswith("expected ") or problem.suggestion, problem

    @pytest.mark.parametrize(
        ("place", "key", "value", "bound"),
        [
            pytest.param(place, key, value, bound, id=f"{place.at(key.name)}={value}")
            for place, key in (each.values for each in options(lambda _, key: key.rule.available))
            for bound, value in (
                (key.rule.minimum, (key.rule.minimum or 0) - 1),
                (key.rule.maximum, (key.rule.maximum or 0) + 1),
                (key.rule.above, key.rule.above),
            )
            if bound is not None
        ],
    )
    def test_a_number_out_of_range_is_refused_with_the_range(
        self, place: Place, key: Key, value: float, bound: float
    ) -> None:
        """A number beyond a bound is refused, and the expectation names the bound."""
        given, name = item(key, value)
        problem = assert_one(place.problems({**place.beside, key.name: given}), place.at(name))
        assert str(bound) in problem.expected
        assert str(value) == problem.value

    @pytest.mark.parametrize(("place", "key"), options(lambda _, key: choices_of(key)))
    def test_a_choice_that_does_not_exist_is_refused_with_the_nearest(
        self, place: Place, key: Key
    ) -> None:
        """A text that is nearly a choice is refused, and the choice is offered."""
        for choice in choices_of(key):
            wrong = near_miss(choice)
            given, name = item(key, wrong)
            problem = assert_one(place.problems({**place.beside, key.name: given}), place.at(name))
            assert repr(choice) in problem.expected
            assert f"did you mean {choice!r}?" == problem.suggestion
            assert repr(wrong) == problem.value

    @pytest.mark.parametrize(
        ("place", "key"),
        options(lambda _, key: key.rule.pattern and get_origin(key.type) is not dict),
    )
    def test_a_text_that_does_not_match_is_refused(self, place: Place, key: Key) -> None:
        """A text against the pattern of its option is refused; no pattern takes white space."""
        given, name = item(key, " ? ")
        problem = assert_one(place.problems({**place.beside, key.name: given}), place.at(name))
        assert ("***" if key.rule.secret else "' ? '") == problem.value
        assert (key.rule.expected or key.rule.pattern or "no pattern") in problem.expected

    @pytest.mark.parametrize(("place", "key"), options(lambda _, key: key.is_required))
    def test_a_required_key_that_is_missing_is_named(self, place: Place, key: Key) -> None:
        """What has no default must be there, and the remedy is to add it."""
        section = {name: value for name, value in place.beside.items() if name != key.name}
        problem = assert_one(place.problems(section), place.at(key.name))
        assert problem.expected.startswith("required: ")
        assert f"add {key.name!r}" == problem.suggestion
        assert not problem.value

    @pytest.mark.parametrize("place", PLACES, ids=[each.path or "." for each in PLACES])
    def test_what_has_a_default_may_be_missing(self, place: Place) -> None:
        """Beside what is required, every key may be left out."""
        assert [] == place.problems(dict(place.beside))

    @pytest.mark.parametrize(
        ("place", "key"),
        options(lambda place, _: place.cls not in {ProducerSection, ConsumerSection}),
    )
    def test_a_misspelt_key_is_refused_with_the_right_one(self, place: Place, key: Key) -> None:
        """A key that nobody knows is refused by name, with the nearest, and without its value."""
        wrong = near_miss(key.name)
        problem = assert_one(place.problems({**place.beside, wrong: CANARY}), place.at(wrong))
        assert "not a known key" == problem.expected
        assert f"did you mean {key.name!r}?" == problem.suggestion
        assert "a string" == problem.value

    @pytest.mark.parametrize(
        ("place", "key"),
        options(lambda place, _: place.cls in {ProducerSection, ConsumerSection}),
    )
    def test_a_misspelt_key_of_core_is_refused_by_the_transport(
        self, place: Place, key: Key
    ) -> None:
        """What core does not know goes to the transport, which offers core's names as well."""
        wrong = near_miss(key.name)
        table, name = place.path.split("/")
        settings = settings_of({table: {name: {"transport": "y", wrong: CANARY}}})
        sections: dict[str, Any] = getattr(settings, table)
        reserved = {each.name for each in keys_of(place.cls)}
        problems = example_problems({"dsn": "tcp://a:1", **sections[name].options}, *reserved)
        problem = assert_one(problems, f"producers.mail.{wrong}")
        assert f"did you mean {key.name!r}?" == problem.suggestion

    @pytest.mark.parametrize(("place", "key"), options(lambda _, key: not key.rule.available))
    def test_what_is_not_available_yet_is_refused(self, place: Place, key: Key) -> None:
        """A key whose work comes later is no silent promise: it is refused by name."""
        section = {**place.beside, key.name: CANARY}
        problem = assert_one(place.problems(section), place.at(key.name))
        assert "a string" == problem.value
        assert "not available yet" == problem.expected
        assert "leave it out" == problem.suggestion

    @pytest.mark.parametrize(("place", "key"), options())
    def test_every_option_has_words_for_the_reference(self, place: Place, key: Key) -> None:
        """Every option says what it does, and its type has words."""
        assert key.rule.doc
        assert describe(key.type, key.rule)

    def test_every_class_is_walked(self) -> None:
        """An empty list of options would pass every test above."""
        assert len(options()) > 80


BY_HAND = [
    pytest.param(
        {"mesages": ["shop.messages"]},
        "mesages: not a known key, got an array; did you mean 'messages'?",
        id="a typo at the top",
    ),
    pytest.param(
        {"messages": "shop.messages"},
        "messages: expected an array, each item the dotted name of a module, got "
        "'shop.messages'; leave it out for the default",
        id="a string where an array belongs",
    ),
    pytest.param(
        {"messages": ["shop/messages.py"]},
        "messages[0]: expected the dotted name of a module, got 'shop/messages.py'",
        id="a file where a module belongs",
    ),
    pytest.param(
        {"producers": {"mail": {"dsn": CANARY_URL}}},
        "producers.mail.transport: required: the name of a transport; add 'transport'",
        id="no transport",
    ),
    pytest.param(
        {"producers": {"Mail": {"transport": "zeromq"}}},
        "producers.Mail: expected a name that matches [a-z][a-z0-9_]*, got 'Mail'",
        id="a name that is not one",
    ),
    pytest.param(
        {"producers": {"eu.mail": {"transport": "zeromq"}}},
        "producers.\"eu.mail\": expected a name that matches [a-z][a-z0-9_]*, got 'eu.mail'",
        id="a name with a dot",
    ),
    pytest.param(
        {"producers": {"mail": {"transport": "zeromq", "concurrency": 4}}},
        "producers.mail.concurrency: not a key here, got an integer; it belongs to a consumer",
        id="a consumer's key in a producer",
    ),
    pytest.param(
        {"consumers": {"mail": {"transport": "zeromq", "timeout": 4}}},
        "consumers.mail.timeout: not a key here, got an integer; it belongs to a producer",
        id="a producer's key in a consumer",
    ),
    pytest.param(
        {"consumers": {"mail": {"transport": "zeromq", "concurrency": "16"}}},
        "consumers.mail.concurrency: expected an integer from 1 to 10000, got '16'; "
        "write it without quotes",
        id="a number in quotes",
    ),
    pytest.param(
        {"consumers": {"mail": {"transport": "zeromq", "prefetch": 0}}},
        "consumers.mail.prefetch: expected an integer from 1 to 100000, got 0; "
        "leave it out for the default",
        id="nothing may be fetched",
    ),
    pytest.param(
        {"consumers": {"mail": {"transport": "zeromq", "guarantee": "at_least_onse"}}},
        "consumers.mail.guarantee: expected 'at-most-once' or 'at-least-once', got "
        "'at_least_onse'; did you mean 'at-least-once'?",
        id="a guarantee with a typo",
    ),
    pytest.param(
        {"consumers": {"mail": {"transport": "zeromq", "retry": {"max_attempts": 0}}}},
        "consumers.mail.retry.max_attempts: expected an integer from 1 to 1000, got 0; "
        "leave it out for the default, 5",
        id="a policy without an attempt",
    ),
    pytest.param(
        {"zeromq_producer": {}, "producers": {"zeromq": {"transport": "zeromq"}}},
        "zeromq_producer: expected either this or 'producers.zeromq', which it is short for, "
        "got a table; remove one",
        id="both ways to write a producer",
    ),
    pytest.param(
        {"zeromq_producer": {"transport": "http"}},
        "zeromq_producer.transport: expected 'zeromq', which the section's name says already, "
        "got 'http'; leave it out, or write [postbus.producers.NAME]",
        id="a short form that contradicts itself",
    ),
    pytest.param(
        {"command_bus": {"router": {"routes": {"shop": {"register-user": "register_user"}}}}},
        "command_bus.router.routes.shop: expected a service id, 'producers.NAME', a table with "
        "'to', or a callable, got a table; add 'to'; or quote a name with dots: "
        '"shop.register-user" = …',
        id="a name without quotes in TOML",
    ),
    pytest.param(
        {"command_bus": {"router": {"routes": {"shop.register": ["one", "two"]}}}},
        "command_bus.router.routes.\"shop.register\": expected a service id, 'producers.NAME', "
        "a table with 'to', or a callable, got an array; a command or query has exactly one "
        "handler",
        id="two handlers for a command",
    ),
    pytest.param(
        {"command_bus": {"router": {"send": {"shop.*": {"to": "producers.x", "threads": True}}}}},
        'command_bus.router.send."shop.*".threads: not a key here, got a boolean; only '
        "'routes' have it: nothing is handled where a message is sent",
        id="threads for what is sent",
    ),
    pytest.param(
        {"query_bus": {"router": {"routes": {"shop.get": {"to": "x", "when": "dispatched"}}}}},
        'query_bus.router.routes."shop.get".when: not a key here, got a string; only the '
        "routes of an event bus have it",
        id="when for a query",
    ),
    pytest.param(
        {"command_bus": {"router": {"send": {"shop.*": "producers.Mail"}}}},
        'command_bus.router.send."shop.*": expected the id of a service, or '
        "'producers.NAME', got 'producers.Mail'",
        id="a producer that cannot be",
    ),
    pytest.param(
        {"event_bus": {"router": {"type": "regex", "routes": {"shop.(": ["x"]}}}},
        'event_bus.router.routes."shop.(": expected a regular expression: missing ), '
        "unterminated subpattern at position 5",
        id="a regular expression that is none",
    ),
    pytest.param(
        {"command_bus": {"router": {"type": "regex", "send": {"x" * 257: "producers.mail"}}}},
        f"command_bus.router.send.{'x' * 257}: expected a regular expression of at most 256 "
        "characters, got 257 characters",
        id="a regular expression that is too long",
    ),
    pytest.param(
        {"command_bus": {"timeout": 5}},
        "command_bus.timeout: not a key here, got an integer; only a query bus has it",
        id="a key of another kind of bus",
    ),
    pytest.param(
        {"query_bus": {"kind": "query"}},
        "query_bus.kind: not a key here, got a string; only sections under 'buses' have it",
        id="a kind where the name says it",
    ),
    pytest.param(
        {"buses": {"audit": {"plugins": []}}},
        "buses.audit.kind: required: 'command', 'event' or 'query'; add 'kind'",
        id="a bus of no kind",
    ),
    pytest.param(
        {"buses": {"audit": {"kind": "evnt"}}},
        "buses.audit.kind: expected 'command', 'event' or 'query', got 'evnt'; "
        "did you mean 'event'?",
        id="a kind with a typo",
    ),
    pytest.param(
        {"buses": {"audit": {"kind": 5}}},
        "buses.audit.kind: expected 'command', 'event' or 'query', got 5",
        id="a kind that is a number",
    ),
    pytest.param(
        {"buses": {"audit": "event"}},
        "buses.audit: expected a table, got 'event'",
        id="a bus that is no table",
    ),
    pytest.param(
        {"buses": {"event_bus": {"kind": "event"}}},
        "buses.event_bus: expected another name, since 'event_bus' is a section of its own, got "
        "a table; write [postbus.event_bus]",
        id="a bus that is there twice",
    ),
    pytest.param(
        {"mail_producer": "zeromq"},
        "mail_producer: expected a table, got 'zeromq'",
        id="a short form that is no table",
    ),
    pytest.param(
        {"errors": {"SoldOut": "shop.errors:SoldOut"}},
        "errors.SoldOut: expected a name that matches [a-z][a-z0-9-]*, got 'SoldOut'",
        id="a code that is not one",
    ),
    pytest.param(
        {"errors": {"sold-out": "shop.errors.SoldOut"}},
        "errors.sold-out: expected 'package.module:ExceptionClass', got 'shop.errors.SoldOut'",
        id="a class without a colon",
    ),
    pytest.param(
        {"worker": {"shutdown_grace": -0.1}},
        "worker.shutdown_grace: expected a number from 0 to 31536000, got -0.1; "
        "leave it out for the default, 10.0",
        id="a negative time",
    ),
    pytest.param(
        {"stores": {"main": {"path": "a.db"}}},
        "stores.main.store: required: the name of a kind of store; add 'store'",
        id="a store of no kind",
    ),
    pytest.param(
        {"stores": {"Main": {"store": "sqlite"}}},
        "stores.Main: expected a name that matches [a-z][a-z0-9_]*, got 'Main'",
        id="a store with a wrong name",
    ),
    pytest.param(
        {5: {}},
        "5: expected a string as key, got 5; put it in quotes",
        id="a key that is a number",
    ),
    pytest.param(
        {"producers": {5: {}}},
        "producers.5: expected a string as key, got 5",
        id="a name that is a number",
    ),
    pytest.param(None, "postbus: expected a table, got null", id="nothing"),
    pytest.param(["x"], "postbus: expected a table, got an array", id="an array"),
    pytest.param(
        {"_producer": {}},
        "_producer: not a known key, got a table; did you mean 'producers'?",
        id="a short form of nothing",
    ),
]


class TestReadSettings:
    @pytest.mark.parametrize(("config", "line"), BY_HAND)
    def test_a_mistake_is_told_in_one_line(self, config: Any, line: str) -> None:
        """A person reads where, what was expected, what was found and what to do (T04)."""
        problems = problems_of(config)
        assert [line] == [str(problem) for problem in problems]
        assert CANARY not in repr(problems)

    def test_all_problems_come_at_once(self) -> None:
        """One run tells everything that is wrong, in every section (T04)."""
        problems = problems_of(
            {
                "producers": {"mail": {"transport": 5, "timeout": 0, "requires": ["durabel"]}},
                "consumers": {"mail": {"transport": "zeromq", "concurrency": 0, "inbox": "X"}},
                "command_bus": {"nested": "no", "router": {"routes": {"a.b": 5, "c.d": {}}}},
                "worker": {"shutdown_grace": "soon", "threads": 0},
                "web_producer": {"codec": "pickle"},
                "other": 1,
            }
        )
        assert {
            "producers.mail.transport",
            "producers.mail.timeout",
            "producers.mail.requires[0]",
            "consumers.mail.concurrency",
            "consumers.mail.inbox",
            "command_bus.nested",
            'command_bus.router.routes."a.b"',
            'command_bus.router.routes."c.d".to',
            "worker.shutdown_grace",
            "worker.threads",
            "web_producer.codec",
            "other",
        } == {problem.path for problem in problems}

    def test_what_is_right_is_read_beside_what_is_wrong(self) -> None:
        """Whoever looks for more problems gets every section that can be read, with defaults."""
        problems: list[Problem] = []
        settings = read_settings(
            {
                "producers": {"mail": {"transport": "zeromq", "timeout": 0, "dsn": "x"}, "y": {}},
                "buses": {"audit": {"kind": "event", "nested": "queue"}},
                "worker": {"threads": "many"},
            },
            problems,
        )
        assert 4 == len(problems)
        assert ["mail"] == list(settings.producers)
        assert {"dsn": "x"} == settings.producers["mail"].options
        assert settings.producers["mail"].timeout is None
        assert MessageKind.EVENT == settings.buses["audit"].kind
        assert WorkerSettings() == settings.worker

    def test_an_empty_config_is_all_defaults(self) -> None:
        """A bus works without any configuration (F02)."""
        settings = settings_of({})
        assert PostbusSettings() == settings
        assert MessageKind.COMMAND == settings.command_bus.kind
        assert 30.0 == settings.query_bus.timeout
        assert min(32, (os.cpu_count() or 1) + 4) == settings.worker.threads

    def test_the_keys_of_the_php_system_are_here(self) -> None:
        """Plugins, router.type, .routes, .async_switch and the switch of the locator (F01)."""
        bus: dict[str, Any] = {
            "plugins": ["audit", "guard"],
            "router": {
                "type": "regex",
                "routes": {"shop.*": "shop"},
                "async_switch": "producers.mail",
            },
            "enable_handler_location": False,
            "message_factory": None,
        }
        for name in ("command_bus", "event_bus", "query_bus"):
            settings: BusSettings = getattr(settings_of({name: bus}), name)
            assert ["audit", "guard"] == settings.plugins
            assert "regex" == settings.router.type
            assert (RouteTarget(to="shop"),) == settings.router.routes["shop.*"]
            assert "producers.mail" == settings.router.async_switch
            assert settings.enable_handler_location is False

    def test_zero_is_a_value(self) -> None:
        """A grace of 0 stops at once; it is not taken for absent (T12)."""
        settings = settings_of(
            {
                "worker": {"shutdown_grace": 0},
                "consumers": {"mail": {"transport": "zeromq", "close_timeout": 0}},
            }
        )
        assert 0.0 == settings.worker.shutdown_grace
        assert 0.0 == settings.consumers["mail"].close_timeout

    def test_zero_is_not_false(self) -> None:
        """A key that is not available yet takes its default and no other spelling of it."""
        assert [] == example_problems({"dsn": "tcp://a:1", "later": False})
        assert ["producers.mail.later"] == [
            problem.path for problem in example_problems({"dsn": "tcp://a:1", "later": 0})
        ]

    def test_prefetch_follows_concurrency(self) -> None:
        """Left out, twice as many are fetched as are handled at once."""
        consumers: dict[str, Any] = {
            "a": {"transport": "x"},
            "b": {"transport": "x", "concurrency": 3},
        }
        settings = settings_of({"consumers": consumers})
        assert [32, 6] == [each.prefetch for each in settings.consumers.values()]
        consumers["a"]["prefetch"] = 1
        assert 1 == settings_of({"consumers": consumers}).consumers["a"].prefetch

    def test_a_section_keeps_the_transports_keys_apart(self) -> None:
        """What core does not read is handed to the transport, untouched."""
        section = {
            "transport": "zeromq",
            "guarantee": "at-most-once",
            "requires": ["queries"],
            "timeout": 5,
            "dsn": "tcp://127.0.0.1:5555",
            "persistent_id": "example",
            "rpc": False,
        }
        producer = settings_of({"producers": {"mail": section}}).producers["mail"]
        assert 5.0 == producer.timeout
        assert ["queries"] == producer.requires
        assert {
            "dsn": "tcp://127.0.0.1:5555",
            "persistent_id": "example",
            "rpc": False,
        } == producer.options
        assert "producers.mail" == producer.path

    def test_the_short_form_is_a_producer(self) -> None:
        """The PHP system's section name says the transport and the name at once."""
        settings = settings_of({"zeromq_producer": {"dsn": "tcp://a:1", "transport": "zeromq"}})
        assert "zeromq" == settings.producers["zeromq"].transport
        assert {"dsn": "tcp://a:1"} == settings.producers["zeromq"].options
        assert "zeromq_producer" == settings.producers["zeromq"].path

    def test_a_short_form_that_contradicts_itself_is_read_by_its_name(self) -> None:
        """Problems that are looked for afterwards are those of the section's name."""
        settings = read_settings({"zeromq_producer": {"transport": "http"}}, [])
        assert "zeromq" == settings.producers["zeromq"].transport

    def test_the_config_of_the_caller_is_left_alone(self) -> None:
        """Nothing is changed in the caller's dict, and later changes of it do not come through."""
        config: dict[str, Any] = {
            "producers": {"mail": {"transport": "zeromq", "hosts": ["a"], "x": {"y": ("z",)}}},
            "mail_producer": {},
            "command_bus": {"plugins": ["audit"], "router": {"routes": {"a.b": "c"}}},
        }
        del config["mail_producer"]
        config["web_producer"] = {"hosts": ["b"]}
        before = copy.deepcopy(config)
        settings = settings_of(config)
        settings.producers["mail"].options["hosts"].append("c")
        assert before == config
        config["producers"]["mail"]["x"]["y"] = ()
        config["command_bus"]["plugins"].append("guard")
        assert ["z"] == settings.producers["mail"].options["x"]["y"]
        assert ["audit"] == settings.command_bus.plugins

    def test_a_table_within_itself_is_refused(self) -> None:
        """A loop in the caller's dict ends as a problem, not as a recursion."""
        loop: dict[str, Any] = {}
        loop["again"] = [loop, loop]
        problems = problems_of({"producers": {"mail": {"transport": "x", "loop": loop}}})
        assert [
            "producers.mail.loop.again[0]",
            "producers.mail.loop.again[1]",
        ] == [problem.path for problem in problems]

    def test_any_mapping_is_a_table(self) -> None:
        """What a container hands over need not be a dict."""
        from types import MappingProxyType

        config = MappingProxyType({"worker": MappingProxyType({"threads": 2})})
        assert 2 == settings_of(config).worker.threads


class TestRoutes:
    def test_a_target_is_written_in_many_ways(self) -> None:
        """Ids, tables and objects all become the same kind of target; objects stay themselves."""

        def handler(message: object) -> None: ...

        routes = {
            "a.id": "register_user",
            "a.dotted": "shop.register_user",
            "a.producer": "producers.mail",
            "a.table": {"to": "x", "threads": False, "timeout": 5},
            "a.callable": handler,
            "a.both": {"to": handler, "threads": True},
        }
        found = settings_of({"command_bus": {"router": {"routes": routes}}}).command_bus.router
        assert {
            "a.id": (RouteTarget(to="register_user"),),
            "a.dotted": (RouteTarget(to="shop.register_user"),),
            "a.producer": (RouteTarget(to="producers.mail"),),
            "a.table": (RouteTarget(to="x", threads=False, timeout=5.0),),
            "a.callable": (RouteTarget(to=handler),),
            "a.both": (RouteTarget(to=handler, threads=True),),
        } == found.routes
        assert handler is found.routes["a.callable"][0].to

    def test_an_event_has_any_number_of_listeners(self) -> None:
        """One, none or many, in order; a listener may stay where the event is dispatched."""
        routes = {
            "a.one": "x",
            "a.none": [],
            "a.many": ("y", {"to": "z", "when": "dispatched"}, "y"),
        }
        found = settings_of({"event_bus": {"router": {"routes": routes}}}).event_bus.router
        assert {
            "a.one": (RouteTarget(to="x"),),
            "a.none": (),
            "a.many": (
                RouteTarget(to="y"),
                RouteTarget(to="z", when="dispatched"),
                RouteTarget(to="y"),
            ),
        } == found.routes

    def test_each_wrong_listener_is_named(self) -> None:
        """In an array the problem says which one."""
        routes = {"a.b": ["x", 5, {"to": None}, {"to": "y", "when": "later"}]}
        problems = problems_of({"event_bus": {"router": {"routes": routes}}})
        assert [
            'event_bus.router.routes."a.b"[1]',
            'event_bus.router.routes."a.b"[2].to',
            'event_bus.router.routes."a.b"[3].when',
        ] == [problem.path for problem in problems]

    def test_send_has_one_target(self) -> None:
        """What goes away goes to one producer, possibly with a time of its own."""
        send = {"a.*": "producers.mail", "b.*": {"to": "producers.web", "timeout": 2.5}}
        found = settings_of({"query_bus": {"router": {"send": send}}}).query_bus.router
        assert {
            "a.*": RouteTarget(to="producers.mail"),
            "b.*": RouteTarget(to="producers.web", timeout=2.5),
        } == found.send
        [problem] = problems_of({"event_bus": {"router": {"send": {"a.*": ["producers.mail"]}}}})
        assert 'event_bus.router.send."a.*"' == problem.path

    def test_keys_are_not_empty(self) -> None:
        """No message has an empty name."""
        problems = problems_of({"command_bus": {"router": {"routes": {"": "x"}}}})
        assert ['command_bus.router.routes.""'] == [problem.path for problem in problems]

    def test_a_producers_own_router_serves_every_kind(self) -> None:
        """The buses of a transport's container share one router section."""
        router = {"routes": {"a.b": [{"to": "x", "when": "dispatched"}]}}
        producer = {"transport": "zeromq", "router": router}
        found = settings_of({"producers": {"mail": producer}}).producers["mail"].router
        assert found is not None
        assert (RouteTarget(to="x", when="dispatched"),) == found.routes["a.b"]
        [problem] = problems_of({"producers": {"mail": {"transport": "x", "router": 5}}})
        assert "producers.mail.router: expected a table, got 5" == str(problem)

    def test_expressions_may_be_anything_that_compiles(self) -> None:
        """With `type = "regex"` keys are expressions of at most 256 characters."""
        routes = {r"shop\.(mail|web)\..+": "x", "a" * 256: "y"}
        router = {"type": "regex", "routes": routes}
        assert 2 == len(settings_of({"command_bus": {"router": router}}).command_bus.router.routes)

    def test_a_huge_expression_is_a_problem(self) -> None:
        """What the `re` module gives up on is told like any other mistake."""
        router = {"type": "regex", "routes": {"a{99999999999999999999}": "x"}}
        [problem] = problems_of({"command_bus": {"router": router}})
        assert (
            "expected a regular expression: the repetition number is too large" == problem.expected
        )


class TestParse:
    def test_it_returns_the_settings(self) -> None:
        """A right section becomes an instance; integers serve as numbers."""
        settings = example(
            rpc="both",
            linger=2,
            login={"user": "joe", "password": CANARY},
            hosts=["a", "b"],
            ports=[1, 2],
            headers={"x-a": "1"},
            extra={"a": [1]},
            **{"from": "b"},
        )
        assert "both" == settings.rpc
        assert 2.0 == settings.linger
        assert isinstance(settings.linger, float)
        assert Login(user="joe", password=CANARY) == settings.login
        assert ["a", "b"] == settings.hosts
        assert (1, 2) == settings.ports
        assert {"x-a": "1"} == settings.headers
        assert {"a": [1]} == settings.extra
        assert "b" == settings.from_

    def test_it_returns_none_when_anything_was_wrong(self) -> None:
        """Nobody can go on with half a section by mistake; earlier problems stand."""
        earlier = Problem("x", "", "expected y")
        problems = [earlier]
        assert parse(ExampleSettings, {"dsn": "tcp://a:1", "linger": -1}, "p", problems) is None
        assert [earlier, "p.linger"] == [problems[0], problems[1].path]
        assert parse(ExampleSettings, {"dsn": "tcp://a:1"}, "p", problems) is not None

    def test_keys_that_others_read_are_left_alone(self) -> None:
        """A transport's class does not have to know core's keys, and both are suggested."""
        section = {"dsn": "tcp://a:1", "transport": "x"}
        assert [] == example_problems(section, *RESERVED_PRODUCER_KEYS)
        [problem] = example_problems({"dsn": "tcp://a:1", "time_out": 5}, *RESERVED_PRODUCER_KEYS)
        assert "did you mean 'timeout'?" == problem.suggestion
        [problem] = example_problems({"dsn": "tcp://a:1", "DSN": "x"})
        assert "did you mean 'dsn'?" == problem.suggestion

    def test_a_key_like_no_other_hears_what_is_known(self) -> None:
        """Without a near name the remedy is the list of names."""
        problems: list[Problem] = []
        parse(Login, {"zzz": 1}, "login", problems)
        assert ["login.zzz: not a known key, got an integer; known: password, user"] == [
            str(problem) for problem in problems
        ]

    def test_no_section_is_a_problem(self) -> None:
        """Something that is no table is refused as a whole."""
        assert ["producers.mail: expected a table, got null"] == [
            str(problem) for problem in example_problems(None)
        ]

    def test_null_is_nothing_only_where_nothing_may_be(self) -> None:
        """YAML's null is the value of an optional key and wrong for any other."""
        assert example(persistent_id=None).persistent_id is None
        [problem] = example_problems({"dsn": "tcp://a:1", "linger": None})
        assert "null" == problem.value

    @pytest.mark.parametrize(
        "section",
        [
            {"curve_key": CANARY},
            {"curve_key": [CANARY]},
            {"curve_key": 5},
            {"login": {"password": [CANARY]}},
            {"login": {"password": {"x": CANARY}}},
            {"login": {"pasword": CANARY}},
            {"login": CANARY_URL},
            {"hosts": [CANARY_URL + " "]},
            {"linger": CANARY_URL},
            {"backlog": f"Server=x;Password={CANARY};"},
            {"depth": f"https://mq.example/?token={CANARY}"},
            {"dsn": f"user:{CANARY}@host"},
            {f"amqp://user:{CANARY}@host": 5},
            {"headers": {"Authorization": f"token={CANARY}"}},
            {"headers": {f"user:{CANARY}@": "x"}},
            {"zzz": {"password": CANARY}},
        ],
    )
    def test_no_secret_is_shown(self, section: dict[str, Any]) -> None:
        """A planted secret is in no text of the error, wherever it stood (A18)."""
        problems = example_problems({"dsn": "tcp://a:1", **section})
        error = ConfigurationError(problems)
        assert problems
        assert CANARY not in str(error)
        assert CANARY not in repr(error)
        assert all(len(problem.value) <= 80 for problem in problems)

    def test_a_telling_name_is_a_secret_without_being_told(self) -> None:
        """A key named password, token or the like is masked whatever its class says (A18)."""

        @attrs.frozen(kw_only=True)
        class Careless:
            sasl_password: int = setting(0, doc="a password")
            vault: Pin = setting(attrs.Factory(Pin), doc="a table of secrets", secret=True)

        problems: list[Problem] = []
        section = {"sasl_password": CANARY, "vault": {"pin": CANARY}}
        parse(Careless, section, "p", problems)
        parse(Careless, {"vault": CANARY}, "q", problems)
        assert [
            "p.sasl_password: expected an integer, got ***; leave it out for the default, 0",
            "p.vault.pin: expected an integer, got ***; leave it out for the default, 0",
            "q.vault: expected a table, got ***; leave it out for the default",
        ] == [str(each) for each in problems]

    def test_a_choice_is_of_its_own_type(self) -> None:
        """True is not 1, where 1 is a choice."""

        @attrs.frozen(kw_only=True)
        class Leveled:
            level: Literal[0, 1] = setting(0, doc="how much")

        problems: list[Problem] = []
        parse(Leveled, {"level": True}, "p", problems)
        parse(Leveled, {"level": 1}, "q", problems)
        assert ["p.level: expected 0 or 1, got true; leave it out for the default, 0"] == [
            str(each) for each in problems
        ]

    def test_no_secret_is_in_the_repr_of_settings(self) -> None:
        """Settings may be printed: secrets and user info are left out (A18)."""
        settings = example(
            dsn=f"tcp://user:{CANARY}@a:1", login={"password": CANARY}, curve_key="abcdef01"
        )
        assert CANARY not in repr(settings)
        assert "abcdef01" not in repr(settings)
        assert "tcp://***@a:1" in repr(settings)
        section = ProducerSection(transport="x", options={"key": CANARY})
        assert CANARY not in repr(section)

    def test_a_rule_across_keys_is_a_problem_of_the_section(self) -> None:
        """What a settings class refuses by itself is told like the rest, without secrets (A18)."""

        @attrs.frozen(kw_only=True)
        class Pair:
            low: int = setting(1, doc="low")
            high: int = setting(2, doc="high")
            token: str = setting("", doc="secret", secret=True)
            tokens: list[str] = setting(attrs.Factory(list), doc="secret", secret=True)

            def __attrs_post_init__(self) -> None:
                if self.low > self.high:
                    message = f"expected low below high\n(got {self.token} {self.tokens})"
                    raise ValueError(message)
                if not self.low:
                    raise ValueError

        problems: list[Problem] = []
        section = {"low": 3, "token": CANARY, "tokens": [CANARY]}
        assert parse(Pair, section, "p", problems) is None
        assert ["p: expected low below high (got *** ['***'])"] == [str(each) for each in problems]
        problems.clear()
        assert parse(Pair, {"low": 0}, "p", problems) is None
        assert ["p: refused"] == [str(each) for each in problems]

    def test_an_attrs_validator_is_a_problem_too(self) -> None:
        """Validators of attrs work, and the value they carry is not printed."""

        @attrs.frozen(kw_only=True)
        class Even:
            number: int = attrs.field(default=2, validator=attrs.validators.ge(2))

        problems: list[Problem] = []
        assert parse(Even, {"number": 1}, "p", problems) is None
        assert ["p: 'number' must be >= 2: 1"] == [str(each) for each in problems]

    def test_a_type_that_no_section_can_hold_is_a_mistake_of_the_class(self) -> None:
        """The author of a settings class hears of it, not the user."""

        @attrs.frozen(kw_only=True)
        class Odd:
            thing: bytes = setting(b"", doc="x")

        with pytest.raises(TypeError, match="cannot have a field of type <class 'bytes'>"):
            parse(Odd, {"thing": b"x"}, "p", [])

    def test_an_integer_beyond_any_number_is_refused(self) -> None:
        """No arithmetic of the check itself fails."""
        [problem] = example_problems({"dsn": "tcp://a:1", "linger": 10**400})
        assert "an integer" == problem.value


class TestTextFromTheEnvironment:
    @pytest.mark.parametrize(
        ("key", "text", "value"),
        [
            ("linger", "2", 2.0),
            ("linger", "2.5e1", 25.0),
            ("backlog", "5", 5),
            ("rpc", "true", True),
            ("rpc", "False", False),
            ("rpc", "both", "both"),
            ("level", "high", "high"),
            ("persistent_id", "5", "5"),
            ("persistent_id", "true", "true"),
            ("extra", "5", "5"),
        ],
    )
    def test_it_is_read_as_what_its_key_needs(self, key: str, text: str, value: Any) -> None:
        """A variable is text: it is a number or boolean where one is wanted, else it stays."""
        found = getattr(example(**{key: EnvironmentText(text)}), key)
        assert value == found
        assert type(value) is type(found)

    @pytest.mark.parametrize(
        ("key", "text"), [("backlog", "5.0"), ("backlog", ""), ("linger", "nan"), ("rpc", "1")]
    )
    def test_what_it_cannot_be_is_refused_without_its_value(self, key: str, text: str) -> None:
        """The error shows what stood in the file, not what the environment held (A18)."""
        value = EnvironmentText(text, "${LIMIT}")
        [problem] = example_problems({"dsn": "tcp://a:1", key: value})
        assert "'${LIMIT}' from the environment" == problem.value

    def test_it_passes_through_to_the_transport(self) -> None:
        """A transport's own keys are read from it the same way, one step later."""
        section = {"transport": "x", "dsn": "tcp://a:1", "ports": [EnvironmentText("5")]}
        producer = settings_of({"producers": {"mail": section}}).producers["mail"]
        assert (5,) == example(**producer.options).ports

    def test_a_target_may_come_from_it(self) -> None:
        """An id is plain text again."""
        send = {"a.*": EnvironmentText("producers.mail")}
        target = settings_of({"command_bus": {"router": {"send": send}}}).command_bus.router.send[
            "a.*"
        ]
        assert str is type(target.to)


class TestNames:
    def test_what_can_be_required_is_what_transports_declare(self) -> None:
        """`requires` offers every capability that a transport has or has not."""
        declared = {field.name for field in attrs.fields(Capabilities)}
        assert declared - {"lease", "max_size_bytes", "queries_only"} == set(CAPABILITIES)

    def test_core_reserves_its_own_keys(self) -> None:
        """The keys a transport cannot have for itself."""
        words = """transport guarantee requires codec timeout retry inbox failure_store schedule
            concurrency prefetch time_limit rules forward outbox router"""
        reserved = set(words.split())
        assert reserved <= RESERVED_PRODUCER_KEYS | RESERVED_CONSUMER_KEYS
        assert not {"options", "path"} & (RESERVED_PRODUCER_KEYS | RESERVED_CONSUMER_KEYS)
        for key in reserved - RESERVED_PRODUCER_KEYS:
            [problem] = problems_of({"producers": {"x": {"transport": "x", key: 1}}})
            assert f"producers.x.{key}" == problem.path
        for key in reserved - RESERVED_CONSUMER_KEYS:
            [problem] = problems_of({"consumers": {"x": {"transport": "x", key: 1}}})
            assert f"consumers.x.{key}" == problem.path


class TestShow:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (True, "true"),
            (False, "false"),
            (5, "5"),
            (2.5, "2.5"),
            (10**30, "an integer"),
            ("x", "'x'"),
            ("a\r\nb\x1b[31m", r"'a\r\nb\x1b[31m'"),
            (None, "null"),
            ({"a": 1}, "a table"),
            ((1,), "an array"),
            (object(), "an object of object"),
            (b"x", "an object of bytes"),
            ("x" * 100, "'" + "x" * 76 + "..."),
        ],
    )
    def test_a_value_is_short_and_on_one_line(self, value: Any, shown: str) -> None:
        """What is printed fits a line and cannot forge another one."""
        assert shown == show(value)

    @pytest.mark.parametrize(
        ("text", "masked"),
        [
            ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555"),
            ("amqp://guest:guest@mq/vhost", "amqp://***@mq/vhost"),
            ("amqp://guest:p/a@ss@mq/vhost", "amqp://***@mq/vhost"),
            ("user:secret@host", "***@host"),
            ("https://x/y?token=1&a=b", "https://x/y?***"),
            ("https://x/y#frag", "https://x/y#***"),
            ("host=x password=y z", "host=x password=*** z"),
            ("API_KEY: y", "API_KEY: ***"),
            ("what?", "what?"),
        ],
    )
    def test_secrets_in_text_are_masked(self, text: str, masked: str) -> None:
        """User info, queries and assignments to telling names are replaced (A18)."""
        assert masked == mask(text)

    def test_a_secret_is_three_stars(self) -> None:
        """Not even its length is told."""
        assert "***" == show(CANARY, secret=True)
