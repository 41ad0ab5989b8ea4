"""The command line: the application it is about, messages, routes, transports, exit codes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import click
import pytest
from click.testing import CliRunner
from dependency_injector import containers, providers

from postbus import Command, Event, Postbus, Query, build
from postbus.cli import _output
from postbus.cli._dispatching import _payload
from postbus.cli._logs import Lines, log_to_stderr
from postbus.cli._output import progress, show_error
from postbus.cli._program import EXIT_CODES, program
from postbus.cli._routes import _effects
from postbus.containers import PostbusContainer
from postbus.errors import ConnectionFailedError
from postbus.memory import reset
from postbus.messages import new_id
from postbus.settings import ConsumerSection
from postbus.testing import RecordingProducer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from click.testing import Result

HERE = __name__
SECRET = "hunter2"  # noqa: S105  planted, to see that it is never shown


@attrs.frozen
class PlaceOrder(Command, name="cli.place-order"):
    number: int
    note: str = ""


@attrs.frozen
class SendMail(Command, name="cli.mail.send"):
    to: str


@attrs.frozen
class OrderPlaced(Event, name="cli.order-placed"):
    number: int


@attrs.frozen
class CountOrders(Query[dict[str, int]], name="cli.count-orders"):
    least: int = 0


handled: list[Any] = []


def note(message: Any) -> None:
    if getattr(message, "note", "") == "fail":
        msg = f"password={SECRET}"
        raise RuntimeError(msg)
    handled.append(message)


async def anote(message: Any) -> None:
    handled.append(message)


def count(query: CountOrders) -> dict[str, int]:
    return {"orders": 7 + query.least}


CONFIG: dict[str, Any] = {
    "messages": [HERE],
    "producers": {"mail": {"transport": "memory", "address": "cli"}},
    "consumers": {"mail": {"transport": "memory", "address": "cli"}},
    "command_bus": {
        "router": {
            "routes": {"cli.place-order": "note", "cli.mail.send": "note"},
            "send": {"cli.mail.*": "producers.mail"},
        }
    },
    "buses": {"admin": {"kind": "command", "router": {"routes": {"cli.place-order": "anote"}}}},
    "event_bus": {"router": {"routes": {"cli.order-placed": ["note", "anote"]}}},
    "query_bus": {"router": {"routes": {"cli.count-orders": "count"}}},
}
SERVICES = {"note": note, "anote": anote, "count": count}


class Application(containers.DeclarativeContainer):
    __self__: providers.Self[Any] = providers.Self()
    config = providers.Configuration()
    postbus: Any = providers.Container(PostbusContainer, config=config.postbus, services=__self__)
    note = providers.Object(note)
    anote = providers.Object(anote)
    count = providers.Object(count)


class Outer(containers.DeclarativeContainer):
    config = providers.Configuration()
    inner: Any = providers.Container(Application, config=config)


class Twice(Application):
    other: Any = providers.Container(PostbusContainer)


class Unconfigurable(containers.DeclarativeContainer):
    postbus: Any = providers.Container(PostbusContainer)


def make(config: dict[str, Any] | None = None) -> Postbus:
    return build(CONFIG if config is None else config["postbus"], SERVICES)


def make_from(config: dict[str, Any]) -> Postbus:
    return make(config)


def make_alone() -> Postbus:
    return make()


@contextmanager
def open_container(config: dict[str, Any]) -> Generator[Any]:
    container = Application()
    container.config.from_dict(config)
    yield container
    handled.append("left")


def make_configured() -> Any:
    return PostbusContainer(config=CONFIG, services=SERVICES)


deep = SimpleNamespace(made=make_alone, number=5, ready=None)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Nothing of another test is left."""
    handled.clear()
    yield
    reset("cli")


@pytest.fixture
def config(tmp_path: Path) -> str:
    """The path of a configuration file, which has a table of the application's own too."""
    path = tmp_path / "postbus.json"
    path.write_text(json.dumps({"postbus": CONFIG, "shop": {"name": "x"}}))
    return str(path)


def run(*arguments: str, app: str = "make_alone", stdin: str = "") -> Result:
    """Run a command over the application called *app* here."""
    command = ["--app", f"{HERE}:{app}", *arguments]
    return CliRunner().invoke(program, command, input=stdin, catch_exceptions=False)


