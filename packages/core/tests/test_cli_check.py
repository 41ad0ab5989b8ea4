"""`postbus check`: broken projects, each found by its own rule, and nothing found elsewhere."""

from __future__ import annotations

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from click.testing import CliRunner

from postbus import AsyncMessage, Command, Event, MessageProducerPlugin, Query, RegexRouter, build
from postbus.cli._checking import _show
from postbus.cli._program import program
from postbus.cli._state import State
from postbus.errors import Problem
from postbus.routers import ServiceLocatorRouter
from postbus.runtime import RULES, Finding, Rule, examine, finding_of
from postbus.testing import RecordingProducer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

    from postbus import Postbus

HERE = __name__
ROOT = Path(__file__).parents[3]
SECRET = "hunter2"  # noqa: S105  planted, to see that it is never shown


@attrs.frozen
class PlaceOrder(Command, name="shop.place-order", aliases=("shop.order",)):
    number: int


@attrs.frozen
class SendMail(Command, name="shop.mail.send"):
    to: str


@attrs.frozen
class WriteReport(Command, AsyncMessage, name="shop.report.write"):
    number: int


@attrs.frozen
class OrderPlaced(Event, name="shop.order-placed"):
    number: int


@attrs.frozen
class CountOrders(Query[int], name="shop.count-orders"):
    pass


class FirstError(Exception):
    pass


def handle(message: Any) -> None:
    pass


async def ahandle(message: Any) -> None:
    pass


class AsyncHandler:
    async def __call__(self, message: Any) -> None:
        pass


class Plugin:
    def attach(self, bus: Any) -> None:
        pass


# What a distribution of its own would bring: transports that differ from memory in one thing.
TRANSPORTS = """
import attrs
from postbus.memory import MemoryTransport


class Changed(MemoryTransport):
    changes = {}

    def make_producer(self, settings, common):
        producer = super().make_producer(settings, common)
        producer.capabilities = attrs.evolve(producer.capabilities, **self.changes)
        return producer

    def make_consumer(self, settings, common):
        consumer = super().make_consumer(settings, common)
        consumer.capabilities = attrs.evolve(consumer.capabilities, **self.changes)
        return consumer

    def capabilities(self, settings, common):
        return attrs.evolve(super().capabilities(settings, common), **self.changes)


class Durable(Changed):
    name = "durable"
    changes = {"durable": True, "redeliver_on_crash": True}


class Leased(Changed):
    name = "leased"
    changes = {"delay": None, "lease": 10.0}


class Forgetful(Changed):
    name = "forgetful"
    changes = {"redeliver_on_crash": True}


class Direct(Changed):
    name = "direct"
    changes = {"redeliver_on_crash": True, "retry": False, "delay": None}


class OneWay(Changed):
    name = "oneway"
    changes = {"queries": False, "retry": False, "delay": None}


class Asking(Changed):
    name = "asking"
    changes = {"queries_only": True}


DURABLE, LEASED, ONEWAY, ASKING = Durable(), Leased(), OneWay(), Asking()
FORGETFUL, DIRECT = Forgetful(), Direct()
"""
POINTS = """
[postbus.transports]
durable = postbus_check_transports:DURABLE
leased = postbus_check_transports:LEASED
oneway = postbus_check_transports:ONEWAY
asking = postbus_check_transports:ASKING
forgetful = postbus_check_transports:FORGETFUL
direct = postbus_check_transports:DIRECT
broken = postbus_check_transports:MISSING
"""

BASE: dict[str, Any] = {
    "messages": [HERE],
    "command_bus": {
        "router": {
            "routes": {
                "shop.place-order": "handle",
                "shop.mail.send": "handle",
                "shop.report.write": "handle",
            }
        }
    },
    "event_bus": {"router": {"routes": {"shop.order-placed": "handle"}}},
    "query_bus": {"router": {"routes": {"shop.count-orders": "handle"}}},
}
SERVICES: dict[str, Any] = {
    "handle": handle,
    "ahandle": ahandle,
    "async_handler": AsyncHandler(),
    "plugin": Plugin(),
    "unit": object,
}

