"""`postbus failed`, `postbus scheduled`, and a worker that hands messages to them."""

from __future__ import annotations

import base64
import json
import logging
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
import pytest
from click.testing import CliRunner

from postbus import Command, Envelope, MessageKind, Postbus, build
from postbus.cli._program import program
from postbus.memory import reset
from postbus.messages import new_id
from postbus.stores import FailedMessage, Failure, ScheduledMessage, SQLiteStore
from postbus.transports import WireMessage
from postbus.wire import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

HERE = __name__
NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRET = "hunter2"  # noqa: S105  planted, to see that it is never shown


@attrs.frozen
class SendMail(Command, name="kept.mail.send"):
    to: str


handled: list[Any] = []
broken: list[Exception] = []


def handle(message: Any) -> None:
    if broken:
        raise broken[0]
    handled.append(message)


@attrs.define
class Shop:
    """An application with two stores, and what stands in the first."""

    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        return {
            "messages": [HERE],
            "producers": {"mail": {"transport": "memory", "address": "kept"}},
            "consumers": {
                "mail": {"transport": "memory", "address": "kept", "failure_store": "main"},
                "bare": {"transport": "memory", "address": "kept-bare"},
            },
            "stores": {
                "main": {"store": "sqlite", "path": str(self.folder / "main.db")},
                "other": {"store": "sqlite", "path": str(self.folder / "other.db")},
            },
            "command_bus": {
                "router": {
                    "routes": {"kept.mail.send": "handle"},
                    "send": {"kept.mail.send": "producers.mail"},
                }
            },
        }

    def store(self, name: str = "main") -> SQLiteStore:
        return SQLiteStore(self.folder / f"{name}.db")

    def fail(self, key: str, minutes: int = 0, **facts: Any) -> FailedMessage:
        """Put a failed message into the store *main*, or the one named."""
        store = self.store(facts.pop("store", "main"))
        failure = Failure(
            at=NOW, reason="handler_failed", error="KeyError", text="no x", where="shop.py:3"
        )
        envelope = envelope_of("ada")
        values: dict[str, Any] = {
            "key": key,
            "consumer": "mail",
            "body": encode(envelope),
            "reason": "handler_failed",
            "id": envelope.id,
            "name": "kept.mail.send",
            "failed_at": NOW + timedelta(minutes=minutes),
            "history": (failure,),
        }
        failed = FailedMessage(**values | facts)
        store.failures.put(failed)
        store.close()
        return failed

    def failed(self, name: str = "main") -> list[str]:
        store = self.store(name)
        try:
            return [each.key for each in store.failures.list()]
        finally:
            store.close()


def envelope_of(to: str) -> Envelope:
    return Envelope(SendMail(to), name="kept.mail.send", kind=MessageKind.COMMAND)


current: dict[str, Any] = {}


def application() -> Postbus:
    return build(current["config"], {"handle": handle})


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """An application of a test's own; logging is afterwards as it was."""
    made = Shop(tmp_path)
    current["config"] = made.config
    root = logging.getLogger()
    before = root.handlers[:], root.level
    handled.clear()
    broken.clear()
    yield made
    root.handlers[:], root.level = before
    reset("kept")


def run(*arguments: str, stdin: str | bytes = "") -> Result:
    """Run a command over the application."""
    command = ["--app", f"{HERE}:application", *arguments]
    return CliRunner().invoke(program, command, input=stdin, catch_exceptions=False)


def work(*arguments: str) -> Result:
    """Run a worker until nothing waits."""
    return run("worker", "mail", "--stop-when-empty", "--log-level", "error", *arguments)