class TestProgram:
    """`postbus` itself."""

    def test_help_names_every_command(self) -> None:
        """One line for each, and the options that all have."""
        result = CliRunner().invoke(program, ["-h"])
        for name in program.commands:
            assert f"\n  {name} " in result.stdout
        assert "POSTBUS_APP" in result.stdout

    @pytest.mark.parametrize("command", sorted(program.commands))
    def test_every_command_explains_itself(self, command: str) -> None:
        """Each has help, and each takes the common options behind its name."""
        result = CliRunner().invoke(program, [command, "--help"])
        assert 0 == result.exit_code
        assert "--app MODULE:NAME" in result.stdout
        assert "--json" in result.stdout

    def test_an_application_is_needed(self) -> None:
        """Without `--app` and `--config` the command line is wrong."""
        result = CliRunner().invoke(program, ["routes"])
        assert 2 == result.exit_code
        assert "give --app MODULE:NAME" in result.stderr

    def test_options_come_from_the_environment(self, config: str) -> None:
        """POSTBUS_APP and POSTBUS_CONFIG stand for the options; an option counts more."""
        environment = {"POSTBUS_APP": f"{HERE}:nowhere", "POSTBUS_CONFIG": config}
        command = ["query", "--app", f"{HERE}:make_from", "cli.count-orders", "{}"]
        result = CliRunner().invoke(program, command, env=environment)
        assert '{"orders":7}\n' == result.stdout

    def test_errors_are_json_where_that_is_asked_for(self) -> None:
        """A program reads on standard error what kind of error it was."""
        result = run("send", "cli.place-order", '{"number": 1, "note": "fail"}', "--json")
        error = json.loads(result.stderr)
        assert 1 == result.exit_code
        assert "HandlerFailedError" == error["error"]

    def test_exit_codes_are_told_apart(self) -> None:
        """What is documented is what there is."""
        assert [0, 1, 2, 3, 4] == list(EXIT_CODES)

    def test_it_runs_as_a_module(self) -> None:
        """`python -m postbus.cli` is the console script."""
        done = subprocess.run(
            [sys.executable, "-m", "postbus.cli", "--version"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.startswith("postbus, version ")
        __import__("postbus.cli.__main__")  # which does nothing when it is imported

    @pytest.mark.parametrize("name", ["click", "rich"])
    def test_a_missing_extra_is_named(
        self, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Without click or rich the script says what to install."""
        from postbus.cli import main

        for module in [each for each in sys.modules if each.startswith("postbus.cli.")]:
            if module != "postbus.cli._main":
                monkeypatch.delitem(sys.modules, module)
        for module in [each for each in sys.modules if each.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "meta_path", [Missing(name), *sys.meta_path])
        with pytest.raises(SystemExit) as caught:
            main()
        assert 3 == caught.value.code
        expected = f"postbus: {name} is not installed: pip install 'postbus[cli]'\n"
        assert expected == capsys.readouterr().err

    def test_another_missing_module_is_no_missing_extra(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What lacks something of its own says so itself."""
        from postbus.cli import main

        monkeypatch.delitem(sys.modules, "postbus.cli._program")
        monkeypatch.setattr(sys, "meta_path", [Missing("postbus"), *sys.meta_path])
        with pytest.raises(ModuleNotFoundError):
            main()

    def test_importing_postbus_loads_neither_click_nor_rich(self) -> None:
        """Nor does the package of the command line, before it runs."""
        code = "import sys, postbus.cli; print({'click', 'rich'} & set(sys.modules))"
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
        )
        assert "set()\n" == done.stdout


class Missing:
    """A finder that knows that a module is not there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in {self._name, f"{self._name}.cli._program"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class TestApplication:
    """What `--app` and `--config` may name."""

    @pytest.mark.parametrize("app", ["make_alone", "make", "make_configured", "deep.made"])
    def test_it_may_be_configured_already(self, app: str) -> None:
        """A function that returns a Postbus or a container, also an attribute of something."""
        assert '{"orders":8}\n' == run("query", "cli.count-orders", '{"least": 1}', app=app).stdout

    @pytest.mark.parametrize(
        "app", ["Application", "Outer", "make", "make_from", "open_container"]
    )
    def test_it_may_take_its_configuration(self, app: str, config: str) -> None:
        """A class of containers, one with a PostbusContainer deeper inside, or a callable."""
        result = run("--config", config, "query", "cli.count-orders", app=app)
        assert '{"orders":7}\n' == result.stdout, result.output
        assert ["left"] * (app == "open_container") == handled

    def test_a_container_of_ours_takes_the_section(self, tmp_path: Path) -> None:
        """`--app postbus.containers:PostbusContainer` is a configuration without services."""
        path = tmp_path / "postbus.json"
        section = {"producers": {"mail": {"transport": "memory"}}}
        path.write_text(json.dumps({"postbus": section, "shop": {}}))
        app = ["--app", "postbus.containers:PostbusContainer", "--config", str(path)]
        result = CliRunner().invoke(program, [*app, "transports", "--json"])
        assert ["producers.mail"] == [each["section"] for each in json.loads(result.stdout)]

    def test_a_postbus_is_taken_as_it_is_and_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A module may have one; it is flushed and closed at the end."""
        monkeypatch.setattr(deep, "ready", make())
        assert 0 == run("routes", app="deep.ready").exit_code
        assert deep.ready.is_closed

    def test_a_file_alone_is_an_application(self, tmp_path: Path) -> None:
        """Where everything is sent no services are needed; it may be TOML, too."""
        path = tmp_path / "postbus.toml"
        path.write_text(
            f'messages = ["{HERE}"]\nproducers.mail.transport = "memory"\n'
            'producers.mail.address = "cli"\n'
            '[command_bus]\nrouter.send."cli.mail.send" = "producers.mail"\n'
        )
        command = ["--config", str(path), "send", "cli.mail.send", '{"to": "ada"}', "--json"]
        result = CliRunner().invoke(program, command)
        assert "cli.mail.send" == json.loads(result.stdout)["name"]

    def test_the_current_folder_comes_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As for a script of Python's; afterwards the path is as it was."""
        name = f"app_{new_id().replace('-', '')}"
        text = "from postbus import build\npostbus = build({})\n"
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        before = [*sys.path]
        result = CliRunner().invoke(program, ["routes", "--app", f"{name}:postbus"])
        assert (0, "no messages\n") == (result.exit_code, result.stdout)
        assert before == sys.path

    @pytest.mark.parametrize(
        ("app", "expected"),
        [
            ("shop", "got 'shop'; for example shop.application:Shop"),
            (":x", "expected MODULE:NAME"),
            ("shop_nowhere:x", "cannot import it (ModuleNotFoundError: No module named"),
            (f"{HERE}:deep.nowhere", "there is no 'nowhere' in it"),
            (f"{HERE}:deep.number", "it is a int"),
            (f"{HERE}:make_from", "it wants a configuration, got"),
            (f"{HERE}:Twice", "expected one PostbusContainer in it, found 2"),
            (f"{HERE}:Application", "expected a table"),
        ],
    )
    def test_what_cannot_be_one_is_refused(self, app: str, expected: str) -> None:
        """With exit code 3, what was expected and what to do."""
        result = CliRunner().invoke(program, ["--app", app, "routes"])
        assert 3 == result.exit_code
        assert expected in result.stderr

    @pytest.mark.parametrize(
        ("app", "expected"),
        [
            ("make_alone", "it takes no configuration"),
            ("deep.ready", "a Postbus has its configuration"),
            ("Unconfigurable", "expected a provider `config`"),
        ],
    )
    def test_a_configuration_needs_a_taker(
        self, app: str, expected: str, config: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that nobody reads is refused, not ignored."""
        monkeypatch.setattr(deep, "ready", make())
        result = run("--config", config, "routes", app=app)
        assert 3 == result.exit_code
        assert expected in result.stderr
        deep.ready.close()

    def test_an_endless_factory_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A callable that returns itself is no application."""
        monkeypatch.setattr(deep, "made", lambda: deep.made)
        assert 3 == run("routes", app="deep.made").exit_code


class TestSend:
    """`postbus send` (K18)."""

    def test_a_command_is_handled_where_it_says(self) -> None:
        """The JSON becomes the message, and the routes say the rest."""
        result = run("send", "cli.place-order", '{"number": 3}')
        assert [PlaceOrder(3)] == handled
        assert result.stdout.startswith("dispatched cli.place-order ")

    def test_it_is_sent_with_what_was_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Id, key, priority, delay and metadata go with the message."""
        postbus = make()
        monkeypatch.setattr(deep, "ready", postbus)
        id_ = new_id()
        with postbus.replacing("mail", RecordingProducer()) as mail:
            options = ["--id", id_, "--key", "k", "--priority", "7", "--delay", "5"]
            metadata = ["--metadata", "a=1", "--metadata", "b=x=y"]
            message = ["cli.mail.send", '{"to": "ada"}']
            result = run("send", *message, *options, *metadata, "--json", app="deep.ready")
        [sent] = mail.messages
        assert {"name": "cli.mail.send", "ids": [id_], "left": 0} == json.loads(result.stdout)
        assert (id_, "k", 7, 5.0) == (sent.id, sent.key, sent.priority, sent.delay)
        assert {"a": "1", "b": "x=y"} == json.loads(sent.body)["metadata"]

    def test_a_time_may_be_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`--at` delays until then."""
        postbus = make()
        monkeypatch.setattr(deep, "ready", postbus)
        with postbus.replacing("mail", RecordingProducer()) as mail:
            run(
                "send",
                "cli.mail.send",
                '{"to": "ada"}',
                "--at",
                "2999-01-01T00:00:00Z",
                app="deep.ready",
            )
        assert (mail.messages[0].delay or 0.0) > 1e9

    @pytest.mark.parametrize(
        ("argument", "stdin"), [(["-"], '{"number": 4}'), ([], '{"number": 4}')]
    )
    def test_it_reads_standard_input(self, argument: list[str], stdin: str) -> None:
        """Where no JSON is given, or a dash."""
        run("send", "cli.place-order", *argument, stdin=stdin)
        assert [PlaceOrder(4)] == handled

    def test_an_event_and_its_async_listeners(self) -> None:
        """Handlers of both colours run."""
        run("send", "cli.order-placed", '{"number": 5}')
        assert [OrderPlaced(5), OrderPlaced(5)] == handled

    def test_another_bus_may_be_named(self) -> None:
        """`--bus` takes one of `[postbus.buses]`; one that is not there is refused."""
        assert 0 == run("send", "cli.place-order", '{"number": 6}', "--bus", "admin").exit_code
        assert [PlaceOrder(6)] == handled
        assert 3 == run("send", "cli.place-order", '{"number": 6}', "--bus", "admni").exit_code

    def test_many_are_read_line_by_line(self) -> None:
        """All are checked first; then each is dispatched under an id of its own."""
        lines = '{"number": 1}\n\n{"number": 2}\n'
        result = run("send", "cli.place-order", "--lines", stdin=lines)
        assert [PlaceOrder(1), PlaceOrder(2)] == handled
        assert "dispatched 2 of 2 cli.place-order\n" == result.stdout

    def test_half_a_file_is_not_sent(self) -> None:
        """A bad line refuses them all; a failure in the middle says how far it came."""
        result = run("send", "cli.place-order", "--lines", stdin='{"number": 1}\n{"number"\n')
        assert (2, []) == (result.exit_code, handled)
        bad = '{"number": 1}\n{"number": 2, "note": "fail"}\n{"number": 3}\n'
        result = run("send", "cli.place-order", "--lines", "--json", stdin=bad)
        assert 1 == result.exit_code
        assert 2 == json.loads(result.stdout)["left"]

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["cli.place-order", '{"number": }'], "no JSON: Expecting value"),
            (["cli.place-order", "[1]"], "expected a JSON object"),
            (["cli.place-order", '{"number": "x"}'], "cli.place-order: "),
            (["cli.place-order", '{"number": 1, "colour": 2}'], "colour"),
            (["cli.place-order", '{"number": 1, "note": "\\ud800"}'], "cli.place-order: "),
            (["cli.place-ordr", "{}"], "did you mean 'cli.place-order'?"),
            (["nothing.like.it", "{}"], "known: cli.mail.send, cli.order-placed, cli.place-order"),
            (["cli.count-orders", "{}"], "cli.count-orders is a query: postbus query"),
            (["cli.place-order", "{}", "--metadata", "x"], "expected KEY=TEXT"),
            (["cli.place-order", "{}", "--metadata", "=x"], "expected KEY=TEXT"),
            (["cli.place-order", "{}", "--at", "tomorrow"], "expected an RFC 3339 time"),
            (["cli.place-order", "{}", "--at", "2030-01-01T00:00:00"], "with an offset"),
            (["cli.place-order", "{}", "--lines"], "--lines reads standard input"),
            (["cli.place-order", "--lines", "--id", "x"], "--lines reads standard input"),
        ],
    )
    def test_bad_input_is_refused(self, arguments: list[str], expected: str) -> None:
        """Bad JSON, an unknown name, a field too many: exit code 2, and nothing is handled."""
        result = run("send", *arguments)
        assert (2, []) == (result.exit_code, handled)
        assert expected in " ".join(result.stderr.split())

    def test_what_a_handler_says_is_shown_without_secrets(self) -> None:
        """The failure is exit code 1, and its text is masked."""
        result = run("send", "cli.place-order", '{"number": 1, "note": "fail"}')
        assert 1 == result.exit_code
        assert "cli.place-order failed" in result.stderr
        assert SECRET not in result.output

    def test_a_transport_that_fails_has_its_own_code(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Exit code 4: the message was right, the system was not there."""
        postbus = make()
        monkeypatch.setattr(deep, "ready", postbus)
        broken = RecordingProducer()
        monkeypatch.setattr(broken, "send", _refuse)
        monkeypatch.setattr(broken, "send_many", _refuse)
        with postbus.replacing("mail", broken):
            result = run("send", "cli.mail.send", '{"to": "ada"}', app="deep.ready")
        assert (4, "postbus: nobody is there\n") == (result.exit_code, result.stderr)

    def test_a_terminal_is_not_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a person types, a message without JSON is one without fields."""
        terminal = SimpleNamespace(isatty=lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        assert "{}" == _payload(None)
        assert '{"a": 1}' == _payload('{"a": 1}')


def _refuse(*_: Any) -> None:
    raise ConnectionFailedError("nobody is there")


class TestQuery:
    """`postbus query`."""

    def test_the_answer_is_json(self) -> None:
        """And nothing else is on standard output."""
        assert '{"orders":9}\n' == run("query", "cli.count-orders", '{"least": 2}').stdout

    def test_a_command_is_no_query(self) -> None:
        """It has no answer: `send` is for that."""
        result = run("query", "cli.place-order", "{}")
        assert 2 == result.exit_code
        assert "cli.place-order is a command: postbus send" in result.stderr

    def test_a_deadline_may_be_given(self) -> None:
        """In seconds, and on another bus too."""
        command = ["query", "cli.count-orders", "--timeout", "5", "--bus", "query_bus"]
        assert 0 == run(*command).exit_code
        assert 2 == run("query", "cli.count-orders", "--timeout", "0").exit_code


class TestRoutes:
    """`postbus routes`."""

    def test_every_message_has_a_line(self) -> None:
        """Where it goes, what handles it, and the guarantee on the way; then the consumers."""
        lines = [line.split() for line in run("routes").stdout.splitlines()]
        assert ["cli.mail.send", "command", "command_bus", "mail", "at-most-once", "note"] in lines
        assert ["cli.place-order", "command", "admin", "-", "-", "anote"] in lines
        assert ["cli.order-placed", "event", "event_bus", "-", "-", "note,", "anote"] in lines
        assert ["mail", "memory", "at-most-once", "at", "most", "once", "0", "-"] in lines

    def test_it_is_data_too(self) -> None:
        """`--json` has the same."""
        found = json.loads(run("routes", "--json").stdout)
        [mail] = [each for each in found["routes"] if each["message"] == "cli.mail.send"]
        assert {
            "message": "cli.mail.send",
            "kind": "command",
            "bus": "command_bus",
            "sent_to": ["mail"],
            "guarantee": "at-most-once",
            "handled_by": ["note"],
        } == mail
        assert ["mail"] == [each["consumer"] for each in found["consumers"]]

    def test_it_draws_a_flowchart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each node stands once, edges refer to it."""
        config = {**CONFIG, "buses": {}}
        monkeypatch.setattr(deep, "ready", build(config, SERVICES))
        assert [
            "flowchart LR",
            '  n0["query cli.count-orders"] --> n1("count")',
            '  n2["command cli.mail.send"] -- at-most-once --> n3(["producer mail"])',
            '  n2 -. when received .-> n4("note")',
            '  n5["event cli.order-placed"] --> n4',
            '  n5 --> n6("anote")',
            '  n7["command cli.place-order"] --> n4',
            '  n8(["consumer mail"]) --> n9["worker"]',
        ] == run("routes", "--mermaid", app="deep.ready").stdout.splitlines()

    def test_other_buses_and_lonely_messages_are_drawn(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handler of another bus is marked, and a message without a route stands alone."""
        config = {"messages": [HERE], "buses": CONFIG["buses"]}
        monkeypatch.setattr(deep, "ready", build(config, SERVICES))
        lines = run("routes", "--mermaid", app="deep.ready").stdout.splitlines()
        assert '  n0["query cli.count-orders"]' in lines
        assert any(line.endswith('("anote (admin)")') for line in lines)

    def test_effects_depend_on_guarantee_and_inbox(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Once: what comes back, and an inbox that remembers; without one perhaps twice."""
        monkeypatch.setattr(deep, "ready", build({}, {}))
        assert "no messages\n" == run("routes", app="deep.ready").stdout
        once = {"transport": "memory", "address": "cli", "guarantee": "at-most-once"}
        monkeypatch.setattr(deep, "ready", build({"consumers": {"once": once}}, {}))
        [consumer] = json.loads(run("routes", "--json", app="deep.ready").stdout)["consumers"]
        assert ("at-most-once", "at most once") == (consumer["guarantee"], consumer["effects"])
        section = ConsumerSection(transport="files", path="consumers.mail")
        assert "perhaps twice" == _effects(section, "at-least-once")
        expected = "once, where the unit of work joins the inbox"
        assert expected == _effects(attrs.evolve(section, inbox="main"), "at-least-once")

    def test_producers_that_are_objects_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A producer of the configuration by its name, another one by its class, or its id."""
        producer, service = RecordingProducer(), RecordingProducer()
        send = {"cli.mail.*": producer, "cli.place-order": "outbound"}
        config = {**CONFIG, "command_bus": {"router": {"send": send}}, "buses": {}}
        postbus = build(config, {**SERVICES, "outbound": service})
        monkeypatch.setattr(deep, "ready", postbus)
        router: Any = postbus.routers["event_bus"]
        router.send(OrderPlaced).to(postbus.producers["mail"])
        router.send("cli.order-placed").to("nowhere")
        rows = {
            each["message"]: (each["sent_to"], each["guarantee"])
            for each in json.loads(run("routes", "--json", app="deep.ready").stdout)["routes"]
        }
        name = "postbus.testing._producers.RecordingProducer"
        assert ([name], "at-least-once") == rows["cli.mail.send"]
        assert (["outbound"], "at-least-once") == rows["cli.place-order"]
        assert (["mail", "nowhere"], "unknown") == rows["cli.order-placed"]


class TestTransports:
    """`postbus transports`."""

    def test_the_installed_ones_are_listed(self) -> None:
        """Each for both roles, with what it can do where a section says nothing more."""
        result = CliRunner().invoke(program, ["transports"])
        lines = [line.split() for line in result.stdout.splitlines()]
        [memory, _] = [line for line in lines if line[1] == "memory"]
        assert "queries" in memory
        assert "delay=0.001" in memory

    def test_the_configured_ones_are_listed(self) -> None:
        """With an application: its sections, as they are configured."""
        rows = json.loads(run("transports", "--json").stdout)
        assert ["producers.mail", "consumers.mail"] == [row["section"] for row in rows]
        assert rows[0]["capabilities"]["queries"] is True

    def test_a_file_alone_is_enough(self, config: str) -> None:
        """Services do not matter here."""
        result = CliRunner().invoke(program, ["--config", config, "transports", "--json"])
        assert 2 == len(json.loads(result.stdout))

    def test_what_cannot_be_told_says_why(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A transport that needs a key, that refuses its defaults, or that cannot be loaded."""
        info = tmp_path / "postbus_odd-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: postbus-odd\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[postbus.transports]\nneedy = postbus_odd:NEEDY\nmoody = postbus_odd:MOODY\n"
            "gone = postbus_odd:GONE\n"
        )
        (tmp_path / "postbus_odd.py").write_text(
            "import attrs\n"
            "from postbus.memory import MemoryTransport\n"
            "from postbus.errors import UnsupportedError\n"
            "from postbus.settings import setting\n"
            "from postbus.transports import Capabilities\n"
            "@attrs.frozen(kw_only=True)\n"
            "class Keys:\n"
            "    path: str = setting(doc='a path')\n"
            "class Needy(MemoryTransport):\n"
            "    producer_settings = consumer_settings = Keys\n"
            "class Moody(MemoryTransport):\n"
            "    def capabilities(self, settings, common):\n"
            "        if isinstance(settings, self.producer_settings):\n"
            "            return Capabilities()\n"
            "        raise UnsupportedError('not like this')\n"
            "NEEDY, MOODY = Needy(), Moody()\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        out = CliRunner().invoke(program, ["transports"]).stdout
        lines = {tuple(line.split(maxsplit=2)) for line in out.splitlines()}
        assert ("producer", "needy", "as configured; needs path") in lines
        assert ("consumer", "moody", "not like this") in lines
        assert ("producer", "moody", "none") in lines
        assert any(line[:2] == ("-", "gone") for line in lines)
        sys.modules.pop("postbus_odd", None)


class TestOutput:
    """What is printed where."""

    def test_long_work_shows_progress_to_a_person(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A bar on standard error where that is a terminal and there is enough to do."""
        assert [1, 2] == list(progress([1, 2], "working"))
        assert [*range(30)] == list(progress(range(30), "working"))
        assert ("", "") == capsys.readouterr()
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        assert [*range(30)] == list(progress(range(30), "working"))
        assert "working" in capsys.readouterr().err

    def test_a_table_fits_a_terminal(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Only where nobody looks a line is as long as it wants; values are no markup."""
        _output.show_table(("a", "b"), [("[red]x", "y" * 300)], empty="none")
        assert f"[red]x  {'y' * 300}" in capsys.readouterr().out
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", "60")
        _output.show_table(("a", "b"), [(True, "y" * 300), (False, None)], empty="none")
        out = capsys.readouterr().out
        assert "y" * 100 not in out
        assert "yes" in out
        assert "no" in out

    def test_an_error_may_have_several_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        """All of them are shown."""
        show_error("one\ntwo", as_json=False, kind="X")
        assert "postbus: one\ntwo\n" == capsys.readouterr().err


class TestLogs:
    """The records of a worker."""

    def test_a_record_is_a_line_with_its_facts(self) -> None:
        """What was given as `extra` stands behind it; what is None and what is secret does not."""
        record = logging.makeLogRecord(
            {
                "msg": f"started password={SECRET}",
                "levelname": "INFO",
                "created": 0.0,
                "consumer": "mail",
                "code": None,
            }
        )
        line = Lines(as_json=False).format(record)
        assert "1970-01-01T00:00:00.000+00:00 info started password=*** consumer=mail" == line
        assert {
            "at": "1970-01-01T00:00:00.000+00:00",
            "level": "info",
            "event": "started password=***",
            "consumer": "mail",
        } == json.loads(Lines(as_json=True).format(record))

    def test_a_traceback_follows_its_line(self) -> None:
        """Where there is one."""
        error = KeyError("x")
        facts = {"msg": "failed", "exc_info": (KeyError, error, error.__traceback__)}
        record = logging.makeLogRecord(facts)
        assert "failed\nKeyError: 'x'" in Lines(as_json=False).format(record)
        assert "KeyError" in json.loads(Lines(as_json=True).format(record))["traceback"]

    def test_the_level_counts(self) -> None:
        """From that on; handlers that were there are replaced."""
        root = logging.getLogger()
        before = root.handlers[:], root.level
        try:
            log_to_stderr("error", as_json=False)
            assert logging.ERROR == root.level
            assert 1 == len(root.handlers)
        finally:
            root.handlers[:], root.level = before


def test_every_option_has_help() -> None:
    """A person who reads `--help` is told about each."""

    def commands(group: click.Group) -> Iterator[click.Command]:
        for command in group.commands.values():
            yield command
            if isinstance(command, click.Group):
                yield from commands(command)

    for command in commands(program):
        assert command.help, command.name
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, (command.name, parameter.name)