GONE = object()
COMMANDS = "command_bus/router/routes"
SENDS = "command_bus/router/send"
SQLITE = {"store": "sqlite", "path": "never-opened.db"}
MEMORY = {"store": "memory"}
RETRY = {"max_attempts": 3, "initial_delay": 20.0}
DURABLE_CONSUMER = {"transport": "durable", "failure_store": "main"}

# What is planted, by the rule that is to find it: where to put what into BASE.
PROJECTS: list[tuple[str, dict[str, Any]]] = [
    ("configuration", {"comand_bus": {}}),
    ("configuration", {"worker": {"shutdown_grace": -1}}),
    ("configuration", {"producers": {"mail": {}}}),
    ("configuration", {"producers": {"mail": {"transport": "memory", "adress": "x"}}}),
    ("configuration", {"consumers": {"mail": {"transport": "memory", "concurrency": "many"}}}),
    ("configuration", {"stores": {"main": {"store": "sqlite"}}}),
    ("configuration", {"command_bus/nested": "sometimes"}),
    ("messages", {"messages": [HERE, "shop_that_is_nowhere"]}),
    ("messages", {"messages": [HERE, "postbus_check_twins"]}),
    ("not-installed", {"producers": {"mail": {"transport": "carrier-pigeon"}}}),
    ("not-installed", {"consumers": {"mail": {"transport": "broken"}}}),
    ("not-installed", {"stores": {"main": {"store": "papyrus"}}}),
    ("error-class", {"errors": {"first": f"{HERE}:NoSuchError"}}),
    ("error-class", {"errors": {"first": f"{HERE}:handle"}}),
    ("error-class", {"errors": {"a": f"{HERE}:FirstError", "b": f"{HERE}:FirstError"}}),
    ("capability", {"consumers": {"mail": {"transport": "memory", "requires": ["durable"]}}}),
    (
        "capability",
        {"producers": {"mail": {"transport": "memory", "guarantee": "at-least-once"}}},
    ),
    (
        "capability",
        {"consumers": {"mail": {"transport": "oneway", "guarantee": "at-least-once"}}},
    ),
    (
        "capability",
        {
            "producers": {"mail": {"transport": "oneway"}},
            "query_bus/router/send": {"shop.count-orders": "producers.mail"},
        },
    ),
    (
        "capability",
        {
            "producers": {"mail": {"transport": "asking"}},
            "consumers": {"mail": {"transport": "memory"}},
            SENDS: {"shop.mail.send": "producers.mail"},
        },
    ),
    ("unknown-message", {f"{COMMANDS}/shop.mail.sned": "handle"}),
    ("unknown-message", {f"{COMMANDS}/shop.count-orders": "handle"}),
    ("unmatched-pattern", {f"{COMMANDS}/shop.post.*": "handle"}),
    (
        "unmatched-pattern",
        {
            "consumers": {
                "mail": {
                    "transport": "memory",
                    "rules": [{"match": "shop.post.*", "retry": {"max_attempts": 1}}],
                }
            }
        },
    ),
    ("unknown-id", {f"{COMMANDS}/shop.mail.send": "handel"}),
    ("unknown-id", {SENDS: {"shop.mail.send": "producers.mial"}}),
    ("unknown-id", {"command_bus/plugins": ["plugins"]}),
    ("unknown-id", {"command_bus/unit_of_work": "session"}),
    ("unknown-id", {"command_bus/message_factory": "factory"}),
    ("unknown-id", {"consumers": {"mail": {"transport": "memory", "failure_store": "main"}}}),
    ("wrong-service", {"command_bus/plugins": ["unit"]}),
    ("wrong-service", {SENDS: {"shop.mail.send": "handle"}}),
    (
        "ambiguous-route",
        {
            f"{COMMANDS}/shop.mail.send": GONE,
            f"{COMMANDS}/shop.mail.*": "handle",
            f"{COMMANDS}/shop.*.send": "handle",
        },
    ),
    ("ambiguous-route", {f"{COMMANDS}/shop.order": "handle"}),
    (
        "retry-nowhere",
        {"consumers": {"mail": {"transport": "oneway", "retry": {"max_attempts": 2}}}},
    ),
    (
        "unnamed-listener",
        {
            "consumers": {"mail": {"transport": "memory", "retry": {"max_attempts": 2}}},
            "event_bus/router/routes/shop.order-placed": lambda event: None,
        },
    ),
    ("unhandled-message", {f"{COMMANDS}/shop.mail.send": GONE}),
    ("unhandled-message", {"query_bus/router/routes": {}}),
    (
        "unreachable-handler",
        {
            "producers": {"mail": {"transport": "memory"}},
            SENDS: {"shop.mail.send": "producers.mail"},
        },
    ),
    (
        "unreachable-handler",
        {
            "producers": {"mail": {"transport": "memory"}},
            "consumers": {"mail": {"transport": "memory"}},
            "buses": {
                "admin": {
                    "kind": "command",
                    "router": {
                        "routes": {"shop.mail.send": "handle"},
                        "send": {"shop.mail.*": "producers.mail"},
                    },
                }
            },
        },
    ),
    (
        "unsendable-message",
        {
            "producers": {"mail": {"transport": "memory"}},
            "consumers": {"mail": {"transport": "memory"}},
            "messages": [HERE, "postbus_check_odd"],
            f"{COMMANDS}/shop.odd": "handle",
            SENDS: {"shop.odd": "producers.mail"},
        },
    ),
    ("shadowed-route", {f"{COMMANDS}/shop.mail.*": "handle"}),
    (
        "shadowed-route",
        {
            "producers": {"mail": {"transport": "memory"}, "post": {"transport": "memory"}},
            "consumers": {"mail": {"transport": "memory"}},
            SENDS: {"shop.mail.send": "producers.mail", "shop.mail.*": "producers.post"},
        },
    ),
    (
        "sends-after-commit",
        {
            "producers": {"mail": {"transport": "durable"}},
            "consumers": {"mail": DURABLE_CONSUMER},
            "stores": {"main": SQLITE},
            "command_bus/unit_of_work": "unit",
            SENDS: {"shop.mail.send": "producers.mail"},
        },
    ),
    ("retry-budget", {"consumers": {"mail": {"transport": "leased", "retry": RETRY}}}),
    (
        "retry-budget",
        {
            "consumers": {
                "mail": {
                    "transport": "leased",
                    "retry": {"max_attempts": 1},
                    "rules": [{"match": "shop.*.*", "retry": RETRY}],
                }
            }
        },
    ),
    (
        "inbox-apart",
        {
            "consumers": {"mail": {"transport": "memory", "inbox": "main"}},
            "stores": {"main": SQLITE},
            "command_bus/unit_of_work": "unit",
        },
    ),
    (
        "inbox-apart",
        {
            "consumers": {"mail": {"transport": "memory", "inbox": "main"}},
            "stores": {"main": MEMORY},
            "command_bus/unit_of_work": "unit",
            "event_bus/unit_of_work": "unit",
        },
    ),
    ("volatile-store", {"consumers": {"mail": DURABLE_CONSUMER}, "stores": {"main": MEMORY}}),
    (
        "volatile-store",
        {
            "producers": {"mail": {"transport": "durable", "schedule": "main"}},
            "stores": {"main": MEMORY},
        },
    ),
    ("volatile-queue", {"consumers": {"mail": {"transport": "forgetful"}}}),
    ("volatile-queue", {"producers": {"mail": {"transport": "forgetful"}}}),
    ("poison-loop", {"consumers": {"mail": {"transport": "durable"}}}),
    ("threads-on-async", {f"{COMMANDS}/shop.mail.send": {"to": "ahandle", "threads": True}}),
    ("threads-on-async", {f"{COMMANDS}/shop.mail.send": {"to": "async_handler", "threads": True}}),
    (
        "grace-too-short",
        {
            "consumers": {"mail": {"transport": "memory", "time_limit": 60.0}},
            "worker": {"shutdown_grace": 5.0},
        },
    ),
]