class TestWorker:
    """`postbus worker` in this process (K18)."""

    def test_it_handles_what_waits_and_ends(self, shop: Shop) -> None:
        """`--stop-when-empty` ends it, with exit code 0."""
        run("send", "kept.mail.send", '{"to": "ada"}')
        result = work()
        assert 0 == result.exit_code
        assert [SendMail("ada")] == handled

    def test_zero_is_a_value(self, shop: Shop) -> None:
        """`--max-messages 0` takes nothing (K11)."""
        run("send", "kept.mail.send", '{"to": "ada"}')
        assert 0 == run("worker", "mail", "--max-messages", "0").exit_code
        assert [] == handled
        assert 0 == run("worker", "mail", "--max-runtime", "0").exit_code

    def test_options_take_the_place_of_the_configuration(self, shop: Shop) -> None:
        """What is not given is as `[postbus.worker]` says."""
        current["config"]["worker"] = {"max_messages": 0, "stop_on_error": True}
        run("send", "kept.mail.send", '{"to": "ada"}')
        assert 0 == run("worker").exit_code
        assert [] == handled
        assert 0 == run("worker", "mail", "--max-messages", "1").exit_code
        assert [SendMail("ada")] == handled

    def test_it_ends_with_an_error_where_that_is_wanted(self, shop: Shop) -> None:
        """`--stop-on-error` gives exit code 1 and says what failed, without secrets (K10)."""
        broken.append(RuntimeError(f"password={SECRET}"))
        run("send", "kept.mail.send", '{"to": "ada"}')
        result = run("worker", "mail", "--stop-on-error", "--log-level", "error")
        assert 1 == result.exit_code
        assert "password=***" in result.stderr
        assert SECRET not in result.output

    def test_memory_has_units(self, shop: Shop) -> None:
        """A worker that holds more than that ends."""
        assert 0 == run("worker", "mail", "--max-memory", "1M").exit_code
        assert 0 == run("worker", "mail", "--max-memory", "1024").exit_code
        for wrong in ("many", "-1", "1.5G", "", "1T"):
            result = run("worker", "mail", "--max-memory", wrong)
            assert 2 == result.exit_code
            assert "expected a number of bytes" in " ".join(result.stderr.split())

    def test_an_unknown_consumer_is_refused(self, shop: Shop) -> None:
        """With the nearest one there is."""
        result = run("worker", "mial")
        assert 3 == result.exit_code
        assert "consumers.mial: expected the name of a consumer; did you mean 'mail'?" in (
            result.stderr
        )


