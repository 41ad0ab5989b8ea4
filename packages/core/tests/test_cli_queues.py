"""`postbus queues`: what waits for consumers."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from click.testing import CliRunner

from postbus import Command, Envelope, MessageKind, Postbus, build
from postbus.cli._program import program
from postbus.errors import ConnectionFailedError
from postbus.memory import MEMORY, MemoryConsumer, MemoryProducer, reset
from postbus.messages import new_id
from postbus.testing import declaring
from postbus.transports import WireMessage
from postbus.wire import encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from click.testing import Result

HERE = __name__


@attrs.frozen
class SendMail(Command, name="waiting.mail.send"):
    to: str


current: dict[str, Any] = {}


def application() -> Postbus:
    return build(current["config"])


@pytest.fixture(autouse=True)
def address() -> Iterator[str]:
    """An application with one consumer, whose queue no other test has."""
    address = new_id()
    current["config"] = {
        "messages": [HERE],
        "consumers": {"mail": {"transport": "memory", "address": address}},
    }
    yield address
    reset(address)


def run(*arguments: str, stdin: str = "") -> Result:
    command = ["--app", f"{HERE}:application", "queues", *arguments]
    return CliRunner().invoke(program, command, input=stdin, catch_exceptions=False)


def send(address: str, *bodies: bytes) -> None:
    producer = MemoryProducer(address=address)
    producer.send_many([WireMessage(body, {}, new_id(), "waiting.mail.send") for body in bodies])


def message_to(to: str, **headers: Any) -> Envelope:
    name, kind = "waiting.mail.send", MessageKind.COMMAND
    return Envelope(SendMail(to), name=name, kind=kind, headers=headers)


class Several(MemoryConsumer):
    """Takes from two queues, as other transports do."""

    def count(self) -> Mapping[str, int]:
        return {"first": 3, "second": 4}


class Unreachable(MemoryConsumer):
    """Has a system that is not there."""

    def count(self) -> Mapping[str, int]:
        raise ConnectionFailedError("nobody there, password=hunter2")


def use(monkeypatch: pytest.MonkeyPatch, consumer: type[MemoryConsumer]) -> None:
    def make(settings: Any, common: Any) -> MemoryConsumer:
        return consumer(address=settings.address)

    monkeypatch.setattr(MEMORY, "make_consumer", make)


def lack(monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    """Have memory declare that it lacks *capabilities*."""
    lacking = declaring(MEMORY, **dict.fromkeys(capabilities, False))
    make = MEMORY.make_consumer

    def make_lacking(settings: Any, common: Any) -> Any:
        consumer = make(settings, common)
        consumer.capabilities = lacking.capabilities(settings, common)
        return consumer

    monkeypatch.setattr(MEMORY, "make_consumer", make_lacking)


class TestList:
    """`queues list`."""

    def test_it_counts_for_every_consumer(self, address: str) -> None:
        """A line for each queue (K17)."""
        current["config"]["consumers"]["other"] = {"transport": "memory", "address": "empty"}
        send(address, b"1", b"2")
        lines = [line.split() for line in run("list").stdout.splitlines()]
        assert [
            ["consumer", "transport", "queue", "waiting"],
            ["mail", "memory", address, "2"],
            ["other", "memory", "empty", "0"],
        ] == lines
        first, _ = json.loads(run("list", "--json").stdout)
        assert {
            "consumer": "mail",
            "transport": "memory",
            "queue": address,
            "waiting": 2,
            "trouble": None,
        } == first

    def test_without_consumers_there_is_nothing(self) -> None:
        """And that is no failure."""
        current["config"] = {}
        result = run("list")
        assert (0, "none\n") == (result.exit_code, result.stdout)

    def test_a_consumer_that_cannot_count_is_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a blank where the others have a number."""
        lack(monkeypatch, "count")
        result = run("list")
        assert ["mail", "memory", "-", "-"] == result.stdout.splitlines()[1].split()
        assert 0 == result.exit_code

    def test_a_system_that_is_not_there_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With exit code 4, and without secrets."""
        use(monkeypatch, Unreachable)
        result = run("list")
        assert ["mail", "memory", "-", "-"] == result.stdout.splitlines()[1].split()
        assert "postbus: consumers.mail: nobody there, password=***\n" == result.stderr
        assert 4 == result.exit_code


class TestCount:
    """`queues count`."""

    def test_it_prints_a_number(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """For scripts; of one queue or of all (K16)."""
        send(address, b"1", b"2")
        assert "2\n" == run("count", "mail").stdout
        use(monkeypatch, Several)
        assert "7\n" == run("count", "mail").stdout
        assert "4\n" == run("count", "mail", "--queue", "second").stdout
        assert {"total": 4, "queues": {"second": 4}} == json.loads(
            run("count", "mail", "--queue", "second", "--json").stdout
        )

    def test_an_unknown_consumer_is_refused(self) -> None:
        """With the nearest one there is."""
        result = run("count", "mial")
        assert 3 == result.exit_code
        assert "consumers.mial: expected the name of a consumer; did you mean 'mail'?" in (
            result.stderr
        )

    def test_an_unknown_queue_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With those that there are."""
        use(monkeypatch, Several)
        result = run("count", "mail", "--queue", "third")
        assert 2 == result.exit_code
        assert "does not take from 'third', only from: first, second" in result.stderr