# What is close to a mistake and none.
SOUND: list[dict[str, Any]] = [
    {},
    {f"{COMMANDS}/shop.mail.send": GONE, "command_bus/plugins": ["locator"]},
    {f"{COMMANDS}/shop.mail.send": GONE, "command_bus/plugins": ["forwarder"]},
    {
        "producers": {"mail": {"transport": "memory"}},
        "consumers": {"mail": {"transport": "memory"}},
        SENDS: {"shop.mail.*": "producers.mail"},
    },
    {
        "producers": {"mail": {"transport": "memory"}},
        "event_bus/router/routes/shop.order-placed": {"to": "handle", "when": "dispatched"},
        "event_bus/router/send": {"shop.order-placed": "producers.mail"},
    },
    {
        "producers": {"mail": {"transport": "memory"}},
        "consumers": {"mail": {"transport": "memory"}},
        "command_bus/router/async_switch": "producers.mail",
    },
    {
        "consumers": {"mail": {**DURABLE_CONSUMER, "inbox": "main", "retry": RETRY}},
        "producers": {"mail": {"transport": "durable"}},
        "stores": {"main": SQLITE},
        "command_bus/unit_of_work": "unit",
        "event_bus/unit_of_work": "unit",
        SENDS: {"shop.mail.send": "producers.mail"},
    },
    {"consumers": {"mail": {"transport": "leased", "retry": {"max_attempts": 3}}}},
    {
        "consumers": {
            "mail": {"transport": "leased", "retry": {"max_attempts": 1, "initial_delay": 60.0}}
        }
    },
    {
        "consumers": {"mail": {"transport": "leased", "retry": RETRY, "failure_store": "main"}},
        "stores": {"main": SQLITE},
    },
    {
        "producers": {"mail": {"transport": "durable"}},
        "consumers": {"mail": DURABLE_CONSUMER},
        "stores": {"main": SQLITE},
        "command_bus/unit_of_work": "unit",
        SENDS: dict.fromkeys(
            ("shop.place-order", "shop.mail.send", "shop.report.write"), "producers.mail"
        ),
    },
    {
        "consumers": {"mail": {"transport": "direct"}},
        "producers": {"mail": {"transport": "direct"}},
    },
    {"consumers": {"mail": {"transport": "forgetful", "guarantee": "at-most-once"}}},
    {f"{COMMANDS}/shop.mail.send": "ahandle"},
    {f"{COMMANDS}/shop.mail.send": {"to": "handle", "threads": True}},
    {"consumers": {"mail": {**DURABLE_CONSUMER, "time_limit": 60.0}}, "stores": {"main": SQLITE}},
]