class TestFailed:
    """`postbus failed`."""

    def test_a_failed_message_comes_back_and_is_retried(self, shop: Shop) -> None:
        """From a worker to the store, from there to the schedule, and to the worker again."""
        broken.append(KeyError("x"))
        run("send", "kept.mail.send", '{"to": "ada"}')
        work()
        [key] = shop.failed()
        assert key in run("failed", "list").stdout
        assert f"{key}: done\n" == run("failed", "retry", key).stdout
        assert [] == shop.failed()
        work()
        assert [key] == shop.failed()  # still broken: the same message, under the same key
        broken.clear()
        assert 0 == run("failed", "retry", "--all").exit_code
        work()
        assert [SendMail("ada")] == handled
        assert [] == shop.failed()

    def test_they_are_listed_the_longest_failed_first(self, shop: Shop) -> None:
        """Of all stores; standard error says how many there are beside those shown."""
        shop.fail("b", 2)
        shop.fail("a", 1, store="other", name=None, id=None, body=b"\xff", reason="invalid_utf8")
        shop.fail("c", 3, consumer="bare")
        lines = [line.split() for line in run("failed", "list").stdout.splitlines()]
        assert ["a", "b", "c"] == [line[0] for line in lines[1:]]
        assert ["a", "mail", "-", "invalid_utf8", "1", "2030-01-02T03:05:05+00:00"] == lines[1]
        result = run("failed", "list", "--limit", "1", "--offset", "1")
        assert "b " in result.stdout
        assert "1 of 3\n" == result.stderr
        assert "none\n" == run("failed", "list", "--name", "shop.*").stdout

    @pytest.mark.parametrize(
        ("filters", "keys"),
        [
            (["--consumer", "bare"], ["c"]),
            (["--name", "kept.*.send"], ["b", "c"]),
            (["--reason", "invalid_utf8"], ["a"]),
            (["--store", "other"], ["a"]),
            (["--limit", "600"], ["a", "b", "c"]),
        ],
    )
    def test_filters_choose(self, filters: list[str], keys: list[str], shop: Shop) -> None:
        """By consumer, name, reason and store."""
        shop.fail("b", 2)
        shop.fail("a", 1, store="other", name=None, reason="invalid_utf8")
        shop.fail("c", 3, consumer="bare")
        found = json.loads(run("failed", "list", "--json", *filters).stdout)
        assert keys == [each["key"] for each in found["failed"]]
        assert len(keys) == found["total"]

    def test_an_unknown_store_is_refused(self, shop: Shop) -> None:
        """Also where there is none at all."""
        result = run("failed", "list", "--store", "mian")
        assert 3 == result.exit_code
        assert "stores.mian: expected a section of stores; did you mean 'main'?" in result.stderr
        current["config"] = {}
        assert "stores: expected a section of stores" in run("failed", "list").stderr

    def test_one_is_shown_in_full(self, shop: Shop) -> None:
        """With its history, and its body where that is asked for, byte for byte."""
        failed = shop.fail("a")
        shown = run("failed", "show", "a").stdout
        assert "reason      handler_failed\n" in shown
        assert "  handler_failed  KeyError (shop.py:3)\n  no x\n" in shown
        facts = json.loads(run("failed", "show", "a", "--json").stdout)
        assert "no x" == facts["history"][0]["text"]
        assert failed.body == run("failed", "show", "a", "--body").stdout_bytes
        assert failed.body.decode() not in shown
        result = run("failed", "show", "z")
        assert (1, "Error: z is not among the failed messages\n") == (
            result.exit_code,
            result.stderr,
        )

    def test_a_history_may_lack_a_place(self, shop: Shop) -> None:
        """What was never handled was raised nowhere."""
        failure = Failure(at=NOW, reason="unknown_name", error="DecodeError", text="who?")
        shop.fail("a", id=None, history=(failure,))
        assert "unknown_name  DecodeError\n  who?" in run("failed", "show", "a").stdout

    def test_each_key_has_its_result(self, shop: Shop) -> None:
        """One that is not there, or has nowhere to go, does not keep the others."""
        shop.fail("a")
        shop.fail("b", consumer="bare")
        result = run("failed", "retry", "a", "b", "z")
        assert 1 == result.exit_code
        assert "a: done\n" == result.stdout
        assert (
            "b: the consumer bare has no schedule and no failure_store\nz: not there\n"
        ) == result.stderr
        results = json.loads(run("failed", "drop", "b", "z", "--json").stdout)
        assert [
            {"id": "b", "done": True, "trouble": None},
            {"id": "z", "done": False, "trouble": "not there"},
        ] == results
        assert [] == shop.failed()

    def test_bytes_without_a_name_are_retried_as_they_are(self, shop: Shop) -> None:
        """They come back, exactly as they were."""
        shop.fail("a", id=None, name=None, body=b"\xff\xfe")
        assert 0 == run("failed", "retry", "a").exit_code
        work()
        store = shop.store()
        [found] = store.failures.list()
        store.close()
        assert b"\xff\xfe" == found.body

    def test_what_is_meant_has_to_be_said(self, shop: Shop) -> None:
        """Keys or `--all`, and filters belong to `--all`."""
        assert 2 == run("failed", "retry").exit_code
        assert 2 == run("failed", "retry", "a", "--all").exit_code
        result = run("failed", "drop", "a", "--consumer", "mail")
        assert "filters belong to --all" in result.stderr

    def test_dropping_all_is_asked_about(self, shop: Shop) -> None:
        """Unless `--yes` was said."""
        shop.fail("a")
        shop.fail("b", consumer="bare")
        assert 1 == run("failed", "drop", "--all", stdin="n\n").exit_code
        assert ["a", "b"] == shop.failed()
        assert 0 == run("failed", "drop", "--all", "--consumer", "mail", stdin="y\n").exit_code
        assert ["b"] == shop.failed()
        assert "b: done\n" == run("failed", "drop", "--all", "--yes").stdout
        assert "none\n" == run("failed", "drop", "--all").stdout

    def test_they_are_exported(self, shop: Shop, tmp_path: Path) -> None:
        """One a line, with the body in base64, into a file that only its owner reads."""
        failed = shop.fail("a")
        shop.fail("b", 1)
        [line, _] = run("failed", "export").stdout.splitlines()
        assert failed.body == base64.b64decode(json.loads(line)["body"])
        path = tmp_path / "failed.jsonl"
        assert 0 == run("failed", "export", "--output", str(path)).exit_code
        assert ["a", "b"] == [json.loads(each)["key"] for each in path.read_text().splitlines()]
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)
        assert ["a", "b"] == shop.failed()

    def test_a_body_is_corrected(self, shop: Shop, tmp_path: Path) -> None:
        """From a file or standard input; what is no message is refused without `--force`."""
        failed = shop.fail("a")
        body = failed.body.replace(b'"ada"', b'"bob"')
        path = tmp_path / "body.json"
        path.write_bytes(body)
        assert "a: done\n" == run("failed", "edit", "a", "--file", str(path)).stdout
        assert body == run("failed", "show", "a", "--body").stdout_bytes
        assert "unchanged\n" == run("failed", "edit", "a", "--file", str(path)).stdout
        result = run("failed", "edit", "a", "--file", "-", stdin="{}")
        assert 2 == result.exit_code
        assert "--force keeps it all the same" in " ".join(result.stderr.split())
        bad = body.replace(b'"bob"', b"7")
        assert 2 == run("failed", "edit", "a", "--file", "-", stdin=bad).exit_code
        assert 0 == run("failed", "edit", "a", "--file", "-", "--force", stdin="{}").exit_code
        assert b"{}" == run("failed", "show", "a", "--body").stdout_bytes

    def test_a_body_is_corrected_in_an_editor(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where no file is given; bytes that are no text need one."""
        failed = shop.fail("a")
        shop.fail("b", 1, body=b"\xff")
        monkeypatch.setattr(click, "edit", lambda text, **_: text.replace('"ada"', '"eve"') + "\n")
        assert 0 == run("failed", "edit", "a").exit_code
        expected = failed.body.replace(b'"ada"', b'"eve"')
        assert expected == run("failed", "show", "a", "--body").stdout_bytes
        monkeypatch.setattr(click, "edit", lambda *_, **__: None)
        assert "unchanged\n" == run("failed", "edit", "a").stdout
        assert "give the new one with --file" in run("failed", "edit", "b").stderr

    def test_a_file_alone_is_enough(self, shop: Shop, tmp_path: Path) -> None:
        """Stores need no services, so `--config` will do."""
        shop.fail("a")
        path = tmp_path / "postbus.json"
        path.write_text(json.dumps({"postbus": shop.config}))
        result = CliRunner().invoke(program, ["--config", str(path), "failed", "retry", "a"])
        assert (0, "a: done\n") == (result.exit_code, result.stdout)


class TestScheduled:
    """`postbus scheduled`."""

    def put(self, shop: Shop, id_: str, minutes: int, target: str, store: str = "main") -> None:
        """Put a message into a schedule."""
        message = WireMessage(b"{}", {}, id_, "kept.mail.send")
        kept = shop.store(store)
        due = NOW + timedelta(minutes=minutes)
        kept.schedule.put(ScheduledMessage(target=target, due=due, message=message))
        kept.close()

    def test_they_are_listed_the_next_due_first(self, shop: Shop) -> None:
        """Of all stores, by target and name too."""
        self.put(shop, "b", 2, "producers.mail")
        self.put(shop, "a", 1, "consumers.mail", store="other")
        lines = [line.split() for line in run("scheduled", "list").stdout.splitlines()[1:]]
        due = "2030-01-02T03:05:05+00:00"
        assert ["a", "kept.mail.send", "consumers.mail", due] == lines[0]
        found = json.loads(run("scheduled", "list", "--target", "producers.mail", "--json").stdout)
        assert [("b", "main")] == [(each["id"], each["store"]) for each in found]
        assert "none\n" == run("scheduled", "list", "--name", "shop.*").stdout
        assert 2 == len(run("scheduled", "list", "--limit", "1").stdout.splitlines())

    def test_they_are_cancelled(self, shop: Shop) -> None:
        """By id, for every target or for one; one that is not there is said."""
        id_ = new_id()
        self.put(shop, id_, 1, "producers.mail")
        self.put(shop, id_, 1, "consumers.mail")
        first = run("scheduled", "cancel", id_, "--target", "consumers.mail")
        assert (0, f"{id_}: done\n") == (first.exit_code, first.stdout)
        assert 0 == run("scheduled", "cancel", id_).exit_code
        last = run("scheduled", "cancel", id_)
        assert (1, f"{id_}: not there\n") == (last.exit_code, last.stderr)

    def test_one_that_a_worker_has_begun_with_is_left(self, shop: Shop) -> None:
        """It is claimed, and its lease has not ended."""
        id_ = new_id()
        message = WireMessage(b"{}", {}, id_, "kept.mail.send")
        kept = shop.store()
        target = "consumers.mail"
        due = datetime.now(UTC) - timedelta(minutes=1)
        kept.schedule.put(ScheduledMessage(target=target, due=due, message=message))
        assert 1 == len(kept.schedule.claim([target], limit=1, lease=600.0))
        kept.close()
        result = run("scheduled", "cancel", id_)
        assert (1, f"{id_}: a worker has begun with it\n") == (result.exit_code, result.stderr)