class TestPeek:
    """`queues peek`."""

    def test_it_shows_what_waits_and_takes_none(self, address: str) -> None:
        """The next one first, without what is in it (K14)."""
        sent = [message_to("ada", attempt=2), message_to("bob"), message_to("eve")]
        send(address, *map(encode, sent))
        shown = run("peek", "mail").stdout
        lines = [line.split() for line in shown.splitlines()]
        assert [each.id for each in sent] == [line[1] for line in lines[1:]]
        assert shown == run("peek", "mail").stdout
        size = len(encode(sent[0]))
        created_at = sent[0].created_at.isoformat(timespec="seconds")
        assert ["waiting.mail.send", sent[0].id, created_at, "2", str(size), "-"] == lines[1]
        assert "ada" not in run("peek", "mail").output
        result = run("peek", "mail", "--limit", "1", "--offset", "1", "--json")
        [second] = json.loads(result.stdout)["messages"]
        assert {
            "name": "waiting.mail.send",
            "id": sent[1].id,
            "created_at": sent[1].created_at.isoformat(timespec="seconds"),
            "attempts": 0,
            "bytes": len(encode(sent[1])),
            "reason": None,
        } == second

    def test_the_payload_is_shown_where_it_is_asked_for(self, address: str) -> None:
        """As JSON that cannot speak to the terminal."""
        sent = message_to("ada\x1b\x9b")
        send(address, encode(sent))
        shown = run("peek", "mail", "--body").stdout
        assert r"""  {"to": "ada\u001b\u009b"}""" in shown
        assert f"waiting.mail.send  {sent.id}" in shown
        found = json.loads(run("peek", "mail", "--body", "--json").stdout)
        assert address == found["queue"]
        assert {"to": "ada\x1b\x9b"} == found["messages"][0]["payload"]
        assert found["messages"][0]["body"] is None

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (b"\xff\x1b[2J", "not_utf8"),
            (encode(message_to("ada")).replace(b"mail.send", b"mail.sent"), "unknown_name"),
            (encode(message_to("ada")).replace(b'"to"', b'"from"'), "invalid_payload"),
        ],
        ids=["bytes", "unknown", "payload"],
    )
    def test_what_no_worker_could_read_has_a_reason(
        self, address: str, body: bytes, reason: str
    ) -> None:
        """And a size, and its bytes where they are asked for."""
        send(address, body)
        line = run("peek", "mail").stdout.splitlines()[1].split()
        assert ["-", "-", "-", "-", str(len(body)), reason] == line
        shown = run("peek", "mail", "--body").stdout
        assert f"{reason}  {len(body)} bytes\n  {body!a}\n" == shown
        [found] = json.loads(run("peek", "mail", "--body", "--json").stdout)["messages"]
        assert (reason, None) == (found["reason"], found["payload"])
        assert body == base64.b64decode(found["body"])

    def test_it_reads_as_the_consumer_would(self, address: str) -> None:
        """What a section says of unknown fields counts here too."""
        send(address, encode(message_to("ada")).replace(b'"to"', b'"cc":1,"to"'))
        assert "invalid_payload" in run("peek", "mail").stdout
        current["config"]["consumers"]["mail"]["unknown_fields"] = "ignore"
        assert "invalid_payload" not in run("peek", "mail").stdout

    @pytest.mark.parametrize("options", [[], ["--body"]])
    def test_an_empty_queue_has_none(self, options: list[str]) -> None:
        """And says so."""
        assert "none\n" == run("peek", "mail", *options).stdout

    def test_of_several_queues_one_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Or they are shown to choose from."""
        use(monkeypatch, Several)
        result = run("peek", "mail")
        assert 2 == result.exit_code
        assert "which queue? give --queue, one of: first, second" in result.stderr

    def test_what_a_transport_cannot_is_said_with_what_can(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The capability that is missing, and other ways."""
        lack(monkeypatch, "inspect")
        result = run("peek", "mail")
        assert 4 == result.exit_code
        assert (
            "postbus: consumers.mail: memory lacks the capability inspect; "
            "try `postbus queues count mail`, or the system's own tools\n"
        ) == result.stderr
        lack(monkeypatch, "inspect", "count")
        assert "where it has queues, its own tools show them" in run("peek", "mail").stderr


class TestPurge:
    """`queues purge`."""

    def test_it_asks_before_it_removes(self, address: str) -> None:
        """Unless `--yes` was said, or nothing waits."""
        send(address, b"1", b"2")
        refused = run("purge", "mail", stdin="n\n")
        assert (1, "2\n") == (refused.exit_code, run("count", "mail").stdout)
        assert f"Remove 2 messages from '{address}' for good?" in refused.stderr
        assert run("purge", "mail", stdin="y\n").stdout.endswith("2 removed\n")
        assert "0 removed\n" == run("purge", "mail").stdout
        send(address, b"3")
        found = json.loads(run("purge", "mail", "--yes", "--json").stdout)
        assert {"queue": address, "removed": 1} == found