current: dict[str, Any] = {}


def application() -> Postbus:
    """Return what `--app` is to find: the project that a test has planted."""
    producer = RecordingProducer()
    services = {
        **SERVICES,
        "locator": ServiceLocatorRouter(SERVICES),
        "forwarder": MessageProducerPlugin(producer),
    }
    return build(current["config"], services)


def planted(changes: dict[str, Any]) -> dict[str, Any]:
    """Return BASE with *changes* at their places."""
    config = copy.deepcopy(BASE)
    for path, value in changes.items():
        *parents, last = path.split("/")
        table = config
        for parent in parents:
            table = table.setdefault(parent, {})
        if value is GONE:
            del table[last]
        else:
            table[last] = value
    return config


@pytest.fixture(autouse=True)
def _transports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the transports, and modules: two classes of one name, one that cannot be sent."""
    info = tmp_path / "postbus_check-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: postbus-check\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "postbus_check_transports.py").write_text(TRANSPORTS)
    (tmp_path / "postbus_check_twins.py").write_text(
        "from postbus import Command\n"
        "class A(Command, name='shop.twin'): ...\n"
        "class B(Command, name='shop.twin'): ...\n"
    )
    (tmp_path / "postbus_check_odd.py").write_text(
        "import attrs\n"
        "from postbus import Command\n"
        "@attrs.frozen\n"
        "class Odd(Command, name='shop.odd'):\n"
        "    number: complex\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for module in ("postbus_check_transports", "postbus_check_twins", "postbus_check_odd"):
        sys.modules.pop(module, None)


def run_check(changes: dict[str, Any], *arguments: str) -> Result:
    """Run `postbus check` over a project."""
    current["config"] = planted(changes)
    command = ["--app", f"{HERE}:application", "check", *arguments]
    return CliRunner().invoke(program, command, catch_exceptions=False)


class TestCheck:
    """`postbus check`."""

    @pytest.mark.parametrize(("rule", "changes"), PROJECTS)
    def test_a_broken_project_is_found_by_its_rule(
        self, rule: str, changes: dict[str, Any]
    ) -> None:
        """By that one and no other, with a place, a text and exit code 1."""
        result = run_check(changes, "--json")
        findings = json.loads(result.stdout)
        assert {rule} == {each["rule"] for each in findings}
        assert all(each["path"] and each["text"] for each in findings)
        assert 1 == result.exit_code

    @pytest.mark.parametrize("changes", SOUND)
    def test_nothing_is_found_in_a_sound_one(self, changes: dict[str, Any]) -> None:
        """What is close to a mistake and none is left alone."""
        result = run_check(changes)
        assert "nothing found\n" == result.stdout
        assert 0 == result.exit_code

    def test_every_rule_is_tried(self) -> None:
        """There are forty projects at least, and none of the rules goes without."""
        assert set(RULES) == {rule for rule, _ in PROJECTS}
        assert len(PROJECTS) >= 40

    @pytest.mark.parametrize(
        ("folder", "app", "config"),
        [
            ("shop", "shop.application:Shop", "1-now.toml"),
            ("shop", "shop.application:Shop", "2-later.toml"),
            ("shop", "shop.application:open_shop", "3-mail-later.toml"),
            ("shop", "shop.application:Shop", "4-durable.toml"),
            ("containers", "hotel.application:Hotel", "memory.toml"),
            ("containers", "hotel.application:open_hotel", "zeromq.toml"),
        ],
    )
    def test_nothing_is_found_in_the_examples(
        self,
        folder: str,
        app: str,
        config: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """They show how it is done."""
        if config == "zeromq.toml" or folder == "shop":
            pytest.importorskip("postbus_zeromq")
        if config == "4-durable.toml":
            pytest.importorskip("postbus_files")
        monkeypatch.setenv("HOTEL_DATABASE", str(tmp_path / "hotel.db"))
        monkeypatch.setenv("SHOP_LEDGERS", str(tmp_path))
        monkeypatch.chdir(ROOT / "examples" / folder)
        result = CliRunner().invoke(program, ["--app", app, "--config", config, "check"])
        assert "nothing found\n" == result.stdout, result.output
        assert 0 == result.exit_code

    def test_findings_are_readable(self) -> None:
        """A line says where, what and which rule; the next what to do; standard error how many."""
        result = run_check({f"{COMMANDS}/shop.mail.send": "handel"})
        assert (
            'command_bus.router.routes."shop.mail.send": expected the id of a service, '
            "got 'handel' [unknown-id]\n    did you mean 'handle'?\n"
        ) == result.stdout
        assert "1 thing found; postbus check --explain RULE says more\n" == result.stderr

    def test_a_finding_may_lack_a_remedy(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Then there is no second line for it; several are counted."""
        _show(State(), [Finding("messages", "a.b", "is wrong"), Finding("messages", "c", "too")])
        printed = capsys.readouterr()
        assert "a.b: is wrong [messages]\nc: too [messages]\n" == printed.out
        assert printed.err.startswith("2 things found")

    def test_a_rule_can_be_left_out(self) -> None:
        """`--ignore` takes its findings away, and the exit code with them."""
        result = run_check(
            {"consumers": {"mail": {"transport": "durable"}}}, "--ignore", "poison-loop"
        )
        assert (0, "nothing found\n") == (result.exit_code, result.stdout)

    def test_secrets_are_not_shown(self) -> None:
        """A password in an address stays where it is."""
        address = f"amqp://joe:{SECRET}@localhost/x"
        result = run_check({"producers": {"mail": {"transport": "memory", "adress": address}}})
        assert "producers.mail.adress" in result.output
        assert SECRET not in result.output

    def test_without_an_application_there_are_no_services(self, tmp_path: Path) -> None:
        """A file alone can be checked too; the ids of services lead nowhere then."""
        path = tmp_path / "postbus.json"
        path.write_text(json.dumps({"postbus": BASE, "shop": {}}))
        result = CliRunner().invoke(program, ["check", "--config", str(path), "--json"])
        assert {"unknown-id"} == {each["rule"] for each in json.loads(result.stdout)}


class TestRules:
    """The rules themselves."""

    @pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
    def test_each_is_explained(self, rule: Rule) -> None:
        """`--explain` says what it means, and whether a start refuses it."""
        result = CliRunner().invoke(program, ["check", "--explain", rule.id])
        assert f"{rule.id}: {rule.summary}\n" in result.stdout
        assert " ".join(rule.explanation.split()) in " ".join(result.stdout.split())
        assert rule.is_refused == ("A start refuses it." in result.stdout)
        assert rule.is_refused == (rule.check is None)

    def test_all_are_listed(self) -> None:
        """`--rules` has a line for each, also as JSON."""
        listed = CliRunner().invoke(program, ["check", "--rules"]).stdout.splitlines()
        assert [f"{rule.id}: {rule.summary}" for rule in RULES.values()] == listed
        found = json.loads(CliRunner().invoke(program, ["check", "--rules", "--json"]).stdout)
        assert list(RULES) == [each["id"] for each in found]

    def test_an_unknown_one_is_refused(self) -> None:
        """A misspelt rule explains nothing, and the command line is wrong."""
        assert 2 == CliRunner().invoke(program, ["check", "--explain", "inbox"]).exit_code

    def test_a_problem_is_a_finding(self) -> None:
        """What `build` refuses has the rule that the problem names."""
        problem = Problem("a.b", "'x'", "expected y", "write y", rule="unknown-id")
        assert Finding("unknown-id", "a.b", "expected y, got 'x'", "write y") == finding_of(
            problem
        )
        assert "configuration" == finding_of(Problem("a", "", "required")).rule

    def test_routes_that_were_added_in_code_count(self) -> None:
        """A bus that was wired is judged by the routes it has."""
        with build(planted({f"{COMMANDS}/shop.mail.send": GONE}), SERVICES) as postbus:
            assert ["unhandled-message"] == [each.rule for each in examine(postbus.project())]
            router: Any = postbus.routers["command_bus"]
            router.route(SendMail).to(handle)
            assert [] == examine(postbus.project())

    def test_a_router_may_be_a_plugin(self) -> None:
        """Where plugins route, sections do not say it all."""
        services = {**SERVICES, "regex": RegexRouter({"shop.mail.send": partial(handle)})}
        config = planted({f"{COMMANDS}/shop.mail.send": GONE, "command_bus/plugins": ["regex"]})
        with build(config, services) as postbus:
            assert [] == examine(postbus.project())
